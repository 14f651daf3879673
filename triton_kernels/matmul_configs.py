"""How launches of the matrix product are cut up: the configurations offered, and which one is the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fp8sim.triton_kernels.requirements import HOPPER, Capability, require

PROMOTION = 128
"""Products between two additions to float32 without fast accumulation, and the length of a block of factors."""


@dataclass(frozen=True)
class Config:
    """How a launch is cut up: a tile of c and a step of K per turn, warps, and tiles loaded ahead.

    `descriptors`: load and store through tensor descriptors, which need compute capability 9.0. `halves`: finish the
    left and the right half of a tile one after the other, which takes less memory on the chip and fewer registers.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 8
    num_warps: int = 8
    num_stages: int = 3
    descriptors: bool = False
    halves: bool = False


@dataclass(frozen=True)
class Kind:
    """What decides which configurations fit a launch.

    Attributes:
        element_size: bytes of an operand's element in memory.
        capability: of the device.
        promoted: whether sums are promoted to float32 every `PROMOTION` products.
        rounded: whether the result is rounded to FP8.
        blocks: whether factors belong to blocks of `PROMOTION` products.
        out_size: bytes of an element of the result, or of its parts.
    """

    element_size: int
    capability: Capability
    promoted: bool = False
    rounded: bool = False
    blocks: bool = False
    out_size: int = 4


def configs(kind: Kind) -> list[Config]:
    """The default for launches of each size, that of large ones first: free of spills, and their tiles fit on the chip.

    Without many processors to keep busy the first is the fastest, and later ones have smaller tiles.
    """
    if kind.capability < HOPPER:
        small = Config(64, 64, PROMOTION if kind.blocks else 64, num_warps=4)
        return [small] if kind.blocks else [Config(128, 128, 64), Config(128, 64, 64, num_warps=4), small]
    wide = [_hopper(kind, m, n, 8, 3, halves=True) for m, n in ((128, 256), (256, 128))]
    narrow = [_hopper(kind, *size, 4) for size in ((128, 128, 8), (128, 64, 4), (64, 64, 4))]
    return narrow if kind.promoted or kind.rounded or kind.blocks else [*wide, *narrow]


def offered(kind: Kind) -> list[Config]:
    """All configurations worth a measurement, the defaults first. They give the same bits, but for a split K, whose
    parts begin at multiples of `block_k`."""
    if kind.capability < HOPPER:
        return [*configs(kind), *_ampere(kind)]
    more = [_hopper(kind, 128, 128, 8, 3), _hopper(kind, 64, 128, 4, 4)]
    if kind.promoted and not kind.rounded:
        more += [_hopper(kind, 256, 128, 8, 3, halves=True)]
    if not (kind.promoted or kind.rounded or kind.blocks):
        more += [_hopper(kind, 128, 128, 4, 4), _hopper(kind, 64, 256, 4, 3, halves=True)]
        if kind.out_size <= 2:
            more += [_hopper(kind, m, n, 8, 4, halves=True) for m, n in ((128, 256), (256, 128))]
    return [*configs(kind), *more]


def _ampere(kind: Kind) -> list[Config]:
    if kind.blocks:
        return []
    small = [Config(64, 128, 64, num_warps=4), Config(128, 64, 64, num_warps=4, num_stages=4)]
    if kind.element_size == 1:
        return small
    large = [Config(128, 256, 32), Config(128, 256, 32, num_stages=4), Config(128, 128, 32, num_stages=4)]
    return [*small, *large, Config(128, 128, 64, num_stages=4)]


def _hopper(kind: Kind, m: int, n: int, warps: int, stages: int, halves: bool = False) -> Config:
    block_k = PROMOTION if kind.element_size == 1 or kind.blocks else 64
    return Config(m, n, block_k, num_warps=warps, num_stages=stages, descriptors=True, halves=halves)


def require_config(config: Config, kind: Kind, device: torch.device) -> None:
    """ValueError or RuntimeError for a configuration that cannot be launched, or that would compute another sum."""
    sizes = {"block_m": config.block_m, "block_n": config.block_n, "block_k": config.block_k}
    for name, size in sizes.items():
        if size < 16 or size & (size - 1):
            raise ValueError(f"config: {name}={size}: expected a power of two of 16 or more")
    if config.descriptors:
        require("tensor descriptors", kind.capability, device)
    if kind.blocks and config.block_k != PROMOTION:
        raise ValueError(
            f"config: block_k={config.block_k}: factors of blocks belong to {PROMOTION} of K, so must a step"
        )
    if kind.promoted and config.block_k % PROMOTION:
        raise ValueError(f"config: block_k={config.block_k}: promotion every {PROMOTION} takes a multiple of it")
    if kind.capability >= HOPPER and kind.element_size == 1 and config.block_m < 64:
        raise ValueError(
            f"config: block_m={config.block_m}: FP8 instructions of compute capability 9.0 have 64 rows or more, and "
            f"smaller tiles would be multiplied in float16"
        )


def choose(choices: Sequence[Config], tiles: Sequence[int], processors: int) -> Config:
    """The first of `choices` whose tiles, so many of the result, keep every processor busy, or the last."""
    busy = [config for config, count in zip(choices, tiles, strict=True) if count >= processors]
    return busy[0] if busy else choices[-1]
