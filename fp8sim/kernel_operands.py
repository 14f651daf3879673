"""Operands of `fp8sim.matmul` as the kernels on GPUs take them, and the plans by which they add."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fp8sim import formats, mma
from fp8sim.formats import FORMATS, Format
from fp8sim.mma import plans
from fp8sim.mma.plans import GemmPlan
from fp8sim.quantizers import QuantizedTensor

DTYPES = {
    FORMATS["float8_e4m3fn"]: torch.float8_e4m3fn,
    FORMATS["float8_e5m2"]: torch.float8_e5m2,
    FORMATS["float16"]: torch.float16,
    FORMATS["bfloat16"]: torch.bfloat16,
}
"""The formats that the kernels multiply."""

BLOCK = 128
"""Products, or rows and products, that share a factor of a block."""

Factor = float | torch.Tensor | None


@dataclass(frozen=True)
class Kernel:
    """What the reading of operands depends on.

    Attributes:
        name: what messages call the kernel.
        decode: codes of factors to float32, `decode(codes, fmt, dtype=)`.
        outputs: the formats of results, and their dtypes.
        takes_blocks: whether it multiplies factors of blocks.
    """

    name: str
    decode: Callable[..., torch.Tensor]
    outputs: dict[Format, torch.dtype]
    takes_blocks: bool


def operand(
    argument: str, given: Any, fmt: str | Format | None, factor: Any, kernel: Kernel
) -> tuple[torch.Tensor, Factor]:
    """The operand [..., R, K] in a dtype of the kernel, and its factors: of a tensor, of rows, or of blocks of rows."""
    if isinstance(given, QuantizedTensor):
        if fmt is not None or factor is not None:
            raise ValueError(
                f"{argument} is a QuantizedTensor, which has a format and factors of its own: give no other"
            )
        return _typed(argument, given.codes, given.quantizer.format, kernel), factors_of(given, kernel)
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{argument} is a {type(given).__name__}: {kernel.name} takes tensors and QuantizedTensors")
    is_b = argument == "b"
    matrices = given.mT if is_b else given
    of_blocks = is_b and isinstance(factor, torch.Tensor) and factor.ndim == given.ndim
    typed = _typed(argument, matrices, None if fmt is None else formats.parse(fmt), kernel)
    return typed, factor.mT if of_blocks else factor


def _typed(argument: str, x: torch.Tensor, fmt: Format | None, kernel: Kernel) -> torch.Tensor:
    """x, or codes x of the format, in the dtype that says so."""
    known = ", ".join(str(known) for known in DTYPES)
    if fmt is None:
        if x.dtype not in DTYPES.values():
            raise TypeError(f"{argument} is {x.dtype}: {kernel.name} multiplies {known}; codes need {argument}_format=")
        return x
    if fmt not in DTYPES:
        raise TypeError(f"{argument} is in {fmt}: {kernel.name} multiplies {known}")
    dtype = DTYPES[fmt]
    if x.dtype not in (dtype, torch.uint8 if dtype.itemsize == 1 else torch.uint16):
        raise TypeError(
            f"{argument} is {x.dtype}: expected {dtype}, or its codes; fp8sim.encode(x, '{fmt}') makes them"
        )
    return x.view(dtype)


def factors_of(x: QuantizedTensor, kernel: Kernel) -> Factor:
    """The factors of x as a kernel takes them. TypeError for those of other blocks, or of two levels."""
    spec = x.quantizer.scale
    if spec is None:
        return None
    cut = spec.granularity
    by_row = (cut.rows, cut.columns) == (1, None)
    in_blocks = kernel.takes_blocks and cut.rows in (1, BLOCK) and cut.columns == BLOCK
    if spec.order.has_two_levels or not (cut.is_whole_tensor or by_row or in_blocks):
        kinds = "tensors, rows, and blocks of 1x128 and 128x128" if kernel.takes_blocks else "tensors and rows"
        raise TypeError(
            f"{x.quantizer}: {kernel.name} multiplies factors of {kinds}; call under use_backend('simulate')"
        )
    factors: torch.Tensor = x.scales
    if spec.store != FORMATS["float32"]:
        factors = kernel.decode(factors, spec.store, dtype=torch.float32)
    return factors[..., 0] if by_row else factors


def output_dtype(output: str, kernel: Kernel) -> torch.dtype:
    """The dtype of that name. ValueError lists those that the kernel returns."""
    target = formats.parse(output)
    if target not in kernel.outputs:
        raise ValueError(f"output={output!r}: {kernel.name} returns {', '.join(map(str, kernel.outputs))}")
    return kernel.outputs[target]


def options_for(
    a: torch.Tensor,
    b: torch.Tensor,
    plan: str | GemmPlan,
    ways: Iterable[tuple[GemmPlan, dict[str, Any]]],
    kernel: Kernel,
) -> dict[str, Any]:
    """The options of that way of a kernel to add the products of a and b that the plan describes; the first of two.

    Raises:
        ValueError: none is; the message says how the kernel adds.
    """
    order = plans.parse(plan)
    offered: dict[GemmPlan, dict[str, Any]] = {}
    for way, options in ways:
        offered.setdefault(_complete(way, a, b), options)
    if _complete(order, a, b) in offered:
        return offered[_complete(order, a, b)]
    names = " or ".join(f"'{plan}'" for plan in offered)
    raise ValueError(
        f"plan='{order}': {kernel.name} adds these operands and factors on {a.device} with plan {names}; simulate "
        f"another on the CPU, under use_backend('simulate')"
    )


def _complete(plan: GemmPlan, a: torch.Tensor, b: torch.Tensor) -> GemmPlan:
    """The plan with its instruction's full name."""
    names = [str(x.dtype).removeprefix("torch.") for x in (a, b)]
    return dataclasses.replace(plan, instruction=str(mma.resolve(plan, *names)))
