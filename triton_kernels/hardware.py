"""Encode and quantize by the GPU's own conversion, `cvt.rn.satfinite`, where it honours the policy bit for bit.

It converts float32 to E4M3 or E5M2, two at a time, ties to even; finite overflow and infinities become the largest
number of their sign (SATURATE), NaN becomes 0x7F, whose sign the kernels put back. So it takes a twentieth of the
instructions of `encode_scaled`, and refuses everything else. Elements of float64 would be rounded twice and are refused
unless a scale factor rounds them to float32 anyway.

sm_90 and later: Triton 3.6 converts on sm_89 by way of float16, which rounds twice, and not at all on sm_80. In the
interpreter conversions come from NVIDIA's header: there, a run proves indexing and factors, and not the instruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl

from fp8sim import formats
from fp8sim.formats import FORMATS, Format
from fp8sim.quantizers import QuantizedTensor, Quantizer
from fp8sim.rounding import Overflow, Rounding, member, resolve
from fp8sim.triton_kernels import activations
from fp8sim.triton_kernels import encode_scaled as integer
from fp8sim.triton_kernels import quantize as blocks
from fp8sim.triton_kernels import rms_norm as norms
from fp8sim.triton_kernels.encode_scaled import Outputs
from fp8sim.triton_kernels.launching import RandomIntegers, require_device
from fp8sim.triton_kernels.requirements import require

TYPES = {FORMATS["float8_e4m3fn"]: tl.float8e4nv, FORMATS["float8_e5m2"]: tl.float8e5}
"""The formats, and Triton's names of them."""

_INSTEAD = "use the backend 'triton', which converts by integer arithmetic"


def encode(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    **random: Any,
) -> torch.Tensor:
    """As `fp8sim.triton_kernels.cast.encode`, for float32, float16 and bfloat16.

    Raises:
        ValueError: a format, policy or dtype that the instruction does not honour.
        RuntimeError: the GPU is older than sm_90.
    """
    return encode_scaled(x, fmt, rounding=rounding, overflow=overflow, **random)[0]


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
    block: int | None = None,
    **random: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """As `fp8sim.triton_kernels.encode_scaled.encode_scaled`, unfused. Errors as for `encode`."""
    fmt = formats.parse(fmt)
    rounding, overflow = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    _require_policy(fmt, rounding, overflow, fused and scale is not None, random)
    if scale is None:
        _require_float32(x)
    _require_capability(x)
    outputs = Outputs(False, amax, transpose)
    conversion = resolve(fmt, rounding, overflow)
    return integer.launch(x, fmt, conversion, scale, RandomIntegers(), outputs, block, TYPES[fmt])


def quantize(x: torch.Tensor, quantizer: Quantizer, *, tile: int | None = None, **random: Any) -> QuantizedTensor:
    """As `fp8sim.triton_kernels.quantize.quantize`, unfused, for E4M3 and E5M2 elements. Errors as for `encode`."""
    fused = quantizer.scale is not None and quantizer.scale.fused
    _require_policy(quantizer.format, quantizer.rounding, quantizer.overflow, fused, random)
    if quantizer.scale is None:
        _require_float32(x)
    _require_capability(x)
    return blocks.launch(x, quantizer, TYPES[quantizer.format], tile, RandomIntegers())


def _by_instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Fused element work whose codes come from the instruction; its numbers are float32, whatever the operands are."""

    @functools.wraps(function)
    def converted(
        x: torch.Tensor,
        *tensors: Any,
        fmt: str | Format | None = None,
        rounding: Rounding | str = Rounding.TIES_TO_EVEN,
        overflow: Overflow | str = Overflow.SATURATE,
        **options: Any,
    ) -> Any:
        if fmt is None:
            return function(x, *tensors, **options)
        fmt = formats.parse(fmt)
        policy = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
        _require_policy(fmt, *policy, False, {name: options.get(name) for name in _RANDOM})
        _require_capability(x)
        return function(x, *tensors, fmt=fmt, hardware=TYPES[fmt], **options)

    return converted


gelu = _by_instruction(activations.gelu)
gelu_backward = _by_instruction(activations.gelu_backward)
silu_glu = _by_instruction(activations.silu_glu)
silu_glu_backward = _by_instruction(activations.silu_glu_backward)
rms_norm = _by_instruction(norms.rms_norm)
rms_norm_backward = _by_instruction(norms.rms_norm_backward)


def _require_policy(fmt: Format, rounding: Rounding, overflow: Overflow, fused: bool, random: dict[str, Any]) -> None:
    """ValueError unless the instruction honours the policy."""
    if fmt not in TYPES:
        raise ValueError(f"{fmt}: the GPU converts to {' and '.join(map(str, TYPES))}; {_INSTEAD}")
    if rounding is not Rounding.TIES_TO_EVEN or overflow is not Overflow.SATURATE:
        raise ValueError(
            f"rounding={rounding.name}, overflow={overflow.name}: the GPU's conversion has TIES_TO_EVEN and SATURATE; "
            f"{_INSTEAD}"
        )
    if fused:
        raise ValueError(f"fused=True rounds a product once, and the GPU converts float32 numbers; {_INSTEAD}")
    given = {name: value for name, value in random.items() if value not in (None, 0) and (name, value) != _ALL_BITS}
    if given:
        raise ValueError(f"{', '.join(given)}: TIES_TO_EVEN takes no random bits; drop them")


_ALL_BITS = ("random_bits", 32)
_RANDOM = ("seed", "stream", "offset", "random_bits")


def _require_float32(x: torch.Tensor) -> None:
    if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
        raise ValueError(f"x is float64, which the GPU would round twice: convert it to float32, or {_INSTEAD}")


def _require_capability(x: torch.Tensor) -> None:
    require_device("x", x)
    if x.is_cuda:
        require("hardware conversion", torch.cuda.get_device_capability(x.device), x.device)
