"""Why a kernel's output is what it is: every way of computing it that gives exactly its bits, or what comes closest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8sim import casting, formats
from fp8sim.analysis.explaining.difference import Difference, examine
from fp8sim.analysis.explaining.grid import default_hypotheses
from fp8sim.analysis.explaining.hypothesis import Hypothesis, parse_hypothesis
from fp8sim.analysis.explaining.problem import Problem
from fp8sim.analysis.explaining.trial import Advance, EquivalenceClass, Trial, group
from fp8sim.formats import Format

_NARROWER = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


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

    @property
    def surviving(self) -> tuple[Hypothesis, ...]:
        """Every hypothesis that reproduces every bit, whatever its class."""
        return tuple(hypothesis for found in self.classes for hypothesis in found.hypotheses)

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
    a_quantizer: str | None = None,
    b_quantizer: str | None = None,
    output: str | None = None,
    hypotheses: Iterable[str | Hypothesis] | None = None,
    extra: Iterable[str | Hypothesis] = (),
    advance: Advance | None = None,
) -> Explanation:
    """Which ways of computing c + a @ b give exactly `actual`, bit for bit; any NaN equals any NaN.

    Hypotheses that are one computation for the shape and factors at hand are tried once. Each computation is tried on a
    few rows and columns; those that survive, on everything.

    Args:
        actual: [M, N], what the kernel returned: float32, float16, bfloat16, float64 or float8, or codes of `output`.
        a: [M, K], b: [K, N], what it was given, and c [M, N], a_format, b_format, a_scale_inv, b_scale_inv: as
            `fp8sim.matmul` takes them; with a quantizer, floats before the cast.
        a_quantizer, b_quantizer: with what the kernel casts a and b, as "e4m3" or "mxfp8": the defaults vary its
            rounding, overflow, scale rule, detours and E4M3 for E5M2. None: the kernel does not cast.
        output: the format of `actual`'s codes, or the one that the kernel rounded to if `actual` holds it in a wider
            dtype. None: that of `actual`, and narrower ones if all numbers lie on their grid.
        hypotheses: what to try, as `Hypothesis` or its text; None: `default_hypotheses`.
        extra: what to try first, before those.
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
    return _judged(problem, list(dict.fromkeys(map(parse_hypothesis, (*extra, *hypotheses)))), advance)


def _judged(problem: Problem, hypotheses: list[Hypothesis], advance: Advance | None) -> Explanation:
    """Try hypotheses on a problem. ValueError if none fits its inputs."""
    classes, inapplicable = group(problem, hypotheses)
    trial = Trial(problem, classes, advance or (lambda what: None))
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
    operands = [problem.operand(argument, text) for argument, text in (("a", a), ("b", b))]
    factors = any(x.scale_inv is not None for x in operands)
    outputs = [str(formats.parse(output))] if output not in (None, "float64") else [problem.container, *_held(problem)]
    return default_hypotheses(*(x.format for x in operands), a=a, b=b, factors=factors, outputs=outputs)


def _held(problem: Problem) -> list[str]:
    """Formats narrower than the output's dtype that have all its numbers."""
    if problem.container != "float32" or problem.actual is None:
        return []
    numbers = problem.actual.view(np.float32)
    held = [casting.cast(numbers, name, overflow="SAT_PROPAGATE") for name in _NARROWER]
    return [name for name, same in zip(_NARROWER, held, strict=True) if np.array_equal(same, numbers, equal_nan=True)]
