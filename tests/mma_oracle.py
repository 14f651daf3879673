"""The definition of tensor-core arithmetic in plain Python integers, one output at a time and as slow as it likes.

Written from the published descriptions (arXiv 2511.10909, arXiv 2512.07004) and from what hardware returned, not from
csrc/core/mma.hpp. Of fp8sim it uses an instruction's parameters and nothing else. A finite number is
(-1)^sign * sig * 2^(e - M), with the exponent e that its code stores.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fp8sim.mma import Adder, MmaModel

# name: (exponent bits, fraction bits, bias, specials)
FORMATS = {
    "float64": (11, 52, 1023, "ieee"),
    "float32": (8, 23, 127, "ieee"),
    "tf32": (8, 10, 127, "ieee"),
    "float16": (5, 10, 15, "ieee"),
    "bfloat16": (8, 7, 127, "ieee"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fn": (4, 3, 7, "all ones"),
    "float8_e4m3fnuz": (4, 3, 8, "negative zero"),
    "float8_e5m2fnuz": (5, 2, 16, "negative zero"),
    "float6_e3m2fn": (3, 2, 3, "none"),
    "float6_e2m3fn": (2, 3, 1, "none"),
    "float4_e2m1fn": (2, 1, 1, "none"),
}


@dataclass(frozen=True)
class Number:
    negative: bool
    sig: int
    e: int
    fraction_bits: int
    special: str = ""  # "inf", "nan"

    @property
    def value(self) -> Fraction:
        magnitude = self.sig * Fraction(2) ** (self.e - self.fraction_bits)
        return -magnitude if self.negative else magnitude


def decode(code: int, name: str) -> Number:
    exponent_bits, m, bias, specials = FORMATS[name]
    if name == "tf32":
        code >>= 13
    negative = bool(code >> (exponent_bits + m) & 1)
    field, fraction = code >> m & (2**exponent_bits - 1), code & (2**m - 1)
    special = ""
    if specials == "ieee" and field == 2**exponent_bits - 1:
        special = "nan" if fraction else "inf"
    if specials == "all ones" and field == 2**exponent_bits - 1 and fraction == 2**m - 1:
        special = "nan"
    if specials == "negative zero" and negative and field == fraction == 0:
        special = "nan"
    if field == 0:
        return Number(negative, fraction, 1 - bias, m, special)
    return Number(negative, 2**m + fraction, field - bias, m, special)


def decode_scale(code: int, name: str) -> Number:
    if name in ("e8m0", "float8_e8m0fnu"):
        return Number(False, 1, code - 127, 0, "nan" if code == 255 else "")
    return decode(code & 0x7F, "float8_e4m3fn")


# Results


def floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if x >= Fraction(2) ** guess else guess - 1


def round_to(x: Fraction, name: str, kept: int, nearest: bool, *, minus_zero: bool = False) -> int:
    """The code of x with `kept` fraction bits; above the largest number it is infinity, whatever the rounding.

    A zero that x is rounded to has the sign of x with `minus_zero`, else it is +0.
    """
    exponent_bits, m, bias, _ = FORMATS[name]
    sign = int(x < 0) << (exponent_bits + m)
    magnitude = abs(x)
    if magnitude == 0:
        return 0
    e = max(floor_log2(magnitude), 1 - bias)
    unit = Fraction(2) ** (e - kept)
    units = round(magnitude / unit) if nearest else magnitude // unit
    if units == 0:
        return sign if minus_zero else 0
    if units == 2 ** (kept + 1):
        units, e = 2**kept, e + 1
    if e > bias:
        return sign | (2**exponent_bits - 1) << m
    normal = units >= 2**kept
    field = e + bias if normal else 0
    return sign | field << m | (units - normal * 2**kept) << (m - kept)


def infinity(name: str, negative: bool) -> int:
    exponent_bits, m, _, _ = FORMATS[name]
    return int(negative) << (exponent_bits + m) | (2**exponent_bits - 1) << m


def nan(model: MmaModel) -> int:
    exponent_bits, m, _, _ = FORMATS[model.accumulator]
    if model.adder in (Adder.TRUNCATED, Adder.EMULATED, Adder.BLOCK_SCALED, Adder.GROUPED):
        return 2 ** (exponent_bits + m) - 1
    return infinity(model.accumulator, False) | 1 << (m - 1)


def special_result(model: MmaModel, pairs: list[tuple[Number, Number]], c: Number) -> int | None:
    """The code of a sum with an infinity or a NaN among its terms, else None."""
    signs = {c.negative} if c.special == "inf" else set()
    if c.special == "nan" or any("nan" in (a.special, b.special) for a, b in pairs):
        return nan(model)
    for a, b in pairs:
        if "inf" in (a.special, b.special):
            if any(not x.special and x.sig == 0 for x in (a, b)):
                return nan(model)
            signs.add(a.negative != b.negative)
    if len(signs) == 2:
        return nan(model)
    return infinity(model.accumulator, signs.pop()) if signs else None


# Adders


def cut(magnitude: Fraction, unit: Fraction) -> int:
    return int(magnitude // unit)


def signed_cut(value: Fraction, unit: Fraction) -> int:
    return -cut(-value, unit) if value < 0 else cut(value, unit)


def truncated(
    model: MmaModel,
    pairs: list[tuple[Number, Number]],
    c_code: int,
    scale: int = 0,
    *,
    with_c: bool = True,
) -> int:
    """T-FDPA. `with_c=False` leaves c out of the alignment and adds it afterwards, as no unit does (a mutant)."""
    assert model.fraction_bits is not None
    assert model.zero_exponent is not None
    c = decode(c_code, model.accumulator)
    special = special_result(model, pairs, c)
    if special is not None:
        return special
    terms = [(a.value * b.value * Fraction(2) ** scale, a.e + b.e + scale) for a, b in pairs]
    if with_c:
        terms.append((c.value, c.e))
    terms = [(value, e if value else model.zero_exponent) for value, e in terms]
    e_max = max(e for _, e in terms)
    unit = Fraction(2) ** (e_max - model.fraction_bits)
    total = sum(signed_cut(value, unit) for value, _ in terms) * unit
    return round_to(total if with_c else total + c.value, model.accumulator, *kept(model))


def kept(model: MmaModel) -> tuple[int, bool]:
    return model.output.kept_bits, model.output.to_nearest


def add_nearest(model: MmaModel, x_code: int, y_code: int) -> int:
    """An ordinary addition in the accumulator's format."""
    x, y = decode(x_code, model.accumulator), decode(y_code, model.accumulator)
    one = Number(False, 1, 0, 0)
    special = special_result(model, [(x, one)], y)
    if special is not None:
        return special
    if x.sig == y.sig == 0 and x.negative and y.negative:
        return x_code
    m = FORMATS[model.accumulator][1]
    return round_to(x.value + y.value, model.accumulator, m, True, minus_zero=True)


def emulated(model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int) -> int:
    t = 0
    for half in ((0, 1), (2, 3)):
        t = truncated(model, [pair for k, pair in enumerate(pairs) if k % 4 in half], t)
    return add_nearest(model, c_code, t)


def grouped(
    model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int, scales: list[tuple[Number, Number]]
) -> int:
    assert model.fraction_bits is not None
    assert model.zero_exponent is not None
    assert model.scale_block is not None
    c = decode(c_code, model.accumulator)
    if c.special == "nan" or any("nan" in (a.special, b.special) for a, b in scales):
        return nan(model)
    if c.special:
        return infinity(model.accumulator, c.negative)
    terms = [(c.value, c.e if c.sig else model.zero_exponent)]
    for start in range(0, len(pairs), 16):
        products = [a.value * b.value for a, b in pairs[start : start + 16]]
        a, b = scales[start // model.scale_block]
        ignored = not any(products) or a.sig * b.sig == 0
        terms.append((sum(products) * a.value * b.value, model.zero_exponent if ignored else a.e + b.e))
    e_max = max(e for _, e in terms)
    unit = Fraction(2) ** (e_max - model.fraction_bits)
    total = sum(signed_cut(value, unit) for value, _ in terms) * unit
    return round_to(total, model.accumulator, *kept(model))


def exact(model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int) -> int:
    c = decode(c_code, model.accumulator)
    special = special_result(model, pairs, c)
    if special is not None:
        return special
    signs = {a.negative != b.negative for a, b in pairs} | {c.negative}
    if c.sig == 0 and all(a.sig * b.sig == 0 for a, b in pairs) and signs == {True}:
        return 1 << sum(FORMATS[model.accumulator][:2])
    total = sum((a.value * b.value for a, b in pairs), c.value)
    return round_to(total, model.accumulator, FORMATS[model.accumulator][1], True, minus_zero=True)


def flush(code: int, *, keep_sign: bool) -> int:
    """A subnormal binary32 number as a zero."""
    return (code & 2**31 if keep_sign else 0) if code >> 23 & 255 == 0 else code


def flushed_product(model: MmaModel, a: Number, b: Number) -> int:
    a, b = (
        Number(False, 0, x.e, x.fraction_bits) if not x.special and x.sig >> x.fraction_bits == 0 else x for x in (a, b)
    )
    zero = Number(a.negative != b.negative, 0, 0, 0)
    special = special_result(model, [(a, b)], zero)
    if special is not None:
        return special
    if a.sig * b.sig == 0:
        return 2**31 if a.negative != b.negative else 0
    return flush(round_to(a.value * b.value, "float32", 23, True, minus_zero=True), keep_sign=True)


def flushing(model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int) -> int:
    parts = [flushed_product(model, a, b) for a, b in pairs]
    while len(parts) > 1:
        sums = (add_nearest(model, x, y) for x, y in zip(parts[::2], parts[1::2], strict=True))
        parts = [flush(x, keep_sign=True) for x in sums]
    return flush(add_nearest(model, c_code, parts[0]), keep_sign=True)


NOWHERE = -999


def truncated_products(model: MmaModel, pairs: list[tuple[Number, Number]]) -> tuple[Fraction, int]:
    assert model.fraction_bits is not None
    terms = [(a.value * b.value, a.e + b.e) for a, b in pairs]
    e_max = max(e if value else NOWHERE for value, e in terms)
    unit = Fraction(2) ** (e_max - model.fraction_bits)
    return sum(signed_cut(value, unit) for value, _ in terms) * unit, e_max


def floored(value: Fraction, exponent: int) -> Fraction:
    unit = Fraction(2) ** exponent
    return value // unit * unit


def joined(model: MmaModel, total: Fraction, e_dot: int, c: Number, *, drops: bool) -> int:
    """What CDNA3 does with the sum of the products and c."""
    e_max = max(e_dot, c.e)
    total, c_value = floored(total, e_max - 32), floored(c.value, e_max - 24)
    if drops and c.e < e_max - 25:
        c_value = Fraction(0)
    total += c_value
    if total == 0:
        return 0
    total = floored(total, max(floor_log2(abs(total)), -126) - 31)
    return round_to(total, "float32", 23, True, minus_zero=True)


def rounded(model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int) -> int:
    c = decode(c_code, model.accumulator)
    infinite = []
    for a, b in pairs:
        wide = a.sig * b.sig >= 2 ** (a.fraction_bits + b.fraction_bits + 1)
        too_large = not a.special and not b.special and a.sig * b.sig and wide + a.e + b.e >= 128
        inf = Number(a.negative, 1, 0, 0, "inf")
        infinite.append((inf, Number(b.negative, 1, 0, 0)) if too_large else (a, b))
    special = special_result(model, infinite, c)
    if special is not None:
        return special
    total, e_dot = truncated_products(model, pairs)
    return joined(model, total, e_dot, c, drops=False)


def even_odd(model: MmaModel, pairs: list[tuple[Number, Number]], c_code: int) -> int:
    c = decode(c_code, model.accumulator)
    special = special_result(model, pairs, c)
    if special is not None:
        return special
    halves = [truncated_products(model, pairs[start::2]) for start in (0, 1)]
    e_dot = max(e for _, e in halves)
    total = sum((floored(part, e_dot - 24) for part, _ in halves), Fraction(0))
    return joined(model, total, e_dot, c, drops=True)


# Instructions and chains


def step(
    model: MmaModel, pairs: list[tuple[Number, Number]], c: int, scales: list[tuple[Number, Number]], **mutation: Any
) -> int:
    match model.adder:
        case Adder.TRUNCATED:
            return truncated(model, pairs, c, **mutation)
        case Adder.EMULATED:
            return emulated(model, pairs, c)
        case Adder.BLOCK_SCALED:
            a, b = scales[0]
            return nan(model) if "nan" in (a.special, b.special) else truncated(model, pairs, c, a.e + b.e, **mutation)
        case Adder.GROUPED:
            return grouped(model, pairs, c, scales)
        case Adder.SEQUENTIAL | Adder.EXACT:
            return exact(model, pairs, c)
        case Adder.FLUSHING:
            return flushing(model, pairs, c)
        case Adder.ROUNDED:
            return rounded(model, pairs, c)
        case Adder.EVEN_ODD:
            return even_odd(model, pairs, c)


def chain(
    model: MmaModel,
    a: list[int],
    b: list[int],
    c: int = 0,
    a_scales: list[int] | None = None,
    b_scales: list[int] | None = None,
    *,
    backwards: bool = False,
    **mutation: Any,
) -> int:
    """d of one element: codes of a row of a and of b, the accumulator's bits; scale factors' codes, one per block.

    `backwards` takes the steps of each instruction from the last to the first, as no unit does (a mutant).
    """
    length = -(-len(a) // model.k) * model.k
    padding = [0] * (length - len(a))
    pairs = [
        (decode(x, model.a_format), decode(y, model.b_format)) for x, y in zip(a + padding, b + padding, strict=True)
    ]
    scales: list[tuple[Number, Number]] = []
    if model.scale_format and a_scales and b_scales:
        scales = [
            (decode_scale(x, model.scale_format), decode_scale(y, model.scale_format))
            for x, y in zip(a_scales, b_scales, strict=True)
        ]
    for start in range(0, length, model.k):
        if model.adder is Adder.FLUSHING:
            c = flush(c, keep_sign=False)
        steps = range(start, start + model.k, model.terms)
        for k in reversed(steps) if backwards else steps:
            block = model.scale_block or 1
            here = scales[k // block : -(-(k + model.terms) // block)] if scales else []
            here += scales[-1:] * (-(-model.terms // block) - len(here))
            c = step(model, pairs[k : k + model.terms], c, here, **mutation)
    return c
