"""Codes and scale factors of a tensor's blocks: the Triton backend of `fp8sim.quantize`.

A block that fits into one program is read once: its largest magnitude, its factor and its codes all come from
registers. Larger blocks (a long row, the whole tensor) take a pass for the largest magnitudes first, and so does the
factor of the tensor in two levels. Bytes that must move, for E bytes per element of x and S of a stored factor, per
element of a block of B: E + 1 + S/B, and E more where there is a first pass. A tensor with gaps or another order is
copied beforehand. Codes take a byte each, as `QuantizedTensor` keeps them, FP4 included.

Arithmetic is that of `cast` and `scale`: on patterns of bits, and single float32 operations. Nothing waits for the
device.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fp8sim.casting import code_dtype
from fp8sim.quantizers import QuantizedTensor, Quantizer
from fp8sim.rounding import resolve
from fp8sim.scaling import FLOAT32
from fp8sim.triton_kernels import interpreter, tuning
from fp8sim.triton_kernels.elements import code_of, float32_pattern, magnitude_of, meet_factor, one_nan
from fp8sim.triton_kernels.encode_scaled import FLOAT32_CONVERSION, Outputs
from fp8sim.triton_kernels.encode_scaled import launch as launch_encode
from fp8sim.triton_kernels.launching import RandomIntegers, float_type, random_integers_of, raw_bits, require_device
from fp8sim.triton_kernels.random import random_integers_at
from fp8sim.triton_kernels.scale import factor_of, scale_constants, tensor_scale_inv

TILE = 4096
"""Elements per program of blocks that are smaller."""

LARGEST_TILE = 1 << 14
"""Elements of the largest block that one program holds in registers: 128x128."""

_INTERPRETED_TILE = 1 << 16

TILES = (2048, 8192, 16384)
"""Elements per program worth a measurement beside the default, where a block fits into them or into none."""


@triton.jit
def _places(
    blocks,
    rows,
    columns,
    block_rows,
    block_columns,
    parts_across,
    parts,
    FLAT: tl.constexpr,
    NUMBER: tl.constexpr,
    COUNT: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of this program: block numbers [COUNT], which of them exist, element indices [COUNT, TALL, WIDE], which of these
    exist, and the number of its part of the blocks.

    A program has COUNT blocks if they fit, or one part of each, TALL x WIDE elements. FLAT: blocks follow each other in
    memory, in a single row. NUMBER is the type of block numbers.
    """
    program = tl.program_id(0)
    part = program % parts
    block = (program // parts).to(NUMBER) * COUNT + tl.arange(0, COUNT)
    exists = block < blocks
    row = (part // parts_across).to(tl.int64) * TALL + tl.arange(0, TALL)
    column = (part % parts_across).to(tl.int64) * WIDE + tl.arange(0, WIDE)
    inside = exists[:, None, None] & (column < block_columns)[None, None, :]
    if FLAT:
        start = block.to(tl.int64) * block_columns
        index = start[:, None, None] + column[None, None, :]
    else:
        across = tl.cdiv(columns, block_columns)
        down = tl.cdiv(rows, block_rows)
        left = (block % across).to(tl.int64) * block_columns
        block_row = block // across
        top = (block_row % down).to(tl.int64) * block_rows
        first_row = (block_row // down).to(tl.int64) * rows + top
        index = (first_row[:, None] + row[None, :])[:, :, None] * columns + (left[:, None] + column[None, :])[
            :, None, :
        ]
        inside = inside & ((row < block_rows)[None, :] & (top[:, None] + row[None, :] < rows))[:, :, None]
        inside = inside & (left[:, None] + column[None, :] < columns)[:, None, :]
    return block, exists, index, inside, part


@triton.jit
def _block_amax(pattern):
    """[COUNT] from [COUNT, TALL, WIDE]."""
    return one_nan(tl.max(tl.max(magnitude_of(pattern), axis=2), axis=1))


@triton.jit
def _amax_kernel(
    x_ptr,
    largest_ptr,
    blocks,
    rows,
    columns,
    block_rows,
    block_columns,
    parts_across,
    parts,
    SOURCE: tl.constexpr,
    WIDE_SOURCE: tl.constexpr,
    FLAT: tl.constexpr,
    NUMBER: tl.constexpr,
    COUNT: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The largest magnitude of each block into `largest_ptr`, int32, zero before. No order of programs matters."""
    block, exists, index, inside, _ = _places(
        blocks, rows, columns, block_rows, block_columns, parts_across, parts, FLAT, NUMBER, COUNT, TALL, WIDE
    )
    raw = tl.load(x_ptr + index, mask=inside, other=0)
    amax = _block_amax(float32_pattern(raw, SOURCE, WIDE_SOURCE))
    tl.atomic_max(largest_ptr + block, amax.to(tl.int32), mask=exists, sem="relaxed")


@triton.jit(do_not_specialize=["seed", "stream", "offset"])
def _quantize_kernel(
    x_ptr,
    codes_ptr,
    stored_ptr,
    largest_ptr,
    whole_ptr,
    tensor_ptr,
    blocks,
    rows,
    columns,
    block_rows,
    block_columns,
    parts_across,
    parts,
    seed: tl.int64,
    stream: tl.int64,
    offset: tl.int64,
    TO: tl.constexpr,
    RULE: tl.constexpr,
    STORE: tl.constexpr,
    FUSED: tl.constexpr,
    SOURCE: tl.constexpr,
    WIDE_SOURCE: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    HARDWARE: tl.constexpr,
    FLAT: tl.constexpr,
    NUMBER: tl.constexpr,
    COUNT: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Factors and codes. `largest_ptr` has the amax of every block, if a pass has found them; `whole_ptr` that of the
    tensor in two levels, whose factor goes to `tensor_ptr`."""
    block, exists, index, inside, part = _places(
        blocks, rows, columns, block_rows, block_columns, parts_across, parts, FLAT, NUMBER, COUNT, TALL, WIDE
    )
    raw = tl.load(x_ptr + index, mask=inside, other=0)
    pattern = float32_pattern(raw, SOURCE, WIDE_SOURCE)
    if largest_ptr is None:
        amax = _block_amax(pattern)
    else:
        amax = tl.load(largest_ptr + block, mask=exists, other=0).to(tl.uint32)
    if whole_ptr is None:
        whole = None
    else:
        whole = tl.load(whole_ptr).to(tl.uint32)
        if tl.program_id(0) == 0:
            tl.store(tensor_ptr, tensor_scale_inv(whole, RULE).to(tl.int32))
    stored, applied = factor_of(amax, whole, RULE, STORE)
    tl.store(stored_ptr + block, stored.to(stored_ptr.dtype.element_ty), mask=exists & (part == 0))

    random = 0
    if RANDOM_BITS > 0:
        element = (offset + index).to(tl.uint64)
        random = random_integers_at(element, seed.to(tl.uint64), stream.to(tl.uint64), RANDOM_BITS)
    ONE_NAN: tl.constexpr = TO.nan_positive == TO.nan_negative
    number = meet_factor(pattern, applied[:, None, None], RULE.divides, FUSED, ONE_NAN)
    codes = code_of(number, random, TO, RANDOM_BITS, HARDWARE)
    tl.store(codes_ptr + index, codes.to(codes_ptr.dtype.element_ty), mask=inside)


def quantize(
    x: torch.Tensor,
    quantizer: Quantizer,
    *,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    tile: int | None = None,
) -> QuantizedTensor:
    """`quantizer.quantize(x)`, bit for bit, on a GPU: every granularity, rule, order, rounding and element format.

    Args:
        x: [...], float64, float32, float16 or bfloat16, any strides; on a CUDA device, or interpreted on the CPU.
        quantizer, seed, stream, offset, random_bits: as for `Quantizer.quantize`.
        tile: elements per program at most, a power of two from 16 to 2^20; blocks that are larger take two passes.

    Returns:
        Codes, factors and the tensor's factor, contiguous, on x's device.

    Raises:
        TypeError: x is no tensor of these dtypes.
        ValueError: too few axes for the granularity, a codebook (NF4), which no kernel takes, a seed that is missing or
            unused.
        RuntimeError: x is on a device where no kernel runs.
    """
    conversion = resolve(quantizer.format, quantizer.rounding, quantizer.overflow)
    random = random_integers_of(conversion, seed, stream, offset, random_bits)
    return launch(x, quantizer, None, tile, random)


def launch(
    x: torch.Tensor, quantizer: Quantizer, hardware: Any, tile: int | None, drawn: RandomIntegers
) -> QuantizedTensor:
    """`quantize`, where `hardware` is the type that the GPU's instruction converts to, or None for integers."""
    float_type("x", x)
    require_device("x", x)
    conversion = resolve(quantizer.format, quantizer.rounding, quantizer.overflow)
    name = str(x.dtype).removeprefix("torch.")
    if quantizer.scale is None:
        codes, _, _ = launch_encode(x, quantizer.format, conversion, None, drawn, Outputs(), hardware=hardware)
        return QuantizedTensor(codes, None, quantizer, name)
    shape = quantizer.scale.granularity.scale_shape(tuple(x.shape))
    if x.numel() == 0:  # factors there may be: those of blocks of a single zero
        zeros = torch.zeros(max(math.prod(shape), 1), dtype=x.dtype, device=x.device)
        stored, tensor = _quantized(zeros, (1, 1, zeros.numel(), 1, 1), quantizer, drawn, hardware, tile)[1:]
        codes = torch.empty(x.shape, dtype=getattr(torch, code_dtype(quantizer.format)), device=x.device)
        return QuantizedTensor(codes, stored[: math.prod(shape)].reshape(shape), quantizer, name, tensor)
    blocks = quantizer.scale.granularity.blocks(tuple(x.shape))
    codes, stored, tensor = _quantized(x, blocks, quantizer, drawn, hardware, tile)
    return QuantizedTensor(codes, stored.reshape(shape), quantizer, name, tensor)


def _quantized(
    x: torch.Tensor,
    blocks: tuple[int, int, int, int, int],
    quantizer: Quantizer,
    random: RandomIntegers,
    hardware: Any,
    tile: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes of x's shape, factors [blocks] and the tensor's factor; x has an element, and `blocks` as `Granularity`."""
    spec, source = quantizer.scale, raw_bits(x)
    assert spec is not None
    if tile is None:
        options = {"quantizer": quantizer, "x": x.dtype, "random": random.bits, "hardware": hardware is not None}
        run = partial(_quantized, x, blocks, quantizer, random, hardware)
        tile = tuning.pick("quantize", x.device, options, (x.numel(),), _choices(blocks), run)
    cut = _Cut.of(blocks, tile)
    rule, store = scale_constants(quantizer.format, spec)
    codes = torch.empty(x.shape, dtype=getattr(torch, code_dtype(quantizer.format)), device=x.device)
    kept = torch.float32 if spec.store == FLOAT32 else torch.uint8
    stored = torch.empty(cut.blocks, dtype=kept, device=x.device)
    tensor = torch.empty((), dtype=torch.float32, device=x.device) if rule.has_two_levels else None
    reading = {
        "SOURCE": float_type("x", x)[0],
        "WIDE_SOURCE": FLOAT32_CONVERSION if source.element_size() == 8 else None,
    }
    with torch.cuda.device_of(x):
        whole = None
        if rule.has_two_levels:
            whole = _largest(source, _Cut.of((1, 1, x.numel(), 1, x.numel()), tile), reading)
        largest = _largest(source, cut, reading) if cut.parts > 1 else None
        _quantize_kernel[(cut.programs,)](
            source,
            codes,
            stored.view(torch.int32) if kept == torch.float32 else stored,
            largest,
            whole,
            None if tensor is None else tensor.view(torch.int32),
            *cut.arguments,
            random.seed,
            random.stream,
            64 * random.first_group + random.skipped,
            TO=resolve(quantizer.format, quantizer.rounding, quantizer.overflow),
            RULE=rule,
            STORE=store,
            FUSED=spec.fused,
            RANDOM_BITS=random.bits,
            HARDWARE=hardware,
            **reading,
            **cut.constants,
            num_warps=cut.warps,
            enable_fp_fusion=False,
        )
    return codes, stored, tensor


def _largest(source: torch.Tensor, cut: _Cut, reading: dict[str, Any]) -> torch.Tensor:
    """The patterns of the blocks' largest magnitudes, int32."""
    largest = torch.zeros(cut.blocks, dtype=torch.int32, device=source.device)
    _amax_kernel[(cut.programs,)](
        source, largest, *cut.arguments, **reading, **cut.constants, num_warps=cut.warps, enable_fp_fusion=False
    )
    return largest


class _Cut(NamedTuple):
    """How a tensor is cut into programs; fields as in `_places`. FLAT has TALL = 1."""

    blocks: int
    rows: int
    columns: int
    block_rows: int
    block_columns: int
    parts_across: int
    parts: int
    flat: bool
    together: int
    tall: int
    wide: int

    @classmethod
    def of(cls, blocks: tuple[int, int, int, int, int], tile: int | None) -> _Cut:
        """For (matrices, rows and columns of each, rows and columns of a block), none of them zero."""
        matrices, rows, columns, block_rows, block_columns = blocks
        flat = block_rows == 1 and columns % block_columns == 0
        if flat:
            matrices, rows, columns = 1, 1, matrices * rows * columns
        number = matrices * triton.cdiv(rows, block_rows) * triton.cdiv(columns, block_columns)
        limit = _choices(blocks)[0] if tile is None else _checked(tile)
        wide = min(triton.next_power_of_2(block_columns), limit)
        # Narrow blocks that do not fit have neighbours in the program, whose elements are neighbours in memory.
        tall = min(triton.next_power_of_2(block_rows), max(limit // max(wide, 64), 1))
        count = min(max(limit // (tall * wide), 1), triton.next_power_of_2(number))
        across = triton.cdiv(block_columns, wide)
        parts = across * triton.cdiv(block_rows, tall)
        return cls(number, rows, columns, block_rows, block_columns, across, parts, flat, count, tall, wide)

    @property
    def programs(self) -> int:
        return int(triton.cdiv(self.blocks, self.together) * self.parts)

    @property
    def warps(self) -> int:
        return 4 if self.together * self.tall * self.wide <= TILE else 8

    @property
    def arguments(self) -> tuple[int, ...]:
        return self[: self._fields.index("flat")]

    @property
    def constants(self) -> dict[str, Any]:
        number = tl.int32 if self.blocks + self.together < 1 << 31 else tl.int64
        found = {"FLAT": self.flat, "NUMBER": number, "COUNT": self.together, "TALL": self.tall, "WIDE": self.wide}
        return found


def offered(blocks: tuple[int, int, int, int, int]) -> list[int]:
    """Elements per program for blocks as of `Granularity.blocks`: all worth a measurement, the default first."""
    size = _filled(blocks[3], blocks[4])
    default = size if TILE < size <= LARGEST_TILE else TILE
    return [default, *(tile for tile in TILES if tile != default and (tile >= size or size > LARGEST_TILE))]


def _choices(blocks: tuple[int, int, int, int, int]) -> list[int]:
    """`offered`; before them in the interpreter its own default, which is large."""
    return [_INTERPRETED_TILE, *offered(blocks)] if interpreter.is_enabled() else offered(blocks)


def _filled(rows: int, columns: int) -> int:
    """Elements that a block of so many rows and columns fills, in a program."""
    return int(triton.next_power_of_2(rows) * triton.next_power_of_2(columns))


def _checked(tile: int) -> int:
    if tile not in [1 << k for k in range(4, 21)]:
        raise ValueError(f"tile={tile}: expected a power of two from 16 to 2^20")
    return tile
