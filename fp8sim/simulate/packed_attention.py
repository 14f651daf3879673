"""Fused attention as its operation is registered: packed sequences, an output of a dtype, logarithms of its sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from fp8sim.mma.attention import AttentionPlan, default_plan
from fp8sim.simulate.attention import attention as simulated


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    plan: str | AttentionPlan | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fp8sim.simulate.attention.attention` of each sequence: its output, rounded to `dtype`, and its `lse`.

    Args:
        query: [B, H, L, D]. key: [B, G, S, D]. value: [B, G, S, E].
        plan: None: that of `fp8sim.mma.default_plan` for the values.
        cu_seqlens_q, cu_seqlens_k: [N + 1] int32, where sequences packed in L and S begin, and the end; B is 1 then.
        dtype: of the output, rounded with ties to even; None: that of the query, or bfloat16 for FP8.
        options: `scale`, masks and factors.

    Returns:
        [B, H, L, E] and [B, H, L] float32. Rows of no sequence are 0 and +inf.

    Raises:
        ValueError, TypeError: as there; sequences without the others, or beyond their tensors.
    """
    if plan is None:
        plan = default_plan(_name(value.dtype))
    if dtype is None:
        dtype = query.dtype if query.element_size() == 2 else torch.bfloat16
    output = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=dtype)
    lse = torch.full(query.shape[:-1], math.inf)
    for rows, keys in _sequences(query, key, cu_seqlens_q, cu_seqlens_k):
        result = simulated(query[..., rows, :], key[..., keys, :], value[..., keys, :], plan=plan, **options)
        output[..., rows, :], lse[..., rows] = result.output, result.lse
    return output, lse


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sequences(
    query: torch.Tensor, key: torch.Tensor, starts_q: torch.Tensor | None, starts_k: torch.Tensor | None
) -> Iterator[tuple[slice, slice]]:
    """Rows of queries and of keys of each sequence."""
    if starts_q is None and starts_k is None:
        yield slice(0, query.shape[-2]), slice(0, key.shape[-2])
        return
    if starts_q is None or starts_k is None or len(starts_q) != len(starts_k) or query.shape[0] != 1:
        raise ValueError(
            f"packed sequences need cu_seqlens_q and cu_seqlens_k of one length and a query [1, H, T, D], got "
            f"{starts_q}, {starts_k} and {list(query.shape)}"
        )
    bounds = []
    for name, starts, rows in (("q", starts_q, query.shape[-2]), ("k", starts_k, key.shape[-2])):
        at = [int(start) for start in starts]
        if at != sorted(at) or at[0] < 0 or at[-1] > rows:
            raise ValueError(f"cu_seqlens_{name}={at}: expected ascending numbers from 0 to {rows}")
        bounds.append([slice(a, b) for a, b in itertools.pairwise(at)])
    yield from zip(*bounds, strict=True)
