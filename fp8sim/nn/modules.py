"""Linear, Embedding, RMSNorm and GELU by recipe.

Under a unit-scaled recipe weights start as N(0, 1) and operations carry the factors of `fp8sim.unit_scaling.rules`.
Under the standard parametrization weights start as torch's and all factors are one. `parametrization_roles` says what
each parameter is to `fp8sim.optim`.
"""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional, rules


class Linear(torch.nn.Module):
    """input [..., I] -> output [..., O]; weight [O, I], bias [O] if `bias`.

    Args:
        in_features, out_features: I and O.
        bias: whether there is one; it starts at zero under unit scaling.
        recipe: quantizers of the three GEMMs, and the parametrization.
        role: "hidden" or "readout": decides the factors, and whether the recipe keeps the layer in high precision.
        constraint: ties the factors of output and grad_input of a hidden layer; None where both edges are cut, or
            where forward and backward products over a residual branch agree.

    Raises:
        ValueError: an unknown recipe, role or constraint.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        role: str = "hidden",
        constraint: str | None = "to_output_scale",
    ) -> None:
        super().__init__()
        rules.constrain(constraint, 1.0, 1.0)
        self.in_features, self.out_features = in_features, out_features
        self.recipe = recipes.parse(recipe).for_role(role)
        self.role, self.constraint = role, constraint
        self.name = ""
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew: N(0, 1) and zero if unit-scaled, else uniform in +-I^-1/2 as torch does."""
        unit_scaled, bound = self.recipe.is_unit_scaled, self.in_features**-0.5
        with torch.no_grad():
            self.weight.normal_() if unit_scaled else self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_() if unit_scaled else self.bias.uniform_(-bound, bound)

    def parametrization_roles(self) -> dict[str, str]:
        """Kinds of weight and bias."""
        return {"weight": self.role, "bias": "bias"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., I] -> [..., O]."""
        if self.role == "readout":
            return functional.linear_readout(input, self.weight, self.bias, recipe=self.recipe, name=self.name)
        return functional.linear(
            input, self.weight, self.bias, recipe=self.recipe, constraint=self.constraint, name=self.name
        )

    def extra_repr(self) -> str:
        """Sizes, role and recipe."""
        return f"{self.in_features}, {self.out_features}, role={self.role}, recipe={self.recipe.name}"


class Embedding(torch.nn.Module):
    """input [...], integers in 0 .. V - 1 -> [..., W]; weight [V, W] starts as N(0, 1)."""

    def __init__(self, vocabulary: int, width: int, *, recipe: str | Recipe = functional.UNIT_SCALED) -> None:
        super().__init__()
        self.recipe = recipes.parse(recipe)
        self.weight = torch.nn.Parameter(torch.empty(vocabulary, width).normal_())

    def parametrization_roles(self) -> dict[str, str]:
        """Kind of the weight."""
        return {"weight": "embedding"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [...] -> [..., W]."""
        return functional.embedding(input, self.weight, recipe=self.recipe)


class RMSNorm(torch.nn.Module):
    """x [..., W] -> [..., W], without a gain, as learning-rate transfer asks (Blake et al. 2024, section 3.1)."""

    def __init__(self, eps: float = 1e-5, *, recipe: str | Recipe = functional.UNIT_SCALED) -> None:
        super().__init__()
        self.eps, self.recipe = eps, recipes.parse(recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., W] -> [..., W]."""
        return functional.rms_norm(x, x.shape[-1:], eps=self.eps, recipe=self.recipe)


class GELU(torch.nn.Module):
    """gelu(mult * x) / mult for x [...]."""

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
        return functional.gelu(x, mult=self.mult, recipe=self.recipe, constraint=self.constraint)
