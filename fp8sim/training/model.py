"""The model that `fp8sim validate` trains, small enough for a CPU, and what training needs of any model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from fp8sim.nn import TransformerConfig, TransformerDecoder
from fp8sim.recipes import Recipe


class Trainable(Protocol):
    """A `torch.nn.Module` that knows its recipe and its loss on a batch."""

    recipe: Recipe

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor, /) -> torch.Tensor:
        """Mean loss [] of one batch, in nats."""

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """As of `torch.nn.Module`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of `torch.nn.Module`."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a decoder.

    Attributes:
        width: W, of the residual stream.
        blocks: each attention and a GELU MLP of inner width 4 W.
        heads: of each attention.
    """

    width: int = 128
    blocks: int = 4
    heads: int = 4


STANDARD_SIZE = ModelSize()


def build_model(recipe: Recipe, symbols: int, seed: int, size: ModelSize = STANDARD_SIZE) -> TransformerDecoder:
    """An untrained decoder over `symbols` symbols; a seed draws the same numbers for all recipes of a parametrization.

    The global generator of random numbers stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TransformerConfig(symbols, size.width, size.blocks, size.heads, activation="gelu")
        return TransformerDecoder(config, recipe=recipe)


_Model = TypeVar("_Model", bound=torch.nn.Module)


def without_casts(model: _Model) -> _Model:
    """A copy of `model`, its weights and its factors in which no recipe casts: the reference of its gradients."""
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(getattr(module, "recipe", None), Recipe):
            module.recipe = module.recipe.without_casts()  # type: ignore[union-attr,operator]
    return reference
