"""What must not change an instruction's bits: how its operands reach it, how a chain of it is cut, how wide it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fp8sim.analysis.probing.goldens import CHAIN, inputs_of
from fp8sim.analysis.probing.instruments import Inputs, Instrument
from fp8sim.analysis.probing.operands import Array, width


@dataclass(frozen=True)
class Invariance:
    """Two ways to the same result: how many outputs were compared, and how many differ in any bit."""

    name: str
    what: str
    compared: int
    differing: int


def chained(instrument: Instrument, outputs: int) -> Invariance:
    """A chain in the same registers beside single instructions, each of which gets the last one's d as its c."""
    inputs = inputs_of(instrument.takes, instrument.tile, "chain", outputs)
    k, d = instrument.takes.k, inputs.c
    for start in range(0, CHAIN * k, k):
        part = {name: getattr(inputs, name)[..., start : start + k] for name in "ab"}
        d = instrument.run(Inputs(**part, c=d, **_scales_of(inputs, instrument, start)))
    return _compared(instrument, f"a chain of {CHAIN}, and one after the other", instrument.run(inputs), d)


def _scales_of(inputs: Inputs, instrument: Instrument, start: int) -> dict[str, Array]:
    block = instrument.takes.scale_block
    if block is None:
        return {}
    blocks = slice(start // block, (start + instrument.takes.k) // block)
    return {name: codes[..., blocks] for name, codes in inputs.scales.items()}


def same(instrument: Instrument, other: Instrument, what: str, outputs: int) -> Invariance:
    """The same operands given to both."""
    inputs = inputs_of(instrument.takes, instrument.tile, "uniform", outputs)
    return _compared(instrument, what, instrument.run(inputs), other.run(inputs))


def ignoring_c(instrument: Instrument, other: Instrument, outputs: int) -> Invariance:
    """c = +0, and an instrument that is told to ignore the c it gets."""
    inputs = inputs_of(instrument.takes, instrument.tile, "uniform", outputs)
    zero = dataclasses.replace(inputs, c=np.zeros_like(inputs.c))
    return _compared(instrument, "c = 0, and c ignored", instrument.run(zero), other.run(inputs))


def negated(instrument: Instrument, other: Instrument, outputs: int) -> Invariance:
    """-a as operand, and an instrument that negates the a it gets."""
    inputs = inputs_of(instrument.takes, instrument.tile, "wide", outputs)
    sign = inputs.a.dtype.type(1 << (width(instrument.takes.a_format) - 1))
    minus = dataclasses.replace(inputs, a=inputs.a ^ sign)
    return _compared(instrument, "-a, and a negated by the instruction", instrument.run(minus), other.run(inputs))


def rows_and_columns(instrument: Instrument, outputs: int) -> Invariance:
    """The same sums at other rows and columns of the tile."""
    inputs = inputs_of(instrument.takes, instrument.tile, "uniform", outputs)
    m, n = instrument.tile
    rows, columns = np.roll(np.arange(m), m // 2 + 1), np.roll(np.arange(n), n // 2 + 1)
    scales = {name: x[:, order] for (name, x), order in zip(inputs.scales.items(), (rows, columns), strict=False)}
    moved = Inputs(inputs.a[:, rows], inputs.b[:, columns], inputs.c[:, rows][:, :, columns], **scales)
    d = instrument.run(inputs)[:, rows][:, :, columns]
    return _compared(instrument, "rows and columns, moved", d, instrument.run(moved))


def columns(instrument: Instrument, wider: Instrument, outputs: int) -> Invariance:
    """The same sums in a tile of more columns; single instructions and chains, each of so many outputs."""
    narrow, wide = instrument.tile[1], wider.tile[1]
    found = [_in_both_widths(instrument, wider, category, outputs) for category in ("uniform", "normal", "chain")]
    first, second = (np.concatenate([d.reshape(-1) for d in results]) for results in zip(*found, strict=True))
    return _compared(instrument, f"{narrow} columns at a time, and {wide}", first, second)


def _in_both_widths(instrument: Instrument, wider: Instrument, category: str, outputs: int) -> tuple[Array, Array]:
    inputs, narrow = inputs_of(instrument.takes, wider.tile, category, outputs), instrument.tile[1]
    parts = [slice(start, start + narrow) for start in range(0, wider.tile[1], narrow)]
    cut = Inputs(
        np.concatenate([inputs.a for _ in parts]),
        np.concatenate([inputs.b[:, part] for part in parts]),
        np.concatenate([inputs.c[:, :, part] for part in parts]),
    )
    joined = np.concatenate(np.split(instrument.run(cut), len(parts)), axis=2)
    return joined, wider.run(inputs)


def _compared(instrument: Instrument, what: str, first: Array, second: Array) -> Invariance:
    return Invariance(instrument.takes.name, what, first.size, int((first != second).sum()))
