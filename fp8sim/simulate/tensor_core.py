"""A whole GEMM with the bits that a GPU's tensor cores return, on NumPy arrays and CPU tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8sim import array_memory, casting, formats
from fp8sim.arguments import check_text
from fp8sim.formats import Format
from fp8sim.mma import gemm, plans
from fp8sim.mma.models import MmaModel
from fp8sim.mma.names import is_instruction
from fp8sim.mma.plans import GemmPlan
from fp8sim.quantizers import QuantizedTensor
from fp8sim.rounding import Overflow
from fp8sim.simulate.operands import Operands, operands

DEFAULT_INSTRUCTION = "sm90.wgmma"


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
) -> Any:
    """`fp8sim.matmul` (`fp8sim.ops.tensor_core`), which describes arguments, result and errors."""
    order = _plan(accumulate, plan)
    left, right = operands(a, "a", a_format, a_scale_inv), operands(b, "b", b_format, b_scale_inv)
    try:
        model = gemm.resolve(order, left.format, right.format)
    except ValueError as error:
        raise ValueError(f"a and b cannot be multiplied: {error}") from error
    sums = _sums(left, right, c, order, model)
    return _output(sums, output, order, a.codes if isinstance(a, QuantizedTensor) else a)


def _plan(accumulate: str | None, plan: str | GemmPlan | None) -> GemmPlan:
    if accumulate is not None:
        check_text("accumulate", accumulate, "an instruction, such as 'sm90.wgmma'")
    if accumulate is not None and not is_instruction(accumulate):
        raise ValueError(f"accumulate={accumulate!r} is no instruction: 'fp8sim mma' lists them; a plan goes to plan=")
    if plan is None:
        return GemmPlan(accumulate or DEFAULT_INSTRUCTION)
    order = plans.parse(plan)
    if accumulate not in (None, order.instruction):
        raise ValueError(
            f"accumulate={accumulate!r}, but plan={str(order)!r} is made of {order.instruction}: leave one out"
        )
    return order


def _sums(left: Operands, right: Operands, c: Any, plan: GemmPlan, model: MmaModel) -> NDArray[Any]:
    shapes = f"a [..., M, K] = {list(left.codes.shape)} and b [..., K, N] = {_as_given(right)}"
    if left.codes.shape[-1] != right.codes.shape[-1]:
        raise ValueError(f"{shapes} differ in K")
    try:
        batch: tuple[int, ...] = np.broadcast_shapes(left.codes.shape[:-2], right.codes.shape[:-2])
    except ValueError:
        raise ValueError(f"{shapes}: leading dimensions do not broadcast") from None
    shape = (*batch, left.codes.shape[-2], right.codes.shape[-2])
    start = None if c is None else _start(c, shape, model)
    sums = np.empty(shape, "float64" if model.accumulator == "float64" else "float32")
    for index in np.ndindex(*batch):
        first = None if start is None else start[index]
        sums[index] = gemm.multiply(left.at(index, batch, model), right.at(index, batch, model), first, plan)
    return sums


def _as_given(right: Operands) -> list[int]:
    *batch, n, k = right.codes.shape
    return [*batch, k, n]


def _start(c: Any, shape: tuple[int, ...], model: MmaModel) -> NDArray[Any]:
    if array_memory.dtype_name(getattr(c, "dtype", "object")) != model.accumulator:
        raise TypeError(f"c must be a {model.accumulator} array or tensor: {model} adds to one")
    if tuple(c.shape) != shape:
        raise ValueError(f"c has shape {list(c.shape)}: expected {list(shape)}")
    return array_memory.memory_of(c, "c")


def _output(sums: NDArray[Any], output: str, plan: GemmPlan, like: Any) -> Any:
    """The finished sums in the output's format, of the kind of `like`."""
    try:
        name = "float64" if output == "float64" else str(formats.parse(output, "output"))
    except ValueError as error:
        raise ValueError(f"output={output!r}: {error}") from error
    result: Any = torch.from_numpy(sums) if isinstance(like, torch.Tensor) else sums
    if (name == "float64") != (sums.dtype == np.float64):
        raise ValueError(
            f"output={output}: a sum in {sums.dtype} is returned as float64 by binary64 instructions alone"
        )
    if name == str(sums.dtype):
        return result
    if name not in ("float16", "bfloat16"):
        return casting.encode(result, name, rounding=plan.rounding)
    codes = casting.encode(result, name, rounding=plan.rounding, overflow=Overflow.INFINITY)
    if isinstance(codes, torch.Tensor):
        return codes.view(getattr(torch, name))
    return codes.view(_numpy_dtype(name))


def _numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)
