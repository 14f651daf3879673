"""What the committed tables have in common: the styles that they compare, where they lie, how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fp8sim import recipes
from fp8sim.analysis.scale_table import MUNIT, U_MUP
from fp8sim.nn import TransformerConfig, TransformerDecoder
from fp8sim.optim import parameter_groups
from fp8sim.recipes import Recipe
from fp8sim.training import loop
from fp8sim.training.text import Sequences, Text

SCHEMA = 1

RATES = {U_MUP: 2.0, MUNIT: 0.5}
"""Peak learning rates, by style: of the powers of two, that of the smallest loss in FP32 (seed 0, 120 steps)."""

WARM_UP = 4
"""The learning rate rises in the first of so many parts of a run."""

HEAD_WIDTH = 32
"""Features of each attention head of the decoders."""

LINE = 160
"""What is no longer than so many characters, as JSON, stands on one line."""


@dataclass(frozen=True)
class Style:
    """A parametrization with its FP8 recipes, and the activation that it was published with."""

    activation: str
    recipes: tuple[Recipe, ...]

    @property
    def parametrization(self) -> str:
        """One of `recipes.PARAMETRIZATIONS`."""
        return self.recipes[0].parametrization


def _all_hidden(name: str) -> Recipe:
    """The recipe of that name with every hidden layer in FP8, those included that it keeps in BF16."""
    return dataclasses.replace(recipes.parse(name), name=f"{name}, every hidden layer", high_precision=("readout",))


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        U_MUP: Style("swiglu", (recipes.parse("u_mup_fp8"), _all_hidden("u_mup_fp8"))),
        MUNIT: Style("gelu", (recipes.parse("munit_scaled_fp8"),)),
    }
)


def decoder(
    recipe: Recipe, style: Style, symbols: int, width: int, blocks: int, seed: int, tau: float | None = None
) -> TransformerDecoder:
    """An untrained model over so many symbols; the same seed draws the same weights, whatever the recipe casts.

    tau is for mu-nit scaling; None is `munit_tau`.
    """
    config = TransformerConfig(symbols, width, blocks, width // HEAD_WIDTH, activation=style.activation)
    if style.parametrization == "munit":
        config = dataclasses.replace(config, tau=munit_tau(blocks) if tau is None else tau)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerDecoder(config, recipe=recipe)


def munit_tau(blocks: int) -> float:
    """Share of each branch in the variance of the stream, which falls with depth (muS, appendix A.3).

    Of the paper's values two are known to us, 0.4 for 4 blocks and 0.1 for 100. This is the power of depth between
    them, and 0.4 for fewer than 4.
    """
    return float(0.4 * max(1.0, blocks / 4) ** (math.log(0.1 / 0.4) / math.log(100 / 4)))


def train(model: TransformerDecoder, batches: Sequences, rate: float, steps: int) -> Iterator[float]:
    """AdamW without weight decay on the first batches, in short runs; yields the loss of every step.

    The learning rate rises linearly to the peak `rate` and falls linearly to zero. Without warm-up and decay, runs that
    differ by rounding alone end further apart.
    """
    groups = parameter_groups(model, lr=rate, parametrization=model.recipe.parametrization)
    optimizer = torch.optim.AdamW(groups, betas=loop.BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_peak(step, steps))
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        loss = model.loss(*batches[step])
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def share_of_peak(step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, over the peak."""
    rising = max(1, steps // WARM_UP)
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, if that is a terminal; call what it yields before each of `total` parts."""
    columns = (TextColumn("{task.description:<50}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task, begun = bar.add_task("", total=total), 0

        def advance(what: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=what)
            begun += 1

        yield advance


def save(name: str, content: Text, found: Mapping[str, Any], folder: Path) -> Path:
    """Write `found` to `folder`/`name`.json, with what it was measured on; returns the path."""
    about = {
        "schema": SCHEMA,
        "text": {"name": content.name, "characters": len(content.tokens), "sha256": content.sha256},
        "versions": {"fp8sim": version("fp8sim"), "torch": str(torch.__version__)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(_lines(about | dict(found), "") + "\n", encoding="utf-8")
    return path


def _lines(value: Any, indent: str) -> str:
    """JSON of `value`, each container on one line that fits one."""
    line = json.dumps(value, allow_nan=False)
    if len(line) <= LINE or not isinstance(value, dict | list):
        return line
    inner = f"{indent} "
    if isinstance(value, dict):
        parts, brackets = [f"{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items()], "{}"
    else:
        parts, brackets = [_lines(item, inner) for item in value], "[]"
    return f"{brackets[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{brackets[1]}"
