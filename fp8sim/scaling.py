"""From the largest magnitude of a block to its scale factor: granularities, rules, and the order of the arithmetic.

Every step is exact integer work on float32 bit patterns, or one float32 operation: it is computed in binary64, where a
product of two float32 numbers is exact and a quotient never lands on a tie by rounding, and then rounded once by
`casting`. So factors depend neither on the process's rounding mode nor on its flushing of subnormals.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fp8sim import casting, formats
from fp8sim.formats import Codebook, Format

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

Bits = NDArray[np.uint32]
Doubles = NDArray[np.float64]

FLOAT32 = formats.parse("float32")
E8M0 = formats.parse("float8_e8m0fnu")
_LARGEST = float(FLOAT32.max)
_SMALLEST = float(FLOAT32.smallest)
_INFINITY_BITS = 0x7F800000
_E8M0_NAN = 0xFF


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
class Granularity:
    """Which elements share a scale factor: blocks of `rows` x `columns` over the last two axes of [..., R, C].

    None takes the whole axis; both None is the whole tensor, leading axes included. A tensor [C] is read as [1, C]. The
    last block of an axis holds what remains. Texts: "tensor", "row" (all of C), "column" (all of R), "1x32", "*x4".

    Raises:
        ValueError: a block that is not positive.
    """

    rows: int | None
    columns: int | None

    def __post_init__(self) -> None:
        for argument, size in (("rows", self.rows), ("columns", self.columns)):
            if size is not None and size < 1:
                raise ValueError(f"{argument}={size}: a block has at least one element; None takes the whole axis")

    def __str__(self) -> str:
        text = f"{self.rows or '*'}x{self.columns or '*'}"
        return next((name for name, same in _GRANULARITY_NAMES.items() if same == text), text)

    @classmethod
    def parse(cls, text: str | Granularity) -> Granularity:
        """The granularity that `text` names. ValueError if none."""
        if isinstance(text, Granularity):
            return text
        match = re.fullmatch(r"(\d+|\*)x(\d+|\*)", _GRANULARITY_NAMES.get(text, text))
        if match is None:
            raise ValueError(f"granularity={text!r}: use {', '.join(_GRANULARITY_NAMES)}, or a block as in '1x32'")
        rows, columns = (None if size == "*" else int(size) for size in match.groups())
        return cls(rows, columns)

    @property
    def is_whole_tensor(self) -> bool:
        """Whether there is one factor for all elements."""
        return self.rows is None and self.columns is None

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the factors of a tensor of `shape`: [] for the whole tensor, else [..., R / rows, C / columns],
        rounded up; [C / columns] for a tensor [C].

        Raises:
            ValueError: the tensor has too few axes.
        """
        if self.is_whole_tensor:
            return ()
        if not shape or (len(shape) == 1 and self.rows != 1):
            needed = 1 if self.rows == 1 else 2
            raise ValueError(f"x has shape {list(shape)}: granularity {self} takes {needed} axes or more; reshape it")
        *leading, r, c = self._as_matrices(shape)
        counts = (*leading, self._layout(r, self.rows)[0], self._layout(c, self.columns)[0])
        return counts[1:] if len(shape) == 1 else counts

    def split(self, x: NDArray[Any]) -> NDArray[Any]:
        """x as blocks [..., R / rows, rows, C / columns, columns], filled up with zeros; a view if nothing is added."""
        self.scale_shape(x.shape)
        x = x.reshape(self._as_matrices(x.shape))
        *leading, r, c = x.shape
        (r_blocks, rows), (c_blocks, columns) = self._layout(r, self.rows), self._layout(c, self.columns)
        if (r_blocks * rows, c_blocks * columns) != (r, c):
            padded = np.zeros((*leading, r_blocks * rows, c_blocks * columns), x.dtype)
            padded[..., :r, :c] = x
            x = padded
        return x.reshape(*leading, r_blocks, rows, c_blocks, columns)

    def join(self, blocks: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The array of `shape` of which `split` made `blocks`."""
        *leading, r_blocks, rows, c_blocks, columns = blocks.shape
        *_, r, c = self._as_matrices(shape)
        matrices = blocks.reshape(*leading, r_blocks * rows, c_blocks * columns)
        return np.ascontiguousarray(matrices[..., :r, :c]).reshape(shape)

    def spread(self, factors: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Factors of `scale_shape(shape)` as they broadcast against the blocks of an array of `shape`."""
        if self.is_whole_tensor:
            return factors.reshape(1, 1, 1, 1)
        if len(shape) == 1:
            factors = factors[None]
        return factors[..., :, None, :, None]

    def _as_matrices(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.is_whole_tensor:
            return (1, math.prod(shape))
        return (1, *shape) if len(shape) == 1 else shape

    @staticmethod
    def _layout(length: int, block: int | None) -> tuple[int, int]:
        """(number of blocks, their size) of an axis; a block of a whole axis has a place even if the axis has none."""
        return (1, max(length, 1)) if block is None else (-(-length // block), block)


_GRANULARITY_NAMES = {"tensor": "*x*", "row": "1x*", "column": "*x1"}


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
    parsed = Granularity.parse(granularity)
    largest = block_amax(parsed.split(float32_bits(x)))
    return like(largest.view(np.float32).reshape(parsed.scale_shape(tuple(x.shape))), x)


def float32_bits(x: Any) -> Bits:
    """The float32 patterns [...] of an array or CPU tensor of floats, float64 rounded with ties to even.

    C-contiguous; the memory of `x` itself where that is possible.
    """
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        return np.asarray(x, np.float32, order="C").view(np.uint32)
    if str(getattr(x, "dtype", "")) == "torch.float32" and x.device.type == "cpu" and str(x.layout) == "torch.strided":
        return float32_bits(x.detach().resolve_neg().numpy())
    return np.asarray(casting.encode(x, FLOAT32, overflow="INFINITY"))


def like(array: NDArray[Any], x: _Array) -> _Array:
    """`array` as an array or tensor, whichever `x` is."""
    if isinstance(x, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array)


def block_amax(blocks: Bits) -> Bits:
    """The pattern of the largest magnitude of each of `Granularity.split`'s blocks: [..., R / rows, C / columns].

    Patterns without sign count upwards: numbers, infinity, NaN. Every NaN becomes the same.
    """
    magnitudes = (blocks & np.uint32(0x7FFFFFFF)).ravel()
    if magnitudes.size:  # several times as fast as max(axis=-1)
        magnitudes = np.maximum.reduceat(magnitudes, np.arange(0, magnitudes.size, blocks.shape[-1]))
    largest: Bits = magnitudes.reshape(blocks.shape[:-1]).max(axis=-2)
    return np.where(largest > _INFINITY_BITS, np.uint32(0x7FC00000), largest)


# Scale factors from amax


class Factors(NamedTuple):
    """What a rule makes of the amax of blocks [..., R, C].

    Attributes:
        stored: [..., R, C], float32 factors or codes of `ScaleSpec.store`, which multiply the codes.
        tensor: the float32 factor of the tensor [] in a two-level order, else None.
        applied: [..., R, C], what x is multiplied with or divided by: float32 numbers in binary64.
    """

    stored: NDArray[Any]
    tensor: NDArray[np.float32] | None
    applied: Doubles


def factors(largest: Bits, fmt: Format, spec: ScaleSpec) -> Factors:
    """The factors of blocks whose amax has the float32 patterns `largest` [..., R, C], for elements of `fmt`."""
    if spec.rule.is_mx:
        codes = e8m0_codes(largest, fmt, spec.rule)
        return Factors(codes, None, casting.decode(codes, E8M0, dtype="float64"))
    numbers = casting.decode(largest, FLOAT32, dtype="float64")
    with np.errstate(all="ignore"):
        if spec.order.has_two_levels:
            return _two_levels(numbers, fmt, spec)
        return _one_level(np.maximum(numbers, spec.amax_floor), fmt, spec)


def check(fmt: Format, spec: ScaleSpec) -> None:
    """ValueError unless the elements' format suits the rule."""
    if not 1 / _LARGEST <= fmt.max <= _LARGEST or Fraction(float(np.float32(float(fmt.max)))) != fmt.max:
        raise ValueError(f"{fmt}: a scale factor needs a format whose largest number is one of float32's normal range")
    if spec.rule is ScaleRule.EVEN and isinstance(fmt, Codebook):
        raise ValueError(f"{fmt}: EVEN rounds amax to the format's fraction bits, which a codebook lacks; use FLOOR")
    if spec.rule is ScaleRule.EVEN and fmt.mantissa_bits > 22:
        raise ValueError(f"{fmt}: EVEN rounds amax to fewer than 23 fraction bits; use another rule")


def e8m0_codes(largest: Bits, fmt: Format, rule: ScaleRule) -> NDArray[np.uint8]:
    """E8M0 codes of scale_inv by one of the MX rules, for amax of the float32 patterns `largest` [...] without sign."""
    match rule:
        case ScaleRule.FLOOR:
            exponent = _floor_log2(largest) - fmt.emax
        case ScaleRule.CEIL:
            exponent = _ceil_log2(largest) - fmt.emax
        case ScaleRule.EVEN:
            exponent = _floor_log2(largest + np.uint32(1 << (22 - fmt.mantissa_bits))) - fmt.emax
        case ScaleRule.RCEIL:
            reciprocal = _float32(np.float64(1 / float(fmt.max)))
            with np.errstate(all="ignore"):
                product = _float32(casting.decode(largest, FLOAT32, dtype="float64") * reciprocal)
            exponent = _ceil_log2(float32_bits(product))
        case _:
            raise ValueError(f"rule={rule.name}: E8M0 codes come from FLOOR, CEIL, EVEN or RCEIL")
    codes = np.where(largest == 0, 0, np.clip(exponent + 127, 0, _E8M0_NAN - 1))
    return np.where(largest < _INFINITY_BITS, codes, _E8M0_NAN).astype(np.uint8)


def _floor_log2(bits: Bits) -> NDArray[np.int64]:
    """floor(log2) of float32 patterns without sign; far below all others for zero, 128 for infinity."""
    field = (bits >> 23).astype(np.int64)
    subnormal = (bits.astype(np.float64).view(np.int64) >> 52) - 1023 - 149  # the length of the integer `bits`
    return np.where(field > 0, field - 127, subnormal)


def _ceil_log2(bits: Bits) -> NDArray[np.int64]:
    """ceil(log2), as `_floor_log2`."""
    tail = np.where(bits >> 23 > 0, bits & np.uint32(0x7FFFFF), bits & (bits - (bits > 0)))
    return _floor_log2(bits) + (tail > 0)


def _float32(x: Any) -> Doubles:
    """Magnitudes in binary64 rounded to float32, ties to even; NaN positive, whatever sign the processor gave it."""
    result: Doubles = np.abs(casting.cast(np.asarray(x, np.float64), FLOAT32, overflow="INFINITY"))
    return result


def _one_level(amax: Doubles, fmt: Format, spec: ScaleSpec) -> Factors:
    power_of_two = spec.rule is ScaleRule.POWER_OF_TWO_AMAX
    if spec.order.divides:
        scale_inv = np.maximum(_float32(amax / float(fmt.max)), _SMALLEST)
        scale_inv = _power_of_two(scale_inv, up=True) if power_of_two else scale_inv
        applied = scale_inv = _replace_unusable(scale_inv, amax, spec)
    else:
        scale = np.minimum(_float32(float(fmt.max) / amax), _LARGEST)
        scale = _power_of_two(scale, up=False) if power_of_two else scale
        applied = _replace_unusable(scale, amax, spec)
        scale_inv = _float32(1.0 / applied)
    return Factors(_as_float32(scale_inv), None, applied)


def _replace_unusable(factor: Doubles, amax: Doubles, spec: ScaleSpec) -> Doubles:
    """1 where amax is zero, infinite or NaN, unless the arithmetic is to show."""
    return factor if spec.propagate else np.where((amax > 0) & np.isfinite(amax), factor, 1.0)


def _power_of_two(numbers: Doubles, *, up: bool) -> Doubles:
    """Positive float32 numbers rounded to a power of two within float32; zero, infinity and NaN stay."""
    bits = float32_bits(numbers)
    exponent = np.minimum((_ceil_log2 if up else _floor_log2)(bits), 127)
    return np.where((numbers > 0) & np.isfinite(numbers), np.ldexp(1.0, exponent), numbers)


def _as_float32(numbers: Any) -> NDArray[np.float32]:
    """Float32 numbers in binary64 as what they are."""
    return float32_bits(np.asarray(numbers)).view(np.float32)


def _two_levels(amax: Doubles, fmt: Format, spec: ScaleSpec) -> Factors:
    largest, ends = float(fmt.max), float(fmt.max) * float(spec.store.max)
    whole = np.asarray(np.max(amax, initial=0.0))
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        scale = _replace_unusable(np.minimum(_float32(ends / whole), _LARGEST), whole, spec)
        tensor = _float32(1.0 / scale)
        blocks = np.minimum(_float32(amax * _float32(scale * _float32(1.0 / largest))), _LARGEST)
    else:
        tensor = _float32(whole / ends)
        tensor = tensor if spec.propagate else np.maximum(_replace_unusable(tensor, whole, spec), _SMALLEST)
        blocks = _float32(_float32(amax / largest) / tensor)
    if spec.order is Order.TWO_LEVEL_TORCHAO:
        blocks = np.maximum(blocks, float(spec.store.smallest_normal))
    codes = casting.encode(blocks, spec.store)
    return Factors(codes, _as_float32(tensor), _two_level_factor(codes, tensor, spec))


def _two_level_factor(codes: NDArray[Any], tensor: Doubles, spec: ScaleSpec) -> Doubles:
    """What x is multiplied with or divided by, from the blocks' codes and the tensor's factor."""
    blocks = casting.decode(codes, spec.store, dtype="float64")
    if spec.order is Order.TWO_LEVEL_TORCHAO:
        return _float32(_float32(1.0 / tensor) / blocks)
    combined = _float32(blocks * tensor)
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        return np.minimum(_float32(1.0 / combined), _LARGEST)
    return np.where(combined == 0, np.inf, combined)  # x / infinity is a zero of the sign of x
