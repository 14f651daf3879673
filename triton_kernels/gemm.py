"""A GEMM by recipe on Triton kernels: quantize both operands, multiply their codes."""

from __future__ import annotations

import torch

from fp8sim.quantizers import Quantizer
from fp8sim.triton_kernels.encode_scaled import encode_scaled
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
    left = _operand(a, quantizers[0], f"operand a of {layer} {name}")
    right = _operand(b.mT, quantizers[1], f"operand b of {layer} {name}")
    return _multiplied(left, right, scale, accumulate, dtype or a.dtype)


def gemm_backward(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    quantizers: tuple[Quantizer | None, Quantizer | None, Quantizer | None],
    scales: tuple[float, float],
    accumulate: tuple[str, str],
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    layer: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """grad @ b^T and grad^T @ a, as `fp8sim.simulate.matmul.gemm_backward`, on tensor cores: the bits of two `gemm`s.

    `grad` is cast once, in one pass over memory that writes its codes in both layouts. So its quantizer is one whose
    codes of a transpose are the transposed codes: without factors, with one, or with those of square blocks.

    Args:
        grad: [..., M, N]. a: [..., M, K]. b: [..., K, N].
        quantizers: of grad, which must have one, of a and of b, as `gemm` takes them. The rest is as there.

    Returns:
        [..., M, K] and [..., N, K].

    Raises:
        TypeError, ValueError, RuntimeError: as `gemm`; a quantizer of `grad` that has to cast twice.
    """
    of_grad, of_a, of_b = quantizers
    rows, columns = _both_ways(grad, of_grad, f"grad_output of {layer}")
    weight = _operand(b, of_b, f"operand b of {layer} grad_input")
    input = _operand(a.mT, of_a, f"operand b of {layer} grad_weight")
    return (
        _multiplied(rows, weight, scales[0], accumulate[0], dtypes[0] or grad.dtype),
        _multiplied(columns, input, scales[1], accumulate[1], dtypes[1] or grad.dtype),
    )


_Operand = tuple[torch.Tensor, Factors]
"""A tensor [..., R, K] that the kernel multiplies, and its factors."""


def _multiplied(left: _Operand, right: _Operand, scale: float, accumulate: str, dtype: torch.dtype) -> torch.Tensor:
    options = {}
    if accumulate != "native":
        blocks = any(is_of_blocks(factor, x) for x, factor in (left, right))
        options = options_of_plan(left[0], right[0], accumulate, blocks=blocks)
    (a, a_factor), (b, b_factor) = left, right
    return matmul(a, b, scale=scale, a_scale_inv=a_factor, b_scale_inv=b_factor, out_dtype=dtype, **options)


def _operand(x: torch.Tensor, quantizer: Quantizer | None, what: str) -> _Operand:
    """x [..., R, K] as `quantizer` casts it."""
    if quantizer is None:
        if x.dtype in DTYPES.values():
            return x, None
        raise TypeError(
            f"{what} is {x.dtype} without a quantizer, and the Triton kernel multiplies FP8, float16 and bfloat16: "
            f"choose a recipe that casts it, or call under use_backend('simulate')"
        )
    _require_format(quantizer, what)
    if quantizer.scale is not None:
        quantized = quantize(x, quantizer)
        return quantized.codes.view(DTYPES[quantizer.format]), factors_of(quantized)
    if not x.is_contiguous() and x.mT.is_contiguous():
        return _codes(x.mT, quantizer, transpose=True)[1], None
    return _codes(x, quantizer)[0], None


def _both_ways(x: torch.Tensor, quantizer: Quantizer | None, what: str) -> tuple[_Operand, _Operand]:
    """x [..., M, N] and its transpose [..., N, M] as `quantizer` casts them, cast once."""
    if quantizer is None:
        raise ValueError(f"{what}: there is no quantizer that could cast it once for two GEMMs")
    _require_format(quantizer, what)
    if quantizer.scale is None:
        codes, transposed = _codes(x, quantizer, transpose=True)
        return (codes, None), (transposed, None)
    cut = quantizer.scale.granularity
    if cut.rows != cut.columns:
        raise ValueError(f"{what}: {quantizer} has factors of other elements for the transpose: cast it twice")
    quantized = quantize(x, quantizer)
    codes, factors = quantized.codes.view(DTYPES[quantizer.format]), factors_of(quantized)
    transposed_factors = factors.mT if isinstance(factors, torch.Tensor) and factors.ndim > 1 else factors
    return (codes, factors), (codes.mT, transposed_factors)


def _codes(x: torch.Tensor, quantizer: Quantizer, transpose: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of x [..., R, C], and [..., C, R] of its transpose if wanted, from one pass over memory."""
    codes, transposed, _ = encode_scaled(
        x, quantizer.format, transpose=transpose, rounding=quantizer.rounding, overflow=quantizer.overflow
    )
    dtype = DTYPES[quantizer.format]
    return codes.view(dtype), codes if transposed is None else transposed.view(dtype)


def _require_format(quantizer: Quantizer, what: str) -> None:
    if quantizer.format not in DTYPES:
        names = ", ".join(str(fmt) for fmt in DTYPES)
        raise TypeError(f"{what} is cast to {quantizer.format}, and the Triton kernel multiplies {names}")
