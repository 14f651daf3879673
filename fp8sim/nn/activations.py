"""Functions without parameters, by recipe: GELU, SiLU, ReLU, Tanh, Sigmoid, Softmax, Dropout."""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional, rules


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


class _Function(torch.nn.Module):
    """What the functions without a multiplier share."""

    def __init__(
        self, *, recipe: str | Recipe = functional.UNIT_SCALED, constraint: str | None = "to_output_scale"
    ) -> None:
        super().__init__()
        self.recipe, self.constraint = recipes.parse(recipe), constraint


class ReLU(_Function):
    """max(x, 0) for x [...], with the factors of `rules.relu` if the recipe is unit-scaled; never in place.

    Args:
        recipe: its parametrization decides.
        constraint: ties the factors of output and gradient.

    Raises:
        ValueError: an unknown recipe. In `forward`: an unknown constraint.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.relu(x, recipe=self.recipe, constraint=self.constraint)


class Tanh(_Function):
    """tanh(x) for x [...], with the factors of `rules.tanh`; arguments and errors as for `ReLU`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.tanh(x, recipe=self.recipe, constraint=self.constraint)


class Sigmoid(_Function):
    """1 / (1 + exp(-x)) for x [...], with the factors of `rules.sigmoid`; arguments and errors as for `ReLU`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.sigmoid(x, recipe=self.recipe, constraint=self.constraint)


class Softmax(_Function):
    """softmax of x [...] along `dim`, with the factors of `rules.softmax`; otherwise as `ReLU`."""

    def __init__(
        self, dim: int, *, recipe: str | Recipe = functional.UNIT_SCALED, constraint: str | None = "to_output_scale"
    ) -> None:
        super().__init__(recipe=recipe, constraint=constraint)
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.softmax(x, self.dim, recipe=self.recipe, constraint=self.constraint)


class Dropout(torch.nn.Module):
    """x [...] with a share `p` of its elements dropped in training, and the factor of `rules.dropout` if unit-scaled.

    Raises:
        ValueError: an unknown recipe, or `p` outside 0 .. 1.
    """

    def __init__(self, p: float = 0.5, *, recipe: str | Recipe = functional.UNIT_SCALED) -> None:
        super().__init__()
        rules.dropout(p)
        self.p, self.recipe = p, recipes.parse(recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.dropout(x, self.p, self.training, recipe=self.recipe)
