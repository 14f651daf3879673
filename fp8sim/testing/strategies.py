"""Hypothesis strategies: formats, their codes, values where casts go wrong, and arrays in awkward memory.

Needs Hypothesis: `pip install hypothesis`. Examples shrink toward small codes, short arrays and plain memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fp8sim import casting, formats
from fp8sim.formats import FORMATS, Format, Nan, p3109
from fp8sim.testing.elements import Array, decoded, numpy_dtype, widened
from fp8sim.testing.points import LAYOUTS, REVERSED, SCALAR, Layout, points

_DTYPES = ("float32", "float64", "float16", "bfloat16")


def catalogue_formats(max_bits: int = 32) -> SearchStrategy[Format]:
    """The named formats of at most `max_bits` bits."""
    return st.sampled_from([fmt for fmt in FORMATS.values() if fmt.bits <= max_bits])


@st.composite
def p3109_formats(draw: DrawFn, max_bits: int = 16) -> Format:
    """P3109 formats binary{K}p{P}{s|u}{e|f} of 3 to `max_bits` bits, 16 at most."""
    bits, signed = draw(st.integers(3, min(max_bits, 16))), draw(st.booleans())
    precision = draw(st.integers(1, bits - signed))
    return p3109(bits, precision, signed=signed, extended=draw(st.booleans()))


@st.composite
def user_formats(draw: DrawFn, max_bits: int = 16) -> Format:
    """Formats that nobody named: any fields, bias, NaN codes and flags that describe a format of 2 to `max_bits` bits.

    The bias keeps every number within binary64's normal range.
    """
    signed, nan = draw(st.booleans()), draw(st.sampled_from(list(Nan)))
    if not signed and nan is Nan.NEGATIVE_ZERO:
        nan = Nan.ALL_ONES
    ieee = nan is Nan.IEEE
    least = 2 if ieee else 1
    exponent_bits = draw(st.integers(least, max(least, min(8, max_bits - signed - least))))
    mantissa_bits = draw(st.integers(min(1, ieee), max(ieee, min(23, max_bits - signed - exponent_bits))))
    if signed + exponent_bits + mantissa_bits < 4:
        mantissa_bits += 2  # room for infinity and NaN beside two numbers
    infinity = ieee or draw(st.booleans())
    return Format(
        "user",
        exponent_bits,
        mantissa_bits,
        bias=draw(st.integers(-200, 200)),
        nan=nan,
        infinity=infinity,
        signed=signed,
        finite_domain=not infinity and draw(st.booleans()),
    )


def any_formats(max_bits: int = 16) -> SearchStrategy[Format]:
    """Formats of every kind, of at most `max_bits` bits."""
    return st.one_of(catalogue_formats(max_bits), p3109_formats(max_bits), user_formats(max_bits))


@functools.cache
def _codes(fmt: Format, finite: bool) -> SearchStrategy[int]:
    codes = st.integers(0, fmt.codes[-1])
    return codes.filter(fmt.is_finite) if finite else codes


def codes(fmt: str | Format, *, finite: bool = False) -> SearchStrategy[int]:
    """Codes of a format; `finite` leaves NaN and infinities out."""
    return _codes(formats.parse(fmt), finite)


@st.composite
def values(draw: DrawFn, fmt: str | Format, *, dtype: str = "float32", finite: bool = False) -> float:
    """Numbers of `dtype` for a cast to `fmt`, as Python floats, which hold each exactly.

    Every kind of `points`, codes' own numbers, midpoints of any two neighbours and what lies beside them, and any bit
    pattern at all. `finite` leaves NaN and infinities out.

    Args:
        fmt: the format or its name.
        dtype: float32, float64, float16 or bfloat16.
        finite: whether every value is a number.
    """
    form = formats.parse(fmt)
    kind = numpy_dtype(dtype)
    value = draw(st.one_of(_point(form, dtype), _near(form, dtype), _pattern(kind)))
    return 0.0 if finite and not np.isfinite(value) else value


@st.composite
def _point(draw: DrawFn, fmt: Format, dtype: str) -> float:
    """One of the prepared points, each kind equally often."""
    group = points(fmt, dtype)[draw(st.sampled_from(sorted(points(fmt, dtype))))]
    return float(widened(group[draw(st.integers(0, group.size - 1))]))


@st.composite
def _near(draw: DrawFn, fmt: Format, dtype: str) -> float:
    """A number of the format, or the midpoint above it, or a few steps of `dtype` beside either."""
    code = draw(st.integers(0, fmt.max_code - 1))
    low, high = decoded(np.array([code, code + 1]), fmt, "float64")
    centre = np.array([abs(low / 2 + high / 2 if draw(st.booleans()) else low)])
    with np.errstate(all="ignore"):
        bits = centre.astype(numpy_dtype(dtype)).view(f"u{numpy_dtype(dtype).itemsize}")
    top = np.array([np.inf], numpy_dtype(dtype)).view(bits.dtype)[0]
    stepped = min(max(int(bits[0]) + draw(st.integers(-2, 2)), 0), int(top))
    value = float(widened(np.array([stepped], bits.dtype).view(numpy_dtype(dtype)))[0])
    return -value if draw(st.booleans()) else value


@st.composite
def _pattern(draw: DrawFn, kind: np.dtype[Any]) -> float:
    word = draw(st.integers(0, (1 << 8 * kind.itemsize) - 1))
    return float(widened(np.array([word], f"u{kind.itemsize}").view(kind))[0])


def layouts(*, reversed_too: bool = True, max_side: int = 33) -> SearchStrategy[Layout]:
    """Memory of 0 to 3 dimensions: contiguous of any length, empty, 0-d, strided, offset, permuted, broadcast."""
    fixed = [SCALAR, *LAYOUTS, *([REVERSED] if reversed_too else [])]
    return st.one_of(st.sampled_from(fixed), _drawn_layouts(max_side))


@st.composite
def _drawn_layouts(draw: DrawFn, max_side: int) -> Layout:
    """Sides of any length in any order in memory, with gaps."""
    sides = draw(st.lists(st.integers(0, max_side), max_size=3))
    order, step = draw(st.permutations(range(len(sides)))), draw(st.integers(1, 3))
    strides = [0] * len(sides)
    for axis in order:
        strides[axis], step = step, step * max(sides[axis], 1)
    return Layout("drawn", tuple(sides), tuple(strides), draw(st.integers(0, 5)))


@st.composite
def arrays(draw: DrawFn, fmt: str | Format, *, dtype: str = "float32", finite: bool = False) -> Array:
    """NumPy arrays [...] of `values` in awkward memory; of bfloat16, ml_dtypes'.

    Args:
        fmt, dtype, finite: as for `values`.
    """
    layout = draw(layouts())
    array, _ = layout.place(_block(draw, fmt, dtype, finite, layout), "numpy")
    filled: Array = array
    return filled


@st.composite
def tensors(draw: DrawFn, fmt: str | Format, *, dtype: str = "float32", finite: bool = False) -> torch.Tensor:
    """Torch tensors [...] of `values` in awkward memory.

    Args:
        fmt, dtype, finite: as for `values`.
    """
    layout = draw(layouts(reversed_too=False))
    tensor: torch.Tensor
    tensor, _ = layout.place(_block(draw, fmt, dtype, finite, layout), "torch")
    return tensor


def _block(draw: DrawFn, fmt: str | Format, dtype: str, finite: bool, layout: Layout) -> Array:
    """Enough elements for `layout`: some drawn one by one, so that they shrink, and repeated."""
    drawn = draw(st.lists(values(fmt, dtype=dtype, finite=finite), min_size=1, max_size=17))
    with np.errstate(all="ignore"):
        some = np.array(drawn, np.float64).astype(numpy_dtype(dtype))
    return np.resize(some, layout.elements)


def dtypes() -> SearchStrategy[str]:
    """The four dtypes that casts take, by name."""
    return st.sampled_from(_DTYPES)


def code_arrays(fmt: str | Format, *, max_size: int = 130) -> SearchStrategy[Array]:
    """Arrays [N] of codes of a format, in the dtype that `fp8sim.encode` gives."""
    form = formats.parse(fmt)
    kind = casting.code_dtype(form)
    return st.lists(codes(form), max_size=max_size).map(lambda drawn: np.array(drawn, kind))
