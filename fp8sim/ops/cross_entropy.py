"""Softmax cross-entropy whose gradient is made with the loss and may take the logits' memory: on any backend."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import backends
from fp8sim.arguments import (
    FLOATS,
    check_flag,
    check_float32,
    check_float32_factor,
    check_integer,
    check_number,
    check_tensor,
    check_tensor_of,
)
from fp8sim.derivatives import differentiable_once
from fp8sim.ops.library import register
from fp8sim.simulate.scale import scale_fwd

_REDUCTIONS = ("mean", "sum", "none")
_OPTIONS = (
    "Tensor target, Tensor? weight, int ignore_index, float label_smoothing, float mult, float z_loss, "
    "float grad_factor, Tensor? factor, str backend"
)


def _run(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    mult: float,
    z_loss: float,
    grad_factor: float,
    factor: torch.Tensor | None,
    backend: str,
    *,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "mult": mult}
    options |= {"z_loss": z_loss, "grad_factor": grad_factor, "factor": factor, "in_place": in_place}
    losses, grad = backends.row("cross_entropy", backend).load()(logits, target, weight, **options)
    return losses, grad


def _impl(logits: torch.Tensor, *options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(logits, *options)


def _in_place_impl(logits: torch.Tensor, *options: Any) -> torch.Tensor:
    losses, _ = _run(logits, *options, in_place=True)
    torch.autograd.graph.increment_version(logits)
    return losses


def _losses_fake(logits: torch.Tensor, target: torch.Tensor, *options: Any) -> torch.Tensor:
    return torch.empty(target.shape, dtype=torch.float32, device=logits.device)


def _fake(logits: torch.Tensor, target: torch.Tensor, *options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return _losses_fake(logits, target), gradient


def _scale_impl(x: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    backends.row("scale_rows", backend).load()(x, factor)
    torch.autograd.graph.increment_version(x)


def _scale_fake(x: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    return None


_op = register(f"cross_entropy(Tensor logits, {_OPTIONS}) -> (Tensor, Tensor)", _impl, _fake)
_in_place_op = register(f"cross_entropy_(Tensor(a!) logits, {_OPTIONS}) -> Tensor", _in_place_impl, _losses_fake)
_scale_op = register("scale_rows_(Tensor(a!) x, Tensor factor, str backend) -> ()", _scale_impl, _scale_fake)


class _CrossEntropy(torch.autograd.Function):
    """Losses of rows, whose gradient is made in the forward pass and multiplied in the backward pass, once."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, options: tuple[Any, ...], in_place: bool) -> torch.Tensor:
        if in_place:
            grad, losses = logits.detach(), _in_place_op(logits, *options)
        else:
            losses, grad = _op(logits, *options)
        ctx.save_for_backward(grad)
        ctx.backend = options[-1]
        result: torch.Tensor = losses
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_losses: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        # Changes what was saved, so that autograd refuses a second time.
        _scale_op(grad, grad_losses, ctx.backend)
        return grad, None, None


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    mult: float = 1.0,
    z_loss: float = 0.0,
    beta: float | None = None,
    in_place: bool = False,
) -> torch.Tensor:
    """Cross-entropy of softmax(mult * logits), whose gradient is computed with it.

    The losses are float32 within the bound that `fp8sim.simulate.cross_entropy` derives of the definition there, as is
    the gradient before it is rounded to the dtype of the logits. It can be differentiated once.

    Args:
        logits: [..., V], float32, float16 or bfloat16: the classes are the last axis.
        target: [...], int64 or int32: classes 0 .. V - 1, or `ignore_index` for rows that do not count. Any other class
            gives NaN.
        weight: [V], of classes, or None.
        ignore_index, label_smoothing, z_loss: as for `fp8sim.functional.cross_entropy`.
        reduction: "mean" over the rows that count (weighted, if there are weights), "sum" or "none".
        mult: positive; the inverse of a temperature.
        beta: None: the gradient is that of the result. A number: it is beta times that of the sum over rows, by
            mult * logits, whatever the reduction (unit scaling).
        in_place: whether the gradient takes the memory of the logits, which are lost: nothing else may need them, and
            autograd says so if it does.

    Returns:
        [], or [...] for "none"; float32. With every row ignored the mean is NaN, and the gradient zero.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit, an unknown reduction, a multiplier that is not
            positive, smoothing outside 0 .. 1; `in_place` of a leaf that requires a gradient, or of rows with gaps.
        RuntimeError: from autograd, when the loss is differentiated again, or something needs the lost logits.
    """
    _check_operands(logits, target, weight)
    _check_options(reduction, ignore_index, label_smoothing, mult, z_loss, beta)
    check_flag("in_place", in_place)
    if in_place and logits.is_leaf and logits.requires_grad:
        raise ValueError("in_place=True would overwrite logits, a leaf that requires a gradient: pass in_place=False")
    inverse = _counted(target, weight, ignore_index).reciprocal() if reduction == "mean" else None
    plain = beta is None
    grad_factor = mult if beta is None else beta
    options = (target, None if weight is None else weight.detach(), ignore_index, label_smoothing, mult, z_loss)
    arguments = (
        *options,
        grad_factor,
        inverse if plain else None,
        backends.select("cross_entropy", logits.device.type),
    )
    losses: torch.Tensor = _CrossEntropy.apply(logits, arguments, in_place)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return losses
    return losses.sum() if inverse is None else scale_fwd(losses.sum(), inverse)


def _counted(target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int) -> torch.Tensor:
    """How many rows count in a mean, weighted: [], float32."""
    kept = target != ignore_index
    if weight is None:
        return kept.sum().float()
    classes = target.clamp(0, weight.numel() - 1).long()
    return (weight.detach().float()[classes] * kept).sum()


def _check_operands(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> None:
    check_tensor_of("logits", logits, FLOATS)
    check_tensor("target", target)
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"target must hold classes as int64 or int32, got {target.dtype}: probabilities are for "
                        f"fp8sim.functional.cross_entropy")  # fmt: skip
    if logits.ndim == 0 or target.shape != logits.shape[:-1] or target.device != logits.device:
        raise ValueError(
            f"cross_entropy takes logits [..., V] and classes [...] as target on one device, got {list(logits.shape)} "
            f"on {logits.device} and {list(target.shape)} on {target.device}: move the classes to the last axis"
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"logits have shape {list(logits.shape)}: expected one class or more")
    if weight is None:
        return
    check_tensor_of("weight", weight, FLOATS)
    if weight.shape != logits.shape[-1:] or weight.device != logits.device:
        raise ValueError(
            f"weight must be [{logits.shape[-1]}] on {logits.device}, got {list(weight.shape)} on {weight.device}"
        )


def _check_options(
    reduction: str, ignore_index: int, label_smoothing: float, mult: float, z_loss: float, beta: float | None
) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: use one of {', '.join(_REDUCTIONS)}")
    check_integer("ignore_index", ignore_index)
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected a number from 0 to 1")
    check_float32_factor("mult", mult)
    check_float32("z_loss", z_loss)
    if beta is not None:
        check_float32("beta", beta)
