"""`fp8sim.matmul` on tensor cores: the product that a plan describes, if the device adds in that order."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fp8sim import formats, mma
from fp8sim.formats import FORMATS, Format
from fp8sim.mma import plans
from fp8sim.mma.plans import GemmPlan
from fp8sim.quantizers import QuantizedTensor
from fp8sim.triton_kernels import cast
from fp8sim.triton_kernels import matmul as kernels

DTYPES = {
    FORMATS["float8_e4m3fn"]: torch.float8_e4m3fn,
    FORMATS["float8_e5m2"]: torch.float8_e5m2,
    FORMATS["float16"]: torch.float16,
    FORMATS["bfloat16"]: torch.bfloat16,
}
"""The formats that the kernel multiplies."""

_OUTPUTS = {**DTYPES, FORMATS["float32"]: torch.float32}


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
    left, left_factor = _operand("a", a, a_format, a_scale_inv)
    right, right_factor = _operand("b", b, b_format, b_scale_inv)
    target = formats.parse(output)
    if target not in _OUTPUTS:
        raise ValueError(f"output={output!r}: the Triton kernel returns {', '.join(map(str, _OUTPUTS))}")
    blocks = any(kernels.is_of_blocks(factor, x) for factor, x in ((left_factor, left), (right_factor, right)))
    order = accumulate if plan is None else plan
    options = {} if order is None else options_of_plan(left, right, order, blocks=blocks)
    result = kernels.matmul(
        left, right, a_scale_inv=left_factor, b_scale_inv=right_factor, out_dtype=_OUTPUTS[target], **options
    )
    return result.view(torch.uint8) if result.element_size() == 1 else result


_Factor = float | torch.Tensor | None


def _operand(argument: str, given: Any, fmt: str | Format | None, factor: Any) -> tuple[torch.Tensor, _Factor]:
    """The operand [..., R, K] in a dtype of the kernel, and its factors as `kernels.matmul` takes them."""
    if isinstance(given, QuantizedTensor):
        if fmt is not None or factor is not None:
            raise ValueError(
                f"{argument} is a QuantizedTensor, which has a format and factors of its own: give no other"
            )
        return _typed(argument, given.codes, given.quantizer.format), factors_of(given)
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{argument} is a {type(given).__name__}: the Triton kernel takes tensors and QuantizedTensors")
    is_b = argument == "b"
    matrices = given.mT if is_b else given
    of_blocks = is_b and isinstance(factor, torch.Tensor) and factor.ndim == given.ndim
    return _typed(argument, matrices, None if fmt is None else formats.parse(fmt)), factor.mT if of_blocks else factor


def _typed(argument: str, x: torch.Tensor, fmt: Format | None) -> torch.Tensor:
    """x, or codes x of the format, in the dtype that says so."""
    known = ", ".join(str(known) for known in DTYPES)
    if fmt is None:
        if x.dtype not in DTYPES.values():
            raise TypeError(
                f"{argument} is {x.dtype}: the Triton kernel multiplies {known}; codes need {argument}_format="
            )
        return x
    if fmt not in DTYPES:
        raise TypeError(f"{argument} is in {fmt}: the Triton kernel multiplies {known}")
    dtype = DTYPES[fmt]
    if x.dtype not in (dtype, torch.uint8 if dtype.itemsize == 1 else torch.uint16):
        raise TypeError(
            f"{argument} is {x.dtype}: expected {dtype}, or its codes; fp8sim.encode(x, '{fmt}') makes them"
        )
    return x.view(dtype)


def factors_of(x: QuantizedTensor) -> _Factor:
    """The factors of x as `kernels.matmul` takes them. TypeError for those of other blocks, or of two levels."""
    spec = x.quantizer.scale
    if spec is None:
        return None
    cut = spec.granularity
    by_row = (cut.rows, cut.columns) == (1, None)
    in_blocks = cut.rows in (1, kernels.PROMOTION) and cut.columns == kernels.PROMOTION
    if spec.order.has_two_levels or not (cut.is_whole_tensor or by_row or in_blocks):
        raise TypeError(
            f"{x.quantizer}: the Triton kernel multiplies factors of tensors, rows, and blocks of 1x128 and 128x128; "
            f"call under use_backend('simulate')"
        )
    factors: torch.Tensor = x.scales
    if spec.store != FORMATS["float32"]:
        factors = cast.decode(factors, spec.store, dtype=torch.float32)
    return factors[..., 0] if by_row else factors


def options_of_plan(a: torch.Tensor, b: torch.Tensor, plan: str | GemmPlan, *, blocks: bool = False) -> dict[str, Any]:
    """What `kernels.matmul` needs to be told to add the products of a and b as the plan says.

    Args:
        a, b: operands in a dtype of the kernel.
        plan: the order. blocks: whether factors belong to blocks.

    Raises:
        ValueError: the kernel does not add so on this device; the message says how it does.
    """
    order = plans.parse(plan)
    offered: dict[GemmPlan, dict[str, Any]] = {}
    for fast in (True, False):
        added = kernels.plan_of(a.dtype, kernels.capability_of(a), fast_accumulation=fast, blocks=blocks)
        offered.setdefault(_complete(added, a, b), {"fast_accumulation": fast, "split_k": 1})
    if _complete(order, a, b) in offered:
        return offered[_complete(order, a, b)]
    names = " or ".join(f"'{plan}'" for plan in offered)
    raise ValueError(
        f"plan='{order}': the Triton kernel adds these operands and factors on {a.device} with plan {names}; simulate "
        f"another on the CPU, under use_backend('simulate')"
    )


def _complete(plan: GemmPlan, a: torch.Tensor, b: torch.Tensor) -> GemmPlan:
    """The plan with its instruction's full name."""
    names = [str(x.dtype).removeprefix("torch.") for x in (a, b)]
    return dataclasses.replace(plan, instruction=str(mma.resolve(plan, *names)))
