"""The two-layer branch of a transformer, gated (SwiGLU) or not (GELU)."""

from __future__ import annotations

import torch

from fp8sim import recipes
from fp8sim.arguments import check_flag, check_positive
from fp8sim.nn.linear import Linear
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional
from fp8sim.unit_scaling.constraints import check_counts

ACTIVATIONS = ("swiglu", "gelu")
"""swiglu: up(x) * silu(gate(x)); gelu: gelu(up(x))."""


class MLP(torch.nn.Module):
    """x [..., W] -> [..., W]: up (and gate) to E * W features, the activation, down.

    The factors of the linear layers need no tie: over the branch their product is W^-1/2 (E W)^-1/2 forward and
    backward (Blake et al. 2023, theorem 5.2). up and gate must therefore have one constraint.

    Args:
        width: W.
        expansion: E; E * W is rounded to a whole number.
        activation: one of `ACTIVATIONS`.
        mult: on the input of silu or gelu; alpha_ffn-act of u-muP.
        bias: whether the linear layers have one.
        constraint: of the linear layers; "to_output_scale" makes each an ordinary function with its own gradient.
        init_stds: standard deviations of the initial weights of up (and gate), and of down; None: `Linear`'s.
        recipe: quantizers and parametrization; up and gate have the role "ffn_up", down has "ffn_down".

    Raises:
        ValueError: an unknown activation, recipe or constraint; an expansion that leaves no feature.
    """

    def __init__(
        self,
        width: int,
        expansion: float = 4.0,
        *,
        activation: str = "swiglu",
        mult: float = 1.0,
        bias: bool = False,
        constraint: str | None = None,
        init_stds: tuple[float | None, float | None] = (None, None),
        recipe: str | Recipe = functional.UNIT_SCALED,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: use one of {', '.join(ACTIVATIONS)}")
        check_counts(width=width)
        check_positive("expansion", expansion)
        check_flag("bias", bias)
        if expansion * width >= 2**63:
            raise ValueError(f"expansion={expansion} of width={width} is beyond 64 bits: use a smaller one")
        inner = round(expansion * width)
        if inner < 1:
            raise ValueError(f"expansion={expansion} of width={width} leaves no feature: use a larger one")
        self.activation, self.mult, self.recipe = activation, mult, recipes.parse(recipe)

        def layer(inputs: int, outputs: int, role: str, std: float | None) -> Linear:
            return Linear(inputs, outputs, bias, recipe=recipe, role=role, constraint=constraint, init_std=std)

        self.up = layer(width, inner, "ffn_up", init_stds[0])
        self.gate = layer(width, inner, "ffn_up", init_stds[0]) if activation == "swiglu" else None
        self.down = layer(inner, width, "ffn_down", init_stds[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., W] -> [..., W]."""
        raised = self.up(x)
        if self.gate is None:
            active = functional.gelu(raised, mult=self.mult, recipe=self.recipe)
        else:
            active = functional.silu_glu(raised, self.gate(x), mult=self.mult, recipe=self.recipe)
        lowered: torch.Tensor = self.down(active)
        return lowered

    def extra_repr(self) -> str:
        """Activation, multiplier and recipe."""
        return f"activation={self.activation}, mult={self.mult}, recipe={self.recipe.name}"
