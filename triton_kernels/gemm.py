"""A GEMM by recipe on Triton kernels: quantize both operands, multiply their codes."""

from __future__ import annotations

import torch

from fp8sim.quantizers import Quantizer
from fp8sim.triton_kernels import cast
from fp8sim.triton_kernels.matmul import Factors, is_of_blocks, matmul
from fp8sim.triton_kernels.quantize import quantize
from fp8sim.triton_kernels.tensor_core import DTYPES, factors_of, options_of_plan


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
            Factors may be those of tensors, rows, and blocks of 1x128 and 128x128; they multiply sums, where the
            simulator multiplies numbers before they are added.
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
    left, left_factor = _operand(a, quantizers[0], f"operand a of {layer} {name}")
    right, right_factor = _operand(b.mT, quantizers[1], f"operand b of {layer} {name}")
    options = {}
    if accumulate != "native":
        blocks = any(is_of_blocks(factor, x) for factor, x in ((left_factor, left), (right_factor, right)))
        options = options_of_plan(left, right, accumulate, blocks=blocks)
    return matmul(
        left,
        right,
        scale=scale,
        a_scale_inv=left_factor,
        b_scale_inv=right_factor,
        out_dtype=dtype or a.dtype,
        **options,
    )


def _operand(x: torch.Tensor, quantizer: Quantizer | None, what: str) -> tuple[torch.Tensor, Factors]:
    """x [..., R, K] as a tensor that the kernel multiplies, and its factors."""
    if quantizer is None:
        if x.dtype in DTYPES.values():
            return x, None
        raise TypeError(
            f"{what} is {x.dtype} without a quantizer, and the Triton kernel multiplies FP8, float16 and bfloat16: "
            f"choose a recipe that casts it, or call under use_backend('simulate')"
        )
    if quantizer.format not in DTYPES:
        names = ", ".join(str(fmt) for fmt in DTYPES)
        raise TypeError(f"{what} is cast to {quantizer.format}, and the Triton kernel multiplies {names}")
    if quantizer.scale is None:
        codes = cast.encode(x, quantizer.format, rounding=quantizer.rounding, overflow=quantizer.overflow)
        return codes.view(DTYPES[quantizer.format]), None
    quantized = quantize(x, quantizer)
    return quantized.codes.view(DTYPES[quantizer.format]), factors_of(quantized)
