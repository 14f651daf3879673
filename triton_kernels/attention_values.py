"""Values of fused attention with the keys of a feature next to each other, which FP8 instructions of Hopper need."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.launching import raw_bits

GROUP = 16
"""Keys that change places among themselves. One instruction adds up a group, or two, in whatever order."""

KEYS = 128
"""Of a program."""


def transposed_values(value: torch.Tensor) -> torch.Tensor:
    """value [B, G, S, E] as [B, G, E, S'], S' the next multiple of 16, zeros beyond S; reads and writes each byte once.

    Key 8 h + 2 t + b of a group of 16 goes to place 4 t + 2 h + b (h and b 0 or 1, t 0 .. 3). Of a product with FP32
    accumulators, thread t of four has the columns of the former; as an operand of FP8, it gives those of the latter. So
    probabilities stay in their threads from one product to the next, and nothing else changes.

    Args:
        value: 8 or 16 bits per element, any strides.
    """
    batch, groups, keys, features = value.shape
    padded = GROUP * triton.cdiv(keys, GROUP)
    out = torch.empty(batch, groups, features, padded, dtype=value.dtype, device=value.device)
    rows = 1024 if interpreter.is_enabled() else KEYS
    bits = torch.int8 if value.element_size() == 1 else torch.int16
    source = value.detach().view(bits) if value.stride(-1) == 1 else raw_bits(value).view(bits)
    transpose_values_kernel[(triton.cdiv(padded, rows), batch * groups)](
        source, out.view(bits), source.stride()[:3], groups, keys, features, padded,
        ROWS=rows, FEATURES=max(16, triton.next_power_of_2(features)), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def transpose_values_kernel(
    x_ptr, out_ptr, strides, groups, keys, features, padded, ROWS: tl.constexpr, FEATURES: tl.constexpr
):
    """x: contiguous features at `strides` of batch, group and key. out: [B, G, E, padded] contiguous."""
    index = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    x_ptr += index // groups * strides[0] + index % groups * strides[1] + first.to(tl.int64) * strides[2]
    row, feature = tl.arange(0, ROWS), tl.arange(0, FEATURES)
    inside = (first + row < keys)[:, None] & (feature < features)[None, :]
    tile = tl.load(x_ptr + row[:, None].to(tl.int64) * strides[2] + feature[None, :], mask=inside, other=0)
    tile = tile.reshape(ROWS // 16, 2, 4, 2, FEATURES).permute(4, 0, 2, 1, 3).reshape(FEATURES, ROWS)
    out_ptr += index * features * padded + first
    inside = (feature < features)[:, None] & (first + row < padded)[None, :]
    tl.store(out_ptr + feature[:, None].to(tl.int64) * padded + row[None, :], tile, mask=inside)
