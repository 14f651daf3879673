"""GELU and gated SiLU with the factors of unit scaling, forward and backward, cast in the same pass over memory.

All of them are x times a gate G(t) of t = mult * x, or of another tensor: the normal distribution's function for GELU,
1 / (1 + exp(-a)) for SiLU (a = t) and for GELU by tanh (0.5 * (1 + tanh(u)) = 1 / (1 + exp(-2u))). Results are float32
until they are written, within the bounds that `fp8sim.simulate.activations` derives of its numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels.results import (
    Forms,
    Output,
    Result,
    forms_of,
    load_float32,
    matrix_rows,
    tile_of,
    tiling,
    write,
    zero_of,
)

_LOG2_E = tl.constexpr(math.log2(math.e))
_ROOT_HALF = tl.constexpr(math.sqrt(0.5))
_DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))
_TANH_1 = tl.constexpr(2 * math.sqrt(2 / math.pi))
_TANH_3 = tl.constexpr(0.044715 * 2 * math.sqrt(2 / math.pi))
_LARGE = tl.constexpr(2.0**126)
_SQUARE_LIMIT = tl.constexpr(1e8)


@triton.jit
def _sigmoid(exponent):
    """s = 1 / (1 + 2^exponent), and 1 - s, both to a few units in the last place.

    A quotient takes eight instructions, the square of a reciprocal root two. Where s is zero, so is the other: what
    both of them multiply is zero.
    """
    e = tl.exp2(exponent)
    root = tl.rsqrt(1.0 + e)
    s = root * root
    return s, tl.minimum(e, _LARGE) * s


@triton.jit
def _gate(t, APPROXIMATE: tl.constexpr):
    """G(t) of GELU, "none" or "tanh", and t * G'(t)."""
    if APPROXIMATE == "tanh":
        square = tl.minimum(t * t, _SQUARE_LIMIT)  # beyond, the derivative below is zero and must not meet infinity
        gate, rest = _sigmoid(t * tl.fma(square, -_TANH_3 * _LOG2_E, -_TANH_1 * _LOG2_E))
        return gate, gate * rest * (t * tl.fma(square, 3.0 * _TANH_3, _TANH_1))
    else:
        tl.static_assert(APPROXIMATE == "none", "an approximation that this function has no case for")
        density = tl.exp2(t * t * (-0.5 * _LOG2_E)) * _DENSITY_AT_0
        return tl.fma(tl.math.erf(t * _ROOT_HALF), 0.5, 0.5), t * density


@triton.jit(do_not_specialize=["mult", "factor", "scale", "seed", "stream", "first"])
def _gelu_kernel(
    x_ptr,
    grad_ptr,
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
    grad_stride,
    mult,
    factor,
    APPROXIMATE: tl.constexpr,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """factor * x * G(mult * x); or, with a gradient, factor * grad * (G(t) + t * G'(t))."""
    matrix, row, column = tile_of(tl.program_id(0), rows, columns, BLOCK_R, BLOCK_C)
    mask = (row < rows) & (column < columns)
    raw = tl.load(x_ptr + (matrix * rows + row) * x_stride + column, mask=mask, other=0.0)
    x = raw.to(tl.float32)
    gate, slope = _gate(x * mult, APPROXIMATE)
    if grad_ptr is None:
        number = x * gate * factor
        zero = zero_of(raw) if transposed_ptr is not None else None
    else:
        grad = load_float32(grad_ptr, (matrix * rows + row) * grad_stride + column, mask)
        number = grad * (gate + slope) * factor
        zero = None
    write(
        number, zero, matrix, row, column, mask, rows, columns, values_ptr, codes_ptr, transposed_ptr, amax_ptr, scale,
        seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["mult", "factor", "scale", "seed", "stream", "first"])
def _silu_glu_kernel(
    x_ptr,
    gate_ptr,
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
    gate_stride,
    mult,
    factor,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """factor * x * g * sigmoid(mult * g)."""
    matrix, row, column = tile_of(tl.program_id(0), rows, columns, BLOCK_R, BLOCK_C)
    mask = (row < rows) & (column < columns)
    x = load_float32(x_ptr, (matrix * rows + row) * x_stride + column, mask)
    g = load_float32(gate_ptr, (matrix * rows + row) * gate_stride + column, mask)
    gate, _ = _sigmoid(g * (mult * -_LOG2_E))
    write(
        x * (g * gate) * factor, None, matrix, row, column, mask, rows, columns, values_ptr, codes_ptr, transposed_ptr,
        amax_ptr, scale, seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["mult", "factor", "scale", "seed", "stream", "first", "gate_first"])
def _silu_glu_backward_kernel(
    grad_ptr,
    x_ptr,
    gate_ptr,
    values_ptr,
    codes_ptr,
    transposed_ptr,
    amax_ptr,
    scale,
    seed: tl.int64,
    stream: tl.int64,
    first: tl.int64,
    gate_values_ptr,
    gate_codes_ptr,
    gate_transposed_ptr,
    gate_amax_ptr,
    gate_scale,
    gate_seed: tl.int64,
    gate_stream: tl.int64,
    gate_first: tl.int64,
    rows,
    columns,
    width,
    grad_stride,
    x_stride,
    gate_stride,
    mult,
    factor,
    TO: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    CANONICAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With s = sigmoid(mult * g): factor * grad * g * s, and factor * grad * x * (s + mult * g * s * (1 - s))."""
    matrix, row, column = tile_of(tl.program_id(0), rows, columns, BLOCK_R, BLOCK_C)
    mask = (row < rows) & (column < columns)
    grad = load_float32(grad_ptr, (matrix * rows + row) * grad_stride + column, mask)
    x = load_float32(x_ptr, (matrix * rows + row) * x_stride + column, mask)
    g = load_float32(gate_ptr, (matrix * rows + row) * gate_stride + column, mask)
    gate, rest = _sigmoid(g * (mult * -_LOG2_E))
    write(
        grad * (g * gate) * factor, None, matrix, row, column, mask, rows, width, values_ptr, codes_ptr, transposed_ptr,
        amax_ptr, scale, seed, stream, first, TO, SCALED, RANDOM_BITS, HARDWARE, CANONICAL,
    )  # fmt: skip
    slope = gate * rest * (g * mult)
    write(
        grad * x * (gate + slope) * factor, None, matrix, row, column, mask, rows, width, gate_values_ptr,
        gate_codes_ptr, gate_transposed_ptr, gate_amax_ptr, gate_scale, gate_seed, gate_stream, gate_first, TO, SCALED,
        RANDOM_BITS, HARDWARE, CANONICAL,
    )  # fmt: skip


def gelu(
    x: torch.Tensor,
    *,
    approximate: str = "none",
    mult: float = 1.0,
    factor: float = 1.0,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> Result:
    """factor * x * G(mult * x), as `fp8sim.simulate.activations.gelu` defines it, in the forms that are asked for.

    Args:
        x: [..., R, C], float32, float16 or bfloat16, copied only if its strides do not make it rows of neighbours; on a
            CUDA device, or interpreted on the CPU.
        approximate, mult, factor: as for the definition.
        block: rows and columns of a program's tile, powers of two.
        forms: keywords of `forms_of`.

    Raises:
        TypeError, ValueError, RuntimeError: a dtype, policy or device that no kernel takes.
    """
    return _gelu(None, x, approximate, mult, factor, block, forms_of(**forms))


def gelu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    approximate: str = "none",
    mult: float = 1.0,
    factor: float = 1.0,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> Result:
    """The gradient of x from that of `gelu`'s result, `grad` [..., R, C]; all else as for `gelu`."""
    return _gelu(grad, x, approximate, mult, factor, block, forms_of(**forms))


def _gelu(
    grad: torch.Tensor | None,
    x: torch.Tensor,
    approximate: str,
    mult: float,
    factor: float,
    block: tuple[int, int] | None,
    forms: Forms,
) -> Result:
    inputs = [matrix_rows("x", x)] + ([] if grad is None else [matrix_rows("grad", grad)])
    output = Output(x.shape, x.device, forms)
    if x.numel() > 0:
        cut = tiling(inputs, x.shape, forms, block)
        strides = inputs[0].stride(0), inputs[-1].stride(0)
        with torch.cuda.device_of(x):
            _gelu_kernel[cut.grid](
                inputs[0], None if grad is None else inputs[1], *output.pointers(), *cut[1:3], *strides, mult, factor,
                APPROXIMATE=approximate, **output.constants, **cut.constants,
            )  # fmt: skip
    return output.result


def silu_glu(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    mult: float = 1.0,
    factor: float = 1.0,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> Result:
    """factor * x * g * sigmoid(mult * g), as `fp8sim.simulate.activations.silu_glu` defines it.

    Args:
        x, gate: [..., R, C], of one shape; the halves of one tensor's rows are read in place. All else as for `gelu`.
    """
    asked = forms_of(**forms)
    inputs = [matrix_rows("x", x), matrix_rows("gate", gate)]
    output = Output(x.shape, x.device, asked)
    if x.numel() > 0:
        cut = tiling(inputs, x.shape, asked, block)
        with torch.cuda.device_of(x):
            _silu_glu_kernel[cut.grid](
                *inputs, *output.pointers(), *cut[1:3], *(part.stride(0) for part in inputs), mult, factor,
                **output.constants, **cut.constants,
            )  # fmt: skip
    return output.result


def silu_glu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    packed: bool = False,
    mult: float = 1.0,
    factor: float = 1.0,
    block: tuple[int, int] | None = None,
    **forms: Any,
) -> tuple[Result, ...]:
    """The gradients of x and of gate from that of `silu_glu`'s result, `grad` [..., R, C].

    Args:
        packed: give one result [..., R, 2 C], the gradient of x in the left half of every row and that of gate in the
            right one. Otherwise the random integers of gate's gradient are those after x's.
    """
    asked = forms_of(**forms)
    inputs = [matrix_rows(name, part) for name, part in (("grad", grad), ("x", x), ("gate", gate))]
    columns = inputs[0].shape[1]
    if packed:
        outputs = [Output((*x.shape[:-1], 2 * columns), x.device, asked)]
        pointers = (*outputs[0].pointers(), *outputs[0].pointers(columns))
    else:
        outputs = [Output(x.shape, x.device, asked), Output(x.shape, x.device, asked, x.numel())]
        pointers = (*outputs[0].pointers(), *outputs[1].pointers())
    if x.numel() > 0:
        cut = tiling(inputs, x.shape, asked, block, flat=not packed)
        width = 2 * columns if packed else cut.columns
        with torch.cuda.device_of(x):
            _silu_glu_backward_kernel[cut.grid](
                *inputs, *pointers, *cut[1:3], width, *(part.stride(0) for part in inputs), mult, factor,
                **outputs[0].constants, **cut.constants | {"num_warps": 8},  # two results: half of each per thread
            )  # fmt: skip
    return tuple(output.result for output in outputs)
