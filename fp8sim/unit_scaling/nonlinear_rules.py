"""Factors of activations, of softmax and of attention.

Most are fits: an operation has two limits whose factors are known, and `interpolate` joins them with a weight
1 / (1 + c / m^2) in the multiplier m of its input (u-muP, appendix B). `alpha` is 1 / std of the output, about its
mean; `beta` is 1 / rms of the derivative, hence 1 / std of the gradient.
"""

from __future__ import annotations

import math

from fp8sim.arguments import check_flag, check_float32_factor, check_positive, check_probability
from fp8sim.unit_scaling.constraints import constrain, interpolate

_RELU_ALPHA = math.sqrt(2 / (1 - 1 / math.pi))
"""1 / std(relu(x)): the variance of a rectified unit normal is (1 - 1/pi) / 2."""


def gelu(mult: float = 1.0, constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of gelu(m * x) / m, a fit between the limits x/2 (m -> 0) and relu (m -> infinity).

    alpha runs from 2 to sqrt(2 / (1 - 1/pi)) = 1 / std(relu), beta from 2 to sqrt(2) = 1 / rms(relu'), with weight
    1 / (1 + 1/(4 m^2)) (u-muP, appendix B).
    """
    weight = _weight(mult, 1 / 4)
    return _pair(constraint, interpolate(weight, 2, _RELU_ALPHA), interpolate(weight, 2, math.sqrt(2)))


def silu(mult: float = 1.0, constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of x * sigmoid(m * x), between the limits of `gelu`.

    alpha as for gelu; beta from 2 to sqrt(2) with weight 1 / (1 + 1/m^2) (u-muP, appendix B).
    """
    alpha = interpolate(_weight(mult, 1 / 4), 2, _RELU_ALPHA)
    return _pair(constraint, alpha, interpolate(_weight(mult, 1), 2, math.sqrt(2)))


def silu_glu(mult: float = 1.0) -> float:
    """The one factor of x * g * sigmoid(m * g), on the output and on both gradients.

    From 2 (x * g / 2) to sqrt(2) (x * relu(g)), with weight 1 / (1 + 1/m^2) (u-muP, appendix B).
    """
    return interpolate(_weight(mult, 1), 2, math.sqrt(2))


def relu(constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of relu(x): sqrt(2 / (1 - 1/pi)) = 1 / std and sqrt(2) = 1 / rms of its derivative, exactly."""
    return _pair(constraint, _RELU_ALPHA, math.sqrt(2))


def relu_squared(constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of relu(x)^2: 2 / sqrt(5) and 1 / sqrt(2), exactly.

    Its mean is 1/2 and its second moment 3/2; the derivative 2 relu(x) has second moment 2.
    """
    return _pair(constraint, 2 / math.sqrt(5), 1 / math.sqrt(2))


def tanh(constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of tanh(x) for unit-normal x, by numerical integration (`tests/unit_factors.py`)."""
    return _pair(constraint, 1.5925374197228312, 1.467413591630795)


def sigmoid(constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of sigmoid(x) for unit-normal x, by numerical integration (`tests/unit_factors.py`)."""
    return _pair(constraint, 4.801313372039962, 4.722646085937974)


def softmax(length: int, mult: float = 1.0, constraint: str | None = "to_output_scale") -> tuple[float, float]:
    """(alpha, beta) of softmax(m * x) over n elements, between the limits 1/n (m -> 0) and a one-hot (m -> infinity).

    alpha from n to sqrt(n), beta from n/m to sqrt(n/m), with weight 1 / (1 + 4/m^2) (u-muP, appendix B). For small m
    the output's standard deviation is small by nature: its mean is alpha / n.

    Args:
        length: n; 0 counts as 1.
        mult: m, positive.
        constraint: ties the two.
    """
    n, weight = max(1, length), _weight(mult, 4)
    return _pair(constraint, interpolate(weight, n, math.sqrt(n)), interpolate(weight, n / mult, math.sqrt(n / mult)))


def attention(
    length: int, logit_std: float, *, causal: bool = False, dropout_p: float = 0.0, root_softmax: bool = False
) -> float:
    """The one factor of attention, on the output and on the gradients of q, k and v.

    (1 - p)^1/2 / interpolate(1 / (1 + 4 / logit_std^2), low, 1): `low` = S^-1/2 is the standard deviation of a mean of
    S values, and 1 that of a single one (u-muP, appendix B). Under a causal mask position k averages over k values, and
    low = (ln S / S)^1/2.

    ln S stands for 1 + 1/2 + ... + 1/S, which is at least 1, so it is never taken below 1: the published rule holds
    from S = 3 on, one key has factor 1 (the output is v), and two have sqrt(2) at small logits.

    With square roots of the probabilities (muS: Narayan et al. 2025, section 3.1) unit-normal values keep their
    variance whatever the logits are, because the probabilities add up to one: the factor is (1 - p)^1/2.

    Args:
        length: S, keys that a query sees; of a causal mask, the length of the sequence. 0 counts as 1.
        logit_std: standard deviation of the logits at unit-normal q and k of D elements: m / D^1/2 for m * q.k / D, m
            for m * q.k / D^1/2.
        causal: which of the two rules.
        dropout_p: share of the probabilities dropped.
        root_softmax: whether the probabilities enter by their square roots.

    Raises:
        ValueError: a `logit_std` that is not positive and finite, or `dropout_p` outside 0 .. 1.
    """
    check_probability("dropout_p", dropout_p)
    check_flag("causal", causal)
    check_flag("root_softmax", root_softmax)
    kept = math.sqrt(1 - dropout_p)
    if root_softmax:
        return kept
    keys = max(1, length)
    low = math.sqrt((max(1.0, math.log(keys)) if causal else 1.0) / keys)
    check_positive("logit_std", logit_std)
    return kept / interpolate(_weight(logit_std, 4), low, 1.0)


def _weight(mult: float, c: float) -> float:
    """1 / (1 + c / m^2)."""
    check_float32_factor("mult", mult)
    return 1 / (1 + c / mult**2)


def _pair(constraint: str | None, alpha: float, beta: float) -> tuple[float, float]:
    tied = constrain(constraint, alpha, beta)
    return tied[0], tied[1]
