"""Softmax cross-entropy and its gradient by the logits: the definition, and how far a float32 kernel may be off.

With z = mult * logits, l = logsumexp(z), class y, class weights w (ones without any), smoothing e and V classes:

    loss_row = (1 - e) w_y (l - z_y) + e/V sum_v w_v (l - z_v) + z_loss w_y l^2
    grad_j   = factor * (((1 - e) w_y + e/V sum_v w_v + 2 z_loss w_y l) softmax(z)_j - (1 - e) w_y [j = y] - e/V w_j)

which are those of `torch.nn.functional.cross_entropy` with a z-loss (PaLM: Chowdhery et al. 2022, section 5). Numbers
are computed in binary64. The bounds count roundings of a float32 kernel, each u = 2^-24 relative, as those of
`fp8sim.simulate.activations` do: exp(a) has |a| + 4 of them, a sum of V terms in any order V, log 4.
"""

from __future__ import annotations

import numpy as np
import torch

_U = 1.01 * 2.0**-24
_TINY = 2.0**-120


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    mult: float = 1.0,
    z_loss: float = 0.0,
    grad_factor: float = 1.0,
    factor: torch.Tensor | None = None,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each row, and factor * grad_factor times its gradient by z.

    Args:
        logits: [..., V], floating point. target: [...], integers; a row whose class is `ignore_index` has loss and
            gradient 0, one whose class is not in 0 .. V - 1 has NaN.
        weight: [V], or None.
        mult: the inverse of a temperature, positive.
        grad_factor, factor: a number, and one in a float32 tensor or None; the gradient is multiplied with both.
        in_place: whether the gradient takes the place of the logits.

    Returns:
        Losses [...], float32; gradients [..., V], in the dtype of the logits, rounded once.
    """
    options = (ignore_index, label_smoothing, mult, z_loss)
    (losses, _), (grad, _) = cross_entropy_numbers(logits, target, weight, *options)
    whole = _float32(grad_factor) * (1.0 if factor is None else float(factor))
    kept = (target != ignore_index)[..., None]
    rounded = torch.where(kept, grad * whole, 0.0).float().to(logits.dtype)
    return losses.float(), logits.copy_(rounded) if in_place else rounded


def scale_rows(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x [..., V], every row times its factor (one number, or [...]), in place, rounded once."""
    return x.copy_((x.double() * factor.double()[..., None]).float())


def cross_entropy_numbers(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    mult: float,
    z_loss: float,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Losses [...] and gradients by z [..., V] before they are rounded, in float64, each with its bound."""
    classes = logits.shape[-1]
    z = logits.double() * _float32(mult)
    weights = z.new_ones(classes) if weight is None else weight.double()
    smoothing, z_loss = _float32(label_smoothing), _float32(z_loss)
    log_sum = z.logsumexp(-1)
    kept, exists = target != ignore_index, (target >= 0) & (target < classes)
    place = torch.where(exists, target, 0).long()
    row_weight = weights[place]
    hit, spread = (1 - smoothing) * row_weight, smoothing / classes
    picked = z.gather(-1, place[..., None])[..., 0]

    loss = hit * (log_sum - picked) + z_loss * row_weight * log_sum.square()
    log_error = (classes + 10 + 3 * _finite(z)) * _U  # of log_sum: of the sum, of its terms, of the logarithm
    error = hit * (log_error + 3 * _U * (log_sum.abs() + picked.abs())) + _U * loss.abs() * 4
    error += z_loss * row_weight * log_sum.abs() * (2 * log_error + 6 * _U * log_sum.abs())
    if smoothing > 0:
        whole = weights.sum()
        missing = (weights * z).sum(-1)
        loss = loss + spread * (whole * log_sum - missing)
        sizes = whole * log_sum.abs() + (weights * z.abs()).sum(-1)
        error += spread * (whole * log_error + (classes + 6) * _U * sizes)
    loss = torch.where(kept, torch.where(exists, loss, torch.nan), 0.0)

    softmax = torch.exp(z - log_sum[..., None])
    share = hit + spread * weights.sum() + 2 * z_loss * row_weight * log_sum
    struck = torch.nn.functional.one_hot(place, classes) * hit[..., None]
    grad = share[..., None] * softmax - struck - spread * weights
    distance = (z - log_sum[..., None]).abs().clamp(max=150.0)
    relative = (6 + 3 * distance + 2 * _finite(z)[..., None]) * _U + log_error[..., None]
    share_error = 2 * z_loss * row_weight * log_error + (classes + 8) * _U * (hit + spread * weights.sum())
    share_error += 8 * _U * (2 * z_loss * row_weight * log_sum).abs()
    bound = softmax * (share.abs()[..., None] * relative + share_error[..., None])
    bound += 6 * _U * (struck + spread * weights) + 4 * _U * grad.abs() + _TINY
    grad = torch.where(kept[..., None], torch.where(exists[..., None], grad, torch.nan), 0.0)
    return (loss, error + _TINY), (grad, bound)


def _finite(z: torch.Tensor) -> torch.Tensor:
    """The largest finite |z| of each row."""
    return torch.where(z.isfinite(), z, 0.0).abs().amax(-1)


def _float32(factor: float) -> float:
    return float(np.float32(factor))
