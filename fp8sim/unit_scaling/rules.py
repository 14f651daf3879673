"""Every factor of unit scaling, as functions of floats.

An operation f becomes `alpha * f`, with its gradients multiplied by betas that need not equal alpha: alpha makes the
output's standard deviation one for unit-normal inputs, beta does so for each gradient for unit-normal output gradients
(Blake et al. 2023, "Unit Scaling", section 4; Blake et al. 2024, "u-muP", appendix B). To add a rule, add a function.

Gradients of weights are sums over the tokens of the batch. Where a call sees a part of the batch (data parallelism,
gradient accumulation), `batch_tokens` is the count over the whole of it, and the parts' gradients are to be summed, not
averaged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fp8sim.arguments import check_finite, check_number, check_probability
from fp8sim.unit_scaling.constraints import CONSTRAINTS, check_counts, constrain, interpolate
from fp8sim.unit_scaling.nonlinear_rules import (
    attention,
    gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    silu_glu,
    softmax,
    tanh,
)
from fp8sim.unit_scaling.residual import (
    DEPTHS,
    ResidualScales,
    residual,
    residual_tau,
    transformer_residual_tau,
)

__all__ = [
    "CONSTRAINTS",
    "DEPTHS",
    "AddScales",
    "LinearScales",
    "MatmulScales",
    "ResidualScales",
    "add",
    "attention",
    "constrain",
    "conv1d",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "interpolate",
    "linear",
    "matmul",
    "mse_loss",
    "norm_weight",
    "readout",
    "relu",
    "relu_squared",
    "residual",
    "residual_tau",
    "sigmoid",
    "silu",
    "silu_glu",
    "softmax",
    "tanh",
    "transformer_residual_tau",
]


class LinearScales(NamedTuple):
    """Factors of a linear layer: on its output and on the gradients of its input and weight (and bias)."""

    output: float
    grad_input: float
    grad_weight: float


def linear(
    in_features: int,
    out_features: int,
    batch_tokens: int,
    constraint: str | None = "to_output_scale",
    scale_power: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> LinearScales:
    """in^-1/2, out^-1/2 and T^-1/2; the weight is a cut edge, so its factor is never tied (u-muP, table 8).

    Args:
        in_features, out_features: of the weight [O, I].
        batch_tokens: T, rows of the input over the whole (global) batch.
        constraint: ties the first two.
        scale_power: (p0, p1, p2) for in^-p0, out^-p1 and T^-p2.

    Raises:
        ValueError: a size below 1, a power that is not finite, or an unknown constraint.
    """
    check_counts(in_features=in_features, out_features=out_features, batch_tokens=batch_tokens)
    if not isinstance(scale_power, (tuple, list)) or len(scale_power) != 3:
        raise TypeError(f"scale_power={scale_power!r}: expected three finite numbers")
    for power in scale_power:
        check_finite("scale_power", power)
    p0, p1, p2 = scale_power
    output, grad_input = constrain(constraint, in_features**-p0, out_features**-p1)
    return LinearScales(output, grad_input, batch_tokens**-p2)


def readout(in_features: int, out_features: int, batch_tokens: int) -> LinearScales:
    """in^-1, out^-1/2 and T^-1/2: the last linear layer of a model, whose input is a cut edge (u-muP, table 2).

    Raises:
        ValueError: a size below 1.
    """
    check_counts(in_features=in_features, out_features=out_features, batch_tokens=batch_tokens)
    return LinearScales(1 / in_features, out_features**-0.5, batch_tokens**-0.5)


class MatmulScales(NamedTuple):
    """Factors of a product of two activations: on its output and on the gradients of both."""

    output: float
    grad_left: float
    grad_right: float


def matmul(m: int, k: int, n: int, constraint: str | None = "to_output_scale") -> MatmulScales:
    """k^-1/2, n^-1/2 and m^-1/2 of [m, k] @ [k, n]: each result's own number of terms (u-muP, table 8).

    Args:
        m, k, n: sizes of the operands.
        constraint: ties all three.

    Raises:
        ValueError: a size below 1, or an unknown constraint.
    """
    check_counts(m=m, k=k, n=n)
    return MatmulScales(*constrain(constraint, k**-0.5, n**-0.5, m**-0.5))


def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    batch_tokens: int,
    *,
    stride: int = 1,
    groups: int = 1,
    constraint: str | None = "to_output_scale",
) -> LinearScales:
    """(I K / g)^-1/2, (s g / (O K))^1/2 and T^-1/2: `linear` with each output's, input's and weight's number of terms.

    An input enters K / s windows of O / g channels, on average and but for the ends, where padding leaves fewer terms.
    Dilation changes no count.

    Args:
        in_channels, out_channels, kernel_size: I, O and K; the weight is [O, I / g, K].
        batch_tokens: T, positions of the output over the whole (global) batch.
        stride, groups: s and g.
        constraint: ties the first two.

    Raises:
        ValueError: a size below 1, groups that do not divide both numbers of channels, or an unknown constraint.
    """
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "stride": stride}
    check_counts(**sizes, groups=groups, batch_tokens=batch_tokens)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups}: must divide in_channels={in_channels} and out_channels={out_channels}")
    fan_in = in_channels // groups * kernel_size
    fan_out = out_channels * kernel_size / (stride * groups)
    output, grad_input = constrain(constraint, fan_in**-0.5, fan_out**-0.5)
    return LinearScales(output, grad_input, batch_tokens**-0.5)


class AddScales(NamedTuple):
    """Factors of a sum: on its output and on the gradients of both operands."""

    output: float
    grad_left: float
    grad_right: float


def add(
    left_repeats: int = 1,
    right_repeats: int = 1,
    constraint: str | None = "to_output_scale",
    *,
    is_shift: bool = False,
) -> AddScales:
    """2^-1/2, and 1 for the gradient of an operand of the sum's shape (u-muP, table 8).

    An operand that is repeated r times (broadcast) has a gradient that is the sum of r terms, and factor r^-1/2. It is
    never tied: a broadcast operand is a parameter, like a bias, and tied its gradient would be r^1/2 too large.

    Args:
        left_repeats, right_repeats: elements of the sum over elements of the operand.
        constraint: ties the output's factor and those of operands that are not repeated.
        is_shift: one operand is a single number, which shifts the sum and leaves its standard deviation: 1 for 2^-1/2.

    Raises:
        ValueError: repeats below 1, or an unknown constraint.
    """
    check_counts(left_repeats=left_repeats, right_repeats=right_repeats)
    repeats = (left_repeats, right_repeats)
    output, *tied = constrain(constraint, 1.0 if is_shift else math.sqrt(0.5), *(1.0 for r in repeats if r == 1))
    left, right = (tied.pop() if r == 1 else r**-0.5 for r in repeats)
    return AddScales(output, left, right)


def dropout(p: float) -> float:
    """The one factor (1 - p)^1/2 of dropout, whose kept elements are multiplied by 1 / (1 - p) (u-muP, table 8).

    Raises:
        ValueError: p outside 0 .. 1.
    """
    check_probability("p", p)
    return math.sqrt(1 - p)


def embedding(vocabulary: int, lookups: int) -> float:
    """Factor (V / B)^1/2 on the weight's gradient, for V rows of which B are looked up uniformly (u-muP, table 8).

    Raises:
        ValueError: either is below 1.
    """
    check_counts(vocabulary=vocabulary, lookups=lookups)
    return math.sqrt(vocabulary / lookups)


def norm_weight(rows: int) -> float:
    """Factor rows^-1/2 on the gradients of a norm's gain and bias, which are summed over `rows` (u-muP, table 8).

    The output and the gradient of the input need none: a norm makes its own scale.

    Raises:
        ValueError: `rows` below 1.
    """
    check_counts(rows=rows)
    return 1 / math.sqrt(rows)


def cross_entropy(classes: int, label_smoothing: float = 0.0) -> float:
    """Factor V / sqrt(V - 1) on the gradient of the summed loss, exact at uniform logits (u-muP, table 8).

    Smoothing by e makes that gradient, target minus 1/V, smaller by 1 - e, and the factor larger.

    Raises:
        ValueError: fewer than two classes, for which the gradient is zero; smoothing outside 0 <= e < 1.
    """
    check_number("label_smoothing", label_smoothing)
    if classes < 2:
        raise ValueError(f"classes={classes}: cross-entropy of an input with V classes needs at least 2")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: at least 0 and below 1, where the gradient is zero")
    return classes / math.sqrt(classes - 1) / (1 - label_smoothing)


def mse_loss() -> float:
    """Factor 8^-1/2 on the gradients of the summed squares: 2 (a - b) has variance 8 (u-muP, table 8)."""
    return 1 / math.sqrt(8)
