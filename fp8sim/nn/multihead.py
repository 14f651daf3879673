"""torch's MultiheadAttention by recipe: its parameters, its signature, its layout; no fused path around the recipe."""

from __future__ import annotations

import math

import torch

from fp8sim import recipes
from fp8sim.arguments import check_flag, check_probability, check_size
from fp8sim.nn.linear import Linear, check_start, reset_bias, reset_weight
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention whose projections and attention run by recipe; parameters named and shaped as there.

    The GEMMs are those of torch: one for queries, keys and values where they have one input, one for keys and values
    where these have one, else three. Under a recipe without casts, outputs differ from torch's only where torch adds in
    another order: biases (`fp8sim.functional.linear` adds them to the finished sum); with `need_weights`, where torch
    uses other operations than without; and in evaluation without gradients, where it uses a fused kernel.

    Args:
        embed_dim, num_heads, dropout, bias, kdim, vdim, batch_first: as in torch. `add_bias_kv` and `add_zero_attn` are
            not there.
        recipe: quantizers and parametrization. The input projection has the role "attention_qkv", `out_proj` has
            "attention_out". Logits are multiplied by D^-1/2 (standard, munit) or D^-1, for heads of D features.
        constraint: of the projections.
        init_std: standard deviation of the initial weights; None is 1 if unit-scaled, else torch's initialisation.

    Raises:
        ValueError: an unknown recipe or constraint. AssertionError: heads that do not divide embed_dim, as in torch.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        recipe: str | Recipe = functional.UNIT_SCALED,
        constraint: str | None = "to_output_scale",
        init_std: float | None = None,
    ) -> None:
        check_size("embed_dim", embed_dim)
        check_size("num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim}: expected a multiple of num_heads={num_heads}")
        check_probability("dropout", dropout)
        check_flag("bias", bias)
        check_flag("batch_first", batch_first)
        check_start(init_std)
        super().__init__(embed_dim, num_heads, dropout, bias, kdim=kdim, vdim=vdim, batch_first=batch_first)
        self.recipe, self.constraint, self.init_std = recipes.parse(recipe), constraint, init_std
        self.name = ""
        self.out_proj = Linear(  # type: ignore[assignment]
            embed_dim,
            embed_dim,
            bias,
            recipe=recipe,
            role="attention_out",
            constraint=constraint,
            init_std=init_std,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the input projections anew, as `init_std` says, with biases of zero; `out_proj` has its own method."""
        if self.init_std is None and not self.recipe.is_unit_scaled:
            self._reset_parameters()
            return
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                reset_weight(weight, weight.shape[1], self.init_std, self.recipe)
        reset_bias(self.in_proj_bias, self.embed_dim, self.init_std, self.recipe)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """query [L, B, E], key [S, B, kdim], value [S, B, vdim] -> output [L, B, E], and the probabilities or None.

        Args:
            query, key, value: [B, L, E] and so on with `batch_first`; without the batch, [L, E] and so on.
            key_padding_mask: [B, S] or [S]: True where a key is not seen, or numbers that are added to the logits.
            need_weights: return the probabilities [B, L, S] too, before dropout.
            attn_mask: [L, S] or [B * H, L, S], as `key_padding_mask`.
            average_attn_weights: return their mean over heads; else [B, H, L, S].
            is_causal: says that `attn_mask` is the causal one.

        Raises:
            ValueError: nested tensors, `is_causal` without `attn_mask`, shapes that do not fit.
        """
        if any(x.is_nested for x in (query, key, value)):
            raise ValueError("attention by recipe takes no nested tensors: pad them, and pass key_padding_mask")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says what attn_mask is, and there is none: pass the causal mask too")
        is_batched = query.ndim == 3
        query, key, value = self._sequence_first(query, key, value)
        queries, keys, values = (self._heads(x) for x in self._projected(query, key, value))
        mask = _merged(attn_mask, key_padding_mask, query, self.num_heads)
        hint = is_causal and key_padding_mask is None
        scale = self.head_dim**-self._scale_power
        attended = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            None if hint else mask,
            self.dropout if self.training else 0.0,
            hint,
            scale,
            factor_causal=is_causal,
            recipe=self.recipe,
        )
        output = self.out_proj(attended.permute(2, 0, 1, 3).flatten(2))
        if not is_batched:
            output = output.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        weights = _probabilities(queries, keys, mask, scale)
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights if is_batched else weights.squeeze(0)

    @property
    def _scale_power(self) -> float:
        return 0.5 if self.recipe.parametrization in ("standard", "munit") else 1.0

    def _sequence_first(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Each input as [L, B, E]; with a batch, those that are one tensor stay one, as in torch."""
        if inputs[0].ndim == 2:
            return [x.unsqueeze(1) for x in inputs]
        made: dict[int, torch.Tensor] = {}
        for x in inputs:
            if id(x) not in made:
                made[id(x)] = x.transpose(0, 1) if self.batch_first else x
        return [made[id(x)] for x in inputs]

    def _projected(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries [L, B, E], keys and values [S, B, E]."""
        width, bias = self.embed_dim, self.in_proj_bias
        if not self._qkv_same_embed_dim:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None, None, None) if bias is None else bias.chunk(3)
            return tuple(self._linear(*part) for part in zip((query, key, value), weights, biases, strict=True))
        if query is key and key is value:
            return self._linear(query, self.in_proj_weight, bias).chunk(3, -1)
        sizes = (width, 2 * width) if key is value else (width, width, width)
        inputs = (query, key) if key is value else (query, key, value)
        split_biases = (None,) * len(sizes) if bias is None else bias.split(sizes)
        parts = zip(inputs, self.in_proj_weight.split(sizes), split_biases, strict=True)
        projected = [self._linear(*part) for part in parts]
        return (projected[0], *projected[1].chunk(2, -1)) if key is value else tuple(projected)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(
            x,
            weight,
            bias,
            recipe=self.recipe.for_role("attention_qkv"),
            constraint=self.constraint,
            name=f"{self.name}.in_proj" if self.name else "in_proj",
        )

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[L, B, E] -> [B, H, L, D]."""
        heads: torch.Tensor = x.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.permute(1, 2, 0, 3)

    def extra_repr(self) -> str:
        """Sizes and recipe."""
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}, recipe={self.recipe.name}"


def _merged(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, query: torch.Tensor, heads: int
) -> torch.Tensor | None:
    """What is added to the logits [B, H, L, S], broadcastable to them, or None."""
    batch = query.shape[1]
    merged = None
    if attn_mask is not None:
        merged = _additive(attn_mask, query.dtype)
        merged = merged[None, None] if merged.ndim == 2 else merged.unflatten(0, (batch, heads))
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, query.dtype).reshape(batch, 1, 1, -1)
        merged = padding.expand(-1, heads, query.shape[0], -1) if merged is None else merged + padding
    return merged


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _probabilities(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """softmax(scale * query @ key^T + mask), [B, H, L, S]."""
    logits = query @ key.mT * scale
    return torch.softmax(logits if mask is None else logits + mask, -1)
