"""How far below the largest term an adder keeps the others, which products it adds at once, and in which order.

M is the largest product that may be added up, u a smaller one; the sum of M, -M and u is u or, where it was cut, 0.
"""

from __future__ import annotations

import numpy as np

from fp8sim.analysis.probing.operands import Array
from fp8sim.analysis.probing.terms import Ruler, Sum

Value = int | str | None
Measurements = dict[str, Value]

_DEEPEST = 40
"""Bits below the largest term at which everything known is cut."""


def reach(ruler: Ruler) -> int:
    """How many binades below M products and results reach, as far as it matters."""
    smallest_result = ruler.smallest_normal - ruler.fraction_bits
    return min(ruler.top - max(ruler.lowest, smallest_result), _DEEPEST)


def largest_and_its_negative(ruler: Ruler, first: int, second: int) -> dict[int, tuple[int, int]]:
    """M and -M at two places along K."""
    return {first: (1, ruler.top), second: (-1, ruler.top)}


def cutting(ruler: Ruler) -> Measurements:
    """F and L: at each place in turn the smallest product beside M - M, then ever larger ones where that is cut."""
    k, depth = ruler.takes.k, reach(ruler)
    unknown: Measurements = {"fraction_bits": None, "products_per_step": None, "step_places": None}
    if depth < 1 or k < 3:
        return unknown
    pair = largest_and_its_negative(ruler, 0, 1)
    sums = [Sum({**pair, place: (1, ruler.top - depth)}) for place in range(2, k)]
    cut = [place for place, d in zip(range(2, k), ruler.results(sums), strict=True) if d == 0]
    if not cut:
        return unknown
    sums = [Sum({**pair, cut[0]: (1, ruler.top - n)}) for n in range(1, depth + 1)]
    return {
        "fraction_bits": last_true(ruler.results(sums) != 0),
        "products_per_step": 2 + len(cut),
        "step_places": _ranges([0, 1, *cut]),
    }


def last_true(kept: Array) -> int:
    """The number of the last True, counted from 1; 0 if there is none."""
    return int(np.flatnonzero(kept).max(initial=-1)) + 1


def _ranges(places: list[int]) -> str:
    """As "0-7" or "0-1, 4-5"."""
    starts = [place for place in places if place - 1 not in places]
    ends = [place for place in places if place + 1 not in places]
    return ", ".join(f"{first}-{last}" for first, last in zip(starts, ends, strict=True))


def order(ruler: Ruler) -> Measurements:
    """u at one end of K, M - M at the other: it is lost if it was added before, and kept if it comes afterwards."""
    found: Measurements = {}
    for name, instructions in (("steps", 1), ("chain", 2)):
        k, depth = instructions * ruler.takes.k, reach(ruler)
        if depth < 1 or k < 3:
            found[name] = None
            continue
        u = (1, ruler.top - depth)
        sums = [
            Sum({**largest_and_its_negative(ruler, 0, 1), k - 1: u}),
            Sum({**largest_and_its_negative(ruler, k - 2, k - 1), 0: u}),
        ]
        last, first = (bool(d != 0) for d in ruler.results(sums, instructions))
        found[name] = {(True, False): "ascending", (False, True): "descending", (False, False): "one sum"}.get(
            (last, first)
        )
    return found


def cutting_of_c(ruler: Ruler) -> Measurements:
    """c as the small term."""
    n = np.arange(1, _DEEPEST + 20)
    exponent = ruler.top - n
    n = n[exponent >= ruler.smallest_normal - ruler.fraction_bits]
    if not n.size or ruler.takes.k < 2:
        return {"c_fraction_bits": None}
    kept = ruler.results([Sum(largest_and_its_negative(ruler, 0, 1), 2.0 ** (ruler.top - int(i))) for i in n]) != 0
    return {"c_fraction_bits": None if kept.all() else last_true(kept)}
