"""The two primitives that carry unit scaling (Blake et al. 2023, section 4.1).

A unit-scaled operation is `scale_fwd(f(scale_bwd(x, beta)), alpha)`: outputs multiplied by alpha, gradients by beta,
and neither factor seen by the other pass. Factors are Python floats, applied in the dtype of the tensor.
"""

from __future__ import annotations

from typing import Any

import torch

from fp8sim.derivatives import differentiable_once


class _ScaleForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        return x * scale

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _ScaleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.scale, None


def scale_fwd(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """y = scale * x; the gradient passes unchanged. x, y: [...]; scale: a number, or a tensor [] without gradient."""
    return _apply(_ScaleForward, x, scale)


def scale_bwd(x: torch.Tensor, scale: float) -> torch.Tensor:
    """y = x; the gradient is multiplied by scale. x, y: [...]."""
    return _apply(_ScaleBackward, x, scale)


def _apply(function: type[torch.autograd.Function], x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = function.apply(x, scale)
    return result
