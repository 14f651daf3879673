"""The exact sum of products, in binary64, and how far rounding can lead an output from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fp8sim import casting, formats, mma
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.analysis.explaining.outputs import numbers_of
from fp8sim.analysis.explaining.problem import Problem
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import MmaModel
from fp8sim.mma.plans import Place

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]


def beyond_bound(problem: Problem, hypothesis: Hypothesis) -> Mask:
    """Elements [M, N] that no rounding takes so far from the exact sum of products."""
    a, b = problem.pair(hypothesis)
    sums, bound = exact_sums(problem, hypothesis, a, b), bound_of(problem, hypothesis, a, b)
    actual = actual_numbers(problem)
    with np.errstate(invalid="ignore"):
        deviation = actual - sums
    impossible: Mask = ~np.isfinite(actual) & _stays_finite(problem, hypothesis, sums, bound)
    return is_outside(deviation, bound) | impossible


def is_outside(deviation: Doubles, bound: Doubles) -> Mask:
    """Where finite numbers lie too far from each other. Overflow and NaN have no distance."""
    with np.errstate(invalid="ignore"):
        far: Mask = np.isfinite(deviation) & (np.abs(deviation) > bound)
    return far


def _stays_finite(problem: Problem, hypothesis: Hypothesis, sums: Doubles, bound: Doubles) -> Mask:
    """Where no order of addition overflows on the way, and no rounding of the output at the end."""
    a, b = problem.pair(hypothesis)
    model = problem.model(hypothesis)
    start = 0.0 if problem.c is None else np.abs(problem.c.astype(np.float64))
    with np.errstate(invalid="ignore", over="ignore"):
        largest = 2 * problem.k * np.multiply.outer(*(np.abs(_inside(x, model)).max(axis=1) for x in (a, b))) + start
        times = np.multiply.outer(*(np.maximum(1.0, np.abs(_factors(x)).max(axis=1)) for x in (a, b)))
        inside: Mask = largest * times <= _largest(model.accumulator)
        held: Mask = np.abs(sums) + bound <= _largest(hypothesis.output)
    return inside & held


def _largest(fmt: str) -> float:
    return np.finfo(np.float64).max if fmt == "float64" else float(formats.parse(fmt).max)


def actual_numbers(problem: Problem) -> Doubles:
    """The output [M, N]."""
    assert problem.actual is not None
    found: Doubles = numbers_of(problem.actual, problem.container)
    return found


def exact_sums(
    problem: Problem, hypothesis: Hypothesis, a: Operand, b: Operand, start: Doubles | None = None
) -> Doubles:
    """[M, N], c included; `start` is in its place where a and b are a part."""
    with np.errstate(invalid="ignore", over="ignore"):
        model = problem.model(hypothesis)
        sums: Doubles = operand_numbers(a, model) @ operand_numbers(b, model).T
        if start is None and problem.c is not None:
            start = problem.c.astype(np.float64)
        if start is not None:
            factors = np.ones((1, 1))
            if hypothesis.plan.factors is Place.EPILOGUE:
                k = problem.k
                factors = np.outer(a.factor(0, k).astype(np.float64), b.factor(0, k).astype(np.float64))
            sums = sums + start * factors
    return sums


def operand_numbers(x: Operand, model: MmaModel) -> Doubles:
    """The operand [R, K] with all its factors."""
    block = x.block or max(1, x.codes.shape[1])
    found: Doubles = _inside(x, model) * np.repeat(_factors(x), block, axis=1)[:, : x.codes.shape[1]]
    return found


def all_factors(x: Operand, model: MmaModel) -> tuple[Doubles, int]:
    """[R, B] and the length of a block: the operand's factors, or those that the instruction takes."""
    if x.scales is None or model.scale_format is None or model.scale_block is None:
        return _factors(x), x.block or max(1, x.codes.shape[1])
    scales: Doubles = casting.decode(x.scales, model.scale_format, dtype="float64")
    return scales * _factors(x), model.scale_block


def numbers_in(x: Operand) -> Doubles:
    """What the operand's codes [R, K] stand for; of tf32 registers the low bits are ignored."""
    codes = x.codes >> np.uint32(32 - formats.parse("tf32").bits) if x.format == "tf32" else x.codes
    found: Doubles = numbers_of(codes, x.format)
    return found


def _inside(x: Operand, model: MmaModel) -> Doubles:
    """The operand [R, K] as the instruction multiplies it: with the factors that it takes."""
    found = numbers_in(x)
    if x.scales is not None and model.scale_format is not None and model.scale_block is not None:
        scales = casting.decode(x.scales, model.scale_format, dtype="float64")
        found = found * np.repeat(scales, model.scale_block, axis=1)[:, : x.codes.shape[1]]
    return found


def _factors(x: Operand) -> Doubles:
    """[R, B]; ones where there are none."""
    return np.ones((len(x.codes), 1)) if x.scale_inv is None else x.scale_inv.astype(np.float64)


def bound_of(problem: Problem, hypothesis: Hypothesis, a: Operand, b: Operand) -> Doubles:
    """`mma.error_bound` of every element, the output's rounding included."""
    model = problem.model(hypothesis)
    rows, columns = (_amax(_inside(x, model)) for x in (a, b))
    start = 0.0 if problem.c is None else np.abs(problem.c.astype(np.float64))
    inside = mma.error_bound(
        problem.k, rows[:, None], columns, model, hypothesis.plan, amax_c=start, output=hypothesis.output
    )
    outside = [_amax(_factors(x)) for x in (a, b)]
    smallest = 0.0 if hypothesis.output == "float64" else float(formats.parse(hypothesis.output).smallest)
    bound: Doubles = inside * np.multiply.outer(outside[0], outside[1]) + smallest
    return bound


def _amax(x: Doubles) -> Doubles:
    """[R], the largest finite magnitude of each row."""
    largest: Doubles = np.where(np.isfinite(x), np.abs(x), 0.0).max(axis=1, initial=0.0)
    return largest
