"""When a scaling rule holds: the limits, each in one place, and what they say of a set of figures."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass

from fp8sim.analysis.figures import CastFigures, GradientFigures, plateau
from fp8sim.formats import Format


class Verdict(enum.StrEnum):
    """From best to worst, and what could not be asked."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    NOT_CHECKED = "NOT CHECKED"


SEVERITY = (Verdict.NOT_CHECKED, Verdict.PASS, Verdict.WARN, Verdict.FAIL)
"""Verdicts by rising severity."""

SQNR_PASS_BELOW_PLATEAU = 3.0
"""dB below the plateau that still pass."""
SQNR_FAIL_BELOW_PLATEAU, SQNR_FAIL = 10.0, 20.0
"""dB: an operand fails that lies both further below the plateau than the first and below the second."""
CLIPPED_PASS, CLIPPED_FAIL = 1e-4, 1e-2
"""Shares: below the first passes, from the second on fails."""
ZEROED_PASS = 0.02
"""Share: below it passes. Judged before training only; afterwards correct runs reach 17 %."""
COSINE_PASS, COSINE_FAIL = 0.98, 0.95
"""From the first on passes, below the second fails."""


@dataclass(frozen=True)
class Finding:
    """One figure held against its limits.

    Attributes:
        subject: the operand or weight class.
        figure: "sqnr", "zeroed", "clipped", "cosine" or "finite".
        value: None if there is none.
        verdict: what the limits say.
        margin: distance to the nearest limit of PASS in units of that limit's scale; negative beyond it.
        reason: in words.
    """

    subject: str
    figure: str
    value: float | None
    verdict: Verdict
    margin: float
    reason: str


def judge_cast(
    subject: str, figures: CastFigures, fmt: Format, *, trained: bool, high_precision: bool = False
) -> Iterator[Finding]:
    """Findings on one operand cast to `fmt`.

    Args:
        trained: whether the run had begun.
        high_precision: whether the recipe keeps the layer in high precision, in `fmt`. Then sqnr and zeroed are not
            judged: where all elements of a tensor are near one number, as those of a readout's grad_output are at
            first, sqnr is that number's own rounding error, decibels below the plateau and harmless.
    """
    if figures.nonfinite:
        reason = f"{figures.nonfinite} of {figures.elements} elements are not finite"
        yield Finding(subject, "finite", float(figures.nonfinite), Verdict.FAIL, -math.inf, reason)
    if figures.reason:
        yield Finding(subject, "sqnr", None, Verdict.FAIL, -math.inf, figures.reason)
        return
    assert figures.zeroed is not None
    assert figures.clipped is not None
    yield _judge_clipped(subject, figures.clipped)
    if high_precision:
        return
    yield _judge_sqnr(subject, figures, fmt)
    if not trained:
        margin = 1 - figures.zeroed / ZEROED_PASS
        verdict = Verdict.PASS if margin > 0 else Verdict.WARN
        yield Finding(subject, "zeroed", figures.zeroed, verdict, margin, f"{figures.zeroed:.1%} zeroed")


def _judge_sqnr(subject: str, figures: CastFigures, fmt: Format) -> Finding:
    if figures.sqnr is None:
        assert figures.exact
        return Finding(subject, "sqnr", None, Verdict.PASS, math.inf, "exact")
    below = plateau(fmt) - figures.sqnr
    margin = 1 - below / SQNR_PASS_BELOW_PLATEAU
    if below > SQNR_FAIL_BELOW_PLATEAU and figures.sqnr < SQNR_FAIL:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.PASS if margin >= 0 else Verdict.WARN
    return Finding(subject, "sqnr", figures.sqnr, verdict, margin, f"{below:.1f} dB below the plateau of {fmt}")


def _judge_clipped(subject: str, clipped: float) -> Finding:
    margin = 1 - clipped / CLIPPED_PASS
    verdict = Verdict.PASS if margin > 0 else Verdict.FAIL if clipped >= CLIPPED_FAIL else Verdict.WARN
    return Finding(subject, "clipped", clipped, verdict, margin, f"{clipped:.2%} clipped")


def judge_gradient(subject: str, figures: GradientFigures) -> Finding:
    """The finding on the gradient of one weight class against its reference."""
    if figures.cosine is None:
        reason = "gradient and reference are all zero"
        return Finding(subject, "cosine", None, Verdict.FAIL, -math.inf, reason)
    if not math.isfinite(figures.cosine):
        return Finding(subject, "finite", None, Verdict.FAIL, -math.inf, "the gradient is not finite")
    margin = (figures.cosine - COSINE_PASS) / (1 - COSINE_PASS)
    verdict = Verdict.PASS if margin >= 0 else Verdict.FAIL if figures.cosine < COSINE_FAIL else Verdict.WARN
    reason = f"cosine {figures.cosine:.3f} with the gradient without casts"
    return Finding(subject, "cosine", figures.cosine, verdict, margin, reason)


def decisive(findings: list[Finding]) -> Finding:
    """The finding that decides: of the most severe verdict the one nearest to, or furthest beyond, a limit.

    Beyond the limits causes come before consequences: a measured figure before a missing one (an operand is all zero
    because of a cast before it), and an operand before the gradient that it spoils.
    """

    def order(finding: Finding) -> tuple[int, bool, bool, float]:
        consequence = finding.figure == "cosine" and finding.verdict is not Verdict.PASS
        return -SEVERITY.index(finding.verdict), finding.value is None, consequence, finding.margin

    return min(findings, key=order)
