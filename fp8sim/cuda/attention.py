"""Fused attention in CUDA C++: FP16, bfloat16, and FP8 with probabilities in E4M3.

Every launch follows an `AttentionPlan` (`plan_of`), by which `fp8sim.simulate.attention` predicts the codes of the
probabilities, and every bit of the result where the base-2 logits are integers. Hopper runs `wgmma` on what the copy
engine brings; every other GPU since Ampere runs `mma.sync`, and multiplies FP8 numbers as float16, which holds them.

Bytes moved at least: those of query, key, value and output, once.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from fp8sim.arguments import check_tensor_of
from fp8sim.cuda.launching import (
    HOPPER,
    Capability,
    capability_of,
    current_stream,
    name_of,
    require_built,
    require_cuda,
    require_dtype,
)
from fp8sim.cuda.matmul import plan_of as plan_of_products
from fp8sim.mma import attention as plans
from fp8sim.mma.attention import AttentionPlan, base2_scale
from fp8sim.rounding import Overflow

_OPERANDS = (torch.float8_e4m3fn, torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)
_MOST_FEATURES, _ALIGNMENT, _RANGE_OF_E4M3 = 256, 16, 8.0


def plan_of(
    dtype: torch.dtype, capability: Capability, features: int, plan: str | AttentionPlan | None = None
) -> AttentionPlan:
    """The plan that `attention` follows, its instructions included.

    Args:
        dtype: of the operands.
        capability: of the device.
        features: D.
        plan: the plan that is wanted; None: the kernel's own. Its block, its instructions and the formats follow from
            the rest; `p_offset` is free.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: the kernel does not follow the plan there, takes no heads of so many features, or no order of
            additions is known for the device.
        RuntimeError: no `fp8sim._cuda`.
    """
    require_built()
    from fp8sim import _cuda

    require_dtype("dtype", dtype, _OPERANDS)
    if not 1 <= features <= _MOST_FEATURES:
        raise ValueError(f"D={features}: heads have 1 to {_MOST_FEATURES} features in the CUDA kernel")
    products = plan_of_products(dtype, capability)
    fp8 = dtype == torch.float8_e4m3fn
    own = AttentionPlan(
        block=_cuda.attention_block(features, 10 * capability[0] + capability[1]),
        p_format=name_of(dtype),
        p_offset=_RANGE_OF_E4M3 if fp8 else 0.0,
        p_overflow=Overflow.SATURATE if fp8 else Overflow.INFINITY,
        reciprocal=True,
        logits=products,
        mixed=products,
    )
    if plan is None:
        return own
    wanted = plans.parse(plan)
    if wanted != dataclasses.replace(own, p_offset=wanted.p_offset):
        raise ValueError(
            f"plan='{wanted}': the CUDA kernel follows '{own}', with any p_offset, on compute capability "
            f"{capability[0]}.{capability[1]} with {name_of(dtype)} of {features} features: leave the plan out, use "
            f"backend 'triton', or simulate on the CPU, under use_backend('simulate')"
        )
    return wanted


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    plan: str | AttentionPlan | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    lower_right: bool = False,
    query_scale_inv: float = 1.0,
    key_scale_inv: float = 1.0,
    value_scale_inv: float = 1.0,
    output_factor: float = 1.0,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """output_factor * softmax(scale * query @ key^T) @ value, as `plan_of` says, and the logs of its denominators.

    Args:
        query: [B, H, L, D], float8_e4m3fn, float16 or bfloat16, any strides, D up to 256, on a CUDA device. An operand
            whose features are not contiguous, whose rows do not start at multiples of 16 bytes, or which is expanded,
            is copied first, and so are FP8 values on Hopper.
        key, value: [B, G, S, D] of the same dtype. G divides H: each key and value serves H / G queries.
        plan: as for `plan_of`.
        scale: on the logits, positive; None: D^-1/2.
        is_causal: query i sees keys 0 .. i.
        window: query i sees keys i - window + 1 .. i.
        lower_right: for both, query i stands at key i + S - L instead of i, so that the last query sees the last key.
        query_scale_inv, key_scale_inv, value_scale_inv: factors of the operands. They and the scale are multiplied in
            binary64 and rounded to float32 once.
        output_factor: multiplies the output, together with the factor of the values, in float32.
        cu_seqlens_q, cu_seqlens_k: None: packed sequences take the backend "triton".
        dtype: of the output: float32, float16 or bfloat16; None: that of the query, or bfloat16 for FP8.

    Returns:
        output [B, H, L, D] and lse [B, H, L] float32, as `fp8sim.simulate.attention` defines them. Rows that see no key
        have output 0 and lse +inf. Probabilities below 2^-126 are 0. Deterministic.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes, a plan or devices that do not fit.
        RuntimeError: the device has no kernel: it needs compute capability 8.0 (Ampere) or later; no `fp8sim._cuda`.
    """
    _check(query, key, value, window, dtype)
    if cu_seqlens_q is not None or cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_q, cu_seqlens_k: packed sequences take the backend 'triton'")
    (batch, heads, length, features), (groups, keys) = query.shape, key.shape[1:3]
    capability = capability_of(query, "attention kernels")
    order = plan_of(query.dtype, capability, features, plan)
    scale = features**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale}: must be positive and finite")
    dtype = dtype or (torch.bfloat16 if query.dtype == torch.float8_e4m3fn else query.dtype)
    out = torch.empty(batch, heads, length, features, dtype=dtype, device=query.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    if 0 in (lse.numel(), keys):
        return out.zero_(), lse.fill_(math.inf)
    transposed = query.dtype == torch.float8_e4m3fn and capability == HOPPER
    q, k, v = (_aligned(x) for x in (query, key, value.mT if transposed else value))
    from fp8sim import _cuda  # built only where nvcc was found

    with current_stream(query) as stream:
        _cuda.attention(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            (batch, heads, groups, length, keys, features),
            name_of(query.dtype),
            name_of(dtype),
            q.stride()[:3],
            k.stride()[:3],
            v.stride()[:3],
            base2_scale(scale, query_scale_inv, key_scale_inv),
            stream,
            transposed_value=transposed,
            causal=is_causal or window is not None,
            window=window or 0,
            offset=keys - length if lower_right else 0,
            p_offset=order.p_offset,
            factor=value_scale_inv * output_factor,
        )
    return out, lse


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, R, C] with contiguous columns, everything at multiples of 16 bytes: x or a copy."""
    raw = x.detach().view(torch.uint8 if x.element_size() == 1 else torch.int16)
    per = _ALIGNMENT // x.element_size()
    # The stride of a dimension of one element is nobody's; the copy engine is not known to take one of 0.
    fits = all(
        (stride % per == 0 and stride > 0) or size == 1
        for stride, size in zip(raw.stride()[:3], raw.shape[:3], strict=True)
    )
    if fits and raw.stride(3) == 1 and x.data_ptr() % _ALIGNMENT == 0:
        return raw
    copy = raw.new_zeros(*raw.shape[:3], -(-raw.shape[3] // per) * per)[..., : raw.shape[3]]
    return copy.copy_(raw)


def _check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, dtype: torch.dtype | None
) -> None:
    operands = {"query": query, "key": key, "value": value}
    for name, x in operands.items():
        check_tensor_of(name, x, _OPERANDS)
        require_cuda(name, x)
    if len({x.dtype for x in operands.values()}) != 1 or len({x.device for x in operands.values()}) != 1:
        listed = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in operands.items())
        raise TypeError(f"query, key and value must have one dtype and device, got {listed}")
    if dtype is not None:
        require_dtype("dtype", dtype, _OUTPUTS)
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a number of keys, 1 or more, or None")
    shapes = f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
    fits = query.ndim == key.ndim == 4 and key.shape == value.shape
    if not fits or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"expected query [B, H, L, D], key [B, G, S, D] and value [B, G, S, D], got {shapes}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ValueError(f"G must divide H, got {shapes}")
