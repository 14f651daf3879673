"""Short training runs of one model at several widths, and the sizes of everything in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from fp8sim.analysis.coordinates.probe import Probe, Shapes, Sizes, first_float_tensor, rms
from fp8sim.nn import Embedding

GRADIENT, UPDATE = "gradient", "update"
"""What is recorded of a parameter: the RMS of the gradient that step t was made of, and of the step, w_t - w_(t-1)."""

LOSS = "loss"
"""Its value on the training batch, before step t."""

Batch = tuple[torch.Tensor, ...]
Batches = Batch | Callable[[int], Batch]
Factory = Callable[[int], torch.nn.Module | tuple[torch.nn.Module, torch.optim.Optimizer]]
OptimizerFactory = Callable[[torch.nn.Module], torch.optim.Optimizer]
Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Measurements:
    """The sizes of all runs, with S seeds, W widths and T steps.

    Attributes:
        widths: ascending. steps: T. seeds: S.
        values: (name, quantity) -> [S, W, T + 1], float64; NaN where there is none. Step 0 is before training.
        shapes: of each module, at each width, in the order in which the modules are computed.
        rules: of modules that state the rule of their learning rate: the exponents of their own change that it allows,
            from lowest to highest.
        is_sgd: whether the optimizer is torch's SGD, whose steps go as the gradient.
    """

    widths: tuple[int, ...]
    steps: int
    seeds: int
    values: dict[tuple[str, str], np.ndarray]
    shapes: dict[str, tuple[Shapes, ...]]
    rules: dict[str, tuple[float, float]]
    is_sgd: bool


@dataclass(frozen=True)
class Setup:
    """How one run is made; see `coord_check`."""

    factory: Factory
    optimizer: OptimizerFactory | None
    loss: Loss
    batch: Callable[[int], Batch]
    steps: int

    def build(self, width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The model of that width and its optimizer."""
        try:
            made = self.factory(width)
        except Exception as error:
            raise ValueError(
                f"factory({width}) failed: {type(error).__name__}: {error}. Give widths that the model can have, "
                f"or a factory that takes one width"
            ) from error
        model, optimizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if isinstance(model, torch.nn.Module) and optimizer is None and self.optimizer is not None:
            optimizer = self.optimizer(model)
        if isinstance(model, torch.nn.Module) and optimizer is not None and hasattr(optimizer, "step"):
            return model, optimizer
        got = ", ".join(type(part).__name__ for part in (made if isinstance(made, tuple) else (made,)))
        raise ValueError(
            f"factory({width}) returned {got}: expected a torch.nn.Module and its optimizer, (model, optimizer), "
            f"or the model alone together with optimizer="
        )


def measure(setup: Setup, widths: Sequence[int], seeds: int, advance: Callable[[str], None]) -> Measurements:
    """Train at every width from every seed."""
    widths = tuple(widths)
    values: dict[tuple[str, str], np.ndarray] = {}
    shapes: dict[int, dict[str, Shapes]] = {}
    for seed in range(seeds):
        for j, width in enumerate(widths):
            with _seeded(seed):
                model, optimizer = setup.build(width)
                run, found = _run(setup, model, optimizer, f"width {width}, seed {seed}", advance)
            _check_same_modules(shapes.setdefault(width, found), shapes[widths[0]], width, widths[0])
            for t, sizes in enumerate(run):
                for key, value in sizes.items():
                    empty = np.full((seeds, len(widths), setup.steps + 1), math.nan)
                    values.setdefault(key, empty)[seed, j, t] = value
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    by_module = {name: tuple(shapes[width][name] for width in widths) for name in shapes[widths[0]]}
    return Measurements(widths, setup.steps, seeds, values, by_module, _stated_rules(model), is_sgd)


def _stated_rules(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """u-muP divides the rate of embeddings by the square root of their width, or leaves it (`mup.u_mup`)."""
    return {
        name: (-0.5, 0.0)
        for name, module in model.named_modules()
        if isinstance(module, Embedding) and module.recipe.parametrization in ("unit_scaled", "u_mup")
    }


def _run(
    setup: Setup,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    label: str,
    advance: Callable[[str], None],
) -> tuple[list[Sizes], dict[str, Shapes]]:
    """The sizes before training and after each step."""
    probe = Probe(model, lambda model: setup.loss(model, *setup.batch(0)))
    run = [_finite(probe.look(), f"{label}, before training")]
    for step in range(1, setup.steps + 1):
        trained = _step(setup, model, optimizer, step)
        run.append(_finite(trained | probe.look(), f"{label}, step {step}"))
        advance(f"{label}, step {step}")
    return run, probe.shapes


def _step(setup: Setup, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Sizes:
    """Train on batch step - 1."""
    optimizer.zero_grad()
    loss = setup.loss(model, *setup.batch(step - 1))
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ValueError(f"loss: got {_describe(loss)}, expected a tensor of one element, the mean over the batch")
    loss.backward()
    sizes: Sizes = {("", LOSS): loss.item()}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sizes[name, GRADIENT] = rms([parameter.grad])
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name in before:
            sizes[name, UPDATE] = rms([parameter - before[name]])
    return sizes


def _finite(sizes: Sizes, label: str) -> Sizes:
    for (name, quantity), value in sizes.items():
        if not math.isfinite(value):
            raise ValueError(
                f"factory, {label}: the {quantity} of {name or 'the model'} is not finite. Lower the learning rate of "
                f"the optimizer, or take fewer steps= or smaller widths=, so that there are sizes to compare"
            )
    return sizes


def _check_same_modules(found: dict[str, Shapes], first: dict[str, Shapes], width: int, first_width: int) -> None:
    different = sorted(found.keys() ^ first.keys())
    if different:
        raise ValueError(
            f"factory({width}) and factory({first_width}) have different modules: {', '.join(different[:4])}"
            f"{' and more' if len(different) > 4 else ''}. Change the width alone: the same depth and names"
        )


def default_loss(model: torch.nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    """`model.loss(*batch)` if it has that, else cross-entropy of model(inputs) [..., V] for integer targets [...].

    For targets of floats, the mean square of the difference.

    Raises:
        ValueError: neither fits.
    """
    own_loss: Loss | None = getattr(model, "loss", None)
    if callable(own_loss):
        return own_loss(*batch)
    if len(batch) != 2:
        raise ValueError(
            f"batch of {len(batch)} tensors: (inputs, targets), or pass loss=, called as loss(model, *batch)"
        )
    inputs, targets = batch
    output = first_float_tensor(model(inputs))
    if output is not None and targets.is_floating_point() and output.shape == targets.shape:
        return F.mse_loss(output, targets)
    if output is None or targets.is_floating_point() or output.shape[:-1] != targets.shape:
        raise ValueError(
            f"the model returned {_describe(output)} for targets {_describe(targets)}: expected [..., V] for integers "
            f"[...], or the shape of targets of floats; pass loss=, called as loss(model, *batch)"
        )
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from `seed`; those of the caller go on afterwards as if nothing had been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
