"""GEMMs by recipe on the kernels of GPUs: quantize both operands, multiply their codes.

A backend states what it is made of as a `GemmKernel`, whose methods are its rows "gemm" and "gemm_backward".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fp8sim.kernel_operands import DTYPES, Factor
from fp8sim.quantizers import Quantizer

Operand = tuple[torch.Tensor, Factor]
"""A tensor [..., R, K] that the kernel multiplies, and its factors."""


@dataclass(frozen=True)
class GemmKernel:
    """The operations of one backend that a GEMM by recipe consists of.

    Attributes:
        name: what messages call the kernel.
        encode_scaled: as `fp8sim.ops.encode_scaled.encode_scaled`, without a factor.
        quantize: `quantize(x, quantizer)` for quantizers that measure factors: the operand, with them; None where the
            backend has none.
        multiply: `multiply(a, b, scale=, a_scale_inv=, b_scale_inv=, out_dtype=, **options)`, of a [..., M, K] and
            b [..., N, K].
        options_of_plan: the options by which `multiply` adds as a plan says, `options_of_plan(a, b, plan)` for operands
            with their factors. ValueError if there are none.
    """

    name: str
    encode_scaled: Callable[..., tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]
    quantize: Callable[[torch.Tensor, Quantizer], Operand] | None
    multiply: Callable[..., torch.Tensor]
    options_of_plan: Callable[[Operand, Operand, str], dict[str, Any]]

    def gemm(
        self,
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
            dtype: of the result: float32, float16 or bfloat16, or float64, to which a sum in float32 is
                widened; None is that of `a`.
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
        left = self._operand(a, quantizers[0], f"operand a of {layer} {name}")
        right = self._operand(b.mT, quantizers[1], f"operand b of {layer} {name}")
        return self._multiplied(left, right, scale, accumulate, dtype or a.dtype)

    def gemm_backward(
        self,
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
        """grad @ b^T and grad^T @ a, as `fp8sim.simulate.matmul.gemm_backward`, on tensor cores.

        The bits of two `gemm`s, but `grad` is cast once, in one pass over memory that writes its codes in both layouts.
        So its quantizer is one whose codes of a transpose are the transposed codes: without factors, with one, or with
        those of square blocks.

        Args:
            grad: [..., M, N]. a: [..., M, K]. b: [..., K, N].
            quantizers: of grad, which must have one, of a and of b, as `gemm` takes them. The rest is as there.

        Returns:
            [..., M, K] and [..., N, K].

        Raises:
            TypeError, ValueError, RuntimeError: as `gemm`; a quantizer of `grad` that has to cast twice.
        """
        of_grad, of_a, of_b = quantizers
        rows, columns = self._both_ways(grad, of_grad, f"grad_output of {layer}")
        weight = self._operand(b, of_b, f"operand b of {layer} grad_input")
        input = self._operand(a.mT, of_a, f"operand b of {layer} grad_weight")
        return (
            self._multiplied(rows, weight, scales[0], accumulate[0], dtypes[0] or grad.dtype),
            self._multiplied(columns, input, scales[1], accumulate[1], dtypes[1] or grad.dtype),
        )

    def _multiplied(
        self, left: Operand, right: Operand, scale: float, accumulate: str, dtype: torch.dtype
    ) -> torch.Tensor:
        options: dict[str, Any] = {}
        if accumulate != "native":
            options = self.options_of_plan(left, right, accumulate)
        (a, a_factor), (b, b_factor) = left, right
        made = torch.float32 if dtype == torch.float64 else dtype
        out = self.multiply(a, b, scale=scale, a_scale_inv=a_factor, b_scale_inv=b_factor, out_dtype=made, **options)
        return out.to(dtype)

    def _operand(self, x: torch.Tensor, quantizer: Quantizer | None, what: str) -> Operand:
        """x [..., R, K] as `quantizer` casts it."""
        if quantizer is None:
            if x.dtype in DTYPES.values():
                return x, None
            raise TypeError(
                f"{what} is {x.dtype} without a quantizer, and {self.name} multiplies FP8, float16 and bfloat16: "
                f"choose a recipe that casts it, or call under use_backend('simulate')"
            )
        self._require_format(quantizer, what)
        if quantizer.scale is not None:
            return self._quantized(x, quantizer, what)
        if not x.is_contiguous() and x.mT.is_contiguous():
            return self._codes(x.mT, quantizer, transpose=True)[1], None
        return self._codes(x, quantizer)[0], None

    def _both_ways(self, x: torch.Tensor, quantizer: Quantizer | None, what: str) -> tuple[Operand, Operand]:
        """x [..., M, N] and its transpose [..., N, M] as `quantizer` casts them, cast once."""
        if quantizer is None:
            raise ValueError(f"{what}: there is no quantizer that could cast it once for two GEMMs")
        self._require_format(quantizer, what)
        if quantizer.scale is None:
            codes, transposed = self._codes(x, quantizer, transpose=True)
            return (codes, None), (transposed, None)
        cut = quantizer.scale.granularity
        if cut.rows != cut.columns:
            raise ValueError(f"{what}: {quantizer} has factors of other elements for the transpose: cast it twice")
        codes, factors = self._quantized(x, quantizer, what)
        transposed_factors = factors.mT if isinstance(factors, torch.Tensor) and factors.ndim > 1 else factors
        return (codes, factors), (codes.mT, transposed_factors)

    def _quantized(self, x: torch.Tensor, quantizer: Quantizer, what: str) -> Operand:
        """x with the factors that its quantizer measures."""
        if self.quantize is None:
            raise TypeError(
                f"{what} is cast by {quantizer}, and {self.name} has no quantizer that measures factors: "
                f"choose a recipe without, or call under use_backend('triton')"
            )
        return self.quantize(x, quantizer)

    def _codes(
        self, x: torch.Tensor, quantizer: Quantizer, transpose: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of x [..., R, C], and [..., C, R] of its transpose if wanted, from one pass over memory."""
        codes, transposed, _ = self.encode_scaled(
            x, quantizer.format, transpose=transpose, rounding=quantizer.rounding, overflow=quantizer.overflow
        )
        dtype = DTYPES[quantizer.format]
        return codes.view(dtype), codes if transposed is None else transposed.view(dtype)

    def _require_format(self, quantizer: Quantizer, what: str) -> None:
        if quantizer.format not in DTYPES:
            names = ", ".join(str(fmt) for fmt in DTYPES)
            raise TypeError(f"{what} is cast to {quantizer.format}, and {self.name} multiplies {names}")
