"""Elementwise functions: gelu, silu, silu_glu, relu, relu_squared, tanh, sigmoid, dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional as F

from fp8sim.arguments import check_flag, check_same, check_tensor_of
from fp8sim.derivatives import differentiable_once
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, apply, is_unit_scaled, scaled_product

_Forward = Callable[[torch.Tensor], torch.Tensor]
_Backward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_aten = torch.ops.aten

_ACTIVATIONS: Mapping[str, tuple[_Forward, _Backward]] = MappingProxyType(
    {
        "gelu": (F.gelu, _aten.gelu_backward),
        "gelu tanh": (
            lambda x: F.gelu(x, approximate="tanh"),
            lambda grad, x: _aten.gelu_backward(grad, x, approximate="tanh"),
        ),
        "silu": (F.silu, _aten.silu_backward),
        "relu": (F.relu, lambda grad, x: _aten.threshold_backward(grad, x, 0)),
        "relu_squared": (lambda x: F.relu(x).square(), lambda grad, x: scaled_product(grad, F.relu(x), 2.0)),
        "tanh": (torch.tanh, lambda grad, x: _aten.tanh_backward(grad, torch.tanh(x))),
        "sigmoid": (torch.sigmoid, lambda grad, x: _aten.sigmoid_backward(grad, torch.sigmoid(x))),
    }
)
"""f(x), and the gradient of x from that of f(x) and x."""


class _Activation(torch.autograd.Function):
    """alpha * f(m * x) / m, with a gradient multiplied by beta instead of alpha."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str, mult: float, alpha: float, beta: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.name, ctx.mult, ctx.beta = name, mult, beta
        # Not in place: compiled by torch 2.11, a forward that returns the result of mul_ has zero gradients.
        return _ACTIVATIONS[name][0](x if mult == 1.0 else x * mult) * (alpha / mult)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (x,) = ctx.saved_tensors
        gradient = _ACTIVATIONS[ctx.name][1](grad, x if ctx.mult == 1.0 else x * ctx.mult)
        return gradient.mul_(ctx.beta), None, None, None, None


def _activation(
    input: torch.Tensor, name: str, mult: float, recipe: str | Recipe, factors: tuple[float, float]
) -> torch.Tensor:
    check_tensor_of("input", input)
    if is_unit_scaled(recipe):
        return apply(_Activation, input, name, mult, *factors)
    return _ACTIVATIONS[name][0](input) if mult == 1.0 else _ACTIVATIONS[name][0](input * mult) / mult


def gelu(
    input: torch.Tensor,
    approximate: str = "none",
    *,
    mult: float = 1.0,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
) -> torch.Tensor:
    """gelu(mult * x) / mult with the factors of `rules.gelu` if the recipe is unit-scaled.

    Args:
        input: x [...].
        approximate: "none" or "tanh", as for torch.
        mult: positive; the larger, the closer to relu.
        recipe: its parametrization decides.
        constraint: ties the factors of output and gradient.

    Returns:
        [...], in the dtype of the input.

    Raises:
        ValueError: an unknown approximation, recipe or constraint; a multiplier that is not positive and finite.
        TypeError: no tensor of float32, float64, float16 or bfloat16, or an option of another kind.
        RuntimeError: under a unit-scaled recipe, from autograd: a second derivative, which there is none of.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate={approximate!r}: use 'none' or 'tanh'")
    name = "gelu" if approximate == "none" else "gelu tanh"
    return _activation(input, name, mult, recipe, rules.gelu(mult, constraint))


def silu(
    input: torch.Tensor,
    *,
    mult: float = 1.0,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
) -> torch.Tensor:
    """x * sigmoid(mult * x) with the factors of `rules.silu`; arguments, result and errors as for `gelu`."""
    return _activation(input, "silu", mult, recipe, rules.silu(mult, constraint))


def relu(
    input: torch.Tensor, *, recipe: str | Recipe = UNIT_SCALED, constraint: str | None = "to_output_scale"
) -> torch.Tensor:
    """max(x, 0) with the factors of `rules.relu`; arguments, result and errors as for `gelu`."""
    return _activation(input, "relu", 1.0, recipe, rules.relu(constraint))


def relu_squared(
    input: torch.Tensor, *, recipe: str | Recipe = UNIT_SCALED, constraint: str | None = "to_output_scale"
) -> torch.Tensor:
    """max(x, 0)^2 with the factors of `rules.relu_squared`; arguments, result and errors as for `gelu`."""
    return _activation(input, "relu_squared", 1.0, recipe, rules.relu_squared(constraint))


def tanh(
    input: torch.Tensor, *, recipe: str | Recipe = UNIT_SCALED, constraint: str | None = "to_output_scale"
) -> torch.Tensor:
    """tanh(x) with the factors of `rules.tanh`; arguments, result and errors as for `gelu`."""
    return _activation(input, "tanh", 1.0, recipe, rules.tanh(constraint))


def sigmoid(
    input: torch.Tensor, *, recipe: str | Recipe = UNIT_SCALED, constraint: str | None = "to_output_scale"
) -> torch.Tensor:
    """1 / (1 + exp(-x)) with the factors of `rules.sigmoid`: the standard deviation is one, the mean alpha / 2.

    Arguments, result and errors as for `gelu`.
    """
    return _activation(input, "sigmoid", 1.0, recipe, rules.sigmoid(constraint))


class _SiluGlu(torch.autograd.Function):
    """s * x * silu(m * g) / m."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, mult: float, factor: float) -> torch.Tensor:
        opened = F.silu(gate if mult == 1.0 else gate * mult)
        ctx.save_for_backward(x, gate, opened)
        ctx.mult, ctx.factor = mult, factor
        return scaled_product(x, opened, factor / mult)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, gate, opened = ctx.saved_tensors
        grad_x = scaled_product(grad, opened, ctx.factor / ctx.mult)
        grad_opened = scaled_product(grad, x, ctx.factor)
        grad_gate = _aten.silu_backward(grad_opened, gate if ctx.mult == 1.0 else gate * ctx.mult)
        return grad_x, grad_gate, None, None


def silu_glu(
    input: torch.Tensor, gate: torch.Tensor, *, mult: float = 1.0, recipe: str | Recipe = UNIT_SCALED
) -> torch.Tensor:
    """input * gate * sigmoid(mult * gate), with the one factor of `rules.silu_glu` if the recipe is unit-scaled.

    Args:
        input, gate: [...], of one shape and dtype.
        mult: positive; the larger, the closer the gate to relu.
        recipe: its parametrization decides.

    Returns:
        [...].

    Raises:
        ValueError, TypeError, RuntimeError: operands that differ in shape or dtype; else as for `gelu`.
    """
    check_tensor_of("input", input)
    check_tensor_of("gate", gate)
    check_same(dtype=False, input=input, gate=gate)
    if input.shape != gate.shape or input.dtype != gate.dtype:
        raise ValueError(
            f"input and gate must share shape and dtype, got {list(input.shape)} of {input.dtype} and "
            f"{list(gate.shape)} of {gate.dtype}: use .expand_as() and .to()"
        )
    factor = rules.silu_glu(mult)
    return apply(_SiluGlu, input, gate, mult, factor if is_unit_scaled(recipe) else 1.0)


class _Dropout(torch.autograd.Function):
    """factor * mask * x, for both directions. The mask holds 0 and 1, so that no dtype rounds the factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.factor = factor
        return scaled_product(x, mask, factor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return scaled_product(grad, mask, ctx.factor), None, None


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, *, recipe: str | Recipe = UNIT_SCALED
) -> torch.Tensor:
    """Zero each element with probability p, and keep the variance of the others if the recipe is unit-scaled.

    The kept ones are multiplied by 1 / (1 - p) times the factor of `rules.dropout`, so by (1 - p)^-1/2.

    Args:
        input: [...].
        p: 0 to 1.
        training: False returns the input.
        recipe: its parametrization decides.

    Returns:
        [...].

    Raises:
        ValueError: p outside 0 .. 1, or an unknown recipe.
    """
    check_tensor_of("input", input)
    check_flag("training", training)
    factor = rules.dropout(p)
    if not is_unit_scaled(recipe):
        return F.dropout(input, p, training)
    if not training:
        return input
    mask = torch.empty_like(input, requires_grad=False).bernoulli_(1 - p)
    return apply(_Dropout, input, mask, factor / (1 - p) if p < 1 else 0.0)
