"""Matrix products of FP8, FP16 or bfloat16 matrices on tensor cores, in CUDA C++, with float32 accumulation.

Every launch is described by a `fp8sim.mma.GemmPlan` (`plan_of`), by which `fp8sim.matmul` predicts the bits of the
result. Hopper runs `wgmma` on tiles that the copy engine brings; every other GPU since Ampere runs `mma.sync`, and
multiplies FP8 numbers as float16, which holds them.

Bytes moved at least: those of a, b and the result, once.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fp8sim.arguments import check_tensor_of
from fp8sim.cuda.launching import (
    ADA,
    AMPERE,
    HOPPER,
    Capability,
    capability_of,
    current_stream,
    float32_of,
    name_of,
    require_cuda,
    require_dtype,
)
from fp8sim.mma.plans import GemmPlan

PROMOTION = 128
"""Products between two additions to float32 without fast accumulation."""

Factors = float | torch.Tensor | None

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_OPERANDS = (*_FLOAT8, torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)
_ALIGNMENT = 16


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float = 1.0,
    a_scale_inv: Factors = None,
    b_scale_inv: Factors = None,
    fast_accumulation: bool = True,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """scale * sum_k a[..., m, k] * b[..., n, k] times factors, accumulated in float32 as `plan_of` says.

    Args:
        a: [..., M, K], float8_e4m3fn, float8_e5m2, float16 or bfloat16, any strides, on a CUDA device.
        b: [..., N, K], of the same dtype; the FP8 dtypes may be mixed. Leading dimensions broadcast. An operand whose
            rows are not contiguous, or do not start at multiples of 16 bytes, is copied first.
        scale: rounded to float32; multiplies the sum, after the factors below, in float32.
        a_scale_inv: float32 factors of the finished sums: a number or [...] of one element, or [..., M]; a's first.
        b_scale_inv: likewise, [..., N].
        fast_accumulation: False: FP8 sums are promoted to float32 every 128 products on Hopper. Nothing else changes.
        out_dtype: float32, bfloat16 or float16 (ties to even, overflow to infinity).

    Returns:
        [..., M, N], contiguous; zeros if K = 0. NaN and infinities propagate as in IEEE 754 sums of products.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes, factors or devices that do not fit.
        RuntimeError: the device has no kernel: it needs compute capability 8.0 (Ampere) or later; no `fp8sim._cuda`.
    """
    batch = _checked_batch(a, b, out_dtype)
    (m, k), n = a.shape[-2:], b.shape[-2]
    left, right = operand_matrices(a, batch), operand_matrices(b, batch)
    left_factors = row_factors("a_scale_inv", a_scale_inv, a, batch)
    right_factors = row_factors("b_scale_inv", b_scale_inv, b, batch)
    out = torch.empty((*batch, m, n), dtype=out_dtype, device=a.device)
    if k == 0:
        return out.zero_()
    from fp8sim import _cuda  # built only where nvcc was found

    with current_stream(a) as stream:
        _cuda.matmul(
            left.data_ptr(),
            right.data_ptr(),
            out.data_ptr(),
            (m, n, k, math.prod(batch)),
            name_of(a.dtype),
            name_of(b.dtype),
            name_of(out_dtype),
            (left.stride(1), left.stride(0) if left.shape[0] > 1 else 0),
            (right.stride(1), right.stride(0) if right.shape[0] > 1 else 0),
            stream,
            fast_accumulation=fast_accumulation,
            scale=scale,
            **_factor_arguments("a", left_factors),
            **_factor_arguments("b", right_factors),
        )
    return out


def plan_of(dtype: torch.dtype, capability: Capability, *, fast_accumulation: bool = True) -> GemmPlan:
    """The order in which `matmul` adds, for `fp8sim.matmul` to predict the bits of its result.

    Args:
        dtype: of the operands.
        capability: of the device.
        fast_accumulation: as for `matmul`.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: no order is known for the device.
    """
    require_dtype("dtype", dtype, _OPERANDS)
    fp8 = dtype in _FLOAT8
    if capability == HOPPER:
        if fp8 and not fast_accumulation:
            return GemmPlan("sm90.wgmma", flush=PROMOTION, block_k=PROMOTION)
        return GemmPlan("sm90.wgmma")
    if AMPERE <= capability < HOPPER:
        return GemmPlan("sm89.mma" if capability == ADA else "sm80.mma", widen="float16" if fp8 else None)
    raise ValueError(
        f"compute capability {capability[0]}.{capability[1]}: the order in which mma.sync adds there is not known; it "
        f"is for 8.0 to 9.0"
    )


def operand_matrices(x: torch.Tensor, batch: torch.Size) -> torch.Tensor:
    """x [..., R, K] as matrices [B, R, K] with contiguous rows that start at multiples of 16 bytes: x or a copy.

    B is 1 where all places of `batch` share one matrix.
    """
    rows, k = x.shape[-2:]
    raw = x.detach().view(torch.uint8 if x.element_size() == 1 else torch.int16)  # FP8 cannot be expanded everywhere
    shared = math.prod(x.shape[:-2]) == 1
    matrices = raw.reshape(1, rows, k) if shared else raw.expand(*batch, rows, k).reshape(-1, rows, k)
    per = _ALIGNMENT // x.element_size()
    apart = (stride % per == 0 for stride in matrices.stride()[:2])
    if (
        all(apart)
        and (matrices.stride(2) == 1 or k == 1)
        and matrices.stride(1) >= k
        and x.data_ptr() % _ALIGNMENT == 0
    ):
        return matrices
    copy = matrices.new_empty(len(matrices), rows, -(-k // per) * per)[..., :k]
    return copy.copy_(matrices)


def row_factors(name: str, given: Factors, x: torch.Tensor, batch: torch.Size) -> torch.Tensor | None:
    """Factors of the operand x [..., R, K] as [1] or, contiguous, as [*batch, R]."""
    if given is None:
        return None
    if isinstance(given, int | float):  # filled on the device: a copy from the host would wait for it
        return torch.full((1,), float32_of(given), dtype=torch.float32, device=x.device)
    values = torch.as_tensor(given, dtype=torch.float32, device=x.device).detach().resolve_neg()
    if values.numel() == 1:
        return values.reshape(1)
    if values.shape == x.shape[:-1]:
        return values.expand(*batch, x.shape[-2]).contiguous()
    raise ValueError(
        f"{name} has shape {list(values.shape)} and its operand {list(x.shape)}: expected one factor, or "
        f"{[*x.shape[:-1]]} for rows; factors of blocks take the backend 'triton'"
    )


def _factor_arguments(operand: str, factors: torch.Tensor | None) -> dict[str, Any]:
    if factors is None:
        return {}
    one, rows = factors.ndim == 1 and factors.numel() == 1, factors.shape[-1]
    strides = (0, 0) if one else (1, rows)
    return {f"{operand}_factors": factors.data_ptr(), f"{operand}_factor_strides": strides}


def _checked_batch(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Size:
    """The result's leading dimensions; operands that do not fit are refused."""
    for name, x in (("a", a), ("b", b)):
        check_tensor_of(name, x, _OPERANDS)
    if a.dtype != b.dtype and not {a.dtype, b.dtype} <= set(_FLOAT8):
        raise TypeError(f"a and b must have the same dtype, or both FP8, got {a.dtype} and {b.dtype}: cast one of them")
    require_dtype("out_dtype", out_dtype, _OUTPUTS)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"expected a [..., M, K] and b [..., N, K], got {list(a.shape)} and {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}")
    require_cuda("a", a)
    capability_of(a, "matrix products")
    try:
        return torch.Size(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    except RuntimeError:
        raise ValueError(f"leading dimensions of a {list(a.shape)} and b {list(b.shape)} do not broadcast") from None
