"""GEMMs by recipe on Triton kernels: the rows "gemm" and "gemm_backward" of "triton" and "triton_hardware"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fp8sim.kernel_gemm import GemmKernel, Operand
from fp8sim.kernel_operands import DTYPES
from fp8sim.quantizers import QuantizedTensor, Quantizer
from fp8sim.triton_kernels import encode_scaled as integer
from fp8sim.triton_kernels import hardware
from fp8sim.triton_kernels.matmul import is_of_blocks, matmul
from fp8sim.triton_kernels.quantize import quantize
from fp8sim.triton_kernels.tensor_core import factors_of, options_of_plan


def _operand_by(quantize: Callable[..., QuantizedTensor]) -> Callable[[torch.Tensor, Quantizer], Operand]:
    def operand(x: torch.Tensor, quantizer: Quantizer) -> Operand:
        quantized = quantize(x, quantizer)
        return quantized.codes.view(DTYPES[quantizer.format]), factors_of(quantized)

    return operand


def _options(left: Operand, right: Operand, plan: str) -> dict[str, Any]:
    blocks = any(is_of_blocks(factor, x) for x, factor in (left, right))
    return options_of_plan(left[0], right[0], plan, blocks=blocks)


KERNEL = GemmKernel("the Triton kernel", integer.encode_scaled, _operand_by(quantize), matmul, _options)
HARDWARE = GemmKernel("the Triton kernel", hardware.encode_scaled, _operand_by(hardware.quantize), matmul, _options)

gemm, gemm_backward = KERNEL.gemm, KERNEL.gemm_backward
hardware_gemm, hardware_gemm_backward = HARDWARE.gemm, HARDWARE.gemm_backward
