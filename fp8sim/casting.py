"""Arrays to numbers of a format, to codes, and back: one array, one format, no scale factor.

The public `fp8sim.cast`, `encode` and `decode` resolve a backend and end here for NumPy arrays and CPU tensors. The
loops are those of `fp8sim._core`; this module finds the memory behind an array, checks it, and draws the policy.
"""

from __future__ import annotations

import hashlib
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fp8sim import _core, codebooks, formats
from fp8sim.formats import Codebook, Format
from fp8sim.rounding import (
    Conversion,
    Overflow,
    Policy,
    Rounding,
    member,
    preset_policy,
    resolve,
    resolve_policy,
)

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_CODES = ("uint8", "uint16", "uint32")


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
    out: _Array | None = None,
) -> _Array:
    """Round every element to a number of `fmt`, in the dtype of `x`: `decode(encode(x))` in one pass, bit for bit.

    Each of float64, float32, float16 and bfloat16 is rounded once. Subnormal numbers of either side, signed zeros and
    infinities follow `fmt` and `overflow`. NaN becomes the quiet NaN of its sign; in a format without NaN, the largest
    number. A number of `fmt` that the dtype of `x` lacks (65536 in float16) is rounded to it, ties to even.

    Args:
        x: [...], a NumPy array (ml_dtypes' bfloat16 included) or CPU tensor of any strides, empty and 0-d included.
        fmt: a format or its name. In a codebook, x takes the closest level, NaN the last one; of two equally close ones
            the even code, the larger or the smaller magnitude, as the mode says, which must be one of ties.
        rounding: a member of `Rounding` or its name in any case.
        overflow: a member of `Overflow` or its name in any case.
        seed: 64 bits; the stochastic modes need it, the others refuse it.
        stream: 64 bits, which of the seed's streams of random numbers (see `stream_id`).
        offset: 64 bits, the index of the first element in the stream: a shard passes its place in the whole tensor.
        random_bits: N, the random bits per element, 1 to 32.
        out: [...], where to put the result: like `x`, any strides, `x` itself allowed.

    Returns:
        [...], of the kind and dtype of `x`, C-contiguous; `out` if given.

    Raises:
        ValueError: an unknown format or mode, a policy that the format cannot represent, a seed that is missing or
            unused, a tensor that is not on the CPU, an `out` of another shape, read-only, or overlapping `x` or itself.
        TypeError: `x` is no array or tensor of the four dtypes, `out` is none of the kind and dtype of `x`.
    """
    conversion = _conversion(fmt, rounding, overflow)
    random = random_keywords(Rounding(conversion.rounding), seed, stream, offset, random_bits)
    dtype = _dtype_of(x, "x", _FLOATS)
    source = _memory(x, "x")
    result = _empty(x, dtype) if out is None else out
    target = _memory(result, "out")
    if out is not None:
        _check_out(x, out, source, target)
    if isinstance(conversion, Levels):
        target[...] = _take_levels(_closest_codes(source, dtype, conversion), conversion.fmt, dtype)
    else:
        _run(_core.cast, source, target, (dtype, conversion), random)
    if out is not None:
        _mark_as_changed(out)
    return result


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

    Args:
        preset: a name in `fp8sim.rounding.PRESETS`, for the codes of another library: it decides rounding, overflow,
            NaN codes and what E8M0 does with zero and signs.

    Returns:
        [...], of the kind of `x`, C-contiguous, dtype `code_dtype(fmt)`: one code per element, in the low bits.

    Raises:
        ValueError: an unknown preset, one that says nothing of `fmt`, or one beside `rounding`, `overflow` or a seed.
    """
    if preset is not None:
        check_alone(preset, rounding, overflow, seed)
        return _encode_as(x, formats.parse(fmt), preset_policy(preset, formats.parse(fmt)))
    conversion = _conversion(fmt, rounding, overflow)
    random = random_keywords(Rounding(conversion.rounding), seed, stream, offset, random_bits)
    dtype, codes = _dtype_of(x, "x", _FLOATS), code_dtype(formats.parse(fmt))
    result = _empty(x, codes)
    source, target = _memory(x, "x"), _memory(result, "out")
    if isinstance(conversion, Levels):
        target[...] = _closest_codes(source, dtype, conversion)
    else:
        _run(_core.encode, source, target, (dtype, codes, conversion), random)
    return result


def _encode_as(x: _Array, fmt: Format, policy: Policy) -> _Array:
    """The codes of `x` under any policy: the loops' work, then what it replaces."""
    dtype, codes = _dtype_of(x, "x", _FLOATS), code_dtype(fmt)
    values = _compact(_memory(x, "x"))
    if dtype == "bfloat16":
        dtype, values = "float32", (values.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "float16":  # which lacks the ends of replacements
        dtype, values = "float32", values.astype(np.float32)
    if policy.drops_sign:
        values = np.abs(values)
    result = _empty(x, codes)
    target = _memory(result, "out")
    _run(_core.encode, values, target, (dtype, codes, resolve_policy(fmt, policy)), {})
    for low, high, code in policy.replacements:
        np.copyto(target, code, where=(values >= low) & (values <= high), casting="unsafe")
    return result


_PTX_RS = {
    "float16": ((16, 0), 13),
    "bfloat16": ((16, 0), 16),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn"), ((16, 16, 0, 0), 16)),
    "float4_e2m1fn": ((24, 8, 16, 0), 8),
}
"""Of `cvt.rs`: the lowest bit, in the word of random bits, of each operand's share, and how many bits it has."""


def encode_ptx_rs(x: np.ndarray[Any, Any], fmt: str | Format, rbits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The codes of PTX `cvt.rs`, as far as the PTX ISA documents it; no hardware has confirmed it here.

    Away from zero iff the random bits, added to the discarded bits, carry: P3109's StochasticA with 13 bits (float16),
    16 bits (bfloat16, FP8, FP6) or 8 bits (FP4) of `rbits`. In FP8 and FP6 a and b share the upper half, and e and f
    the lower one; in FP4 a, b, e, f take bits 24-31, 8-15, 16-23, 0-7. What is not documented and assumed here: bits
    discarded below those are dropped, and subnormal results round at their own spacing. FP8, FP6 and FP4 saturate; an
    infinity or too large a number becomes infinity in float16 and bfloat16. NaN as in the preset "cvt.rn".

    Args:
        x: [..., k], float32: the operands in the instruction's order, (a, b) of 16-bit formats, else (a, b, e, f).
        fmt: float16, bfloat16, float8_e4m3fn, float8_e5m2, float6_e2m3fn, float6_e3m2fn, float4_e2m1fn or an alias.
        rbits: [...], uint32, the word of random bits of each instruction.

    Returns:
        [..., k], the codes in the order of `x`, dtype `code_dtype(fmt)`. In the register, a is in the highest bits.

    Raises:
        ValueError: another format, shapes that do not fit.
        TypeError: other dtypes.
    """
    fmt = formats.parse(fmt)
    if fmt.name not in _PTX_RS:
        raise ValueError(f"fmt={fmt.name!r}: cvt.rs converts to {', '.join(_PTX_RS)}")
    places, bits = _PTX_RS[fmt.name]
    _dtype_of(x, "x", ("float32",)), _dtype_of(rbits, "rbits", ("uint32",))
    if x.shape != (*rbits.shape, len(places)):
        raise ValueError(f"x has shape {x.shape}: expected that of rbits and {len(places)}, {rbits.shape}")
    random = (rbits[..., np.newaxis] >> np.array(places, np.uint32)) & np.uint32((1 << bits) - 1)
    policy = preset_policy("cvt.rn" if fmt.bits == 16 else "cvt.rn.satfinite", fmt)
    down = _encode_as(x, fmt, policy._replace(rounding=Rounding.TOWARD_ZERO))
    magnitude = down & (fmt.sign_bit - 1)
    below = np.minimum(magnitude, fmt.max_code - 1)
    number, low, high = (decode(code, fmt, dtype="float64") for code in (magnitude, below, below + 1))
    discarded = (np.where(np.isfinite(x), np.abs(x), 0).astype(np.float64) - number) / (high - low)
    away = np.floor(discarded * 2.0**bits) + random >= 2**bits
    may_go = magnitude <= fmt.max_code - (policy.overflow is Overflow.SATURATE)
    codes: np.ndarray[Any, Any] = down + (away & may_go).astype(down.dtype)
    return codes


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
    code_name, name = _dtype_of(codes, "codes", _CODES), dtype_name(dtype)
    if name not in _FLOATS:
        raise TypeError(f"dtype={dtype!r}: use one of {', '.join(_FLOATS)}")
    source = _memory(codes, "codes")
    _check_codes(source, fmt)
    result = _empty(codes, name)
    if isinstance(fmt, Codebook):
        _memory(result, "out")[...] = _take_levels(source, fmt, name)
        return result
    conversion = resolve(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    _run(_core.decode, source, _memory(result, "out"), (code_name, name, conversion), {})
    return result


def code_dtype(fmt: Format) -> str:
    """The dtype of arrays of codes of `fmt`: "uint8", "uint16" above 8 bits, "uint32" above 16."""
    return "uint8" if fmt.bits <= 8 else "uint16" if fmt.bits <= 16 else "uint32"


def stream_id(name: str, gemm: str, operand: str, step: int) -> int:
    """The stream of random numbers of one operand at one step: 64 bits.

    The first 8 bytes, little-endian, of BLAKE2b over the UTF-8 string "name|gemm|operand|step" with a decimal step.
    ValueError if a part contains "|", which would let two operands share a stream.
    """
    parts = [name, gemm, operand, str(operator.index(step))]
    for part in parts:
        if "|" in part:
            raise ValueError(f'{part!r} contains "|", which separates the parts of a stream: rename it')
    return int.from_bytes(hashlib.blake2b("|".join(parts).encode()).digest()[:8], "little")


# Policy.


class Levels(NamedTuple):
    """A conversion to a codebook."""

    fmt: Codebook
    rounding: Rounding


def check_alone(preset: str, rounding: Rounding | str, overflow: Overflow | str, seed: object) -> None:
    """ValueError unless all that a preset decides was left to it."""
    mode, limit = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    if (mode, limit, seed) != (Rounding.TIES_TO_EVEN, Overflow.SATURATE, None):
        raise ValueError(f"preset={preset!r} decides rounding and overflow, and is not stochastic: drop the others")


def _conversion(fmt: str | Format, rounding: Rounding | str, overflow: Overflow | str) -> Conversion | Levels:
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


def random_keywords(
    mode: Rounding, seed: int | None, stream: int = 0, offset: int = 0, random_bits: int = 32
) -> dict[str, int]:
    """The keywords of `_core` that say which random bits to use."""
    if not 1 <= operator.index(random_bits) <= 32:
        raise ValueError(f"random_bits={random_bits!r}: expected 1 to 32")
    if not mode.is_stochastic:
        if seed is not None:
            raise ValueError(
                f"seed={seed!r}: rounding={mode.name} takes no random bits; drop the seed or use STOCHASTIC"
            )
        return {}
    if seed is None:
        raise ValueError(f"rounding={mode.name} needs random bits: pass seed=, an integer of 64 bits")
    words = {"seed": seed, "stream": stream, "offset": offset}
    return {name: word64(name, value) for name, value in words.items()} | {"random_bits": operator.index(random_bits)}


def word64(argument: str, value: int) -> int:
    """`value` as an unsigned integer of 64 bits; negative ones stand for their two's complement."""
    word = operator.index(value)
    if not -(2**63) <= word < 2**64:
        raise ValueError(f"{argument}={value!r}: expected an integer of 64 bits")
    return word % 2**64


def signed64(argument: str, value: int) -> int:
    """The 64-bit pattern of `value` as a signed integer."""
    return (word64(argument, value) + 2**63) % 2**64 - 2**63


# The memory of arrays and tensors.


def _is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor; if torch was never imported, it cannot be."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def dtype_name(dtype: Any) -> str:
    """The name that NumPy, ml_dtypes and torch share."""
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    name: str = np.dtype(dtype).name
    return name


def _dtype_of(x: Any, argument: str, allowed: tuple[str, ...]) -> str:
    """The name of the dtype of `x`, which is one of `allowed`."""
    if not isinstance(x, np.ndarray) and not _is_tensor(x):
        kind = type(x).__name__
        raise TypeError(f"{argument} is a {kind}: expected a NumPy array (np.asarray makes one) or a torch tensor")
    name = dtype_name(x.dtype)
    if name not in allowed:
        raise TypeError(f"{argument} has dtype {name}: expected {', '.join(allowed)}; convert it first")
    return name


def _memory(x: Any, argument: str) -> np.ndarray[Any, Any]:
    """The memory of an array or tensor as a NumPy array of the same shape and strides; bfloat16 as uint16."""
    if isinstance(x, np.ndarray):
        return x.view(np.uint16) if x.dtype.name == "bfloat16" else x.view(np.ndarray)
    return _tensor_memory(x, argument)


def _tensor_memory(x: torch.Tensor, argument: str) -> np.ndarray[Any, Any]:
    if x.device.type != "cpu":
        raise ValueError(
            f"{argument} is on {x.device}: fp8sim.casting takes CPU tensors; call fp8sim.cast, or {argument}.cpu()"
        )
    if str(x.layout) != "torch.strided":
        raise TypeError(f"{argument} has layout {x.layout}: expected torch.strided; use {argument}.to_dense()")
    if argument != "out":
        x = x.resolve_neg()
    torch = sys.modules["torch"]
    x = x.detach()
    memory: np.ndarray[Any, Any] = (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
    return memory


def _empty(like: _Array, dtype: str) -> _Array:
    """A new array of the kind and shape of `like`."""
    if not isinstance(like, np.ndarray):
        torch = sys.modules["torch"]
        return torch.empty(like.shape, dtype=getattr(torch, dtype))  # type: ignore[no-any-return]
    if dtype == "bfloat16":
        import ml_dtypes

        return np.empty(like.shape, ml_dtypes.bfloat16)
    return np.empty(like.shape, dtype)


def _compact(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`x` as the loops take it: C-contiguous, aligned, in native byte order; a copy only if it is not."""
    if x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative:
        return x
    return x.astype(x.dtype.newbyteorder("="), order="C")


def _run(
    function: Callable[..., None],
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    arguments: tuple[Any, ...],
    random: dict[str, int],
) -> None:
    """Call `function` of `_core` on memory of any strides."""
    result = target if _compact(target) is target else np.empty(target.shape, target.dtype.newbyteorder("="))
    function(_compact(source), result, *arguments, **random)
    if result is not target:
        target[...] = result


# Codebooks.


def _closest_codes(source: np.ndarray[Any, Any], dtype: str, levels: Levels) -> np.ndarray[Any, Any]:
    """The codes [...] of memory of the dtype of that name."""
    codes = np.empty(source.shape, np.uint8)
    cuts = codebooks.thresholds(levels.fmt, levels.rounding, "float64" if dtype == "float64" else "float32")
    _core.encode_levels(_compact(source), codes, dtype, cuts)
    return codes


def _take_levels(codes: np.ndarray[Any, Any], fmt: Codebook, dtype: str) -> np.ndarray[Any, Any]:
    """The levels of `codes` [...] as memory of the dtype of that name, rounded once, infinity above its range."""
    levels = np.array(fmt.levels)
    patterns = levels if dtype == "float64" else encode(levels, dtype, overflow=Overflow.INFINITY)
    table = patterns if dtype == "bfloat16" else patterns.view(dtype)
    return np.take(table, codes, mode="clip")  # codes were checked


# What may be written to.


def _check_out(x: Any, out: Any, source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> None:
    if _is_tensor(x) != _is_tensor(out):
        raise TypeError(f"out is a {type(out).__name__} and x a {type(x).__name__}: pass an out of the kind of x")
    if out.dtype != x.dtype:
        raise TypeError(f"out has dtype {out.dtype}: expected that of x, {x.dtype}")
    if target.shape != source.shape:
        raise ValueError(f"out has shape {target.shape}: expected that of x, {source.shape}")
    if not target.flags.writeable:
        raise ValueError("out is read-only: pass a writeable array")
    if _overlaps_itself(target):
        raise ValueError("out has elements that share memory (a broadcast or expanded array): pass a copy of it")
    if not _is_same(source, target) and _may_overlap(source, target):
        raise ValueError("out overlaps x without being x: pass x itself, or memory of its own")


def _check_codes(codes: np.ndarray[Any, Any], fmt: Format) -> None:
    if codes.size == 0 or 8 * codes.itemsize <= fmt.bits:
        return
    largest = int(codes.max())
    if largest >> fmt.bits:
        raise ValueError(f"codes contain {largest:#x}: the codes of {fmt} are 0 to {(1 << fmt.bits) - 1:#x}")


def _steps(x: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """(stride, length) of every dimension in which `x` moves."""
    return [(stride, length) for stride, length in zip(x.strides, x.shape, strict=True) if length > 1]


def _is_same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.ctypes.data == b.ctypes.data and _steps(a) == _steps(b)


def _overlaps_itself(x: np.ndarray[Any, Any]) -> bool:
    """Whether two elements may share memory: each dimension must step over all that the smaller steps cover."""
    if x.size == 0:
        return False
    covered = x.itemsize
    for stride, length in sorted((abs(stride), length) for stride, length in _steps(x)):
        if stride < covered:
            return True
        covered += stride * (length - 1)
    return False


def _may_overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays share memory; True where that is hard to find out."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # the stubs know two values of it
    except np.exceptions.TooHardError:
        return True


def _mark_as_changed(out: Any) -> None:
    """Tell autograd that a tensor was written to, so that a graph which needs the old values says so."""
    if _is_tensor(out):
        sys.modules["torch"].autograd.graph.increment_version(out)
