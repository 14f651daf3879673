"""How launches of the attention's backward pass are cut up: the configurations offered, and which are the default."""

from __future__ import annotations

from dataclasses import dataclass

from fp8sim.triton_kernels.requirements import HOPPER, Capability


@dataclass(frozen=True)
class Tile:
    """How one pass is cut up: the rows of a program, those of a step, warps, and tiles loaded ahead."""

    rows: int
    step: int
    num_warps: int = 8
    num_stages: int = 2


@dataclass(frozen=True)
class Config:
    """The tiles of the pass over queries, of `rows` keys, and of the pass over keys, of `rows` queries.

    `descriptors`: load through tensor descriptors, which need compute capability 9.0, where tiles fill their heads.
    """

    over_queries: Tile
    over_keys: Tile
    descriptors: bool = False


def configs(width: int, capability: Capability, *, fp8: bool = False) -> list[Config]:
    """The configurations worth a try, which fit on the chip and spill nothing.

    Those for tiles that fill their heads come first, the default at their head, if the device loads these through
    descriptors; the last one is for all shapes.

    Args:
        width: features of a tile, 32 to 256, the larger of those of query and of value.
        capability: of the device.
        fp8: products of FP8.
    """
    width = max(64, width)
    if capability < HOPPER:
        return [_AMPERE[width]]
    return [*_HOPPER[fp8, width], _HOPPER_RAGGED[fp8, width]]


def same_sums(choices: list[Config], *, fp8: bool) -> list[Config]:
    """Those that give the bits of the first: where FP8 is multiplied, each step is added by itself."""
    steps = [(config.over_queries.step, config.over_keys.step) for config in choices]
    return [config for config, step in zip(choices, steps, strict=True) if not fp8 or step == steps[0]]


_HOPPER = {
    (False, 64): [
        Config(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), True),
        Config(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), True),
    ],
    (False, 128): [
        Config(Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), True),
        Config(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), True),
    ],
    (False, 256): [Config(Tile(64, 32, 8, 2), Tile(64, 64, 8, 2), True)],
    (True, 64): [
        Config(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), True),
        Config(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), True),
    ],
    (True, 128): [
        Config(Tile(64, 64, 8, 3), Tile(128, 64, 8, 3), True),
        Config(Tile(64, 64, 8, 2), Tile(64, 64, 4, 2), True),
    ],
    (True, 256): [Config(Tile(64, 32, 8, 2), Tile(64, 64, 8, 2), True)],
}
"""By whether FP8 is multiplied, and the width of a tile. Smaller tiles leave room for two programs."""

_HOPPER_RAGGED = {
    (False, 64): Config(Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (False, 128): Config(Tile(128, 32, 8, 2), Tile(128, 64, 8, 2)),
    (False, 256): Config(Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
    (True, 64): Config(Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)),
    (True, 128): Config(Tile(64, 64, 8, 2), Tile(128, 64, 8, 2)),
    (True, 256): Config(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
}

_AMPERE = {
    64: Config(Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    128: Config(Tile(64, 32, 8, 2), Tile(64, 64, 8, 2)),
    256: Config(Tile(32, 32, 8, 2), Tile(64, 32, 8, 2)),
}
