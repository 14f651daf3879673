"""How a branch joins the residual stream, by style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fp8sim.nn.config import TransformerConfig
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional, mup, rules

Branch = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Join:
    """skip * x + branch * f(x), differentiated as it stands."""

    branch: float = 1.0
    skip: float = 1.0

    def __call__(self, function: Branch, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        kept = x if self.skip == 1.0 else x * self.skip
        output = function(x)
        if output.dtype in (torch.float32, torch.float64):
            return torch.add(kept, output, alpha=self.branch)
        return kept + (output if self.branch == 1.0 else output * self.branch)  # add's alpha is rounded to the dtype


@dataclass(frozen=True)
class DelayedJoin:
    """The same with the coefficients that tau says; the branch's backward one is delayed to where the branch begins.

    Activations and gradients inside the branch thus have unit scale (u-muP, appendix B).
    """

    tau: float
    recipe: Recipe

    def __call__(self, function: Branch, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]."""
        return functional.residual_apply(function, x, self.tau, recipe=self.recipe)


def join_of(config: TransformerConfig, recipe: Recipe, index: int) -> Join | DelayedJoin:
    """How branch `index` joins, counted over the whole model: two for each block, attention first.

    standard: x + f(x). mup: x + (base_depth / depth)^1/2 * f(x), with 1 for base_depth where there is none. munit:
    (1 - tau)^1/2 * x + tau^1/2 * f(x) (muS, equation 11). unit_scaled and u_mup: the coefficients of
    `rules.transformer_residual_tau`.
    """
    style = recipe.parametrization
    if style == "standard":
        return Join()
    if style == "mup":
        depth = mup.depth_of(config.blocks, config.depth_convention)
        base = 1 if config.base_depth is None else mup.depth_of(config.base_depth, config.depth_convention)
        return Join(branch=mup.branch_multiplier(depth, base))
    if style == "munit":
        scales = rules.residual(config.tau, "share")
        return Join(branch=scales.branch, skip=scales.skip)
    tau = rules.transformer_residual_tau(
        index,
        2 * config.blocks,
        alpha_res=config.alpha_res,
        alpha_res_attn_ratio=config.alpha_res_attn_ratio,
        depth=config.depth_convention,
    )
    return DelayedJoin(tau, recipe)
