"""Attention with its logits and probabilities in memory: where a recipe has an attention part, or for their roots."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from fp8sim.ops import matmul as ops
from fp8sim.recipes import Recipe


def materialised_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float,
    enable_gqa: bool = False,
    factor: float = 1.0,
    softmax: Callable[[torch.Tensor], torch.Tensor],
    products: tuple[Recipe, Recipe] | None = None,
    name: str = "",
) -> torch.Tensor:
    """factor * softmax(scale * query @ key^T + mask) @ value, differentiated as it stands.

    With `products` the six GEMMs are those of `recipes.AttentionRecipe`. All else is float32 (float64 for float64):
    narrower operands are widened before they are quantized, so that each is rounded once, and the result is rounded to
    the dtype of `query`. The two factors multiply finished sums, in forward and backward, so that what is quantized is
    free of them: query, key, value and grad_output as they come, and grad_logits as the gradient of the scaled logits.

    Probabilities are divided by their sum, and dropped, before they are quantized. So E4M3 makes those up to 2^-10 zero
    (E5M2 those up to 2^-17), and rows over a thousand keys may lose much of their mass. Kernels that quantize
    exp(logit - max) and divide in the end differ in this.

    Args:
        query: [..., H, L, D]. key: [..., G, S, D]. value: [..., G, S, E]. They fit.
        attn_mask, dropout_p, is_causal, enable_gqa: as in torch.
        scale: on the logits. factor: on the output.
        softmax: [..., L, S] -> [..., L, S], 0 in a row of -inf.
        products: q k^T and p v, as `Recipe.attention_products` has them; None: torch's, in the dtype of the operands.
        name: observers see the GEMMs of "<name>.logits" and "<name>.mixed".

    Returns:
        [..., H, L, E].
    """
    dtype = query.dtype
    if products is not None:
        query, key, value = (
            x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in (query, key, value)
        )
    if enable_gqa:
        copies = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(copies, -3) for x in (key, value))
    by_logits, by_mixed = products or (None, None)
    logits = _product(query, key.mT, scale, by_logits, _named(name, "logits"))
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -math.inf) if is_bool else logits + attn_mask.to(logits.dtype)
    probabilities = F.dropout(softmax(logits), dropout_p)
    return _product(probabilities, value, factor, by_mixed, _named(name, "mixed")).to(dtype)


def _named(name: str, product: str) -> str:
    return f"{name}.{product}" if name else product


def _product(a: torch.Tensor, b: torch.Tensor, factor: float, recipe: Recipe | None, name: str) -> torch.Tensor:
    """factor * a @ b in the dtype of a, with the same factor on both gradients."""
    if recipe is None:
        product = a @ b
        return product if factor == 1.0 else product * factor
    return ops.matmul(a, b, recipe=recipe, scales=ops.Scales(factor, factor, factor), name=name).to(a.dtype)
