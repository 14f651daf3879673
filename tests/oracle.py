"""The definition of conversion and of random bits, in exact rationals and as slow as it likes.

`encode` and `decode` follow the text of P3109 v4.0 and IEEE 754-2019 with fractions; of fp8sim they use nothing but
`Format.value` (which number is a code?) and the format's own attributes. `encode_array` is the same for arrays, by
sorted tables of numbers in binary64; the tests hold it against `encode` before anything else relies on it.
"""

import bisect
import functools
import math
import struct
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fp8sim.formats import FORMATS, Codebook, Format, Nan
from fp8sim.rounding import Overflow, Rounding

Floats = NDArray[np.float64]
Codes = NDArray[np.uint32]

# One number, in rationals


def encode(x: float, fmt: Format, rounding: Rounding, overflow: Overflow, random: int = 0, bits: int = 32) -> int:
    """The code of `fmt` that x becomes; `random` is the random integer R of `bits` bits."""
    if fmt.twos_complement:
        return encode_fixed(x, fmt, rounding, random, bits)
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x):
        return nan_code(fmt, negative)
    if math.isinf(x):
        return overflow_code(fmt, rounding, overflow, negative, infinite=True)
    rounded = round_magnitude(abs(Fraction(x)), negative, fmt, rounding, random, bits)
    if rounded == 0:
        return fmt.sign_bit if negative and fmt.has_negative_zero else 0
    if negative and not fmt.signed:
        return below_zero_code(fmt, rounding, overflow, infinite=False)
    if rounded > fmt.max:
        return overflow_code(fmt, rounding, overflow, negative, infinite=False)
    return code_of(rounded, fmt) | (fmt.sign_bit if negative else 0)


def encode_fixed(x: float, fmt: Format, rounding: Rounding, random: int = 0, bits: int = 32) -> int:
    """The two's complement of x in units of the smallest number, rounded to an integer and clamped."""
    half = 2 ** (fmt.bits - 1)
    lowest = -half + 1 if fmt.symmetric else -half
    if math.isnan(x) or math.isinf(x):
        return lowest % (2 * half) if x < 0 else half - 1
    exact = abs(Fraction(x)) / fmt.smallest
    below = math.floor(exact)
    nu = exact - below
    away = nu != 0 and rounds_away(nu, below % 2 == 1, x < 0, rounding, random, bits)
    integer = -(below + away) if x < 0 else below + away
    return min(max(integer, lowest), half - 1) % (2 * half)


def encode_to_codebook(x: float | Fraction, levels: list[Fraction], rounding: Rounding) -> int:
    """The closest of `levels`, of two the one that the mode names; NaN is the last."""
    if math.isnan(x) or math.isinf(x):
        return 0 if x < 0 else len(levels) - 1
    distances = [abs(Fraction(x) - level) for level in levels]
    closest = [code for code, distance in enumerate(distances) if distance == min(distances)]
    if len(closest) == 1:
        return closest[0]
    low, high = (abs(levels[code]) for code in closest)
    if rounding is Rounding.TIES_TO_EVEN or low == high:
        return next(code for code in closest if code % 2 == 0)
    return closest[(high > low) == (rounding is Rounding.TIES_TO_AWAY)]


def round_magnitude(
    x: Fraction, negative: bool, fmt: Format, rounding: Rounding, random: int = 0, bits: int = 32
) -> Fraction:
    """x >= 0, rounded to the format's precision as if its exponents had no upper bound."""
    exponent = max(floor_log2(x), fmt.emin) if x else fmt.emin
    spacing = Fraction(2) ** (exponent - fmt.mantissa_bits)
    below = math.floor(x / spacing)
    nu = x / spacing - below
    away = nu != 0 and rounds_away(nu, is_odd(below, exponent, fmt), negative, rounding, random, bits)
    return (below + away) * spacing


def rounds_away(nu: Fraction, odd: bool, negative: bool, rounding: Rounding, random: int, bits: int) -> bool:
    """Whether a magnitude that lies nu, 0 < nu < 1, of the way from one code (`odd` or even) to the next goes there."""
    half, one = Fraction(1, 2), 2**bits
    match rounding:
        case Rounding.TIES_TO_EVEN:
            return nu > half or (nu == half and odd)
        case Rounding.TIES_TO_AWAY:
            return nu >= half
        case Rounding.TIES_TO_ZERO:
            return nu > half
        case Rounding.TOWARD_ZERO:
            return False
        case Rounding.TOWARD_POSITIVE:
            return not negative
        case Rounding.TOWARD_NEGATIVE:
            return negative
        case Rounding.TO_ODD:
            return not odd
        case Rounding.STOCHASTIC:
            return round(nu * one) + random >= one
        case Rounding.STOCHASTIC_A:
            return math.floor(nu * one) + random >= one
        case Rounding.STOCHASTIC_B:
            return math.floor(nu * 2 * one) + 2 * random + 1 >= 2 * one
        case Rounding.STOCHASTIC_EQUAL:
            return 2 * random >= one
    raise AssertionError(rounding)


def is_odd(multiple: int, exponent: int, fmt: Format) -> bool:
    """Whether the code of multiple * 2^(exponent - M) is odd; without fraction bits, whether its exponent field is."""
    if fmt.mantissa_bits > 0:
        return multiple % 2 == 1
    binade = 0 if multiple == 0 else exponent - fmt.emin + 1
    return (binade - (not fmt.zero)) % 2 == 1


def floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if x >= Fraction(2) ** guess else guess - 1


@functools.lru_cache(maxsize=2**16)
def number_of(fmt: Format, code: int) -> Fraction:
    return fmt.value(code)


def code_of(number: Fraction, fmt: Format) -> int:
    """The code of a number of `fmt`, found by bisection: codes go up with their numbers."""
    code = bisect.bisect_left(range(fmt.max_code), number, key=functools.partial(number_of, fmt))
    assert number_of(fmt, code) == number or not fmt.zero, f"{number} is no number of {fmt}"
    return code


# Policies, from the text of `Overflow`.


def nan_code(fmt: Format, negative: bool) -> int:
    if fmt.nan is Nan.NONE:
        return fmt.max_code
    if fmt.nan is Nan.NEGATIVE_ZERO:
        return fmt.sign_bit
    return fmt.top_code | (fmt.sign_bit if negative else 0)


def overflow_code(fmt: Format, rounding: Rounding, overflow: Overflow, negative: bool, infinite: bool) -> int:
    """The code of an infinity, or of a number whose rounding exceeds the largest."""
    if negative and not fmt.signed:
        return below_zero_code(fmt, rounding, overflow, infinite)
    largest = fmt.max_code | (fmt.sign_bit if negative else 0)
    infinity = fmt.max_code + 1 | (fmt.sign_bit if negative else 0)
    inward = {Rounding.TOWARD_ZERO, Rounding.TOWARD_POSITIVE if negative else Rounding.TOWARD_NEGATIVE}
    if fmt.max_code % 2 == 1:
        inward.add(Rounding.TO_ODD)
    match overflow:
        case Overflow.SATURATE:
            return largest
        case Overflow.SAT_PROPAGATE:
            return infinity if infinite and fmt.infinity else largest
        case Overflow.INFINITY:
            if (rounding in inward and not infinite) or fmt.finite_domain:
                return largest
            return infinity if fmt.infinity else nan_code(fmt, negative)
        case Overflow.NAN:
            return nan_code(fmt, negative)


def below_zero_code(fmt: Format, rounding: Rounding, overflow: Overflow, infinite: bool) -> int:
    """The code of a negative number, which does not round to zero, in an unsigned format."""
    upward = rounding in (Rounding.TOWARD_ZERO, Rounding.TOWARD_POSITIVE) and not infinite
    if overflow in (Overflow.SATURATE, Overflow.SAT_PROPAGATE) or (overflow is Overflow.INFINITY and upward):
        return 0
    return nan_code(fmt, negative=True)


def represents(fmt: Format, overflow: Overflow) -> bool:
    """Whether `fmt` has the codes that `overflow` asks for."""
    if overflow in (Overflow.SATURATE, Overflow.SAT_PROPAGATE) or fmt.nan is not Nan.NONE:
        return True
    return overflow is Overflow.INFINITY and fmt.signed and (fmt.infinity or fmt.finite_domain)


# Decode

DTYPES = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
"""The dtypes that numbers come in, and integers as wide."""


def decode(code: int, fmt: Format, dtype: str) -> int:
    """The bits of the number that `code` stands for, rounded to `dtype`, ties to even; NaN is quiet, no payload."""
    negative = fmt.value(code) < 0 if isinstance(fmt, Codebook) else bool(code & fmt.sign_bit)
    magnitude = decode_magnitude(code, fmt, dtype)
    return magnitude | negative << (8 * np.dtype(DTYPES[dtype]).itemsize - 1)


def decode_magnitude(code: int, fmt: Format, dtype: str) -> int:
    if dtype == "float64":
        return decode_magnitude_to_binary64(code, fmt)
    target = FORMATS[dtype]
    infinity = target.max_code + 1
    if fmt.is_nan(code):
        return infinity + 2 ** (target.mantissa_bits - 1)
    if fmt.is_infinite(code):
        return infinity
    rounded = round_magnitude(abs(fmt.value(code)), False, target, Rounding.TIES_TO_EVEN)
    return infinity if rounded > target.max else code_of(rounded, target)


def decode_magnitude_to_binary64(code: int, fmt: Format) -> int:
    number = math.nan if fmt.is_nan(code) else abs(fmt.to_float(code))
    return int.from_bytes(struct.pack("<d", number), "little")


# Arrays of numbers


@functools.cache
def numbers(fmt: Format) -> Floats:
    """Every number that is not negative, by magnitude code; all are numbers of binary64, and so are the midpoints."""
    values = np.array([float(fmt.value(code)) for code in range(fmt.max_code + 1)])
    assert all(Fraction(v) == fmt.value(code) for code, v in enumerate(values[:64]))
    return values


def encode_array(
    x: Floats, fmt: Format, rounding: Rounding, overflow: Overflow, random: Codes | int = 0, bits: int = 32
) -> Codes:
    """`encode` for an array of binary64 numbers (binary32 ones widened)."""
    if fmt.twos_complement:
        return encode_fixed_array(x, fmt, rounding, random, bits)
    negative = np.signbit(x)
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    counting = round_array(magnitude, negative, fmt, rounding, random, bits)
    signs = np.where(negative, np.uint32(fmt.sign_bit), np.uint32(0))
    codes = (np.maximum(counting - (not fmt.zero), 0)).astype(np.uint32) | signs
    too_large = counting - (not fmt.zero) > fmt.max_code
    codes = _both_signs(codes, too_large, negative, lambda n: overflow_code(fmt, rounding, overflow, n, False))
    if not fmt.signed:
        codes[negative] = below_zero_code(fmt, rounding, overflow, infinite=False)
    zero = fmt.sign_bit if fmt.has_negative_zero else 0
    codes = _both_signs(codes, counting == 0, negative, lambda n: zero if n else 0)
    codes = _both_signs(codes, np.isinf(x), negative, lambda n: overflow_code(fmt, rounding, overflow, n, True))
    return _both_signs(codes, np.isnan(x), negative, lambda n: nan_code(fmt, n))


def encode_fixed_array(x: Floats, fmt: Format, rounding: Rounding, random: Codes | int, bits: int) -> Codes:
    half, smallest = 2 ** (fmt.bits - 1), float(fmt.smallest)
    limit = 2 * half * smallest  # above both ends, and small enough for every step to be exact
    exact = np.minimum(np.abs(np.where(np.isnan(x), np.inf, x)), limit) / smallest
    below = np.floor(exact)
    nu, negative = exact - below, np.signbit(x) & ~np.isnan(x)
    inexact = np.minimum(np.abs(x), limit) != below * smallest  # where nu is too small for binary64, too
    away = inexact & ~np.isnan(x) & rounds_away_array(nu, below % 2 == 1, negative, rounding, random, bits)
    integer = np.where(negative, -(below + away), below + away)
    return (np.clip(integer, -half + fmt.symmetric, half - 1).astype(np.int64) % (2 * half)).astype(np.uint32)


def _both_signs(codes: Codes, where: NDArray[np.bool_], negative: NDArray[np.bool_], code) -> Codes:  # type: ignore[no-untyped-def]
    if not where.any():
        return codes
    ends = np.where(negative, np.uint32(code(True)), np.uint32(code(False)))
    return np.where(where, ends, codes)


def round_array(
    x: Floats, negative: NDArray[np.bool_], fmt: Format, rounding: Rounding, random: Codes | int, bits: int
) -> NDArray[np.int64]:
    """Counting codes: 0 for zero, 1 for the smallest number, and so on; above the largest, one more than its code."""
    grid = numbers(fmt) if fmt.zero else np.concatenate([[0.0], numbers(fmt)])
    binade = 2.0 ** math.floor(math.log2(grid[-1]))
    spacing = max(2.0**-fmt.mantissa_bits * binade, grid[1])
    grid = np.append(grid, [grid[-1] + spacing, np.inf])  # rounding may carry beyond the largest number
    below = np.searchsorted(grid, x, side="right") - 1
    inside = below < len(grid) - 2
    low = grid[below]
    gap = np.where(inside, grid[np.minimum(below + 1, len(grid) - 1)] - low, 1.0)
    nu = np.where(inside, (x - low) / gap, 0.0)
    odd = (below - (not fmt.zero)) % 2 == 1
    away = inside & (x > low) & rounds_away_array(nu, odd, negative, rounding, random, bits)
    return (below + away).astype(np.int64)


def rounds_away_array(
    nu: Floats, odd: NDArray[np.bool_], negative: NDArray[np.bool_], rounding: Rounding, random: Codes | int, bits: int
) -> NDArray[np.bool_]:
    one, r = 2.0**bits, np.asarray(random, np.float64)
    choices = {
        Rounding.TIES_TO_EVEN: lambda: (nu > 0.5) | ((nu == 0.5) & odd),
        Rounding.TIES_TO_AWAY: lambda: nu >= 0.5,
        Rounding.TIES_TO_ZERO: lambda: nu > 0.5,
        Rounding.TOWARD_ZERO: lambda: np.zeros(nu.shape, bool),
        Rounding.TOWARD_POSITIVE: lambda: ~negative,
        Rounding.TOWARD_NEGATIVE: lambda: negative,
        Rounding.TO_ODD: lambda: ~odd,
        Rounding.STOCHASTIC: lambda: np.rint(nu * one) + r >= one,
        Rounding.STOCHASTIC_A: lambda: np.floor(nu * one) + r >= one,
        Rounding.STOCHASTIC_B: lambda: np.floor(nu * 2 * one) + 2 * r + 1 >= 2 * one,
        Rounding.STOCHASTIC_EQUAL: lambda: np.broadcast_to(2 * r >= one, nu.shape),
    }
    return choices[rounding]()


# Random bits


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., SC 2011)."""
    low = 2**32 - 1
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def random_integer(seed: int, stream: int, element: int, bits: int = 32) -> int:
    """R of element `element`, offset included, modulo 2^64."""
    low, e = 2**32 - 1, element % 2**64
    j = 16 * (e // 64) + e % 16
    words = philox((j & low, j >> 32, stream & low, stream >> 32), (seed & low, seed >> 32))
    return words[e // 16 % 4] >> (32 - bits)
