"""Hypotheses by what they compute, and each computation against the output: on a few elements, then on all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8sim.analysis.explaining import computation
from fp8sim.analysis.explaining.computation import Setting
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.analysis.explaining.outputs import differs, ordinals, rounded
from fp8sim.analysis.explaining.problem import Indices, Problem
from fp8sim.mma.architectures import MODELS
from fp8sim.mma.evidence import Evidence
from fp8sim.mma.models import MmaModel

Advance = Callable[[str], None]

SAMPLES = (4, 16, 48)
"""Rows and columns that are tried before all of them."""
_CANDIDATES = (64, 16, 4)
"""How many of the classes that came closest are looked at in the larger samples, and in everything."""


@dataclass(frozen=True)
class EquivalenceClass:
    """Hypotheses that are one computation for the shape and factors at hand, and how it compares.

    Attributes:
        hypotheses: all of them, the likelier first.
        model: the instruction of the first.
        compared: elements of the output that were compared.
        differing: how many of those differ; 0 if the class reproduces every bit.
    """

    hypotheses: tuple[Hypothesis, ...]
    model: MmaModel
    compared: int = 0
    differing: int = 0

    @property
    def first(self) -> Hypothesis:
        """The likeliest of the hypotheses."""
        return self.hypotheses[0]

    @property
    def evidence(self) -> dict[str, Mapping[str, Evidence]]:
        """What confirms the arithmetic, by category, for every instruction that has it."""
        key = computation.arithmetic(self.model)
        return {row.name: row.evidence for row in MODELS.values() if computation.arithmetic(row) == key}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        evidence = {
            name: {category: str(known) for category, known in rows.items()} for name, rows in self.evidence.items()
        }
        names = [str(hypothesis) for hypothesis in self.hypotheses]
        return {"hypotheses": names, "compared": self.compared, "differing": self.differing, "evidence": evidence}


def group(
    problem: Problem, hypotheses: Sequence[Hypothesis]
) -> tuple[list[EquivalenceClass], list[tuple[Hypothesis, str]]]:
    """Hypotheses by what they compute here, in the order of the first of each; and those that do not fit."""
    members: dict[tuple[Any, ...], list[Hypothesis]] = {}
    refused: list[tuple[Hypothesis, str]] = []
    keys = Keys(problem)
    for hypothesis in hypotheses:
        try:
            members.setdefault(keys.of(hypothesis), []).append(hypothesis)
        except ValueError as error:
            refused.append((hypothesis, str(error)))
    return [EquivalenceClass(tuple(found), problem.model(found[0])) for found in members.values()], refused


class Keys:
    """What hypotheses compute; everything is worked out once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._sums: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def of(self, hypothesis: Hypothesis) -> tuple[Any, ...]:
        sums, largest = self._of_sums(hypothesis)
        return (sums, computation.output(hypothesis, largest))

    def of_sums(self, hypothesis: Hypothesis) -> Any:
        """The same without the output's rounding."""
        return self._of_sums(hypothesis)[0]

    def _of_sums(self, hypothesis: Hypothesis) -> tuple[Any, ...]:
        plan, casts = hypothesis.plan, hypothesis.casts
        order = (plan.instruction, plan.widen, plan.flush, plan.block_k, plan.split_k, plan.merge)
        memo = (*order, plan.factors, plan.product, plan.fused, *casts, hypothesis.cast_through)
        if memo not in self._sums:
            a, b = self.problem.pair(hypothesis)
            setting = Setting.of(a, b, has_c=self.problem.c is not None)
            made = (computation.cast(text, hypothesis.cast_through) for text in casts)
            key = (*made, computation.sums(plan, self.problem.model(hypothesis), setting))
            self._sums[memo] = (key, computation.largest_sum(a.format, b.format, setting))
        return self._sums[memo]


class Trial:
    """Classes against the output, in samples of growing size."""

    def __init__(self, problem: Problem, classes: list[EquivalenceClass], advance: Advance) -> None:
        self.problem, self.advance = problem, advance
        self.classes = classes
        self.inapplicable: list[tuple[Hypothesis, str]] = []
        self._keys = Keys(problem)
        self._smallest: dict[Any, Any] = {}

    def run(self) -> tuple[list[EquivalenceClass], list[EquivalenceClass]]:
        """(those that reproduce every bit, the others)."""
        alive = self.classes
        rejected: list[EquivalenceClass] = []
        for size in self._sizes():
            alive = self._compare(alive, size)
            rejected = [*(found for found in alive if found.differing), *rejected]
            alive = [found for found in alive if not found.differing]
        return alive, rejected

    def ranked(self, rejected: list[EquivalenceClass]) -> list[EquivalenceClass]:
        """By closeness: the best in the smallest sample are compared in larger ones, too."""
        order = sorted(rejected, key=lambda found: (-found.compared, *self._distance(found, self._sizes()[0])))
        for count, size in zip(_CANDIDATES, self._sizes()[1:], strict=False):
            head = self._compare(order[:count], size)
            order = [*sorted(head, key=lambda found: self._distance(found, size)), *order[count:]]
        return order

    def _sizes(self) -> list[int | None]:
        """Rows and columns to compare; None: all."""
        return [size for size in SAMPLES if size < max(self.problem.m, self.problem.n)] + [None]

    def _compare(self, classes: list[EquivalenceClass], size: int | None) -> list[EquivalenceClass]:
        """The classes with what a sample says of them; those of equal sums follow each other."""
        rows, columns = self._sample(size)
        actual = self.problem.cut(rows, columns)
        compared: dict[int, EquivalenceClass] = {}
        for members in self._by_sums(classes):
            self.advance(f"{members[0].first.plan}"[:32])
            try:
                sums = self._sums(members[0].first, size)
            except ValueError as error:
                self.inapplicable += [(hypothesis, str(error)) for found in members for hypothesis in found.hypotheses]
                continue
            for found in members:
                expected = self._rounded(sums, found)
                if expected is not None:
                    wrong = int(differs(expected, actual, self.problem.container).sum())
                    compared[id(found)] = dataclasses.replace(found, compared=actual.size, differing=wrong)
        return [compared[id(found)] for found in classes if id(found) in compared]

    def _sums(self, hypothesis: Hypothesis, size: int | None) -> Any:
        """The sums of a sample; those of the smallest are kept, since many classes share them."""
        if size != SAMPLES[0]:
            return self.problem.sums(hypothesis, *self._sample(size))
        key = self._keys.of_sums(hypothesis)
        if key not in self._smallest:
            self._smallest[key] = self.problem.sums(hypothesis, *self._sample(size))
        return self._smallest[key]

    def _rounded(self, sums: Any, found: EquivalenceClass) -> Any:
        try:
            return rounded(sums, found.first, self.problem.container)
        except ValueError as error:
            self.inapplicable += [(hypothesis, str(error)) for hypothesis in found.hypotheses]
            return None

    def _by_sums(self, classes: list[EquivalenceClass]) -> list[list[EquivalenceClass]]:
        together: dict[Any, list[EquivalenceClass]] = {}
        for found in classes:
            together.setdefault(self._keys.of_sums(found.first), []).append(found)
        return list(together.values())

    def _sample(self, size: int | None) -> tuple[Indices, Indices]:
        return _spread(self.problem.m, size), _spread(self.problem.n, size)

    def _distance(self, found: EquivalenceClass, size: int | None) -> tuple[float, float]:
        """(share that differs, typical distance in the sample in units of codes)."""
        rows, columns = self._sample(size)
        expected = rounded(self._sums(found.first, size), found.first, self.problem.container)
        away = np.abs(
            ordinals(expected, self.problem.container)
            - ordinals(self.problem.cut(rows, columns), self.problem.container)
        )
        return found.differing / max(1, found.compared), float(np.mean(np.nan_to_num(away, nan=1e9)))


def _spread(count: int, size: int | None) -> Indices:
    """Up to `size` indices below `count`, first and last included."""
    if size is None or size >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, size).astype(np.intp))
