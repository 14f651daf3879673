"""What the exponents say: is each module, and so the model, wired so that its learning rate stays over widths?

In the limit of large width the outputs of hidden layers stay at one scale, and so do the changes that training makes to
them, by each layer's own weights (the desiderata of muP: Yang et al. 2022, "Tensor Programs V", appendix J; checking
them on the coordinates of real runs: appendix D.1). So, with sizes that go as width^e:

| quantity               | e                                      | judged at          |
|------------------------|----------------------------------------|--------------------|
| activation             | 0; attention logits and readout below  | step 0             |
| change                 | at most 0                              | mean of steps >= 1 |
| own change             | 0; -1/2 under u-muP's embedding rule   | mean of steps >= 1 |
| gradient, update       | depends on the parametrization: shown, not judged |         |

Not judged is the own change of a bias whose gradient is rounding, such as that of keys, to which softmax is blind: Adam
makes steps of it, whose size says nothing.

A change may shrink where all that moves comes from an embedding whose rate falls with width; own changes may not.

The limits. Factors of width are powers of 1/2, so the smallest mistake is an exponent of 1/2 beside the right one. At
finite width n the right ones are not 0 either: an update from T tokens is a signal of size a and chance alignment of
size b / n^1/2, with (b / a)^2 about T, so that own changes seem to shrink where n is not much larger than T. Take few
tokens. docs/coord-check.md has the exponents measured on right and wrong wirings, which these limits separate.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from fp8sim.analysis.coordinates.measuring import GRADIENT, Measurements
from fp8sim.analysis.coordinates.probe import ACTIVATION, CHANGE, INPUT, LOGITS, OWN_CHANGE, Shapes
from fp8sim.analysis.coordinates.slopes import Slope, mean_slope, slope_at
from fp8sim.analysis.verdicts import SEVERITY, Verdict

EXPONENT_PASS, EXPONENT_FAIL = 0.2, 0.3
"""How far an exponent may be from the allowed ones: up to the first passes, beyond the second fails."""
ERRORS = 2.0
"""A failing exponent is still beyond `EXPONENT_PASS` when it is taken this many standard errors back; else it warns."""
NOISE = 0.2
"""A standard error above this says nothing: it warns."""
UNKNOWN_ERROR = 0.1
"""What counts as the standard error of a single seed: more than three seeds of a small model have."""


ROUNDING = 1e-4
"""A bias whose gradient is at most this share of that of the weight beside it has none but rounding, in float32."""


class Kind(enum.StrEnum):
    """What a module does with width, as the shapes of its output and largest weight say.

    input: from a fixed size to a growing one (an embedding too). hidden: from growing to growing. readout: from growing
    to fixed. vector: gains and biases alone. fixed: nothing grows. function: no parameters. logits: of attention.
    """

    INPUT = "input"
    HIDDEN = "hidden"
    READOUT = "readout"
    VECTOR = "vector"
    FIXED = "fixed"
    FUNCTION = "function"
    LOGITS = "logits"


def kind_of(name: str, shapes: tuple[Shapes, ...]) -> Kind:
    """The kind of a module, from its shapes at the smallest and the largest width."""
    if name.endswith(LOGITS):
        return Kind.LOGITS
    first, last = shapes[0], shapes[-1]
    if not first.parameters:
        return Kind.FUNCTION
    key = max(last.parameters, key=lambda key: len(last.parameters[key]))
    if len(last.parameters[key]) < 2:
        return Kind.VECTOR
    growing = sum(a != b for a, b in zip(first.parameters[key], last.parameters[key], strict=True))
    if growing != 1:
        return Kind.HIDDEN if growing else Kind.FIXED
    return Kind.INPUT if first.output[-1] != last.output[-1] else Kind.READOUT


@dataclass(frozen=True)
class Check:
    """One exponent and what it may be.

    Attributes:
        quantity: which. step: where it was taken; None: the mean of the steps from 1 on.
        slope: the exponent.
        lowest, highest: the ones allowed. shrinking_fails: whether an exponent below is a fault; else it only warns.
    """

    quantity: str
    step: int | None
    slope: Slope
    lowest: float
    highest: float
    shrinking_fails: bool = True

    @property
    def deviation(self) -> float:
        """How far the exponent lies above (positive) or below what is allowed; 0 within, and where there is none."""
        if self.slope.value is None:
            return 0.0
        return max(self.slope.value - self.highest, 0.0) or min(self.slope.value - self.lowest, 0.0)

    @property
    def verdict(self) -> Verdict:
        """What the limits say."""
        distance = abs(self.deviation)
        error = UNKNOWN_ERROR if self.slope.error is None else self.slope.error
        if distance > EXPONENT_FAIL and distance - ERRORS * error > EXPONENT_PASS:
            return Verdict.WARN if self.deviation < 0 and not self.shrinking_fails else Verdict.FAIL
        return Verdict.WARN if distance > EXPONENT_PASS or error > NOISE else Verdict.PASS


@dataclass(frozen=True)
class Finding:
    """What decides about one module.

    Attributes:
        name, kind: of the module.
        verdict: the worst of its checks.
        check: the one that decides; None for a module of which nothing is judged.
        is_cause: whether it fails by itself, and not because of what is computed before it.
        reason: why it does not pass, in words; empty if it does.
    """

    name: str
    kind: Kind
    verdict: Verdict
    check: Check | None
    is_cause: bool = False
    reason: str = ""


def judge(measured: Measurements, expected: Mapping[str, float]) -> list[Finding]:
    """A finding for each module, in the order in which they are computed.

    Args:
        measured: the runs.
        expected: shell patterns of names -> exponent of their own change.

    Raises:
        ValueError: a pattern that fits no module with parameters.
    """
    kinds = {name: kind_of(name, shapes) for name, shapes in measured.shapes.items()}
    allowed = _allowed(measured, kinds, expected)
    findings: list[Finding] = []
    for name, kind in kinds.items():
        failing = [finding for finding in findings if finding.verdict is Verdict.FAIL]
        findings.append(_judge_module(measured, name, kind, allowed[name], failing))
    return findings


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict on the whole."""
    return max((finding.verdict for finding in findings), key=SEVERITY.index)


def reason(findings: Sequence[Finding]) -> str:
    """Why the whole does not pass: the first cause and the names of others; empty if it does.

    Without a cause, all that does not pass counts as one.
    """
    causes = [finding for finding in findings if finding.is_cause]
    causes = causes or [finding for finding in findings if finding.verdict is not Verdict.PASS]
    if not causes:
        return ""
    others = [finding.name for finding in causes[1:]]
    more = f" (also {', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''})"
    return causes[0].reason + (more if others else "")


def _allowed(
    measured: Measurements, kinds: Mapping[str, Kind], expected: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Exponents of each module's own change."""
    own = [name for name, kind in kinds.items() if kind not in (Kind.FUNCTION, Kind.LOGITS)]
    for pattern in expected:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise ValueError(
                f"expected={pattern!r}: no module with parameters has such a name; they are {', '.join(own)}"
            )
    stated = {name: [value for pattern, value in expected.items() if fnmatchcase(name, pattern)] for name in own}
    return {
        name: (stated[name][0], stated[name][0]) if stated.get(name) else measured.rules.get(name, (0.0, 0.0))
        for name in kinds
    }


def _judge_module(
    measured: Measurements, name: str, kind: Kind, allowed: tuple[float, float], failing: list[Finding]
) -> Finding:
    """`failing`: the modules that are computed before this one and fail."""
    checks = list(_checks(measured, name, kind, allowed))
    # Of what fails, the start comes before training, and its own change before what may come from elsewhere.
    decisive = max(checks, key=lambda check: (SEVERITY.index(check.verdict), -checks.index(check)))
    if decisive.verdict is Verdict.PASS and _stands_still(measured, name):
        return Finding(name, kind, Verdict.WARN, decisive, reason=f"{name}: its parameters do not move. {FROZEN}")
    if decisive.verdict is Verdict.PASS:
        return Finding(name, kind, Verdict.PASS, decisive)
    is_cause = decisive.verdict is Verdict.FAIL and _is_cause(measured, name, decisive, failing)
    reason = _reason(name, kind, decisive, measured.is_sgd)
    return Finding(name, kind, decisive.verdict, decisive, is_cause, reason)


def _is_cause(measured: Measurements, name: str, check: Check, failing: list[Finding]) -> bool:
    """Whether what fails is the module's own fault: not if its input, or anything that fails before it, explains it."""
    if check.quantity == OWN_CHANGE:
        growth = mean_slope(measured, name, INPUT).value or 0.0
        is_explained = min(growth, 0.0) - EXPONENT_PASS <= check.deviation <= max(growth, 0.0) + EXPONENT_PASS
        return not (failing and is_explained)
    if check.quantity == ACTIVATION:
        return not any(finding.check and finding.check.quantity == ACTIVATION for finding in failing)
    return not failing


def _checks(measured: Measurements, name: str, kind: Kind, allowed: tuple[float, float]) -> Iterator[Check]:
    shrinks = kind in (Kind.READOUT, Kind.LOGITS, Kind.FUNCTION)
    start = slope_at(measured, name, ACTIVATION, 0)
    yield Check(ACTIVATION, 0, start, -math.inf if shrinks else 0.0, 0.0, shrinking_fails=False)
    if kind not in (Kind.FUNCTION, Kind.LOGITS) and not _has_rounding_alone(measured, name):
        yield Check(OWN_CHANGE, None, mean_slope(measured, name, OWN_CHANGE), *allowed)
    yield Check(CHANGE, None, mean_slope(measured, name, CHANGE), -math.inf, 0.0)


def _has_rounding_alone(measured: Measurements, name: str) -> bool:
    """Whether the gradient of `name`, a bias beside a weight, is rounding and nothing else."""
    beside = measured.shapes.get(name.rpartition(".")[0])
    weights = [] if beside is None else [key for key, shape in beside[-1].parameters.items() if len(shape) > 1]
    found = [measured.values[key, GRADIENT][:, :, 1:] for key in (name, *weights) if (key, GRADIENT) in measured.values]
    if not weights or len(found) != 1 + len(weights):
        return False
    return bool((found[0] <= ROUNDING * np.max(found[1:], axis=0)).all() and (found[0] > 0).any())


def _stands_still(measured: Measurements, name: str) -> bool:
    moved = measured.values.get((name, OWN_CHANGE))
    return moved is not None and not moved[:, :, 1:].any()


FROZEN = "They are frozen, or the optimizer does not have them"

_RATE = {
    Kind.HIDDEN: (
        "the learning rate of a hidden weight falls as 1/fan_in in muP, and as fan_in^-1/2 where weights start as "
        "N(0, 1); are the rates those of fp8sim.optim.parameter_groups?"
    ),
    Kind.INPUT: (
        "the learning rate of an embedding or input layer does not change with width (u-muP's width^-1/2 for "
        "embeddings is empirical: say expected={'NAME': -0.5} if it is meant)"
    ),
    Kind.READOUT: (
        "a readout's output is divided by its fan_in and its learning rate does not change with width; does "
        "parameter_groups know it as a readout (roles=)?"
    ),
    Kind.VECTOR: "the learning rate of gains and biases does not change with width",
    Kind.FIXED: "this weight does not grow with width, and its learning rate must not change with it",
}
_RATE_OF_SGD = (
    "SGD's steps go as the gradient, so that its rates are not those of Adam; are they those of "
    "fp8sim.optim.parameter_groups with optimizer='sgd'?"
)
_START = {
    Kind.HIDDEN: "a hidden weight starts with a standard deviation of fan_in^-1/2, or has that factor on its output",
    Kind.INPUT: "the standard deviation with which an embedding or input layer starts does not depend on width",
    Kind.READOUT: "a readout's output is divided by its fan_in, beside a weight that starts at a fixed scale",
    Kind.LOGITS: "q.k is divided by the width d of a head (muP), or by its root",
}
_CHANGES = {
    Kind.LOGITS: (
        "queries and keys learn to point the same way, so that q.k grows as the width d of a head: muP divides it by "
        "d, not by its root"
    ),
}
_ELSEWHERE = "a factor on it, or on something before it, depends on width"


def _reason(name: str, kind: Kind, check: Check, is_sgd: bool) -> str:
    """What is seen, what should be, and what to do."""
    error = "" if check.slope.error is None else f" +- {check.slope.error:.2f}"
    when = "before training" if check.step == 0 else "in training"
    if abs(check.deviation) <= EXPONENT_PASS:
        return f"{name}: the exponent of its {check.quantity} has a standard error of{error[3:]}: take more seeds"
    verb = "grows" if check.deviation > 0 else "shrinks"
    limit = check.highest if check.deviation > 0 else check.lowest
    seen = f"{name}: its {check.quantity} {verb} as width^{check.slope.value:.2f}{error} {when}, expected {limit:g}"
    if check.verdict is Verdict.WARN and check.quantity == OWN_CHANGE and check.deviation < 0:
        return f"{seen}: too little to tell from the noise of a batch that has more tokens than the model is wide"
    if check.quantity == OWN_CHANGE and is_sgd:
        return f"{seen}: {_RATE_OF_SGD}"
    texts = {OWN_CHANGE: _RATE, ACTIVATION: _START, CHANGE: _CHANGES}[check.quantity]
    return f"{seen}: {texts.get(kind, _ELSEWHERE).replace('NAME', name)}"
