"""`fp8sim.matmul` on tensor cores: the product that a plan describes, if the device adds in that order."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import kernel_operands
from fp8sim.formats import FORMATS, Format
from fp8sim.kernel_operands import DTYPES, Factor, Kernel, operand, output_dtype
from fp8sim.mma.plans import GemmPlan
from fp8sim.quantizers import QuantizedTensor
from fp8sim.triton_kernels import cast
from fp8sim.triton_kernels import matmul as kernels

__all__ = ["DTYPES", "factors_of", "matmul", "options_of_plan"]

_KERNEL = Kernel(
    name="the Triton kernel",
    decode=cast.decode,
    outputs={**DTYPES, FORMATS["float32"]: torch.float32},
    takes_blocks=True,
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
            `QuantizedTensor` of such a format with float32 factors.
        b: [..., K, N], likewise; a `QuantizedTensor` is that of b transposed.
        c: None: the kernel starts at +0.
        accumulate, plan: an order in which the kernel adds on this device; None: fast accumulation.

    Raises:
        TypeError, ValueError, RuntimeError: what the kernel cannot do; the message says what it can.
    """
    if c is not None:
        raise ValueError("c: Triton's products start at zero; add c to the result, or use_backend('simulate')")
    left, left_factor = operand("a", a, a_format, a_scale_inv, _KERNEL)
    right, right_factor = operand("b", b, b_format, b_scale_inv, _KERNEL)
    dtype = output_dtype(output, _KERNEL)
    blocks = any(kernels.is_of_blocks(factor, x) for factor, x in ((left_factor, left), (right_factor, right)))
    order = accumulate if plan is None else plan
    options = {} if order is None else options_of_plan(left, right, order, blocks=blocks)
    result = kernels.matmul(left, right, a_scale_inv=left_factor, b_scale_inv=right_factor, out_dtype=dtype, **options)
    return result.view(torch.uint8) if result.element_size() == 1 else result


def factors_of(x: QuantizedTensor) -> Factor:
    """The factors of x as `kernels.matmul` takes them. TypeError for those of other blocks, or of two levels."""
    return kernel_operands.factors_of(x, _KERNEL)


def options_of_plan(a: torch.Tensor, b: torch.Tensor, plan: str | GemmPlan, *, blocks: bool = False) -> dict[str, Any]:
    """What `kernels.matmul` needs to be told to add the products of a and b as the plan says.

    Args:
        a, b: operands in a dtype of the kernel.
        plan: the order. blocks: whether factors belong to blocks.

    Raises:
        ValueError: the kernel does not add so on this device; the message says how it does.
    """
    capability = kernels.capability_of(a)
    ways = (
        (
            kernels.plan_of(a.dtype, capability, fast_accumulation=fast, blocks=blocks),
            {"fast_accumulation": fast, "split_k": 1},
        )
        for fast in (True, False)
    )
    return kernel_operands.options_for(a, b, plan, ways, _KERNEL)
