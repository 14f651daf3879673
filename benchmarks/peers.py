"""Other implementations: to compare the speed with, and as judges of results.

Judges are independent of fp8sim's loops: ml_dtypes rounds to nearest even; from its result, and the exact sign of what
that lost, follows every other deterministic mode; a stochastic result must be one of the two neighbours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fp8sim.formats import Codebook, Format
from fp8sim.quantizers import Quantizer
from fp8sim.rounding import Overflow, Rounding
from fp8sim.scaling import Order, ScaleRule, ScaleSpec

if TYPE_CHECKING:
    from benchmarks.cases import Quantized

Array = np.ndarray[Any, Any]
Call = Callable[[], object]

ml_dtypes: Any = importlib.import_module("ml_dtypes") if importlib.util.find_spec("ml_dtypes") else None
"""None where it is not installed: it is no peer there."""


@functools.cache
def table(fmt: Format) -> Array:
    """The numbers of the magnitude codes, as float64."""
    return np.array([fmt.to_float(code) for code in range(fmt.max_code + 1)])


def neighbours(x: Array, fmt: Format) -> tuple[Array, Array]:
    """The largest numbers of `fmt` not above and the smallest not below |x|, which is clamped to the largest."""
    numbers = table(fmt)
    magnitude = np.minimum(np.abs(x.astype(np.float64)), numbers[-1])
    above = np.searchsorted(numbers, magnitude, side="left")
    exact = numbers[above] == magnitude
    return numbers[np.where(exact, above, np.maximum(above - 1, 0))], numbers[above]


def expected_numbers(x: Array, fmt: Format, rounding: Rounding) -> Array:
    """What x becomes under SATURATE in a deterministic mode, by the definition; no NaN in x."""
    low, high = neighbours(x, fmt)
    magnitude = np.minimum(np.abs(x.astype(np.float64)), float(fmt.max))
    middle = (low + high) / 2
    even = np.searchsorted(table(fmt), low) % 2 == 0
    is_up = {
        Rounding.TIES_TO_EVEN: (magnitude > middle) | ((magnitude == middle) & ~even),
        Rounding.TIES_TO_AWAY: magnitude >= middle,
        Rounding.TIES_TO_ZERO: magnitude > middle,
        Rounding.TOWARD_ZERO: np.zeros(x.shape, bool),
        Rounding.TOWARD_POSITIVE: x > 0,
        Rounding.TOWARD_NEGATIVE: x < 0,
        Rounding.TO_ODD: even & (low < magnitude),
    }[rounding]
    signed = np.copysign(np.where(is_up, high, low), x)
    return signed if fmt.has_negative_zero else signed + 0.0


def check_numbers(x: Array, y: Array, fmt: Format, rounding: Rounding, overflow: Overflow) -> None:
    """AssertionError unless y is x cast to `fmt`; looks at 2^16 elements and the ends."""
    picked = np.unique(np.linspace(0, x.size - 1, 2**16, dtype=np.int64))
    x, y = x[picked], y[picked]
    if overflow is Overflow.INFINITY:
        magnitude = np.abs(x.astype(np.float64))
        inside = magnitude <= float(fmt.max)
        assert np.isinf(y[magnitude > 2 * float(fmt.max)]).all(), "overflow is not infinity"
        x, y = x[inside], y[inside]
    if rounding.is_stochastic:
        low, high = neighbours(x, fmt)
        assert (np.isin(np.abs(y), [0]) | (np.abs(y) == low) | (np.abs(y) == high)).all(), "not a neighbour"
        return
    wrong = np.flatnonzero(y != expected_numbers(x, fmt, rounding))
    assert wrong.size == 0, f"{wrong.size} of {x.size} wrong, first {x[wrong[0]]!r} -> {y[wrong[0]]!r}"


def check_codes(x: Array, codes: Array, fmt: Format, rounding: Rounding, overflow: Overflow) -> None:
    """AssertionError unless `codes` are those of x."""
    picked = np.unique(np.linspace(0, x.size - 1, 2**14, dtype=np.int64))
    numbers = np.array([fmt.to_float(int(code)) for code in codes[picked]])
    if fmt.signed:
        return check_numbers(x[picked], numbers, fmt, rounding, overflow)
    positive = x[picked] > 0
    assert (codes[picked][~positive] == 0).all(), "a negative number is not saturated"
    return check_numbers(x[picked][positive], numbers[positive], fmt, rounding, overflow)


def check_decoded(codes: Array, y: Array, fmt: Format) -> None:
    """AssertionError unless y are the numbers of `codes`."""
    expected = np.array([fmt.to_float(code) for code in fmt.codes], np.float32)
    assert np.array_equal(y, expected[codes], equal_nan=True), "not the numbers of the codes"


def check_quantized(x: Array, found: Quantized, quantizer: Quantizer) -> None:
    """AssertionError unless `found` is x [R, C] quantized; by NumPy's arithmetic and ml_dtypes, on 64 rows."""
    spec, fmt = quantizer.scale, quantizer.format
    assert spec is not None
    rows = 128 if spec.granularity.rows == 128 else None if spec.granularity.is_whole_tensor else 1
    part = x if rows is None else x[:64] if rows == 1 else x[: max(rows, 128)]
    blocks = spec.granularity.split(part)
    amax = np.abs(blocks).max(axis=(-1, -3), keepdims=True)
    whole = np.abs(x).max()
    stored = found.stored.reshape(-1)[: amax.size].reshape(amax.shape)
    applied, expected = judged_factors(amax, whole, stored, spec, fmt)
    assert np.array_equal(stored, expected), "not the factors of amax"
    products = spec.granularity.join(blocks / applied if spec.order.divides else blocks * applied, part.shape)
    numbers = np.array([fmt.to_float(code) for code in fmt.codes])[found.codes[: part.shape[0]]]
    if isinstance(fmt, Codebook):
        levels = np.array(fmt.levels)
        nearest = np.abs(products[..., None].astype(np.float64) - levels).min(axis=-1)
        assert np.array_equal(np.abs(numbers - products), nearest), "not the closest levels"
        return
    clipped = np.maximum(products, float(fmt.value(fmt.lowest_code)))
    expected_values = expected_numbers(clipped, fmt, quantizer.rounding)
    lowest = clipped < -float(fmt.max)
    wrong = np.flatnonzero((numbers != expected_values) & ~lowest)
    assert wrong.size == 0, f"{wrong.size} of {part.size} codes wrong"


def judged_factors(amax: Array, whole: Any, stored: Array, spec: ScaleSpec, fmt: Format) -> tuple[Array, Array]:
    """(what x is multiplied with or divided by, what is stored) by the equations of `ScaleRule` and `Order`."""
    one, largest = np.float32(1), np.float32(float(fmt.max))
    if spec.rule.is_mx:
        exponent = np.frexp(amax)[1] - 1 - fmt.emax
        if spec.rule is ScaleRule.RCEIL:
            fraction, exponent = np.frexp(amax * (one / largest))
            exponent = exponent - (fraction == 0.5)
        return np.exp2(exponent).astype(np.float32), (exponent + 127).astype(np.uint8)
    if not spec.order.has_two_levels:
        applied = amax / largest if spec.order is Order.DIVIDE else largest / amax
        return applied, (applied if spec.order is Order.DIVIDE else one / applied).view(np.uint32)
    ends = np.float32(float(spec.store.max)) * largest
    kind = getattr(ml_dtypes, spec.store.name)
    if spec.order is Order.TWO_LEVEL_TRANSFORMER_ENGINE:
        scale = ends / whole
        blocks = (amax * (scale * (one / largest))).astype(kind).astype(np.float32)
        applied = one / (blocks * (one / scale))
    elif spec.order is Order.TWO_LEVEL_TORCHAO:
        blocks = np.maximum(amax / largest / (whole / ends), np.float32(2**-6)).astype(kind).astype(np.float32)
        applied = one / (whole / ends) / blocks
    else:
        blocks = (amax / largest / (whole / ends)).astype(kind).astype(np.float32)
        applied = blocks * (whole / ends)
    return applied, blocks.astype(kind).view(np.uint8)


# Peers, with buffers of their own, reused wherever their functions allow it.


def torch_dtype(fmt: Format) -> torch.dtype | None:
    found = getattr(torch, fmt.name, None)
    return found if isinstance(found, torch.dtype) and fmt.name != "float4_e2m1fn" else None


def casts(x: Array, fmt: Format, rounding: Rounding) -> dict[str, Call]:
    """Round trips of float32, ties to even only."""
    if rounding is not Rounding.TIES_TO_EVEN:
        return {}
    found: dict[str, Call] = {}
    if dtype := torch_dtype(fmt):
        source, narrow = torch.from_numpy(x), torch.empty(x.shape, dtype=dtype)
        target = torch.empty(x.shape)
        found["torch"] = lambda: target.copy_(narrow.copy_(source))
    if kind := getattr(ml_dtypes, fmt.name, None):
        found["ml_dtypes"] = lambda: quiet(lambda: x.astype(kind).astype(np.float32))
    return found


def encodes(x: Array, fmt: Format) -> dict[str, Call]:
    found: dict[str, Call] = {}
    if dtype := torch_dtype(fmt):
        source, narrow = torch.from_numpy(x), torch.empty(x.shape, dtype=dtype)
        found["torch"] = lambda: narrow.copy_(source)
    if kind := getattr(ml_dtypes, fmt.name, None):
        found["ml_dtypes"] = lambda: quiet(lambda: x.astype(kind))
    return found


def decodes(codes: Array, fmt: Format) -> dict[str, Call]:
    found: dict[str, Call] = {}
    if dtype := torch_dtype(fmt):
        narrow, target = torch.from_numpy(codes).view(dtype), torch.empty(codes.shape)
        found["torch"] = lambda: target.copy_(narrow)
    if kind := getattr(ml_dtypes, fmt.name, None):
        found["ml_dtypes"] = lambda: codes.view(kind).astype(np.float32)
    return found


@functools.cache
def torchao() -> tuple[Any, Any] | None:
    """torchao's modules for MX and NVFP4, or None where it is not installed. Importing it warns of what it lacks."""
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return (
                importlib.import_module("torchao.prototype.mx_formats.mx_tensor"),
                importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor"),
            )
        except ModuleNotFoundError:
            return None


def quantizes(x: Array, name: str) -> dict[str, Call]:
    """torchao's, which allocate what they return; amax and the factor of the tensor are part of quantizing."""
    source, modules = torch.from_numpy(x), torchao()
    if modules is None:
        return {}
    mx, nvfp4 = modules
    if name.startswith("mxfp8_e4m3"):
        mode = mx.ScaleCalculationMode.RCEIL if name.endswith("rceil") else mx.ScaleCalculationMode.FLOOR
        return {"torchao": lambda: mx.to_mx(source, torch.float8_e4m3fn, 32, mode)}
    if name == "nvfp4_torchao":
        return {"torchao": lambda: nvfp4.nvfp4_quantize(source, 16, nvfp4.per_tensor_amax_to_scale(source.abs().max()))}
    return {}


def quiet(call: Call) -> object:
    with np.errstate(all="ignore"):
        return call()
