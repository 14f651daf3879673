"""What `scaled_dot_product_attention` takes: errors before anything is computed, on every backend alike."""

from __future__ import annotations

import math
from typing import Any

import torch

from fp8sim.arguments import (
    FLOATS,
    check_flag,
    check_float32_factor,
    check_integer,
    check_number,
    check_positive,
    check_tensor,
    check_tensor_of,
    names,
)
from fp8sim.mma.attention import AttentionPlan

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def check_operands(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool) -> None:
    """TypeError or ValueError unless query, key and value are tensors that fit."""
    check_flag("enable_gqa", enable_gqa)
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor_of(name, x, (*FLOATS, *FLOAT8))
        if x.device != query.device:
            raise ValueError(f"{name} is on {x.device} and query on {query.device}: move one with .to()")
        if x.dtype in FLOAT8 and x.requires_grad:
            raise TypeError(f"{name} is {x.dtype} and requires a gradient, which FP8 tensors do not get: detach it")
    shapes = [list(x.shape) for x in (query, key, value)]
    fits = min(map(len, shapes)) >= 3 and shapes[0][:-3] == shapes[1][:-3] and shapes[1][:-1] == shapes[2][:-1]
    if not fits or shapes[0][-1] != shapes[1][-1] or shapes[0][-1] == 0:
        raise ValueError(
            f"attention takes query [..., H, L, D], key [..., G, S, D] and value [..., G, S, E], D at least 1, got "
            f"{shapes}"
        )
    heads, groups = shapes[0][-3], shapes[1][-3]
    if heads != groups and not (enable_gqa and groups and heads % groups == 0):
        raise ValueError(
            f"query has {heads} heads and key {groups}: pass enable_gqa=True if each key serves several, whose number "
            f"divides the query's"
        )


def check_mask(attn_mask: Any, dropout_p: Any) -> None:
    """TypeError or ValueError unless there is no mask and nothing is dropped."""
    check_number("dropout_p", dropout_p)
    if attn_mask is not None or dropout_p != 0:
        raise ValueError(
            "attn_mask and dropout_p: fused kernels here see all keys, or is_causal=, window= and cu_seqlens; "
            "fp8sim.functional.scaled_dot_product_attention without a plan takes both"
        )


def check_options(plan: Any, scale: Any, window: Any, dtype: Any, **flags: Any) -> None:
    """TypeError or ValueError for an option of another kind or out of range."""
    if plan is not None and not (isinstance(plan, AttentionPlan) or (isinstance(plan, str) and plan)):
        raise ValueError(f"plan={plan!r}: an AttentionPlan, its text or a name, such as 'fa3.fp8', or None")
    if scale is not None:
        check_positive("scale", scale)
    if window is not None:
        check_integer("window", window, "a whole number of keys, 1 or more, or None")
        if window < 1:
            raise ValueError(f"window={window}: expected a whole number of keys, 1 or more, or None")
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype={dtype!r}: the output is {names(FLOATS)}; convert it with .to()")
    for name, flag in flags.items():
        check_flag(name, flag)


def check_factors(scale: float, **factors: Any) -> None:
    """TypeError or ValueError unless factors, their inverses, and what kernels make of them are numbers of float32.

    Args:
        scale: on the logits.
        factors: query_scale_inv, key_scale_inv, value_scale_inv and output_factor.
    """
    for name, factor in factors.items():
        check_float32_factor(name, factor)
    query, key, value, output = factors.values()
    for name, factor in (("query", query), ("key", key), ("value", value)):
        check_float32_factor(f"1 / {name}_scale_inv", 1 / factor)
    check_float32_factor("log2(e) * scale * query_scale_inv * key_scale_inv", scale * query * key / math.log(2))
    check_float32_factor("value_scale_inv * output_factor", value * output)


def check_sequences(query: torch.Tensor, starts_q: Any, starts_k: Any) -> None:
    """TypeError or ValueError unless both say where as many sequences begin, or there are none."""
    if starts_q is None and starts_k is None:
        return
    for name, starts in (("cu_seqlens_q", starts_q), ("cu_seqlens_k", starts_k)):
        if starts is None:
            raise ValueError(f"{name} is missing: packed sequences need cu_seqlens_q and cu_seqlens_k")
        check_tensor(name, starts)
        if starts.dtype != torch.int32:
            raise TypeError(f"{name} is {starts.dtype}: expected torch.int32, as .int() makes it")
        if starts.ndim != 1 or len(starts) < 2 or starts.shape != starts_q.shape or starts.device != query.device:
            raise ValueError(
                f"{name} is {list(starts.shape)} on {starts.device}: expected [N + 1] on {query.device}, where each of "
                f"N sequences begins, and the end, for queries and keys alike"
            )
    if math.prod(query.shape[:-3]) != 1:
        raise ValueError(
            f"cu_seqlens_q packs sequences into one tensor: expected query [1, H, L, D], got {list(query.shape)}"
        )
