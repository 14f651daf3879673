"""Multi-head self-attention with rotary positions, grouped heads, normalised queries and keys, and a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fp8sim import recipes
from fp8sim.arguments import check_flag, check_integer, check_number, check_size
from fp8sim.nn.linear import Linear
from fp8sim.nn.norms import LayerNorm
from fp8sim.nn.rotary import rotate
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional


@dataclass
class KeyValueCache:
    """Keys and values [B, G, S, D] of the S tokens that one attention layer has seen; None before the first.

    `Attention` fills it in place. A cache is for one sequence (or batch of them); make a new one for the next.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """S, tokens seen so far."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, G, L, D]; returns all of them, [B, G, S + L, D].

        Raises:
            ValueError: B, G, D, dtype or device differ from those in the cache.
        """
        seen = self.keys
        if seen is not None and _kind(seen) != _kind(keys):
            (batch, groups, width, *of), (new_batch, new_groups, new_width, *new) = _kind(seen), _kind(keys)
            raise ValueError(
                f"cache holds B, G, D = {batch}, {groups}, {width} of {of[0]} on {of[1]}, got {new_batch}, "
                f"{new_groups}, {new_width} of {new[0]} on {new[1]}: make a new cache for another batch or model"
            )
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        else:
            self.keys = torch.cat((self.keys, keys), -2)
            self.values = torch.cat((self.values, values), -2)
        return self.keys, self.values


def _kind(x: torch.Tensor) -> tuple[int, int, int, torch.dtype, torch.device]:
    """What [B, G, S, D] of a cache have in common."""
    return x.shape[0], x.shape[1], x.shape[3], x.dtype, x.device


class Attention(torch.nn.Module):
    """x [B, S, W] -> [B, S, W]: queries, keys and values of H heads of D = W / H features, attention, and a projection.

    The product of queries and keys, and that of probabilities and values, are those of the recipe's attention part, and
    without one torch's fused attention.

    Args:
        width, heads: W and H.
        key_value_heads: G, a divisor of H: each key and value serves H / G queries (Ainslie et al. 2023). None: H.
        is_causal: position i sees 0 .. i.
        rotary_base: of `rotary.rotate`; None: no positions.
        qk_norm: normalise the features of each query and key, before rotation, by a LayerNorm that the heads share
            (Wortsman et al. 2023, section 3.1.1).
        norm_gain: whether these two norms have a gain and a bias; None: unless the recipe is unit-scaled.
        mult: on the logits; alpha_attn-softmax of u-muP.
        scale_power: logits are mult * D^-scale_power * q.k: 1 (muP, u-muP) or 1/2 (standard, muS). None: 1 if the
            recipe is unit-scaled, else 1/2.
        root_softmax: square roots of the probabilities (muS: Narayan et al. 2025, section 3.1).
        dropout: share of the probabilities that is dropped in training.
        context: the length that the factor of unit scaling is for; None: that of each call. With a cache the factor
            must not change from call to call, so unit-scaled decoding needs it; the length of training is right.
        bias: whether the linear layers have one.
        constraint: of both linear layers.
        init_std: standard deviation of the initial weights; None: `Linear`'s.
        recipe: quantizers and parametrization. `qkv`, which makes queries, keys and values in this order, has the role
            "attention_qkv", and `out` has "attention_out".

    Raises:
        ValueError: heads that do not divide the width, or key_value_heads that do not divide the heads; an odd D with
            rotary positions, or a base that is not above 0; an unknown recipe or constraint.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        is_causal: bool = True,
        rotary_base: float | None = 10000.0,
        qk_norm: bool = False,
        norm_gain: bool | None = None,
        mult: float = 1.0,
        scale_power: float | None = None,
        root_softmax: bool = False,
        dropout: float = 0.0,
        context: int | None = None,
        bias: bool = False,
        constraint: str | None = "to_output_scale",
        init_std: float | None = None,
        recipe: str | Recipe = functional.UNIT_SCALED,
    ) -> None:
        super().__init__()
        for name, flag in (("is_causal", is_causal), ("qk_norm", qk_norm), ("bias", bias)):
            check_flag(name, flag)
        groups = heads if key_value_heads is None else key_value_heads
        _check_heads(width, heads, groups, rotary_base)
        self.heads, self.groups, self.head_width = heads, groups, width // heads
        self.is_causal, self.rotary_base, self.context = is_causal, rotary_base, context
        self.mult, self.scale_power, self.root_softmax = mult, scale_power, root_softmax
        self.dropout, self.recipe = dropout, recipes.parse(recipe)
        self.name = ""

        def layer(inputs: int, outputs: int, role: str) -> Linear:
            return Linear(inputs, outputs, bias, recipe=recipe, role=role, constraint=constraint, init_std=init_std)

        self.qkv = layer(width, (heads + 2 * groups) * self.head_width, "attention_qkv")
        self.query_norm, self.key_norm = (
            LayerNorm(self.head_width, elementwise_affine=norm_gain, recipe=recipe) if qk_norm else None
            for _ in range(2)
        )
        self.out = layer(width, width, "attention_out")

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, *, cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        """x [B, L, W] -> [B, L, W].

        Args:
            x: with a cache, the L tokens that follow those in it.
            attn_mask: broadcastable to [B, H, L, S], in place of the causal one: bool, True where a key is seen, or a
                float that is added to the logits. Not with a cache.
            cache: keys and values of the tokens before; those of x are added to it.

        Raises:
            ValueError: a mask and a cache; a cache where attention is not causal, or of another batch; a cache without
                `context` under unit scaling; a shape that does not fit.
        """
        if x.ndim != 3 or x.shape[-1] != self.qkv.in_features:
            raise ValueError(f"attention takes x [B, L, {self.qkv.in_features}], got {list(x.shape)}")
        first = self._first_position(attn_mask, cache)
        query, key, value = self._heads_of(x, first)
        length = x.shape[1]
        if cache is not None:
            key, value = cache.extend(key, value)
        is_causal = self.is_causal and attn_mask is None
        if is_causal and first > 0:  # torch's own causal mask starts at the first key
            is_causal = False
            if length > 1:
                attn_mask = torch.ones(length, first + length, dtype=torch.bool, device=x.device).tril(first)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            self.dropout if self.training else 0.0,
            is_causal,
            enable_gqa=self.groups != self.heads,
            mult=self.mult,
            scale_power=self.scale_power,
            root_softmax=self.root_softmax,
            factor_length=self.context,
            factor_causal=self.is_causal,
            recipe=self.recipe,
            name=self.name,
        )
        output: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output

    def _first_position(self, attn_mask: torch.Tensor | None, cache: KeyValueCache | None) -> int:
        """Position of the first token of a call."""
        if cache is None:
            return 0
        if attn_mask is not None or not self.is_causal:
            raise ValueError("a cache is for causal attention without an attn_mask: leave one of them out")
        if self.context is None and self.recipe.is_unit_scaled:
            raise ValueError(
                "context=None: with a cache the factor of unit scaling must be that of one length; pass the length "
                "that the model was trained on as context="
            )
        return cache.length

    def _heads_of(self, x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [B, H, L, D], keys and values [B, G, L, D]."""
        all_heads = self.qkv(x).unflatten(-1, (-1, self.head_width))
        # Split before transposing: the gradient is then put together as it lies in the linear layer's output.
        turned, value = (part.transpose(1, 2) for part in all_heads.split((self.heads + self.groups, self.groups), 2))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turned.split((self.heads, self.groups), 1)
            turned = torch.cat((self.query_norm(query), self.key_norm(key)), 1)
        if self.rotary_base is not None:
            turned = rotate(turned, self.rotary_base, first)
        query, key = turned.split((self.heads, self.groups), 1)
        return query, key, value

    def extra_repr(self) -> str:
        """Heads, multiplier and recipe."""
        return f"heads={self.heads}, key_value_heads={self.groups}, mult={self.mult}, recipe={self.recipe.name}"


def _check_heads(width: int, heads: int, groups: int, rotary_base: float | None) -> None:
    check_size("width", width)
    check_integer("heads", heads)
    check_integer("key_value_heads", groups)
    if rotary_base is not None:
        check_number("rotary_base", rotary_base)
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} must divide width={width}")
    if groups < 1 or heads % groups:
        raise ValueError(f"key_value_heads={groups} must divide heads={heads}")
    if rotary_base is not None and not rotary_base > 0:
        raise ValueError(f"rotary_base={rotary_base}: must be above 0, such as 10000, or None for no positions")
    if rotary_base is not None and width // heads % 2:
        raise ValueError(
            f"heads={heads} of width={width} have {width // heads} features each: rotary positions need an even number"
        )
