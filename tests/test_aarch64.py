"""The loops on another processor: built for aarch64, run on an emulator, they give what this machine's give.

Skipped where a compiler or the emulator is missing: `apt install g++-aarch64-linux-gnu qemu-user`.
"""

import itertools
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from boundaries import FLOATS, MODES, Array, bits_of, boundaries

from fp8sim import casting
from fp8sim.formats import parse
from fp8sim.rounding import Overflow, Rounding, resolve

ROOT = Path(__file__).resolve().parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FORMATS = ("e4m3", "e5m2", "e2m1", "e8m0", "e4m3fnuz", "bf16", "fp16", "tf32", "e3m2(bias=140,nan=ieee,infinity)")
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "uint16", "uint32")  # as `enum Dtype`
RANDOM = {"seed": 2**63 + 5, "stream": 7, "offset": 2**64 - 100, "random_bits": 19}


class Case(NamedTuple):
    """One job, and what it gives here."""

    what: str
    header: bytes
    source: Array
    expected: Array


def header(source: str, target: str, conversion: Any, arrays: tuple[Array, Array]) -> bytes:
    """`Header` of cast_elsewhere.cpp."""
    widths = [array.itemsize for array in arrays]
    words = [DTYPES.index(source), DTYPES.index(target), *widths, *(field % 2**32 for field in conversion)]
    stream = (arrays[0].size, RANDOM["seed"], RANDOM["stream"], RANDOM["offset"])
    return struct.pack(f"<{len(words)}II4Q", *words, RANDOM["random_bits"], *stream)


def cases() -> Iterator[Case]:
    for name, dtype, mode in itertools.product(FORMATS, FLOATS, MODES):
        fmt = parse(name)
        x = boundaries(fmt if fmt.bits <= 8 else parse("e5m2"), dtype)
        random = RANDOM if mode.is_stochastic else {}
        codes = casting.encode(x, fmt, rounding=mode, **random)
        numbers = casting.cast(x, fmt, rounding=mode, **random)
        conversion, what = resolve(fmt, mode, Overflow.SATURATE), f"{name} {dtype} {mode.name}"
        kind = casting.code_dtype(fmt)
        yield Case(f"encode {what}", header(dtype, kind, conversion, (x, codes)), x, codes)
        yield Case(f"cast {what}", header(dtype, dtype, conversion, (x, numbers)), x, numbers)
        if mode is Rounding.TIES_TO_EVEN:
            numbers = casting.decode(codes, fmt, dtype=x.dtype)
            yield Case(f"decode {what}", header(kind, dtype, conversion, (codes, numbers)), codes, numbers)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    target = tmp_path_factory.mktemp("aarch64") / "cast_elsewhere"
    sources = [ROOT / "csrc/cpu" / f"{stem}.cpp" for stem in ("cast", "cast_portable", "isa", "parallel")]
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command = [COMPILER, *flags, f"-I{ROOT / 'csrc'}", ROOT / "tests/cast_elsewhere.cpp", *sources, "-o", target]
    subprocess.run(command, check=True)
    return target


def test_aarch64_gives_the_same(program: Path) -> None:
    wanted = list(cases())
    jobs = b"".join(case.header + case.source.tobytes() for case in wanted)
    found = subprocess.run([EMULATOR, program], input=jobs, capture_output=True, check=True).stdout
    for case in wanted:
        result = np.frombuffer(found[: case.expected.nbytes], case.expected.dtype)
        found = found[case.expected.nbytes :]
        same = result == case.expected if case.expected.dtype.kind == "u" else bits_of(result) == bits_of(case.expected)
        assert same.all(), f"{case.what}: {np.count_nonzero(~same)} differ, first [{np.flatnonzero(~same)[0]}]"
    assert not found
