"""From the largest magnitude of a block to its scale factor: rules, and the order of the arithmetic.

Every step is exact integer work on float32 bit patterns, or one float32 operation, in `csrc/core/scale.hpp`. Factors
depend neither on the process's rounding mode nor on its flushing of subnormals.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fp8sim import _core, array_memory, casting, formats
from fp8sim.formats import Codebook, Format
from fp8sim.granularity import Granularity
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

Bits = NDArray[np.uint32]

FLOAT32 = formats.parse("float32")
E8M0 = formats.parse("float8_e8m0fnu")
_LARGEST = float(FLOAT32.max)


class ScaleRule(enum.Enum):
    """How the scale factor follows from amax, the largest magnitude of a block.

    max and emax are the largest number of the element format and its exponent, M its fraction bits, fl a rounding to
    float32, ties to even. The four MX rules give an E8M0 code; amax may be any float32 number, subnormals included.
    They never use a floating-point logarithm. Zero gives 2^-127, code 0; an infinity or NaN gives NaN, code 0xFF.
    """

    AMAX = "AMAX"
    """scale = fl(max / amax); when the order divides, scale_inv = fl(amax / max)."""
    POWER_OF_TWO_AMAX = "POWER_OF_TWO_AMAX"
    """As AMAX, then scale rounded down, or scale_inv up, to a power of two (Transformer Engine, torchao)."""
    FLOOR = "FLOOR"
    """scale_inv = 2^clamp(floor(log2(amax)) - emax, -127, 127) (OCP MX v1.0, section 6.3). The block's largest elements
    saturate where the significand of amax exceeds that of max."""
    CEIL = "CEIL"
    """scale_inv = 2^clamp(ceil(log2(amax)) - emax, -127, 127) (torchao)."""
    EVEN = "EVEN"
    """FLOOR of the float32 pattern of amax plus 2^(22 - M): amax rounded to M fraction bits first (torchao)."""
    RCEIL = "RCEIL"
    """scale_inv = 2^clamp(ceil(log2(fl(amax * fl(1 / max)))), -127, 127): the rule of cuBLAS and PTX cvt.rp.ue8m0."""

    @property
    def is_mx(self) -> bool:
        """Whether the rule gives an E8M0 code."""
        return self not in (ScaleRule.AMAX, ScaleRule.POWER_OF_TWO_AMAX)


class Order(enum.Enum):
    """Which operations make the factors, and how they are applied. T is amax of the tensor, A that of a block.

    Two-level orders keep s, a number of the `store` format with largest number S (448 in E4M3), in each block, and one
    float32 factor for the tensor. max is that of the element format (6 in E2M1). fl is a float32 operation.
    """

    MULTIPLY = "MULTIPLY"
    """x * scale; scale_inv = fl(1 / scale) is stored."""
    DIVIDE = "DIVIDE"
    """x / scale_inv, which is stored."""
    TWO_LEVEL_DIVIDE = "TWO_LEVEL_DIVIDE"
    """g = fl(T / (S * max)); s = round(fl(fl(A / max) / g)); x / fl(s * g). Where s * g is 0, x becomes a zero."""
    TWO_LEVEL_TRANSFORMER_ENGINE = "TWO_LEVEL_TRANSFORMER_ENGINE"
    """G = fl(S * max / T); g = fl(1 / G); s = round(fl(A * fl(G * fl(1 / max)))); x * fl(1 / fl(s * g)).

    G and the last factor are at most the largest float32 number.
    """
    TWO_LEVEL_TORCHAO = "TWO_LEVEL_TORCHAO"
    """g = fl(T / (S * max)); s = round(max(fl(fl(A / max) / g), smallest normal)); x * fl(fl(1 / g) / s)."""

    @property
    def has_two_levels(self) -> bool:
        """Whether there is a factor of the tensor beside those of the blocks."""
        return self.name.startswith("TWO_LEVEL")

    @property
    def divides(self) -> bool:
        """Whether x is divided by a factor, not multiplied."""
        return self in (Order.DIVIDE, Order.TWO_LEVEL_DIVIDE)


@dataclass(frozen=True)
class ScaleSpec:
    """A scale factor's whole definition, but for the element format.

    Attributes:
        granularity: which elements share a factor.
        rule: the equation.
        order: the operations, each rounded to float32, and how the factor is applied.
        store: the format of the stored factors, which multiply codes: float32, E8M0 for the MX rules, and for the
            two-level orders a format with a zero (E4M3), ties to even, saturating.
        amax_floor: amax is raised to this number (torchao: 1e-12).
        propagate: for amax of zero, infinity or NaN, False: the factor is 1 (in the two-level orders, that of the
            tensor, while blocks follow the arithmetic); True: what the arithmetic of `order` gives. A scale above the
            largest float32 number becomes that number, and a scale_inv below the smallest becomes the smallest.
        fused: x times (or divided by) its factor is rounded once, to the element format. Otherwise it is rounded to
            float32, ties to even, and then cast: two roundings, as on hardware.

    Raises:
        ValueError: parts that do not belong together.
    """

    granularity: Granularity
    rule: ScaleRule
    order: Order = Order.MULTIPLY
    store: Format = FLOAT32
    amax_floor: float = 0.0
    propagate: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        for reason, broken in self._conflicts():
            if broken:
                raise ValueError(f"{self}: {reason}")

    def _conflicts(self) -> Iterator[tuple[str, bool]]:
        mx, two = self.rule.is_mx, self.order.has_two_levels
        name = self.rule.name
        yield (
            f"{name} is stored as float8_e8m0fnu, divides and propagates",
            mx and not (self.store == E8M0 and self.order is Order.DIVIDE and self.propagate),
        )
        yield "a two-level order takes the rule AMAX", two and self.rule is not ScaleRule.AMAX
        yield (
            "a two-level order stores a format of at most 8 bits with zero",
            two and not (self.store.bits <= 8 and self.store.zero),
        )
        yield "the whole tensor needs no second level", two and self.granularity.is_whole_tensor
        yield f"{name} in one level is stored as float32", not (mx or two) and self.store != FLOAT32
        yield f"amax_floor={self.amax_floor} must be finite and not negative", not 0 <= self.amax_floor <= _LARGEST
        yield "amax_floor belongs to AMAX and POWER_OF_TWO_AMAX in one level", self.amax_floor > 0 and (mx or two)

    @property
    def divides(self) -> bool:
        """Whether x is divided by `Factors.applied`; powers of two are applied as reciprocals, to the same effect."""
        return self.order.divides and not self.rule.is_mx

    def __str__(self) -> str:
        parts = [str(self.granularity), self.rule.name, self.order.name, str(self.store)]
        parts += [f"amax_floor={self.amax_floor!r}"] if self.amax_floor else []
        parts += [flag for flag in ("propagate", "fused") if getattr(self, flag)]
        return "/".join(parts)

    @classmethod
    def parse(cls, text: str) -> ScaleSpec:
        """The definition whose `str()` is `text`. ValueError names the part that is wrong."""
        granularity, *parts = text.split("/")
        if len(parts) < 3:
            raise ValueError(f"scale factor {text!r}: expected GRANULARITY/RULE/ORDER/FORMAT[/OPTION...]")
        rule, order, store, *options = parts
        floors = [option.removeprefix("amax_floor=") for option in options if option.startswith("amax_floor=")]
        unknown = set(options) - {"propagate", "fused", *(f"amax_floor={floor}" for floor in floors)}
        if unknown:
            raise ValueError(
                f"scale factor {text!r}: unknown {sorted(unknown)}, expected amax_floor=, propagate, fused"
            )
        return cls(
            Granularity.parse(granularity),
            _named(ScaleRule, rule, "rule"),
            _named(Order, order, "order"),
            formats.parse(store),
            amax_floor=float(floors[-1]) if floors else 0.0,
            propagate="propagate" in options,
            fused="fused" in options,
        )


_E = TypeVar("_E", bound=enum.Enum)


def _named(kind: type[_E], name: str, argument: str) -> _E:
    if name.upper() not in kind.__members__:
        raise ValueError(f"{argument}={name!r}: use one of {', '.join(kind.__members__)}")
    return kind[name.upper()]


# amax


def amax(x: _Array, granularity: str | Granularity) -> _Array:
    """The largest magnitude of every block, in float32: NaN if an element is, else infinity if an element is.

    Args:
        x: [..., R, C], a NumPy array or CPU tensor of float32, float16, bfloat16, or float64, whose elements are first
            rounded to float32, ties to even.
        granularity: a `Granularity` or its text.

    Returns:
        [..., R / rows, C / columns] (`Granularity.scale_shape`), float32, of the kind of `x`. Blocks without elements
        give 0.

    Raises:
        ValueError: too few axes, an unknown granularity. TypeError: not an array of these dtypes.
    """
    return like(block_amax(float32_bits(x), Granularity.parse(granularity)).view(np.float32), x)


def float32_bits(x: Any) -> Bits:
    """The float32 patterns [...] of an array or CPU tensor of floats, float64 rounded with ties to even.

    C-contiguous and aligned; the memory of `x` itself where that is possible.
    """
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        return np.require(x.view(np.ndarray), requirements=["C", "A"]).reshape(x.shape).view(np.uint32)
    if str(getattr(x, "dtype", "")) == "torch.float32" and x.device.type == "cpu" and str(x.layout) == "torch.strided":
        return float32_bits(array_memory.readable(x))
    return np.asarray(casting.encode(x, FLOAT32, overflow="INFINITY"))


def like(array: NDArray[Any], x: _Array) -> _Array:
    """`array` as an array or tensor, whichever `x` is."""
    if isinstance(x, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array)


def block_amax(bits: Bits, granularity: Granularity) -> Bits:
    """The pattern of the largest magnitude of each block of float32 patterns [...]: `Granularity.scale_shape`.

    Patterns without sign count upwards: numbers, infinity, NaN. Every NaN becomes the same.
    """
    largest = np.zeros(granularity.scale_shape(bits.shape), np.uint32)
    if bits.size:
        _core.block_amax(bits, largest, granularity.blocks(bits.shape))
    return largest


# Scale factors from amax


class Constants(NamedTuple):
    """A rule and an element format as numbers: all that the loops read (`struct ScaleConstants` in `csrc/core`)."""

    rule: int
    order: int
    propagate: int
    emax: int
    mantissa_bits: int
    max: float
    amax_floor: float
    store_max: float
    store_smallest_normal: float


@functools.cache
def constants(fmt: Format, spec: ScaleSpec) -> tuple[Constants, Conversion]:
    """The numbers of the factors of elements of `fmt`, and the conversion to the format that stores them."""
    found = Constants(
        rule=list(ScaleRule).index(spec.rule),
        order=list(Order).index(spec.order),
        propagate=int(spec.propagate),
        emax=fmt.emax,
        mantissa_bits=min(fmt.mantissa_bits, 22),  # EVEN alone reads it
        max=float(fmt.max),
        amax_floor=spec.amax_floor,
        store_max=float(spec.store.max),
        store_smallest_normal=float(spec.store.smallest_normal),
    )
    return found, resolve(spec.store, Rounding.TIES_TO_EVEN, Overflow.SATURATE)


class Factors(NamedTuple):
    """What a rule makes of the amax of blocks [...].

    Attributes:
        stored: [...], float32 factors or codes of `ScaleSpec.store`, which multiply the codes.
        tensor: the float32 factor of the tensor [] in a two-level order, else None.
        applied: [...], float32: x is divided by it if `ScaleSpec.divides`, else multiplied.
    """

    stored: NDArray[Any]
    tensor: NDArray[np.float32] | None
    applied: NDArray[np.float32]


def factors(largest: Bits, fmt: Format, spec: ScaleSpec) -> Factors:
    """The factors of blocks whose amax has the float32 patterns `largest` [...], for elements of `fmt`."""
    stored, applied = (np.empty(largest.shape, np.uint32) for _ in range(2))
    tensor = _core.scale_factors(
        np.ascontiguousarray(largest).reshape(largest.shape), stored, applied, *constants(fmt, spec)
    )
    kept = stored.view(np.float32) if spec.store == FLOAT32 else stored.astype(np.uint8)
    return Factors(kept, tensor_factor(tensor, spec), applied.view(np.float32))


def tensor_factor(factor: float, spec: ScaleSpec) -> NDArray[np.float32] | None:
    """The factor of the tensor as an array [], None where the order has no such factor."""
    return np.array(factor, np.float32) if spec.order.has_two_levels else None


def check(fmt: Format, spec: ScaleSpec) -> None:
    """ValueError unless the elements' format suits the rule."""
    if not 1 / _LARGEST <= fmt.max <= _LARGEST or Fraction(float(np.float32(float(fmt.max)))) != fmt.max:
        raise ValueError(f"{fmt}: a scale factor needs a format whose largest number is one of float32's normal range")
    if spec.rule is ScaleRule.EVEN and isinstance(fmt, Codebook):
        raise ValueError(f"{fmt}: EVEN rounds amax to the format's fraction bits, which a codebook lacks; use FLOOR")
    if spec.rule is ScaleRule.EVEN and fmt.mantissa_bits > 22:
        raise ValueError(f"{fmt}: EVEN rounds amax to fewer than 23 fraction bits; use another rule")
