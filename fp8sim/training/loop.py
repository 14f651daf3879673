"""Gradients and steps by recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.amp import GradScaler

from fp8sim.optim import grad_scaler, parameter_groups
from fp8sim.training.model import Trainable
from fp8sim.training.text import Sequences

LEARNING_RATES = {"standard": 3e-3, "mup": 0.1, "unit_scaled": 1.0, "u_mup": 1.0, "munit": 0.25}
"""Default learning rate of a run without warm-up, by parametrization.

muP's is for no base shape: hidden weights get 1 / fan_in of it. Mu-nit scaling's is below 1 because at 1 after 20
steps three quarters of the gradients of queries, keys and values lie below E5M2's smallest number.
"""

BETAS = (0.9, 0.95)


def backward(model: Trainable, batch: tuple[torch.Tensor, torch.Tensor], scaler: GradScaler | None = None) -> float:
    """Fill the gradients of `model` with those of its loss times the loss scale; returns the loss.

    The scale is that of `scaler`; None: the one with which the recipe starts.
    """
    model.zero_grad(set_to_none=True)
    loss = model.loss(*batch)
    (scaler or scaler_of(model)).scale(loss).backward()
    return loss.item()


def scaler_of(model: Trainable) -> GradScaler:
    """A new scaler by the recipe of `model`, on its device."""
    return grad_scaler(model.recipe, next(model.parameters()).device.type)


def train(
    model: Trainable,
    sequences: Sequences,
    steps: int,
    learning_rate: float,
    *,
    scaler: GradScaler | None = None,
    on_skipped: Callable[[int], None] = lambda step: None,
) -> Iterator[float]:
    """Train on batches 0 .. steps - 1 with AdamW, no weight decay, no warm-up; yields the loss of every step.

    Args:
        scaler: the state of loss scaling, kept up to date; None: a new one.
        on_skipped: called with the number of each step that loss scaling skips, since a gradient is not finite.
    """
    assert isinstance(model, torch.nn.Module)
    groups = parameter_groups(model, lr=learning_rate, parametrization=model.recipe.parametrization)
    optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
    scaler = scaler or scaler_of(model)
    for step in range(steps):
        loss = backward(model, sequences[step], scaler)
        if scaler.is_enabled() and not _gradients_are_finite(model):
            on_skipped(step)
        scaler.step(optimizer)
        scaler.update()
        yield loss


def _gradients_are_finite(model: Trainable) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def unscale_gradients(model: Trainable, scaler: GradScaler | None = None) -> None:
    """Divide the gradients by the loss scale of `scaler`; None: by that with which the recipe starts."""
    factor = (scaler or scaler_of(model)).get_scale()
    for parameter in model.parameters():
        if factor != 1.0 and parameter.grad is not None:
            parameter.grad.div_(factor)
