"""Conversion between binary32 or binary64 and the codes of any format, in integers: device functions.

The same arithmetic as `csrc/core/rounding.hpp`, and the same names. Numbers are bit patterns, uint32 for binary32 and
uint64 for binary64. Nothing here flushes subnormals or loses the sign of a NaN; nothing rounds but shifts of integers
and, in `_round_by_adder`, one addition as IEEE 754 defines it. A format and its policy are a
`fp8sim.rounding.Conversion`, known when a kernel is compiled, so that every branch below but those on data is taken
then.

    x       = 0 eeeeeeee fff...f              sign, exponent field, F fraction bits
    sig     = 0...01fff...f0                  hidden bit (none in a subnormal), one guard bit: shift >= 1 always
    code    = [binade above emin] << M        M = mantissa_bits; a counting code: 0 is zero, larger is larger
            + sig >> shift                    shift = F + 1 - M, and one more for each binade below emin
"""

import triton
import triton.language as tl

from fp8sim.rounding import NO_CODE, Conversion, Rounding

_NO_CODE = tl.constexpr(NO_CODE)
_TIES_TO_EVEN = tl.constexpr(int(Rounding.TIES_TO_EVEN))
_TIES_TO_AWAY = tl.constexpr(int(Rounding.TIES_TO_AWAY))
_TIES_TO_ZERO = tl.constexpr(int(Rounding.TIES_TO_ZERO))
_TOWARD_ZERO = tl.constexpr(int(Rounding.TOWARD_ZERO))
_TOWARD_POSITIVE = tl.constexpr(int(Rounding.TOWARD_POSITIVE))
_TOWARD_NEGATIVE = tl.constexpr(int(Rounding.TOWARD_NEGATIVE))
_TO_ODD = tl.constexpr(int(Rounding.TO_ODD))
_STOCHASTIC = tl.constexpr(int(Rounding.STOCHASTIC))
_STOCHASTIC_A = tl.constexpr(int(Rounding.STOCHASTIC_A))
_STOCHASTIC_B = tl.constexpr(int(Rounding.STOCHASTIC_B))
_STOCHASTIC_EQUAL = tl.constexpr(int(Rounding.STOCHASTIC_EQUAL))


# Encode


@triton.jit
def encode(bits, random, to: tl.constexpr, RANDOM_BITS: tl.constexpr):
    """The codes of the format `to`, uint32, of the numbers, infinities and NaN whose patterns are `bits`.

    `random` holds random integers of RANDOM_BITS bits, uint32; modes that are not stochastic ignore it.
    """
    MAGNITUDE: tl.constexpr = 0x7FFFFFFF if bits.dtype == tl.uint32 else 0x7FFFFFFFFFFFFFFF
    magnitude = bits & MAGNITUDE
    if bits.dtype == tl.uint32 and _limits_first(to):
        return _encode_limited(bits, magnitude, to)
    negative = bits > MAGNITUDE
    counting = _round_magnitude(magnitude, negative, random, to, RANDOM_BITS)
    code = counting.to(tl.uint32) - to.offset
    positive = _finish(code, counting, magnitude, False, to)
    if _is_symmetric(to):
        signed = negative if to.negative_zero else negative & (positive != 0)
        return tl.where(signed, positive | to.sign_bit, positive)
    else:
        if to.twos_complement:
            below_zero = (code ^ 0xFFFFFFFF) + 1 & (2 * to.sign_bit - 1)
        else:
            below_zero = code | to.sign_bit if to.sign_bit != 0 else tl.full(code.shape, to.below, tl.uint32)
        return tl.where(negative, _finish(below_zero, counting, magnitude, True, to), positive)


@triton.constexpr_function
def _limits_first(to):
    """Whether `_encode_limited` gives the codes: `_round_by_adder` does, the largest number takes the place of all
    above it, and no code but that of NaN depends on more than the magnitude's code and the sign."""
    to = Conversion(*to)
    largest = (to.overflow_positive, to.infinity_positive) == (to.max_code, to.max_code)
    lowest = {to.overflow_negative, to.infinity_negative} == {to.max_code | to.sign_bit}
    one_nan = to.nan_negative in (to.nan_positive, to.nan_positive | to.sign_bit)
    signed = to.sign_bit != 0 and not to.twos_complement
    return _adder_rounds(to) and largest and lowest and one_nan and signed and to.max_code >> to.mantissa_bits > 0


@triton.jit
def _encode_limited(bits, magnitude, to: tl.constexpr):
    """`encode` where numbers above the largest, and infinities, may be taken for the largest before rounding."""
    LEAST: tl.constexpr = (to.emin + 126) << 23
    LARGEST: tl.constexpr = LEAST + (to.max_code << (23 - to.mantissa_bits))
    code = _round_by_adder(tl.minimum(magnitude, LARGEST), to)
    SHIFT: tl.constexpr = _shift_of_sign(to)
    sign = bits >> SHIFT & to.sign_bit
    if to.negative_zero == 0:
        sign = tl.where(code == 0, code, sign)
    is_nan = magnitude > 0x7F800000
    if to.nan_negative == to.nan_positive:
        return tl.where(is_nan, tl.full([], to.nan_positive, tl.uint32), code | sign)
    else:
        return tl.where(is_nan, tl.full([], to.nan_positive, tl.uint32), code) | sign


@triton.constexpr_function
def _shift_of_sign(to):
    """From the sign of a float32 pattern down to that of a code."""
    return 32 - int(Conversion(*to).sign_bit).bit_length()


@triton.constexpr_function
def _is_symmetric(to):
    """Whether the codes of negative numbers are those of positive ones with the sign bit set, -0 apart."""
    to = Conversion(*to)
    pairs = [
        (to.overflow_positive, to.overflow_negative),
        (to.infinity_positive, to.infinity_negative),
        (to.nan_positive, to.nan_negative),
    ]
    has_sign_bit = to.sign_bit != 0 and not to.twos_complement
    return has_sign_bit and all(positive | to.sign_bit == negative for positive, negative in pairs)


@triton.constexpr_function
def _infinity_overflows(to, bias):
    """Whether the counting code of the source's infinity is always above the format's largest."""
    to = Conversion(*to)
    return 2 * bias + 1 - (to.emin + bias) >= (to.max_code + to.offset) >> to.mantissa_bits


@triton.jit
def _finish(code, counting, magnitude, NEGATIVE: tl.constexpr, to: tl.constexpr):
    """`code`, the codes of numbers in range, with the codes of zero, overflow, infinity and NaN put in their places."""
    BIAS: tl.constexpr = 127 if magnitude.dtype == tl.uint32 else 1023
    INFINITE: tl.constexpr = 0x7F800000 if magnitude.dtype == tl.uint32 else 0x7FF0000000000000
    ZERO: tl.constexpr = to.zero_negative if NEGATIVE else to.zero_positive
    OVERFLOW: tl.constexpr = to.overflow_negative if NEGATIVE else to.overflow_positive
    INFINITY: tl.constexpr = to.infinity_negative if NEGATIVE else to.infinity_positive
    NAN: tl.constexpr = to.nan_negative if NEGATIVE else to.nan_positive
    code = tl.where(counting > to.max_code + to.offset, tl.full([], OVERFLOW, tl.uint32), code)
    if NEGATIVE or to.offset != 0 or ZERO != 0:
        code = tl.where(counting == 0, tl.full([], ZERO, tl.uint32), code)
    if INFINITY != OVERFLOW or not _infinity_overflows(to, BIAS):
        code = tl.where(magnitude == INFINITE, tl.full([], INFINITY, tl.uint32), code)
    return tl.where(magnitude > INFINITE, tl.full([], NAN, tl.uint32), code)


@triton.jit
def _round_magnitude(magnitude, negative, random, to: tl.constexpr, RANDOM_BITS: tl.constexpr):
    """The counting codes of magnitudes, rounded as if there were no largest code."""
    F: tl.constexpr = 23 if magnitude.dtype == tl.uint32 else 52
    BIAS: tl.constexpr = 127 if magnitude.dtype == tl.uint32 else 1023
    if F == 23 and _adder_rounds(to):
        return _round_by_adder(magnitude, to)
    LEAST_SHIFT: tl.constexpr = F + 1 - to.mantissa_bits
    EMIN_FIELD: tl.constexpr = to.emin + BIAS
    if EMIN_FIELD == 1:
        # The same smallest normal number as the source, as bfloat16 has: shifted source bits are counting codes.
        sig = magnitude
        below = magnitude & 0
        distance = tl.full([], LEAST_SHIFT, magnitude.dtype)
    else:
        # No finite code lies in a binade above the last: the cap keeps codes in range, and larger than all of them.
        LAST_BINADE: tl.constexpr = (to.max_code + to.offset) >> to.mantissa_bits
        field, sig = _significand(magnitude, EMIN_FIELD < 1)
        binades = tl.minimum(tl.maximum(field - EMIN_FIELD, 0), LAST_BINADE)
        below = binades.to(magnitude.dtype) << to.mantissa_bits
        distance = (tl.maximum(EMIN_FIELD - field, 0) + LEAST_SHIFT).to(magnitude.dtype)
    return _round_shifted(sig << 1, distance, below, negative, random, to, RANDOM_BITS)


@triton.constexpr_function
def _adder_rounds(to):
    """Whether `_round_by_adder` gives the counting codes: ties to even, an even code where the sum's pattern is even,
    and sums far below the largest float32 number."""
    to = Conversion(*to)
    even = to.rounding == Rounding.TIES_TO_EVEN and to.offset == 0 and 1 <= to.mantissa_bits <= 22
    return even and to.emin > -126 and to.emin + (to.max_code >> to.mantissa_bits) + 23 - to.mantissa_bits <= 127


@triton.jit
def _round_by_adder(magnitude, to: tl.constexpr):
    """The counting codes of magnitudes, rounded by float32's own addition: half the instructions of the shifts.

    With e the exponent in whose binade the number lies, at least emin and at most one above the last, the sum of
    |x| and 2^(e + 23 - M) has the spacing of the codes; how far its pattern is above that of the power is |x| in codes.
    """
    LEAST: tl.constexpr = (to.emin + 127) << 23
    MOST: tl.constexpr = LEAST + ((to.max_code >> to.mantissa_bits) << 23)
    SHIFT: tl.constexpr = 23 - to.mantissa_bits
    exponent = tl.minimum(tl.maximum(magnitude & 0x7F800000, LEAST), MOST)
    power = exponent + (SHIFT << 23)
    total = magnitude.to(tl.float32, bitcast=True) + power.to(tl.float32, bitcast=True)
    return total.to(tl.uint32, bitcast=True) - power + (exponent >> SHIFT) - (LEAST >> SHIFT)


@triton.jit
def _significand(magnitude, NORMALISE: tl.constexpr):
    """Exponent field (1 in subnormals) and significand. NORMALISE: subnormals get a hidden bit and a field below 1,
    zero a field below every format's."""
    F: tl.constexpr = 23 if magnitude.dtype == tl.uint32 else 52
    BIAS: tl.constexpr = 127 if magnitude.dtype == tl.uint32 else 1023
    HIDDEN: tl.constexpr = 1 << F
    field = (magnitude >> F).to(tl.int32)
    fraction = magnitude & (HIDDEN - 1)
    sig = tl.where(field == 0, fraction, fraction | HIDDEN)
    if NORMALISE:
        # An integer below 2^F converts exactly, and the conversion puts its leading bit into the exponent field.
        converted = _as_float(fraction)
        normal_sig = tl.where(fraction == 0, fraction, (converted & (HIDDEN - 1)) | HIDDEN)
        sig = tl.where(field == 0, normal_sig, sig)
        normal_field = tl.where(fraction == 0, -(1 << 17), (converted >> F).to(tl.int32) + (1 - BIAS - F))
        field = tl.where(field == 0, normal_field, field)
    else:
        field = tl.maximum(field, 1)
    return field, sig


@triton.jit
def _as_float(integer):
    """The pattern of an integer's floating-point number: exact below 2^(F + 1), and never subnormal."""
    if integer.dtype == tl.uint32:
        return integer.to(tl.float32).to(tl.uint32, bitcast=True)
    else:
        return integer.to(tl.float64).to(tl.uint64, bitcast=True)


@triton.jit
def _round_shifted(sig, distance, below, negative, random, to: tl.constexpr, RANDOM_BITS: tl.constexpr):
    """sig * 2^-distance rounded to an integer, plus `below`, the counting codes of lower binades."""
    # sig is below 2^(F + 2), less than half of 2^(F + 3): a shift by that much shifts everything out.
    shift = tl.minimum(distance, 26 if sig.dtype == tl.uint32 else 55)
    down = (sig >> shift) + below
    unit = (sig & 0) + 1 << shift
    odd = (down ^ to.offset) & 1
    if to.rounding == _TOWARD_ZERO:
        rounded = down
    elif to.rounding == _TO_ODD:
        rounded = tl.where((sig & (unit - 1)) != 0, down + 1 - odd, down)
    elif to.rounding >= _STOCHASTIC:
        rounded = down + _rounds_away(sig & (unit - 1), distance, random, to.rounding, RANDOM_BITS)
    else:
        rounded = ((sig + _addend(unit, odd, negative, to.rounding)) >> shift) + below
    return rounded


@triton.jit
def _addend(unit, odd, negative, ROUNDING: tl.constexpr):
    """What is added before the low bits are cut off, so that the sum is the rounded number."""
    half = unit >> 1
    if ROUNDING == _TIES_TO_EVEN:
        addend = half - 1 + odd
    elif ROUNDING == _TIES_TO_AWAY:
        addend = half
    elif ROUNDING == _TIES_TO_ZERO:
        addend = half - 1
    elif ROUNDING == _TOWARD_POSITIVE:
        addend = tl.where(negative, unit & 0, unit - 1)
    else:
        tl.static_assert(ROUNDING == _TOWARD_NEGATIVE, "a rounding mode that this function has no case for")
        addend = tl.where(negative, unit - 1, unit & 0)
    return addend


@triton.jit
def _rounds_away(rest, distance, random, ROUNDING: tl.constexpr, RANDOM_BITS: tl.constexpr):
    """1 where a stochastic mode rounds rest * 2^-distance (in [0, 1)) away from zero, otherwise 0.

    With the random integer R of N bits, "k + R >= 2^N" is "k > 2^N - 1 - R".
    """
    wide = rest.to(tl.uint64)
    excess = distance.to(tl.int32) - RANDOM_BITS
    left = tl.maximum(-excess, 0).to(tl.uint64)
    right = tl.minimum(tl.maximum(excess, 0), 62).to(tl.uint64)
    quotient = wide >> right
    unit = (wide & 0) + 1 << right
    lost = wide & unit - 1
    threshold = (random ^ ((1 << RANDOM_BITS) - 1)).to(tl.uint64)
    if ROUNDING == _STOCHASTIC:
        # nu * 2^N rounded to nearest even. Where nothing is lost, the quotient ends in the guard bit and stays.
        half = unit >> 1
        up = (lost > half) | ((lost == half) & ((quotient & 1) != 0))
        away = (quotient << left) + up.to(tl.uint64) > threshold
    elif ROUNDING == _STOCHASTIC_A:
        away = (quotient << left) > threshold
    elif ROUNDING == _STOCHASTIC_B:
        away = (quotient << left) + (lost << 1 >> right) > threshold
    else:
        tl.static_assert(ROUNDING == _STOCHASTIC_EQUAL, "a rounding mode that this function has no case for")
        away = (rest != 0) & (random >> (RANDOM_BITS - 1) != 0)
    return away.to(rest.dtype)


# Decode


@triton.jit
def decode(code, of: tl.constexpr, BITS: tl.constexpr):
    """The patterns, of BITS = 32 or 64, of the numbers that `code`, uint32, stands for in the format `of`.

    A number beyond the target's range is rounded to nearest even where it is subnormal there, and infinity above.
    The code's sign bit stays the sign, NaN included; NaN is the quiet one without payload.
    """
    TARGET: tl.constexpr = tl.uint32 if BITS == 32 else tl.uint64
    INFINITY: tl.constexpr = 0x7F800000 if BITS == 32 else 0x7FF0000000000000
    QUIET_NAN: tl.constexpr = 0x7FC00000 if BITS == 32 else 0x7FF8000000000000
    HIDDEN: tl.constexpr = 1 << of.mantissa_bits
    magnitude = code & (0xFFFFFFFF ^ of.sign_bit)
    negative = magnitude != code
    if of.twos_complement:
        magnitude = tl.where(negative, (code ^ 0xFFFFFFFF) + 1 & (2 * of.sign_bit - 1), code)
    counting = magnitude + of.offset
    binade = (counting >> of.mantissa_bits).to(tl.int32)
    fraction = counting & (HIDDEN - 1)
    sig = tl.where(binade == 0, fraction, fraction | HIDDEN).to(TARGET)
    exponent = tl.maximum(binade - 1, 0) + (of.emin - of.mantissa_bits)
    # The smallest number is 2^LOWEST, and the largest magnitude has exponent HIGHEST (none is normal: less).
    LOWEST: tl.constexpr = of.emin - of.mantissa_bits
    LARGEST: tl.constexpr = of.max_code + of.offset + of.twos_complement
    HIGHEST: tl.constexpr = of.emin + (LARGEST >> of.mantissa_bits) - 1
    pattern = _compose(sig, exponent, LOWEST, HIGHEST)
    if of.inf_code != _NO_CODE:
        pattern = tl.where(magnitude == of.inf_code, tl.full([], INFINITY, TARGET), pattern)
    if of.nan_from != _NO_CODE:
        pattern = tl.where(magnitude >= of.nan_from, tl.full([], QUIET_NAN, TARGET), pattern)
    if of.sign_bit != 0 and of.negative_zero == 0 and of.twos_complement == 0:
        pattern = tl.where(code == of.sign_bit, tl.full([], QUIET_NAN, TARGET), pattern)
    return pattern | (negative.to(TARGET) << (BITS - 1))


@triton.jit
def _compose(sig, exponent, LOWEST: tl.constexpr, HIGHEST: tl.constexpr):
    """The pattern of sig * 2^exponent, sig < 2^24, where non-zero numbers lie in 2^LOWEST .. 2^(HIGHEST + 1)."""
    F: tl.constexpr = 23 if sig.dtype == tl.uint32 else 52
    BIAS: tl.constexpr = 127 if sig.dtype == tl.uint32 else 1023
    HIDDEN: tl.constexpr = 1 << F
    converted = _as_float(sig)
    if LOWEST > -BIAS and HIGHEST <= BIAS:
        pattern = converted + (exponent.to(sig.dtype) << F)
    else:
        field = (converted >> F).to(tl.int32) + exponent
        fraction = converted & (HIDDEN - 1)
        shift = tl.minimum(tl.maximum(1 - field, 1), F + 3).to(sig.dtype)
        significand = fraction | HIDDEN
        half = (sig & 0) + 1 << shift - 1
        subnormal = significand + half - 1 + (significand >> shift & 1) >> shift
        pattern = tl.where(field < 1, subnormal, fraction | field.to(sig.dtype) << F)
        pattern = tl.where(field > 2 * BIAS, tl.full([], (2 * BIAS + 1) << F, sig.dtype), pattern)
    return tl.where(sig == 0, sig, pattern)
