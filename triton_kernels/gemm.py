"""A GEMM by recipe on Triton kernels: quantize both operands, multiply their codes."""

from __future__ import annotations

import torch

from fp8sim.quantizers import Quantizer
from fp8sim.triton_kernels import cast
from fp8sim.triton_kernels.matmul import matmul
from fp8sim.triton_kernels.tensor_core import DTYPES, options_of_plan


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    quantizers: tuple[Quantizer | None, Quantizer | None] = (None, None),
    scale: float = 1.0,
    accumulate: str = "native",
    dtype: torch.dtype | None = None,
    layer: str = "",
    name: str = "output",
) -> torch.Tensor:
    """scale * sum_k q_a(a)[m, k] * q_b(b)[k, n], as `fp8sim.simulate.matmul.gemm`, on tensor cores.

    A GEMM without any quantizer is in high precision and is torch's own matmul.

    Args:
        a: [..., M, K]. b: [..., K, N]; leading dimensions broadcast.
        quantizers: of a and b: to e4m3, e5m2 (mixed at will), float16 or bfloat16; None for an operand that is one.
        accumulate: "native", or a plan in whose order the kernel adds on this device.
        dtype: of the result: float32, float16 or bfloat16; None is that of `a`.
        layer, name: of the GEMM, for messages.

    Returns:
        [..., M, N].

    Raises:
        TypeError, ValueError, RuntimeError: what the kernel cannot do; the message says what to do instead.
    """
    if quantizers == (None, None):
        if accumulate != "native":
            raise ValueError(
                f"accumulate={accumulate!r} of a GEMM without quantizers: call under use_backend('simulate')"
            )
        return (torch.matmul(a, b) * scale).to(dtype or a.dtype)
    codes_a = _codes(a, quantizers[0], f"operand a of {layer} {name}")
    codes_b = _codes(b.mT, quantizers[1], f"operand b of {layer} {name}")
    options = {} if accumulate == "native" else options_of_plan(codes_a, codes_b, accumulate)
    return matmul(codes_a, codes_b, scale=scale, out_dtype=dtype or a.dtype, **options)


def _codes(x: torch.Tensor, quantizer: Quantizer | None, what: str) -> torch.Tensor:
    """x [..., R, K] as a tensor that the kernel multiplies."""
    if quantizer is None:
        if x.dtype in DTYPES.values():
            return x
        raise TypeError(
            f"{what} is {x.dtype} without a quantizer, and the Triton kernel multiplies FP8, float16 and bfloat16: "
            f"choose a recipe that casts it, or call under use_backend('simulate')"
        )
    if quantizer.scale is not None:
        raise TypeError(f"{what} is quantized by {quantizer}, and the Triton kernel takes no scale factors of operands")
    if quantizer.format not in DTYPES:
        names = ", ".join(str(fmt) for fmt in DTYPES)
        raise TypeError(f"{what} is cast to {quantizer.format}, and the Triton kernel multiplies {names}")
    codes = cast.encode(x, quantizer.format, rounding=quantizer.rounding, overflow=quantizer.overflow)
    return codes.view(DTYPES[quantizer.format])
