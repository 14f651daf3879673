"""Operands whose product any correct GEMM gives bit for bit, by the name of what they try."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fp8sim import casting
from fp8sim.formats import Format
from fp8sim.testing.elements import Array, decoded

Shape = tuple[int, int, int]
"""M, N, K."""
Block = tuple[int | None, int | None]
"""Rows and columns of an operand that share a scale factor; None: all of them."""

MOST_CALLS = 16
"""Impulses and factors are tried one by one up to this many of a shape, evenly spread beyond."""

_FEW_BITS = 11
"""What even a float16 accumulator holds."""

_FACTOR_BITS = 4
"""Bits that factors of 1/2, 1 and 2 on either operand add to the range of products."""


class Operands(NamedTuple):
    """What both operands of a GEMM are: formats, and the blocks of their factors if it takes any.

    Attributes:
        a_format, b_format: of a [M, K] and b [K, N].
        a_block, b_block: None where the GEMM takes no factor.
        accumulator_bits: sums of so many bits are exact in the GEMM's accumulator, in any order.
    """

    a_format: Format
    b_format: Format
    a_block: Block | None
    b_block: Block | None
    accumulator_bits: int


class Case(NamedTuple):
    """One product.

    Attributes:
        name: what it tries.
        a, b: [M, K] and [K, N], binary64, on the grids of their formats.
        a_scale_inv, b_scale_inv: float32 factors, one per block; None where the GEMM takes none.
    """

    name: str
    a: Array
    b: Array
    a_scale_inv: Array | None = None
    b_scale_inv: Array | None = None

    @property
    def shape(self) -> Shape:
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]


def scaled(x: Array, factors: Array | None, block: Block | None) -> Array:
    """[R, C], `x` times the factor of each element's block."""
    if factors is None or block is None:
        return x
    rows, columns = (np.arange(n) // (size or n) for n, size in zip(x.shape, block, strict=True))
    product: Array = x * factors.astype(np.float64)[rows][:, columns]
    return product


def factor_shape(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """How many blocks an operand of `shape` has in each dimension."""
    rows, columns = (1 if size is None else math.ceil(n / size) for n, size in zip(shape, block, strict=True))
    return rows, columns


def exact_sums(operands: Operands, shape: Shape, generator: np.random.Generator) -> Iterator[Case]:
    """{-1, 0, 1} times powers of two, with factors of powers of two; then sums that fill the accumulator.

    The first need few bits, so that a narrow accumulator is told from a wrong index.
    """
    takes_factors = operands.a_block is not None or operands.b_block is not None
    bits = min(operands.accumulator_bits, _FEW_BITS) - _FACTOR_BITS * takes_factors
    a, b = _powers(operands, shape, bits, generator)
    signs = [generator.integers(-fmt.signed, 2, x.shape) for x, fmt in ((a, operands.a_format), (b, operands.b_format))]
    yield _case("exact sums", operands, a * signs[0], b * signs[1], generator)
    a, b = _powers(operands, shape, operands.accumulator_bits, generator, ends_only=True)
    yield _case(f"sums that need an accumulator of up to {operands.accumulator_bits} bits", operands, a, b)


def impulses(operands: Operands, shape: Shape) -> Iterator[Case]:
    """One power of two per row of a, or column of b, at every k in turn; the other operand holds every number."""
    m, n, k = shape
    a_numbers, b_numbers = _numbers(operands.a_format, (m, k)), _numbers(operands.b_format, (k, n))
    for shifts, name in _shifts(m, k):
        a = np.zeros((m, k))
        a[np.arange(m), (np.arange(m) + shifts) % k] = _unit(operands.a_format)
        yield _case(f"impulses of a at {name}", operands, a, b_numbers)
    for shifts, name in _shifts(n, k):
        b = np.zeros((k, n))
        b[(np.arange(n) + shifts) % k, np.arange(n)] = _unit(operands.b_format)
        yield _case(f"impulses of b at {name}", operands, a_numbers, b)


def scale_impulses(operands: Operands, shape: Shape, generator: np.random.Generator) -> Iterator[Case]:
    """Exact sums with one factor of 2 among ones, for every block of either operand."""
    a, b = _powers(operands, shape, operands.accumulator_bits - _FACTOR_BITS, generator)
    plain = _case("", operands, a, b)
    for field, factors in (("a_scale_inv", plain.a_scale_inv), ("b_scale_inv", plain.b_scale_inv)):
        for at in _spread(0 if factors is None else factors.size):
            assert factors is not None
            doubled = factors.copy()
            doubled.flat[at] = 2
            index = [int(i) for i in np.unravel_index(at, factors.shape)]
            yield plain._replace(name=f"{field}{index} doubled", **{field: doubled})


def special_values(operands: Operands, shape: Shape, generator: np.random.Generator) -> Iterator[Case]:
    """One NaN or infinity in a positive operand: it reaches its row or column, and nothing else."""
    a, b = _powers(operands, shape, operands.accumulator_bits, generator)
    m, n, k = shape
    for name, value in (("NaN", math.nan), ("an infinity", math.inf), ("a negative infinity", -math.inf)):
        for at in sorted({0, k - 1}):
            if _has(operands.a_format, value):
                yield _case(f"{name} in a at k={at}", operands, _with(a, (m // 2, at), value), b)
            if _has(operands.b_format, value):
                yield _case(f"{name} in b at k={at}", operands, a, _with(b, (at, n // 2), value))


def random_data(operands: Operands, shape: Shape, generator: np.random.Generator, scale_format: str) -> Case:
    """Normal numbers, rounded to the formats, with any factors that `scale_format` holds, between 1/2 and 4."""
    m, n, k = shape
    normal = [generator.normal(size=size) for size in ((m, k), (k, n))]
    pair = zip(normal, (operands.a_format, operands.b_format), strict=True)
    a, b = (casting.cast(x * _unit(fmt), fmt) for x, fmt in pair)
    case = _case("random data within the error bound", operands, a, b)

    def draw(factors: Array | None) -> Array | None:
        if factors is None:
            return None
        drawn: Array = np.asarray(generator.uniform(0.75, 3, factors.shape), np.float32)
        return casting.cast(drawn, scale_format)

    return case._replace(a_scale_inv=draw(case.a_scale_inv), b_scale_inv=draw(case.b_scale_inv))


def _case(name: str, operands: Operands, a: Array, b: Array, generator: np.random.Generator | None = None) -> Case:
    """A case with factors of ones, or of 1/2, 1 and 2 at random."""

    def factors(x: Array, block: Block | None) -> Array | None:
        if block is None:
            return None
        shape = factor_shape((x.shape[0], x.shape[1]), block)
        exponents = np.zeros(shape) if generator is None else generator.integers(-1, 2, shape)
        return np.float32(2) ** exponents.astype(np.float32)

    return Case(name, a, b, factors(a, operands.a_block), factors(b, operands.b_block))


def _powers(
    operands: Operands, shape: Shape, bits: int, generator: np.random.Generator, *, ends_only: bool = False
) -> tuple[Array, Array]:
    """Powers of two of both formats whose K products, at most, add up to `bits` bits; `ends_only`: the extremes."""
    m, n, k = shape
    spread = max(0, bits - math.ceil(math.log2(k)))
    low, high = _exponents(operands.a_format, spread // 2)
    b_low, b_high = _exponents(operands.b_format, spread - (high - low))

    def draw(ends: tuple[int, int], size: tuple[int, int]) -> Array:
        drawn = generator.choice(ends, size) if ends_only else generator.integers(*ends, size, endpoint=True)
        powers: Array = np.ldexp(1.0, drawn)
        return powers

    return draw((low, high), (m, k)), draw((b_low, b_high), (k, n))


def _exponents(fmt: Format, spread: int) -> tuple[int, int]:
    """The exponents of powers of two in the format, `spread` apart at most, around 0 where it has that."""
    bottom = fmt.emin - fmt.mantissa_bits
    high = max(bottom, min(fmt.emax, spread // 2))
    return max(bottom, high - spread), high


def _unit(fmt: Format) -> float:
    """The power of two nearest to 1 that the format has."""
    return 2.0 ** min(max(0, fmt.emin - fmt.mantissa_bits), fmt.emax)


def _numbers(fmt: Format, shape: tuple[int, int]) -> Array:
    """The numbers of the format, of either sign and in a mixed order, repeated; a sample of more than 2^16."""
    count = min(fmt.max_code + 1, 1 << 16)
    codes = np.linspace(0, fmt.max_code, count).round().astype(np.int64)
    numbers = decoded(codes, fmt, "float64")
    if fmt.signed:
        numbers = np.concatenate([numbers, -numbers[1:]])
    mixed: Array = np.resize(np.random.default_rng(0).permutation(numbers), shape)
    return mixed


def _shifts(rows: int, k: int) -> Iterator[tuple[int, str]]:
    """Shifts by which `rows` impulses on a diagonal reach every k, and what they reach."""
    for at in _spread(math.ceil(k / rows)):
        first = at * rows
        yield first, f"k={first}..{min(first + rows, k) - 1}"


def _spread(count: int) -> list[int]:
    """0 .. count - 1, or MOST_CALLS of them with both ends."""
    if count <= MOST_CALLS:
        return list(range(count))
    return sorted({int(at) for at in np.linspace(0, count - 1, MOST_CALLS).round()})


def _has(fmt: Format, value: float) -> bool:
    if math.isnan(value):
        return fmt.nan_code is not None
    return fmt.inf_code is not None and (value > 0 or fmt.signed)


def _with(x: Array, at: tuple[int, int], value: float) -> Array:
    changed: Array = x.copy()
    changed[at] = value
    return changed
