"""Random bits without end: an instrument beside the simulator, batch after batch, and every difference kept.

Nothing is stored but counts and the first differences, each as a case that `fp8sim explain` reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp8sim import formats, mma
from fp8sim.analysis import explaining
from fp8sim.analysis.probing.battery import differences
from fp8sim.analysis.probing.instruments import Inputs, Instrument, Interface, StandIn
from fp8sim.analysis.probing.operands import Array, Random, finite, mantissa_bits, raw, width
from fp8sim.mma import MmaModel

BATCH = 1 << 19
"""Outputs of one batch."""

KEPT = 8
"""Differences that are kept as cases."""

_SPECIALS = 1 / 64
"""Share of cases with any bit pattern; infinities and NaN would make most of the others' results NaN."""


@dataclass(frozen=True)
class Tally:
    """How an instrument and a row compared.

    Attributes:
        name, row: of the instrument, and of what it was compared with.
        seed: of the random bits.
        compared, differing: outputs.
        specials: how many of them had any bit pattern as operand.
        seconds: how long it took.
        cases: files of the first differences.
    """

    name: str
    row: str
    seed: int
    compared: int
    differing: int
    specials: int
    seconds: float
    cases: tuple[str, ...]


def stream(
    instrument: Instrument,
    model: MmaModel,
    outputs: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    advance: Callable[[str], None] | None = None,
) -> Tally:
    """Compare `outputs` results, or a few more.

    A case is a single instruction, of random bits: in half of the cases numbers of any exponent, of which the largest
    decide; in half of them numbers within a few binades of 1, so that every product counts; in one of 64 any code,
    infinities and NaN included. The same seed gives the same bits.

    Args:
        model: what the instrument should be.
        folder: where the first differences go; None: nowhere.
        advance: called with the instrument's name after each batch.
    """
    takes, (m, n) = instrument.takes, instrument.tile
    per_batch = max(1, BATCH // (m * n))
    started, compared, differing, specials = time.monotonic(), 0, 0, 0
    cases: list[str] = []
    rng = np.random.default_rng([seed, *map(ord, takes.name)])
    while compared < outputs:
        count = min(per_batch, -(-(outputs - compared) // (m * n)))
        inputs, special = random_inputs(takes, (m, n), count, rng)
        found = instrument.run(inputs)
        wrong = differences(found, _simulated(model, inputs), model)
        compared, differing = compared + found.size, differing + int(wrong.sum())
        specials += special * m * n
        if folder is not None:
            for place in np.argwhere(wrong)[: KEPT - len(cases)]:
                path = folder / f"{takes.name}-{len(cases)}.npz"
                save_difference(inputs, found, tuple(map(int, place)), model, path)
                cases.append(str(path))
        if advance is not None:
            advance(takes.name)
    seconds = time.monotonic() - started
    return Tally(takes.name, model.name, seed, compared, differing, specials, round(seconds, 1), tuple(cases))


def batches_of(outputs: int) -> int:
    """How often `stream` advances."""
    return -(-outputs // BATCH)


def _simulated(model: MmaModel, inputs: Inputs) -> Array:
    return StandIn(model).run(inputs)


def random_inputs(takes: Interface, tile: tuple[int, int], cases: int, rng: Random) -> tuple[Inputs, int]:
    """Random bits, and how many of the cases may have infinities and NaN among them."""
    m, n = tile
    special = int(rng.binomial(cases, _SPECIALS))
    shapes = {"a_format": (cases, m, takes.k), "b_format": (cases, n, takes.k), "accumulator": (cases, m, n)}
    a, b, c = (_codes(rng, getattr(takes, name), shape, special) for name, shape in shapes.items())
    return Inputs(a, b, c, *_random_scales(takes, tile, cases, rng)), special


def _codes(rng: Random, fmt: str, shape: tuple[int, ...], special: int) -> Array:
    """Any codes, then numbers of any exponent, then, as many, numbers near 1."""
    codes = raw(rng, fmt, shape)
    middle = (special + len(codes)) // 2
    codes[special:middle] = finite(codes[special:middle], fmt)
    codes[middle:] = near_one(codes[middle:], fmt)
    return codes


def near_one(codes: Array, fmt: str) -> Array:
    """`codes` with exponents of 2^-4 to 2^3, as their lowest three bits say.

    Zeros stay, and so do formats of fewer exponents.
    """
    fraction = mantissa_bits(fmt)
    bias = 1023 if fmt == "float64" else formats.parse(fmt).bias
    if bias < 7:
        return codes
    kind = codes.dtype.type
    rest = codes & kind((1 << (width(fmt) - 1)) | ((1 << fraction) - 1))
    exponent = (codes >> kind(fraction)) & kind(7)
    return np.where(codes << kind(1) == 0, codes, rest | ((exponent + kind(bias - 4)) << kind(fraction)))


def _random_scales(takes: Interface, tile: tuple[int, int], cases: int, rng: Random) -> list[Array]:
    if takes.scale_block is None:
        return []
    blocks = -(-takes.k // takes.scale_block)
    return [rng.integers(0, 255, (cases, rows, blocks), dtype=np.uint8, endpoint=True) for rows in tile]


def save_difference(inputs: Inputs, d: Array, place: tuple[int, ...], model: MmaModel, path: Path) -> None:
    """One output as a case of `fp8sim explain`, with the row that should have given it as hypothesis."""
    at, i, j = place
    accumulator = mma.parse(model.name).accumulator
    fields: dict[str, Any] = {
        "a": inputs.a[at, i : i + 1],
        "b": np.ascontiguousarray(inputs.b[at, j : j + 1].T),
        "c": inputs.c[at, i : i + 1, j : j + 1].view(accumulator),
        "actual": d[at, i : i + 1, j : j + 1].view(accumulator),
        "a_format": model.a_format,
        "b_format": model.b_format,
        "hypotheses": (f"{model.name} output={accumulator}",),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    explaining.save_case(explaining.Case(**fields), path)
