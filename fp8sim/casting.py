"""Arrays to numbers of a format, to codes, and back: one array, one format, no scale factor.

The public `fp8sim.cast`, `encode` and `decode` resolve a backend and end here for NumPy arrays and CPU tensors. The
loops are those of `fp8sim._core`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fp8sim import _core, codebooks, formats
from fp8sim.array_memory import (
    check_out,
    compact,
    dtype_name,
    dtype_of,
    empty_like,
    mark_as_changed,
    memory_of,
    takes_scalars,
)
from fp8sim.formats import Codebook, Format
from fp8sim.presets import Policy, check_alone, preset_policy, resolve_policy
from fp8sim.random_bits import random_keywords
from fp8sim.rounding import Conversion, Overflow, Rounding, member, resolve

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_CODES = ("uint8", "uint16", "uint32")


@takes_scalars
def cast(
    x: _Array,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    preset: str | None = None,
    out: _Array | None = None,
) -> _Array:
    """Round every element to a number of `fmt`, in the dtype of `x`: `decode(encode(x))` in one pass, bit for bit.

    Each of float64, float32, float16 and bfloat16 is rounded once. Subnormal numbers of either side, signed zeros and
    infinities follow `fmt` and `overflow`. NaN becomes the quiet NaN of its sign; in a format without NaN, the largest
    number. A number of `fmt` that the dtype of `x` lacks (65536 in float16) is rounded to it, ties to even.

    Args:
        x: [...], a NumPy array or scalar (ml_dtypes' bfloat16 included) or CPU tensor of any strides, empty and 0-d
            included.
        fmt: a format or its name. In a codebook, x takes the closest level, NaN the last one; of two equally close ones
            the even code, the larger or the smaller magnitude, as the mode says, which must be one of ties.
        rounding: a member of `Rounding` or its name in any case.
        overflow: a member of `Overflow` or its name in any case.
        seed: 64 bits; the stochastic modes need it, the others refuse it, and all that follows about random bits.
        stream: 64 bits, which of the seed's streams of random numbers (see `random_bits.stream_id`).
        offset: 64 bits, the index of the first element in the stream: a shard passes its place in the whole tensor.
        random_bits: N, the random bits per element, 1 to 32.
        preset: a name in `fp8sim.presets.PRESETS`, for what another library gives: it decides rounding, overflow, which
            number or NaN a NaN becomes, and what E8M0 does with zero and signs. A NaN is the quiet one of its code's
            sign: which code it had, `encode` says.
        out: [...], where to put the result: like `x`, any strides, `x` itself allowed.

    Returns:
        [...], of the kind and dtype of `x`, C-contiguous; `out` if given.

    Raises:
        ValueError: an unknown format, mode or preset, a policy that the format cannot represent, a preset that says
            nothing of it or stands beside what it decides, a seed that is missing or unused, a stream, an offset or
            random_bits without one, a tensor that is not on the CPU, an `out` of another shape, read-only, or
            overlapping `x` or itself.
        TypeError: `x` is no array or tensor of the four dtypes or a masked array, `out` is none of the kind and dtype
            of `x`, an integer is none.
    """
    random: dict[str, Any] = {"seed": seed, "stream": stream, "offset": offset, "random_bits": random_bits}
    conversion = _conversion(fmt, rounding, overflow, preset, random)
    drawn = random_keywords(Rounding(conversion.rounding), **random)
    dtype = dtype_of(x, "x", _FLOATS)
    source = memory_of(x, "x")
    result = empty_like(x, dtype) if out is None else out
    target = memory_of(result, "out")
    if out is not None:
        check_out(x, out, source, target)
    if isinstance(conversion, Levels):
        target[...] = _take_levels(_closest_codes(source, dtype, conversion), conversion.fmt, dtype)
    elif isinstance(conversion, Policy):
        _decode_to(target, encode_as(source, dtype, formats.parse(fmt), conversion), formats.parse(fmt), dtype)
    else:
        _run(_core.cast, source, target, (dtype, conversion), drawn)
    if out is not None:
        mark_as_changed(out)
    return result


@takes_scalars
def encode(
    x: _Array,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    preset: str | None = None,
) -> _Array:
    """The code of `fmt` that every element rounds to.

    Arguments, special values and errors as for `cast`. NaN gives the NaN code of its sign (`Format.nan_code`); in a
    format without NaN, the code of the largest number.

    Returns:
        [...], of the kind of `x`, C-contiguous, dtype `code_dtype(fmt)`: one code per element, in the low bits.
    """
    random: dict[str, Any] = {"seed": seed, "stream": stream, "offset": offset, "random_bits": random_bits}
    conversion = _conversion(fmt, rounding, overflow, preset, random)
    drawn = random_keywords(Rounding(conversion.rounding), **random)
    dtype, codes = dtype_of(x, "x", _FLOATS), code_dtype(formats.parse(fmt))
    result = empty_like(x, codes)
    source, target = memory_of(x, "x"), memory_of(result, "out")
    if isinstance(conversion, Levels):
        target[...] = _closest_codes(source, dtype, conversion)
    elif isinstance(conversion, Policy):
        target[...] = encode_as(source, dtype, formats.parse(fmt), conversion)
    else:
        _run(_core.encode, source, target, (dtype, codes, conversion), drawn)
    return result


def encode_as(source: np.ndarray[Any, Any], dtype: str, fmt: Format, policy: Policy) -> np.ndarray[Any, Any]:
    """The codes of memory of the dtype of that name under any policy: the loops' work, then what it replaces."""
    values = compact(source)
    if dtype == "bfloat16":
        dtype, values = "float32", (values.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "float16":  # which lacks the ends of replacements
        dtype, values = "float32", values.astype(np.float32)
    if policy.drops_sign:
        values = np.abs(values)
    codes = np.empty(values.shape, code_dtype(fmt))
    _core.encode(values, codes, dtype, codes.dtype.name, resolve_policy(fmt, policy))
    for low, high, code in policy.replacements:
        np.copyto(codes, code, where=(values >= low) & (values <= high), casting="unsafe")
    return codes


@takes_scalars
def decode(codes: _Array, fmt: str | Format, *, dtype: Any = "float32") -> _Array:
    """The numbers that codes of `fmt` stand for.

    Args:
        codes: [...], uint8, uint16 or uint32, one code per element, of any strides.
        fmt: a format or its name.
        dtype: float32, float64, float16 or bfloat16, by name or as a dtype of NumPy or torch. A number that it lacks is
            rounded to it, ties to even; infinity above its range.

    Returns:
        [...], of the kind of `codes`, C-contiguous. NaN codes give the quiet NaN of their sign; -0 keeps its sign.

    Raises:
        ValueError: an unknown format, a code outside it, a tensor that is not on the CPU.
        TypeError: codes of another dtype, a dtype that is none of the four.
    """
    fmt = formats.parse(fmt)
    dtype_of(codes, "codes", _CODES)
    name = dtype_name(dtype)
    if name not in _FLOATS:
        raise TypeError(f"dtype={dtype!r}: use one of {', '.join(_FLOATS)}")
    source = memory_of(codes, "codes")
    check_codes(source, fmt)
    result = empty_like(codes, name)
    _decode_to(memory_of(result, "out"), source, fmt, name)
    return result


def _decode_to(target: np.ndarray[Any, Any], codes: np.ndarray[Any, Any], fmt: Format, dtype: str) -> None:
    """Put the numbers of `codes` [...] into memory [...] of the dtype of that name."""
    if isinstance(fmt, Codebook):
        target[...] = _take_levels(codes, fmt, dtype)
        return
    conversion = resolve(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    _run(_core.decode, codes, target, (codes.dtype.name, dtype, conversion), {})


def code_dtype(fmt: Format) -> str:
    """The dtype of arrays of codes of `fmt`: "uint8", "uint16" above 8 bits, "uint32" above 16."""
    return "uint8" if fmt.bits <= 8 else "uint16" if fmt.bits <= 16 else "uint32"


# Policy.


class Levels(NamedTuple):
    """A conversion to a codebook."""

    fmt: Codebook
    rounding: Rounding


def _conversion(
    fmt: str | Format,
    rounding: Rounding | str,
    overflow: Overflow | str,
    preset: str | None,
    random: dict[str, Any],
) -> Conversion | Levels | Policy:
    """What the arguments of `cast` and `encode` come to."""
    if preset is not None:
        check_alone(preset, rounding, overflow, random)
        return preset_policy(preset, formats.parse(fmt))
    return policy_of(formats.parse(fmt), member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow"))


def policy_of(fmt: Format, rounding: Rounding, overflow: Overflow) -> Conversion | Levels:
    """What conversions to `fmt` need. ValueError if the format cannot represent the policy."""
    if not isinstance(fmt, Codebook):
        return resolve(fmt, rounding, overflow)
    codebooks.check(fmt, rounding, overflow)
    return Levels(fmt, rounding)


def loop_arguments(fmt: Format, rounding: Rounding, overflow: Overflow) -> tuple[Conversion, np.ndarray[Any, Any]]:
    """The conversion from float32 as a loop takes it that serves codebooks, too: their thresholds replace it."""
    policy = policy_of(fmt, rounding, overflow)
    if isinstance(policy, Levels):
        return _NO_CONVERSION, codebooks.thresholds(policy.fmt, policy.rounding, "float32")
    return policy, _NO_CUTS


_NO_CONVERSION = Conversion(*[0] * len(Conversion._fields))
_NO_CUTS = np.empty(0, np.float32)


# Loops on memory of any strides.


def _run(
    function: Callable[..., None],
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    arguments: tuple[Any, ...],
    random: dict[str, int],
) -> None:
    """Call `function` of `_core`, which takes compact memory."""
    result = target if compact(target) is target else np.empty(target.shape, target.dtype.newbyteorder("="))
    function(compact(source), result, *arguments, **random)
    if result is not target:
        target[...] = result


# Codebooks.


def _closest_codes(source: np.ndarray[Any, Any], dtype: str, levels: Levels) -> np.ndarray[Any, Any]:
    """The codes [...] of memory of the dtype of that name."""
    codes = np.empty(source.shape, np.uint8)
    cuts = codebooks.thresholds(levels.fmt, levels.rounding, "float64" if dtype == "float64" else "float32")
    _core.encode_levels(compact(source), codes, dtype, cuts)
    return codes


def _take_levels(codes: np.ndarray[Any, Any], fmt: Codebook, dtype: str) -> np.ndarray[Any, Any]:
    """The levels of `codes` [...] as memory of the dtype of that name, rounded once, infinity above its range."""
    levels = np.array(fmt.levels)
    patterns = levels if dtype == "float64" else encode(levels, dtype, overflow=Overflow.INFINITY)
    table = patterns if dtype == "bfloat16" else patterns.view(dtype)
    return np.take(table, codes, mode="clip")  # codes were checked


def check_codes(codes: np.ndarray[Any, Any], fmt: Format) -> None:
    """ValueError if one of `codes` [...] has bits that `fmt` has not."""
    if codes.size == 0 or 8 * codes.itemsize <= fmt.bits:
        return
    largest = int(codes.max())
    if largest >> fmt.bits:
        raise ValueError(f"codes contain {largest:#x}: the codes of {fmt} are 0 to {(1 << fmt.bits) - 1:#x}")


def check_code_tensor(codes: torch.Tensor, fmt: Format) -> None:
    """As `check_codes`, for a tensor on any device, which is waited for if the dtype has more bits than `fmt`."""
    import torch

    width = 8 * codes.element_size()
    if width <= fmt.bits:
        return
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[codes.element_size()]  # those that torch computes with
    beyond = (-1 << fmt.bits) if signed != torch.uint8 else 0xFF & -1 << fmt.bits
    outside = codes.view(signed) & beyond != 0
    if bool(outside.any()):
        first = int(codes.flatten()[int(outside.flatten().nonzero()[0])])
        raise ValueError(f"codes contain {first:#x}: the codes of {fmt} are 0 to {(1 << fmt.bits) - 1:#x}")
