"""The definition of quantizing with scale factors: one block and one element at a time, in exact rationals.

Magnitudes are fractions, or the floats infinity and NaN. Of fp8sim it uses `Format.value` and the quantizer's data.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fp8sim.formats import FORMATS, Codebook, Format
from fp8sim.quantizers import Quantizer
from fp8sim.rounding import Overflow, Rounding
from fp8sim.scaling import Order, ScaleRule, ScaleSpec
from tests import oracle

Number = Fraction | float
FLOAT32 = FORMATS["float32"]
EXACT_ONE = Fraction(1)


def number(x: float) -> Number:
    """The magnitude of a float."""
    return Fraction(abs(x)) if math.isfinite(x) else abs(x)


def is_nan(x: Number) -> bool:
    return x != x


def rounded(x: Number, fmt: Format = FLOAT32) -> Number:
    """x to `fmt`, ties to even, infinity above its range."""
    if isinstance(x, float):
        return x
    result = oracle.round_magnitude(x, False, fmt, Rounding.TIES_TO_EVEN)
    return result if result <= fmt.max else math.inf


def times(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    return math.nan if is_nan(a) or is_nan(b) or a == 0 or b == 0 else math.inf


def over(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction) and b != 0:
        return a / b
    if is_nan(a) or is_nan(b) or (a == b and (a == 0 or a == math.inf)):
        return math.nan
    return Fraction(0) if b == math.inf else math.inf


def at_most(x: Number, limit: Fraction) -> Number:
    return limit if x > limit else x


def at_least(x: Number, limit: Fraction) -> Number:
    return limit if x < limit else x


# Scale factors


def e8m0_code(amax: Number, fmt: Format, rule: ScaleRule) -> int:
    """From the equations of `ScaleRule`, with the logarithm of a fraction."""
    if not isinstance(amax, Fraction):
        return 0xFF
    if rule is ScaleRule.RCEIL:
        amax = rounded(amax * rounded(1 / fmt.max))  # type: ignore[assignment, operator]
    if amax == 0:
        return 0
    if amax == math.inf:
        return 254
    exponent = oracle.floor_log2(amax)
    if rule is ScaleRule.EVEN:
        exponent = oracle.floor_log2(amax + Fraction(2) ** (max(exponent, -126) - fmt.mantissa_bits - 1))
    if rule in (ScaleRule.CEIL, ScaleRule.RCEIL):
        exponent += amax != Fraction(2) ** exponent
    return min(max(exponent - (0 if rule is ScaleRule.RCEIL else fmt.emax), -127), 127) + 127


@dataclass
class Factors:
    """Of the blocks, by index: what is stored, as a number; its E8M0 or E4M3 code; what is applied."""

    stored: dict[tuple[int, ...], Number] = field(default_factory=dict)
    codes: dict[tuple[int, ...], int] = field(default_factory=dict)
    applied: dict[tuple[int, ...], Number] = field(default_factory=dict)
    tensor: Number = EXACT_ONE


def factors(amaxes: dict[tuple[int, ...], Number], fmt: Format, spec: ScaleSpec) -> Factors:
    result = Factors()
    whole: Number = Fraction(0)
    for amax in amaxes.values():
        whole = amax if is_nan(amax) or amax > whole else whole
    if spec.order.has_two_levels:
        result.tensor = tensor_factor(whole, fmt, spec)
    for block, amax in amaxes.items():
        if spec.rule.is_mx:
            code = result.codes[block] = e8m0_code(amax, fmt, spec.rule)
            result.stored[block] = result.applied[block] = stored_number(code, spec.store)
        elif spec.order.has_two_levels:
            code = result.codes[block] = block_code(amax, whole, result.tensor, fmt, spec)
            result.stored[block] = stored_number(code, spec.store)
            result.applied[block] = combined(result.stored[block], result.tensor, spec)
        else:
            result.stored[block], result.applied[block] = one_level(amax, fmt, spec)
    return result


def stored_number(code: int, store: Format) -> Number:
    return store.value(code) if store.is_finite(code) else math.nan


def is_usable(amax: Number) -> bool:
    return isinstance(amax, Fraction) and amax > 0


def one_level(amax: Number, fmt: Format, spec: ScaleSpec) -> tuple[Number, Number]:
    amax = at_least(amax, Fraction(spec.amax_floor))
    unusable = not spec.propagate and not is_usable(amax)
    if spec.order is Order.DIVIDE:
        scale_inv = at_least(rounded(over(amax, fmt.max)), FLOAT32.smallest)
        scale_inv = EXACT_ONE if unusable else power_of_two(scale_inv, spec, up=True)
        return scale_inv, scale_inv
    scale = at_most(rounded(over(fmt.max, amax)), FLOAT32.max)
    scale = EXACT_ONE if unusable else power_of_two(scale, spec, up=False)
    return rounded(over(EXACT_ONE, scale)), scale


def power_of_two(x: Number, spec: ScaleSpec, *, up: bool) -> Number:
    if spec.rule is not ScaleRule.POWER_OF_TWO_AMAX or not is_usable(x):
        return x
    assert isinstance(x, Fraction)
    exponent = oracle.floor_log2(x)
    exponent += up and x != Fraction(2) ** exponent
    return Fraction(2) ** min(exponent, 127)


def tensor_factor(whole: Number, fmt: Format, spec: ScaleSpec) -> Number:
    ends = spec.store.max * fmt.max
    unusable = not spec.propagate and not is_usable(whole)
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        return rounded(over(EXACT_ONE, encode_scale(whole, fmt, spec)))
    if unusable:
        return EXACT_ONE
    factor = rounded(over(whole, ends))
    return factor if spec.propagate else at_least(factor, FLOAT32.smallest)


def encode_scale(whole: Number, fmt: Format, spec: ScaleSpec) -> Number:
    if not spec.propagate and not is_usable(whole):
        return EXACT_ONE
    return at_most(rounded(over(spec.store.max * fmt.max, whole)), FLOAT32.max)


def block_code(amax: Number, whole: Number, tensor: Number, fmt: Format, spec: ScaleSpec) -> int:
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        factor = rounded(times(encode_scale(whole, fmt, spec), rounded(1 / fmt.max)))
        block = at_most(rounded(times(amax, factor)), FLOAT32.max)
    else:
        block = rounded(over(rounded(over(amax, fmt.max)), tensor))
    if spec.order is Order.TWO_LEVEL_TORCHAO:
        block = at_least(block, spec.store.smallest_normal)
    return oracle.encode(float(block), spec.store, Rounding.TIES_TO_EVEN, Overflow.SATURATE)


def combined(block: Number, tensor: Number, spec: ScaleSpec) -> Number:
    """What x is multiplied with or divided by."""
    if spec.order is Order.TWO_LEVEL_TORCHAO:
        return rounded(over(rounded(over(EXACT_ONE, tensor)), block))
    product = rounded(times(block, tensor))
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        return at_most(rounded(over(EXACT_ONE, product)), FLOAT32.max)
    return product


# Tensors


def block_of(index: tuple[int, ...], spec: ScaleSpec) -> tuple[int, ...]:
    """The index of the block, as in the array of scale factors."""
    granularity = spec.granularity
    if granularity.is_whole_tensor:
        return ()
    *leading, c = index
    column = 0 if granularity.columns is None else c // granularity.columns
    if not leading:
        return (column,)
    row = 0 if granularity.rows is None else leading[-1] // granularity.rows
    return (*leading[:-1], row, column)


def quantize(x: NDArray[np.float32], quantizer: Quantizer) -> tuple[NDArray[np.uint32], Factors]:
    """Codes of x [...] and the factors."""
    spec = quantizer.scale
    assert spec is not None
    amaxes: dict[tuple[int, ...], Number] = {}
    for index in np.ndindex(x.shape):
        magnitude, block = number(float(x[index])), block_of(index, spec)
        before = amaxes.setdefault(block, Fraction(0))
        amaxes[block] = magnitude if is_nan(magnitude) or magnitude > before else before
    found = factors(amaxes, quantizer.format, spec)
    codes = np.zeros(x.shape, np.uint32)
    for index in np.ndindex(x.shape):
        codes[index] = element(float(x[index]), found.applied[block_of(index, spec)], quantizer)
    return codes, found


def element(x: float, factor: Number, quantizer: Quantizer) -> int:
    """The code of x, a float32 number."""
    spec, fmt = quantizer.scale, quantizer.format
    assert spec is not None
    magnitude, negative = number(x), math.copysign(1.0, x) < 0
    if spec.order is Order.TWO_LEVEL_DIVIDE and factor == 0:
        exact: Number = Fraction(0)
    else:
        exact = over(magnitude, factor) if spec.order.divides else times(magnitude, factor)
    if not spec.fused:
        exact = rounded(exact)
    keeps_sign = not is_nan(exact) or math.isnan(x)
    if isinstance(fmt, Codebook):
        signed = -exact if negative and keeps_sign else exact
        return oracle.encode_to_codebook(signed, [Fraction(level) for level in fmt.levels], quantizer.rounding)
    if isinstance(exact, Fraction):  # on the grid of `fmt`, but for overflow, so that a binary64 number has it
        exact = float(oracle.round_magnitude(exact, negative, fmt, quantizer.rounding))
    signed = -exact if negative and keeps_sign else exact
    return oracle.encode(signed, fmt, quantizer.rounding, quantizer.overflow)


def value(code: int, index: tuple[int, ...], found: Factors, quantizer: Quantizer) -> float:
    """code times the factors, rounded once to float32."""
    fmt, spec = quantizer.format, quantizer.scale
    assert spec is not None
    factor = times(found.stored[block_of(index, spec)], found.tensor)
    if not fmt.is_finite(code):
        return math.copysign(fmt.to_float(code), -1.0 if code & fmt.sign_bit else 1.0)
    magnitude = rounded(times(abs(fmt.value(code)), factor))
    negative = fmt.value(code) < 0 or (fmt.has_negative_zero and code == fmt.sign_bit)
    return math.copysign(float(magnitude), -1.0 if negative and not is_nan(magnitude) else 1.0)
