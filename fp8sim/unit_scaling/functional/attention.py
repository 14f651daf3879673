"""softmax and scaled_dot_product_attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from fp8sim import recipes
from fp8sim.arguments import (
    FLOATING,
    check_flag,
    check_float32,
    check_float32_factor,
    check_integer,
    check_probability,
    check_same,
    check_tensor_of,
    names,
)
from fp8sim.derivatives import differentiable_once
from fp8sim.mma.attention import AttentionPlan
from fp8sim.ops.attention import scaled_dot_product_attention as fused_attention
from fp8sim.ops.attention_arguments import FLOAT8
from fp8sim.recipes import Recipe
from fp8sim.torch_autocast import autocast, without_autocast
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, apply, is_unit_scaled, scaled_product
from fp8sim.unit_scaling.functional.materialised_attention import materialised_attention


class _Softmax(torch.autograd.Function):
    """alpha * softmax(m * x), with a gradient multiplied by beta instead of alpha."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, mult: float, alpha: float, beta: float) -> torch.Tensor:
        probabilities = torch.softmax(x if mult == 1.0 else x * mult, dim)
        ctx.save_for_backward(probabilities)
        ctx.dim, ctx.factor = dim, beta * mult
        return probabilities * alpha

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (probabilities,) = ctx.saved_tensors
        gradient = torch.ops.aten._softmax_backward_data(grad, probabilities, ctx.dim, probabilities.dtype)
        return gradient.mul_(ctx.factor), None, None, None, None


def softmax(
    input: torch.Tensor,
    dim: int,
    *,
    dtype: torch.dtype | None = None,
    mult: float = 1.0,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
) -> torch.Tensor:
    """softmax(mult * x) along `dim`, with the factors of `rules.softmax` if the recipe is unit-scaled.

    Unit-scaled, the results add up to alpha, not to one.

    Args:
        input: x [...].
        dim: the dimension that adds up.
        dtype: x is converted to it first; None keeps its own.
        mult: positive; the inverse of a temperature.
        recipe: its parametrization decides.
        constraint: ties the factors of output and gradient.

    Returns:
        [...].

    Raises:
        ValueError: an unknown recipe or constraint, a multiplier that is not positive and finite.
        TypeError: no tensor of float32, float64, float16 or bfloat16, or an option of another kind.
        IndexError: no such dimension.
        RuntimeError: under a unit-scaled recipe, from autograd: a second derivative, which there is none of.
    """
    check_tensor_of("input", input)
    check_integer("dim", dim)
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"dtype={dtype!r}: expected {names(FLOATING)}, or None")
    x = input if dtype is None else input.to(dtype)
    axes = max(1, x.ndim)
    if not -axes <= dim < axes:
        raise IndexError(f"dim={dim}: input {list(x.shape)} has {axes} dimensions, -{axes} to {axes - 1}")
    alpha, beta = rules.softmax(x.shape[dim] if x.ndim else 1, mult, constraint)
    if is_unit_scaled(recipe):
        return apply(_Softmax, x, dim, mult, alpha, beta)
    return torch.softmax(x if mult == 1.0 else x * mult, dim)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    mult: float = 1.0,
    scale_power: float | None = None,
    root_softmax: bool = False,
    factor_length: int | None = None,
    factor_causal: bool | None = None,
    plan: str | AttentionPlan | None = None,
    recipe: str | Recipe = UNIT_SCALED,
    name: str = "",
) -> torch.Tensor:
    """softmax(mult * D^-scale_power * query @ key^T + mask) @ value, times `rules.attention` if unit-scaled.

    The one factor is on the output and on all gradients. Those of query and key stay small by nature (a standard
    deviation of 0.12 at D = 64), as in the published rule. The factor depends on the number of keys, so a model that
    decodes token by token, its keys in a cache, passes the length it was trained on as `factor_length` and
    `factor_causal=True`, and gets the outputs of the whole sequence.

    Args:
        query: [..., H, L, D]. key: [..., G, S, D]. value: [..., G, S, E]. G is H, or divides it with `enable_gqa`.
        attn_mask: broadcastable to [..., H, L, S]; bool, True where a key is seen, or a float that is added.
        dropout_p: share of the probabilities that is dropped.
        is_causal: query i sees keys 0 .. i; not with `attn_mask`.
        scale: in place of D^-scale_power.
        enable_gqa: each key and value serves H / G queries.
        mult: positive; alpha_attn-softmax of u-muP.
        scale_power: 1 (muP) or 1/2 (torch, muS); None: 1 if the recipe is unit-scaled, else 1/2.
        root_softmax: take the square roots of the probabilities (muS: Narayan et al. 2025, section 3.1), which keep the
            variance of independent values.
        factor_length: how many keys the factor is for; None: S.
        factor_causal: whether the factor is that of a causal mask; None: `is_causal`. A causal `attn_mask` is not
            recognised: pass True.
        plan: of a fused kernel that computes it, as `fp8sim.scaled_dot_product_attention` has it, which casts operands
            to what the plan multiplies; the factor is folded into the kernel's last multiplication. Not with a mask,
            dropout, square roots or GEMMs in the recipe's attention part. None: the recipe's, if it has one.
        recipe: its parametrization decides. Its attention part says how the six GEMMs are quantized and added
            (`materialised_attention` has the details), or names a plan; without one they are torch's fused attention,
            in the dtype of the operands.
        name: what observers call the GEMMs of an attention part: "<name>.logits" and "<name>.mixed".

    Returns:
        [..., H, L, E]. Rows that see no key are 0.

    Raises:
        ValueError: both a mask and `is_causal`, shapes that do not fit, a multiplier that is not positive and finite, a
            scale that is not finite, dropout_p outside 0 .. 1, an unknown recipe.
        TypeError: an argument of another kind.
    """
    _check_attention(query, key, value, attn_mask, is_causal, enable_gqa)
    _check_options(scale, scale_power, factor_length, factor_causal, root_softmax)
    check_probability("dropout_p", dropout_p)
    kept = rules.dropout(dropout_p)
    check_float32_factor("mult", mult)
    recipe = recipes.parse(recipe)
    if plan is None and recipe.attention is not None:
        plan = recipe.attention.plan
    query, key, value = autocast(query, key, value)
    if plan is None:
        for label, x in (("query", query), ("key", key), ("value", value)):
            check_tensor_of(label, x)
        check_same(query=query, key=key, value=value)
        check_same(dtype=False, query=query, attn_mask=attn_mask)
    width = max(1, query.shape[-1])
    if scale is None:
        scale = width ** -((1.0 if recipe.is_unit_scaled else 0.5) if scale_power is None else scale_power)
    scale *= mult
    if scale == 0 and recipe.is_unit_scaled:
        raise ValueError(f"scale={scale}: no factor follows for logits that are all 0; expected another number")
    factor = 1.0
    if recipe.is_unit_scaled and kept > 0:
        factor = rules.attention(
            key.shape[-2] if factor_length is None else factor_length,
            abs(scale) * math.sqrt(width),
            causal=is_causal if factor_causal is None else factor_causal,
            dropout_p=dropout_p,
            root_softmax=root_softmax,
        )
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    products = recipe.attention_products
    if plan is not None:
        if products is not None or root_softmax:
            raise ValueError(f"plan={plan}: not with root_softmax, or quantized GEMMs in recipe {recipe.name!r}")
        return fused_attention(
            query, key, value, attn_mask, dropout_p, is_causal, plan=plan, output_factor=factor, **options
        )
    if products is not None or root_softmax:
        options.update(factor=factor, softmax=_root_softmax if root_softmax else _softmax, products=products, name=name)
        with without_autocast(query.device.type):  # all dtypes within follow from those of the operands
            return materialised_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    return output if factor == 1.0 else output * factor


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """As torch's attention has it: 0 in rows that see no key."""
    probabilities: torch.Tensor = torch.ops.aten._safe_softmax(logits, -1)
    return probabilities


def _root_softmax(logits: torch.Tensor) -> torch.Tensor:
    return apply(_RootSoftmax, logits)


class _RootSoftmax(torch.autograd.Function):
    """r = softmax(x)^1/2 along the last dimension; dr_i / dx_j = r_i (delta_ij - r_j^2) / 2, finite at r = 0."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        root: torch.Tensor = torch.ops.aten._safe_softmax(x, -1).sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        inner = (grad * root).sum(-1, keepdim=True)
        return scaled_product(root, grad - root * inner, 0.5)


def _check_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor_of(name, x, (*FLOATING, *FLOAT8))
    check_flag("is_causal", is_causal)
    check_flag("enable_gqa", enable_gqa)
    shapes = [list(x.shape) for x in (query, key, value)]
    fits = min(x.ndim for x in (query, key, value)) >= (3 if enable_gqa else 2)
    if not fits or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(f"attention takes query [..., L, D], key [..., S, D] and value [..., S, E], got {shapes}")
    if enable_gqa and (key.shape[-3] != value.shape[-3] or key.shape[-3] == 0 or query.shape[-3] % key.shape[-3]):
        raise ValueError(
            f"enable_gqa=True takes key and value of as many heads, which divide the query's, got {shapes}"
        )
    if attn_mask is not None:
        _check_mask(attn_mask, query, key, is_causal)


def _check_mask(attn_mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> None:
    if is_causal:
        raise ValueError("is_causal=True and an attn_mask: pass one; a causal mask is ones(L, S).tril()")
    check_tensor_of("attn_mask", attn_mask, (*FLOATING, torch.bool))
    sizes = list(attn_mask.shape)
    logits = [*query.shape[:-1], key.shape[-2]]
    fits = all(x in (1, y) for x, y in zip(sizes[:-3:-1], logits[:-3:-1], strict=False))
    if not fits or any(x != y and 1 not in (x, y) for x, y in zip(sizes[-3::-1], logits[-3::-1], strict=False)):
        raise ValueError(f"attn_mask is {sizes}: expected a shape that broadcasts to [..., H, L, S] = {logits}")


def _check_options(scale: Any, scale_power: Any, factor_length: Any, factor_causal: Any, root_softmax: Any) -> None:
    for name, number in (("scale", scale), ("scale_power", scale_power)):
        if number is not None:
            check_float32(name, number)
    if factor_length is not None:
        check_integer("factor_length", factor_length)
        if factor_length < 1:
            raise ValueError(f"factor_length={factor_length}: a number of keys, 1 or more, or None for those of `key`")
    if factor_causal is not None:
        check_flag("factor_causal", factor_causal)
    check_flag("root_softmax", root_softmax)
