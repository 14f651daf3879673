"""What is probed: anything that takes the bits of operands and of c, and returns those of d.

On a GPU that is one instruction (`fp8sim.analysis.probing.device`); on any machine a `StandIn`, which is a row of
`fp8sim.mma.MODELS` or a change of one. Procedures know nothing else of an instrument.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fp8sim import mma
from fp8sim.analysis.probing.operands import Array, bits, mantissa_bits, width
from fp8sim.mma import MmaModel, operand_dtype

_ONE = {"e8m0": 127, "e4m3": 0x38}


@dataclass(frozen=True)
class Interface:
    """What an instruction takes and how many products, as the attributes of `MmaModel` of the same names say it."""

    name: str
    a_format: str
    b_format: str
    accumulator: str
    k: int
    scale_format: str | None = None
    scale_block: int | None = None

    @classmethod
    def of(cls, model: MmaModel) -> Interface:
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})

    @property
    def accumulator_bits(self) -> str:
        """The dtype of c's and d's bits."""
        return self.accumulator.replace("float", "uint")

    def fits(self, model: MmaModel) -> bool:
        """Whether the row takes the same."""
        return dataclasses.replace(Interface.of(model), name=self.name) == self


@dataclass(frozen=True, eq=False)
class Inputs:
    """Products to run, one after the other: K is one instruction's k or a multiple, and then a chain of them.

    Attributes:
        a: [cases, M, K], codes of the interface's a_format.
        b: [cases, N, K].
        c: [cases, M, N], bits of the accumulator's format.
        a_scales, b_scales: [cases, M or N, ceil(K / scale_block)], codes of scale_format; None without it.
    """

    a: Array
    b: Array
    c: Array
    a_scales: Array | None = None
    b_scales: Array | None = None

    def __post_init__(self) -> None:
        (cases, m, k), n = self.a.shape, self.b.shape[1]
        if self.b.shape != (cases, n, k) or self.c.shape != (cases, m, n):
            raise ValueError(
                f"a {list(self.a.shape)}, b {list(self.b.shape)}, c {list(self.c.shape)}: "
                f"expected [cases, M, K], [cases, N, K], [cases, M, N]"
            )

    @property
    def scales(self) -> dict[str, Array]:
        named = {"a_scales": self.a_scales, "b_scales": self.b_scales}
        return {name: codes for name, codes in named.items() if codes is not None}


class Instrument(Protocol):
    """Something that computes d from the bits of a, b and c."""

    @property
    def takes(self) -> Interface: ...

    @property
    def tile(self) -> tuple[int, int]:
        """M and N of every case that `run` gets."""

    def run(self, inputs: Inputs) -> Array:
        """The bits of d, [cases, M, N]."""


@dataclass(frozen=True)
class StandIn:
    """An instruction computed on the CPU, with peculiarities that no row of `MODELS` has, to tell them apart.

    Attributes:
        model: its arithmetic.
        tile: M and N of a case.
        flushes: which of "a", "b", "c", "d" have their subnormal numbers replaced by +0.
        descending: whether the steps of an instruction run from the last k to the first.
        c_last: whether c is added afterwards, by an ordinary addition, instead of being a term of the first step.
    """

    model: MmaModel
    tile: tuple[int, int] = (1, 1)
    flushes: frozenset[str] = frozenset()
    descending: bool = False
    c_last: bool = False

    @property
    def takes(self) -> Interface:
        return Interface.of(self.model)

    def run(self, inputs: Inputs) -> Array:
        inputs = self._flushed(self._reordered(inputs))
        c = inputs.c.view(self.model.accumulator)
        start = np.zeros_like(c) if self.c_last else c
        d = bits(mma.chain(inputs.a, inputs.b, start, model=self.model, **inputs.scales))
        if self.c_last:
            with np.errstate(all="ignore"):
                d = bits(d.view(self.model.accumulator) + c)
        return flushed(d, self.model.accumulator) if "d" in self.flushes else d

    def _reordered(self, inputs: Inputs) -> Inputs:
        if not self.descending:
            return inputs
        k, terms = self.model.k, self.model.terms
        order = np.arange(inputs.a.shape[-1]).reshape(-1, k // terms, terms)[:, ::-1].reshape(-1)
        return dataclasses.replace(inputs, a=inputs.a[..., order], b=inputs.b[..., order])

    def _flushed(self, inputs: Inputs) -> Inputs:
        formats = {"a": self.model.a_format, "b": self.model.b_format, "c": self.model.accumulator}
        changes: dict[str, Any] = {
            name: flushed(getattr(inputs, name), formats[name]) for name in self.flushes & formats.keys()
        }
        return dataclasses.replace(inputs, **changes)


def flushed(codes: Array, fmt: str) -> Array:
    """`codes` with +0 for every subnormal number."""
    sign, fraction = 1 << (width(fmt) - 1), (1 << mantissa_bits(fmt)) - 1
    magnitude = codes & codes.dtype.type(sign - 1)
    found: Array = np.where((magnitude <= fraction) & (magnitude != 0), codes.dtype.type(0), codes)
    return found


def dots(
    instrument: Instrument, a: Array, b: Array, c: Array | None = None, *scales: Array | None
) -> np.ndarray[Any, Any]:
    """Single sums of products: the bits of d [R] for operands [R, K] and c [R] (None: +0).

    Args:
        scales: a_scales and b_scales, [R, blocks]; left out they are 1.
    """
    inputs, places = on_diagonals(instrument.takes, instrument.tile, a, b, c, *scales)
    return instrument.run(inputs)[places]


def on_diagonals(
    takes: Interface, tile: tuple[int, int], a: Array, b: Array, c: Array | None = None, *scales: Array | None
) -> tuple[Inputs, tuple[Array, Array, Array]]:
    """Sums [R] as cases of M by N outputs, min(M, N) on each diagonal, beside rows of zeros; and their places in d."""
    (m, n), rows = tile, len(a)
    side = min(m, n)
    cases = -(-rows // side)
    start = np.zeros(rows, takes.accumulator_bits) if c is None else c
    at = np.arange(rows)
    place, in_case = (at // side, at % side), at % side
    inputs = Inputs(
        _placed(a, (cases, m, a.shape[1]), place, operand_dtype(takes.a_format)),
        _placed(b, (cases, n, b.shape[1]), place, operand_dtype(takes.b_format)),
        _placed(start, (cases, m, n), (*place, in_case), takes.accumulator_bits),
        *_placed_scales(takes, scales, (m, n), cases, place, a.shape[1]),
    )
    return inputs, (*place, in_case)


def _placed(x: Array, shape: tuple[int, ...], place: tuple[Array, ...], dtype: str) -> Array:
    found = np.zeros(shape, dtype)
    found[place] = x
    return found


def _placed_scales(
    takes: Interface,
    scales: tuple[Array | None, ...],
    tile: tuple[int, int],
    cases: int,
    place: tuple[Array, ...],
    k: int,
) -> list[Array]:
    if takes.scale_block is None or takes.scale_format is None:
        return []
    found = []
    for given, rows in zip(scales or (None, None), tile, strict=True):
        codes = np.full((cases, rows, -(-k // takes.scale_block)), _ONE[takes.scale_format], np.uint8)
        if given is not None:
            codes[place] = given
        found.append(codes)
    return found
