"""A character model of GELU-MLP blocks, small enough for a CPU, with every linear layer by recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fp8sim import recipes
from fp8sim.nn import GELU, Embedding, Linear, ResidualStack, RMSNorm
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional, rules


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a `CharacterMlp`.

    Attributes:
        context: C, characters that the model sees.
        embedding: E, width of a character's embedding.
        width: D, of the residual stream.
        blocks: L.
        expansion: inner width of a block over D.
    """

    context: int = 8
    embedding: int = 64
    width: int = 256
    blocks: int = 4
    expansion: int = 4


STANDARD_SIZE = ModelSize()


class Block(torch.nn.Module):
    """x [T, D] -> [T, D]: norm, up, gelu, down, and the residual connection.

    up and down leave their factors untied: over the branch, D^-1/2 (4D)^-1/2 forward equals (4D)^-1/2 D^-1/2 backward.
    """

    def __init__(self, size: ModelSize, tau: float, recipe: Recipe) -> None:
        super().__init__()
        inner = size.expansion * size.width
        self.tau, self.recipe = tau, recipe
        self.norm = RMSNorm(recipe=recipe)
        self.up = Linear(size.width, inner, recipe=recipe, constraint=None)
        self.gelu = GELU(recipe=recipe)
        self.down = Linear(inner, size.width, recipe=recipe, constraint=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, D] -> [T, D]."""
        branch, skip = functional.residual_split(x, self.tau, recipe=self.recipe)
        branch = self.down(self.gelu(self.up(self.norm(branch))))
        return functional.residual_add(branch, skip, self.tau, recipe=self.recipe)


class CharacterMlp(torch.nn.Module):
    """contexts [T, C] -> logits [T, V]: embeddings of C characters, concatenated, through L blocks.

    Args:
        symbols: V.
        recipe: for every linear layer; its parametrization decides initialisation and factors.
        size: widths and depth.
    """

    def __init__(self, symbols: int, recipe: str | Recipe, size: ModelSize = STANDARD_SIZE) -> None:
        super().__init__()
        self.recipe, self.symbols, self.size = recipes.parse(recipe), symbols, size
        recipe = self.recipe
        self.embedding = Embedding(symbols, size.embedding, recipe=recipe)
        # The edge from the embedding is a cut edge, so the factors of the first layer need no tie.
        self.projection = Linear(size.context * size.embedding, size.width, recipe=recipe, constraint=None)
        taus = [rules.residual_tau(i, size.blocks) for i in range(size.blocks)]
        self.blocks = ResidualStack(*(Block(size, tau, recipe) for tau in taus))
        self.norm = RMSNorm(recipe=recipe)
        self.readout = Linear(size.width, symbols, recipe=recipe, role="readout")
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.name = name.replace("blocks.", "block")

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        """contexts [T, C] -> logits [T, V]."""
        x = self.blocks(self.projection(self.embedding(contexts).flatten(1)))
        logits: torch.Tensor = self.readout(self.norm(x))
        return logits

    def with_recipe(self, recipe: Recipe) -> CharacterMlp:
        """A model of the same sizes and with a copy of the same weights, computed by another recipe."""
        with torch.random.fork_rng(devices=[]):
            other = CharacterMlp(self.symbols, recipe, self.size)
        other.load_state_dict(self.state_dict())
        return other

    def loss(self, contexts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of targets [T], in nats; its gradient follows the recipe's parametrization."""
        return functional.cross_entropy(self(contexts), targets, recipe=self.recipe)
