"""Does a recipe's scaling rule hold on a model? Figures of every operand and gradient, before and after a short run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp import GradScaler

from fp8sim import recipes
from fp8sim.analysis.figures import CastFigures, GradientFigures, cast_figures, gradient_figures, plateau
from fp8sim.analysis.verdicts import Finding, Verdict, decisive, judge_cast, judge_gradient
from fp8sim.formats import Format
from fp8sim.nn import Linear, TransformerDecoder
from fp8sim.recipes import GEMM_OPERANDS, Recipe
from fp8sim.simulate.matmul import GemmEvent, observe
from fp8sim.training import loop
from fp8sim.training.model import STANDARD_SIZE, ModelSize, build_model, without_casts
from fp8sim.training.text import Sequences


@dataclass(frozen=True)
class OperandRecord:
    """One quantized operand of a layer: where it is, its format and what the cast did to it.

    `high_precision` says whether the recipe keeps the layer in high precision.
    """

    layer: str
    operand: str
    format: Format
    high_precision: bool
    figures: CastFigures

    @property
    def label(self) -> str:
        """As tables name it."""
        return f"{self.layer} {self.operand}"

    def above_plateau(self) -> float:
        """sqnr above the plateau of the format, in dB; infinite where the cast is exact or has no sqnr."""
        return math.inf if self.figures.sqnr is None else self.figures.sqnr - plateau(self.format)


@dataclass(frozen=True)
class Look:
    """What was seen at one step: every quantized operand, and the gradient of every weight class."""

    step: int
    loss: float
    operands: list[OperandRecord]
    gradients: dict[str, GradientFigures]

    def findings(self) -> Iterator[Finding]:
        """Every figure held against its limits."""
        for record in self.operands:
            trained, kept = self.step > 0, record.high_precision
            yield from judge_cast(record.label, record.figures, record.format, trained=trained, high_precision=kept)
        for name, figures in self.gradients.items():
            yield judge_gradient(f"{name} gradient", figures)
        if not math.isfinite(self.loss):
            yield Finding("loss", "finite", self.loss, Verdict.FAIL, -math.inf, "the loss is not finite")


@dataclass(frozen=True)
class RecipeResult:
    """The outcome for one recipe: its looks, the loss of every step, and the finding that decides.

    `skipped_steps` are those, from 0, that loss scaling skipped, since a gradient was not finite.
    """

    recipe: Recipe
    learning_rate: float
    losses: list[float]
    looks: list[Look]
    skipped_steps: list[int]

    @property
    def decisive(self) -> Finding:
        """The finding that decides the verdict; on PASS the one nearest to a limit."""
        return decisive([finding for look in self.looks for finding in look.findings()])

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any figure."""
        return self.decisive.verdict

    def worst(self) -> dict[str, float | None]:
        """sqnr, zeroed, clipped and cosine, each the worst over all operands or weight classes and both looks.

        The worst sqnr is the one furthest below the plateau of its format. Layers in high precision do not count.
        """
        records = [record for look in self.looks for record in look.operands if not record.high_precision]
        figures = [record.figures for record in records]
        cosines = [g.cosine for look in self.looks for g in look.gradients.values()]
        sqnr = min((r for r in records if r.figures.sqnr is not None), key=OperandRecord.above_plateau, default=None)
        return {
            "sqnr": None if sqnr is None else sqnr.figures.sqnr,
            "zeroed": _worst(max, (f.zeroed for f in figures)),
            "clipped": _worst(max, (f.clipped for f in figures)),
            "cosine": _worst(min, cosines),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: infinities and NaN become None."""
        content = {
            "recipe": self.recipe.to_dict(),
            "learning_rate": self.learning_rate,
            "losses": self.losses,
            "skipped_steps": self.skipped_steps,
            "verdict": self.verdict,
            "decisive": dataclasses.asdict(self.decisive),
            "worst": self.worst(),
            "looks": [_look_dict(look) for look in self.looks],
        }
        return {key: _plain(value) for key, value in content.items()}


def _worst(pick: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return pick(known) if known else None


def _look_dict(look: Look) -> dict[str, Any]:
    operands = [
        {
            "layer": r.layer,
            "operand": r.operand,
            "format": str(r.format),
            "high_precision": r.high_precision,
            **dataclasses.asdict(r.figures),
        }
        for r in look.operands
    ]
    gradients = {name: dataclasses.asdict(figures) for name, figures in look.gradients.items()}
    return {"step": look.step, "loss": look.loss, "operands": operands, "gradients": gradients}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_recipe(
    recipe: str | Recipe,
    sequences: Sequences,
    *,
    seed: int = 0,
    steps: int = 20,
    learning_rate: float | None = None,
    size: ModelSize = STANDARD_SIZE,
    on_step: Callable[[], None] = lambda: None,
    on_first_look: Callable[[TransformerDecoder, tuple[torch.Tensor, torch.Tensor]], None] | None = None,
) -> RecipeResult:
    """Train a decoder by `recipe` and look at it before the first and after the last step.

    Args:
        recipe: a recipe or its name.
        sequences: the batches.
        seed: of the model's weights.
        steps: optimizer steps between the looks.
        learning_rate: eta; None is the default of the recipe's parametrization.
        size: of the model.
        on_step: called after every step.
        on_first_look: called with the untrained model and the first batch.

    Raises:
        ValueError: an unknown recipe, or a learning rate that is not positive.
    """
    recipe = recipes.parse(recipe)
    model = build_model(recipe, len(sequences.text.symbols), seed, size)
    rate = loop.LEARNING_RATES[recipe.parametrization] if learning_rate is None else learning_rate
    if on_first_look is not None:
        on_first_look(model, sequences[0])
    scaler = loop.scaler_of(model)
    looks, losses = [look(model, sequences, 0, scaler)], []
    skipped: list[int] = []
    trained = loop.train(model, sequences, steps, rate, scaler=scaler, on_skipped=skipped.append)
    for loss in itertools.islice(trained, steps):
        losses.append(loss)
        on_step()
    return RecipeResult(recipe, rate, losses, [*looks, look(model, sequences, steps, scaler)], skipped)


def look(model: TransformerDecoder, sequences: Sequences, step: int, scaler: GradScaler | None = None) -> Look:
    """Figures of every quantized operand and every weight gradient of `model` on batch `step`.

    The loss scale is that of `scaler`; None: the one with which the recipe starts.
    """
    operands: dict[tuple[str, str, Format], OperandRecord] = {}
    kept = {m.name for m in model.modules() if isinstance(m, Linear) and model.recipe.keeps(m.role)}

    def record(event: GemmEvent) -> None:
        for i, operand in enumerate(GEMM_OPERANDS[event.gemm]):
            quantizer = event.quantizers[i]
            if quantizer is None or (event.layer, operand, quantizer.format) in operands:
                continue
            figures = cast_figures(event.given[i], event.used[i], quantizer.format)
            key = (event.layer, operand, quantizer.format)
            operands[key] = OperandRecord(*key, event.layer in kept, figures)

    batch = sequences[step]
    with observe(record):
        loss = loop.backward(model, batch, scaler)
    loop.unscale_gradients(model, scaler)
    gradients = _compare_gradients(model, batch)
    model.zero_grad(set_to_none=True)
    return Look(step, loss, list(operands.values()), gradients)


def _compare_gradients(
    model: TransformerDecoder, batch: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, GradientFigures]:
    """The model's gradients, by weight class, against those of the same weights and batch with every cast off."""
    reference = without_casts(model)
    loop.backward(reference, batch)
    loop.unscale_gradients(reference)
    ours, theirs = _by_class(model), _by_class(reference)
    return {name: gradient_figures(ours[name], theirs[name]) for name in ours}


def _by_class(model: TransformerDecoder) -> dict[str, torch.Tensor]:
    """The gradients of `model`, those of the same layer in different blocks put together."""
    classes: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        classes.setdefault(name.split(".")[-2], []).append(grad.flatten())
    return {name: torch.cat(parts) for name, parts in classes.items()}
