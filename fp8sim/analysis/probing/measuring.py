"""An adder's properties, each read off its results for a few chosen sums, without a model of it.

None stands for what its operands cannot show: a product of 4-bit numbers is never small enough to be cut. The letters
are those of `fp8sim.mma.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fp8sim.analysis.probing.cutting import Measurements, Value, cutting, cutting_of_c, last_true, order, reach
from fp8sim.analysis.probing.edges import signs_of_zero, specials, subnormals, zero_exponent
from fp8sim.analysis.probing.instruments import Instrument
from fp8sim.analysis.probing.terms import Ruler, Sum

__all__ = ["PROPERTIES", "Measurements", "Value", "measure"]


def measure(instrument: Instrument) -> Measurements:
    """Every property, by name, in the order of `PROPERTIES`."""
    ruler = Ruler(instrument)
    found: Measurements = {}
    for procedure in PROCEDURES:
        found |= procedure(ruler)
    return {name: found[name] for name in PROPERTIES}


PROPERTIES: Mapping[str, str] = {
    "fraction_bits": "largest n for which M - M + 2^-n M keeps the last product; F",
    "products_per_step": "products that are cut beside M - M at the first two places; L",
    "step_places": "where these products are",
    "steps": "which end of K is added first",
    "chain": "the same, of two instructions",
    "c_fraction_bits": "largest n for which M - M + c keeps c = 2^-n M",
    "result_bits": "fraction bits that a result has: n for which 1 + 2^-n returns, as c alone or as half of a sum",
    "rounding": "of halves of the result's last bit",
    "overflow": "what the largest number and its last bit add up to",
    "zero_exponent": "exponent of a term that is zero, from the sums that it cuts",
    "subnormal_a": "what becomes of a subnormal number of a",
    "subnormal_b": "of b",
    "subnormal_c": "of c",
    "subnormal_result": "of d",
    "nan": "d for a NaN in a, b, c",
    "infinity": "d for +inf and -inf in a, in b, in c",
    "infinity_times_zero": "d",
    "opposite_infinities": "d for c = -inf and a product +inf",
    "zero_of_zeros": "sign of d where every term is -0",
    "zero_of_cancellation": "sign of d of 1 - 1",
    "zero_of_underflow": "sign of d where a negative sum is too small",
}
"""What is measured, and how."""


def _result_bits(ruler: Ruler) -> int:
    """c alone is cut to F bits; a sum that carries, of c = 1, a product of 1 and one of 2^(1-n), is not."""
    n = np.arange(1, ruler.fraction_bits + 1)
    alone = ruler.results([Sum({}, 1 + 2.0 ** -int(i)) for i in n]) == 1 + 2.0**-n
    found = last_true(alone)
    if ruler.takes.k >= 2:
        n = np.array([i for i in n if ruler.can_make(0) and ruler.can_make(1 - int(i))])
        sums = [Sum({0: (1, 0), 1: (1, 1 - int(i))}, 1.0) for i in n]
        carried = (
            [int(i) for i, d in zip(n, ruler.results(sums), strict=True) if d == 2 + 2.0 ** (1 - i)] if sums else []
        )
        found = max([found, *carried])
    return found


_ROUNDINGS: dict[tuple[int, ...], str] = {
    (0, 0, 0, 0): "toward zero",
    (0, 1, 0, 1): "ties to even",
    (1, 1, 1, 1): "ties away from zero",
    (0, 0, 1, 1): "toward negative",
    (1, 1, 0, 0): "toward positive",
    (1, 0, 1, 0): "to odd",
}


def results(ruler: Ruler) -> Measurements:
    """Half of the last bit, added to an even and to an odd number of either sign."""
    kept = _result_bits(ruler)
    if kept == 0:
        return {"result_bits": 0, "rounding": None}
    sums = [_halves(ruler, kept, sign, odd) for sign in (1, -1) for odd in (0, 1)]
    if any(wanted is None for wanted in sums):
        return {"result_bits": kept, "rounding": None}
    d = ruler.results([wanted for wanted in sums if wanted is not None]).astype(np.float64)
    unit = 2.0 ** (_binade(ruler, kept) - kept)
    even = 2.0 ** _binade(ruler, kept)
    away = tuple(int((abs(x) - even) / unit) - odd for x, odd in zip(d, (0, 1, 0, 1), strict=True))
    return {"result_bits": kept, "rounding": _ROUNDINGS.get(away, f"unknown {away}")}


def _sums_of_products(ruler: Ruler, kept: int) -> bool:
    """Whether a sum can be put together of products alone, so that it reaches a binade above its largest term."""
    return ruler.takes.k >= 3 and reach(ruler) >= kept + 1


def _binade(ruler: Ruler, kept: int) -> int:
    """The exponent of the result whose rounding is looked at."""
    if _sums_of_products(ruler, kept):
        return max(ruler.lowest + kept + 1, 0) + 1
    return ruler.lowest + kept + 1


def _halves(ruler: Ruler, kept: int, sign: int, odd: int) -> Sum | None:
    """sign * 2^e * (1 + odd * 2^-kept + 2^-(kept + 1)).

    Where F is no more than the kept bits, no single term has half of the last bit; two that carry have. Products of
    few bits reach only half of the last bit of c.
    """
    e = _binade(ruler, kept)
    if _sums_of_products(ruler, kept):
        terms = [(sign, e - 1), *[(sign, e - kept)] * odd, (sign, e - kept - 1)]
        return Sum(dict(enumerate(terms)), sign * 2.0 ** (e - 1))
    half = e - kept - 1
    if not ruler.can_make(half) or e > ruler.largest:
        return None
    return Sum({0: (sign, half)}, sign * 2.0**e * (1 + odd * 2.0**-kept))


def overflow(ruler: Ruler) -> Measurements:
    """The largest number of as many bits as a result has, and a product of its last bit."""
    last = ruler.largest - _result_bits(ruler)
    if ruler.takes.accumulator == "float64" or not ruler.can_make(last):
        return {"overflow": None}
    largest = 2.0**ruler.largest * (2 - 2.0 ** (last - ruler.largest))
    d = float(ruler.results([Sum({0: (1, last)}, largest)])[0])
    return {"overflow": "infinity" if np.isinf(d) else "NaN" if np.isnan(d) else "largest number"}


PROCEDURES: tuple[Callable[[Ruler], Measurements], ...] = (
    cutting,
    order,
    cutting_of_c,
    results,
    overflow,
    zero_exponent,
    subnormals,
    signs_of_zero,
    specials,
)
