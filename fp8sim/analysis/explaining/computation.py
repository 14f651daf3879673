"""What a hypothesis computes for one shape, as an expression: hypotheses of equal expressions return equal bits.

The expression of a `GemmPlan` is made of chains over ranges of k, additions and multiplications by factors, just as
`fp8sim.mma.gemm` computes them; what cannot matter for the shape is not in it. A NaN counts as equal to any NaN.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8sim import formats, quantizers
from fp8sim.analysis.explaining.hypothesis import UNROUNDED, Hypothesis
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import Adder, MmaModel
from fp8sim.mma.plans import GemmPlan, Merge, Place, Product
from fp8sim.rounding import Overflow, resolve

_NEVER_NEGATIVE_ZERO = {Adder.TRUNCATED, Adder.EMULATED, Adder.BLOCK_SCALED, Adder.GROUPED}
_TAME_FACTORS = (2.0**-32, 2.0**32)
_TAME_EXPONENT = -16


@dataclass(frozen=True)
class Setting:
    """What of the inputs decides which hypotheses are one computation.

    Attributes:
        k: products of a sum.
        has_c: whether sums start from something else than +0.
        row_factors, column_factors: whether a, b have factors outside of the instruction.
        tame: whether those factors, all positive, are so far from the ends of float32 that a product of one with a sum
            of products cannot underflow; then no operation makes a -0.
    """

    k: int
    has_c: bool
    row_factors: bool
    column_factors: bool
    tame: bool

    @property
    def has_factors(self) -> bool:
        """Whether sums are multiplied by anything."""
        return self.row_factors or self.column_factors

    @classmethod
    def of(cls, a: Operand, b: Operand, *, has_c: bool) -> Setting:
        """The setting of two operands of a GEMM."""
        tame = all(_is_tame(x) for x in (a, b))
        return cls(a.codes.shape[1], has_c, a.scale_inv is not None, b.scale_inv is not None, tame)


def _is_tame(x: Operand) -> bool:
    low, high = _TAME_FACTORS
    factors = np.ones(1) if x.scale_inv is None else x.scale_inv
    small = x.format == "float64" or formats.parse(x.format).emin < _TAME_EXPONENT
    return not small and bool(((factors >= low) & (factors <= high)).all())


def sums(plan: GemmPlan, model: MmaModel, setting: Setting) -> str:
    """The expression of `mma.gemm.multiply`: the arithmetic of the instruction, and the order of all operations."""
    zero = "" if model.adder in _NEVER_NEGATIVE_ZERO else "zero"
    parts: list[str] = []
    for index, chains in enumerate(plan.segments(setting.k, model.k)):
        start = "c" if setting.has_c and index == 0 else ""
        if plan.flush is None:
            parts.append(_node("chain", start, *chains[0]))
        else:
            parts.append(_flushed(chains, start or zero, plan, setting))
    total = _merged(parts, plan.merge)
    if plan.factors is Place.EPILOGUE and setting.has_factors:
        total = _scaled(total, plan, setting)
    return _node(arithmetic(model), total)


def _node(*parts: object) -> str:
    """An operation and what it is applied to, in 16 bytes however deep the expression."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def arithmetic(model: MmaModel) -> tuple[Any, ...]:
    """What of an instruction shows in its chains."""
    step = (model.adder, model.a_format, model.b_format, model.terms, model.fraction_bits, model.zero_exponent)
    length = () if _padding_is_idle(model) else (model.k,)
    return (*step, model.output, model.scale_format, model.scale_block, *length)


def _padding_is_idle(model: MmaModel) -> bool:
    """Whether a step of zeros, with which kernels fill the last instruction, leaves every accumulator as it is."""
    if model.zero_exponent is None or model.fraction_bits is None or model.terms == model.k:
        return model.adder in (Adder.TRUNCATED, Adder.BLOCK_SCALED)
    grid = formats.parse(model.accumulator).emin - model.output.kept_bits
    keeps = model.zero_exponent - model.fraction_bits <= grid and model.fraction_bits >= model.output.kept_bits
    return keeps and model.adder in (Adder.TRUNCATED, Adder.BLOCK_SCALED)


def _flushed(chains: list[tuple[int, int]], start: str, plan: GemmPlan, setting: Setting) -> str:
    total = start
    for begin, end in chains:
        total = _promoted(total, _node("chain", "", begin, end), plan, setting)
    return total


def _promoted(total: str, partial: str, plan: GemmPlan, setting: Setting) -> str:
    """total + partial, times its factors if they meet it here; an empty total is a +0 that no partial shows beside."""
    if plan.factors is not Place.FLUSH or not setting.has_factors:
        return _added(total, partial)
    if not total and setting.tame:
        return _scaled(partial, plan, setting)
    total = total or "zero"
    if not plan.fused:
        return _added(total, _scaled(partial, plan, setting))
    if plan.product is Product.SUCCESSIVE and setting.row_factors:
        partial = _node("times", "row", partial)
        return _node("fma", total, partial, "column") if setting.column_factors else _added(total, partial)
    return _node("fma", total, partial, "row" * setting.row_factors, "column" * setting.column_factors)


def _scaled(total: str, plan: GemmPlan, setting: Setting) -> str:
    """total times the factors of its row and column."""
    if not (setting.row_factors and setting.column_factors):
        return _node("times", "row" if setting.row_factors else "column", total)
    if plan.product is Product.FIRST:
        return _node("times", "row * column", total)
    return _node("times", "column", _node("times", "row", total))


def _added(x: str, y: str) -> str:
    """Addition commutes; to nothing, it is no operation."""
    return _node("add", *sorted((x, y))) if x and y else x or y


def _merged(parts: list[str], merge: Merge) -> str:
    while merge is Merge.TREE and len(parts) > 1:
        parts = [functools.reduce(_added, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return functools.reduce(_added, parts[::-1] if merge is Merge.DESCENDING else parts)


def output(hypothesis: Hypothesis, largest: float) -> tuple[Any, ...]:
    """The rounding of sums to the output; `largest` bounds their magnitude, infinite if nothing does."""
    if hypothesis.output in UNROUNDED:
        return (hypothesis.output, hypothesis.through)
    fmt, overflow = formats.parse(hypothesis.output), hypothesis.limit
    if hypothesis.through is None and largest <= float(fmt.max):
        overflow = Overflow.SATURATE
    return (fmt, resolve(fmt, hypothesis.plan.rounding, overflow), hypothesis.through)


def largest_sum(a_format: str, b_format: str, setting: Setting) -> float:
    """A bound of the sums' magnitude that the formats give; infinite where factors, c or infinities know none."""
    if setting.has_c or setting.has_factors or "float64" in (a_format, b_format):
        return float("inf")
    pair = [formats.parse(name) for name in (a_format, b_format)]
    if any(fmt.infinity for fmt in pair):
        return float("inf")
    return 2 * setting.k * float(pair[0].max) * float(pair[1].max)  # twice: additions may round upward


def cast(quantizer: str | None, through: str | None) -> tuple[Any, ...]:
    """The cast of an operand: the same integers, the same codes."""
    if quantizer is None:
        return ()
    found = quantizers.parse(quantizer)
    return (found.format, resolve(found.format, found.rounding, found.overflow), str(found.scale), through)
