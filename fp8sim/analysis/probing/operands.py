"""Operands for instructions, raw bits of every category: what each kind of input does to an adder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fp8sim import casting, formats, mma
from fp8sim.mma import MmaModel

Array = np.ndarray[Any, Any]
Random = np.random.Generator


class Takes(Protocol):
    """What an instruction takes; an `MmaModel` says it of itself. The name is part of the seed."""

    @property
    def name(self) -> str: ...
    @property
    def a_format(self) -> str: ...
    @property
    def b_format(self) -> str: ...
    @property
    def accumulator(self) -> str: ...
    @property
    def scale_format(self) -> str | None: ...
    @property
    def scale_block(self) -> int | None: ...


@dataclass(frozen=True)
class Case:
    """a [M, K] and b [N, K] in codes, c [M, N] in the accumulator's dtype or None, scale factors' codes."""

    a: Array
    b: Array
    c: Array | None
    scales: Mapping[str, Array]

    def run(self, model: MmaModel, **options: Any) -> Array:
        """The bits of d."""
        return bits(mma.chain(self.a, self.b, self.c, model=model, **self.scales, **options))


def bits(x: Array) -> Array:
    return x.view(f"u{x.itemsize}")


def width(fmt: str) -> int:
    return {"float64": 64, "tf32": 32}.get(fmt) or formats.parse(fmt).bits


def raw(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    """Uniformly random codes, infinities and NaN included."""
    return rng.integers(0, 2 ** width(fmt) - 1, shape, dtype=np.uint64, endpoint=True).astype(mma.operand_dtype(fmt))


def finite(codes: Array, fmt: str) -> Array:
    """`codes` without infinities and NaN: those become zeros."""
    numbers = values(codes, fmt)
    return np.where(np.isfinite(numbers), codes, codes.dtype.type(0))


def values(codes: Array, fmt: str) -> Array:
    if fmt == "float64":
        return codes.view(np.float64)
    if fmt in ("tf32", "float32"):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return codes.view(np.float32).astype(np.float64)
    return casting.decode(codes, fmt, dtype="float64")


def encoded(x: Array, fmt: str) -> Array:
    if fmt == "float64":
        return np.ascontiguousarray(x, np.float64).view(np.uint64)
    if fmt in ("tf32", "float32"):
        return x.astype(np.float32).view(np.uint32)
    return casting.encode(x.astype(np.float32), fmt)


def mantissa_bits(fmt: str) -> int:
    return {"float64": 52, "tf32": 23}.get(fmt) or formats.parse(fmt).mantissa_bits


def normal(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    return encoded(rng.standard_normal(shape), fmt)


def wide(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    return finite(raw(rng, fmt, shape), fmt)


def subnormals(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    """Fractions and signs without exponent field, and one in eight of any exponent."""
    codes = raw(rng, fmt, shape)
    sign = codes.dtype.type(1 << (width(fmt) - 1))
    fraction = codes.dtype.type((1 << mantissa_bits(fmt)) - 1)
    small = finite(codes & (sign | fraction), fmt)
    return np.where(rng.random(shape) < 7 / 8, small, wide(rng, fmt, shape))


def zeros(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    """Mostly zeros, of either sign where the format has them."""
    codes = normal(rng, fmt, shape)
    signed_zeros = finite(codes & codes.dtype.type(1 << (width(fmt) - 1)), fmt)
    return np.where(rng.random(shape) < 0.8, signed_zeros, codes)


def overflow(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    """The largest numbers, mostly of one sign."""
    if fmt == "float64":
        return encoded(rng.uniform(0.5, 1, shape) * 2.0**511, fmt)
    largest = 2.0**64 if fmt in ("tf32", "float32", "bfloat16") else float(formats.parse(fmt).max)
    signs = np.where(rng.random(shape) < 0.9, 1, -1)
    return encoded(signs * largest * rng.uniform(0.5, 1, shape), fmt)


def outliers(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    scale = np.where(rng.random(shape) < 0.05, 1.0, 2.0**-6)
    return encoded(rng.standard_normal(shape) * scale * 4, fmt)


def specials(rng: Random, fmt: str, shape: tuple[int, ...]) -> Array:
    """One code in twelve is an infinity or a NaN, where the format has them; some zeros to multiply them with."""
    codes = zeros(rng, fmt, shape)
    none = raw(rng, fmt, shape)
    candidates = np.unique(finite(none, fmt) ^ none)
    candidates = candidates[candidates != 0]
    if fmt in ("float8_e5m2", "float16", "bfloat16", "tf32", "float32", "float64"):
        infinity = ((1 << (width(fmt) - 1 - mantissa_bits(fmt))) - 1) << mantissa_bits(fmt)
        both_signs = [infinity, infinity | 1 << (width(fmt) - 1)]
        candidates = np.concatenate([candidates[:2], np.array(both_signs, codes.dtype)])
    if candidates.size == 0:
        return codes
    return np.where(rng.random(shape) < 1 / 12, rng.choice(candidates, shape), codes)


CATEGORIES = {
    "normal": normal,
    "wide": wide,
    "cancellation": normal,
    "subnormals": subnormals,
    "zeros": zeros,
    "specials": specials,
    "overflow": overflow,
    "outliers": outliers,
    "uniform": raw,
}


def accumulators(rng: Random, category: str, takes: Takes, shape: tuple[int, ...]) -> Array | None:
    """c: raw bits for the categories that need them, numbers of the products' size elsewhere, or None."""
    unsigned = np.dtype(takes.accumulator.replace("float", "uint"))
    any_bits = rng.integers(0, np.iinfo(unsigned).max, shape, dtype=unsigned, endpoint=True)
    if category in ("uniform", "specials", "wide"):
        return any_bits.view(takes.accumulator)
    if category in ("zeros", "subnormals"):
        keep = unsigned.type((1 << (4 * unsigned.itemsize)) | (1 << (8 * unsigned.itemsize - 1)))
        small: Array = (any_bits & keep).view(takes.accumulator)
        return small
    if category == "overflow":
        return None
    near: Array = (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6)).astype(takes.accumulator)
    return near


def case(takes: Takes, category: str, m: int, n: int, k: int, seed: int = 0) -> Case:
    """A case of one category, the same for the same arguments."""
    rng = np.random.default_rng([seed, m, n, k, *map(ord, takes.name + category)])
    draw = CATEGORIES[category]
    a, b = draw(rng, takes.a_format, (m, k)), draw(rng, takes.b_format, (n, k))
    if category == "cancellation" and k > 1:
        negate = b.dtype.type(1 << (width(takes.b_format) - 1))
        odd = k // 2 * 2
        a[:, 1:odd:2] = a[:, 0:odd:2]
        b[:, 1:odd:2] = finite(b[:, 0:odd:2] ^ negate, takes.b_format)
    scales = {}
    if takes.scale_block:
        blocks = -(-k // takes.scale_block)
        low, high = (0, 255) if category in ("uniform", "specials", "zeros") else (124, 130)
        if takes.scale_format == "e4m3":
            low, high = (0, 255) if category in ("uniform", "specials") else (0, 0x7E)
        draws = {"a_scales": (m, blocks), "b_scales": (n, blocks)}
        scales = {name: rng.integers(low, high, shape, dtype=np.uint8, endpoint=True) for name, shape in draws.items()}
    return Case(a, b, accumulators(rng, category, takes, (m, n)), scales)
