"""Faults that leave their mark in a whole GEMM: a forgotten tail of K, a wrong factor, an operand that was not cast."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim.analysis.explaining import exact
from fp8sim.analysis.explaining.exact import Doubles, Mask
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.analysis.explaining.outputs import Array, differs, rounded
from fp8sim.analysis.explaining.problem import Indices, Problem, rows_of
from fp8sim.mma import gemm
from fp8sim.mma.gemm import Operand
from fp8sim.rounding import Rounding

_TILES = (8, 16, 32, 64, 128, 256)
_TAIL_CANDIDATES = 64
_SMALL = 4
EXPLAINED = 0.1
"""A fault that leaves more than this share of the deviation is not the one."""
_NOTHING = 0.01
"""A factor below which a sum is not there."""
_FEWEST = 8
"""Elements that differ, below which some factor fits anything."""


@dataclass(frozen=True)
class Fault:
    """What would make an output differ as it does.

    Attributes:
        kind: "missing_tail", "wrong_factor", "not_cast", "tie_rule" or "mistake" (`mistakes`).
        text: the fault in words.
        exact: whether it reproduces every bit; otherwise it brings every element within the rounding bound, and a
            mistake leaves a tenth of the deviation or less.
        details: numbers: where along k, in which rows and columns, which factor.
    """

    kind: str
    text: str
    exact: bool
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def tie_rule(count: int) -> Fault:
    """Every element that differs is a tie."""
    text = f"all {count} elements that differ are ties of the output's rounding: it breaks them otherwise"
    return Fault("tie_rule", text, False, {"ties": count})


def locate(problem: Problem, hypotheses: Sequence[Hypothesis], wrong: Mask, beyond: Mask) -> list[Fault]:
    """What brings every element within the rounding bound; a forgotten tail of K apart.

    Where a fault changes everything, the closest hypothesis is so by chance: the loosest bound of all counts.
    """
    hypothesis, bound = hypotheses[0], _loosest(problem, hypotheses)
    found = list(_not_cast(problem, hypothesis, bound)) if beyond.any() else []
    return found or list(_wrong_factor(problem, hypothesis, wrong, bound))


def _loosest(problem: Problem, hypotheses: Sequence[Hypothesis]) -> Doubles:
    """[M, N], over hypotheses that cast as the first does."""
    first = hypotheses[0]
    alike = [one for one in hypotheses if (one.casts, one.output) == (first.casts, first.output)]
    unlike = {(one.plan.instruction, one.plan.widen, one.plan.flush): one for one in reversed(alike)}
    bounds = (exact.bound_of(problem, one, *problem.pair(one)) for one in unlike.values())
    return functools.reduce(np.maximum, bounds)


# A tail of K that was forgotten


def missing_tail(problem: Problem, hypotheses: Sequence[Hypothesis]) -> tuple[Fault, Hypothesis] | None:
    """A shorter sum that reproduces every bit, and by which hypothesis; a few elements are tried before all."""
    small = _few(problem.m), _few(problem.n)
    alike = _of_equal_sums([hypothesis for hypothesis in hypotheses if hypothesis.plan.split_k == 1])
    for stop in _stops(problem.k):
        for members in alike[:_TAIL_CANDIDATES]:
            for hypothesis in _summing_to(problem, members, stop, *small):
                if _summing_to(problem, [hypothesis], stop):
                    missing = problem.k - stop
                    text = f"the last {missing} of {problem.k} products are missing: {hypothesis} of the first {stop}"
                    details = {"k": [stop, problem.k], "hypothesis": str(hypothesis)}
                    return Fault("missing_tail", text, True, details), hypothesis
    return None


def _of_equal_sums(hypotheses: Iterable[Hypothesis]) -> list[list[Hypothesis]]:
    """Hypotheses that differ in their epilogues alone, together."""
    found: dict[tuple[Any, ...], list[Hypothesis]] = {}
    for hypothesis in hypotheses:
        plan = dataclasses.replace(hypothesis.plan, rounding=Rounding.TIES_TO_EVEN)
        found.setdefault((plan, *hypothesis.casts, hypothesis.cast_through), []).append(hypothesis)
    return list(found.values())


def _stops(k: int) -> list[int]:
    """Where a loop over K may end too early: before the last element, the ragged tile, or a whole one."""
    ends = {k - 1, *(end for tile in _TILES for end in (k // tile * tile, k - tile, k // tile * tile - tile))}
    return sorted((end for end in ends if 0 < end < k), reverse=True)


def _few(count: int) -> Indices:
    return np.unique(np.linspace(0, count - 1, min(count, _SMALL)).astype(np.intp))


def _summing_to(
    problem: Problem,
    alike: Sequence[Hypothesis],
    stop: int,
    rows: Indices | None = None,
    columns: Indices | None = None,
) -> list[Hypothesis]:
    """Those of hypotheses of equal sums that give the output from the first `stop` products."""
    assert problem.actual is not None
    actual = problem.actual if rows is None or columns is None else problem.cut(rows, columns)
    try:
        sums = _sums(problem, alike[0], stop, rows, columns)
    except ValueError:  # a cut inside of a block of factors
        return []
    outputs = ((hypothesis, rounded(sums, hypothesis, problem.container)) for hypothesis in alike)
    return [found for found, codes in outputs if not differs(codes, actual, problem.container).any()]


def _sums(problem: Problem, hypothesis: Hypothesis, stop: int, rows: Indices | None, columns: Indices | None) -> Array:
    model = problem.model(hypothesis)
    if model.scale_block is not None and stop % model.scale_block:
        raise ValueError(f"k={stop} lies within a block of {model.scale_block}")
    c = problem.c
    if c is not None and rows is not None and columns is not None:
        c = np.ascontiguousarray(c[np.ix_(rows, columns)])
    a, b = (x.cut(0, stop, model) for x in problem.pair(hypothesis, rows, columns))
    return gemm.multiply(a, b, c, hypothesis.plan)


# A factor that is wrong in one place


def _wrong_factor(problem: Problem, hypothesis: Hypothesis, wrong: Mask, bound: Doubles) -> Iterator[Fault]:
    """The block of K whose share of the sum, times one number, is what the elements that differ lack."""
    a, b = problem.pair(hypothesis)
    rows, columns = (np.flatnonzero(wrong.any(axis=axis)) for axis in (1, 0))
    deviation = (exact.actual_numbers(problem) - exact.exact_sums(problem, hypothesis, a, b))[np.ix_(rows, columns)]
    bound = bound[np.ix_(rows, columns)]
    model = problem.model(hypothesis)
    left, right = exact.operand_numbers(a, model)[rows], exact.operand_numbers(b, model)[columns]
    known = np.isfinite(deviation)
    if known.sum() < _FEWEST:
        return
    best: tuple[float, float, int, int] | None = None
    for start, stop in _blocks(problem.k, a, b):
        share = left[:, start:stop] @ right[:, start:stop].T
        change = _slope(share[known], deviation[known])
        rest = np.where(known, deviation - change * share, 0.0)
        size = float(np.linalg.norm(rest))
        if change and not exact.is_outside(rest, bound).any() and (best is None or size < best[0]):
            best = (size, change, start, stop)
    if best is not None and best[0] <= EXPLAINED * float(np.linalg.norm(deviation[known])):
        yield _factor_fault(problem, best, rows, columns)


def _factor_fault(
    problem: Problem, best: tuple[float, float, int, int], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> Fault:
    _, change, start, stop = best
    where = [[int(x[0]), int(x[-1])] for x in (rows, columns)]
    part = "the whole sum" if stop - start == problem.k else f"the products of k={start}..{stop - 1}"
    place = f"{part} in rows {where[0][0]}..{where[0][1]}, columns {where[1][0]}..{where[1][1]}"
    cause = f"a wrong factor{_owner(problem, rows, columns)}"
    times = f"count {1 + change:.4g} times: {cause}"
    text = f"{place} {times if abs(1 + change) > _NOTHING else 'count nothing: not added, or not written'}"
    details = {"k": [start, stop], "rows": where[0], "columns": where[1], "factor": 1 + change}
    return Fault("wrong_factor", text, False, details)


def _owner(problem: Problem, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> str:
    """Whose factor it is: one of a changes whole rows, one of b whole columns."""
    all_rows, all_columns = len(rows) == problem.m, len(columns) == problem.n
    if all_rows == all_columns:
        return ""
    return " of b" if all_rows else " of a"


def _blocks(k: int, a: Operand, b: Operand) -> list[tuple[int, int]]:
    """Ranges of k that share a factor, or that a loop over K takes at once; all of it first."""
    shared = [x.block or k for x in (a, b)] + [-(-k // x.scales.shape[1]) for x in (a, b) if x.scales is not None]
    sizes = dict.fromkeys([k, math.gcd(*shared), *(tile for tile in _TILES[2:] if tile < k)])
    return [(start, min(k, start + size)) for size in sizes for start in range(0, k, size)]


def _slope(x: Doubles, y: Doubles) -> float:
    """The least-squares slope of y over x through the origin."""
    square = float(x @ x)
    return float(x @ y) / square if square else 0.0


# An operand that was not cast


def _not_cast(problem: Problem, hypothesis: Hypothesis, bound: Doubles) -> Iterator[Fault]:
    """Operands whose cast the output does without, within the bound."""
    a, b = problem.pair(hypothesis)
    deviation = exact.actual_numbers(problem) - exact.exact_sums(problem, hypothesis, a, b)
    size = float(np.linalg.norm(deviation[np.isfinite(deviation)]))
    cast = {"a": hypothesis.a, "b": hypothesis.b}
    model = problem.model(hypothesis)
    numbers = {"a": exact.operand_numbers(a, model), "b": exact.operand_numbers(b, model)}
    raw = {name: rows_of(problem.given(name), name).astype(np.float64) for name, text in cast.items() if text}
    best: tuple[float, tuple[str, ...]] = (EXPLAINED * size, ())
    for names in [("a",), ("b",), ("a", "b")]:
        if all(name in raw for name in names):
            used = numbers | {name: raw[name] for name in names}
            rest = exact.actual_numbers(problem) - used["a"] @ used["b"].T
            left = float(np.linalg.norm(rest[np.isfinite(rest)]))
            if left <= best[0] and not exact.is_outside(rest, bound).any():
                best = (left, names)
    if best[1]:
        casts = ", ".join(f"{name}={cast[name]}" for name in best[1])
        text = f"{' and '.join(best[1])} went into the products without a cast: {casts} was left out"
        yield Fault("not_cast", text, False, {"operands": list(best[1])})
