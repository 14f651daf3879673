"""The compiled loops: every instruction set, lane, tail, thread and environment of the process gives the same bits."""

import ctypes
import functools
import itertools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from boundaries import (
    FLOATS,
    MODES,
    assert_same_codes,
    bits_of,
    boundaries,
    decoded,
    policies,
    random_integers,
    widened,
)

from fp8sim import _core, casting
from fp8sim.formats import FORMATS, Format, p3109, parse
from fp8sim.rounding import Overflow, Rounding, resolve_names

Array = np.ndarray[Any, Any]

STREAM = {"seed": 2**64 - 7, "stream": 3, "offset": 2**64 - 70}
# One row for each loop: by adder (three finishes), aligned, within and beyond reach, to codes of each width.
PATHS = [
    ("e4m3", "TIES_TO_EVEN", "SATURATE"),
    ("e2m1", "TIES_TO_EVEN", "SATURATE"),
    ("e5m2", "TIES_TO_EVEN", "INFINITY"),
    ("fp16", "TIES_TO_EVEN", "SATURATE"),
    ("e4m3", "TO_ODD", "SATURATE"),
    ("e4m3", "STOCHASTIC", "SATURATE"),
    ("e4m3", "STOCHASTIC_B", "SATURATE"),
    ("bf16", "TIES_TO_EVEN", "INFINITY"),
    ("bf16", "STOCHASTIC", "INFINITY"),
    ("tf32", "TIES_TO_AWAY", "SATURATE"),
    ("e8m0", "TOWARD_POSITIVE", "SATURATE"),
    ("binary16p2se", "TIES_TO_EVEN", "SATURATE"),
]


def results(x: Array, fmt: str, rounding: str, overflow: str, offset: int = 0) -> tuple[Array, Array, Array]:
    """Codes, numbers as cast, numbers as decoded."""
    options: dict[str, Any] = {"rounding": rounding, "overflow": overflow}
    if Rounding[rounding].is_stochastic:
        options |= {**STREAM, "offset": (STREAM["offset"] + offset) % 2**64}
    codes = casting.encode(x, fmt, **options)
    return codes, bits_of(casting.cast(x, fmt, **options)), bits_of(casting.decode(codes, fmt, dtype=x.dtype))


def assert_same(found: tuple[Array, ...], expected: tuple[Array, ...], what: str) -> None:
    __tracebackhide__ = True
    for part, a, b in zip(("encode", "cast", "decode"), found, expected, strict=True):
        assert np.array_equal(a, b), f"{part} {what}"


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_every_lane_and_tail(path: tuple[str, str, str], dtype: str) -> None:
    points = boundaries(parse("e4m3"), dtype)
    x = np.resize(points[:: points.size // 200], 260)
    _core.set_isa("portable")
    whole = results(x, *path)
    for isa in _core.isas():
        _core.set_isa(isa)
        for count in range(1, 131):
            start = count * 7 % 129
            part = slice(start, start + count)
            expected = tuple(w[part] for w in whole)
            assert_same(results(x[part], *path, offset=start), expected, f"{path} {dtype} {isa} [{part}]")


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_no_element_beyond_the_end_is_written(path: tuple[str, str, str]) -> None:
    for isa, count in itertools.product(_core.isas(), (0, 1, 13, 67, 1025)):
        _core.set_isa(isa)
        memory = np.full(count + 64, 7.25, np.float32)
        casting.cast(memory[32 : 32 + count], path[0], out=memory[32 : 32 + count])
        assert (memory[:32] == 7.25).all()
        assert (memory[32 + count :] == 7.25).all()


# Threads.


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = _core.get_num_threads()
    _core.set_num_threads(count)
    try:
        yield
    finally:
        _core.set_num_threads(before)


def test_the_number_of_threads_does_not_matter() -> None:
    points = boundaries(parse("e4m3"), "float32")
    x = np.resize(points, 3 * 2**17 + 77)
    for path in PATHS:
        with threads(1):
            expected = results(x, *path)
        for count in (2, 3, 8):
            with threads(count):
                assert_same(results(x, *path), expected, f"{path} {count} threads")


def test_loops_may_be_called_from_several_threads_at_once() -> None:
    x = np.resize(boundaries(parse("e4m3"), "float32"), 2**18)
    expected = casting.encode(x, "e4m3")
    with threads(2), ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: casting.encode(x, "e4m3"), range(24)):
            np.testing.assert_array_equal(found, expected)


# The extension alone, without the package, which takes seconds to import.
LOAD_CORE = f"""
import importlib.util, os
import numpy as np
spec = importlib.util.spec_from_file_location("_core", {_core.__file__!r})
_core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_core)
conversion = {list(resolve_names("e4m3", "TIES_TO_EVEN", "SATURATE"))}
"""
FORK = """
x = np.full(1 << 19, 1.3, np.float32)
y = np.empty_like(x)
_core.set_num_threads(2)
_core.cast(x, y, "float32", conversion)
child = os.fork()
y[:] = 0
_core.cast(x, y, "float32", conversion)
if child == 0:
    os._exit(7 if (y == 1.25).all() else 8)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (y == 1.25).all())
"""


def run_core(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD_CORE + script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_forked_child_has_threads_of_its_own() -> None:
    found = run_core(FORK)
    assert found.stdout.split() == ["7", "True"], found.stderr


def test_the_default_is_the_processors_of_this_process() -> None:
    found = run_core("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(_core.get_num_threads())")
    assert found.stdout.split() == ["1"], found.stderr


# Instruction sets.


@pytest.mark.parametrize("isa", _core.isas())
def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    script = "x = np.float32([1.3, 500]); _core.cast(x, x, 'float32', conversion); print(_core.isa(), *x)"
    found = run_core(script, FP8SIM_ISA=isa)
    assert found.stdout.split() == [isa, "1.25", "448.0"], found.stderr


def test_an_unknown_instruction_set_is_an_error() -> None:
    found = run_core("_core.isa()", FP8SIM_ISA="neon9")
    assert "ValueError: FP8SIM_ISA='neon9': this build on this processor has portable" in found.stderr


# The process's floating-point environment.


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def process_rounding(mode: int) -> Iterator[None]:
    libm = ctypes.CDLL("libm.so.6")
    before = libm.fegetround()
    if libm.fesetround(mode) != 0:
        pytest.skip(f"no rounding mode {mode:#x} on this processor")
    try:
        yield
    finally:
        libm.fesetround(before)


ENVIRONMENTS = {
    "flushed subnormals": flushed_subnormals,
    "downward": lambda: process_rounding(0x400),
    "upward": lambda: process_rounding(0x800),
    "toward zero": lambda: process_rounding(0xC00),
}


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_environment_of_the_process_does_not_matter(environment: str) -> None:
    formats = ("e5m2", "fp16", "bf16", "e8m0", "tf32", "binary8p1se", "e3m2(bias=140,nan=ieee,infinity)")
    cases = list(itertools.product(formats, ("TIES_TO_EVEN", "TO_ODD", "STOCHASTIC"), FLOATS))
    inputs = {case: boundaries(parse("e5m2"), case[2]) for case in cases}
    large = np.resize(inputs[cases[0]], 2**18)
    expected = {case: results(inputs[case], case[0], case[1], "SATURATE") for case in cases}
    expected_large = casting.encode(large, "bf16")
    for isa in _core.isas():
        _core.set_isa(isa)
        with ENVIRONMENTS[environment](), threads(2):
            found = {case: results(inputs[case], case[0], case[1], "SATURATE") for case in cases}
            found_large = casting.encode(large, "bf16")
        for case in cases:
            assert_same(found[case], expected[case], f"{case} {environment} {isa}")
        np.testing.assert_array_equal(found_large, expected_large)


def test_the_environment_of_the_process_is_left_alone() -> None:
    with flushed_subnormals(), process_rounding(0x800):
        casting.cast(np.ones(2**18, np.float32), "e4m3")
        third = torch.ones(1, dtype=torch.float64) / 3
        subnormal = torch.tensor([1e-40]) * 1
        rounding = ctypes.CDLL("libm.so.6").fegetround()
    assert rounding == 0x800
    assert float(third) > 1 / 3
    assert float(subnormal) == 0


# Formats of 16 bits and more: every number and midpoint, with its neighbours in the source's dtype.

WIDE = [parse("fp16"), parse("bf16"), p3109(16, 11), p3109(16, 7, signed=False, extended=False)]


def check_wide(fmt: Format, mode: Rounding, overflow: Overflow, dtype: str) -> None:
    x = boundaries(fmt, dtype)
    options = {"rounding": mode, "overflow": overflow, **(STREAM if mode.is_stochastic else {})}
    random = random_integers(x.size, STREAM) if mode.is_stochastic else 0
    expected = oracle.encode_array(widened(x), fmt, mode, overflow, random)
    for isa in _core.isas():
        _core.set_isa(isa)
        what = f"{fmt} {mode.name} {overflow.name} {dtype} {isa}"
        codes = casting.encode(x, fmt, **options)
        assert_same_codes(codes, expected, x, what)
        numbers = casting.cast(x, fmt, **options)
        assert_same_codes(bits_of(numbers), bits_of(casting.decode(codes, fmt, dtype=x.dtype)), x, f"cast {what}")


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("fmt", WIDE, ids=str)
@pytest.mark.parametrize("mode", ["TIES_TO_EVEN", "TOWARD_NEGATIVE", "STOCHASTIC"])
def test_wide_formats_at_every_boundary(fmt: Format, mode: str) -> None:
    check_wide(fmt, Rounding[mode], Overflow.INFINITY, "float32")


@pytest.mark.full
@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", WIDE, ids=str)
def test_wide_formats_in_every_mode_and_policy(fmt: Format, mode: Rounding) -> None:
    for overflow, dtype in itertools.product(policies(fmt), FLOATS):
        check_wide(fmt, mode, overflow, dtype)


@pytest.mark.parametrize("fmt", WIDE[:2], ids=str)
def test_the_array_oracle_is_the_rational_one_for_wide_formats(fmt: Format) -> None:
    x = widened(boundaries(fmt, "float32"))[::997]
    for mode in MODES:
        random = random_integers(x.size, STREAM)
        expected = [
            oracle.encode(v, fmt, mode, Overflow.INFINITY, int(r)) for v, r in zip(x.tolist(), random, strict=True)
        ]
        found = oracle.encode_array(x, fmt, mode, Overflow.INFINITY, random)
        assert_same_codes(found, np.array(expected, np.uint32), x, f"{fmt} {mode.name}")


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize(
    "name", ["e9m22(bias=900,nan=none)", "e8m23(bias=3000,nan=none)", "e8m23(bias=30000,nan=none)"]
)
def test_every_number_is_above_a_format_far_below(name: str) -> None:
    """Its exponent above the format's, shifted beyond the fraction, would not fit in a word."""
    fmt = parse(name)
    x = np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32)
    for isa, mode in itertools.product(_core.isas(), MODES):
        _core.set_isa(isa)
        options = STREAM if mode.is_stochastic else {}
        codes = casting.encode(np.concatenate([x, -x]), fmt, rounding=mode, **options)
        assert (codes[: x.size] == fmt.max_code).all()
        assert (codes[x.size :] == fmt.max_code | fmt.sign_bit).all()


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name",
    [
        "e16m3(bias=32768,nan=ieee,infinity)",
        "e16m3(bias=-32768,nan=all_ones)",
        "e8m0(bias=32768,nan=all_ones,unsigned,nonzero)",
        "e8m0(bias=-32768,nan=all_ones,unsigned,nonzero)",
        "e1m23(bias=32768,nan=none)",
        "fixed8(fraction=32773)",
        "fixed8(fraction=-32763)",
    ],
)
def test_biases_at_their_limits(name: str, dtype: str) -> None:
    """The farthest that `LARGEST_BIAS` allows: the whole dtype lies above the format, below it, or in one corner."""
    fmt, info = parse(name), np.finfo(dtype)
    positive = np.array([0, info.smallest_subnormal, info.tiny, 1.0, 1.3, info.max, np.inf, np.nan], dtype)
    x = np.concatenate([positive, -positive])
    random = random_integers(x.size, STREAM)
    for mode in MODES:
        options = STREAM if mode.is_stochastic else {}
        expected = [
            oracle.encode(v, fmt, mode, Overflow.SATURATE, int(r)) for v, r in zip(x.tolist(), random, strict=True)
        ]
        numbers = np.array([oracle.decode(code, fmt, dtype) for code in expected])
        for isa in _core.isas():
            _core.set_isa(isa)
            codes = casting.encode(x, fmt, rounding=mode, **options)
            assert_same_codes(codes, np.array(expected), x, f"{name} {mode.name} {isa}")
            assert_same_codes(bits_of(casting.decode(codes, fmt, dtype=dtype)), numbers, x, f"decode {name} {isa}")
            assert_same_codes(bits_of(casting.cast(x, fmt, rounding=mode, **options)), numbers, x, f"cast {name} {isa}")


@functools.cache
def numbers_of(fmt: Format) -> Array:
    return np.array([fmt.to_float(code) for code in fmt.codes])


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("fmt", WIDE, ids=str)
def test_every_wide_code_decodes_to_its_number(fmt: Format, isa: str) -> None:
    _core.set_isa(isa)
    codes = np.arange(1 << 16, dtype=np.uint16)
    numbers = numbers_of(fmt)
    found = casting.decode(codes, fmt, dtype="float64")
    np.testing.assert_array_equal(found, numbers)
    number = numbers == numbers
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(numbers[number]))
    with np.errstate(over="ignore"):
        for dtype in (np.float32, np.float16):
            narrow = casting.decode(codes, fmt, dtype=dtype)
            np.testing.assert_array_equal(bits_of(narrow)[number], bits_of(numbers.astype(dtype))[number])


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name", ["tf32", "fp16", "bf16", "binary16p2se", "binary15p9uf", "e9m21(bias=270,nan=ieee,infinity)"]
)
def test_codes_of_wide_formats_decode_by_the_definition(name: str, dtype: str) -> None:
    fmt = parse(name)
    step = max(1, (1 << fmt.bits) // 150)
    edges = [code + k for code in (0, fmt.max_code, fmt.sign_bit, 1 << fmt.mantissa_bits) for k in range(-3, 4)]
    codes = sorted({*range(0, 1 << fmt.bits, step), *(code for code in edges if 0 <= code < 1 << fmt.bits)})
    expected = np.array([oracle.decode(code, fmt, dtype) for code in codes])
    array = np.array(codes, casting.code_dtype(fmt))
    for isa in _core.isas():
        _core.set_isa(isa)
        assert_same_codes(bits_of(casting.decode(array, fmt, dtype=dtype)), expected, array, f"{name} {dtype} {isa}")


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.bits <= 8], ids=str)
def test_long_arrays_of_codes_decode_by_the_definition(fmt: Format) -> None:
    codes = np.resize(np.arange(1 << fmt.bits, dtype=np.uint8), 5000)
    for isa, dtype in itertools.product(_core.isas(), FLOATS):
        _core.set_isa(isa)
        found = bits_of(casting.decode(codes, fmt, dtype=dtype))
        assert_same_codes(found, decoded(fmt, dtype)[codes], codes, f"{fmt} {dtype} {isa}")


# More elements than 32 bits count.


@pytest.mark.full
def test_more_elements_than_32_bits_count() -> None:
    count = 2**31 + 5
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 16 * 2**30:
        pytest.skip("needs 16 GiB of memory")
    x = np.zeros(count, ml_dtypes.bfloat16)
    x[-3:] = [1, 2.1, -3.3]
    tail = x[-3:].copy()
    codes = casting.encode(x, "e4m3")
    assert codes[-4:].tolist() == [0, *casting.encode(tail, "e4m3")]
    assert not codes[:-3].any()
    del codes
    casting.cast(x, "e4m3", rounding="STOCHASTIC", seed=1, out=x)
    expected = casting.cast(tail, "e4m3", rounding="STOCHASTIC", seed=1, offset=count - 3)
    np.testing.assert_array_equal(x[-3:], expected)
    assert not x[:-3].any()


# One definition for each instruction set.


@pytest.mark.full
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs g++ and nm")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 alone is compiled for several instruction sets")
def test_code_for_one_instruction_set_is_merged_with_no_other(tmp_path: Path) -> None:
    """The linker merges inline functions of one name, and would keep those with instructions that a processor lacks."""
    root = Path(__file__).resolve().parents[1]
    wide = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mavx2", "-mfma", "-mf16c", "-mbmi2"]
    source, target = root / "csrc/cpu/cast_avx512.cpp", tmp_path / "cast.o"
    flags = ["-std=c++17", "-O1", "-w", f"-I{root / 'csrc'}"]
    subprocess.run(["g++", *flags, *wide, "-c", str(source), "-o", str(target)], check=True)
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", "-g", str(target)], capture_output=True, text=True, check=True
    )
    assert [line.split(maxsplit=2)[2] for line in listed.stdout.splitlines()] == ["fp8sim::cast_loops_avx512()"]
