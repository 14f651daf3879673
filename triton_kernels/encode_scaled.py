"""Encode with a known scale factor, amax and a transposed copy, each optional, in one pass over memory.

FP8 tensor cores want both operands of a product contiguous along the dimension that is summed over, so the backward
pass needs a matrix's codes in both layouts. All arithmetic is on patterns of bits, as in `cast`, but for the product of
an element and the factor, which is one float32 (fused: binary64) multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from fp8sim import formats
from fp8sim.casting import code_dtype
from fp8sim.formats import Format
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve_names
from fp8sim.triton_kernels import interpreter, tuning
from fp8sim.triton_kernels.elements import (
    code_of,
    float32_pattern,
    magnitude_of,
    meet_factor,
    one_nan,
    widen,
)
from fp8sim.triton_kernels.launching import (
    RandomIntegers,
    elements_per_program,
    float_type,
    random_integers_of,
    raw_bits,
    require_device,
)
from fp8sim.triton_kernels.random import random_integers, random_integers_at

FLAT = 4096
"""Elements per program without a transposed copy: each of 128 threads has at least 64 bytes on their way."""

TILE = 64
"""Rows and columns of a program's tile with one: 64 codes are two whole sectors of memory, in either layout."""

_INTERPRETED_TILE = 256
WARPS = 4


@dataclass(frozen=True)
class Config:
    """How a launch is cut up: elements per program, or with a transposed copy rows and columns of a tile; warps."""

    block: int
    num_warps: int = WARPS


def offered(transpose: bool) -> list[Config]:
    """All configurations worth a measurement, the default first. They give the same bits."""
    if transpose:
        return [Config(TILE), Config(TILE, 8), Config(128, 8)]
    return [Config(FLAT), Config(2048), Config(8192), Config(8192, 8), Config(16384, 8)]


FLOAT32_CONVERSION = resolve_names("float32", Rounding.TIES_TO_EVEN, Overflow.INFINITY)


@triton.jit
def _codes_and_amax(
    raw,
    random,
    scale,
    amax_ptr,
    TO: tl.constexpr,
    SOURCE: tl.constexpr,
    BITS: tl.constexpr,
    FLOAT32: tl.constexpr,
    SCALED: tl.constexpr,
    FUSED: tl.constexpr,
    AMAX: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    """The codes of raw elements, zero where there is none; their largest magnitude goes into the cell at `amax_ptr`."""
    if AMAX:
        # Patterns without sign count upwards, and which of two integers is larger depends on no order.
        magnitudes = magnitude_of(float32_pattern(raw, SOURCE, FLOAT32))
        largest = one_nan(tl.max(tl.ravel(magnitudes), axis=0))
        tl.atomic_max(amax_ptr, largest.to(tl.int32), sem="relaxed")
    if SCALED is None:
        number = widen(raw, SOURCE, BITS)
    else:
        factor = (tl.load(scale) if SCALED == "tensor" else scale).to(tl.uint32)
        ONE_NAN: tl.constexpr = TO.nan_positive == TO.nan_negative
        number = meet_factor(float32_pattern(raw, SOURCE, FLOAT32), factor, False, FUSED, ONE_NAN)
    return code_of(number, random, TO, RANDOM_BITS, HARDWARE)


@triton.jit(do_not_specialize=["scale", "seed", "stream", "first_group"])
def _flat_kernel(
    x_ptr,
    codes_ptr,
    amax_ptr,
    scale,
    count,
    seed: tl.int64,
    stream: tl.int64,
    first_group: tl.int64,
    skipped,
    TO: tl.constexpr,
    SOURCE: tl.constexpr,
    BITS: tl.constexpr,
    FLOAT32: tl.constexpr,
    SCALED: tl.constexpr,
    FUSED: tl.constexpr,
    AMAX: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK elements per program; with random bits, programs start as in `cast`."""
    program = tl.program_id(0).to(tl.int64)
    index = program * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    random = 0
    if RANDOM_BITS > 0:
        index -= skipped
        mask = (index >= 0) & (index < count)
        group = first_group.to(tl.uint64) + (program * (BLOCK // 64)).to(tl.uint64)
        random = random_integers(group, seed.to(tl.uint64), stream.to(tl.uint64), BLOCK // 64, RANDOM_BITS)
    raw = tl.load(x_ptr + index, mask=mask, other=0)
    codes = _codes_and_amax(
        raw, random, scale, amax_ptr, TO, SOURCE, BITS, FLOAT32, SCALED, FUSED, AMAX, RANDOM_BITS, HARDWARE
    )
    tl.store(codes_ptr + index, codes.to(codes_ptr.dtype.element_ty), mask=mask)


@triton.jit
def unseen_zero(raw):
    """Zeros, by a way through the elements that Triton does not see through, and the compiler after it does.

    Triton 3.6 moves the turning of a tile from the codes to what they were widened from, if that is one thing, and so
    computes every code twice.
    """
    if raw.dtype.primitive_bitwidth == 16:
        signed = raw.to(tl.int16, bitcast=True).to(tl.int32).to(tl.uint32, bitcast=True)
        return (signed ^ raw.to(tl.uint32)) & 0xFFFF
    else:
        return 0


@triton.jit(do_not_specialize=["scale", "seed", "stream", "first_group"])
def _transposing_kernel(
    x_ptr,
    codes_ptr,
    transposed_ptr,
    amax_ptr,
    scale,
    rows,
    columns,
    seed: tl.int64,
    stream: tl.int64,
    first_group: tl.int64,
    skipped,
    TO: tl.constexpr,
    SOURCE: tl.constexpr,
    BITS: tl.constexpr,
    FLOAT32: tl.constexpr,
    SCALED: tl.constexpr,
    FUSED: tl.constexpr,
    AMAX: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    TILE: tl.constexpr,
):
    """x [matrices, rows, columns]: TILE rows and columns of a matrix per program; the tile is turned in shared memory.

    Neighbouring programs share rows, whose codes fill whole lines of memory between them.
    """
    across = tl.cdiv(columns, TILE)
    down = tl.cdiv(rows, TILE)
    program = tl.program_id(0)
    matrix = (program // (across * down)).to(tl.int64)
    row = (program // across % down).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = (program % across).to(tl.int64) * TILE + tl.arange(0, TILE)
    start = matrix * rows * columns
    index = start + row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    random = 0
    if RANDOM_BITS > 0:
        element = (first_group * 64 + skipped + index).to(tl.uint64)
        random = random_integers_at(element, seed.to(tl.uint64), stream.to(tl.uint64), RANDOM_BITS)
    raw = tl.load(x_ptr + index, mask=mask, other=0)
    codes = _codes_and_amax(
        raw, random, scale, amax_ptr, TO, SOURCE, BITS, FLOAT32, SCALED, FUSED, AMAX, RANDOM_BITS, HARDWARE
    )
    codes = (codes | unseen_zero(raw)).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + index, codes, mask=mask)
    turned = start + column[:, None] * rows + row[None, :]
    tl.store(transposed_ptr + turned, tl.trans(codes), mask=(column < columns)[:, None] & (row < rows)[None, :])


def encode_scaled(
    x: torch.Tensor,
    fmt: str | Format,
    scale: float | torch.Tensor | None = None,
    *,
    fused: bool = False,
    amax: bool = False,
    transpose: bool = False,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    block: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The codes of x times a factor, as `fp8sim.simulate.encode_scaled` defines them, with what else one pass can give.

    Memory that must move, for E bytes per element of x: E + 1 per element, E + 2 with the transposed copy; amax adds
    nothing. A tensor with gaps or another order is copied first. A factor on the device is read there, and nothing
    waits for the device.

    Args:
        x: [..., R, C] ([...] without `transpose`), float64, float32, float16 or bfloat16; on a CUDA device, or
            interpreted on the CPU.
        fmt, rounding, overflow, seed, stream, offset, random_bits: as for `fp8sim.encode`.
        scale, fused, amax, transpose: as for `fp8sim.ops.encode_scaled.encode_scaled`; a tensor is on x's device.
        block: elements per program, a power of two from 64 to 2^20; with `transpose`, rows and columns of a tile, a
            power of two from 16 to 256.

    Returns:
        Codes [..., R, C], transposed codes [..., C, R] or None, amax [] in float32 or None; all contiguous.

    Raises:
        TypeError, ValueError, RuntimeError: as for `fp8sim.triton_kernels.cast.encode`; a factor that is not one
            float32 number, `transpose` of a tensor without two axes.
    """
    conversion = resolve_names(fmt, rounding, overflow)
    random = random_integers_of(conversion, seed, stream, offset, random_bits)
    return launch(x, formats.parse(fmt), conversion, scale, random, Outputs(fused, amax, transpose), block)


@dataclass(frozen=True)
class Outputs:
    """Options of `encode_scaled` that say what is computed."""

    fused: bool = False
    amax: bool = False
    transpose: bool = False


def launch(
    x: torch.Tensor,
    fmt: Format,
    conversion: Conversion,
    scale: float | torch.Tensor | None,
    random: RandomIntegers,
    outputs: Outputs,
    block: int | None = None,
    hardware: Any = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`encode_scaled` with its arguments resolved; `hardware` is the type that the GPU's instruction converts to."""
    source, bits, _ = float_type("x", x)
    require_device("x", x)
    if outputs.transpose and x.ndim < 2:
        raise ValueError(f"x has shape {list(x.shape)}: transpose=True takes two axes or more; reshape it")
    factor, scaled = factor_argument(scale, x)
    dtype = getattr(torch, code_dtype(fmt))
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    transposed = torch.empty(x.mT.shape, dtype=dtype, device=x.device) if outputs.transpose else None
    cell = torch.zeros((), dtype=torch.int32, device=x.device) if outputs.amax else None
    if x.numel() > 0:
        constants = {
            "TO": conversion,
            "SOURCE": source,
            "BITS": 32 if scaled else bits,
            "FLOAT32": FLOAT32_CONVERSION if x.dtype == torch.float64 else None,
            "SCALED": scaled,
            "FUSED": outputs.fused and scaled is not None,
            "AMAX": outputs.amax,
            "RANDOM_BITS": random.bits,
            "HARDWARE": hardware,
            "enable_fp_fusion": False,  # a product is rounded before anything is added to it
        }
        options = {name: constants[name] for name in ("SCALED", "FUSED", "AMAX", "RANDOM_BITS")}
        options |= {"x": x.dtype, "format": fmt, "hardware": hardware is not None, "transpose": outputs.transpose}
        with torch.cuda.device_of(x):
            if transposed is None:
                run = partial(_launch_flat, x, codes, cell, factor, random, constants)
            else:
                run = partial(_launch_transposing, x, codes, transposed, cell, factor, random, constants)
            choices = _choices(block, x.numel() + random.skipped, outputs.transpose)
            run(tuning.pick("encode_scaled", x.device, options, (x.numel(),), choices, run))
    return codes, transposed, None if cell is None else cell.view(torch.float32)


def _launch_flat(
    x: torch.Tensor,
    codes: torch.Tensor,
    cell: torch.Tensor | None,
    factor: Any,
    random: RandomIntegers,
    constants: dict[str, Any],
    config: Config,
) -> None:
    grid = (triton.cdiv(x.numel() + random.skipped, config.block),)
    arguments = (raw_bits(x), codes, cell, factor, x.numel(), *random[:4])
    _flat_kernel[grid](*arguments, **constants, BLOCK=config.block, num_warps=config.num_warps)


def _launch_transposing(
    x: torch.Tensor,
    codes: torch.Tensor,
    transposed: torch.Tensor,
    cell: torch.Tensor | None,
    factor: Any,
    random: RandomIntegers,
    constants: dict[str, Any],
    config: Config,
) -> None:
    rows, columns = x.shape[-2:]
    tile = config.block
    grid = (x.numel() // (rows * columns) * triton.cdiv(rows, tile) * triton.cdiv(columns, tile),)
    arguments = (raw_bits(x), codes, transposed, cell, factor, rows, columns, *random[:4])
    _transposing_kernel[grid](*arguments, **constants, TILE=tile, num_warps=config.num_warps)


def factor_argument(scale: Any, x: Any) -> tuple[Any, str | None]:
    """The kernel's argument, and what it is: None, a float32 pattern, or the memory of one.

    Not a float: of those the interpreter drops the sign of zero.
    """
    if scale is None:
        return None, None
    if not isinstance(scale, torch.Tensor):
        with np.errstate(over="ignore"):
            return int(np.float32(float(scale)).view(np.int32)), "number"
    if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != x.device:
        raise ValueError(
            f"scale must be a float, or one float32 number on x's device {x.device}: got {scale.dtype} "
            f"{list(scale.shape)} on {scale.device}"
        )
    return scale.detach().resolve_neg().view(torch.int32), "tensor"


def _choices(block: int | None, elements: int, transpose: bool) -> list[Config]:
    """The configuration that the caller's block means, or all that are offered; the interpreter's default is large."""
    if block is None and not interpreter.is_enabled():
        return offered(transpose)
    asked = Config(_tile(block) if transpose else elements_per_program(block, elements))
    return [asked] if block is not None else [asked, *offered(transpose)]


def _tile(block: int | None) -> int:
    if block is None:
        return _INTERPRETED_TILE
    if block not in (16, 32, 64, 128, 256):
        raise ValueError(f"block={block}: expected a power of two from 16 to 256 for a transposed copy")
    return block
