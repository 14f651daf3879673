"""Mistakes of a whole GEMM: codes read as another format, factors left out or misplaced, a result in the wrong place.

Each is tried in binary64. A likely cause is what leaves a tenth of the output's deviation or less; of several, those
that leave about as much as the best.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fp8sim.analysis.explaining import exact
from fp8sim.analysis.explaining.exact import Doubles, Mask
from fp8sim.analysis.explaining.faults import EXPLAINED, Fault
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.analysis.explaining.outputs import numbers_of
from fp8sim.analysis.explaining.problem import Indices, Problem
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import MmaModel

Reading = tuple[str, str, Doubles]
"""The mistake in words, whose it is, and the sums [M, N] that it gives; NaN where it says nothing of an element."""

_TAKEN_FOR = {
    "float8_e4m3fn": ("float8_e5m2", "float8_e4m3fnuz"),
    "float8_e5m2": ("float8_e4m3fn", "float8_e5m2fnuz"),
    "float8_e4m3fnuz": ("float8_e5m2fnuz", "float8_e4m3fn"),
    "float8_e5m2fnuz": ("float8_e4m3fnuz", "float8_e5m2"),
    "float16": ("bfloat16",),
    "bfloat16": ("float16",),
}
_AS_GOOD = 1.5
"""Mistakes that leave up to this many times what the best leaves are named, too."""
_PART = 512
"""Rows and columns that are looked at, from the first that differ."""
_LINES = 8
"""Rows or columns below which a number for each of the others fits anything."""


def mistakes(problem: Problem, hypothesis: Hypothesis, wrong: Mask) -> list[Fault]:
    """Mistakes that explain how the output deviates from the exact sums of `hypothesis`; `wrong` is where it does."""
    rows, columns = _part(wrong)
    a, b = problem.pair(hypothesis, rows, columns)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        actual, sums, start = _sums(problem, hypothesis, rows, columns)
        readings = [*_of_operands(a, b, problem.model(hypothesis), sums), *_of_results(sums, start)]
        return _fitting(actual, sums, readings)


def by_line(problem: Problem, hypothesis: Hypothesis, wrong: Mask) -> list[Fault]:
    """One number for each row or column, where nothing else explains the output: a bias, or a factor."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        actual, sums, _ = _sums(problem, hypothesis, *_part(wrong))
        return _fitting(actual, sums, _by_line(actual, sums))


def _sums(
    problem: Problem, hypothesis: Hypothesis, rows: Indices, columns: Indices
) -> tuple[Doubles, Doubles, Doubles | None]:
    """A part of the output, of the exact sums, and of c."""
    a, b = problem.pair(hypothesis, rows, columns)
    start = None if problem.c is None else problem.c[np.ix_(rows, columns)].astype(np.float64)
    actual = exact.actual_numbers(problem)[np.ix_(rows, columns)]
    return actual, exact.exact_sums(problem, hypothesis, a, b, start), start


def _part(wrong: Mask) -> tuple[Indices, Indices]:
    """Consecutive rows and columns; the same of both where the output is square, so that it can be transposed."""
    firsts = [int(np.flatnonzero(wrong.any(axis=axis))[0]) for axis in (1, 0)]
    if wrong.shape[0] == wrong.shape[1]:
        firsts = [min(firsts)] * 2
    begins = [max(0, min(first, size - _PART)) for first, size in zip(firsts, wrong.shape, strict=True)]
    rows, columns = (np.arange(x, min(x + _PART, size)) for x, size in zip(begins, wrong.shape, strict=True))
    return rows, columns


def _fitting(actual: Doubles, sums: Doubles, readings: list[Reading]) -> list[Fault]:
    """Faults of the readings that fit the output best, if well enough."""
    found: dict[str, tuple[float, Fault]] = {}
    for what, whose, other in readings:
        known = np.isfinite(actual) & np.isfinite(sums) & ~np.isnan(other)
        before, left, size = (float(np.linalg.norm(x[known])) for x in (actual - sums, actual - other, other))
        if 2 * known.sum() >= known.size and left < EXPLAINED * min(before, size):
            text = f"{what}: {whose}" if whose else what
            found.setdefault(text, (left / before, Fault("mistake", text, False, {"argument": whose} if whose else {})))
    best = min((share for share, _ in found.values()), default=0.0)
    return [fault for share, fault in found.values() if share <= _AS_GOOD * best]


# What an operand was taken for


def _of_operands(a: Operand, b: Operand, model: MmaModel, sums: Doubles) -> Iterator[Reading]:
    left, right = (exact.operand_numbers(x, model) for x in (a, b))
    start = sums - left @ right.T
    lefts, rights = (list(_readings(x, model)) for x in (a, b))
    yield from ((what, "a", wrong @ right.T + start) for what, wrong in lefts)
    yield from ((what, "b", left @ wrong.T + start) for what, wrong in rights)
    for what, wrong in lefts:
        yield from ((what, "a and b", wrong @ below.T + start) for same, below in rights if same == what)


def _readings(x: Operand, model: MmaModel) -> Iterator[tuple[str, Doubles]]:
    """The operand [R, K] with its factors, as a mistake reads it."""
    factors, block = exact.all_factors(x, model)

    def spread(found: Doubles) -> Doubles:
        whole: Doubles = np.repeat(found, block, axis=1)[:, : x.codes.shape[1]]
        return whole

    for fmt in _TAKEN_FOR.get(x.format, ()):
        yield f"codes read as {fmt}, not as {x.format}", numbers_of(x.codes, fmt) * spread(factors)
    if (factors != 1.0).any():
        numbers = exact.numbers_in(x)
        yield from ((f"factors {what}", numbers * spread(wrong)) for what, wrong in _of_factors(factors))


def _of_factors(factors: Doubles) -> Iterator[tuple[str, Doubles]]:
    """What becomes of factors [R, B]."""
    yield "left out", np.ones_like(factors)
    yield "divided by, not multiplied with", 1 / factors
    yield "applied twice", factors**2
    rows, blocks = factors.shape
    if blocks > 1:
        yield "of the block before along K", np.roll(factors, 1, axis=1)
        yield "of the next block along K", np.roll(factors, -1, axis=1)
    changes = np.flatnonzero((factors != factors[0]).any(axis=1))
    if not len(changes):
        return
    height = int(changes[0])
    yield f"of the line {height} before", _moved(factors, height, 0)
    yield f"of the line {height} behind", _moved(factors, -height, 0)
    if blocks > 1 and rows % height == 0:
        tall = factors[::height]
        for read in (tall.T.reshape(tall.shape), tall.reshape(tall.shape[::-1]).T):
            yield "read in the wrong order, as a transposed matrix", np.repeat(read, height, axis=0)


def _moved(x: Doubles, steps: int, axis: int) -> Doubles:
    """x with lines moved by `steps`; NaN where nothing comes from."""
    moved = np.roll(x, steps, axis=axis)
    np.moveaxis(moved, axis, 0)[: steps if steps > 0 else None][steps if steps < 0 else 0 :] = np.nan
    return moved


# What became of the sums


def _of_results(sums: Doubles, start: Doubles | None) -> Iterator[Reading]:
    for axis, name in enumerate(("row", "column")):
        yield f"every {name} holds what belongs in the one before it", "", _moved(sums, 1, axis)
        yield f"every {name} holds what belongs in the next one", "", _moved(sums, -1, axis)
    if sums.shape[0] == sums.shape[1]:
        yield "the output is transposed", "", sums.T
    yield "negative sums became 0, as by a fused ReLU", "", np.maximum(sums, 0.0)
    if start is not None:
        yield "left out", "c", sums - start
        yield "added twice", "c", sums + start


def _by_line(actual: Doubles, sums: Doubles) -> list[Reading]:
    """One number for each row or column: added to it, as a bias is, or a factor of it."""
    found: list[Reading] = []
    known = np.isfinite(actual) & np.isfinite(sums)
    right, wrong = np.where(known, sums, 0.0), np.where(known, actual, 0.0)
    for axis, name in enumerate(("column", "row")):
        if sums.shape[axis] < _LINES:
            continue
        count, square = known.sum(axis, keepdims=True), (right * right).sum(axis, keepdims=True)
        shift = (wrong - right).sum(axis, keepdims=True) / np.maximum(count, 1)
        slope = (wrong * right).sum(axis, keepdims=True) / np.where(square, square, 1.0)
        found.append((f"each {name} has a number of its own added to it, as a bias", "", sums + shift))
        found.append((f"each {name} has a wrong factor of its own", "", sums * slope))
    return found
