"""Why a kernel's output is what it is: every way of computing it that gives exactly its bits, or what comes closest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8sim import casting, formats, quantizers
from fp8sim.analysis.explaining import computation
from fp8sim.analysis.explaining.computation import Setting
from fp8sim.analysis.explaining.difference import Difference, examine
from fp8sim.analysis.explaining.hypotheses import Hypothesis, default_hypotheses
from fp8sim.analysis.explaining.problem import Indices, Problem, differs, ordinals, rounded
from fp8sim.formats import Format
from fp8sim.mma.architectures import MODELS
from fp8sim.mma.evidence import Evidence
from fp8sim.mma.models import MmaModel

Advance = Callable[[str], None]

_SAMPLES = (4, 16)
"""Rows and columns that are tried before all of them."""
_CANDIDATES = (64, 8)
"""How many of the classes that came closest are looked at in the larger sample, and in everything."""
_NARROWER = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


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


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        verdict: "unique": one class reproduces every bit; "ambiguous": several do; "none".
        elements: of the output.
        classes: those that reproduce every bit.
        rejected: the others, the closest first, with the elements that told them apart from the output.
        inapplicable: hypotheses that do not fit the inputs, each with the reason.
        closest: what is left unexplained, with "none".
        problem: the inputs, for `design`.
    """

    verdict: str
    elements: int
    classes: tuple[EquivalenceClass, ...]
    rejected: tuple[EquivalenceClass, ...]
    inapplicable: tuple[tuple[Hypothesis, str], ...]
    closest: Difference | None
    problem: Problem

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "elements": self.elements,
            "shape": [self.problem.m, self.problem.n, self.problem.k],
            "classes": [found.to_dict() for found in self.classes],
            "rejected": [
                {
                    "hypotheses": list(map(str, found.hypotheses)),
                    "compared": found.compared,
                    "differing": found.differing,
                }
                for found in self.rejected
            ],
            "inapplicable": [{"hypothesis": str(hypothesis), "reason": why} for hypothesis, why in self.inapplicable],
            "closest": None if self.closest is None else self.closest.to_dict(),
        }


def explain(
    actual: Any,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    a_format: str | Format | None = None,
    b_format: str | Format | None = None,
    a_scale_inv: Any = None,
    b_scale_inv: Any = None,
    output: str | None = None,
    hypotheses: Iterable[Hypothesis] | None = None,
    a_quantizer: str | None = None,
    b_quantizer: str | None = None,
    advance: Advance | None = None,
) -> Explanation:
    """Which ways of computing c + a @ b give exactly `actual`, bit for bit; any NaN equals any NaN.

    Every hypothesis is tried on a few rows and columns; those that survive, on everything.

    Args:
        actual: [M, N], what the kernel returned: float32, float16, bfloat16, float64 or float8, or codes of `output`.
        a: [M, K], b: [K, N], what it was given, and c [M, N], a_format, b_format, a_scale_inv, b_scale_inv: as
            `fp8sim.matmul` takes them; with a quantizer, floats before the cast.
        output: the format of `actual`'s codes, or the one that the kernel rounded to if `actual` holds it in a wider
            dtype. None: that of `actual`, and narrower ones if all numbers lie on their grid.
        hypotheses: what to try; None: `default_hypotheses`.
        a_quantizer, b_quantizer: with what the kernel casts a and b, as "e4m3" or "mxfp8": the defaults vary its
            rounding, overflow and scale rule.
        advance: called with a description before each step of work, for a progress bar.

    Returns:
        All classes of hypotheses that reproduce every bit; if there is none, the closest, and what differs where.

    Raises:
        ValueError: shapes or formats that do not fit, numbers off the grid, hypotheses of which none fits the inputs.
        TypeError: no array or tensor, or one of another dtype.
    """
    given = {"a_format": a_format, "b_format": b_format, "a_scale_inv": a_scale_inv, "b_scale_inv": b_scale_inv}
    problem = Problem(actual, a, b, c, **given, output=output)
    if hypotheses is None:
        hypotheses = _defaults(problem, a_quantizer, b_quantizer, output)
    elif a_quantizer is not None or b_quantizer is not None:
        raise ValueError("a_quantizer= and b_quantizer= belong to the default hypotheses: give them or hypotheses=")
    classes, inapplicable = group(problem, list(hypotheses))
    trial = _Trial(problem, classes, advance or (lambda what: None))
    exact, rejected = trial.run()
    inapplicable += trial.inapplicable
    if not exact and not rejected:
        reasons = "; ".join(dict.fromkeys(why for _, why in inapplicable)) or "the list is empty"
        raise ValueError(f"hypotheses: none fits the inputs: {reasons}")
    closest = None
    if not exact:
        rejected = trial.ranked(rejected)
        closest = examine(problem, [found.first for found in rejected])
    verdict = "none" if not exact else "unique" if len(exact) == 1 else "ambiguous"
    elements = problem.m * problem.n
    return Explanation(verdict, elements, tuple(exact), tuple(rejected), tuple(inapplicable), closest, problem)


def _defaults(problem: Problem, a: str | None, b: str | None, output: str | None) -> list[Hypothesis]:
    names = [
        str(quantizers.parse(text).format) if text is not None else problem.operand(argument, None).format
        for argument, text in (("a", a), ("b", b))
    ]
    scaled = [problem.operand(argument, text).scale_inv is not None for argument, text in (("a", a), ("b", b))]
    outputs = [str(formats.parse(output))] if output not in (None, "float64") else [problem.container, *_held(problem)]
    return default_hypotheses(*names, a_quantizer=a, b_quantizer=b, factors=any(scaled), outputs=outputs)


def _held(problem: Problem) -> list[str]:
    """Formats narrower than the output's dtype that have all its numbers."""
    if problem.container != "float32" or problem.actual is None:
        return []
    numbers = problem.actual.view(np.float32)
    held = [casting.cast(numbers, name, overflow="SAT_PROPAGATE") for name in _NARROWER]
    return [name for name, same in zip(_NARROWER, held, strict=True) if np.array_equal(same, numbers, equal_nan=True)]


def group(
    problem: Problem, hypotheses: Sequence[Hypothesis]
) -> tuple[list[EquivalenceClass], list[tuple[Hypothesis, str]]]:
    """Hypotheses by what they compute for this problem, in the order of the first of each; and those that do not fit."""
    members: dict[tuple[Any, ...], list[Hypothesis]] = {}
    refused: list[tuple[Hypothesis, str]] = []
    keys = _Keys(problem)
    for hypothesis in hypotheses:
        try:
            members.setdefault(keys.of(hypothesis), []).append(hypothesis)
        except ValueError as error:
            refused.append((hypothesis, str(error)))
    return [EquivalenceClass(tuple(found), problem.model(found[0])) for found in members.values()], refused


class _Keys:
    """What hypotheses compute; everything is worked out once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._sums: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def of(self, hypothesis: Hypothesis) -> tuple[Any, ...]:
        sums, largest = self._of_sums(hypothesis)
        ending = computation.output(hypothesis.output, hypothesis.plan.rounding, hypothesis.overflow, largest)
        return (sums, ending)

    def of_sums(self, hypothesis: Hypothesis) -> Any:
        """The same without the output's rounding."""
        return self._of_sums(hypothesis)[0]

    def _of_sums(self, hypothesis: Hypothesis) -> tuple[Any, ...]:
        plan, casts = hypothesis.plan, (hypothesis.a_quantizer, hypothesis.b_quantizer)
        order = (plan.instruction, plan.widen, plan.flush, plan.block_k, plan.split_k, plan.merge)
        memo = (*order, plan.factors, plan.product, plan.fused, *casts)
        if memo not in self._sums:
            a, b = self.problem.pair(hypothesis)
            setting = Setting.of(a, b, has_c=self.problem.c is not None)
            key = (*map(computation.cast, casts), computation.sums(plan, self.problem.model(hypothesis), setting))
            self._sums[memo] = (key, computation.largest_sum(a.format, b.format, setting))
        return self._sums[memo]


class _Trial:
    """Classes against the output, in samples of growing size."""

    def __init__(self, problem: Problem, classes: list[EquivalenceClass], advance: Advance) -> None:
        self.problem, self.advance = problem, advance
        self.classes = classes
        self.inapplicable: list[tuple[Hypothesis, str]] = []
        self._keys = _Keys(problem)
        self._smallest: dict[Any, Any] = {}

    def run(self) -> tuple[list[EquivalenceClass], list[EquivalenceClass]]:
        """(those that reproduce every bit, the others)."""
        alive, rejected = self.classes, []
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
        return [size for size in _SAMPLES if size < max(self.problem.m, self.problem.n)] + [None]

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
                    compared[id(found)] = EquivalenceClass(found.hypotheses, found.model, actual.size, wrong)
        return [compared[id(found)] for found in classes if id(found) in compared]

    def _sums(self, hypothesis: Hypothesis, size: int | None) -> Any:
        """The sums of a sample; those of the smallest are kept, since many classes share them."""
        if size != _SAMPLES[0]:
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
