"""Does FP8 change what a model learns? Runs that differ in the casts alone: python -m fp8sim.training.paired_runs.

Every run of a seed starts from the same weights and sees the same batches. At the end its loss is the mean over the
same held-out sequences, which no run trained on; what counts is its difference from that of the FP32 run. Training is
chaotic, so two runs differ by something whatever the reason: an FP32 run whose weights were perturbed by a millionth
says how much.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fp8sim.analysis import scales_page
from fp8sim.recipes import Recipe
from fp8sim.training import tables, text
from fp8sim.training.tables import STYLES, Style
from fp8sim.training.text import Sequences, Text

PERTURBATION = 1e-6
"""Relative, on every initial weight of the FP32 run that is compared with FP32."""

PERTURBED = f"fp32, weights perturbed by {PERTURBATION:g}"

HELD_OUT = 10
"""One character in so many is held out, at the end of the text."""


@dataclass(frozen=True)
class RunSize:
    """A model, its training and its judges.

    Attributes:
        width, blocks: of the decoder.
        length, batch: of sequences. steps: of the optimizer.
        judged: held-out batches that the last loss is the mean of.
    """

    width: int = 128
    blocks: int = 4
    length: int = 128
    batch: int = 8
    steps: int = 200
    judged: int = 32


def in_float32(recipe: Recipe) -> Recipe:
    """The same recipe without any cast, those of its high-precision layers included."""
    return dataclasses.replace(recipe.without_casts(), high_precision=(), high_precision_cast=None)


def final_loss(recipe: Recipe, style: str, content: Text, seed: int, size: RunSize, perturbation: float = 0.0) -> float:
    """Train one model and return its loss on held-out sequences, in nats per character.

    Args:
        recipe: of the run, in training and when it is judged.
        style: a name in `tables.STYLES`: what else the model is made of.
        content: the text; its last tenth is held out.
        seed: of weights and batches.
        size: of everything.
        perturbation: each initial weight is multiplied by 1 + perturbation * N(0, 1).
    """
    model = tables.decoder(recipe, STYLES[style], len(content.symbols), size.width, size.blocks, seed)
    if perturbation:
        perturb(model, perturbation, seed)
    taught, judged = halves(content, seed, size)
    for _ in tables.train(model, taught, tables.RATES[style], size.steps):
        pass
    with torch.no_grad():
        return statistics.fmean(model.loss(*judged[i]).item() for i in range(size.judged))


@torch.no_grad()
def perturb(model: torch.nn.Module, amount: float, seed: int) -> None:
    """Multiply every weight of `model` by 1 + amount * N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.mul_(1 + amount * torch.randn(parameter.shape, generator=generator))


def halves(content: Text, seed: int, size: RunSize) -> tuple[Sequences, Sequences]:
    """Sequences to train on, which depend on the seed, and held-out ones, which do not."""
    end = len(content.tokens) - len(content.tokens) // HELD_OUT
    parts = [dataclasses.replace(content, tokens=tokens) for tokens in (content.tokens[:end], content.tokens[end:])]
    return Sequences(parts[0], size.length, size.batch, seed), Sequences(parts[1], size.length, size.batch)


def runs_of(style: Style) -> Iterator[tuple[str, Recipe, float]]:
    """(label, recipe, perturbation) of every run of a style, that in FP32 first."""
    plain = in_float32(style.recipes[0])
    yield "fp32", plain, 0.0
    yield PERTURBED, plain, PERTURBATION
    for recipe in style.recipes:
        yield recipe.name, recipe, 0.0


def losses_of_seed(content: Text, seed: int, size: RunSize, advance: Callable[[str], None]) -> dict[str, Any]:
    """Final losses of all runs with one seed, by style and label."""
    found: dict[str, Any] = {}
    for style in STYLES:
        for label, recipe, perturbation in runs_of(STYLES[style]):
            advance(f"{style}, seed {seed}: {label}")
            found.setdefault(style, {})[label] = final_loss(recipe, style, content, seed, size, perturbation)
    return found


def differences(losses: list[dict[str, Any]], style: str, label: str) -> list[float]:
    """Loss of the run `label` minus that in FP32, by seed."""
    return [seed[style][label] - seed[style]["fp32"] for seed in losses]


def summary(losses: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each difference, its standard deviation over seeds, and the standard error of the mean; in nats."""
    return {
        style: {
            label: _spread(differences(losses, style, label))
            for label, _, _ in runs_of(STYLES[style])
            if label != "fp32"
        }
        for style in STYLES
    }


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    error = None if deviation is None else deviation / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "deviation": deviation, "error": error, "each": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=5, help="how many, from 0; more make the error of the mean smaller"
    )
    parser.add_argument("--text", type=Path, help="UTF-8 text (default: Python's help topics)")
    parser.add_argument("--out", type=Path, default=scales_page.RESULTS, help="folder of paired_runs_TEXT.json")
    options = parser.parse_args()
    size, content = RunSize(), text.load(options.text)
    losses: list[dict[str, Any]] = []
    total = options.seeds * sum(1 for style in STYLES.values() for _ in runs_of(style))
    with tables.progress(total) as advance:
        for seed in range(options.seeds):
            losses.append(losses_of_seed(content, seed, size, advance))
            run = {**vars(size), "rates": dict(tables.RATES)}
            found = {"run": run, "losses": losses, "summary": summary(losses)}
            path = tables.save(f"paired_runs_{Path(content.name).stem}", content, found, options.out)
    print(f"results: {path}")


if __name__ == "__main__":
    main()
