"""How a GEMM adds over K, read off its results: where sums are promoted or split, and which plan gives all its bits.

A GEMM is a function of codes: a [M, K], b [N, K] -> [M, N]. Beside a product of 1, one of 1.5 * 2^-24 is lost in a
chain of a tensor core's instructions, whatever it keeps: it is cut, or the sum is rounded toward zero. Where partial
sums are added in float32, ties to even, it lifts the sum to 1 + 2^-23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fp8sim import casting, formats
from fp8sim.analysis.explaining import Explanation, Hypothesis, explain
from fp8sim.analysis.probing.operands import Array, Random, encoded
from fp8sim.mma import MODELS
from fp8sim.mma.gemm import Operand, multiply, resolve
from fp8sim.mma.plans import GemmPlan, Merge, Place, Product
from fp8sim.rounding import Overflow, Rounding

Gemm = Callable[..., Array]
"""a [M, K] and b [N, K] in codes, and where the subject has `factor_block`, float32 factors [M, B] and [N, B] ->
[M, N], float32 or the codes of `output`."""

_LARGE, _SMALL = (2.0**8, 2.0**8), (1.5 * 2.0**-4, 2.0**-4)
"""The factors of two products of which one is 1.5 * 2^-24 of the other, in numbers that every format has."""

_STRETCH = 32
"""How many neighbours along K are of one size in random operands."""

_FLUSHES = (None, 32, 64, 128, 256, 512)
_SPLITS = (1, 2, 3, 4, 8)
_FP8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Subject:
    """A GEMM whose order is asked.

    Attributes:
        name: what is called.
        gemm: the call.
        instruction: what it is built from, as "sm90.wgmma".
        fmt: of both operands: float8_e4m3fn, or another whose numbers reach from 2^-6 to 2^8; "tf32" for float32.
        output: the format of its result.
        predicted: the plan that it should follow; None: nobody says.
        factor_block: products along K that share factors; None: it takes none.
        size: M and N.
        probe: which of P10 to P13 of docs/probe.md asks.
        machine_code: its instructions, as far as they are known, after `gemm` has run.
    """

    name: str
    gemm: Gemm
    instruction: str
    fmt: str = "float8_e4m3fn"
    output: str = "float32"
    predicted: GemmPlan | None = None
    factor_block: int | None = None
    size: int = 64
    probe: str = "P11"
    machine_code: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Order:
    """How a GEMM adds over K.

    Attributes:
        probe, name: what was asked of what.
        k: products of each sum.
        boundaries: the k at which a sum ends and another begins; empty for one unbroken chain; None where the output
            is too narrow to show them.
        period: their distance, if it is always the same; None for one chain or distances that differ.
        plans: those that give every bit of a product of random numbers: the predicted one alone if it does; of those
            that do the same operations, one.
        elements: compared with each plan.
        predicted: the plan that it should follow; None: nobody says.
        nearest: where no plan gives every bit, that of the fewest differences.
        machine_code: instructions that multiply and add; empty where they are not known.
    """

    probe: str
    name: str
    k: int
    boundaries: tuple[int, ...] | None
    period: int | None
    plans: tuple[str, ...]
    elements: int
    predicted: str | None = None
    nearest: str | None = None
    machine_code: tuple[str, ...] = ()

    @property
    def surprise(self) -> str | None:
        """What is not as predicted, or cannot be simulated."""
        if not self.plans:
            nearest = f"; the nearest is {self.nearest}" if self.nearest else ""
            return f"{self.name}, K = {self.k}: no plan gives its bits{nearest}"
        if self.predicted not in (None, *self.plans):
            return f"{self.name}, K = {self.k}: not {self.predicted}, but {', '.join(self.plans)}"
        return None


def stand_in(plan: GemmPlan, fmt: str = "float8_e4m3fn", output: str = "float32", factor_block: int = 128) -> Gemm:
    """The simulator's GEMM by a plan."""

    def run(a: Array, b: Array, a_factors: Array | None = None, b_factors: Array | None = None) -> Array:
        left, right = Operand(a, fmt, a_factors, factor_block), Operand(b, fmt, b_factors, factor_block)
        sums = multiply(left, right, None, plan)
        if output == "float32":
            return sums
        return casting.encode(sums, output, rounding=plan.rounding, overflow=Overflow.INFINITY)

    return run


def order_of(subject: Subject, k: int) -> Order:
    """Boundaries by impulses, then the plans that `explain` does not rule out. `size` rows and columns."""
    places = boundaries(subject, k) if subject.output == "float32" else None
    distances = set(np.diff((0, *places, k))[:-1].tolist()) if places else set()
    found = plans_of(subject, k)
    return Order(
        subject.probe,
        subject.name,
        k,
        places,
        distances.pop() if len(distances) == 1 else None,
        tuple(str(members.first.plan) for members in found.classes),
        found.elements,
        None if subject.predicted is None else str(subject.predicted),
        None if found.classes else str(found.rejected[0].first.plan),
        subject.machine_code(),
    )


def boundaries(subject: Subject, k: int) -> tuple[int, ...]:
    """The k whose product is not hidden by that of k - 1; `size` of them at a time, on a diagonal."""
    found = []
    for start in range(1, k, subject.size):
        places = np.arange(start, min(start + subject.size, k))
        rows = np.arange(len(places))
        pair = []
        for large, small in zip(_LARGE, _SMALL, strict=True):
            operand = np.zeros((subject.size, k))
            operand[rows, places - 1], operand[rows, places] = large, small
            pair.append(encoded(operand, subject.fmt))
        d = subject.gemm(*pair, *_ones(subject, k))[rows, rows]
        found += [int(place) for place, result in zip(places, d, strict=True) if result != _LARGE[0] * _LARGE[1]]
    return tuple(found)


def _ones(subject: Subject, k: int) -> list[Array]:
    if subject.factor_block is None:
        return []
    return [np.ones((subject.size, -(-k // subject.factor_block)), np.float32) for _ in "ab"]


def plans_of(subject: Subject, k: int) -> Explanation:
    """`explain` of a product of random numbers: the predicted plan, and unless it gives every bit, all that may be."""
    rng = np.random.default_rng([subject.size, k])
    a, b = (_codes(x, subject.fmt) for x in _random(rng, subject, k))
    factors = [(x * rng.uniform(0.3, 1.3, x.shape)).astype(np.float32) for x in _ones(subject, k)]
    actual = subject.gemm(a, b, *factors)
    of_a, of_b = (factors[0], np.ascontiguousarray(factors[1].T)) if factors else (None, None)

    def explained(plans: list[GemmPlan]) -> Explanation:
        return explain(
            actual,
            a,
            np.ascontiguousarray(b.T),
            a_format=subject.fmt,
            b_format=subject.fmt,
            a_scale_inv=of_a,
            b_scale_inv=of_b,
            output=subject.output,
            hypotheses=[Hypothesis(plan, output=subject.output) for plan in plans],
        )

    if subject.predicted is not None:
        found = explained([subject.predicted])
        if found.classes:
            return found
    return explained(list(possible_plans(subject, k)))


def _random(rng: Random, subject: Subject, k: int) -> list[Array]:
    """a and b [size, k]; their size changes along K, so that the partial sums' addition in float32 is inexact, and its
    order shows.

    A result of 16 bits has no room for what was lost in a sum of its size. So in every other row each product has its
    negative somewhere along K, and what was lost is all that is left; the others show how results are rounded.
    """
    sizes = np.repeat(np.exp2(rng.integers(-6, 5, -(-k // _STRETCH))), _STRETCH)[:k]
    a, b = (rng.standard_normal((subject.size, k)) * sizes for _ in "ab")
    if subject.output == "float32":
        return [a, b]
    order = rng.permutation(k)
    first, second = order[: k // 2], order[k // 2 : k // 2 * 2]
    a[::2, second] = a[::2, first]
    b[:, second] = -b[:, first]
    a[:, order[k // 2 * 2 :]] = 0
    return [a, b]


def _codes(x: Array, fmt: str) -> Array:
    """Codes that mean the same whatever becomes of tf32's low bits."""
    codes = encoded(x, fmt)
    low = np.uint32((1 << (32 - formats.parse("tf32").bits)) - 1)
    return codes & ~low if fmt == "tf32" else codes


def possible_plans(subject: Subject, k: int) -> Iterator[GemmPlan]:
    """What the order of the GEMM may be: every period, split and merge of its instruction, other instructions, other
    roundings of the result; with factors, where and how they are multiplied."""
    if subject.predicted is not None:
        yield subject.predicted
    widened = [GemmPlan("sm90.mma", widen="float16"), GemmPlan("sm80.mma", widen="float16")]
    bases = [GemmPlan(subject.instruction), *(widened if subject.fmt in _FP8 else [])]
    for base in bases:
        if subject.factor_block is None:
            yield from _cuts(base, subject.fmt, k)
        else:
            yield from _factored(base, subject.factor_block)
    flush = None if subject.predicted is None else subject.predicted.flush
    others = dict.fromkeys(".".join(name.split(".")[:2]) for name in MODELS)
    for other in others:
        if subject.factor_block is None and _accepts(other, subject.fmt):
            yield GemmPlan(other)
            if flush is not None:
                yield GemmPlan(other, flush=flush)
    if subject.output != "float32":
        for rounding in Rounding:
            if not rounding.is_stochastic:
                yield GemmPlan(subject.instruction, rounding=rounding)


def _cuts(base: GemmPlan, fmt: str, k: int) -> Iterator[GemmPlan]:
    step = resolve(base, fmt, fmt).k
    for flush in _FLUSHES:
        for split in _SPLITS if flush is None or step <= flush < k else ():
            for merge in Merge if split > 2 else (Merge.ASCENDING,):
                yield GemmPlan(base.instruction, widen=base.widen, flush=flush, split_k=split, merge=merge)


def _factored(base: GemmPlan, block: int) -> Iterator[GemmPlan]:
    for product in Product:
        for fused in (True, False):
            for flush in (block, block // 2, block // 4):
                yield GemmPlan(
                    base.instruction, widen=base.widen, flush=flush, factors=Place.FLUSH, product=product, fused=fused
                )


def _accepts(instruction: str, fmt: str) -> bool:
    try:
        resolve(GemmPlan(instruction), fmt, fmt)
    except ValueError:
        return False
    return True
