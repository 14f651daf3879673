"""Inputs that tell adders apart: random bits of every category, and sums in which what was cut is all there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fp8sim.analysis.probing.instruments import Instrument, Interface, dots
from fp8sim.analysis.probing.operands import CATEGORIES, Array, Random, accumulators, case, overflow, raw, wide, width
from fp8sim.mma import Adder, MmaModel

ROWS = 48
"""Sums of each category; a chain of two instructions each."""

_OF_ONE_NAN = {Adder.TRUNCATED, Adder.EMULATED, Adder.BLOCK_SCALED, Adder.GROUPED}


@dataclass(frozen=True, eq=False)
class Batch:
    """Sums of one category: a, b [R, K] codes, c [R] bits, scale factors [R, blocks]."""

    category: str
    a: Array
    b: Array
    c: Array
    scales: tuple[Array, ...] = ()

    def run(self, instrument: Instrument) -> Array:
        """The bits of d [R]."""
        return dots(instrument, self.a, self.b, self.c, *self.scales)


def batches(takes: Interface, rows: int = ROWS, seed: int = 0) -> Iterator[Batch]:
    """Every category, the same for the same arguments; first the one that the fewest adders have in common."""
    yield _cancelled(takes, rows, np.random.default_rng([seed, rows, 1]))
    for category in CATEGORIES:
        yield _of_category(takes, category, rows, seed)
    if takes.scale_block is not None:
        yield _far_scales(takes, rows, np.random.default_rng([seed, rows, 2]))


def _of_category(takes: Interface, category: str, rows: int, seed: int) -> Batch:
    found = case(takes, category, rows, rows, 2 * takes.k, seed)
    zero = np.zeros(rows, takes.accumulator_bits)
    c = zero if found.c is None else np.ascontiguousarray(np.diagonal(found.c)).view(takes.accumulator_bits)
    return Batch(category, found.a, found.b, c, tuple(found.scales.values()))


def _cancelled(takes: Interface, rows: int, rng: Random) -> Batch:
    """The largest products, which cancel, at two places of the first instruction, and others of any size."""
    k = takes.k
    a, b = (wide(rng, fmt, (rows, k)) for fmt in (takes.a_format, takes.b_format))
    places = np.array([rng.permutation(k)[:2] for _ in range(rows)]) if k > 1 else np.zeros((rows, 2), int)
    every = np.arange(rows)
    large = [overflow(rng, fmt, (rows,)) for fmt in (takes.a_format, takes.b_format)]
    negative = large[1] ^ large[1].dtype.type(1 << (width(takes.b_format) - 1))
    for place, right in ((0, large[1]), (1, negative)):
        a[every, places[:, place]], b[every, places[:, place]] = large[0], right
    zeros = rng.random((rows, k)) < 0.6  # where every term is large, nothing of a small one is left to see
    zeros[every[:, None], places] = False
    a[zeros] = 0
    c = rng.standard_normal(rows) * 2.0 ** rng.integers(-12, 4, rows)
    return Batch(
        "cancelled", a, b, c.astype(takes.accumulator).view(takes.accumulator_bits), _near_scales(takes, a, rng)
    )


def _near_scales(takes: Interface, a: Array, rng: Random) -> tuple[Array, ...]:
    if takes.scale_block is None:
        return ()
    shape = (len(a), -(-a.shape[1] // takes.scale_block))
    one = 127 if takes.scale_format == "e8m0" else 0x38
    return tuple(rng.integers(one - 2, one + 3, shape).astype(np.uint8) for _ in "ab")


def _far_scales(takes: Interface, rows: int, rng: Random) -> Batch:
    """Scale factors of one instruction that lie far apart, beside a c of any size."""
    assert takes.scale_block is not None
    a, b = (raw(rng, fmt, (rows, takes.k)) for fmt in (takes.a_format, takes.b_format))
    shape = (rows, -(-takes.k // takes.scale_block))
    low, high = (112, 143) if takes.scale_format == "e8m0" else (0, 0x7E)
    scales = tuple(rng.integers(low, high, shape, dtype=np.uint8, endpoint=True) for _ in "ab")
    c = accumulators(rng, "normal", takes, (rows,))
    assert c is not None
    c *= (2.0 ** rng.integers(-30, 6, rows)).astype(c.dtype)
    return Batch("far scales", a, b, c.view(takes.accumulator_bits), scales)


def has_one_nan(model: MmaModel) -> bool:
    """Whether the bits of a NaN that the instruction returns are specified (`mma.chain`)."""
    return model.adder in _OF_ONE_NAN


def differences(found: Array, wanted: Array, model: MmaModel) -> Array:
    """Which outputs differ in any bit; one NaN is as good as another where its bits are not specified."""
    different: Array = found != wanted
    if not has_one_nan(model):
        different &= ~(np.isnan(found.view(model.accumulator)) & np.isnan(wanted.view(model.accumulator)))
    return different
