"""An adder's properties, each read off its results for a few chosen sums, without a model of it.

None stands for what its operands cannot show: a product of 4-bit numbers is never small enough to be cut. The letters
are those of `fp8sim.mma.models`; M is the largest product that may be added up, u a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fp8sim import formats
from fp8sim.analysis.probing.instruments import Instrument, dots
from fp8sim.analysis.probing.operands import Array, encoded, mantissa_bits, width
from fp8sim.analysis.probing.terms import Ruler, Sum, exponents
from fp8sim.formats import Nan

Value = int | str | None
Measurements = dict[str, Value]

_DEEPEST = 40
"""Bits below the largest term at which everything known is cut."""


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
    "result_bits": "largest n for which c = 1 + 2^-n returns when nothing is added",
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


# Cutting


def _small(ruler: Ruler) -> int:
    """How many binades below M products and results reach, as far as it matters."""
    smallest_result = ruler.smallest_normal - ruler.fraction_bits
    return min(ruler.top - max(ruler.lowest, smallest_result), _DEEPEST)


def _pair(ruler: Ruler, first: int, second: int) -> dict[int, tuple[int, int]]:
    return {first: (1, ruler.top), second: (-1, ruler.top)}


def cutting(ruler: Ruler) -> Measurements:
    """F and L: at each place in turn the smallest product beside M - M, then ever larger ones where that is cut."""
    k, depth = ruler.takes.k, _small(ruler)
    unknown: Measurements = {"fraction_bits": None, "products_per_step": None, "step_places": None}
    if depth < 1 or k < 3:
        return unknown
    pair = _pair(ruler, 0, 1)
    sums = [Sum({**pair, place: (1, ruler.top - depth)}) for place in range(2, k)]
    cut = [place for place, d in zip(range(2, k), ruler.results(sums), strict=True) if d == 0]
    if not cut:
        return unknown
    sums = [Sum({**pair, cut[0]: (1, ruler.top - n)}) for n in range(1, depth + 1)]
    return {
        "fraction_bits": _last(ruler.results(sums) != 0),
        "products_per_step": 2 + len(cut),
        "step_places": _ranges([0, 1, *cut]),
    }


def _last(kept: Array) -> int:
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
        k, depth = instructions * ruler.takes.k, _small(ruler)
        if depth < 1 or k < 3:
            found[name] = None
            continue
        u = (1, ruler.top - depth)
        sums = [Sum({**_pair(ruler, 0, 1), k - 1: u}), Sum({**_pair(ruler, k - 2, k - 1), 0: u})]
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
    kept = ruler.results([Sum(_pair(ruler, 0, 1), 2.0 ** (ruler.top - int(i))) for i in n]) != 0
    return {"c_fraction_bits": None if kept.all() else _last(kept)}


# Results


def _result_bits(ruler: Ruler) -> int:
    n = range(1, ruler.fraction_bits + 1)
    return _last(ruler.results([Sum({}, 1 + 2.0**-i) for i in n]) != 1)


_ROUNDINGS = {
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
    return ruler.takes.k >= 3 and _small(ruler) >= kept + 1


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


# Zeros and subnormal numbers


def zero_exponent(ruler: Ruler) -> Measurements:
    """A sum that reaches the next number only with its last term, 2^u, all other terms being zero.

    The smallest u that is kept is F binades below the exponent of a zero. Toward zero the sum is
    (2^n - 1) * 2^u + 2^u, the smallest number; to nearest it is half of that, a tie to 0, and 2^u.
    """
    fraction_bits = cutting(ruler)["fraction_bits"]
    threshold = ruler.smallest_normal - ruler.fraction_bits
    if not isinstance(fraction_bits, int) or ruler.takes.accumulator == "float64":
        return {"zero_exponent": None}
    if ruler.takes.accumulator == "float16":
        candidates = [(u, (1, threshold - 1)) for u in range(threshold - 28, threshold - 2)]
    else:
        candidates = [(u, (2 ** (threshold - u) - 1, u)) for u in range(threshold - 16, threshold)]
    makeable = [(u, first) for u, first in candidates if _can_multiply(ruler, first) and _can_multiply(ruler, (1, u))]
    kept = _any_left(ruler, [(first, (1, u)) for u, first in makeable])
    places = [u for (u, _), found in zip(makeable, kept, strict=True) if found]
    cut = [u for (u, _), found in zip(makeable, kept, strict=True) if not found]
    exact = bool(places and cut) and max(cut) == min(places) - 1
    return {"zero_exponent": min(places) + fraction_bits if exact else None}


Product = tuple[int, int]
"""significand * 2^exponent."""


def _factors(ruler: Ruler, product: Product) -> tuple[float, float] | None:
    """Numbers of a and b with that product, as far as their significands and exponents reach."""
    significand, exponent = product
    half = exponent // 2
    for u in range(int(significand**0.5), 0, -1):
        if significand % u == 0 and _holds(ruler.takes.a_format, u, half):
            if _holds(ruler.takes.b_format, significand // u, exponent - half):
                return u * 2.0**half, significand // u * 2.0 ** (exponent - half)
    return None


def _holds(fmt: str, significand: int, exponent: int) -> bool:
    fraction_bits, (lowest, highest) = _operand_bits(fmt), exponents(fmt)
    fits = significand < 2 ** (fraction_bits + 1) and exponent >= lowest - fraction_bits
    return fits and exponent + significand.bit_length() <= highest


def _operand_bits(fmt: str) -> int:
    """Fraction bits that count; a tf32 register has more."""
    return 52 if fmt == "float64" else formats.parse(fmt).mantissa_bits


def _can_multiply(ruler: Ruler, product: Product) -> bool:
    return _factors(ruler, product) is not None


def _any_left(ruler: Ruler, rows: list[tuple[Product, ...]]) -> Array:
    """Whether the sum of these products is other than 0."""
    takes = ruler.takes
    numbers = np.zeros((2, len(rows), takes.k))
    for row, products in enumerate(rows):
        for place, product in enumerate(products):
            factors = _factors(ruler, product)
            assert factors is not None
            numbers[:, row, place] = factors
    found: Array = dots(ruler.instrument, encoded(numbers[0], takes.a_format), encoded(numbers[1], takes.b_format)) != 0
    return found


def subnormals(ruler: Ruler) -> Measurements:
    """The largest subnormal power of two of a, b and c, made large by the other factor; and a product below normal."""
    takes, found = ruler.takes, dict.fromkeys((f"subnormal_{what}" for what in ("a", "b", "c", "result")))
    a, b = (exponents(fmt)[0] - 1 if _operand_bits(fmt) else None for fmt in (takes.a_format, takes.b_format))
    other_a, other_b = (min(exponents(fmt)[1], 40) for fmt in (takes.b_format, takes.a_format))
    operands: dict[str, tuple[int, int]] = {}
    if a is not None and "float64" not in takes.a_format:
        operands["subnormal_a"] = (a, other_a)
    if b is not None and "float64" not in takes.b_format:
        operands["subnormal_b"] = (other_b, b)
    results: Measurements = dict(found)
    for name, (left, right) in operands.items():
        if left + right >= ruler.smallest_normal:
            results[name] = _kept_or_flushed(_single(ruler, left, right), left + right)
    below = ruler.smallest_normal - 1
    if takes.accumulator != "float64":
        results["subnormal_c"] = _kept_or_flushed(float(ruler.results([Sum({}, 2.0**below)])[0]), below)
        if ruler.can_make(below):
            results["subnormal_result"] = _kept_or_flushed(float(ruler.results([Sum({0: (1, below)})])[0]), below)
    return results


def _single(ruler: Ruler, left: int, right: int) -> float:
    takes = ruler.takes
    a, b = (encoded(np.array([2.0**e]), fmt) for e, fmt in ((left, takes.a_format), (right, takes.b_format)))
    return float(ruler.of_codes(a.tolist(), b.tolist(), [0]).view(takes.accumulator)[0])


def _kept_or_flushed(d: float, exponent: int) -> str:
    return "kept" if d == 2.0**exponent else "flushed" if d == 0 else f"{d!r} instead of 2^{exponent}"


def signs_of_zero(ruler: Ruler) -> Measurements:
    """Where every term is -0, where terms cancel, and where a negative sum is too small for a number."""
    minus_zero = _sign(ruler.takes.accumulator)
    found: Measurements = {"zero_of_zeros": None, "zero_of_cancellation": None, "zero_of_underflow": None}
    if _has_minus_zero(ruler.takes.a_format):
        k = ruler.takes.k
        a, b = encoded(np.full((1, k), -0.0), ruler.takes.a_format), encoded(np.ones((1, k)), ruler.takes.b_format)
        found["zero_of_zeros"] = _zero(dots(ruler.instrument, a, b, np.array([minus_zero], ruler.takes.accumulator_bits)))
    if ruler.takes.k >= 2:
        found["zero_of_cancellation"] = _zero(ruler.bits([Sum(_pair(ruler, 0, 1))]))
    below = ruler.smallest_normal - ruler.fraction_bits - 2
    if ruler.takes.accumulator != "float64" and ruler.can_make(below):
        found["zero_of_underflow"] = _zero(ruler.bits([Sum({0: (-1, below)})]))
    return found


def _zero(d: Array) -> str:
    sign = _sign(f"float{8 * d.itemsize}")
    return {0: "+0", sign: "-0"}.get(int(d[0]), f"{int(d[0]):#x}")


def _sign(fmt: str) -> int:
    return 1 << (width(fmt) - 1)


def _has_minus_zero(fmt: str) -> bool:
    return fmt == "float64" or formats.parse(fmt).nan is not Nan.NEGATIVE_ZERO


# Infinities and NaN


def _infinity(fmt: str) -> int | None:
    if fmt != "float64" and not formats.parse(fmt).infinity:
        return None
    fraction = mantissa_bits(fmt)
    return ((1 << (width(fmt) - 1 - fraction)) - 1) << fraction


def _nan(fmt: str) -> int | None:
    """A code of NaN; a quiet one where there are several."""
    infinity = _infinity(fmt)
    if infinity is not None:
        return infinity | 1 << (mantissa_bits(fmt) - 1)
    nan = formats.parse(fmt).nan
    return {Nan.ALL_ONES: _sign(fmt) - 1, Nan.NEGATIVE_ZERO: _sign(fmt)}.get(nan)


def specials(ruler: Ruler) -> Measurements:
    """One special operand beside 1, 0 or an infinity; d in hexadecimal."""
    takes = ruler.takes
    one_a, one_b = (int(encoded(np.ones(1), fmt)[0]) for fmt in (takes.a_format, takes.b_format))
    infinities = [_infinity(fmt) for fmt in (takes.a_format, takes.b_format, takes.accumulator)]
    nans = [_nan(fmt) for fmt in (takes.a_format, takes.b_format, takes.accumulator)]
    plain = (one_a, one_b, 0)

    def with_codes(changes: list[tuple[int, int]]) -> tuple[int, ...]:
        row = list(plain)
        for at, code in changes:
            row[at] = code
        return tuple(row)

    def results(rows: list[tuple[int, ...]]) -> str | None:
        return " ".join(f"{int(d):x}" for d in ruler.of_codes(*zip(*rows, strict=True))) if rows else None

    signs = [_sign(fmt) for fmt in (takes.a_format, takes.b_format, takes.accumulator)]
    both = [(at, code | sign) for at, code in enumerate(infinities) if code is not None for sign in (0, signs[at])]
    zero = {0: 1, 1: 0}
    of_operands = [(at, code) for at, code in enumerate(infinities[:2]) if code is not None]
    minus_c = infinities[2] | signs[2] if infinities[2] is not None else 0
    return {
        "nan": results([with_codes([(at, code)]) for at, code in enumerate(nans) if code is not None]),
        "infinity": results([with_codes([change]) for change in both]),
        "infinity_times_zero": results([with_codes([(at, code), (zero[at], 0)]) for at, code in of_operands]),
        "opposite_infinities": results([with_codes([(at, code), (2, minus_c)]) for at, code in of_operands]),
    }


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
