"""Sums of two tensors: add, and the residual connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fp8sim.arguments import check_broadcast, check_number, check_same, check_tensor_of
from fp8sim.derivatives import differentiable_once
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, apply, count_tokens, is_unit_scaled


class _Add(torch.autograd.Function):
    """alpha * (left + right), each gradient multiplied by a beta of its own."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor, scales: rules.AddScales) -> torch.Tensor:
        ctx.operands = ((left.shape, left.dtype), (right.shape, right.dtype))
        ctx.betas = (scales.grad_left, scales.grad_right)
        return (left + right) * scales.output

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = [
            (grad.sum_to_size(shape) * beta).to(dtype) if needed else None
            for needed, (shape, dtype), beta in zip(ctx.needs_input_grad[:2], ctx.operands, ctx.betas, strict=True)
        ]
        return *gradients, None


def add(
    input: torch.Tensor | float,
    other: torch.Tensor | float,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    batch_tokens: int | None = None,
) -> torch.Tensor:
    """input + other with the factors of `rules.add` if the recipe is unit-scaled.

    A number as either operand is added without a factor. A tensor of one element shifts the sum: the output has no
    factor. A tensor that is broadcast counts as a parameter: the gradient it gets has unit scale, whatever the
    constraint; `expand_as` makes an operand of the sum's shape of it.

    Args:
        input, other: tensors whose shapes broadcast, or numbers; at least one is a tensor.
        recipe: its parametrization decides.
        constraint: ties the factors of the output and of operands that are not broadcast.
        batch_tokens: how often the broadcast operand is repeated over the whole batch, where this call sees a part of
            it; None: in this call.

    Returns:
        The broadcast shape, in torch's common dtype.

    Raises:
        ValueError: no tensor, an unknown recipe or constraint, `batch_tokens` < 1 or not for exactly one operand.
    """
    if not isinstance(input, torch.Tensor) or not isinstance(other, torch.Tensor):
        if not isinstance(input, torch.Tensor) and not isinstance(other, torch.Tensor):
            raise ValueError(f"add takes at least one tensor, got input={input!r} and other={other!r}")
        tensor, number = (input, other) if isinstance(input, torch.Tensor) else (other, input)
        check_number("input" if tensor is other else "other", number)
        return torch.as_tensor(tensor + number)
    check_tensor_of("input", input)
    check_tensor_of("other", other)
    check_same(dtype=False, input=input, other=other)
    check_broadcast(input=input, other=other)
    if not is_unit_scaled(recipe):
        return input + other
    total = torch.broadcast_shapes(input.shape, other.shape).numel()
    repeats = [max(1, total // max(1, x.numel())) for x in (input, other)]
    if batch_tokens is not None:
        if sorted(r > 1 for r in repeats) != [False, True]:
            raise ValueError(
                f"batch_tokens={batch_tokens} counts the repeats of one broadcast operand, got shapes "
                f"{list(input.shape)} and {list(other.shape)}: leave it out, or expand an operand"
            )
        repeats = [count_tokens(batch_tokens, r) if r > 1 else r for r in repeats]
    scales = rules.add(repeats[0], repeats[1], constraint, is_shift=1 in (input.numel(), other.numel()))
    return apply(_Add, input, other, scales)


class _Split(torch.autograd.Function):
    """x twice; its gradient is the sum of both with a coefficient each."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, branch: float, skip: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.branch, ctx.skip = branch, skip
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_branch: torch.Tensor, grad_skip: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _weighted(grad_branch, ctx.branch, grad_skip, ctx.skip), None, None


class _Join(torch.autograd.Function):
    """The sum of branch and skip with a coefficient each; the gradient passes to both unchanged."""

    @staticmethod
    def forward(ctx: Any, branch: torch.Tensor, skip: torch.Tensor, scales: rules.ResidualScales) -> torch.Tensor:
        ctx.dtypes = branch.dtype, skip.dtype
        return _weighted(branch, scales.branch, skip, scales.skip)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1]), None


def _weighted(a: torch.Tensor, a_coefficient: float, b: torch.Tensor, b_coefficient: float) -> torch.Tensor:
    """a_coefficient * a + b_coefficient * b."""
    if a.dtype == b.dtype in (torch.float32, torch.float64):
        return torch.add(b * b_coefficient, a, alpha=a_coefficient)
    # Add's alpha would be rounded to the dtype.
    return torch.addcmul(b * b_coefficient, a, a.new_ones(()), value=a_coefficient)


def residual_split(
    input: torch.Tensor, tau: float = 1.0, *, convention: str = "ratio", recipe: str | Recipe = UNIT_SCALED
) -> tuple[torch.Tensor, torch.Tensor]:
    """(branch input, skip), both x; their gradients get the coefficients of `rules.residual` if unit-scaled.

    With `residual_add` this delays the branch's backward coefficient to the split and its forward one to the add, so
    that activations and gradients inside the branch have unit scale (u-muP, appendix B).

    Args:
        input: x [...].
        tau: how much the branch weighs; a larger one favours it.
        convention: what tau says, "ratio" or "share".
        recipe: its parametrization decides.

    Raises:
        ValueError: an unknown recipe or convention, a tau that the convention does not allow.
    """
    check_tensor_of("input", input)
    if not is_unit_scaled(recipe):
        return input, input
    scales = rules.residual(tau, convention)
    result: tuple[torch.Tensor, torch.Tensor] = _Split.apply(input, scales.branch, scales.skip)  # type: ignore[no-untyped-call]
    return result


def residual_add(
    branch: torch.Tensor,
    skip: torch.Tensor,
    tau: float = 1.0,
    *,
    convention: str = "ratio",
    recipe: str | Recipe = UNIT_SCALED,
) -> torch.Tensor:
    """branch + skip, with the coefficients of `rules.residual` in the forward pass if the recipe is unit-scaled.

    Args:
        branch, skip: [...], of one shape.
        tau, convention, recipe: those of the `residual_split` before.

    Returns:
        [...], in torch's common dtype.

    Raises:
        ValueError: shapes that differ; else as for `residual_split`.
    """
    check_tensor_of("branch", branch)
    check_tensor_of("skip", skip)
    check_same(dtype=False, branch=branch, skip=skip)
    if branch.shape != skip.shape:
        raise ValueError(
            f"branch and skip must share a shape, got {list(branch.shape)} and {list(skip.shape)}: a branch returns "
            f"the shape of its input"
        )
    if not is_unit_scaled(recipe):
        return branch + skip
    return apply(_Join, branch, skip, rules.residual(tau, convention))


def residual_apply(
    function: Callable[[torch.Tensor], torch.Tensor],
    input: torch.Tensor,
    tau: float = 1.0,
    *,
    convention: str = "ratio",
    recipe: str | Recipe = UNIT_SCALED,
) -> torch.Tensor:
    """`residual_add(function(branch), skip)` of a `residual_split`: a whole residual connection around `function`.

    Arguments, result and errors as for both.
    """
    branch, skip = residual_split(input, tau, convention=convention, recipe=recipe)
    return residual_add(function(branch), skip, tau, convention=convention, recipe=recipe)
