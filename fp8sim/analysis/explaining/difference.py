"""What is left unexplained: how many elements differ from a hypothesis, where, by how much, and what could do that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import casting, formats
from fp8sim.analysis.explaining import exact, faults, mistakes
from fp8sim.analysis.explaining.faults import Fault
from fp8sim.analysis.explaining.hypothesis import UNROUNDED, Hypothesis
from fp8sim.analysis.explaining.outputs import differs, numbers_of, ordinals, rounded
from fp8sim.analysis.explaining.problem import Problem
from fp8sim.rounding import Rounding


@dataclass(frozen=True)
class Difference:
    """How an output differs from what a hypothesis gives.

    Attributes:
        hypothesis: the closest one.
        elements: of the output.
        differing: how many of them differ in any bit; any NaN equals any NaN.
        rows, columns: the first and last that have one.
        pattern: "everything", "one element", "one row", "one column", "whole rows", "whole columns", "one block" (all
            elements of a rectangle, or nearly) or "scattered".
        ulps: the largest distance, in codes of the output's format; infinite where one of both is NaN.
        ties: differing elements whose sums lie midway between two numbers of the output's format.
        beyond_bound: elements farther from the exact sum than `mma.error_bound`, a worst case, lets rounding take them,
            and those that are not finite although nothing overflows.
        deviation, usual_deviation: norm of what the output, and the hypothesis, lack to the exact sums, over the norm
            of those; of elements where all three are finite.
        faults: what would do this.
    """

    hypothesis: Hypothesis
    elements: int
    differing: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    pattern: str
    ulps: float
    ties: int
    beyond_bound: int
    deviation: float
    usual_deviation: float
    faults: tuple[Fault, ...]

    @property
    def rounding_possible(self) -> bool:
        """Whether another order or rounding alone could be the cause."""
        return self.beyond_bound == 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a distance to NaN is null."""
        plain = ("elements", "differing", "rows", "columns", "pattern", "ties", "beyond_bound", "rounding_possible")
        found = {name: getattr(self, name) for name in (*plain, "deviation", "usual_deviation")}
        ulps = self.ulps if np.isfinite(self.ulps) else None
        return {
            "hypothesis": str(self.hypothesis),
            **found,
            "ulps": ulps,
            "faults": [fault.to_dict() for fault in self.faults],
        }


def examine(problem: Problem, hypotheses: Sequence[Hypothesis]) -> Difference:
    """How the output differs from the first of `hypotheses`, the closest, or from the one that a fault explains."""
    assert problem.actual is not None
    tail = faults.missing_tail(problem, hypotheses)
    hypothesis = hypotheses[0] if tail is None else tail[1]
    sums = problem.sums(hypothesis)
    expected = rounded(sums, hypothesis, problem.container)
    wrong = differs(expected, problem.actual, problem.container)
    rows, columns = (np.flatnonzero(wrong.any(axis=axis)) for axis in (1, 0))
    ties = int((wrong & _ties(sums, hypothesis)).sum())
    beyond = exact.beyond_bound(problem, hypothesis)
    if tail is not None:
        found = [tail[0]]
    else:
        found = [*mistakes.mistakes(problem, hypothesis, wrong), *faults.locate(problem, hypotheses, wrong, beyond)]
        found = found or mistakes.by_line(problem, hypothesis, wrong)
    if 0 < ties == int(wrong.sum()):
        found = [faults.tie_rule(ties), *found]
    deviation, usual = _deviations(problem, hypothesis, expected)
    return Difference(
        hypothesis=hypothesis,
        elements=wrong.size,
        differing=int(wrong.sum()),
        rows=(int(rows[0]), int(rows[-1])),
        columns=(int(columns[0]), int(columns[-1])),
        pattern=_pattern(wrong, rows, columns),
        ulps=_ulps(expected, problem, hypothesis, wrong),
        ties=ties,
        beyond_bound=int(beyond.sum()),
        deviation=deviation,
        usual_deviation=usual,
        faults=tuple(found),
    )


def _deviations(problem: Problem, hypothesis: Hypothesis, expected: NDArray[Any]) -> tuple[float, float]:
    """How far output and hypothesis are from the exact sums, relative to those."""
    a, b = problem.pair(hypothesis)
    sums = exact.exact_sums(problem, hypothesis, a, b)
    pair = exact.actual_numbers(problem), numbers_of(expected, problem.container)
    known = np.isfinite(sums) & np.isfinite(pair[0]) & np.isfinite(pair[1])
    size = float(np.linalg.norm(sums[known])) or 1.0
    of_actual, of_expected = (float(np.linalg.norm((x - sums)[known])) / size for x in pair)
    return of_actual, of_expected


def _pattern(wrong: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> str:
    """The shape of what differs. Some elements of a wrong part agree by chance: nine tenths are all."""
    m, n = wrong.shape
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    dense = wrong.sum() >= 0.9 * height * width
    for name, holds in (
        ("one element", wrong.sum() == 1),
        ("everything", dense and height >= 0.9 * m and width >= 0.9 * n),
        ("one row", height == 1 and m > 1),
        ("one column", width == 1 and n > 1),
        ("whole rows", dense and width >= 0.9 * n),
        ("whole columns", dense and height >= 0.9 * m),
        ("one block", dense),
    ):
        if holds:
            return name
    return "scattered"


def _ties(sums: NDArray[Any], hypothesis: Hypothesis) -> NDArray[np.bool_]:
    """Where a sum lies midway between two numbers of the output's format: rounding to both sides of it differs."""
    if hypothesis.output in UNROUNDED:
        return np.zeros(sums.shape, np.bool_)
    away, inward = (
        casting.encode(sums, hypothesis.output, rounding=mode)
        for mode in (Rounding.TIES_TO_AWAY, Rounding.TIES_TO_ZERO)
    )
    midway: NDArray[np.bool_] = away != inward
    return midway


def _ulps(expected: NDArray[Any], problem: Problem, hypothesis: Hypothesis, wrong: NDArray[np.bool_]) -> float:
    """In codes of the hypothesis's output format if the actual numbers lie on its grid, else of their own."""
    assert problem.actual is not None
    fmt, pair = problem.container, [expected[wrong], problem.actual[wrong]]
    if hypothesis.output not in (fmt, *UNROUNDED):
        numbers = [numbers_of(codes, fmt) for codes in pair]
        codes = [casting.encode(x, formats.parse(hypothesis.output), overflow="INFINITY") for x in numbers]
        kept = numbers_of(codes[1], hypothesis.output)
        if np.array_equal(kept, numbers[1], equal_nan=True):
            fmt, pair = hypothesis.output, codes
    away = np.abs(ordinals(pair[0], fmt) - ordinals(pair[1], fmt))
    return float(np.nan_to_num(away, nan=np.inf).max())
