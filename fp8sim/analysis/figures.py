"""What a cast does to a tensor, and what casts do to a gradient, in a few numbers."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from fp8sim.formats import Format


@dataclass(frozen=True)
class CastFigures:
    """Figures of merit of casting x to y. Shares are of the non-zero finite elements of x.

    Attributes:
        elements: how many x has; `zeros`, `nonfinite`: how many of them are zero, infinite or NaN.
        sqnr: 20 log10(|x| / |x - y|) in dB over finite elements of x, in float64; minus infinity if one of them became
            infinite or NaN; None if y equals x or there is nothing.
        exact: whether y equals x.
        gain: <x, y> / <x, x> - 1, the part of the error that does not average out.
        zeroed: share that became zero. subnormal: share that became a subnormal number.
        clipped: share whose rounding with unbounded exponent exceeds the largest number.
        exponents: how many elements have each floor(log2 |x|).
        reason: why figures are missing, or empty.
    """

    elements: int
    zeros: int
    nonfinite: int
    sqnr: float | None
    exact: bool
    gain: float | None
    zeroed: float | None
    subnormal: float | None
    clipped: float | None
    exponents: dict[int, int]
    reason: str = ""


def cast_figures(x: torch.Tensor, y: torch.Tensor, fmt: Format) -> CastFigures:
    """The figures of x [...] cast to y [...], numbers of `fmt`; both floating point, on the CPU."""
    x, y = x.detach().flatten(), y.detach().flatten()
    finite = x.isfinite()
    nonfinite = x.numel() - int(finite.sum())
    if nonfinite:
        x, y = x[finite], y[finite]
    nonzero = x != 0
    count = int(nonzero.sum())
    known = (x.numel() + nonfinite, x.numel() - count, nonfinite)
    if count == 0:
        reason = "all zero" if x.numel() else "no finite element"
        return CastFigures(*known, None, False, None, None, None, None, {}, reason)
    magnitude, kept = x.abs(), y.abs()
    signal, error = _square_sum(x), _square_sum(x - y)
    limit, limit_overflows = _overflow_threshold(fmt)
    clipped = magnitude >= limit if limit_overflows else magnitude > limit
    return CastFigures(
        *known,
        sqnr=_decibels(signal, error),
        exact=error == 0,
        gain=float(torch.dot(x.double(), y.double())) / signal - 1,
        zeroed=int((nonzero & (kept == 0)).sum()) / count,
        subnormal=int(((kept > 0) & (kept < float(fmt.smallest_normal))).sum()) / count,
        clipped=int(clipped.sum()) / count,
        exponents=_exponents(magnitude[nonzero] if count < x.numel() else magnitude),
    )


def _decibels(signal: float, error: float) -> float | None:
    """10 log10 of the ratio; None without error, minus infinity if a cast overflowed to infinity or NaN."""
    if not math.isfinite(error):
        return -math.inf
    return 10 * math.log10(signal / error) if error else None


def _square_sum(x: torch.Tensor) -> float:
    wide = x.double()
    return float(torch.dot(wide, wide))


@functools.cache
def _overflow_threshold(fmt: Format) -> tuple[float, bool]:
    """The midpoint above the largest number, and whether the midpoint itself rounds (ties to even) past the largest."""
    half_step = Fraction(2) ** (fmt.emax - fmt.mantissa_bits) / 2
    midpoint = fmt.max + half_step
    return (math.inf if midpoint >= 2**128 else float(midpoint)), fmt.max_code % 2 == 1


def _exponents(magnitude: torch.Tensor) -> dict[int, int]:
    """How many elements of a positive tensor have each floor(log2)."""
    exponents = torch.frexp(magnitude).exponent - 1
    lowest = int(exponents.min())
    counts = torch.bincount(exponents - lowest)
    return {lowest + i: n for i, n in enumerate(counts.tolist()) if n}


@dataclass(frozen=True)
class GradientFigures:
    """How a gradient g compares with its reference r.

    Attributes:
        cosine: of the angle between them; 0 if one is zero, None if both are.
        gain: <r, g> / <r, r> - 1; None if r is zero.
    """

    cosine: float | None
    gain: float | None


def gradient_figures(gradient: torch.Tensor, reference: torch.Tensor) -> GradientFigures:
    """The figures of a gradient [...] against its reference [...], in float64."""
    g, r = gradient.detach().flatten().double(), reference.detach().flatten().double()
    norms = float(g.norm()), float(r.norm())
    inner = float(torch.dot(g, r))
    cosine = inner / (norms[0] * norms[1]) if norms[0] and norms[1] else (0.0 if any(norms) else None)
    return GradientFigures(cosine, inner / norms[1] ** 2 - 1 if norms[1] else None)


PLATEAU_DB = {"float16": 73.6, "bfloat16": 55.6, "float8_e4m3fn": 31.5, "float8_e5m2": 25.5}
"""Measured sqnr of a normal tensor inside a format's range."""


def plateau(fmt: Format) -> float:
    """sqnr in dB of a normal tensor inside the range of `fmt`: measured, or about 6.02 M + 13.5 for M fraction bits."""
    return PLATEAU_DB.get(str(fmt), 6.02 * fmt.mantissa_bits + 13.5)
