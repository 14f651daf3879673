"""From the largest magnitude of a block to its scale factor: device functions.

The same arithmetic as `csrc/core/scale.hpp`, and the same names; `fp8sim.scaling.ScaleRule` and `Order` have the
equations. Magnitudes and factors are float32 patterns, uint32, of any shape. Exponents are taken from bits; all else is
one float32 operation after another, each rounded to nearest even: division is `tl.div_rn`, because `/` is not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import triton
import triton.language as tl

from fp8sim import scaling
from fp8sim.formats import Format
from fp8sim.rounding import Conversion
from fp8sim.scaling import Order, ScaleRule, ScaleSpec
from fp8sim.triton_kernels.elements import INFINITE, QUIET_NAN, as_float, magnitude_of
from fp8sim.triton_kernels.rounding import _as_float as float_of_integer
from fp8sim.triton_kernels.rounding import decode, encode


class ScaleConstants(NamedTuple):
    """A rule and an element format as numbers: all that kernels read. Floats are float32 numbers, but for `ends`."""

    rule: str
    order: str
    is_mx: bool
    has_two_levels: bool
    divides: bool
    propagate: bool
    emax: int
    mantissa_bits: int
    max: float
    max_reciprocal: float
    floored: bool
    """Whether amax is raised to a floor, so that an amax of zero has a factor."""
    most: float
    """The largest scale, and `least` the smallest scale_inv, that amax_floor leaves."""
    least: float
    ends: float
    """max times the largest number of the stored format, in binary64."""
    smallest_normal: float


@functools.cache
def scale_constants(fmt: Format, spec: ScaleSpec) -> tuple[ScaleConstants, Conversion]:
    """The numbers of the factors of elements of `fmt`, and the conversion to the format that stores them."""
    core, store = scaling.constants(fmt, spec)
    largest = np.float64(core.max)
    with np.errstate(divide="ignore", over="ignore"):
        most, least = np.float32(largest / core.amax_floor), np.float32(core.amax_floor / largest)
    found = ScaleConstants(
        rule=spec.rule.name,
        order=spec.order.name,
        is_mx=spec.rule.is_mx,
        has_two_levels=spec.order.has_two_levels,
        divides=spec.divides,
        propagate=spec.propagate,
        emax=core.emax,
        mantissa_bits=core.mantissa_bits,
        max=core.max,
        max_reciprocal=float(np.float32(1) / np.float32(core.max)),
        floored=core.amax_floor > 0,
        most=min(float(most), _LARGEST.value),
        least=max(float(least), _SMALLEST.value),
        ends=core.max * core.store_max,
        smallest_normal=core.store_smallest_normal,
    )
    return found, store


_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))
_SMALLEST = tl.constexpr(2.0**-149)
_ONE = tl.constexpr(0x3F800000)
_CEIL = tl.constexpr(ScaleRule.CEIL.name)
_EVEN = tl.constexpr(ScaleRule.EVEN.name)
_RCEIL = tl.constexpr(ScaleRule.RCEIL.name)
_POWER_OF_TWO = tl.constexpr(ScaleRule.POWER_OF_TWO_AMAX.name)
_ENGINE = tl.constexpr(Order.TWO_LEVEL_TRANSFORMER_ENGINE.name)
_TORCHAO = tl.constexpr(Order.TWO_LEVEL_TORCHAO.name)


@triton.jit
def factor_of(amax, whole, s: tl.constexpr, store: tl.constexpr):
    """(stored, applied) for blocks whose amax, without sign and with one NaN, has these patterns.

    `stored` are codes of the format that stores factors, or float32 patterns; `applied` patterns. `whole` is the amax
    of the tensor, which two levels read.
    """
    if s.is_mx:
        return _mx_factor(amax, s)
    elif s.has_two_levels:
        return _two_level_factor(amax, whole, s, store)
    else:
        return _one_level_factor(amax, s)


@triton.jit
def tensor_scale_inv(whole, s: tl.constexpr):
    """The pattern of the tensor's factor, stored in two levels, which multiplies codes."""
    if s.order == _ENGINE:
        return _over(_constant(1.0), as_float(_engine_scale(whole, s)))
    else:
        wide = as_float(whole).to(tl.float64) / tl.full([], s.ends, tl.float64)
        scale_inv = _replace_unusable(_bits(wide.to(tl.float32)), whole, s)
        return scale_inv if s.propagate else _at_least(scale_inv, _SMALLEST)


# Numbers


@triton.jit
def _constant(VALUE: tl.constexpr):
    return tl.full([], VALUE, tl.float32)


@triton.jit
def _bits(x):
    """The pattern of a float32 number's magnitude: NaN has no sign here, whatever the processor makes of 0 / 0."""
    return magnitude_of(x.to(tl.uint32, bitcast=True))


@triton.jit
def _over(x, y):
    return _bits(tl.div_rn(x, y))


@triton.jit
def _at_most(pattern, LIMIT: tl.constexpr):
    """NaN stays."""
    x = as_float(pattern)
    return _bits(tl.where(x > LIMIT, _constant(LIMIT), x))


@triton.jit
def _at_least(pattern, LIMIT: tl.constexpr):
    """NaN stays."""
    x = as_float(pattern)
    return _bits(tl.where(x < LIMIT, _constant(LIMIT), x))


@triton.jit
def _floor_log2(pattern):
    """floor(log2) of a magnitude; 128 for infinity, and for zero less than for any number."""
    field = (pattern >> 23).to(tl.int32)
    leading = (float_of_integer(pattern & 0x7FFFFF) >> 23).to(tl.int32)
    return tl.where(field > 0, field - 127, leading - (127 + 149))


@triton.jit
def _ceil_log2(pattern):
    below_leading = tl.where(pattern >= 0x800000, pattern & 0x7FFFFF, pattern & (pattern - 1))
    return _floor_log2(pattern) + (below_leading != 0).to(tl.int32)


@triton.jit
def _power_of_two(exponent):
    """The pattern of 2^exponent, -149 to 127."""
    place = tl.minimum(tl.maximum(exponent + 149, 0), 23).to(tl.uint32)
    subnormal = (place & 0) + 1 << place
    return tl.where(exponent >= -126, (exponent + 127).to(tl.uint32) << 23, subnormal)


@triton.jit
def _to_power_of_two(pattern, UP: tl.constexpr):
    """A magnitude rounded to a power of two of float32; zero, infinity and NaN stay."""
    exponent = tl.minimum(_ceil_log2(pattern) if UP else _floor_log2(pattern), 127)
    return tl.where((pattern == 0) | (pattern >= INFINITE), pattern, _power_of_two(exponent))


@triton.jit
def _replace_unusable(factor, amax, s: tl.constexpr):
    """1 where amax is zero, infinite or NaN, unless the arithmetic is to show."""
    if s.propagate:
        return factor
    else:
        usable = amax < INFINITE
        if not s.floored:
            usable = usable & (amax > 0)
        return tl.where(usable, factor, tl.full([], _ONE, tl.uint32))


# One level


@triton.jit
def _mx_factor(amax, s: tl.constexpr):
    if s.rule == _CEIL:
        exponent = _ceil_log2(amax) - s.emax
    elif s.rule == _EVEN:
        exponent = _floor_log2(amax + (1 << (22 - s.mantissa_bits))) - s.emax
    elif s.rule == _RCEIL:
        exponent = _ceil_log2(_bits(as_float(amax) * _constant(s.max_reciprocal)))
    else:
        exponent = _floor_log2(amax) - s.emax
    code = tl.minimum(tl.maximum(exponent + 127, 0), 254)
    code = tl.where(amax == 0, 0, code)
    applied = tl.where(amax >= INFINITE, tl.full([], QUIET_NAN, tl.uint32), _power_of_two(127 - code))
    return tl.where(amax >= INFINITE, 255, code).to(tl.uint32), applied


@triton.jit
def _one_level_factor(amax, s: tl.constexpr):
    if s.divides:
        scale_inv = _at_least(_over(as_float(amax), _constant(s.max)), s.least)
        if s.rule == _POWER_OF_TWO:
            scale_inv = _to_power_of_two(scale_inv, True)
        scale_inv = _replace_unusable(scale_inv, amax, s)
        return scale_inv, scale_inv
    else:
        scale = _at_most(_over(_constant(s.max), as_float(amax)), s.most)
        if s.rule == _POWER_OF_TWO:
            scale = _to_power_of_two(scale, False)
        scale = _replace_unusable(scale, amax, s)
        return _over(_constant(1.0), as_float(scale)), scale


# Two levels


@triton.jit
def _engine_scale(whole, s: tl.constexpr):
    """Transformer Engine's factor of the tensor, which multiplies its elements."""
    wide = tl.full([], s.ends, tl.float64) / as_float(whole).to(tl.float64)
    return _replace_unusable(_at_most(_bits(wide.to(tl.float32)), _LARGEST), whole, s)


@triton.jit
def _two_level_factor(amax, whole, s: tl.constexpr, store: tl.constexpr):
    scale_inv = as_float(tensor_scale_inv(whole, s))
    if s.order == _ENGINE:
        multiplier = as_float(_engine_scale(whole, s)) * _constant(s.max_reciprocal)
        block = _at_most(_bits(as_float(amax) * multiplier), _LARGEST)
    else:
        block = _over(as_float(_over(as_float(amax), _constant(s.max))), scale_inv)
    if s.order == _TORCHAO:
        block = _at_least(block, s.smallest_normal)
    code = encode(block, 0, store, 0)
    stored = as_float(decode(code, store, 32))
    if s.order == _TORCHAO:
        return code, _over(as_float(_over(_constant(1.0), scale_inv)), stored)
    combined = stored * scale_inv
    if s.order == _ENGINE:
        return code, _at_most(_over(_constant(1.0), combined), _LARGEST)
    divisor = _bits(combined)  # x / infinity is a zero of the sign of x
    return code, tl.where(divisor == 0, tl.full([], INFINITE, tl.uint32), divisor)
