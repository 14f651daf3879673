"""Embedding by recipe. Its parameter is named and shaped as in torch's module."""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.arguments import check_integer
from fp8sim.nn.linear import check_start
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional
from fp8sim.unit_scaling.constraints import check_counts


class Embedding(torch.nn.Module):
    """input [...], integers in 0 .. V - 1 -> [..., W]; weight [V, W] starts as N(0, 1), as in torch.

    A lookup has no GEMM, so every recipe leaves it in high precision.

    Args:
        vocabulary, width: V and W.
        padding_idx: a row that starts at zero and gets no gradient; negative counts from the end.
        recipe: its parametrization decides whether the weight's gradient carries the factor of `rules.embedding`.
        init_std: standard deviation of the initial weight; None is 1.
        multiplier: on the output, as in an ordinary differentiable graph (A of muP's table).

    Raises:
        ValueError: an unknown recipe, or a `padding_idx` that is no row.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        padding_idx: int | None = None,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        init_std: float | None = None,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(vocabulary=vocabulary)
        check_integer("width", width)
        if width < 0:
            raise ValueError(f"width={width}: must not be negative")
        check_start(init_std, multiplier)
        if padding_idx is not None:
            check_integer("padding_idx", padding_idx)
        if padding_idx is not None and not -vocabulary <= padding_idx < vocabulary:
            raise ValueError(f"padding_idx={padding_idx}: the rows are {-vocabulary} to {vocabulary - 1}")
        self.recipe, self.padding_idx = recipes.parse(recipe), padding_idx
        self.init_std, self.multiplier = 1.0 if init_std is None else init_std, multiplier
        self.weight = torch.nn.Parameter(torch.empty(vocabulary, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew, with the padding row at zero."""
        with torch.no_grad():
            self.weight.normal_(std=self.init_std)
            if self.padding_idx is not None:
                self.weight[self.padding_idx].zero_()

    def parametrization_roles(self) -> dict[str, str]:
        """Kind of the weight, as `fp8sim.unit_scaling.mup` names it."""
        return {"weight": "embedding"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [...] -> [..., W]."""
        output = functional.embedding(input, self.weight, self.padding_idx, recipe=self.recipe)
        return output if self.multiplier == 1.0 else output * self.multiplier

    def extra_repr(self) -> str:
        """Sizes, padding row and recipe."""
        vocabulary, width = self.weight.shape
        return f"{vocabulary}, {width}, padding_idx={self.padding_idx}, recipe={self.recipe.name}"
