"""RMSNorm and LayerNorm by recipe. Parameters are named and shaped as in torch's modules.

Learning rates transfer across width with norms that have no parameters (Lingle 2024; u-muP, section 3.1), so under unit
scaling a norm has none unless it is asked for. The factors on the gradients of those asked for are `rules.norm_weight`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fp8sim import recipes
from fp8sim.arguments import check_flag, check_not_negative, check_size
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional


class _Norm(torch.nn.Module):
    """What both norms share: shape, gain and perhaps bias, roles."""

    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None,
        eps: float | None,
        elementwise_affine: bool | None,
        has_bias: bool,
        recipe: str | Recipe,
    ) -> None:
        super().__init__()
        if eps is not None:
            check_not_negative("eps", eps)
        check_flag("bias", has_bias)
        if elementwise_affine is not None:
            check_flag("elementwise_affine", elementwise_affine)
        self.recipe, self.eps = recipes.parse(recipe), eps
        self.normalized_shape = None if normalized_shape is None else _sizes(normalized_shape)
        affine = elementwise_affine
        if affine is None:
            affine = self.normalized_shape is not None and not self.recipe.is_unit_scaled
        if affine and self.normalized_shape is None:
            raise ValueError(f"elementwise_affine={elementwise_affine} needs a normalized_shape: pass the width")
        self.elementwise_affine = affine
        for name, present in (("weight", affine), ("bias", affine and has_bias)):
            parameter = torch.nn.Parameter(torch.empty(self.normalized_shape or ())) if present else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to one and the bias to zero."""
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def parametrization_roles(self) -> dict[str, str]:
        """Kinds of gain and bias, as `fp8sim.unit_scaling.mup` names them."""
        return {"weight": "norm", "bias": "bias"}

    def extra_repr(self) -> str:
        """Shape, eps and recipe."""
        affine = f"elementwise_affine={self.elementwise_affine}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}, recipe={self.recipe.name}"


class RMSNorm(_Norm):
    """x [..., *normalized_shape] -> the same: x / sqrt(mean(x^2) + eps) * weight.

    Args:
        normalized_shape: the trailing dimensions that are normalised together; None is the last one, whatever its size.
        eps: added to the mean square; None is torch's, the distance from 1 to the next number of x's dtype.
        elementwise_affine: whether there is a gain; None: unless the recipe is unit-scaled or there is no shape.
        recipe: its parametrization decides.

    Raises:
        ValueError: an unknown recipe, a negative eps, or a gain without a shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float | None = 1e-5,
        elementwise_affine: bool | None = None,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., *normalized_shape] -> the same."""
        shape = self.normalized_shape or x.shape[-1:]
        return functional.rms_norm(x, shape, self.weight, self.eps, recipe=self.recipe)


class LayerNorm(_Norm):
    """x [..., *normalized_shape] -> the same: (x - mean) / sqrt(variance + eps) * weight + bias.

    Arguments and errors as for `RMSNorm`, and `bias`: whether a gain comes with a bias.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool | None = None,
        bias: bool = True,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., *normalized_shape] -> the same."""
        shape = self.normalized_shape or x.shape[-1:]
        assert self.eps is not None  # torch's default is RMSNorm's alone
        return functional.layer_norm(x, shape, self.weight, self.bias, self.eps, recipe=self.recipe)


def _sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of dimensions; one may be given by itself."""
    sizes = tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    for size in sizes:
        check_size("normalized_shape", size)
    return sizes
