"""Sums of signed powers of two as operands: the ruler with which an adder is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fp8sim import formats
from fp8sim.analysis.probing.instruments import Instrument, Interface, dots
from fp8sim.analysis.probing.operands import Array, encoded, mantissa_bits
from fp8sim.mma import operand_dtype

_BINARY64_EXPONENTS = (-500, 500)
"""Of operands that procedures use: products and their sums stay far from the ends of binary64."""


def exponents(fmt: str) -> tuple[int, int]:
    """The exponents of the format's smallest and largest normal powers of two."""
    if fmt == "float64":
        return _BINARY64_EXPONENTS
    parsed = formats.parse(fmt)
    return 1 - parsed.bias, int(np.floor(np.log2(float(parsed.max))))


@dataclass(frozen=True)
class Sum:
    """One output: products and c, each a sign and an exponent or, for c, any number.

    Attributes:
        products: position along K -> (sign, exponent) of a product that is a power of two.
        c: a number of the accumulator's format.
    """

    products: Mapping[int, tuple[int, int]]
    c: float = 0.0


class Ruler:
    """What powers of two an instrument can be given, and its results for sums of them."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.takes: Interface = instrument.takes
        ranges = [exponents(fmt) for fmt in (self.takes.a_format, self.takes.b_format)]
        self.lowest, self.highest = sum(low for low, _ in ranges), sum(high for _, high in ranges)
        self._a_range, self._b_range = ranges
        self.smallest_normal, self.largest = exponents(self.takes.accumulator)
        self.fraction_bits = mantissa_bits(self.takes.accumulator)
        self.top = min(self.highest, self.largest - 2)
        """The largest exponent of products that may be added up."""

    def can_make(self, exponent: int) -> bool:
        """Whether a product of two normal numbers is 2^exponent."""
        return self.lowest <= exponent <= self.highest

    def factors(self, exponent: int) -> tuple[int, int]:
        """Exponents of a and b."""
        low, high = self._b_range
        a_low, a_high = self._a_range
        a = min(max(exponent // 2, a_low, exponent - high), a_high, exponent - low)
        return a, exponent - a

    def codes(self, sums: Sequence[Sum], k: int) -> tuple[Array, Array, Array]:
        """a and b [R, k], and the bits of c [R]."""
        a, b = np.zeros((2, len(sums), k))
        for row, wanted in enumerate(sums):
            for position, (sign, exponent) in wanted.products.items():
                left, right = self.factors(exponent)
                a[row, position], b[row, position] = sign * 2.0**left, 2.0**right
        takes = self.takes
        numbers = np.array([wanted.c for wanted in sums], takes.accumulator)
        return encoded(a, takes.a_format), encoded(b, takes.b_format), numbers.view(takes.accumulator_bits)

    def results(self, sums: Sequence[Sum], instructions: int = 1) -> Array:
        """d as numbers of the accumulator's format, by a chain of so many instructions."""
        return self.bits(sums, instructions).view(self.takes.accumulator)

    def bits(self, sums: Sequence[Sum], instructions: int = 1) -> Array:
        """The bits of d."""
        return np.ascontiguousarray(dots(self.instrument, *self.codes(sums, instructions * self.takes.k)))

    def of_codes(self, a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> Array:
        """The bits of d where the first product is of these codes, and all others are of +0."""
        takes = self.takes
        left = np.zeros((len(a), takes.k), operand_dtype(takes.a_format))
        right = np.zeros((len(b), takes.k), operand_dtype(takes.b_format))
        left[:, 0], right[:, 0] = a, b
        return np.ascontiguousarray(dots(self.instrument, left, right, np.array(c, takes.accumulator_bits)))
