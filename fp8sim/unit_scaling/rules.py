"""Every factor of unit scaling, as functions of floats.

An operation f becomes `alpha * f`, with its gradients multiplied by betas that need not equal alpha: alpha makes the
output's standard deviation one for unit-normal inputs, beta does so for each gradient for unit-normal output gradients
(Blake et al. 2023, "Unit Scaling", section 4; Blake et al. 2024, "u-muP", appendix B). To add a rule, add a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

CONSTRAINTS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "gmean": lambda *scales: math.prod(scales) ** (1 / len(scales)),
        "hmean": lambda *scales: len(scales) / sum(1 / s for s in scales),
        "amean": lambda *scales: sum(scales) / len(scales),
        "to_output_scale": lambda *scales: scales[0],
        "to_grad_input_scale": lambda *scales: scales[1],
    }
)
"""How an operation's factors are tied so that its gradient stays that of some function (Blake et al. 2023, section 5).

Needed wherever the operation's input is used elsewhere too (a non-cut edge); None leaves the factors apart.
"""


def constrain(constraint: str | None, *scales: float) -> tuple[float, ...]:
    """`scales` (output first, then gradients), tied by the constraint of that name; unchanged for None.

    Raises:
        ValueError: an unknown constraint.
    """
    if constraint is None:
        return scales
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint={constraint!r}: use one of {', '.join(CONSTRAINTS)}, or None")
    return (CONSTRAINTS[constraint](*scales),) * len(scales)


def interpolate(a: float, low: float, high: float) -> float:
    """The geometric interpolation low^(1-a) * high^a between two limits (u-muP, appendix B)."""
    return math.exp(a * math.log(high) + (1 - a) * math.log(low))


class LinearScales(NamedTuple):
    """Factors of a linear layer: on its output and on the gradients of its input and weight (and bias)."""

    output: float
    grad_input: float
    grad_weight: float


def linear(
    in_features: int, out_features: int, batch_tokens: int, constraint: str | None = "to_output_scale"
) -> LinearScales:
    """in^-1/2, out^-1/2 and T^-1/2; the weight is a cut edge, so its factor is never tied (u-muP, table 8).

    Args:
        in_features, out_features: of the weight [O, I].
        batch_tokens: T, rows of the input over the whole (global) batch.
        constraint: ties the first two.
    """
    output, grad_input = constrain(constraint, in_features**-0.5, out_features**-0.5)
    return LinearScales(output, grad_input, batch_tokens**-0.5)


def readout(in_features: int, out_features: int, batch_tokens: int) -> LinearScales:
    """in^-1, out^-1/2 and T^-1/2: the last linear layer of a model, whose input is a cut edge (u-muP, table 2)."""
    return LinearScales(1 / in_features, out_features**-0.5, batch_tokens**-0.5)


def gelu(mult: float = 1.0, constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of gelu(m * x) / m, a fit between the limits x/2 (m -> 0) and relu (m -> infinity).

    alpha runs from 2 to sqrt(2 / (1 - 1/pi)) = 1 / std(relu), beta from 2 to sqrt(2) = 1 / rms(relu'), with weight
    1 / (1 + 1/(4 m^2)) (u-muP, appendix B).
    """
    weight = 1 / (1 + 1 / (4 * mult**2))
    alpha = interpolate(weight, 2, math.sqrt(2 / (1 - 1 / math.pi)))
    beta = interpolate(weight, 2, math.sqrt(2))
    tied = constrain(constraint, alpha, beta)
    return tied[0], tied[1]


def embedding(vocabulary: int, lookups: int) -> float:
    """Factor (V / B)^1/2 on the weight's gradient, for V rows of which B are looked up uniformly (u-muP, table 8)."""
    return math.sqrt(vocabulary / lookups)


def norm_weight(rows: int) -> float:
    """Factor rows^-1/2 on the gradients of a norm's gain and bias, which are summed over `rows` (u-muP, table 8)."""
    return 1 / math.sqrt(rows)


def cross_entropy(classes: int) -> float:
    """Factor V / sqrt(V - 1) on the gradient of the summed loss, exact at uniform logits (u-muP, table 8).

    Raises:
        ValueError: fewer than two classes, for which the gradient is zero.
    """
    if classes < 2:
        raise ValueError(f"classes={classes}: cross-entropy needs at least 2")
    return classes / math.sqrt(classes - 1)


class ResidualScales(NamedTuple):
    """Coefficients of a residual connection; their squares sum to one."""

    branch: float
    skip: float


def residual(tau: float) -> ResidualScales:
    """tau / sqrt(1 + tau^2) for the branch, 1 / sqrt(1 + tau^2) for the skip (u-muP, equation 24).

    A larger tau favours the branch.
    """
    return ResidualScales(tau / math.hypot(1, tau), 1 / math.hypot(1, tau))


def residual_tau(index: int, branches: int, alpha: float = 1.0) -> float:
    """tau of branch `index` of `branches` equal ones, so that all branches together weigh alpha^2 against the input.

    alpha / sqrt(L + i * alpha^2) for i = 0 .. L - 1: the scheme of u-muP, appendix G, for branches of a single kind.
    Every branch ends with the same share of the output's variance; with alpha = 1 the input keeps one half.

    Raises:
        ValueError: an index outside 0 .. branches - 1.
    """
    if not 0 <= index < branches:
        raise ValueError(f"index={index}: the branches are 0 to {branches - 1}")
    return alpha / math.sqrt(branches + index * alpha**2)


def adam_learning_rate(kind: str, fan_in: int, depth: int | None = None) -> float:
    """Factor on the learning rate of an Adam-like optimizer (u-muP, tables 1 and 2).

    Args:
        kind: "hidden" and "embedding": fan_in^-1/2; "readout", "norm" and "bias": 1.
        fan_in: the width that a row of the weight has: I of a linear layer, the width of an embedding.
        depth: number of blocks, for a parameter on a residual branch: a further depth^-1/2. None elsewhere.

    Raises:
        ValueError: an unknown kind.
    """
    width_factor = 1 / math.sqrt(fan_in)
    factors = {"hidden": width_factor, "embedding": width_factor, "readout": 1.0, "norm": 1.0, "bias": 1.0}
    if kind not in factors:
        raise ValueError(f"kind={kind!r}: use one of {', '.join(factors)}")
    return factors[kind] / (1.0 if depth is None else math.sqrt(depth))
