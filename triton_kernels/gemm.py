"""A GEMM by recipe on Triton kernels: quantize both operands, multiply their codes."""

from __future__ import annotations

import torch

from fp8sim.formats import FORMATS
from fp8sim.quantizers import Quantizer
from fp8sim.triton_kernels import cast
from fp8sim.triton_kernels.matmul import matmul

_DTYPES = {
    FORMATS["float8_e4m3fn"]: torch.float8_e4m3fn,
    FORMATS["float8_e5m2"]: torch.float8_e5m2,
    FORMATS["float16"]: torch.float16,
    FORMATS["bfloat16"]: torch.bfloat16,
}
"""The formats that the kernel multiplies."""


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
        accumulate: "native".
        dtype: of the result: float32, float16 or bfloat16; None is that of `a`.
        layer, name: of the GEMM, for messages.

    Returns:
        [..., M, N].

    Raises:
        TypeError, ValueError, RuntimeError: what the kernel cannot do; the message says what to do instead.
    """
    if accumulate != "native":
        raise ValueError(f"accumulate={accumulate!r}: Triton kernels add natively; call under use_backend('simulate')")
    if quantizers == (None, None):
        return (torch.matmul(a, b) * scale).to(dtype or a.dtype)
    codes_a = _codes(a, quantizers[0], f"operand a of {layer} {name}")
    codes_b = _codes(b.mT, quantizers[1], f"operand b of {layer} {name}")
    if a.ndim == b.ndim == 2:
        return matmul(codes_a, codes_b, scale=scale, out_dtype=dtype or a.dtype)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    pairs = zip(_matrices(codes_a, batch), _matrices(codes_b, batch), strict=True)
    products = [matmul(left, right, scale=scale, out_dtype=dtype or a.dtype) for left, right in pairs]
    empty = torch.empty(0, a.shape[-2], b.shape[-1], dtype=dtype or a.dtype, device=a.device)
    return (torch.stack(products) if products else empty).reshape(*batch, a.shape[-2], b.shape[-1])


def _matrices(x: torch.Tensor, batch: torch.Size) -> list[torch.Tensor]:
    """The matrices of x [..., R, K], one for each place of the broadcast batch."""
    shape = (*batch, *x.shape[-2:])
    raw = x.view(torch.uint8 if x.element_size() == 1 else torch.int16)  # FP8 tensors cannot be expanded everywhere
    return list(raw.expand(shape).reshape(-1, *x.shape[-2:]).view(x.dtype).unbind(0))


def _codes(x: torch.Tensor, quantizer: Quantizer | None, what: str) -> torch.Tensor:
    """x [..., R, K] as a tensor that the kernel multiplies."""
    if quantizer is None:
        if x.dtype in _DTYPES.values():
            return x
        raise TypeError(
            f"{what} is {x.dtype} without a quantizer, and the Triton kernel multiplies FP8, float16 and bfloat16: "
            f"choose a recipe that casts it, or call under use_backend('simulate')"
        )
    if quantizer.scale is not None:
        raise TypeError(f"{what} is quantized by {quantizer}, and the Triton kernel takes no scale factors of operands")
    if quantizer.format not in _DTYPES:
        names = ", ".join(str(fmt) for fmt in _DTYPES)
        raise TypeError(f"{what} is cast to {quantizer.format}, and the Triton kernel multiplies {names}")
    codes = cast.encode(x, quantizer.format, rounding=quantizer.rounding, overflow=quantizer.overflow)
    return codes.view(_DTYPES[quantizer.format])
