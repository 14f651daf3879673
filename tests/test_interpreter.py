"""The corrected interpreter: its conversions are NVIDIA's, its self-test finds every fault, and it comes on cleanly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import nvidia_header
import triton
import triton.language as tl
from nvidia_header.__main__ import tables

from fp8sim.triton_kernels import boundaries, cast, interpreter, interpreter_checks, matmul

ROOT = Path(__file__).resolve().parents[1]

needs_interpreter = pytest.mark.skipif(
    not interpreter.is_enabled(), reason="there is a CUDA device, so kernels of this process are compiled"
)


# Boundaries, against NVIDIA's header


@pytest.fixture(scope="module")
def header():
    try:
        nvidia_header.build()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))
    return nvidia_header.convert


NARROW = ["fp8e4nv", "fp8e5", "bf16", "fp16"]


def assert_same_codes(actual, expected, patterns):
    actual, expected = (np.asarray(x).view(f"u{x.dtype.itemsize}") for x in (actual, expected))
    wrong = np.flatnonzero(actual != expected)
    assert wrong.size == 0, (
        f"{wrong.size} of {actual.size} differ, first {patterns[wrong[0]]:#x}: {actual[wrong[0]]:#x}, "
        f"NVIDIA's header says {expected[wrong[0]]:#x}"
    )


def canonical_nan(values):
    """float32 with one NaN pattern: NumPy keeps the payload of a float16 NaN, the GPU does not."""
    return np.where(np.isnan(values), np.float32(np.nan), values)


def test_committed_boundaries_are_the_headers(header):
    committed = json.loads((ROOT / "triton_kernels" / "boundaries.json").read_text())
    assert committed == json.loads(json.dumps(tables()))


@pytest.mark.parametrize("target", NARROW)
def test_narrowing_float32_at_every_boundary(header, target):
    starts = nvidia_header.thresholds(target).astype(np.int64)
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18)
    special = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    positive = np.concatenate([starts - 1, starts, starts + 1, special])
    patterns = np.concatenate([positive, positive | 0x80000000, random]).astype(np.uint32)
    actual = boundaries.from_float32(patterns.view(np.float32), target)
    assert_same_codes(actual, header(patterns, "fp32", target), patterns)


@pytest.mark.full
@pytest.mark.parametrize("part", range(16))
@pytest.mark.parametrize("target", ["fp8e4nv", "fp8e5"])
def test_narrowing_every_float32(header, target, part):
    for start in range(part << 28, (part + 1) << 28, 1 << 24):
        patterns = np.arange(start, start + (1 << 24), dtype=np.uint32)
        actual = boundaries.from_float32(patterns.view(np.float32), target)
        assert_same_codes(actual, header(patterns, "fp32", target), patterns)


@pytest.mark.parametrize("target", ["fp8e4nv", "fp8e5"])
@pytest.mark.parametrize("source", ["fp16", "bf16"])
def test_narrowing_every_16_bit_number(header, source, target):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    data = patterns.view(np.float16) if source == "fp16" else patterns
    actual = boundaries.from_float32(boundaries.to_float32(data, source), target)
    assert_same_codes(actual, header(patterns, source, target), patterns)


@pytest.mark.parametrize("source", NARROW)
def test_widening_every_code(header, source):
    codes = np.arange(256, dtype=np.uint8) if source.startswith("fp8") else np.arange(1 << 16, dtype=np.uint16)
    data = codes.view(np.float16) if source == "fp16" else codes
    expected = header(codes, source, "fp32").view(np.float32)
    assert_same_codes(canonical_nan(boundaries.to_float32(data, source)), canonical_nan(expected), codes)


# The self-test, and that it can fail


@needs_interpreter
def test_self_test_passes_and_says_what_it_compared():
    compared = interpreter_checks.self_test()
    assert compared["float8_e4m3fn to float32, every code"] == 256
    assert compared["bfloat16 to float32, every code"] == 1 << 16
    assert compared["float16 to float8_e5m2, every code"] == 1 << 16
    assert compared["float32 to float8_e4m3fn, boundaries"] > 4 * 2 * 126
    assert compared["dot of bfloat16"] == 64 * 64


stock_from_float32, stock_to_float32 = boundaries.from_float32, boundaries.to_float32


def truncate(values, target):
    patterns = np.asarray(values, np.float32).view(np.uint32)
    return stock_from_float32((patterns & np.uint32(0xFFFF0000)).view(np.float32), target)


def overflow_to_infinity(values, target):
    codes = stock_from_float32(values, target)
    return np.where(np.isinf(values) & (codes == 0x7B), 0x7C, codes).astype(codes.dtype)


def nan_as_number(codes, source):
    return np.nan_to_num(stock_to_float32(codes, source))


@needs_interpreter
@pytest.mark.parametrize(
    ("name", "fault", "check"),
    [
        ("from_float32", truncate, "bfloat16 arithmetic"),
        ("from_float32", overflow_to_infinity, "float32 to float8_e5m2, boundaries: 1 of"),
        ("to_float32", nan_as_number, "float8_e4m3fn to float32, every code: 2 of 256"),
    ],
)
def test_self_test_finds_a_fault(monkeypatch, name, fault, check):
    monkeypatch.setattr(boundaries, name, fault)
    with pytest.raises(RuntimeError, match=rf"Triton {triton.__version__}: .*{check}") as raised:
        interpreter_checks.self_test()
    assert "install triton==3.6.0" in str(raised.value)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment()
    )


def environment():
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


EVERY_CHECK_UNCORRECTED = """
import numpy as np
from fp8sim.triton_kernels import interpreter
interpreter._correct = lambda stock: None
interpreter.enable()
from fp8sim.triton_kernels import interpreter_checks
for name, check in interpreter_checks._checks().items():
    try:
        with np.errstate(all="ignore"):
            interpreter_checks._require_equal(name, *check())
    except Exception:
        print(name)
"""


def test_stock_interpreter_fails_the_self_test():
    """The faults that the corrections are for; one that vanishes means that Triton has changed."""
    done = run_python(EVERY_CHECK_UNCORRECTED)
    assert done.returncode == 0, done.stderr
    failing = set(done.stdout.splitlines())
    narrowing = {f"{s} to {t}, every code" for s in ("float16", "bfloat16") for t in ("float8_e4m3fn", "float8_e5m2")}
    boundary = {f"float32 to {t}, boundaries" for t in ("float8_e4m3fn", "float8_e5m2", "bfloat16")}
    assert failing >= narrowing | boundary | {"dot of bfloat16", "bfloat16 arithmetic"}
    assert "dot of float32" not in failing


# Switching on


@needs_interpreter
def test_children_are_not_affected():
    code = "import triton, sys; sys.exit(triton.knobs.runtime.interpret)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


LATE = """
import torch, triton, triton.language
from fp8sim.triton_kernels import cast, interpreter, interpreter_checks, matmul
x = torch.tensor([1.06, 1000.0])
assert not interpreter.is_enabled()
for call in (interpreter_checks.self_test, lambda: cast.cast(x, "e4m3")):
    try:
        call()
    except RuntimeError as error:
        assert "interpreter.enable()" in str(error), error
    else:
        raise AssertionError(call)

interpreter.enable()
assert interpreter.is_enabled()
assert cast.cast(x, "e4m3").tolist() == [1.0, 448.0]
a = torch.ones(3, 5).to(torch.float8_e4m3fn)
assert matmul.matmul(a, a).tolist() == [[5.0] * 3] * 3
assert interpreter_checks.self_test()
"""


def test_errors_before_it_name_the_remedy_and_imported_kernels_are_switched_over():
    done = run_python(LATE)
    assert done.returncode == 0, done.stderr


@needs_interpreter
def test_the_stock_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(interpreter, "is_enabled", lambda: False)
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET is set.*interpreter.enable\(\)"):
        cast.cast(torch.zeros(3), "e4m3")


def test_missing_private_name_is_an_error_that_names_triton():
    stock = SimpleNamespace(InterpreterBuilder=SimpleNamespace(cast_impl=None))
    with pytest.raises(RuntimeError, match=rf"Triton {triton.__version__} has no _convert_float.*create_dot"):
        interpreter._require_private_names(stock)


# What kernels see


@triton.jit
def convert_kernel(x_ptr, TARGET: tl.constexpr, ROUNDING: tl.constexpr):
    tl.load(x_ptr + tl.arange(0, 4)).to(TARGET, fp_downcast_rounding=ROUNDING)


@needs_interpreter
@pytest.mark.parametrize(
    ("source", "target", "rounding", "message"),
    [
        (torch.float32, tl.bfloat16, "rtz", "knows only ties to even"),
        (torch.int32, tl.bfloat16, None, "in the interpreter: convert to float32"),
        (torch.float64, tl.bfloat16, None, "no boundaries for fp64 to bf16"),
        (torch.float32, tl.float8e4b15, None, "no boundaries for fp32 to fp8e4b15"),
    ],
)
def test_conversion_without_boundaries_is_refused(source, target, rounding, message):
    with pytest.raises(Exception, match=message):
        convert_kernel[(1,)](torch.ones(4, dtype=source), TARGET=target, ROUNDING=rounding)


@triton.jit
def masked_copy_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    far = tl.where(index < count, index, 1 << 30).to(tl.int64) * (1 << 10)
    far = tl.where(index < count, index, far)
    tl.store(out_ptr + far, tl.load(x_ptr + far * 2, mask=index < count, other=7), mask=index < count)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_masked_elements_are_not_touched(dtype, count):
    x, out = torch.arange(16).to(dtype), torch.full((8,), 9).to(dtype)
    masked_copy_kernel[(1,)](x, out, count, BLOCK=8)
    assert out.tolist() == [2 * i for i in range(count)] + [9] * (8 - count)


@needs_interpreter
def test_use_dot_replaces_the_sum_of_products():
    seen = []

    def toward_zero(a, b, c, imprecise):
        seen.append((a.dtype, b.dtype, a.values.shape))
        return np.trunc(a.values @ b.values) + c

    a = torch.full((4, 32), 0.328125).to(torch.bfloat16)
    with interpreter.use_dot(toward_zero):
        modelled = matmul.matmul(a, a)
    assert modelled.unique().tolist() == [3.0]
    assert set(seen) == {("bf16", "bf16", (256, 256))}
    assert matmul.matmul(a, a).unique().tolist() == [32 * 0.328125**2]
