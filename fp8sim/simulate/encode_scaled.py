"""Encode with a known scale factor, amax and a transposed copy: what a kernel gives that makes them in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fp8sim import casting, scaling
from fp8sim.formats import Format
from fp8sim.quantizers import apply_factors
from fp8sim.rounding import Overflow, Rounding
from fp8sim.scaling import FLOAT32


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
    **random: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """codes = encode(x * scale); codes^T; the largest |x|.

    Args:
        x: [..., R, C], a CPU tensor; other arguments as for `fp8sim.ops.encode_scaled.encode_scaled`.

    Returns:
        Codes [..., R, C], transposed codes [..., C, R] or None, amax [] in float32 or None; all contiguous.

    Raises:
        ValueError, TypeError: as for `fp8sim.encode`; `transpose` of a tensor without two axes, a factor that is not
            one float32 number.
    """
    if transpose and x.ndim < 2:
        raise ValueError(f"x has shape {list(x.shape)}: transpose=True takes two axes or more; reshape it")
    given = x if scale is None else _product(x, _float32(scale), fused)
    codes = casting.encode(given, fmt, rounding=rounding, overflow=overflow, **random)
    codes = torch.as_tensor(codes).contiguous()
    return (
        codes,
        codes.mT.contiguous() if transpose else None,
        scaling.amax(x, "tensor") if amax else None,
    )


def _float32(scale: float | torch.Tensor) -> np.float32:
    """The factor, rounded to float32 if it is a Python float."""
    if isinstance(scale, torch.Tensor):
        if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device.type != "cpu":
            raise ValueError(
                f"scale must be a float, or one float32 number on x's device cpu: got {scale.dtype} "
                f"{list(scale.shape)} on {scale.device}"
            )
        return np.float32(scale.item())
    with np.errstate(over="ignore"):
        return np.float32(scale)


def _product(x: torch.Tensor, scale: np.float32, fused: bool) -> Any:
    """x, rounded to float32, times the factor: exact, in binary64, if `fused`, otherwise rounded to float32."""
    numbers = casting.decode(scaling.float32_bits(x), FLOAT32, dtype="float64")
    exact = apply_factors(numbers, np.array(scale, np.float64), divide=False)
    return exact if fused else casting.encode(exact, FLOAT32, overflow="INFINITY").view(np.float32)
