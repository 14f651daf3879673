"""Drop-in functions that carry the factors of unit scaling where the recipe's parametrization asks for them.

Every function has the same beats: take the factors (one, under the standard parametrization), and compute torch's
function with the output multiplied by alpha and the gradients by beta. Its definition is
`scale_fwd(f(scale_bwd(x, beta)), alpha)` of `fp8sim.simulate.scale`; here the factors are folded into passes that exist
anyway and stay Python floats, whatever the tensor's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fp8sim import recipes
from fp8sim.ops import matmul as ops
from fp8sim.recipes import Recipe
from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules

UNIT_SCALED = "unit_scaled"
"""The default recipe: unit scaling in high precision."""


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    name: str = "",
) -> torch.Tensor:
    """a @ b by recipe; unit-scaled by k^-1/2, with gradients by n^-1/2 and m^-1/2 (u-muP, table 8).

    Args:
        a: [..., M, K]. b: [..., K, N].
        recipe: quantizers, accumulation and parametrization.
        constraint: ties the three factors.
        name: what observers and messages call this operation.

    Returns:
        [..., M, N].

    Raises:
        ValueError: shapes that do not fit, an unknown recipe or constraint.
    """
    scales = ops.UNSCALED
    if recipes.parse(recipe).is_unit_scaled:
        ops.check_operands(a, b)
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        scales = ops.Scales(*rules.constrain(constraint, k**-0.5, n**-0.5, m**-0.5))
    return ops.matmul(a, b, recipe=recipe, scales=scales, name=name)


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    batch_tokens: int | None = None,
    name: str = "",
) -> torch.Tensor:
    """input @ weight^T + bias by recipe, with the factors of `rules.linear` if the recipe is unit-scaled.

    The bias is added unscaled; its gradient has the weight's factor.

    Args:
        input: [..., I]. weight: [O, I]. bias: [O] or None.
        recipe: quantizers, accumulation and parametrization.
        constraint: ties the factors of output and grad_input.
        batch_tokens: rows of the input over the whole batch, where this call sees a part of it; None: this input's.
        name: what observers and messages call this operation.

    Returns:
        [..., O].

    Raises:
        ValueError: shapes that do not fit, an unknown recipe or constraint.
    """
    factors = rules.LinearScales(1.0, 1.0, 1.0)
    if recipes.parse(recipe).is_unit_scaled:
        factors = rules.linear(weight.shape[-1], weight.shape[0], batch_tokens or _rows(input), constraint)
    return _linear(input, weight, bias, factors, recipe, name)


def linear_readout(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
    name: str = "",
) -> torch.Tensor:
    """`linear` with the factors of `rules.readout`: the last layer of a model, from width I to O classes.

    Arguments, result and errors as for `linear`.
    """
    factors = rules.LinearScales(1.0, 1.0, 1.0)
    if recipes.parse(recipe).is_unit_scaled:
        factors = rules.readout(weight.shape[-1], weight.shape[0], batch_tokens or _rows(input))
    return _linear(input, weight, bias, factors, recipe, name)


def _rows(input: torch.Tensor) -> int:
    """Rows of [..., I], at least 1 so that an empty input has a factor."""
    return max(1, input.shape[:-1].numel())


def _linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: rules.LinearScales,
    recipe: str | Recipe,
    name: str,
) -> torch.Tensor:
    if bias is not None and factors.grad_weight != 1.0:
        bias = scale_bwd(bias, factors.grad_weight)
    return ops.linear(input, weight, bias, recipe=recipe, scales=ops.Scales(*factors), name=name)


class _Gelu(torch.autograd.Function):
    """alpha * gelu(m * x) / m, with a gradient multiplied by beta instead of alpha."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mult: float, alpha: float, beta: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.mult, ctx.beta = mult, beta
        # Not in place: compiled by torch 2.11, a forward that returns the result of mul_ has zero gradients.
        return F.gelu(x if mult == 1.0 else x * mult) * (alpha / mult)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        scaled = x if ctx.mult == 1.0 else x * ctx.mult
        return torch.ops.aten.gelu_backward(grad, scaled).mul_(ctx.beta), None, None, None


def gelu(
    x: torch.Tensor,
    mult: float = 1.0,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
) -> torch.Tensor:
    """gelu(mult * x) / mult with the factors of `rules.gelu` if the recipe is unit-scaled. x: [...]; result: [...]."""
    if not recipes.parse(recipe).is_unit_scaled:
        return F.gelu(x) if mult == 1.0 else F.gelu(x * mult) / mult
    alpha, beta = rules.gelu(mult, constraint)
    result: torch.Tensor = _Gelu.apply(x, mult, alpha, beta)  # type: ignore[no-untyped-call]
    return result


def embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """Rows of `weight`, whose gradient has the factor of `rules.embedding` if the recipe is unit-scaled.

    Args:
        input: [...], integers in 0 .. V - 1. weight: [V, W].
        recipe: its parametrization decides.
        batch_tokens: lookups in the whole batch, where this call sees a part of it; None: this input's.

    Returns:
        [..., W].
    """
    if recipes.parse(recipe).is_unit_scaled:
        weight = scale_bwd(weight, rules.embedding(weight.shape[0], batch_tokens or max(1, input.numel())))
    return F.embedding(input, weight)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; only the gain's gradient needs a unit-scaling factor.

    Args:
        x: [..., W]. weight: [W] or None.
        eps: added to the mean square.
        recipe: its parametrization decides.
        batch_tokens: rows in the whole batch, where this call sees a part of it; None: this input's.

    Returns:
        [..., W].
    """
    if weight is not None and recipes.parse(recipe).is_unit_scaled:
        weight = scale_bwd(weight, rules.norm_weight(batch_tokens or _rows(x)))
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def residual_split(
    x: torch.Tensor, tau: float = 1.0, *, recipe: str | Recipe = UNIT_SCALED
) -> tuple[torch.Tensor, torch.Tensor]:
    """(branch input, skip), both x; their gradients get the coefficients of `rules.residual` if unit-scaled.

    With `residual_add` this delays the branch's backward coefficient to the split and its forward one to the add, so
    that activations and gradients inside the branch have unit scale (u-muP, appendix B). x: [...].
    """
    if not recipes.parse(recipe).is_unit_scaled:
        return x, x
    scales = rules.residual(tau)
    return scale_bwd(x, scales.branch), scale_bwd(x, scales.skip)


def residual_add(
    branch: torch.Tensor, skip: torch.Tensor, tau: float = 1.0, *, recipe: str | Recipe = UNIT_SCALED
) -> torch.Tensor:
    """branch + skip, with the coefficients of `rules.residual` in the forward pass if unit-scaled. Both [...]."""
    if not recipes.parse(recipe).is_unit_scaled:
        return branch + skip
    scales = rules.residual(tau)
    return scale_fwd(branch, scales.branch) + scale_fwd(skip, scales.skip)


class _CrossEntropy(torch.autograd.Function):
    """The mean loss, with the gradient beta * (softmax(logits) - onehot) of the scaled sum."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, beta: float) -> torch.Tensor:
        log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        ctx.save_for_backward(log_probabilities, target)
        ctx.beta, ctx.dtype = beta, logits.dtype
        return F.nll_loss(log_probabilities, target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        log_probabilities, target = ctx.saved_tensors
        gradient = log_probabilities.exp()
        gradient.scatter_add_(-1, target[:, None], gradient.new_tensor(-1.0).expand(len(target), 1))
        return gradient.mul_(grad * ctx.beta).to(ctx.dtype), None, None


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, *, recipe: str | Recipe = UNIT_SCALED) -> torch.Tensor:
    """Mean cross-entropy; if the recipe is unit-scaled its gradient is that of the sum times `rules.cross_entropy`.

    The loss is a cut edge, so the reported value stays the mean, in nats, and the gradient needs no loss scale.

    Args:
        logits: [B, V]. target: [B], integers in 0 .. V - 1.
        recipe: its parametrization decides.

    Returns:
        [], float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy takes logits [B, V] and target [B], got {list(logits.shape)} and {list(target.shape)}: "
            f"flatten leading dimensions first"
        )
    if not recipes.parse(recipe).is_unit_scaled:
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target)
    beta = rules.cross_entropy(logits.shape[-1])
    result: torch.Tensor = _CrossEntropy.apply(logits, target, beta)  # type: ignore[no-untyped-call]
    return result
