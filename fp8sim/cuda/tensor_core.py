"""`fp8sim.matmul` on tensor cores by the CUDA C++ kernels: the product that a plan describes, if the device adds so."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim.cuda import cast
from fp8sim.cuda import matmul as kernels
from fp8sim.formats import FORMATS, Format
from fp8sim.kernel_operands import Kernel, operand, options_for, output_dtype
from fp8sim.mma.plans import GemmPlan

_KERNEL = Kernel(
    name="the CUDA kernel",
    decode=cast.decode,
    outputs={FORMATS[name]: getattr(torch, name) for name in ("float32", "float16", "bfloat16")},
    takes_blocks=False,
)


def matmul(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    a_format: str | Format | None = None,
    b_format: str | Format | None = None,
    a_scale_inv: Any = None,
    b_scale_inv: Any = None,
    accumulate: str | None = None,
    plan: str | GemmPlan | None = None,
    output: str = "float32",
) -> torch.Tensor:
    """a @ b times factors, as `fp8sim.matmul` (`fp8sim.ops.tensor_core`) describes arguments, result and errors.

    Args:
        a: [..., M, K]: float8_e4m3fn, float8_e5m2, float16 or bfloat16; uint8 or uint16 codes of `a_format`; or a
            `QuantizedTensor` of such a format with float32 factors of the tensor or of rows.
        b: [..., K, N], likewise; a `QuantizedTensor` is that of b transposed.
        c: None: the kernel starts at +0.
        accumulate, plan: an order in which the kernel adds on this device; None: fast accumulation.
        output: "float32", "float16" or "bfloat16".

    Raises:
        TypeError, ValueError, RuntimeError: what the kernel cannot do; the message says what it can.
    """
    if c is not None:
        raise ValueError("c: the CUDA kernel's products start at zero; add c to the result, or use_backend('simulate')")
    left, left_factor = operand("a", a, a_format, a_scale_inv, _KERNEL)
    right, right_factor = operand("b", b, b_format, b_scale_inv, _KERNEL)
    dtype = output_dtype(output, _KERNEL)
    order = accumulate if plan is None else plan
    options = {} if order is None else options_of_plan(left, right, order)
    return kernels.matmul(left, right, a_scale_inv=left_factor, b_scale_inv=right_factor, out_dtype=dtype, **options)


def options_of_plan(a: torch.Tensor, b: torch.Tensor, plan: str | GemmPlan) -> dict[str, Any]:
    """What `kernels.matmul` must be told to add the products of a and b as the plan says. ValueError if it cannot."""
    capability = torch.cuda.get_device_capability(a.device)
    ways = (
        (kernels.plan_of(a.dtype, capability, fast_accumulation=fast), {"fast_accumulation": fast})
        for fast in (True, False)
    )
    return options_for(a, b, plan, ways, _KERNEL)
