"""The decoder that is checked where no factory is given, and what a recipe's casts do to its sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from fp8sim.analysis.coordinates.measuring import GRADIENT, UPDATE
from fp8sim.analysis.coordinates.probe import ACTIVATION, CHANGE, OWN_CHANGE
from fp8sim.analysis.coordinates.result import CoordCheck
from fp8sim.nn import TransformerConfig, TransformerDecoder
from fp8sim.optim import parameter_groups
from fp8sim.recipes import Recipe

LEARNING_RATES: Mapping[str, float] = MappingProxyType(
    {"standard": 1e-3, "mup": 0.02, "unit_scaled": 0.5, "u_mup": 0.5, "munit": 0.5}
)
"""eta by parametrization: below the one that trains best, so that a few steps stay in the range of small changes."""

HEADS, HEAD_WIDTH = 4, 16
"""Where q.k is divided by the width of a head, there are so many and they grow; else they are so wide."""


@dataclass(frozen=True)
class DecoderFactory:
    """width -> a `TransformerDecoder` of two blocks and its AdamW, as `parameter_groups` has them.

    Attributes:
        recipe: its parametrization is what is checked.
        vocabulary: V.
        learning_rate: eta; None: that of `LEARNING_RATES`.
        heads: how many, so that they grow with the width; None: `HEADS` of them where q.k is divided by their width
            (muP, u-muP), else of `HEAD_WIDTH`.
        blocks: in the model.
    """

    recipe: Recipe
    vocabulary: int
    learning_rate: float | None = None
    heads: int | None = None
    blocks: int = 2

    @property
    def rate(self) -> float:
        """eta."""
        return self.learning_rate or LEARNING_RATES[self.recipe.parametrization]

    def __call__(self, width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The model of that width and its optimizer."""
        style = self.recipe.parametrization
        heads = self.heads or (max(1, width // HEAD_WIDTH) if style in ("standard", "munit") else HEADS)
        config = TransformerConfig(self.vocabulary, width, self.blocks, heads)
        model = TransformerDecoder(config, recipe=self.recipe)
        groups = parameter_groups(model, lr=self.rate, parametrization=style)
        return model, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


class CastEffect(NamedTuple):
    """The size of one quantity that a recipe's casts change most: times `ratio`, of `name` at a width and step."""

    quantity: str
    name: str
    width: int
    step: int
    ratio: float


def cast_effects(with_casts: CoordCheck, without: CoordCheck) -> list[CastEffect]:
    """What casts do to the sizes of the seeds that both checks have: the largest effect on each quantity.

    Both are checks of one factory, with a recipe and with `Recipe.without_casts` of it.
    """
    return [
        effect
        for quantity in (ACTIVATION, CHANGE, OWN_CHANGE, GRADIENT, UPDATE)
        if (effect := _largest_effect(with_casts, without, quantity)) is not None
    ]


def _largest_effect(with_casts: CoordCheck, without: CoordCheck, quantity: str) -> CastEffect | None:
    seeds = min(with_casts.measured.seeds, without.measured.seeds)
    largest = None
    for (name, of), values in with_casts.measured.values.items():
        if of != quantity:
            continue
        pair = np.stack([values[:seeds], without.measured.values[name, of][:seeds]])
        logs = np.log2(pair, out=np.full_like(pair, math.nan), where=pair > 0)
        ratios = np.nan_to_num((logs[0] - logs[1]).mean(0))  # [W, T + 1]
        j, step = np.unravel_index(np.abs(ratios).argmax(), ratios.shape)
        effect = CastEffect(quantity, name, with_casts.measured.widths[j], int(step), float(2 ** ratios[j, step]))
        if largest is None or abs(math.log2(effect.ratio)) > abs(math.log2(largest.ratio)):
            largest = effect
    return largest
