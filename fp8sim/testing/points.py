"""Where conversions to a format go wrong: inputs by the name of what they try, and memory layouts to put them in."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from fp8sim.formats import FORMATS, Codebook, Format
from fp8sim.testing.elements import Array, decoded, like, numpy_dtype, widened

RANDOM_PATTERNS = 1 << 14
"""Random bit patterns of the source dtype among the points."""

_DISTANCES = (10, 13, 26)
"""x * (1 + 2^-d) is x in bfloat16 for d = 10, in float16 too for 13, in float32 too for 26: double rounding shows."""

_MOST_CODES = 1 << 16
"""Formats with more magnitude codes are sampled: both ends and an even spread."""


@functools.cache
def points(fmt: Format, dtype: str) -> dict[str, Array]:
    """Inputs in `dtype` for a conversion to `fmt`, of either sign, by what they try: name -> [N].

    Numbers and midpoints that `dtype` cannot hold are left out of the groups that name them; their neighbours stay.
    All codes and midpoints of formats of up to 16 bits; wider ones are sampled.

    Args:
        fmt: the format.
        dtype: float32, float64, float16 or bfloat16.
    """
    low, high = _intervals(fmt)
    middle = low / 2 + high / 2
    normal = np.append(low, high[-1])
    subnormal = (normal > 0) & (normal < float(fmt.smallest_normal))
    groups = {
        "signed zeros": np.zeros(1, numpy_dtype(dtype)),
        "subnormal numbers of the format": _exact(normal[subnormal], dtype),
        "normal numbers of the format": _exact(normal[~subnormal & (normal > 0)], dtype),
        "midpoints between numbers": _exact(middle, dtype),
        "neighbours of midpoints": _near(_rounded(middle, dtype)),
        "neighbours of binade edges": _neighbours(_rounded(normal[np.frexp(normal)[0] == 0.5], dtype)),
        "magnitudes below the smallest number": _below_smallest(fmt, dtype),
        "the overflow threshold and beyond": _beyond_largest(fmt, dtype),
        "infinities": np.array([np.inf], numpy_dtype(dtype)),
        "NaN": np.array([np.nan], numpy_dtype(dtype)),
    }
    found = {name: np.concatenate([x, -x]) for name, x in groups.items() if x.size}
    found["random bit patterns"] = _patterns(dtype)
    for x in found.values():
        x.flags.writeable = False
    return found


def all_points(fmt: Format, dtype: str) -> Array:
    """Every group of `points` in one array [N]."""
    return np.concatenate(list(points(fmt, dtype).values()))


def _intervals(fmt: Format) -> tuple[Array, Array]:
    """The two ends of the intervals between neighbouring numbers, not negative, binary64: [N], [N]."""
    count = fmt.max_code
    codes = np.arange(count) if count <= _MOST_CODES else _spread(count)
    low, high = (decoded(codes + step, fmt, "float64") for step in (0, 1))
    inside = np.isfinite(high)
    if not inside.any():
        raise ValueError(f"{fmt} has no two numbers in the range of binary64: its casts are not testable here")
    low, high = low[inside], high[inside]
    return _mirrored(low, high) if isinstance(fmt, Codebook) else (low, high)


def _mirrored(low: Array, high: Array) -> tuple[Array, Array]:
    """Intervals anywhere with the sign that puts their middle above zero; that of the largest number last."""
    negative = low / 2 + high / 2 < 0
    low, high = np.where(negative, -high, low), np.where(negative, -low, high)
    order = np.argsort(high, kind="stable")
    return low[order], high[order]


def _spread(count: int) -> Array:
    """Some of 0 .. count - 1: runs at both ends and around every power of two, and an even spread."""
    edges = [1 << n for n in range(8, count.bit_length())]
    runs = [np.arange(512), np.arange(count - 512, count), *(np.arange(edge - 4, edge + 4) for edge in edges)]
    return np.unique(np.concatenate([*runs, np.linspace(0, count - 1, 1 << 13).astype(np.int64)]))


def _rounded(x: Array, dtype: str) -> Array:
    """binary64 in `dtype`, ties to even, without those that overflow."""
    with np.errstate(all="ignore"):
        y: Array = x.astype(numpy_dtype(dtype))
        return y[np.isfinite(widened(y))]


def _exact(x: Array, dtype: str) -> Array:
    """Those of `x` that `dtype` holds exactly."""
    with np.errstate(all="ignore"):
        y: Array = x.astype(numpy_dtype(dtype))
        held: Array = y[widened(y) == x]
        return held


def _neighbours(x: Array) -> Array:
    """The next smaller and the next larger number of the dtype of each of `x` >= 0."""
    bits = x.view(f"u{x.dtype.itemsize}")
    around: Array = np.concatenate([bits[bits > 0] - 1, bits + 1]).astype(bits.dtype).view(x.dtype)
    return around


def _near(x: Array) -> Array:
    """The neighbours of each of `x` >= 0, and numbers so near that a narrower float than the dtype rounds them to x."""
    bits = x.view(f"u{x.dtype.itemsize}")
    fraction_bits = 52 if x.dtype.itemsize == 8 else FORMATS[x.dtype.name].mantissa_bits
    near = [_neighbours(x)]
    for distance in _DISTANCES:
        step = fraction_bits - distance
        if step > 0:
            jump = bits.dtype.type(1 << step)
            near += [(bits + jump).view(x.dtype), (bits[bits >= jump] - jump).view(x.dtype)]
    return np.concatenate(near)


def _below_smallest(fmt: Format, dtype: str) -> Array:
    smallest = float(fmt.smallest)
    x = _rounded(smallest * np.array([2.0**-40, 2.0**-20, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]), dtype)
    word = f"u{x.dtype.itemsize}"
    tiny = np.array([1, 2, 3], word).view(x.dtype)
    x = np.concatenate([x, _neighbours(x), tiny])
    return x[widened(x) < smallest]


def _beyond_largest(fmt: Format, dtype: str) -> Array:
    """Around the largest number and half a spacing beyond it, which is where the nearest modes overflow."""
    low, high = _intervals(fmt)
    spacing = (high[-1] - low[-1]) if fmt.mantissa_bits else high[-1]
    with np.errstate(over="ignore"):
        x = _rounded(high[-1] + spacing * np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 64.0]), dtype)
    top = np.array([np.inf], numpy_dtype(dtype)).view(f"u{x.dtype.itemsize}") - 1
    return np.concatenate([x, _neighbours(x), top.astype(top.dtype).view(x.dtype)])


def _patterns(dtype: str) -> Array:
    kind = numpy_dtype(dtype)
    words = np.dtype(f"u{kind.itemsize}")
    generator = np.random.default_rng(0)
    return generator.integers(0, np.iinfo(words).max, RANDOM_PATTERNS, words, endpoint=True).view(kind)


# Memory.


class Layout(NamedTuple):
    """How an array lies in memory: element i, j, ... is element `offset` + i * strides[0] + ... of a block."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def elements(self) -> int:
        """How many elements the block needs."""
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + 1 + sum(max(0, (length - 1) * stride) for length, stride in steps)

    def place(self, block: Array, takes: str, device: str = "cpu") -> tuple[Any, Array]:
        """(the array over `block` [N], as NumPy or a torch tensor on `device`; the same as a NumPy array)."""
        strides = tuple(stride * block.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(block[self.offset :], self.shape, strides)
        if takes == "numpy":
            return view, view
        memory: torch.Tensor = like(block, takes, device)
        return torch.as_strided(memory, self.shape, self.strides, self.offset), view


LAYOUTS = (
    Layout("an offset of one element", (129,), (1,), 1),
    Layout("every second element", (65,), (2,)),
    Layout("every third element from the second", (43,), (3,), 1),
    Layout("a transposed matrix", (17, 9), (1, 17)),
    Layout("a part of a matrix", (7, 13), (31, 1), 5),
    Layout("a matrix with spaced columns", (5, 6), (40, 3), 2),
    Layout("a row broadcast to a matrix", (4, 33), (0, 1)),
    Layout("a column broadcast to a matrix", (33, 4), (1, 0)),
    Layout("three permuted dimensions", (3, 5, 7), (1, 21, 3)),
)
"""Strided arrays that both NumPy and torch can describe."""

REVERSED = Layout("a reversed array", (77,), (-1,), 76)
"""Negative strides, which torch has not."""

EMPTY = (Layout("an empty array", (0,), (1,)), Layout("no rows", (0, 5), (5, 1)), Layout("no columns", (3, 0), (1, 1)))
"""Arrays without elements."""

SCALAR = Layout("a 0-d array", (), ())
"""One element without a dimension."""

LENGTHS = tuple(Layout(f"length {n}", (n,), (1,)) for n in range(1, 131))
"""Every number of elements that a vector loop and its tail may meet."""
