"""RMS norm with a gain (Zhang and Sennrich 2019): the definition, and how far a float32 kernel may be off.

Numbers are computed in binary64 and rounded to float32 once, but the sum of squares is rounded to float32 first, so
that a row whose sum overflows there gives zeros as it does in a kernel. The bounds count roundings, each u = 2^-24
relative: a sum of n terms in any order has n of them, a reciprocal root 2.2 (PTX ISA, rsqrt.approx). Second orders are
covered by a hundredth, results below float32's normal numbers by `_TINY`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fp8sim.simulate.results import Result, result_of

_U = 1.01 * 2.0**-24
_TINY = 2.0**-120


def rms_norm(
    x: torch.Tensor, gain: torch.Tensor | None = None, *, eps: float = 1e-5, **forms: Any
) -> tuple[Result, torch.Tensor]:
    """r * x * gain with r = (mean(x^2) + eps)^-1/2 over C.

    Args:
        x: [..., R, C], floating point. gain: [C], or None for ones.
        eps: at least 2^-126, rounded to float32.
        forms: of the result, as for `fp8sim.simulate.results.result_of`.

    Returns:
        [..., R, C], and r [...] in float32. A row with NaN is NaN; one with an infinity is NaN there, else zero.
    """
    numbers, _, inverse = rms_norm_numbers(x, gain, eps)
    return result_of(numbers, **forms), inverse.float()


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gain: torch.Tensor | None,
    inverse: torch.Tensor,
    *,
    factor: float = 1.0,
    **forms: Any,
) -> tuple[Result, torch.Tensor | None]:
    """r * (h - x * r^2 * mean(h * x)) with h = grad * gain; and factor * the sum over all rows of grad * x * r.

    Args:
        grad: [..., R, C]. inverse: r [...], of the forward pass. factor: rounded to float32. All else as for
            `rms_norm`.

    Returns:
        [..., R, C]; [C] in the gain's dtype, or None without a gain.
    """
    (numbers, _), (of_gain, _) = rms_norm_gradients(grad, x, gain, inverse, factor)
    return result_of(numbers, **forms), None if gain is None else of_gain.float().to(gain.dtype)


# Numbers in float64, and the bound on a float32 kernel's error at each


def rms_norm_numbers(
    x: torch.Tensor, gain: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rms_norm` before it is rounded [..., C], its bound [..., C], and r [...], in float64."""
    x, gain = x.double(), _gain(gain, x)
    columns = x.shape[-1]
    total = x.square().sum(-1).float().double()
    inverse = (total / max(columns, 1) + float(np.float32(eps))).rsqrt()
    number = inverse[..., None] * x * gain
    # half of the n + 1 of the sum and of the 3 of its share and eps; 2.2 of the reciprocal root; two products
    return number, number.abs() * ((columns + 4) / 2 + 4.2) * _U + _TINY, inverse


def rms_norm_gradients(
    grad: torch.Tensor, x: torch.Tensor, gain: torch.Tensor | None, inverse: torch.Tensor, factor: float
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """`rms_norm_backward` before it is rounded, with bounds: the gradient of x, and that of the gain."""
    grad, x, gain, r = grad.double(), x.double(), _gain(gain, x), inverse.double()[..., None]
    columns, rows = max(x.shape[-1], 1), x.shape[:-1].numel()
    towards = grad * gain
    along = (towards * x).sum(-1, keepdim=True) / columns * r.square()
    number = r * (towards - x * along)
    sizes = (towards * x).abs().sum(-1, keepdim=True) / columns * r.square()
    bound = r * (3 * towards.abs() + (columns + 8) * x.abs() * sizes) * _U + _TINY
    rounded = float(np.float32(factor))
    products = (grad * x * r).reshape(-1, x.shape[-1])
    of_gain = rounded * products.sum(0)
    return (number, bound), (of_gain, abs(rounded) * (rows + 3) * products.abs().sum(0) * _U + _TINY)


def _gain(gain: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x.new_ones(x.shape[-1]) if gain is None else gain.double()
