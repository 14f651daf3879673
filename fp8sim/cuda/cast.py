"""Casts on the GPU, in CUDA C++: integer arithmetic, bitwise equal to the simulator."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import casting, formats
from fp8sim.cuda.launching import current_stream, dense, name_of
from fp8sim.formats import Format
from fp8sim.random_bits import random_keywords
from fp8sim.rounding import Overflow, Rounding, resolve_names


def cast(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    out: torch.Tensor | None = None,
    **random: int,
) -> torch.Tensor:
    """As `fp8sim.cast`, for a CUDA tensor x [...]; bitwise equal to the simulator.

    Raises:
        ValueError: as for `fp8sim.cast`, a tensor that is not on a CUDA device, an `out` that is not contiguous.
        TypeError: a dtype that cannot be cast.
        RuntimeError: no CUDA device.
    """
    source, target = dense(x), torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if (target.shape, target.dtype, target.device) != (x.shape, x.dtype, x.device) or not target.is_contiguous():
        raise ValueError(f"out must be contiguous and like x, {list(x.shape)} {x.dtype} on {x.device}")
    to = resolve_names(fmt, rounding, overflow)
    _launch("cast", source, target, (name_of(x.dtype), to), random_keywords(Rounding(to.rounding), **random))
    return target


def encode(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    **random: int,
) -> torch.Tensor:
    """As `fp8sim.encode`, for a CUDA tensor x [...]. Errors as for `cast`."""
    codes = casting.code_dtype(formats.parse(fmt))
    target = torch.empty(x.shape, dtype=getattr(torch, codes), device=x.device)
    to = resolve_names(fmt, rounding, overflow)
    arguments = (name_of(x.dtype), codes, to)
    _launch("encode", dense(x), target, arguments, random_keywords(Rounding(to.rounding), **random))
    return target


def decode(codes: torch.Tensor, fmt: str | Format, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As `fp8sim.decode`, for CUDA codes [...]. Codes above the format's are not looked for."""
    conversion = resolve_names(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    target = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    names = (name_of(codes.dtype), name_of(dtype))
    _launch("decode", dense(codes), target, (*names, conversion), {})
    return target


def _launch(
    name: str, source: torch.Tensor, target: torch.Tensor, arguments: tuple[Any, ...], random: dict[str, int]
) -> None:
    """Queue one kernel on the tensors' device and its current stream."""
    from fp8sim import _cuda  # built only where nvcc was found

    with current_stream(source) as stream:
        kernel = getattr(_cuda, name)
        kernel(source.data_ptr(), target.data_ptr(), source.numel(), *arguments, stream, **random)
