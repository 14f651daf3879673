"""Encode with a known scale factor, amax and a transposed copy, each optional, in one pass over memory, in CUDA C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fp8sim import casting, formats
from fp8sim.arguments import check_tensor_of
from fp8sim.cuda.launching import current_stream, dense, float32_of, name_of
from fp8sim.formats import Format
from fp8sim.random_bits import random_keywords
from fp8sim.rounding import Overflow, Rounding, resolve_names


def encode_scaled(
    x: torch.Tensor,
    fmt: str | Format,
    scale: float | torch.Tensor | None = None,
    *,
    fused: bool = False,
    amax: bool = False,
    transpose: bool = False,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    **random: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The codes of x times a factor, as `fp8sim.simulate.encode_scaled` defines them, with what else one pass can give.

    Memory that must move, for E bytes per element of x: E + 1 per element, E + 2 with the transposed copy; amax adds
    nothing. A tensor with gaps or another order is copied first. A factor on the device is read there, and nothing
    waits for the device. Ties to even into 8-bit codes is the fast way; every other mode, wider codes and a fused
    product take one element at a time.

    Args:
        x: [..., R, C] ([...] without `transpose`), float64, float32, float16 or bfloat16, on a CUDA device.
        fmt, rounding, overflow, **random: as for `fp8sim.encode`.
        scale, fused, amax, transpose: as for `fp8sim.ops.encode_scaled.encode_scaled`; a tensor is on x's device.

    Returns:
        Codes [..., R, C], transposed codes [..., C, R] or None, amax [] in float32 or None; all contiguous.

    Raises:
        TypeError: a dtype that cannot be encoded.
        ValueError: as for `fp8sim.encode`; a tensor that is not on a CUDA device, a factor that is not one float32
            number, `transpose` of a tensor without two axes.
        RuntimeError: no CUDA device, or no `fp8sim._cuda`.
    """
    check_tensor_of("x", x)
    to = resolve_names(fmt, rounding, overflow)
    words = random_keywords(Rounding(to.rounding), **random)
    if transpose and x.ndim < 2:
        raise ValueError(f"x has shape {list(x.shape)}: transpose=True takes two axes or more; reshape it")
    source, factor = dense("x", x), _factor(scale, x)
    code_dtype = casting.code_dtype(formats.parse(fmt))
    codes = torch.empty(x.shape, dtype=getattr(torch, code_dtype), device=x.device)
    transposed = codes.new_empty(x.mT.shape) if transpose else None
    largest = torch.zeros((), dtype=torch.float32, device=x.device) if amax else None
    from fp8sim import _cuda  # built only where nvcc was found

    with current_stream(x) as stream:
        _cuda.encode_scaled(
            source.data_ptr(),
            codes.data_ptr(),
            _matrices(x) if transpose else (1, 1, x.numel()),
            name_of(x.dtype),
            code_dtype,
            to,
            stream,
            **_factor_argument(factor),
            fused=fused,
            amax=0 if largest is None else largest.data_ptr(),
            transposed=0 if transposed is None else transposed.data_ptr(),
            **words,
        )
    return codes, transposed, largest


def _matrices(x: torch.Tensor) -> tuple[int, int, int]:
    """How many matrices x [..., R, C] has, R and C."""
    *batch, rows, columns = x.shape
    return int(np.prod(batch, dtype=np.int64)), rows, columns


def _factor(scale: float | torch.Tensor | None, x: torch.Tensor) -> float | torch.Tensor | None:
    """The factor as a float32 number, here or on x's device; None for none."""
    if scale is None:
        return None
    if not isinstance(scale, torch.Tensor):
        return float32_of(scale)
    if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != x.device:
        raise ValueError(
            f"scale must be a float, or one float32 number on x's device {x.device}: got {scale.dtype} "
            f"{list(scale.shape)} on {scale.device}"
        )
    return scale.detach().resolve_neg()


def _factor_argument(factor: float | torch.Tensor | None) -> dict[str, Any]:
    """The kernel's arguments. The caller keeps the tensor until the launch: its memory would be given away."""
    if factor is None:
        return {}
    return {"factor_address": factor.data_ptr()} if isinstance(factor, torch.Tensor) else {"factor": factor}
