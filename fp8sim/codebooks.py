"""Conversion to a codebook's closest level, as thresholds: which source numbers are the last to take the lower one.

A midpoint of two levels need not be a number of the source's dtype. The largest one at or below it (strictly below,
where a tie goes to the upper level) separates the dtype's numbers all the same, so that comparing with it is exact.
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim.formats import FORMATS, Codebook
from fp8sim.rounding import Overflow, Rounding

_FLOAT32 = FORMATS["float32"]
TIES = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TIES_TO_ZERO)


def check(fmt: Codebook, rounding: Rounding, overflow: Overflow) -> None:
    """ValueError unless a codebook has the mode and the policy: there are only closest levels, and no special codes."""
    if rounding not in TIES:
        known = ", ".join(mode.name for mode in TIES)
        raise ValueError(f"rounding={rounding.name}: {fmt} is a codebook and takes the closest level; use {known}")
    if overflow not in (Overflow.SATURATE, Overflow.SAT_PROPAGATE):
        raise ValueError(f"overflow={overflow.name} needs an infinity or NaN, and {fmt} has neither: use SATURATE")


@functools.cache
def thresholds(fmt: Codebook, rounding: Rounding, dtype: str) -> NDArray[Any]:
    """[levels - 1], of dtype "float32" or "float64": x has the code that counts the thresholds below x.

    TIES_TO_EVEN takes the even code, TIES_TO_AWAY the level of larger magnitude, TIES_TO_ZERO that of smaller
    magnitude; between two levels of the same magnitude, both take the even code.
    """
    last_below = _last_binary32_below if dtype == "float32" else _last_binary64_below
    pairs = enumerate(itertools.pairwise(map(Fraction, fmt.levels)))
    cuts = [last_below((low + high) / 2, _tie_goes_up(code, low, high, rounding)) for code, (low, high) in pairs]
    return np.array(cuts, np.uint32 if dtype == "float32" else np.float64).view(dtype)


def _tie_goes_up(code: int, low: Fraction, high: Fraction, rounding: Rounding) -> bool:
    if rounding is Rounding.TIES_TO_EVEN or abs(low) == abs(high):
        return code % 2 == 1
    return (abs(high) > abs(low)) == (rounding is Rounding.TIES_TO_AWAY)


def _last_binary32_below(middle: Fraction, strictly: bool) -> int:
    """The bits of the largest float32 number at or below `middle`, or strictly below it; -infinity if there is none.

    By bisection on codes, so that the process's rounding mode and flushing of subnormals have no part in it.
    """

    def is_below(ordinal: int) -> bool:
        number = _FLOAT32.value(abs(ordinal)) * (1 if ordinal > 0 else -1)
        return number < middle if strictly else number <= middle

    low, high = -_FLOAT32.max_code - 1, _FLOAT32.max_code
    while low < high:
        candidate = (low + high + 1) // 2
        low, high = (candidate, high) if is_below(candidate) else (low, candidate - 1)
    return low if low >= 0 else _FLOAT32.negative(-low)


def _last_binary64_below(middle: Fraction, strictly: bool) -> float:
    """The same in float64."""
    guess = float(middle)
    above = Fraction(guess) > middle or (strictly and Fraction(guess) == middle)
    return math.nextafter(guess, -math.inf) if above else guess
