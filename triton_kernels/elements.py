"""One element on its way to a code: device functions that the casts share.

A number travels as its pattern of bits, uint32 for binary32 and uint64 for binary64.
"""

import triton
import triton.language as tl

from fp8sim.triton_kernels.rounding import decode as decode_bits
from fp8sim.triton_kernels.rounding import encode as encode_bits

INFINITE = tl.constexpr(0x7F800000)
"""The pattern of float32's infinity: larger magnitudes are NaN."""

QUIET_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def widen(raw, SOURCE: tl.constexpr, BITS: tl.constexpr):
    """The pattern of BITS bits; without SOURCE `raw` is such a pattern, or the high half of one (bfloat16)."""
    if SOURCE is not None:
        return decode_bits(raw.to(tl.uint32), SOURCE, BITS)
    else:
        TARGET: tl.constexpr = tl.uint32 if BITS == 32 else tl.uint64
        return raw.to(TARGET) << (BITS - raw.dtype.primitive_bitwidth)


@triton.jit
def float32_pattern(raw, SOURCE: tl.constexpr, FLOAT32: tl.constexpr):
    """The float32 pattern of raw bits: of float64 by the conversion FLOAT32, of all else as `widen`, exactly."""
    if raw.dtype == tl.uint64:
        return encode_bits(raw, 0, FLOAT32, 0)
    else:
        return widen(raw, SOURCE, 32)


@triton.jit
def magnitude_of(pattern):
    """A float32 pattern without sign: counts upwards through the numbers, infinity and NaN."""
    return pattern & 0x7FFFFFFF


@triton.jit
def one_nan(magnitude):
    """Magnitudes with one NaN."""
    return tl.where(magnitude > INFINITE, tl.full([], QUIET_NAN, tl.uint32), magnitude)


@triton.jit
def as_float(pattern):
    return pattern.to(tl.float32, bitcast=True)


@triton.jit
def meet_factor(pattern, factor, DIVIDE: tl.constexpr, FUSED: tl.constexpr, ONE_NAN: tl.constexpr):
    """A number times (or over) its factor, both float32 patterns: rounded to float32, or if FUSED, in binary64.

    NaN keeps its sign; where the factor makes a NaN of a number, it is positive. ONE_NAN: no code depends on the sign
    of a NaN, and neither does the result.
    """
    if FUSED:
        return _meet_in_binary64(pattern, factor, DIVIDE)
    else:
        x, y = as_float(pattern), as_float(factor)
        product = tl.div_rn(x, y) if DIVIDE else x * y
        number = product.to(tl.uint32, bitcast=True)
        if not ONE_NAN:
            number = tl.where(product != product, tl.full([], QUIET_NAN, tl.uint32), number)
            number = tl.where(x != x, pattern, number)
        return number


@triton.jit
def _meet_in_binary64(pattern, factor, DIVIDE: tl.constexpr):
    """Exact as a product. As a quotient, nearer to the exact one than any boundary between codes can be."""
    x, y = as_float(pattern).to(tl.float64), as_float(factor).to(tl.float64)
    result = (x / y if DIVIDE else x * y).to(tl.uint64, bitcast=True)
    quiet_nan = tl.full([], 0x7FF8000000000000, tl.uint64)
    sign = (pattern & 0x80000000).to(tl.uint64) << 32
    nan = tl.where(magnitude_of(pattern) > INFINITE, quiet_nan | sign, quiet_nan)
    return tl.where((result & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000, nan, result)


@triton.jit
def code_of(pattern, random, TO: tl.constexpr, RANDOM_BITS: tl.constexpr, HARDWARE: tl.constexpr):
    """The code of the format TO, uint32; HARDWARE, a type, lets the GPU's instruction convert to it.

    cvt.rn.satfinite has the numbers of ties to even and SATURATE, and one NaN, whose sign is put back: all other codes
    have the sign of their number already.
    """
    if HARDWARE is None:
        return encode_bits(pattern, random, TO, RANDOM_BITS)
    else:
        code = as_float(pattern).to(HARDWARE).to(tl.uint8, bitcast=True)
        return code.to(tl.uint32) | (pattern >> 24 & 0x80)
