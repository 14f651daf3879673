"""Where conversions go wrong: numbers, midpoints, their neighbours in the source, what lies beyond, specials."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracle
import pytest

from fp8sim import _core
from fp8sim.formats import FORMATS, Codebook, Format, fixed_point, p3109_formats, parse
from fp8sim.rounding import Overflow, Rounding

Array = np.ndarray[Any, Any]


class Floats(dict[str, Any]):
    """NumPy's types by name. bfloat16 is that of ml_dtypes: a test that takes it is skipped where that is absent."""

    def __getitem__(self, name: str) -> Any:
        return pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else super().__getitem__(name)


FLOATS = Floats(float32=np.float32, float64=np.float64, float16=np.float16, bfloat16=None)
MODES = list(Rounding)

CODEBOOKS = [
    FORMATS["normalfloat4"],
    Codebook("ternary and a half", (-1, 0, 0.5, 1)),
    Codebook("far apart", (-1e300, -(2.0**-140), 2.0**-1074, 3e38)),
    Codebook("positive", (2.0**-24, 3 * 2.0**-24, 1 + 2.0**-23, 1 + 2.0**-22, 65504, 65520, 1e5, 1e39)),
    Codebook("a bit", (-1, 1)),
]
FIXED = [
    FORMATS["int8_mx"],
    FORMATS["int8_mx_symmetric"],
    fixed_point(2, 0),
    fixed_point(5, -3, symmetric=True),
    fixed_point(8, 7, signed=False),
    fixed_point(7, 131),  # among binary32's subnormals, the lowest number alone above them
    fixed_point(4, -125),  # the lowest number is -2^128, which binary32 lacks
    fixed_point(12, 4),
]
"""Formats of fixed point."""
NARROW = [f for f in FORMATS.values() if f.bits <= 8 and f not in (*FIXED, *CODEBOOKS)]
"""The catalogue's floats of at most 8 bits."""
P3109_NARROW = [f for bits in range(3, 9) for f in p3109_formats(bits)]
ODD = [
    parse("e2m3(bias=-3,nan=none,unsigned)"),  # all numbers are 8 or more
    parse("e1m2(bias=1,nan=none)"),
    parse("e5m0(bias=15,nan=none)"),
    parse("e3m1(bias=120,nan=ieee,infinity)"),  # among binary32's small normals
    parse("e3m2(bias=140,nan=ieee,infinity)"),  # among binary32's subnormals
    parse("e4m3(bias=180,nan=all_ones)"),  # below them
    parse("e3m2(bias=-122,nan=all_ones,infinity)"),  # around binary32's largest
    parse("e3m2(bias=-130,nan=negative_zero)"),  # above it
    parse("e2m2(bias=-125,nan=none)"),  # up to the binade above it
    parse("e8m1(bias=127,nan=all_ones)"),  # the same, with the smallest normal number of binary32
    parse("e4m1(bias=127,nan=none,unsigned,infinity)"),  # the same emin as binary32, another range
    parse("e7m1(bias=126,nan=all_ones)"),  # the next one; its smallest number is binary32's smallest normal one
    parse("e7m2(bias=126,nan=ieee,infinity)"),  # the same, and a subnormal one
]
"""Formats that the catalogue lacks: unsigned with fraction, without exponent range, beyond binary32 on every side."""


def policies(fmt: Format) -> list[Overflow]:
    return [overflow for overflow in Overflow if oracle.represents(fmt, overflow)]


@functools.cache
def centres(fmt: Format) -> Array:
    """Numbers, midpoints, and what lies half a spacing and more beyond the largest; binary64, not negative."""
    numbers = oracle.numbers(fmt)
    spacing = numbers[-1] - numbers[-2] if fmt.mantissa_bits else numbers[-1]
    beyond = numbers[-1] + spacing * np.array([0.5, 1.0, 1.5, 2.0, 4.0, 64.0])
    quarter = numbers[:2].mean() / 2
    return np.concatenate(
        [numbers, (numbers[1:] + numbers[:-1]) / 2, beyond, [quarter, quarter / 2**20, quarter / 2**40]]
    )


def boundaries(fmt: Format, dtype: str) -> Array:
    """The points of one source dtype, of either sign, specials last; an array of the caller's own."""
    return _boundaries(fmt, dtype).copy()


@functools.cache
def _boundaries(fmt: Format, dtype: str) -> Array:
    kind = FLOATS[dtype]
    with np.errstate(all="ignore"):
        middle = centres(fmt).astype(kind)
        bits = middle.view(oracle.DTYPES[dtype])
        around = np.concatenate([bits, bits + 1, bits[bits > 0] - 1]).view(kind)
    tiny = np.array([0, 1, 2, 3], oracle.DTYPES[dtype]).view(kind)
    info = pytest.importorskip("ml_dtypes").finfo(kind) if dtype == "bfloat16" else np.finfo(kind)
    limits = np.array([info.tiny, info.max, np.inf, np.nan]).astype(kind)
    positive = np.concatenate([around, tiny, limits])
    return np.concatenate([positive, -positive])


def widened(x: Array) -> Array:
    """As binary64, in which the oracle works; exact."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def random_integers(count: int, arguments: dict[str, int]) -> Array:
    """The random integers that `casting` takes under the same keywords."""
    target = np.empty(count, np.uint32)
    _core.random_integers(target, **{name: value % 2**64 for name, value in arguments.items()})
    return target


def each_isa() -> Iterator[str]:
    """The names of the instruction sets, each in use while it is the loop's; afterwards the one before."""
    chosen = _core.isa()
    try:
        for isa in _core.isas():
            _core.set_isa(isa)
            yield isa
    finally:
        _core.set_isa(chosen)


def bits_of(x: Array) -> Array:
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def assert_same_codes(actual: Array, expected: Array, x: Array, what: str) -> None:
    """Equal codes; the message shows the first difference."""
    __tracebackhide__ = True
    wrong = np.flatnonzero(actual != expected)
    if wrong.size:
        i = wrong[0]
        raise AssertionError(
            f"{what}: {wrong.size} of {x.size} differ, first x[{i}] = {float(x[i])!r} ({bits_of(x)[i]:#x}): "
            f"got {actual[i]:#x}, expected {expected[i]:#x}"
        )


@functools.cache
def decoded(fmt: Format, dtype: str) -> Array:
    """The bits of every code's number in `dtype`, by the rational definition."""
    return np.array([oracle.decode(code, fmt, dtype) for code in fmt.codes], oracle.DTYPES[dtype])
