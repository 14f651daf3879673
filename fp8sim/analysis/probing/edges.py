"""An adder's properties at the edges of its numbers: zeros, subnormal numbers, infinities and NaN.

As in `measuring`, None stands for what the operands cannot show.
"""

from __future__ import annotations

import numpy as np

from fp8sim import formats
from fp8sim.analysis.probing.cutting import Measurements, cutting, largest_and_its_negative
from fp8sim.analysis.probing.instruments import dots
from fp8sim.analysis.probing.operands import Array, encoded, mantissa_bits, width
from fp8sim.analysis.probing.terms import Ruler, Sum, exponents
from fp8sim.formats import Nan


def zero_exponent(ruler: Ruler) -> Measurements:
    """The smallest 2^u that a zero beside it does not cut is F binades below the zero's exponent."""
    fraction_bits = cutting(ruler)["fraction_bits"]
    if not isinstance(fraction_bits, int):
        return {"zero_exponent": None}
    exponents_of_last, a, b = sums_beside_zero(ruler)
    kept = dots(ruler.instrument, a, b) != 0
    places = [u for u, found in zip(exponents_of_last, kept, strict=True) if found]
    cut = [u for u, found in zip(exponents_of_last, kept, strict=True) if not found]
    exact = bool(places and cut) and max(cut) == min(places) - 1
    return {"zero_exponent": min(places) + fraction_bits if exact else None}


def sums_beside_zero(ruler: Ruler) -> tuple[list[int], Array, Array]:
    """Sums that reach the smallest number only with their last term, 2^u, all other terms being zero.

    Toward zero that is (2^n - 1) * 2^u + 2^u, the smallest number; to nearest half of that, a tie to 0, and 2^u.

    Returns:
        u of each sum, as far as products reach; a and b, [R, K] codes.
    """
    takes = ruler.takes
    threshold = ruler.smallest_normal - ruler.fraction_bits
    if takes.accumulator == "float64":
        candidates = []
    elif takes.accumulator == "float16":
        candidates = [(u, (1, threshold - 1)) for u in range(threshold - 28, threshold - 2)]
    else:
        candidates = [(u, (2 ** (threshold - u) - 1, u)) for u in range(threshold - 16, threshold)]
    rows = [(u, _factors(ruler, first), _factors(ruler, (1, u))) for u, first in candidates]
    found = [(u, first, last) for u, first, last in rows if first is not None and last is not None]
    numbers = np.zeros((2, len(found), takes.k))
    for row, (_, first, last) in enumerate(found):
        numbers[:, row, 0], numbers[:, row, 1] = first, last
    return [u for u, _, _ in found], encoded(numbers[0], takes.a_format), encoded(numbers[1], takes.b_format)


Product = tuple[int, int]
"""significand * 2^exponent."""


def _factors(ruler: Ruler, product: Product) -> tuple[float, float] | None:
    """Numbers of a and b with that product, as far as their significands and exponents reach."""
    significand, exponent = product
    half = exponent // 2
    for u in range(int(significand**0.5), 0, -1):
        fits = significand % u == 0 and _holds(ruler.takes.a_format, u, half)
        if fits and _holds(ruler.takes.b_format, significand // u, exponent - half):
            return u * 2.0**half, significand // u * 2.0 ** (exponent - half)
    return None


def _holds(fmt: str, significand: int, exponent: int) -> bool:
    fraction_bits, (lowest, highest) = _operand_bits(fmt), exponents(fmt)
    fits = significand < 2 ** (fraction_bits + 1) and exponent >= lowest - fraction_bits
    return fits and exponent + significand.bit_length() <= highest


def _operand_bits(fmt: str) -> int:
    """Fraction bits that count; a tf32 register has more."""
    return 52 if fmt == "float64" else formats.parse(fmt).mantissa_bits


def subnormals(ruler: Ruler) -> Measurements:
    """The largest subnormal power of two of a and of b, made large by the other factor; of c; and as a product."""
    below = ruler.smallest_normal - 1
    found: Measurements = {f"subnormal_{name}": _of_operand(ruler, name) for name in "ab"}
    found |= {"subnormal_c": None, "subnormal_result": None}
    if ruler.takes.accumulator != "float64":
        found["subnormal_c"] = _kept_or_flushed(float(ruler.results([Sum({}, 2.0**below)])[0]), below)
        if ruler.can_make(below):
            d = float(ruler.results([Sum({0: (1, below)})])[0])
            found["subnormal_result"] = _kept_or_flushed(d, below)
    return found


_ENOUGH = 40
"""The exponent of a factor that lifts a subnormal number well above the smallest results."""


def _of_operand(ruler: Ruler, name: str) -> str | None:
    own, other = (ruler.takes.a_format, ruler.takes.b_format)[:: 1 if name == "a" else -1]
    if "float64" in own or not _operand_bits(own):
        return None
    small, large = exponents(own)[0] - 1, min(exponents(other)[1], _ENOUGH)
    if small + large < ruler.smallest_normal:
        return None
    left, right = (small, large) if name == "a" else (large, small)
    return _kept_or_flushed(_single(ruler, left, right), small + large)


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
        found["zero_of_zeros"] = _zero(
            dots(ruler.instrument, a, b, np.array([minus_zero], ruler.takes.accumulator_bits))
        )
    if ruler.takes.k >= 2:
        found["zero_of_cancellation"] = _zero(ruler.bits([Sum(largest_and_its_negative(ruler, 0, 1))]))
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
