"""A whole GEMM as a kernel computes it: chains of instructions, flushes, splits, factors, one rounding at the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import _core, casting, formats
from fp8sim.mma.chains import chain
from fp8sim.mma.models import MmaModel, operand_dtype
from fp8sim.mma.names import parse as parse_instruction
from fp8sim.mma.plans import GemmPlan, Merge, Place, Product
from fp8sim.rounding import Overflow

Array = NDArray[Any]
Float32 = NDArray[np.float32]

_SUCCESSIVE_OR_PRODUCT = {Product.SUCCESSIVE: 1, Product.FIRST: 2}
_NO_ADDITION, _SEPARATE, _FUSED = 0, 1, 2
_NO_FACTORS = 0


@dataclass(frozen=True)
class Operand:
    """One operand of a GEMM, its rows along M or N, k contiguous.

    Attributes:
        codes: [R, K], unsigned integers as `operand_dtype(format)` says.
        format: the codes' format, by its full name.
        scale_inv: [R, B], float32 factors of the products' sum: block b of row r covers `block` consecutive k. None: 1.
        block: length of a block along K; None: one block is all of K.
        scales: [R, ceil(K / scale_block)], uint8 codes of factors that the instruction applies.
    """

    codes: Array
    format: str
    scale_inv: Float32 | None = None
    block: int | None = None
    scales: Array | None = None

    def cut(self, start: int, stop: int, model: MmaModel) -> Operand:
        """The operand over a range of k, where a block of `scales` begins."""
        scales = self.scales
        if scales is not None and model.scale_block is not None:
            scales = scales[:, start // model.scale_block : -(-stop // model.scale_block)]
        return dataclasses.replace(self, codes=self.codes[:, start:stop], scales=scales)

    def factor(self, start: int, stop: int) -> Float32:
        """[R], the factor of the products in a range of k. ValueError if they have several."""
        if self.scale_inv is None:
            return np.ones(len(self.codes), np.float32)
        block = self.block or max(1, self.codes.shape[1])
        first, last = start // block, max(start, stop - 1) // block
        if first != last:
            raise ValueError(
                f"scale_inv changes every {block} products, within a chain over k={start}..{stop}: choose a plan that "
                f"flushes as often, as plan='INSTRUCTION;flush={block};factors=flush', or an instruction that takes "
                f"such factors ('fp8sim mma' lists them)"
            )
        return np.ascontiguousarray(self.scale_inv[:, first])


def resolve(plan: GemmPlan, a_format: str | None, b_format: str | None, accumulator: str | None = None) -> MmaModel:
    """The instruction of `plan` for operands of these formats; None leaves one to the plan.

    Raises:
        ValueError: the instruction does not accept them; the message lists what it accepts.
    """
    a_format, b_format = plan.widen or a_format, plan.widen or b_format
    return parse_instruction(plan.instruction, a_format, b_format, accumulator)


def multiply(a: Operand, b: Operand, c: Array | None, plan: GemmPlan, accumulator: str | None = None) -> Array:
    """The sums of products before their rounding to the output's format, factors applied.

    Args:
        a: [M, K]. b: [N, K].
        c: [M, N], in the accumulator's dtype: where the first chain starts, or with `flush` or `split_k` the float32
            accumulator of the first part. None: +0.
        plan: the order of operations.
        accumulator: "float16" or "float64" where the instruction has several; None: its usual one.

    Returns:
        [M, N], float32; float64 for a binary64 instruction.

    Raises:
        ValueError: operands that the instruction does not accept, factors that the plan cannot apply.
    """
    model = resolve(plan, a.format, b.format, accumulator)
    a, b = _widened(a, plan.widen), _widened(b, plan.widen)
    parts = plan.segments(a.codes.shape[1], model.k)
    _check(plan, model, a, b, len(parts))
    sums = [_part(a, b, c if i == 0 else None, plan, model, chains) for i, chains in enumerate(parts)]
    total = sums[0] if len(sums) == 1 else _merged(sums, plan.merge)
    if total.dtype == np.float64:
        return total
    total = total.astype(np.float32)
    if plan.factors is Place.EPILOGUE and (a.scale_inv is not None or b.scale_inv is not None):
        k = a.codes.shape[1]
        _promote(total, total, a.factor(0, k), b.factor(0, k), plan, _NO_ADDITION)
    return total


def _check(plan: GemmPlan, model: MmaModel, a: Operand, b: Operand, parts: int) -> None:
    if model.accumulator != "float32" and (plan.flush is not None or parts > 1):
        raise ValueError(f"{plan}: a sum in {model.accumulator} is one chain; flush and split_k add in float32")
    if model.accumulator == "float64" and (a.scale_inv is not None or b.scale_inv is not None):
        raise ValueError(f"{plan}: a binary64 sum takes no scale factors: multiply the result")
    if model.scale_block is not None:
        unit = plan.flush or plan.block_k or model.k
        if unit % model.scale_block:
            raise ValueError(f"{plan}: cuts K inside of the {model.scale_block} products that share a factor")


@functools.cache
def check_widening(widen: str | None, format: str) -> None:
    """ValueError unless `widen`, a plan's, holds every number of `format`."""
    if widen is None or widen == format:
        return
    bits = formats.parse(format).bits
    if bits > 16 and formats.parse(widen).bits < bits:
        raise _unheld(widen, format)
    if bits <= 16:
        codes = np.arange(1 << bits, dtype=np.uint32).astype(operand_dtype(format))
        _widened(Operand(codes[None], format), widen)


def _unheld(widen: str, format: str) -> ValueError:
    return ValueError(f"widen={widen} does not hold every number of {format}")


def _widened(x: Operand, widen: str | None) -> Operand:
    """x in another format, exactly."""
    if widen is None or widen == x.format:
        return x
    target = formats.parse(widen)
    numbers = casting.decode(x.codes, x.format, dtype="float32")
    codes = casting.encode(numbers, target, overflow=Overflow.INFINITY)
    back = casting.decode(codes, target, dtype="float32")
    if not np.array_equal(back, numbers, equal_nan=True):
        raise _unheld(widen, x.format)
    return dataclasses.replace(x, codes=codes.astype(operand_dtype(widen)), format=widen)


def _part(
    a: Operand, b: Operand, c: Array | None, plan: GemmPlan, model: MmaModel, chains: Sequence[tuple[int, int]]
) -> Array:
    """The sum over one part of K [M, N]."""
    if plan.flush is None:
        start, stop = chains[0]
        return _chain(a.cut(start, stop, model), b.cut(start, stop, model), c, model)
    shape = (len(a.codes), len(b.codes))
    total = np.zeros(shape, np.float32) if c is None else c.astype(np.float32)
    for start, stop in chains:
        partial = _chain(a.cut(start, stop, model), b.cut(start, stop, model), None, model)
        row = column = None
        if plan.factors is Place.FLUSH:
            row, column = a.factor(start, stop), b.factor(start, stop)
        _promote(total, partial, row, column, plan, _FUSED if plan.fused else _SEPARATE)
    return total


def _chain(a: Operand, b: Operand, c: Array | None, model: MmaModel) -> Array:
    result: Array = chain(a.codes, b.codes, c, model=model, a_scales=a.scales, b_scales=b.scales)
    return result


def _promote(
    target: Float32, partial: Array, row: Float32 | None, column: Float32 | None, plan: GemmPlan, addition: int
) -> None:
    factors = _NO_FACTORS if row is None else _SUCCESSIVE_OR_PRODUCT[plan.product]
    _core.promote(target, partial, row, column, factors, addition)


def _merged(parts: list[Array], merge: Merge) -> Array:
    """The parts added in float32."""
    while merge is Merge.TREE and len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [_sum(pair) for pair in pairs]
    return _sum(parts[::-1] if merge is Merge.DESCENDING else parts)


def _sum(parts: list[Array]) -> Array:
    total = np.array(parts[0], np.float32)
    for part in parts[1:]:
        _core.promote(total, part, None, None, _NO_FACTORS, _SEPARATE)
    return total
