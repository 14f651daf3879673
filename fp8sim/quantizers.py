"""How a tensor becomes a tensor of codes: a format, its conversion policy and a scale factor, under one name.

A `Quantizer` is data; its canonical string is what operations and recipes pass around: `parse(str(q)) == q`. To add a
named one, add one entry to `QUANTIZERS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fp8sim import _core, array_memory, casting, formats, scaling
from fp8sim.formats import Format
from fp8sim.granularity import Granularity
from fp8sim.packing import pack
from fp8sim.random_bits import random_keywords
from fp8sim.rounding import Overflow, Rounding, member
from fp8sim.scaling import E8M0, FLOAT32, Factors, Order, ScaleRule, ScaleSpec

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

_PATTERNS = {"float32": "uint32", "float64": "float64", "float16": "uint16", "bfloat16": "uint16"}


@dataclass(frozen=True)
class Quantizer:
    """Cast every element to `format`, after applying the scale factor of its block if there is one.

    Attributes:
        format: the format of the codes.
        rounding: how a number between two codes is rounded; for a stochastic mode, `quantize` takes a seed.
        overflow: what becomes of numbers above the largest and of infinities.
        scale: which elements share a scale factor, how it is computed, stored and applied; None for no factor.

    Raises:
        ValueError: the format cannot represent the policy, or does not suit the scale factor.
    """

    format: Format
    rounding: Rounding = Rounding.TIES_TO_EVEN
    overflow: Overflow = Overflow.SATURATE
    scale: ScaleSpec | None = None

    def __post_init__(self) -> None:
        casting.policy_of(self.format, self.rounding, self.overflow)
        if self.scale is not None:
            scaling.check(self.format, self.scale)

    def __str__(self) -> str:
        text = f"{self.format}:{self.rounding.name}:{self.overflow.name}"
        return text if self.scale is None else _names().get(self, f"{text}:{self.scale}")

    def __call__(self, x: _Array, **random: Any) -> _Array:
        """The numbers [...] that the codes of `x` stand for, times their factors, rounded once to the dtype of `x`.

        NaN stays NaN where the format has one. Blocks along the columns run along the last axis of `x`. `random` as for
        `quantize`.
        """
        if self.scale is None:
            result = casting.cast(x, self.format, rounding=self.rounding, overflow=self.overflow, **random)
        else:
            result = self.quantize(x, **random).dequantize()
        return cast("_Array", result)

    def quantize(
        self, x: Any, *, seed: int | None = None, stream: int = 0, offset: int = 0, random_bits: int = 32
    ) -> QuantizedTensor:
        """The codes and scale factors of x [...], a NumPy array or CPU tensor.

        With a scale factor, float64 elements are first rounded to float32, ties to even. A NaN keeps its sign; where
        the factor makes a NaN of a number, it is positive. A NaN factor makes every code of its block NaN, or the
        largest number in a format without NaN.

        Args:
            x: [...].
            seed, stream, offset, random_bits: as for `fp8sim.cast`, if the mode is stochastic; elements are counted in
                row-major order. Factors take no random bits.

        Raises:
            ValueError: too few axes for the granularity, a tensor that is not on the CPU, a seed that is missing or
                unused, stream, offset or random_bits without one.
            TypeError: not an array of float32, float64, float16 or bfloat16, a masked array, a seed that is no integer.
        """
        x = array_memory.as_array(x)
        random: dict[str, Any] = random_keywords(self.rounding, seed, stream, offset, random_bits)
        if self.scale is None:
            codes = casting.encode(x, self.format, rounding=self.rounding, overflow=self.overflow, **random)
            return QuantizedTensor(codes, None, self, _float_name(x.dtype))
        bits = scaling.float32_bits(x)
        codes, factors = self._fused(bits, random) if self.scale.fused else self._two_roundings(bits, random)
        codes, stored = scaling.like(codes, x), scaling.like(factors.stored, x)
        tensor = None if factors.tensor is None else scaling.like(factors.tensor, x)
        return QuantizedTensor(codes, stored, self, _float_name(x.dtype), tensor)

    def _two_roundings(self, bits: NDArray[np.uint32], random: dict[str, Any]) -> tuple[NDArray[Any], Factors]:
        """Codes of the float32 patterns `bits` times their factors, rounded to float32 and then to the format."""
        assert self.scale is not None
        codes, shape = (
            np.empty(bits.shape, casting.code_dtype(self.format)),
            self.scale.granularity.scale_shape(bits.shape),
        )
        if bits.size == 0:
            return codes, scaling.factors(np.zeros(shape, np.uint32), self.format, self.scale)
        stored = np.empty(shape, np.uint32 if self.scale.store == FLOAT32 else np.uint8)
        conversion, cuts = casting.loop_arguments(self.format, self.rounding, self.overflow)
        blocks = self.scale.granularity.blocks(bits.shape)
        arguments = (codes.dtype.name, blocks, *scaling.constants(self.format, self.scale), conversion, cuts)
        tensor = _core.quantize(bits, codes, stored, *arguments, **random)
        kept = stored.view(np.float32) if self.scale.store == FLOAT32 else stored
        return codes, Factors(kept, scaling.tensor_factor(tensor, self.scale), np.empty(0, np.float32))

    def _fused(self, bits: NDArray[np.uint32], random: dict[str, Any]) -> tuple[NDArray[Any], Factors]:
        """Codes of the float32 patterns `bits` times their factors, rounded once: by way of binary64."""
        assert self.scale is not None
        granularity, divide = self.scale.granularity, self.scale.divides
        factors = scaling.factors(scaling.block_amax(bits, granularity), self.format, self.scale)

        def scaled(bits: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[np.float64]:
            return apply_factors(casting.decode(bits, FLOAT32, dtype="float64"), factors, divide=divide)

        applied = casting.decode(factors.applied.view(np.uint32), FLOAT32, dtype="float64")
        blocks = _in_slabs(scaled, granularity.split(bits), applied, "float64")
        products = granularity.join(blocks, bits.shape)
        codes = casting.encode(products, self.format, rounding=self.rounding, overflow=self.overflow, **random)
        return codes, factors


def _float_name(dtype: Any) -> str:
    """The name that NumPy, ml_dtypes and torch share of a dtype, given as one or by name. TypeError if no float."""
    name = str(dtype).removeprefix("torch.")
    if name not in _PATTERNS and not str(dtype).startswith("torch."):
        name = np.dtype(dtype).name
    if name not in _PATTERNS:
        raise TypeError(f"dtype={dtype!r}: use one of {', '.join(_PATTERNS)}")
    return name


def _in_slabs(
    function: Callable[[NDArray[Any], NDArray[np.float64]], NDArray[Any]],
    blocks: NDArray[Any],
    factors: NDArray[np.float64],
    dtype: str,
) -> NDArray[Any]:
    """function(blocks, factors) for blocks [..., R, rows, C, columns] and factors [..., R, C], some rows at a time.

    What binary64 needs then stays in the cache: about twice as fast as the whole at once.
    """
    count, *shape = math.prod(blocks.shape[:-3]), *blocks.shape[-3:]
    rows, spread = blocks.reshape(count, *shape), factors.reshape(count, 1, shape[1], 1)
    result = np.empty(rows.shape, dtype)
    step = max(1, (1 << 16) // max(1, math.prod(shape)))
    for start in range(0, count, step):
        slab = slice(start, start + step)
        result[slab] = function(rows[slab], spread[slab])
    return result.reshape(blocks.shape)


def apply_factors(values: NDArray[np.float64], factors: NDArray[np.float64], *, divide: bool) -> NDArray[np.float64]:
    """values * factors or values / factors in binary64. A NaN among the values keeps its sign, others are positive."""
    with np.errstate(all="ignore"):
        result: NDArray[np.float64] = np.divide(values, factors) if divide else np.multiply(values, factors)
    made = np.isnan(result)
    if made.any():
        result = np.where(made, np.where(np.isnan(values), values, np.nan), result)
    return result


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and the scale factors that multiply them.

    Attributes:
        codes: [...], NumPy array or tensor, uint8 (uint16 above 8 bits, uint32 above 16), one code per element.
        scales: `Granularity.scale_shape`: float32 factors, or codes of `quantizer.scale.store`; None without factor.
        quantizer: what made them.
        dtype: the name of the dtype that was quantized, which `dequantize` restores.
        tensor_scale: [], the float32 factor of the whole tensor in a two-level order; else None.

    Raises:
        ValueError: shapes or factors that do not fit the quantizer.
    """

    codes: Any
    scales: Any
    quantizer: Quantizer
    dtype: str = "float32"
    tensor_scale: Any = None

    def __post_init__(self) -> None:
        spec = self.quantizer.scale
        for name, given, wanted in (
            ("scales", self.scales, spec is not None),
            ("tensor_scale", self.tensor_scale, spec is not None and spec.order.has_two_levels),
        ):
            if (given is not None) != wanted:
                raise ValueError(f"{name} is {'given' if given is not None else 'missing'}: {self.quantizer} decides")
        if spec is not None and tuple(self.scales.shape) != spec.granularity.scale_shape(self.shape):
            expected = list(spec.granularity.scale_shape(self.shape))
            raise ValueError(f"scales have shape {list(self.scales.shape)}: codes {list(self.shape)} need {expected}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes used in storage: packed codes and all scale factors."""
        return sum(int(part.nbytes) for part in (self.packed(), self.scales, self.tensor_scale) if part is not None)

    def cpu(self) -> QuantizedTensor:
        """The same on the CPU, where all that follows here is computed; NumPy arrays are there already."""
        parts = (self.codes, self.scales, self.tensor_scale)
        codes, scales, tensor = (part.cpu() if hasattr(part, "cpu") else part for part in parts)
        return QuantizedTensor(codes, scales, self.quantizer, self.dtype, tensor)

    def packed(self) -> Any:
        """The codes [..., C] packed by `pack`; of formats above 8 bits, the codes themselves."""
        bits = self.quantizer.format.bits
        return pack(self.codes, bits) if bits < 8 else self.codes

    def scale_inv(self) -> NDArray[np.float64]:
        """The factors that multiply codes, those of the tensor included: exact, in `scales`'s shape.

        Raises:
            ValueError: the quantizer has no scale factor.
        """
        if self.quantizer.scale is None:
            raise ValueError(f"{self.quantizer} has no scale factor: its codes stand for the numbers themselves")
        factors = _decode_scales(self.scales, self.quantizer.scale.store)
        if self.tensor_scale is None:
            return factors
        return np.asarray(apply_factors(factors, _decode_scales(self.tensor_scale, FLOAT32), divide=False))

    def dequantize(self, dtype: Any = None) -> Any:
        """The numbers [...] that were quantized, nearly: code times factor, exact, then rounded once to `dtype`.

        Infinity where `dtype` has no such number. NaN codes keep their sign; a NaN factor makes its block NaN.

        Args:
            dtype: float32, float64, float16 or bfloat16, by name or as a dtype; None is the dtype that was quantized.

        Returns:
            [...], of the kind of `codes`.

        Raises:
            ValueError: codes on a GPU. TypeError: no such dtype.
        """
        if getattr(self.codes, "is_cuda", False):
            raise ValueError("codes are on a GPU, and dequantize computes on the CPU: call .cpu() first")
        name, fmt = self.dtype if dtype is None else _float_name(dtype), self.quantizer.format
        if self.quantizer.scale is None:
            return casting.decode(self.codes, fmt, dtype=name)
        granularity = self.quantizer.scale.granularity
        codes = granularity.split(np.asarray(self.codes))

        def numbers(codes: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[Any]:
            return _rounded(apply_factors(casting.decode(codes, fmt, dtype="float64"), factors, divide=False), name)

        blocks = _in_slabs(numbers, codes, self.scale_inv(), _PATTERNS[name])
        return _as_dtype(granularity.join(blocks, self.shape), name, self.codes)


def _decode_scales(scales: Any, store: Format) -> NDArray[np.float64]:
    """Stored factors in binary64."""
    codes = np.asarray(scales)
    return casting.decode(codes.view(np.uint32) if store == FLOAT32 else codes, store, dtype="float64")


def _rounded(values: NDArray[np.float64], name: str) -> NDArray[Any]:
    """`values` rounded once to the dtype of that name: patterns, but for float64."""
    return values if name == "float64" else casting.encode(values, name, overflow="INFINITY")


def _as_dtype(bits: NDArray[Any], name: str, kind: Any) -> Any:
    """What `_rounded` made, in the dtype of that name, as an array or tensor, whichever `kind` is."""
    if not isinstance(kind, np.ndarray):
        import torch

        return torch.from_numpy(bits).view(getattr(torch, name))
    if name == "bfloat16":
        import ml_dtypes

        return bits.view(ml_dtypes.bfloat16)
    return bits.view(name)


def quantize(x: _Array, quantizer: Quantizer, **random: Any) -> QuantizedTensor:
    """`quantizer.quantize(x)`: the simulated backend of `fp8sim.quantize`."""
    return quantizer.quantize(x, **random)


# Names


def parse(text: str | Quantizer) -> Quantizer:
    """The quantizer that a name of `QUANTIZERS` or "FORMAT[:ROUNDING[:OVERFLOW[:SCALE]]]" stands for.

    The parts default as in `Quantizer`; SCALE is the `str()` of a `ScaleSpec`.

    Raises:
        ValueError: a part that names nothing or is empty; the message lists what there is.
        TypeError: neither text nor a `Quantizer`.
    """
    if isinstance(text, Quantizer):
        return text
    if not isinstance(text, str):
        raise TypeError(f"quantizer={text!r} is a {type(text).__name__}: expected a Quantizer or its text, as 'mxfp8'")
    return _parsed(text)


@functools.cache
def _parsed(text: str) -> Quantizer:
    if (name := ALIASES.get(text, text)) in QUANTIZERS:
        return QUANTIZERS[name]
    name, *policy = text.split(":")
    if len(policy) > 3:
        raise ValueError(
            f"quantizer {text!r}: expected FORMAT[:ROUNDING[:OVERFLOW[:SCALE]]], got {len(policy) + 1} parts"
        )
    if name and not all(policy):
        shorter = ":".join(part for part in (name, *policy) if part)
        raise ValueError(
            f"quantizer {text!r}: expected FORMAT[:ROUNDING[:OVERFLOW[:SCALE]]], or a name of QUANTIZERS, and a part "
            f"is empty; leave out its colon ({shorter!r}) or name it"
        )
    rounding, overflow = [*policy[:2], *("TIES_TO_EVEN", "SATURATE")[len(policy) :]]
    return Quantizer(
        _format(name),
        member(Rounding, rounding, "rounding"),
        member(Overflow, overflow, "overflow"),
        ScaleSpec.parse(policy[2]) if len(policy) == 3 else None,
    )


def _format(name: str) -> Format:
    try:
        return formats.parse(name)
    except ValueError as error:
        raise ValueError(f"{error}; or one of the quantizers {', '.join([*QUANTIZERS, *ALIASES])}") from error


@functools.cache
def _names() -> dict[Quantizer, str]:
    return {quantizer: name for name, quantizer in QUANTIZERS.items()}


def _scaled(fmt: str, granularity: str, rule: ScaleRule, *rest: Any, **options: Any) -> Quantizer:
    spec = ScaleSpec(Granularity.parse(granularity), rule, *rest, **options)
    return Quantizer(formats.parse(fmt), scale=spec)


def _mx() -> Iterator[tuple[str, Quantizer]]:
    """The formats of OCP MX v1.0, blocks of 32; FLOOR has the plain name, the other rules are suffixes. MXINT8 uses the
    code of -2, which the standard lets implementations leave unused (`mxint8_symmetric`)."""
    elements = {"mxfp8_e4m3": "e4m3", "mxfp8_e5m2": "e5m2", "mxfp6_e2m3": "e2m3", "mxfp6_e3m2": "e3m2", "mxfp4": "e2m1"}
    elements |= {"mxint8": "int8_mx", "mxint8_symmetric": "int8_mx_symmetric"}
    for name, fmt in elements.items():
        for rule in (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.EVEN, ScaleRule.RCEIL):
            suffix = "" if rule is ScaleRule.FLOOR else f"_{rule.name.lower()}"
            yield name + suffix, _scaled(fmt, "1x32", rule, Order.DIVIDE, E8M0, propagate=True)


def _nvfp4() -> Iterator[tuple[str, Quantizer]]:
    """NVFP4: E2M1, an E4M3 factor for each 16 elements, a float32 factor for the tensor. No two orders give the same
    bits everywhere."""
    e4m3 = formats.parse("e4m3")
    engine = (ScaleRule.AMAX, Order.TWO_LEVEL_TRANSFORMER_ENGINE, e4m3)
    yield "nvfp4", _scaled("e2m1", "1x16", ScaleRule.AMAX, Order.TWO_LEVEL_DIVIDE, e4m3)
    yield "nvfp4_te", _scaled("e2m1", "1x16", *engine)
    yield "nvfp4_te_16x16", _scaled("e2m1", "16x16", *engine)
    yield "nvfp4_torchao", _scaled("e2m1", "1x16", ScaleRule.AMAX, Order.TWO_LEVEL_TORCHAO, e4m3, propagate=True)


def _fp8() -> Iterator[tuple[str, Quantizer]]:
    """FP8 with float32 factors: blocks and per tensor as in Transformer Engine, blocks as in DeepSeek-V3 (divide), per
    tensor and per row as in torchao (rows with powers of two)."""
    torchao = {"amax_floor": 1e-12, "propagate": True}
    for suffix, fmt in (("", "e4m3"), ("_e5m2", "e5m2")):
        for block in ("1x128", "128x128"):
            yield f"fp8_{block}{suffix}", _scaled(fmt, block, ScaleRule.AMAX)
            yield f"fp8_{block}_pow2{suffix}", _scaled(fmt, block, ScaleRule.POWER_OF_TWO_AMAX)
            yield f"fp8_{block}_divide{suffix}", _scaled(fmt, block, ScaleRule.AMAX, Order.DIVIDE)
        yield f"fp8_tensor_te{suffix}", _scaled(fmt, "tensor", ScaleRule.AMAX)
        yield f"fp8_tensor_torchao{suffix}", _scaled(fmt, "tensor", ScaleRule.AMAX, **torchao)
        yield f"fp8_row_torchao{suffix}", _scaled(fmt, "row", ScaleRule.POWER_OF_TWO_AMAX, **torchao)


def _nf4() -> Iterator[tuple[str, Quantizer]]:
    """NF4 (QLoRA): the levels -1 to 1 times the largest magnitude of each 64 elements. The paper divides by it;
    bitsandbytes multiplies with its rounded reciprocal. No level is NaN: the factor of a block that holds one is."""
    yield "nf4", _scaled("normalfloat4", "1x64", ScaleRule.AMAX, Order.DIVIDE, propagate=True)


QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(dict([*_mx(), *_nvfp4(), *_fp8(), *_nf4()]))
"""The named quantizers with a scale factor. A format's name is the quantizer without one."""

ALIASES: Mapping[str, str] = MappingProxyType({"mxfp8": "mxfp8_e4m3"})
"""Other names of named quantizers."""
