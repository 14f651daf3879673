"""How launches of the attention's forward pass are cut up: the configurations offered, and which one is the default.

All that have the plan's block of keys give the same bits. What decides their speed is how much of a block's softmax
takes place while a tensor core multiplies. Figures for heads of 128 on Hopper are in docs/triton.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import triton

from fp8sim.triton_kernels.requirements import HOPPER, Capability


@dataclass(frozen=True)
class Config:
    """How a launch is cut up: queries of a program, keys of a step (the plan's block), warps, and steps loaded ahead.

    Attributes:
        descriptors: load through tensor descriptors, which need compute capability 9.0.
        transposes: have FP8 values transposed in memory first, because Hopper multiplies FP8 with the keys contiguous
            in both operands; otherwise every program transposes the tiles that it loads.
        overlaps: multiply a block's probabilities with the values while those of the next block are computed. Needs
            descriptors, and batch entries that are sequences.
        heads_at_once: of how many heads the tiles that see most keys start first. More of them end at the same time
            under a causal mask; their keys and values share the cache.
    """

    block_m: int
    block_n: int
    num_warps: int = 8
    num_stages: int = 2
    descriptors: bool = False
    transposes: bool = False
    overlaps: bool = False
    heads_at_once: int = 1


class Kind(NamedTuple):
    """What decides which configurations fit a launch.

    Attributes:
        element_size: bytes of an operand's element.
        capability: of the device.
        width: features of a head, the larger of those of keys and values.
        packed: whether sequences are packed.
    """

    element_size: int
    capability: Capability
    width: int
    packed: bool = False


HEADS_AT_ONCE = 8
"""Whose keys and values, 16,384 of 128 features in FP8, are two thirds of the cache of an H100."""

FEW_QUERIES = 512
"""Up to here what is done once per launch or tile costs more than it saves: values transposed, blocks that overlap."""


def configs(kind: Kind) -> list[Config]:
    """The configurations worth a try, the one for most shapes first; each fits on the chip and spills nothing."""
    block = max(64, triton.next_power_of_2(kind.width))
    if kind.capability < HOPPER:
        return _AMPERE[block]
    found = [dataclasses.replace(config, descriptors=True) for config in _HOPPER[kind.element_size, block]]
    # Packed sequences begin anywhere. A descriptor's contiguous axis is read from multiples of 16 bytes, and the block
    # before is that of another sequence.
    return [config for config in found if not (kind.packed and (config.transposes or config.overlaps))]


def offered(kind: Kind, block: int, length: int, causal: bool) -> list[Config]:
    """The configurations with this block of keys, the default for so many queries first; all give the same bits."""
    fitting = [config for config in configs(kind) if config.block_n == block]
    if length <= FEW_QUERIES:
        fitting = [config for config in fitting if not (config.transposes or config.overlaps)]
    narrow = [config for config in fitting if length <= config.block_m]
    default = min(narrow, key=lambda config: config.block_m) if narrow else fitting[0]
    found = [default, *(config for config in fitting if config != default)]
    if causal and not kind.packed and length > FEW_QUERIES:
        found.insert(1, dataclasses.replace(default, heads_at_once=HEADS_AT_ONCE))
    return found


def checked(config: Config, block: int, *, packed: bool) -> Config:
    """A configuration that a caller names, as it can be launched. ValueError: it would give other bits, or none."""
    if config.block_n != block:
        raise ValueError(f"config.block_n={config.block_n}: the plan's block is {block}")
    if (config.overlaps or config.transposes) and not config.descriptors:
        raise ValueError(f"{config}: overlaps and transposes need descriptors=True")
    return dataclasses.replace(config, transposes=False, overlaps=False) if packed else config


_HOPPER = {
    (2, 64): [
        Config(128, 128, num_stages=3, overlaps=True),
        Config(64, 128, 4, overlaps=True),
        Config(128, 128, num_stages=3),
        Config(64, 128, 4, 3),
        Config(128, 64, num_stages=3),
    ],
    (2, 128): [
        Config(128, 128, overlaps=True),
        Config(128, 128),
        Config(64, 128, 4),
        Config(128, 64, num_stages=3, overlaps=True),
        Config(128, 64, num_stages=3),
    ],
    (2, 256): [
        Config(128, 64, overlaps=True),
        Config(128, 64),
        Config(128, 32, num_stages=3),
    ],
    (1, 64): [
        Config(128, 128, num_stages=3, transposes=True, overlaps=True),
        Config(64, 128, 4, transposes=True, overlaps=True),
        Config(128, 128, num_stages=3, transposes=True),
        Config(128, 128, num_stages=3),
        Config(64, 128, 4, 3),
        Config(64, 64, 4, 3),
    ],
    (1, 128): [
        Config(128, 128, num_stages=3, transposes=True, overlaps=True),
        Config(64, 128, 4, transposes=True, overlaps=True),
        Config(128, 128, num_stages=3, transposes=True),
        Config(64, 128, 4, transposes=True),
        Config(128, 128, num_stages=3),
        Config(64, 128, 4, 3),
        Config(64, 64, 4, 3),
    ],
    (1, 256): [
        Config(128, 64, num_stages=3, transposes=True, overlaps=True),
        Config(128, 64, transposes=True),
        Config(128, 64),
        Config(128, 128),
    ],
}
"""By the operands' element size and the padded width of a head."""

_AMPERE = {
    64: [Config(128, 64), Config(64, 64, 4)],
    128: [Config(128, 32, num_stages=3), Config(64, 32, 4)],
    256: [Config(64, 32)],
}
"""By the padded width of a head: FP8 is widened before it is loaded."""
