"""Casts on the GPU, in CUDA C++: integer arithmetic, bitwise equal to the simulator."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import casting, formats
from fp8sim.arguments import FLOATING, check_tensor_of
from fp8sim.cuda.launching import current_stream, dense, name_of, require_dtype
from fp8sim.formats import Format
from fp8sim.random_bits import random_keywords
from fp8sim.rounding import Overflow, Rounding, resolve_names

_CODES = (torch.uint8, torch.uint16, torch.uint32)


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
        ValueError: as for `fp8sim.cast`, a tensor that is not on a CUDA device, an `out` that is not contiguous, or
            that overlaps x without being x.
        TypeError: a dtype that cannot be cast.
        RuntimeError: no CUDA device, or no `fp8sim._cuda`.
    """
    check_tensor_of("x", x)
    to = resolve_names(fmt, rounding, overflow)
    words = random_keywords(Rounding(to.rounding), **random)
    if out is not None:
        _require_output(out, x)
    source, target = dense("x", x), torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _launch("cast", source, target, (name_of(x.dtype), to), words)
    if out is not None:
        torch.autograd.graph.increment_version(out)
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
    check_tensor_of("x", x)
    to = resolve_names(fmt, rounding, overflow)
    words = random_keywords(Rounding(to.rounding), **random)
    source, codes = dense("x", x), casting.code_dtype(formats.parse(fmt))
    target = torch.empty(x.shape, dtype=getattr(torch, codes), device=x.device)
    _launch("encode", source, target, (name_of(x.dtype), codes, to), words)
    return target


def decode(codes: torch.Tensor, fmt: str | Format, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As `fp8sim.decode`, for CUDA codes [...]. It waits for the device where their dtype has more bits than `fmt`.

    Raises:
        ValueError: an unknown format, a code outside it, codes that are not on a CUDA device.
        TypeError: codes that are no unsigned integers, a dtype that is not decoded to.
        RuntimeError: no CUDA device, or no `fp8sim._cuda`.
    """
    check_tensor_of("codes", codes, _CODES)
    require_dtype("dtype", dtype, FLOATING)
    conversion = resolve_names(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    source = dense("codes", codes)
    casting.check_code_tensor(source, formats.parse(fmt))
    target = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _launch("decode", source, target, (name_of(codes.dtype), name_of(dtype), conversion), {})
    return target


def _require_output(out: torch.Tensor, x: torch.Tensor) -> None:
    """TypeError or ValueError unless results for x can be written to `out`."""
    check_tensor_of("out", out, (x.dtype,))
    if (out.shape, out.device) != (x.shape, x.device) or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous and have x's shape and device {list(x.shape)} {x.device}, got strides "
            f"{list(out.stride())} for {list(out.shape)} {out.device}"
        )


def _launch(
    name: str, source: torch.Tensor, target: torch.Tensor, arguments: tuple[Any, ...], random: dict[str, int]
) -> None:
    """Queue one kernel on the tensors' device and its current stream."""
    from fp8sim import _cuda  # built only where nvcc was found

    with current_stream(source) as stream:
        kernel = getattr(_cuda, name)
        kernel(source.data_ptr(), target.data_ptr(), source.numel(), *arguments, stream, **random)
