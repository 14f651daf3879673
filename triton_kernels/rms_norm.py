"""RMS norm with a gain, forward and backward, cast in the same pass over memory.

A program holds whole rows on the chip where they fit, so that memory is read once. Longer rows, and transposed copies,
whose tiles are many rows high, are read twice, in pieces; the second time most of them come from the cache. The gain's
gradient is summed in an order that depends on the shape alone: first within a program, then over programs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.results import (
    ELEMENTS,
    Forms,
    Output,
    Result,
    forms_of,
    load_float32,
    matrix_rows,
    tile_of,
    write,
    zero_of,
)

LONGEST = {False: 16384, True: 8192}
"""Elements of the longest row that one program holds, in the forward and in the backward pass, without spills."""

_PIECE = {False: (1, 4096), True: (8, 512)}
"""Rows and columns of a piece of longer rows; eight rows share a part of the gain's gradient."""

_TURNED = (32, 64)
"""Rows and columns of a piece that is turned: 32 codes are a sector of memory. Wider ones are computed twice."""

_PROGRAMS = 512
"""Programs that share the rows of a backward pass, if there are enough: each writes a part of the gain's gradient."""


@triton.jit
def _gained(x, gain_ptr, column, columns):
    """x times the gain of its column."""
    if gain_ptr is None:
        return x
    else:
        return x * load_float32(gain_ptr, column, column < columns)


@triton.jit(do_not_specialize=["share", "eps", "scale", "seed", "stream", "first"])
def _forward_kernel(
    x_ptr,
    gain_ptr,
    inverse_ptr,
    values_ptr,
    codes_ptr,
    transposed_ptr,
    amax_ptr,
    scale,
    seed: tl.int64,
    stream: tl.int64,
    first: tl.int64,
    rows,
    columns,
    x_stride,
    share,
    eps,
    WHOLE: tl.constexpr,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """r * x * gain with r = (mean(x^2) + eps)^-1/2 of BLOCK_R rows, of which a piece is all (WHOLE) or some columns.

    `share` is 1 / columns.
    """
    matrix, row, column = tile_of(tl.program_id(0), rows, BLOCK_C, BLOCK_R, BLOCK_C)
    start = (matrix * rows + row) * x_stride
    if WHOLE:
        raw = tl.load(x_ptr + start + column, mask=(row < rows) & (column < columns), other=0.0)
        piece = raw.to(tl.float32)
        squares = piece * piece
    else:
        squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for left in range(0, columns, BLOCK_C):
            piece = load_float32(x_ptr, start + left + column, (row < rows) & (left + column < columns))
            squares = tl.fma(piece, piece, squares)
    mean = tl.sum(squares, axis=1, keep_dims=True) * share
    # Rows that do not exist have no largest magnitude, even where eps is 0.
    inverse = tl.where(row < rows, tl.rsqrt(mean + eps), 0.0)
    tl.store(inverse_ptr + matrix * rows + row, inverse, mask=row < rows)
    for left in range(0, BLOCK_C if WHOLE else columns, BLOCK_C):
        mask = (row < rows) & (left + column < columns)
        if not WHOLE:
            raw = tl.load(x_ptr + start + left + column, mask=mask, other=0.0)
        number = _gained(raw.to(tl.float32) * inverse, gain_ptr, left + column, columns)
        zero = zero_of(raw) if transposed_ptr is not None else None
        write(
            number, zero, matrix, row, left + column, mask, rows, columns, values_ptr, codes_ptr, transposed_ptr,
            amax_ptr, scale, seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
        )  # fmt: skip


@triton.jit(do_not_specialize=["share", "scale", "seed", "stream", "first"])
def _backward_kernel(
    grad_ptr,
    x_ptr,
    gain_ptr,
    inverse_ptr,
    parts_ptr,
    values_ptr,
    codes_ptr,
    transposed_ptr,
    amax_ptr,
    scale,
    seed: tl.int64,
    stream: tl.int64,
    first: tl.int64,
    rows,
    columns,
    grad_stride,
    x_stride,
    share,
    steps,
    WHOLE: tl.constexpr,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """r * (h - x * r^2 * mean(h * x)) with h = grad * gain, and the sum over the program's rows of grad * x * r.

    A program has BLOCK_R rows, of which a piece is some columns; or, if WHOLE, `steps` times as many, one after the
    other. The sums are row `program` of parts [programs, columns].
    """
    program = tl.program_id(0)
    first_matrix, first_row, column = tile_of(program * steps, rows, BLOCK_C, BLOCK_R, BLOCK_C)
    part = parts_ptr + program.to(tl.int64) * columns if parts_ptr is not None else None
    if WHOLE:
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for step in range(steps):
            row = first_row + step * BLOCK_R
            mask = (row < rows) & (column < columns)
            x = load_float32(x_ptr, row * x_stride + column, mask)
            grad = load_float32(grad_ptr, row * grad_stride + column, mask)
            inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
            product = grad * x
            along = tl.sum(_gained(product, gain_ptr, column, columns), axis=1, keep_dims=True) * share
            number = _across(grad, x, gain_ptr, column, inverse, along, columns)
            write(
                number, None, first_matrix, row, column, mask, rows, columns, values_ptr, codes_ptr, transposed_ptr,
                amax_ptr, scale, seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
            )  # fmt: skip
            total = tl.fma(product, inverse, total)
        _store_part(total, part, column, columns)
    else:
        row = first_matrix * rows + first_row
        inside = first_row < rows
        inverse = tl.load(inverse_ptr + row, mask=inside, other=0.0)
        sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for left in range(0, columns, BLOCK_C):
            mask = inside & (left + column < columns)
            x = load_float32(x_ptr, row * x_stride + left + column, mask)
            grad = load_float32(grad_ptr, row * grad_stride + left + column, mask)
            sums += _gained(grad * x, gain_ptr, left + column, columns)
        along = tl.sum(sums, axis=1, keep_dims=True) * share
        for left in range(0, columns, BLOCK_C):
            mask = inside & (left + column < columns)
            x = load_float32(x_ptr, row * x_stride + left + column, mask)
            grad = load_float32(grad_ptr, row * grad_stride + left + column, mask)
            number = _across(grad, x, gain_ptr, left + column, inverse, along, columns)
            write(
                number, None, first_matrix, first_row, left + column, mask, rows, columns, values_ptr, codes_ptr,
                transposed_ptr, amax_ptr, scale, seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
            )  # fmt: skip
            _store_part(grad * x * inverse, part, left + column, columns)


@triton.jit
def _across(grad, x, gain_ptr, column, inverse, along, columns):
    """The part of the gradient that changes the row's direction: `along` is the mean of grad * gain * x."""
    return tl.fma(x, -(along * inverse * inverse), _gained(grad, gain_ptr, column, columns)) * inverse


@triton.jit
def _store_part(products, part, column, columns):
    """The sum of [BLOCK_R, BLOCK_C] over rows."""
    if part is not None:
        tl.store(part + column, tl.sum(products, axis=0, keep_dims=True), mask=column < columns)


@triton.jit(do_not_specialize=["factor"])
def _sum_kernel(parts_ptr, out_ptr, programs, columns, factor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[c] = factor * the sum of parts [programs, columns] over programs."""
    column = (tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for top in range(0, programs, BLOCK_R):
        row = top + tl.arange(0, BLOCK_R).to(tl.int64)[:, None]
        total += load_float32(parts_ptr, row * columns + column, (row < programs) & (column < columns))
    result = tl.sum(total, axis=0, keep_dims=True) * factor
    tl.store(out_ptr + column, result.to(out_ptr.dtype.element_ty), mask=column < columns)


class _Cut(NamedTuple):
    """How rows of matrices [matrices, rows, columns] are shared among programs.

    Attributes:
        steps: blocks of rows that a program of the backward pass takes, one after the other.
        whole: whether a block has whole rows.
    """

    matrices: int
    rows: int
    steps: int
    whole: bool
    block: tuple[int, int]
    warps: int

    @property
    def programs(self) -> int:
        rows = self.block[0] * self.steps
        return self.matrices * (-(-self.rows // rows))

    @property
    def constants(self) -> dict[str, Any]:
        return {"WHOLE": self.whole, "BLOCK_R": self.block[0], "BLOCK_C": self.block[1], "num_warps": self.warps}


def _cut(shape: tuple[int, ...], forms: Forms, block: tuple[int, int] | None, backward: bool) -> _Cut:
    columns = shape[-1]
    rows = torch.Size(shape[:-1]).numel()
    across = triton.next_power_of_2(columns)
    if block is None:
        block = _default_block(across, forms.transpose, backward)
    warps = min(max(block[0] * block[1] // (512 if backward else 1024), 4), 16)
    if forms.transpose:
        return _Cut(rows // shape[-2], shape[-2], 1, False, block, warps)
    whole = block[1] >= columns
    steps = max(rows // (_PROGRAMS * block[0]), 1) if backward and whole else 1
    return _Cut(1, rows, steps, whole, block, warps)


def _default_block(across: int, transpose: bool, backward: bool) -> tuple[int, int]:
    """Rows and columns at a time, of rows that `across`, a power of two, is enough for."""
    if interpreter.is_enabled():
        return 64, min(across, LONGEST[backward])
    if transpose:
        return _TURNED
    return _PIECE[backward] if across > LONGEST[backward] else (max(ELEMENTS // across, 1), across)


def rms_norm(
    x: torch.Tensor,
    gain: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> tuple[Result, torch.Tensor]:
    """r * x * gain and r = (mean(x^2) + eps)^-1/2, as `fp8sim.simulate.rms_norm.rms_norm` defines them.

    Args:
        x: [..., R, C], float32, float16 or bfloat16, copied only if its strides do not make it rows of neighbours; on a
            CUDA device, or interpreted on the CPU.
        gain: [C], of one of these dtypes, or None for ones.
        eps: as for the definition.
        block: rows and columns of a piece, powers of two.
        forms: keywords of `forms_of`.

    Returns:
        [..., R, C] in the forms asked for, and r [...] in float32.

    Raises:
        TypeError, ValueError, RuntimeError: a dtype, policy or device that no kernel takes.
    """
    asked = forms_of(**forms)
    rows, output = matrix_rows("x", x), Output(x.shape, x.device, asked)
    inverse = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel() > 0:
        cut = _cut(tuple(x.shape), asked, block, backward=False)
        with torch.cuda.device_of(x):
            _forward_kernel[(cut.programs,)](
                rows, _gain(gain), inverse, *output.pointers(), cut.rows, x.shape[-1], rows.stride(0), 1 / x.shape[-1],
                eps, **output.constants, **cut.constants,
            )  # fmt: skip
    return output.result, inverse


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gain: torch.Tensor | None,
    inverse: torch.Tensor,
    *,
    factor: float = 1.0,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> tuple[Result, torch.Tensor | None]:
    """The gradient of x from that of `rms_norm`'s result, and that of the gain times `factor`.

    Args:
        grad: [..., R, C]. inverse: r [...], contiguous, of the forward pass. All else as for `rms_norm`.

    Returns:
        [..., R, C] in the forms asked for; [C] in the gain's dtype, or None without a gain.
    """
    asked = forms_of(**forms)
    inputs = [matrix_rows(name, part) for name, part in (("grad", grad), ("x", x))]
    output = Output(x.shape, x.device, asked)
    if x.numel() == 0:
        return output.result, None if gain is None else torch.zeros_like(gain)
    cut, columns = _cut(tuple(x.shape), asked, block, backward=True), x.shape[-1]
    parts = None if gain is None else torch.empty((cut.programs, columns), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(cut.programs,)](
            *inputs, _gain(gain), inverse, parts, *output.pointers(), cut.rows, columns,
            *(part.stride(0) for part in inputs), 1 / columns, cut.steps, **output.constants, **cut.constants,
        )  # fmt: skip
        return output.result, None if parts is None or gain is None else _summed(parts, factor, gain.dtype)


def _summed(parts: torch.Tensor, factor: float, dtype: torch.dtype) -> torch.Tensor:
    """factor * the sum of parts [P, C] over P."""
    programs, columns = parts.shape
    out = torch.empty(columns, dtype=dtype, device=parts.device)
    block = (64, 1024) if interpreter.is_enabled() else (64, 32)
    grid = (triton.cdiv(columns, block[1]),)
    _sum_kernel[grid](parts, out, programs, columns, factor, BLOCK_R=block[0], BLOCK_C=block[1], num_warps=4)
    return out


def _gain(gain: torch.Tensor | None) -> torch.Tensor | None:
    return None if gain is None else matrix_rows("gain", gain).view(-1)
