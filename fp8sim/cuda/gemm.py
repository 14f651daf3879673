"""GEMMs by recipe on the CUDA C++ kernels: the rows "gemm" and "gemm_backward" of the backend "cuda"."""

from __future__ import annotations

from typing import Any

from fp8sim.cuda.encode_scaled import encode_scaled
from fp8sim.cuda.matmul import matmul
from fp8sim.cuda.tensor_core import options_of_plan
from fp8sim.kernel_gemm import GemmKernel, Operand


def _options(left: Operand, right: Operand, plan: str) -> dict[str, Any]:
    return options_of_plan(left[0], right[0], plan)


# No kernel here measures factors from an operand: those quantizers run in Triton.
KERNEL = GemmKernel("the CUDA kernel", encode_scaled, None, matmul, _options)

gemm, gemm_backward = KERNEL.gemm, KERNEL.gemm_backward
