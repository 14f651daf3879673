"""What kernels of element work make of their float32 results in one pass: numbers, codes, transposed codes, amax.

A kernel computes a tile of results on the chip, and `write` gives them the forms that are wanted: the numbers in a
floating-point dtype, and what `encode_scaled` gives of them. So codes are those of the numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fp8sim import formats
from fp8sim.casting import code_dtype
from fp8sim.formats import Format
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve_names
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.elements import QUIET_NAN, as_float, magnitude_of, one_nan
from fp8sim.triton_kernels.encode_scaled import TILE, factor_argument, unseen_zero
from fp8sim.triton_kernels.launching import RandomIntegers, random_integers_of, require_device
from fp8sim.triton_kernels.random import random_integers_at
from fp8sim.triton_kernels.rounding import encode as encode_bits

ELEMENTS = 4096
"""Elements per program: each of 128 threads has at least 64 bytes of bfloat16 on their way."""

_INTERPRETED = 1 << 18
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def tile_of(program, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of matrices [rows, columns], the tile of a program: matrix, rows [BLOCK_R, 1], columns [1, BLOCK_C].

    Neighbouring programs share rows.
    """
    across, down = tl.cdiv(columns, BLOCK_C), tl.cdiv(rows, BLOCK_R)
    matrix = (program // (across * down)).to(tl.int64)
    row = (program // across % down).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = (program % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    return matrix, row[:, None], column[None, :]


@triton.jit
def load_float32(ptr, index, mask):
    return tl.load(ptr + index, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def zero_of(operand):
    """Zeros that Triton does not see through (`unseen_zero`), of an operand as it was loaded."""
    if operand.dtype.primitive_bitwidth == 16:
        return unseen_zero(operand.to(tl.uint16, bitcast=True))
    else:
        return operand.to(tl.uint32, bitcast=True) & 0


@triton.jit
def _pattern(number, CANONICAL: tl.constexpr):
    """The bits of float32 numbers with one NaN."""
    pattern = number.to(tl.uint32, bitcast=True)
    if CANONICAL:
        return pattern
    else:
        return tl.where(number == number, pattern, tl.full([], QUIET_NAN, tl.uint32))


@triton.jit
def write(
    number,
    zero,
    matrix,
    row,
    column,
    mask,
    rows,
    width,
    values_ptr,
    codes_ptr,
    transposed_ptr,
    amax_ptr,
    scale,
    seed,
    stream,
    first,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
):
    """A tile of results [BLOCK_R, BLOCK_C], float32, in every form whose pointer is not None.

    Args:
        matrix, row, column, mask: where it lies in results [matrices, rows, columns], and what of it does.
        rows, width: the outputs are [matrices, rows, width], and transposed [matrices, width, rows]; width is above
            columns where a pointer stands in the middle of a row.
        first: the index of the pointers' element in the stream of random integers.
        zero: what `zero_of` gives of the operand, where transposed codes come from a single one; None otherwise.
        TO: the codes' format as a Conversion; None: no codes. HARDWARE: the type that the GPU's instruction converts
            to, or None for integer arithmetic. SCALED: whether the factor is a "number" or in a "tensor", or None.
        CANONICAL: whether arithmetic makes NaN without sign, as GPUs do and CPUs do not.
    """
    pattern = _pattern(number, CANONICAL)
    index = (matrix * rows + row) * width + column
    if values_ptr is not None:
        tl.store(values_ptr + index, as_float(pattern).to(values_ptr.dtype.element_ty), mask=mask)
    if TO is not None:
        random = 0
        if RANDOM_BITS > 0:
            element = (first + index).to(tl.uint64)
            random = random_integers_at(element, seed.to(tl.uint64), stream.to(tl.uint64), RANDOM_BITS)
        if amax_ptr is not None:
            # Patterns without sign count upwards; elements outside were loaded as zeros, and are none the less.
            largest = one_nan(tl.max(tl.ravel(magnitude_of(pattern)), axis=0))
            tl.atomic_max(amax_ptr, largest.to(tl.int32), sem="relaxed")
        if SCALED is not None:
            factor = (tl.load(scale) if SCALED == "tensor" else scale).to(tl.uint32)
            pattern = _pattern(as_float(pattern) * as_float(factor), CANONICAL)
        if HARDWARE is not None:
            codes = as_float(pattern).to(HARDWARE).to(tl.uint8, bitcast=True)
        else:
            codes = encode_bits(pattern, random, TO, RANDOM_BITS).to(codes_ptr.dtype.element_ty)
        if zero is not None:
            codes |= zero.to(codes.dtype)
        tl.store(codes_ptr + index, codes, mask=mask)
        if transposed_ptr is not None:
            turned = matrix * rows * width + column * rows + row
            tl.store(transposed_ptr + tl.trans(turned), tl.trans(codes), mask=tl.trans(mask))


class Forms(NamedTuple):
    """Which forms of a result are wanted.

    Attributes:
        values: the dtype of the numbers, or None.
        fmt, conversion: of the codes, or None.
        scale: what the numbers are multiplied with before the cast, as for `encode_scaled`.
        amax, transpose: whether to give them.
        random: the random integers of a stochastic conversion.
        hardware: the type that the GPU's instruction converts to, or None for integer arithmetic.
    """

    values: torch.dtype | None
    fmt: Format | None
    conversion: Conversion | None
    scale: float | torch.Tensor | None
    amax: bool
    transpose: bool
    random: RandomIntegers
    hardware: Any


def forms_of(
    values: torch.dtype | None = None,
    fmt: str | Format | None = None,
    *,
    scale: float | torch.Tensor | None = None,
    amax: bool = False,
    transpose: bool = False,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    hardware: Any = None,
) -> Forms:
    """The forms that these keywords ask for. ValueError for a policy that does not exist."""
    if fmt is None:
        return Forms(values, None, None, None, False, False, RandomIntegers(), None)
    conversion = resolve_names(fmt, rounding, overflow)
    random = random_integers_of(conversion, seed, stream, offset, random_bits)
    return Forms(values, formats.parse(fmt), conversion, scale, amax, transpose, random, hardware)


Result = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""Numbers [..., R, C], codes [..., R, C], transposed codes [..., C, R], amax [] in float32; None if not wanted."""


class Output:
    """Memory for one result of shape [..., R, C] (or [...]), and the arguments with which a kernel writes it.

    `before`: random integers that other results take first.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, forms: Forms, before: int = 0) -> None:
        self.shape, self.forms, self.before = tuple(shape), forms, before
        if forms.transpose and len(self.shape) < 2:
            raise ValueError(f"x has shape {list(shape)}: transpose=True takes two axes or more; reshape it")
        turned = (*self.shape[:-2], *reversed(self.shape[-2:]))
        dtype = None if forms.fmt is None else getattr(torch, code_dtype(forms.fmt))

        def memory(wanted: Any, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor | None:
            return torch.empty(shape, dtype=dtype, device=device) if wanted else None

        self.values = memory(forms.values, self.shape, forms.values)
        self.codes = memory(forms.fmt, self.shape, dtype)
        self.transposed = memory(forms.transpose, turned, dtype)
        self.cell = torch.zeros((), dtype=torch.int32, device=device) if forms.amax else None
        self.factor, self.scaled = factor_argument(None if self.codes is None else forms.scale, self.codes)

    def pointers(self, column: int = 0) -> tuple[Any, ...]:
        """`write`'s arguments from `values_ptr` to `first`, for results that begin at a column of the output."""
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        seed, stream, group, skipped = self.forms.random[:4]
        return (
            _from(self.values, column),
            _from(self.codes, column),
            _from(self.transposed, column * rows),
            self.cell,
            self.factor,
            seed,
            stream,
            _wrapped(group * 64 + skipped + self.before + column),
        )

    @property
    def constants(self) -> dict[str, Any]:
        """`write`'s constants, and what compiles it so that codes are those of the numbers."""
        return {
            "TO": self.forms.conversion,
            "SCALED": self.scaled,
            "RANDOM_BITS": self.forms.random.bits,
            "HARDWARE": self.forms.hardware,
            "CANONICAL": not interpreter.is_enabled(),
            "enable_fp_fusion": False,  # a number is rounded before the cast adds anything to it
        }

    @property
    def result(self) -> Result:
        amax = None if self.cell is None else self.cell.view(torch.float32)
        return self.values, self.codes, self.transposed, amax


def _wrapped(element: int) -> int:
    """An index modulo 2^64, as the int64 that Triton takes."""
    return (element + 2**63) % 2**64 - 2**63


def _from(memory: torch.Tensor | None, element: int) -> torch.Tensor | None:
    return memory if memory is None or element == 0 else memory.view(-1)[element:]


def matrix_rows(argument: str, x: torch.Tensor) -> torch.Tensor:
    """x [..., C] as [rows, C] with neighbours along C, copied only if its strides do not allow that.

    TypeError for another dtype than float32, float16 and bfloat16, RuntimeError where no kernel runs.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in _DTYPES:
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{argument} must be a torch tensor of float32, float16 or bfloat16, got {got}: use .float()")
    require_device(argument, x)
    rows = x.detach().resolve_neg().reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


class Tiling(NamedTuple):
    """How elementwise work on matrices [matrices, rows, columns] is cut: one tile per program."""

    matrices: int
    rows: int
    columns: int
    block: tuple[int, int]

    @property
    def grid(self) -> tuple[int]:
        rows, columns = self.block
        return (self.matrices * triton.cdiv(self.rows, rows) * triton.cdiv(self.columns, columns),)

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_R": self.block[0], "BLOCK_C": self.block[1], "num_warps": 4}


def tiling(
    inputs: Sequence[torch.Tensor],
    shape: Sequence[int],
    forms: Forms,
    block: tuple[int, int] | None,
    *,
    flat: bool = True,
) -> Tiling:
    """The cut of inputs [rows, C], all of one shape, which are [*shape] with C last.

    `flat`: whether rows of inputs and results without gaps may be taken for one.
    """
    rows, columns = inputs[0].shape
    if forms.transpose:
        return Tiling(rows // shape[-2], shape[-2], columns, block or _default_block(shape[-2], columns, TILE))
    if flat and all(x.is_contiguous() for x in inputs):
        rows, columns = 1, rows * columns
    return Tiling(1, rows, columns, block or _default_block(rows, columns, None))


def _default_block(rows: int, columns: int, tile: int | None) -> tuple[int, int]:
    """The interpreter takes milliseconds per program whatever its size, so it gets large ones."""
    if interpreter.is_enabled():
        across = min(triton.next_power_of_2(columns), _INTERPRETED if rows == 1 else 1024)
        return min(triton.next_power_of_2(rows), _INTERPRETED // 1024), across
    across = tile or min(triton.next_power_of_2(columns), ELEMENTS)
    return tile or ELEMENTS // across, across
