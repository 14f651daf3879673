"""What a transformer is made of, apart from its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from fp8sim.arguments import check_positive, check_probability
from fp8sim.nn.mlp import ACTIVATIONS
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import mup, rules
from fp8sim.unit_scaling.constraints import check_counts

NORMS = ("rms", "layer")

_SIZES = ("vocabulary", "width", "blocks", "heads", "context", "base_width", "base_depth")


class Start(NamedTuple):
    """Standard deviation of a weight at first (None: the layer's own), and the multiplier on its layer's output."""

    init_std: float | None
    multiplier: float


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and hyperparameters of a `TransformerDecoder`.

    The recipe's parametrization decides the style, and some fields belong to certain styles; a value for another style
    is an error.

    Attributes:
        vocabulary, width, blocks, heads: V, W, the number of blocks, and H.
        key_value_heads, rotary_base, qk_norm, root_softmax, scale_power, context: see `Attention`. scale_power None is
            1/2 for standard and munit, else 1.
        expansion, activation: see `MLP`.
        norm: one of `NORMS`; None is "layer" for munit, else "rms".
        norm_gain: whether norms, those of queries and keys too, have a gain (and a LayerNorm a bias); None: unless
            unit-scaled.
        bias: whether linear layers have one; the readout has none.
        dropout: share of the elements dropped from probabilities and from the end of each branch.
        alpha_attention_softmax, alpha_ffn_activation, alpha_loss_softmax: multipliers on the inputs of attention's
            softmax, of the activation and of the loss (u-muP, section 4.1; any style has the functions that they act
            on).
        alpha_res, alpha_res_attn_ratio: unit_scaled and u_mup: weight of all branches against the embedding, and of
            attention against MLPs (`rules.transformer_residual_tau`).
        depth_convention: unit_scaled, u_mup and mup: whether depth counts "blocks" or "branches".
        tau: munit: share of each branch in the variance of the sum (muS, equation 11). The paper's best values
            fall with depth: 0.4 for 4 blocks, 0.1 for about 100.
        base_width, base_depth: mup: of the model whose learning rate is transferred; None: no base shape, and the
            factors are functions of the sizes alone.
        init_std, alpha_embedding, alpha_output: mup: see `mup.mup`.

    Raises:
        ValueError: a size below 1, an unknown activation, norm or depth convention, a number that is out of range.
    """

    vocabulary: int
    width: int
    blocks: int
    heads: int
    key_value_heads: int | None = None
    rotary_base: float | None = 10000.0
    qk_norm: bool = False
    root_softmax: bool = False
    scale_power: float | None = None
    context: int | None = None
    expansion: float = 4.0
    activation: str = "swiglu"
    norm: str | None = None
    norm_gain: bool | None = None
    bias: bool = False
    dropout: float = 0.0
    alpha_attention_softmax: float = 1.0
    alpha_ffn_activation: float = 1.0
    alpha_loss_softmax: float = 1.0
    alpha_res: float = 1.0
    alpha_res_attn_ratio: float = 1.0
    depth_convention: str = "blocks"
    tau: float = 0.4
    base_width: int | None = None
    base_depth: int | None = None
    init_std: float = 1.0
    alpha_embedding: float = 1.0
    alpha_output: float = 1.0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        check_counts(**{name: size for name, size in sizes.items() if size is not None})
        choices = {"activation": ACTIVATIONS, "depth_convention": rules.DEPTHS, "norm": (None, *NORMS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(map(str, allowed))}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("alpha_", "init_std")):
                check_positive(field.name, value)
        check_probability("dropout", self.dropout)
        rules.residual(self.tau, "share")

    def check_style(self, recipe: Recipe) -> None:
        """ValueError if a field has a value that the style of `recipe` does not read."""
        for field in dataclasses.fields(self):
            styles = _STYLES.get(field.name)
            if styles and recipe.parametrization not in styles and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)} is for {' and '.join(styles)}, and recipe "
                    f"{recipe.name!r} has parametrization={recipe.parametrization!r}: leave the field out, or use "
                    f"another recipe"
                )

    def start_of(self, kind: str, fan_in: int, recipe: Recipe) -> Start:
        """How a weight starts that is one of `mup.KINDS` and whose inputs, in a hidden layer, grow with the width."""
        if recipe.parametrization != "mup":
            return Start(None, 1.0)
        base = 1
        if self.base_width is not None and kind != "embedding":
            base = max(1, round(fan_in * self.base_width / self.width))
        factors = mup.mup(
            mup.Weight(kind, fan_in, 1, base_fan_in=base),  # no factor used here depends on fan_out
            init_std=self.init_std,
            alpha_embedding=self.alpha_embedding,
            alpha_output=self.alpha_output,
        )
        return Start(factors.std, factors.multiplier)


_U_MUP = ("unit_scaled", "u_mup")

_STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "alpha_res": _U_MUP,
        "alpha_res_attn_ratio": _U_MUP,
        "depth_convention": (*_U_MUP, "mup"),
        "tau": ("munit",),
        "base_width": ("mup",),
        "base_depth": ("mup",),
        "init_std": ("mup",),
        "alpha_embedding": ("mup",),
        "alpha_output": ("mup",),
    }
)
"""Parametrizations that read a field; the other fields count in all."""
