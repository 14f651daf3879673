"""A small decoder for tests, in every style."""

import dataclasses

import torch

from fp8sim.nn import TransformerConfig, TransformerDecoder
from fp8sim.recipes import RECIPES, Recipe

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""The tolerance in float64."""

SMALL = TransformerConfig(vocabulary=50, width=32, blocks=2, heads=4)
TOKENS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))


def recipe_of(style: str, name: str = "fp32") -> Recipe:
    """The recipe of that name with another parametrization."""
    return dataclasses.replace(RECIPES[name], name=f"{name} {style}", parametrization=style)


def decoder(
    config: TransformerConfig = SMALL, recipe: str | Recipe = "unit_scaled", **options: object
) -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(config, recipe=recipe, **options)  # type: ignore[arg-type]
