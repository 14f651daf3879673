"""Losses: the value is torch's, the gradient that of the summed loss with a factor.

A loss is a cut edge: nothing else reads the gradient's absolute size, so the reported value stays the mean and no loss
scale is needed. Factors multiply the loss itself, a single number, before its gradient spreads over the logits.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fp8sim.arguments import (
    FLOATING,
    check_finite,
    check_float32_factor,
    check_integer,
    check_number,
    check_same,
    check_tensor_of,
)
from fp8sim.recipes import Recipe
from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, is_unit_scaled

_REDUCTIONS = ("mean", "sum", "none")
_CLASSES = (torch.int64, torch.int32, torch.uint8)


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    mult: float = 1.0,
    z_loss: float = 0.0,
    recipe: str | Recipe = UNIT_SCALED,
) -> torch.Tensor:
    """Cross-entropy of softmax(mult * input); if the recipe is unit-scaled the gradient is beta * that of the sum.

    beta is `rules.cross_entropy`, and rows that are ignored have none. The multiplier is one of the forward pass
    alone, so that the gradient's scale does not depend on it (u-muP, table 8).

    Args:
        input: logits [V], [B, V] or [B, V, ...].
        target: classes in 0 .. V - 1, [], [B] or [B, ...], int64, int32 or uint8; or probabilities, of the shape of the
            logits.
        weight: [V], of classes, about one on average; or None.
        ignore_index: the class of rows that do not count.
        reduction: "mean" over the rows that count (weighted, if there are weights), "sum" or "none".
        label_smoothing: how much of each target is spread over all classes.
        mult: positive; the inverse of a temperature.
        z_loss: factor on logsumexp(mult * input)^2, added to every row with the weight of its target, which keeps the
            logits from drifting (PaLM: Chowdhery et al. 2022, section 5).
        recipe: its parametrization decides.

    Returns:
        [], or for "none" the shape of class targets; float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, an unknown reduction, smoothing outside 0 .. 1, a
            multiplier that is not positive and finite.
        TypeError: operands of another dtype, or none; an option of another kind.
        IndexError: on a CPU, from torch, a class outside 0 .. V - 1.
    """
    by_class = _check_target(input, target)
    _check_weight(weight, input)
    check_same(dtype=False, input=input, target=target, weight=weight)
    _check_reduction(reduction)
    check_integer("ignore_index", ignore_index)
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing}: at least 0 and at most 1")
    check_float32_factor("mult", mult)
    check_finite("z_loss", z_loss)
    if by_class:
        target = target.long()  # indexing by uint8 is a mask, and torch's loss takes no int32
    classes = input.shape[_class_dim(input)]
    unit_scaled = is_unit_scaled(recipe)
    beta = rules.cross_entropy(classes, label_smoothing) if unit_scaled else 1.0

    logits = input.to(torch.promote_types(input.dtype, torch.float32))
    if weight is not None:
        weight = weight.to(logits.dtype)
    if mult != 1.0:
        logits = scale_fwd(logits, mult) if unit_scaled else logits * mult
    inner = _inner(reduction, unit_scaled)
    loss = F.cross_entropy(
        logits,
        target if by_class else target.to(logits.dtype),
        weight,
        ignore_index=ignore_index,
        reduction=inner,
        label_smoothing=label_smoothing,
    )
    counts = _row_weights(logits, target, weight, ignore_index, by_class)
    if z_loss:
        rows = z_loss * counts * logits.logsumexp(_class_dim(input)).square()
        loss = loss + {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum()}[inner]
    return _scaled(loss, counts.sum(), reduction, beta) if unit_scaled else loss


def mse_loss(
    input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", recipe: str | Recipe = UNIT_SCALED
) -> torch.Tensor:
    """(input - target)^2; if the recipe is unit-scaled the gradients are `rules.mse_loss` * those of the sum.

    Args:
        input, target: [...], of one shape.
        reduction: "mean" over all elements, "sum" or "none".
        recipe: its parametrization decides.

    Returns:
        [], or [...] for "none"; float32 (float64 for float64 operands).

    Raises:
        ValueError: shapes that differ, an unknown reduction or recipe.
        TypeError: no tensors, or of another dtype.
    """
    check_tensor_of("input", input)
    check_tensor_of("target", target)
    check_same(dtype=False, input=input, target=target)
    if input.shape != target.shape:
        raise ValueError(
            f"input and target must share a shape, got {list(input.shape)} and {list(target.shape)}: use .expand_as()"
        )
    _check_reduction(reduction)
    wide = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
    unit_scaled = is_unit_scaled(recipe)
    loss = F.mse_loss(input.to(wide), target.to(wide), reduction=_inner(reduction, unit_scaled))
    return _scaled(loss, loss.new_tensor(input.numel()), reduction, rules.mse_loss()) if unit_scaled else loss


def _inner(reduction: str, unit_scaled: bool) -> str:
    """The reduction that torch does: unit-scaled, a mean is a sum whose gradient does not see the division."""
    return "sum" if unit_scaled and reduction == "mean" else reduction


def _scaled(loss: torch.Tensor, count: torch.Tensor, reduction: str, beta: float) -> torch.Tensor:
    """A loss summed or per row, divided by `count` for "mean"; its gradient is beta times that of the sum."""
    loss = scale_bwd(loss, beta)
    return scale_fwd(loss, count.reciprocal()) if reduction == "mean" else loss


def _class_dim(input: torch.Tensor) -> int:
    return 0 if input.ndim == 1 else 1


def _row_weights(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, by_class: bool
) -> torch.Tensor:
    """What each row counts in the mean: the weight of its class, 0 if ignored; 1 for probabilities."""
    if not by_class:
        return torch.ones_like(logits.select(_class_dim(logits), 0), requires_grad=False)
    kept = target != ignore_index
    if weight is None:
        return kept.to(logits.dtype)
    return weight[target.masked_fill(~kept, 0)] * kept


def _check_target(input: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether the target holds classes, not probabilities. Errors unless its dtype and shape fit the logits."""
    check_tensor_of("input", input)
    check_tensor_of("target", target, (*_CLASSES, *FLOATING))
    if input.ndim == 0:
        raise ValueError("input has no dimension: cross_entropy takes logits [V], [B, V] or [B, V, ...]")
    classes_dropped = (*input.shape[: _class_dim(input)], *input.shape[_class_dim(input) + 1 :])
    by_class = not target.is_floating_point()
    if target.shape != (classes_dropped if by_class else input.shape):
        raise ValueError(
            f"cross_entropy takes logits [B, V, ...] as input and classes [B, ...] or probabilities [B, V, ...] as "
            f"target, got {list(input.shape)} and {list(target.shape)} of {target.dtype}: move the classes to "
            f"dimension 1 with .movedim(-1, 1), or flatten the others"
        )
    return by_class


def _check_weight(weight: torch.Tensor | None, input: torch.Tensor) -> None:
    if weight is None:
        return
    check_tensor_of("weight", weight)
    classes = input.shape[_class_dim(input)]
    if weight.shape != (classes,):
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [{classes}], one for each class")


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: use one of {', '.join(_REDUCTIONS)}")
