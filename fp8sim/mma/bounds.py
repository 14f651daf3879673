"""How far a GEMM's result may lie from the exact sum of its products: the only bounds there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8sim import formats
from fp8sim.mma.models import Adder, MmaModel
from fp8sim.mma.plans import GemmPlan
from fp8sim.rounding import Rounding

Doubles = NDArray[np.float64]

_FLOAT32_HALF_ULP = 2.0**-24


def float32_error_bound(a: torch.Tensor, b: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """Largest possible error of `scale * a @ b` added in float32 in any order, per element.

    Any order of n = K - 1 float32 additions errs by at most gamma_n * sum |a_k * b_k|, gamma_n = n*u / (1 - n*u) with
    u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, equation 4.4), the product and the scale
    add one rounding each. For K up to 2^21 the whole stays below K * 2^-22 * sum |a_k * b_k|, which also leaves room
    for adders that truncate instead of rounding (2u each).

    Args:
        a: [..., M, K], the operands as they enter the products.
        b: [..., K, N].
        scale: the factor on the sum.

    Returns:
        [..., M, N], float64.
    """
    k = a.shape[-1]
    return torch.matmul(a.double().abs(), b.double().abs()) * (k * 2.0**-22 * abs(scale))


def error_bound(
    k: int,
    amax_a: Any,
    amax_b: Any,
    model: MmaModel,
    plan: GemmPlan | None = None,
    *,
    amax_c: Any = 0.0,
    output: str = "float32",
) -> Doubles:
    """Largest possible distance between c + sum_k a_k b_k and what `model` and `plan` return, all numbers finite.

    A step of a truncating adder (arXiv 2511.10909) cuts each of its L products and c below 2^(e_max - F), so that
    it errs by less than (L + 1) 2^(e_max - F), and its rounding by an ulp of the sum (half of one to nearest). The
    largest exponent is that of a product, at most that of amax_a * amax_b, each raised to its format's smallest normal
    number since subnormal operands keep that exponent; or c's; or that of a zero term. Cutting never raises a sum of
    magnitudes, so c stays below amax_c + sum |a_k b_k| <= amax_c + k * amax_a * amax_b. Additions and factors outside
    of the instruction err by half an ulp each. Adders of other kinds: the roundings that `Adder` describes.

    Args:
        k: products of the sum.
        amax_a: [...], the largest |a|, of the tensor or of each row as [M, 1]. For instructions that take scale
            factors, of the scaled numbers.
        amax_b: [...], likewise, [1, N]; they broadcast. amax_c: of what the sum starts from.
        model: the instruction.
        plan: the order of operations; None: one chain.
        output: the format that the sum is rounded to.

    Returns:
        [...], float64, before any factor outside of the instruction: multiply it by the largest factor.
    """
    plan = plan or GemmPlan(model.instruction)
    largest = np.multiply(np.asarray(amax_a, np.float64), np.asarray(amax_b, np.float64))
    start = np.asarray(amax_c, np.float64)
    parts = plan.segments(k, model.k)
    error, magnitude, roundings = np.zeros(np.broadcast_shapes(largest.shape, start.shape)), start, 0
    for chains in parts:
        for begin, end in chains:
            inside = start if plan.flush is None and begin == 0 else np.zeros(())
            error = error + _chain_bound(end - begin, largest, inside, amax_a, amax_b, model)
            magnitude = magnitude + (end - begin) * largest
            if plan.flush is not None or len(parts) > 1:  # an addition, and two factors
                error = error + 3 * _FLOAT32_HALF_ULP * magnitude
                roundings += 3
    error = error + 2 * _FLOAT32_HALF_ULP * magnitude + _output_error(magnitude, output, plan)
    # What roundings to nearest add to magnitudes, and this computation's own.
    grown: Doubles = error * (1 + (roundings + k + 8) * 2.0**-23)
    return grown


def _chain_bound(n: int, largest: Doubles, start: Doubles, amax_a: Any, amax_b: Any, model: MmaModel) -> Doubles:
    """The error of a chain over n products that begins at a number of magnitude `start`."""
    terms = model.k // 2 if model.adder is Adder.EMULATED else model.terms
    steps = -(-n // terms)
    # Over all steps: the sums of the magnitudes before and after each of them.
    before = steps * start + terms * largest * (steps * (steps - 1) / 2)
    after = before + terms * largest * steps
    aligned = steps * _aligned(largest, amax_a, amax_b, model) + before
    cut = _CUT_TERMS[model.adder](terms) if model.adder in _CUT_TERMS else 0
    error = cut * 2.0 ** -(model.fraction_bits or 0) * aligned if cut else np.zeros(np.shape(aligned))
    error = error + _ROUNDINGS.get(model.adder, 1) * _ulp(model) * after + steps * _tiny(model)
    if model.adder is Adder.FLUSHING:
        small_a, small_b = (_smallest_normal(fmt) for fmt in (model.a_format, model.b_format))
        flushed = np.asarray(amax_a, np.float64) * small_b + np.asarray(amax_b, np.float64) * small_a
        error = error + steps * terms * flushed
    bound: Doubles = error
    return bound


_CUT_TERMS: Mapping[Adder, Callable[[int], int]] = {
    Adder.TRUNCATED: lambda terms: terms + 1,
    Adder.EMULATED: lambda terms: terms + 1,
    Adder.BLOCK_SCALED: lambda terms: terms + 1,
    Adder.GROUPED: lambda terms: terms // 16 + 1,
    Adder.ROUNDED: lambda terms: terms + 3,  # the floors of the sum, of c, and of both together
    Adder.EVEN_ODD: lambda terms: terms + 6,  # and of one of the two sums, and c where it is dropped
}
"""How many cuts below 2^(e_max - F) a step makes."""

_ROUNDINGS = {Adder.EMULATED: 2, Adder.FLUSHING: 5}
"""Roundings of a step, where they are more than one."""


def _aligned(largest: Doubles, amax_a: Any, amax_b: Any, model: MmaModel) -> Doubles:
    """The largest 2^e_max that products or zeros bring about."""
    if model.adder is Adder.GROUPED:  # a factor is at most twice a non-zero element of 0.5 or more times it
        reach: Doubles = 4 * largest
    elif model.scale_block is not None:  # a subnormal element has the exponent of a larger number
        bits = sum(formats.parse(fmt).mantissa_bits for fmt in (model.a_format, model.b_format))
        reach = largest * 2.0**bits
    else:
        raised = [
            np.maximum(np.asarray(amax, np.float64), _smallest_normal(fmt))
            for amax, fmt in ((amax_a, model.a_format), (amax_b, model.b_format))
        ]
        reach = raised[0] * raised[1]
    return reach if model.zero_exponent is None else np.maximum(reach, 2.0**model.zero_exponent)


def _smallest_normal(fmt: str) -> float:
    return 2.0**-1022 if fmt == "float64" else float(formats.parse(fmt).smallest_normal)


def _ulp(model: MmaModel) -> float:
    """The rounding error of a number of magnitude one."""
    return 2.0 ** -(model.output.kept_bits + model.output.to_nearest)


def _tiny(model: MmaModel) -> float:
    """The rounding error of a subnormal number."""
    smallest = 2.0**-1022 if model.accumulator == "float64" else _smallest_normal(model.accumulator)
    return smallest * 2.0**-model.output.kept_bits


def _output_error(magnitude: Doubles, output: str, plan: GemmPlan) -> Doubles:
    if output in ("float32", "float64"):
        return np.zeros(np.shape(magnitude))
    fmt = formats.parse(output)
    to_nearest = plan.rounding in (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY)
    error: Doubles = np.maximum(magnitude, float(fmt.smallest_normal)) * 2.0 ** -(fmt.mantissa_bits + to_nearest)
    return error
