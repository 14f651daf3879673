"""Linear layers by recipe: Linear, LinearReadout, Conv1d. Parameters are named and shaped as in torch's modules."""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.arguments import check_finite, check_flag, check_integer, check_not_negative
from fp8sim.recipes import HIDDEN_ROLES, Recipe
from fp8sim.unit_scaling import functional, rules
from fp8sim.unit_scaling.constraints import check_counts


class Linear(torch.nn.Module):
    """input [..., I] -> output [..., O]; weight [O, I], bias [O] if `bias`.

    Unit-scaled, weights start as N(0, 1), and the factors of `rules.linear` or `rules.readout` are on the three GEMMs.

    Args:
        in_features, out_features: I and O.
        bias: whether there is one; it starts at zero under unit scaling.
        recipe: quantizers of the three GEMMs, and the parametrization.
        role: one of `recipes.HIDDEN_ROLES` or "readout": decides the factors, and whether the recipe keeps the layer in
            high precision.
        constraint: ties the factors of output and grad_input of a hidden layer; None where both edges are cut, or
            where forward and backward products over a residual branch agree.
        init_std: standard deviation of the initial weight; None is 1 if unit-scaled, else torch's, uniform in
            +-I^-1/2, which is (3 I)^-1/2.
        multiplier: on the output, as in an ordinary differentiable graph (A of muP's table).

    Raises:
        ValueError: a size below 1, an unknown recipe, role or constraint, an `init_std` that is negative, numbers that
            are not finite.
        TypeError: an option of another kind.
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
        init_std: float | None = None,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(in_features=in_features, out_features=out_features)
        check_flag("bias", bias)
        check_start(init_std, multiplier)
        if role not in (*HIDDEN_ROLES, "readout"):
            raise ValueError(f"role={role!r}: use one of {', '.join(HIDDEN_ROLES)}, readout")
        rules.constrain(constraint, 1.0, 1.0)
        self.in_features, self.out_features = in_features, out_features
        self.recipe = recipes.parse(recipe).for_role(role)
        self.role, self.constraint = role, constraint
        self.init_std, self.multiplier = init_std, multiplier
        self.name = ""
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, as `init_std` says; the bias is zero if it is given or the recipe unit-scaled."""
        reset_weight(self.weight, self.in_features, self.init_std, self.recipe)
        reset_bias(self.bias, self.in_features, self.init_std, self.recipe)

    def parametrization_roles(self) -> dict[str, str]:
        """Kinds of weight and bias, as `fp8sim.unit_scaling.mup` names them."""
        return {"weight": "readout" if self.role == "readout" else "hidden", "bias": "bias"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., I] -> [..., O]."""
        if self.role == "readout":
            output = functional.linear_readout(input, self.weight, self.bias, recipe=self.recipe, name=self.name)
        else:
            output = functional.linear(
                input, self.weight, self.bias, recipe=self.recipe, constraint=self.constraint, name=self.name
            )
        return output if self.multiplier == 1.0 else output * self.multiplier

    def extra_repr(self) -> str:
        """Sizes, role and recipe."""
        return f"{self.in_features}, {self.out_features}, role={self.role}, recipe={self.recipe.name}"


class LinearReadout(Linear):
    """`Linear` in the role "readout": the last layer of a model, from width I to O classes.

    Arguments and errors as for `Linear`; a readout's factors are never tied.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        init_std: float | None = None,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            recipe=recipe,
            role="readout",
            constraint=None,
            init_std=init_std,
            multiplier=multiplier,
        )


class Conv1d(torch.nn.Module):
    """input [B, I, L] or [I, L] -> output [B, O, P] or [O, P], as torch's; weight [O, I / groups, K], bias [O].

    Args:
        in_channels, out_channels, kernel_size: I, O and K.
        stride, padding, dilation, groups: as in torch; padding is a number, "valid" or "same".
        bias: whether there is one; it starts at zero under unit scaling.
        recipe: quantizers of the three GEMMs, and the parametrization.
        constraint: ties the factors of output and grad_input.

    Raises:
        ValueError: a size below 1, channels that `groups` does not divide, an unknown recipe or constraint. In
            `forward`: an input that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        constraint: str | None = "to_output_scale",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        check_integer("groups", groups)
        check_flag("bias", bias)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide both in_channels={in_channels} and out_channels={out_channels}"
            )
        rules.constrain(constraint, 1.0, 1.0)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.recipe = recipes.parse(recipe).for_role("hidden")
        self.constraint = constraint
        self.name = ""
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        """I / groups * K, products in each sum."""
        return self.in_channels // self.groups * self.kernel_size

    def reset_parameters(self) -> None:
        """Draw weight and bias anew: N(0, 1) and zero if unit-scaled, else uniform in +-fan_in^-1/2 as torch does."""
        reset_weight(self.weight, self.fan_in, None, self.recipe)
        reset_bias(self.bias, self.fan_in, None, self.recipe)

    def parametrization_roles(self) -> dict[str, str]:
        """Kinds of weight and bias, as `fp8sim.unit_scaling.mup` names them."""
        return {"weight": "hidden", "bias": "bias"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [B, I, L] -> [B, O, P]."""
        return functional.conv1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            recipe=self.recipe,
            constraint=self.constraint,
            name=self.name,
        )

    def extra_repr(self) -> str:
        """Sizes and recipe."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        rest = f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        return f"{sizes}, {rest}, recipe={self.recipe.name}"


def check_start(init_std: float | None, multiplier: float = 1.0) -> None:
    """TypeError or ValueError unless weights can be drawn and outputs multiplied with these."""
    if init_std is not None:
        check_not_negative("init_std", init_std)
    check_finite("multiplier", multiplier)


@torch.no_grad()
def reset_weight(weight: torch.Tensor, fan_in: int, init_std: float | None, recipe: Recipe) -> None:
    """Draw `weight` from N(0, init_std^2); for None from N(0, 1) if unit-scaled, else uniform in +-fan_in^-1/2."""
    if init_std is not None or recipe.is_unit_scaled:
        weight.normal_(std=1.0 if init_std is None else init_std)
    else:
        weight.uniform_(-(fan_in**-0.5), fan_in**-0.5)


@torch.no_grad()
def reset_bias(bias: torch.Tensor | None, fan_in: int, init_std: float | None, recipe: Recipe) -> None:
    """Set `bias` to zero where `reset_weight` draws normally, else draw it as torch does, uniform in +-fan_in^-1/2."""
    if bias is None:
        return
    if init_std is not None or recipe.is_unit_scaled:
        bias.zero_()
    else:
        bias.uniform_(-(fan_in**-0.5), fan_in**-0.5)
