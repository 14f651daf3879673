"""Gradients and steps by recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fp8sim.optim import parameter_groups
from fp8sim.training.model import CharacterMlp
from fp8sim.training.text import Windows

LEARNING_RATES = {"standard": 3e-3, "mup": 3e-3, "unit_scaled": 1.0, "u_mup": 1.0, "munit": 1.0}
"""Default learning rate of a run, by parametrization."""

BETAS = (0.9, 0.95)


def backward(model: CharacterMlp, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Fill the gradients of `model` with those of its loss times the recipe's loss scale; returns the loss."""
    model.zero_grad(set_to_none=True)
    loss = model.loss(*batch)
    (loss * model.recipe.loss_scaling.factor).backward()
    return loss.item()


def train(model: CharacterMlp, windows: Windows, steps: int, learning_rate: float) -> Iterator[float]:
    """Train on batches 0 .. steps - 1 with AdamW, no weight decay, no warm-up; yields the loss of every step."""
    groups = parameter_groups(model, lr=learning_rate, parametrization=model.recipe.parametrization)
    optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
    for step in range(steps):
        loss = backward(model, windows[step])
        unscale_gradients(model)
        optimizer.step()
        yield loss


def unscale_gradients(model: CharacterMlp) -> None:
    """Divide the gradients by the recipe's loss scale."""
    factor = model.recipe.loss_scaling.factor
    for parameter in model.parameters():
        if factor != 1.0 and parameter.grad is not None:
            parameter.grad.div_(factor)
