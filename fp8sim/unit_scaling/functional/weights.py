"""Functions of which only the weight's gradient needs a factor: embedding, layer_norm, rms_norm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

from fp8sim.arguments import check_integer, check_not_negative, check_same, check_tensor_of
from fp8sim.derivatives import differentiable_once
from fp8sim.recipes import Recipe
from fp8sim.simulate.scale import scale_bwd
from fp8sim.torch_autocast import is_autocasting
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, apply, count_tokens, is_unit_scaled


def embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """Rows of `weight`, whose gradient has the factor of `rules.embedding` if the recipe is unit-scaled.

    Args:
        input: [...], integers in 0 .. V - 1. weight: [V, W].
        padding_idx: a row without gradient; its lookups count as tokens.
        max_norm, norm_type, scale_grad_by_freq: as for torch; the first and last change scale, and unit-scaled recipes
            refuse them.
        sparse: whether the gradient is a sparse tensor.
        recipe: its parametrization decides.
        batch_tokens: lookups in the whole batch, where this call sees a part of it; None: this input's.

    Returns:
        [..., W].

    Raises:
        ValueError: an unknown recipe, `max_norm` or `scale_grad_by_freq` under a unit-scaled one, `batch_tokens` < 1, a
            weight that is no matrix.
        TypeError: tensors of another dtype, or none; an option of another kind.
        IndexError: on a CPU, from torch, an index outside 0 .. V - 1.
    """
    check_tensor_of("input", input, (torch.int64, torch.int32))
    check_tensor_of("weight", weight)
    check_same(dtype=False, input=input, weight=weight)
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [V, W], V at least 1")
    rows = weight.shape[0]
    if padding_idx is not None:
        check_integer("padding_idx", padding_idx)
        if not -rows <= padding_idx < rows:
            raise ValueError(f"padding_idx={padding_idx}: expected one of weight's rows, -{rows} to {rows - 1}")
    if is_unit_scaled(recipe):
        if max_norm is not None or scale_grad_by_freq:
            raise ValueError(
                f"max_norm={max_norm}, scale_grad_by_freq={scale_grad_by_freq}: both change the scale that the recipe "
                f"sets; leave them out, or use a recipe of the standard parametrization"
            )
        weight = scale_bwd(weight, rules.embedding(weight.shape[0], count_tokens(batch_tokens, input.numel())))
    try:
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    except IndexError as error:
        raise IndexError(f"input holds an index outside of weight's rows, 0 to {rows - 1}") from error


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """torch's layer_norm; the gradients of gain and bias have the factor of `rules.norm_weight` if unit-scaled.

    Args:
        input: [..., *normalized_shape].
        normalized_shape: the trailing dimensions that are normalised together.
        weight, bias: of shape normalized_shape, or None.
        eps: added to the variance.
        recipe: its parametrization decides.
        batch_tokens: rows in the whole batch, where this call sees a part of it; None: this input's.

    Returns:
        [..., *normalized_shape].

    Raises:
        ValueError: shapes that do not fit, an eps that is negative or not finite, an unknown recipe, `batch_tokens`
            below 1.
        TypeError: tensors of another dtype, or none; an option of another kind.
    """
    shape = _check_norm(input, normalized_shape, weight=weight, bias=bias)
    if not is_autocasting(input.device.type):
        _check_parameters(input, weight=weight, bias=bias)
    check_not_negative("eps", eps)
    weight, bias = (_gain(p, input, shape, recipe, batch_tokens) for p in (weight, bias))
    return F.layer_norm(input, list(shape), weight, bias, eps)


def rms_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight; the gain's gradient has the factor of `rules.norm_weight` if unit-scaled.

    Arguments, result and errors as for `layer_norm`, except eps: it is added to the mean square, and None is torch's
    default, the distance from 1 to the dtype's next number.
    """
    shape = _check_norm(input, normalized_shape, weight=weight)
    if eps is not None:
        check_not_negative("eps", eps)
    weight = _gain(weight, input, shape, recipe, batch_tokens)
    if eps is None or not _are_wide(input, weight, shape):
        return F.rms_norm(input, list(shape), weight, eps)
    normal = apply(_RmsNorm, input, len(shape), eps)
    return normal if weight is None else normal * weight


def _are_wide(input: torch.Tensor, weight: torch.Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether input [..., *shape] and weight [*shape] are of one dtype in which norms are computed."""
    if not shape or input.dtype not in (torch.float32, torch.float64):
        return False
    return weight is None or weight.dtype == input.dtype


class _RmsNorm(torch.autograd.Function):
    """r * x with r = (mean(x^2) + eps)^-1/2 over the last `dimensions`: torch's, in half of its passes.

    With n elements, dL/dx = r * (g - x * r^2 * sum(g * x) / n) for the gradient g of the output.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dimensions: int, eps: float) -> torch.Tensor:
        axes = tuple(range(-dimensions, 0))
        ctx.axes, ctx.count = axes, max(1, prod(x.shape[-dimensions:]))
        norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        inverse: torch.Tensor = (norm.square() / ctx.count + eps).rsqrt()
        ctx.save_for_backward(x, inverse)
        return x * inverse

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, inverse = ctx.saved_tensors
        along = (grad * x).sum(ctx.axes, keepdim=True) * inverse.square() / -ctx.count
        return torch.addcmul(grad, x, along).mul_(inverse), None, None


def _check_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], **parameters: torch.Tensor | None
) -> tuple[int, ...]:
    """The normalized shape. TypeError or ValueError unless it ends the input's shape and is that of the parameters."""
    check_tensor_of("input", input)
    if not isinstance(normalized_shape, Sequence) or not normalized_shape:
        raise TypeError(f"normalized_shape={normalized_shape!r}: expected the sizes of one dimension or more, as (64,)")
    for size in normalized_shape:
        check_integer("normalized_shape", size)
    shape = tuple(normalized_shape)
    if input.shape[-len(shape) :] != shape:
        raise ValueError(f"normalized_shape={list(shape)}: expected the last sizes of input {list(input.shape)}")
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        check_tensor_of(name, parameter)
        check_same(dtype=False, input=input, **{name: parameter})
        if parameter.shape != shape:
            raise ValueError(f"{name} has shape {list(parameter.shape)}: expected normalized_shape, {list(shape)}")
    return shape


def _check_parameters(input: torch.Tensor, **parameters: torch.Tensor | None) -> None:
    """ValueError unless parameters have the input's dtype, or float32 for an input of 16 bits."""
    for name, parameter in parameters.items():
        if parameter is None or parameter.dtype == input.dtype:
            continue
        if parameter.dtype != torch.float32 or input.dtype == torch.float64:
            raise ValueError(
                f"{name} is {parameter.dtype} and input {input.dtype}: expected one dtype, or torch.float32 for an "
                f"input of 16 bits"
            )


def _gain(
    parameter: torch.Tensor | None,
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    recipe: str | Recipe,
    batch_tokens: int | None,
) -> torch.Tensor | None:
    if parameter is None or not is_unit_scaled(recipe):
        return parameter
    rows = input.numel() // max(1, prod(normalized_shape))
    return scale_bwd(parameter, rules.norm_weight(count_tokens(batch_tokens, rows)))
