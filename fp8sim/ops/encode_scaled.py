"""`encode_scaled`: codes of a tensor times a known factor, its amax and the transposed codes, on any backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fp8sim import backends, casting, formats
from fp8sim.arguments import check_flag, check_float32_factor, check_tensor_of
from fp8sim.formats import Format
from fp8sim.ops.cast import policy_text, random_arguments, random_options
from fp8sim.ops.library import register
from fp8sim.rounding import Overflow, Rounding


class ScaledCodes(NamedTuple):
    """What `encode_scaled` gives; None for what was not asked for.

    Attributes:
        codes: [..., R, C]. transposed: [..., C, R], contiguous. amax: [], float32.
    """

    codes: torch.Tensor
    transposed: torch.Tensor | None
    amax: torch.Tensor | None


def _impl(
    x: torch.Tensor,
    policy: str,
    factor: float | None,
    scale: torch.Tensor | None,
    options: list[bool],
    seed: torch.Tensor | None,
    stream: int,
    offset: int,
    random_bits: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    fmt, rounding, overflow = policy.split(":")
    fused, amax, transpose = options
    codes, transposed, largest = backends.row("encode_scaled", backend).load()(
        x,
        fmt,
        factor if scale is None else scale,
        fused=fused,
        amax=amax,
        transpose=transpose,
        rounding=rounding,
        overflow=overflow,
        **random_options(seed, stream, offset, random_bits),
    )
    return (
        codes,
        codes.new_empty(0) if transposed is None else transposed,
        x.new_empty(0, dtype=torch.float32) if largest is None else largest,
    )


def _fake(
    x: torch.Tensor, policy: str, factor: Any, scale: Any, options: list[bool], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = getattr(torch, casting.code_dtype(formats.parse(policy.split(":")[0])))
    _, amax, transpose = options
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(x.mT.shape if transpose else 0, dtype=dtype, device=x.device),
        torch.empty(() if amax else 0, dtype=torch.float32, device=x.device),
    )


_op = register(
    "encode_scaled(Tensor x, str policy, float? factor, Tensor? scale, bool[] options, Tensor? seed, int stream, "
    "int offset, int random_bits, str backend) -> (Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)


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
    seed: int | torch.Tensor | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> ScaledCodes:
    """The codes of x * scale, and what else the same pass over memory can give.

    With a factor, float64 elements are first rounded to float32, ties to even. The product is rounded to float32 and
    then cast, two roundings; `fused` rounds it once. A NaN keeps its sign; where the factor makes a NaN of a number,
    it is positive.

    Args:
        x: [..., R, C], a torch tensor of float32, float64, float16 or bfloat16, any strides; [...] without `transpose`.
        fmt, rounding, overflow, seed, stream, offset, random_bits: as for `fp8sim.encode`.
        scale: what x is multiplied with before the cast: a positive number, rounded to float32, or one float32 number
            in a tensor on x's device, of any value, which is never waited for. None for no factor.
        fused: round the exact product to `fmt`.
        amax: also give the largest |x|, before the factor: NaN if an element is, else infinity if an element is; 0 for
            an empty tensor. It depends on no order of operations.
        transpose: also give the codes of every matrix transposed, from the same random bits.

    Returns:
        The codes, contiguous, without gradient, and what was asked for.

    Raises:
        ValueError, TypeError: as for `fp8sim.encode`; a factor of another kind, or a number that is not positive and
            finite; `transpose` of a tensor with one axis.
    """
    check_tensor_of("x", x)
    check_flag("fused", fused)
    check_forms(x, amax, transpose)
    policy, mode = policy_text(fmt, rounding, overflow)
    rest = random_arguments(mode, seed, stream, offset, random_bits)
    backend = backends.select("encode_scaled", x.device.type)
    factor, tensor = scale_arguments(x, scale)
    codes, transposed, largest = _op(x.detach(), policy, factor, tensor, [fused, amax, transpose], *rest, backend)
    return ScaledCodes(codes, transposed if transpose else None, largest if amax else None)


def check_forms(x: torch.Tensor, amax: bool, transpose: bool) -> None:
    """TypeError or ValueError unless these forms of a result [..., R, C] of x's shape can be given."""
    check_flag("amax", amax)
    check_flag("transpose", transpose)
    if transpose and x.ndim < 2:
        raise ValueError(f"x has shape {list(x.shape)}: transpose=True takes two axes or more; reshape it")


def scale_arguments(x: torch.Tensor, scale: float | torch.Tensor | None) -> tuple[float | None, torch.Tensor | None]:
    """The factor as a number or as a tensor; both None without one.

    Raises:
        ValueError: a number that is not positive and finite in float32, or a tensor of another kind. What is in a
            tensor is not looked at.
        TypeError: neither.
    """
    if scale is None:
        return None, None
    if not isinstance(scale, torch.Tensor):
        check_float32_factor("scale", scale)
        return float(scale), None
    if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != x.device:
        raise ValueError(
            f"scale must be a number, or one float32 number on x's device {x.device} in a tensor: got {scale.dtype} "
            f"{list(scale.shape)} on {scale.device}"
        )
    return None, scale.detach()
