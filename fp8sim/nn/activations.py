"""GELU and SiLU by recipe."""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional


class GELU(torch.nn.Module):
    """gelu(mult * x) / mult for x [...], with the factors of `rules.gelu` if the recipe is unit-scaled.

    Args:
        mult: positive; the larger, the closer to relu. alpha_ffn-act of u-muP.
        approximate: "none" or "tanh", as in torch.
        recipe: its parametrization decides.
        constraint: ties the factors of output and gradient.

    Raises:
        ValueError: an unknown recipe. In `forward`: an unknown constraint or approximation, a mult not positive.
    """

    def __init__(
        self,
        mult: float = 1.0,
        approximate: str = "none",
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        constraint: str | None = "to_output_scale",
    ) -> None:
        super().__init__()
        self.mult, self.approximate = mult, approximate
        self.recipe, self.constraint = recipes.parse(recipe), constraint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.gelu(x, self.approximate, mult=self.mult, recipe=self.recipe, constraint=self.constraint)


class SiLU(torch.nn.Module):
    """x * sigmoid(mult * x) for x [...], with the factors of `rules.silu`; arguments and errors as for `GELU`."""

    def __init__(
        self,
        mult: float = 1.0,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        constraint: str | None = "to_output_scale",
    ) -> None:
        super().__init__()
        self.mult, self.recipe, self.constraint = mult, recipes.parse(recipe), constraint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.silu(x, mult=self.mult, recipe=self.recipe, constraint=self.constraint)
