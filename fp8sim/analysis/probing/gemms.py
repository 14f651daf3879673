"""How a GEMM adds over K, read off its results: where sums are promoted or split, and which plan gives all its bits.

A GEMM is a function of codes: a [M, K], b [N, K] -> float32 [M, N]. In a chain of FP8 instructions that cut 13 bits
below the largest term, a product of 1 hides one of 2^-14; in sums that are added in float32 afterwards, it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fp8sim import mma
from fp8sim.analysis.explaining import Explanation, Hypothesis, explain
from fp8sim.analysis.probing.operands import Array, encoded
from fp8sim.mma.gemm import Operand, multiply, resolve
from fp8sim.mma.plans import GemmPlan, Merge

Gemm = Callable[[Array, Array], Array]

_TILE = 16
"""M and N of the impulses; libraries want multiples of it."""

_HIDDEN = 14
"""One more than an FP8 instruction of Ada and Hopper keeps below its largest term."""

_STRETCH = 32
"""How many neighbours along K are of one size in random operands."""

_FLUSHES = (None, 32, 64, 128, 256, 512)
_SPLITS = (1, 2, 3, 4, 8)


@dataclass(frozen=True)
class Order:
    """How a GEMM adds over K.

    Attributes:
        name: what was called.
        k: products of each sum.
        boundaries: the k at which a sum ends and another begins; empty for one unbroken chain.
        period: their distance, if it is always the same; None for one chain or distances that differ.
        plans: those that give every bit of a product of random numbers; of those that do the same operations, one.
        elements: compared with each plan.
    """

    name: str
    k: int
    boundaries: tuple[int, ...]
    period: int | None
    plans: tuple[str, ...]
    elements: int


def stand_in(plan: GemmPlan, fmt: str = "float8_e4m3fn") -> Gemm:
    """The simulator's GEMM by a plan."""

    def run(a: Array, b: Array) -> Array:
        return multiply(Operand(a, fmt), Operand(b, fmt), None, plan)

    return run


def order_of(gemm: Gemm, name: str, k: int, instruction: str, fmt: str = "float8_e4m3fn", size: int = 64) -> Order:
    """Boundaries by impulses, then the plans that `explain` does not rule out.

    Args:
        gemm: takes [M, k] and [N, k] for M and N of 16 and of `size`.
        instruction: what it is built from, as "sm90.wgmma".
        fmt: of its operands: float8_e4m3fn, or another whose numbers reach 2^-7.
    """
    places = boundaries(gemm, k, fmt)
    distances = set(np.diff((0, *places, k))[:-1].tolist()) if places else set()
    found = plans_of(gemm, k, instruction, fmt, size)
    return Order(
        name,
        k,
        places,
        distances.pop() if len(distances) == 1 else None,
        tuple(str(members.first.plan) for members in found.classes),
        found.elements,
    )


def boundaries(gemm: Gemm, k: int, fmt: str) -> tuple[int, ...]:
    """The k whose product is not hidden by that of k - 1; _TILE of them at a time, on a diagonal."""
    found = []
    for start in range(1, k, _TILE):
        places = np.arange(start, min(start + _TILE, k))
        a, b = np.zeros((2, _TILE, k))
        rows = np.arange(len(places))
        for operand in (a, b):
            operand[rows, places - 1] = 1
            operand[rows, places] = 2.0 ** -(_HIDDEN // 2)
        d = gemm(encoded(a, fmt), encoded(b, fmt))[rows, rows]
        found += [int(place) for place, result in zip(places, d, strict=True) if result != 1]
    return tuple(found)


def plans_of(gemm: Gemm, k: int, instruction: str, fmt: str, size: int = 64) -> Explanation:
    """`explain` of a product of random numbers: every period, split and merge of the instruction.

    Their size changes along K, so that the partial sums' addition in float32 is inexact, and its order shows.
    """
    rng = np.random.default_rng([size, k])
    sizes = np.repeat(2.0 ** rng.integers(-6, 5, -(-k // _STRETCH)), _STRETCH)[:k]
    a, b = (encoded(rng.standard_normal((size, k)) * sizes, fmt) for _ in "ab")
    return explain(
        gemm(a, b),
        a,
        np.ascontiguousarray(b.T),
        a_format=fmt,
        b_format=fmt,
        output="float32",
        hypotheses=[Hypothesis(plan, output="float32") for plan in plans(instruction, k, fmt)],
    )


def plans(instruction: str, k: int, fmt: str) -> list[GemmPlan]:
    """What the order of a library's GEMM may be."""
    step = resolve(GemmPlan(instruction), fmt, fmt).k
    flushes = [flush for flush in _FLUSHES if flush is None or step <= flush < k]
    found = []
    for flush in flushes:
        for split in _SPLITS:
            merges = Merge if split > 2 else (Merge.ASCENDING,)
            found += [GemmPlan(instruction, flush=flush, split_k=split, merge=merge) for merge in merges]
    return found


# torch._scaled_mm


def scaled_mm(fmt: str, *, fast: bool) -> Gemm:
    """`torch._scaled_mm` with a factor of 1 for each operand and a float32 result, on the CUDA device."""
    import torch

    dtype = getattr(torch, fmt)

    def run(a: Array, b: Array) -> Array:
        left, right = (torch.from_numpy(np.ascontiguousarray(x)).cuda().view(dtype) for x in (a, b))
        one = torch.ones((), device="cuda")
        d = torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.float32, use_fast_accum=fast)
        found: Array = d.cpu().numpy()
        return found

    return run


def scaled_mm_orders(architecture: str, lengths: tuple[int, ...]) -> list[Order]:
    """Every length, with fast accumulation and without."""
    instruction = (
        f"{architecture}.wgmma" if f"{architecture}.wgmma.e4m3.e4m3.f32" in mma.MODELS else f"{architecture}.mma"
    )
    fmt = "float8_e4m3fn"
    return [
        order_of(scaled_mm(fmt, fast=fast), f"torch._scaled_mm(use_fast_accum={fast})", k, instruction)
        for fast in (True, False)
        for k in lengths
    ]
