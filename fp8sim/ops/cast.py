"""`cast`, `encode` and `decode` for NumPy arrays and torch tensors: registered, differentiable, on any backend."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from fp8sim import backends, casting, formats
from fp8sim.casting import check_alone
from fp8sim.formats import Format
from fp8sim.ops.library import constant_result, register
from fp8sim.rounding import Overflow, Rounding, member, preset_policy

_Array = TypeVar("_Array", "np.ndarray[Any, Any]", torch.Tensor)


def _run(
    op: str,
    x: torch.Tensor,
    policy: str,
    seed: torch.Tensor | None,
    stream: int,
    offset: int,
    random_bits: int,
    on: str,
) -> torch.Tensor:
    """Call the implementation of `op` on backend `on`; 64-bit patterns arrive as int64."""
    fmt, options = _parse(policy)
    if seed is not None:
        options |= {"seed": int(seed) % 2**64, "stream": stream % 2**64, "offset": offset % 2**64}
        options["random_bits"] = random_bits
    result: torch.Tensor = backends.row(op, on).load()(x, fmt, **options)
    return result


def _parse(policy: str) -> tuple[str, dict[str, Any]]:
    """The format and the options of "format:rounding:overflow" or "format:preset"."""
    fmt, *names = policy.split(":")
    return fmt, dict(zip(("rounding", "overflow") if len(names) == 2 else ("preset",), names, strict=True))


def _cast_impl(x: torch.Tensor, policy: str, seed: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    return _run("cast", x, policy, seed, *rest)


def _encode_impl(x: torch.Tensor, policy: str, seed: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    return _run("encode", x, policy, seed, *rest)


def _decode_impl(codes: torch.Tensor, fmt: str, dtype: torch.dtype, backend: str) -> torch.Tensor:
    result: torch.Tensor = backends.row("decode", backend).load()(codes, fmt, dtype=dtype)
    return result


def _cast_fake(x: torch.Tensor, *policy: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _encode_fake(x: torch.Tensor, policy: str, *rest: Any) -> torch.Tensor:
    dtype = casting.code_dtype(formats.parse(policy.split(":")[0]))
    return torch.empty(x.shape, dtype=getattr(torch, dtype), device=x.device)


def _decode_fake(codes: torch.Tensor, fmt: str, dtype: torch.dtype, backend: str) -> torch.Tensor:
    return torch.empty(codes.shape, dtype=dtype, device=codes.device)


_POLICY = "str policy, Tensor? seed, int stream, int offset, int random_bits, str backend"
_cast_op = register(f"cast(Tensor x, {_POLICY}) -> Tensor", _cast_impl, _cast_fake)
_encode_op = register(f"encode(Tensor x, {_POLICY}) -> Tensor", _encode_impl, _encode_fake)
_decode_op = register(
    "decode(Tensor codes, str format, ScalarType dtype, str backend) -> Tensor", _decode_impl, _decode_fake
)


class _Cast(torch.autograd.Function):
    """The registered cast with a straight-through gradient, itself cast if `grad_policy` says so."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, arguments: tuple[Any, ...], grad_policy: str | None) -> torch.Tensor:
        ctx.grad_policy, ctx.backend = grad_policy, arguments[-1]
        result: torch.Tensor = _cast_op(x, *arguments)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.grad_policy is not None:
            grad = _cast_op(grad, ctx.grad_policy, None, 0, 0, 0, ctx.backend)
        return grad, None, None


@constant_result
def _policy(fmt: str | Format, rounding: Rounding | str, overflow: Overflow | str) -> str:
    """The policy as one string. ValueError for a format, a mode or a combination that does not exist."""
    parsed = formats.parse(fmt)
    mode, limit = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    casting.policy_of(parsed, mode, limit)
    return f"{parsed}:{mode.name}:{limit.name}"


@constant_result
def _preset(fmt: str | Format, name: str) -> str:
    """The policy of a preset as one string. ValueError for a preset that does not exist or does not know the format."""
    parsed = formats.parse(fmt)
    preset_policy(name, parsed)
    return f"{parsed}:{name}"


def _arguments(
    op: str, x: torch.Tensor, policy: str, seed: int | torch.Tensor | None, stream: int, offset: int, random_bits: int
) -> tuple[Any, ...]:
    """The arguments of the registered `op` after `x`: the seed as a tensor, 64-bit patterns as int64."""
    if seed is not None and not isinstance(seed, torch.Tensor):
        seed = torch.tensor(casting.signed64("seed", seed))
    backend = backends.select(op, x.device.type)
    return (policy, seed, casting.signed64("stream", stream), casting.signed64("offset", offset), random_bits, backend)


def cast(
    x: _Array,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | torch.Tensor | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    grad_format: str | Format | None = None,
    out: _Array | None = None,
) -> _Array:
    """Round every element to a number of `fmt`, in the dtype of `x`: `decode(encode(x))` in one pass.

    Each of float64, float32, float16 and bfloat16 is rounded once. Subnormal numbers of either side, signed zeros and
    infinities follow `fmt` and `overflow`; NaN stays NaN, or becomes the largest number in a format without NaN.
    The gradient is straight-through: it passes unchanged, or cast to `grad_format`.

    Args:
        x: [...], a NumPy array or torch tensor.
        fmt: a format or its name; its name inside a function that torch before 2.13 compiles.
        rounding, overflow: members of `Rounding` and `Overflow` or their names.
        seed: 64 bits, for stochastic rounding; an int64 tensor does too.
        stream, offset: 64 bits each: which random numbers, and the index of the first element among them.
        random_bits: random bits per element, 1 to 32.
        grad_format: format of the gradient; ties to even, SATURATE.
        out: [...], where to put the result, `x` itself allowed; refused when a gradient is needed.

    Returns:
        [...], of the kind and dtype of `x`; `out` if given.

    Raises:
        ValueError: an unknown format or mode, a policy that the format cannot represent, a seed that is missing or
            unused, an `out` that does not fit.
        TypeError: an array or dtype that cannot be cast.
    """
    random: dict[str, Any] = {"seed": seed, "stream": stream, "offset": offset, "random_bits": random_bits}
    if not isinstance(x, torch.Tensor):
        if grad_format is not None:
            raise ValueError("grad_format is for torch tensors: NumPy arrays have no gradient")
        return casting.cast(x, fmt, rounding=rounding, overflow=overflow, out=out, **random)
    policy = _policy(fmt, rounding, overflow)
    if out is not None:
        return _cast_into(x, policy, out, random)
    grad_policy = None if grad_format is None else _policy(grad_format, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    result: torch.Tensor = _Cast.apply(x, _arguments("cast", x, policy, **random), grad_policy)  # type: ignore[no-untyped-call]
    return result


def _cast_into(x: torch.Tensor, policy: str, out: torch.Tensor, random: dict[str, Any]) -> torch.Tensor:
    """`cast` with `out=`, which records no gradient."""
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("out= is refused when a gradient is needed: drop it, or call under torch.no_grad()")
    fmt, options = _parse(policy)
    load = backends.row("cast", backends.select("cast", x.device.type)).load
    result: torch.Tensor = load()(x, fmt, out=out, **options, **random)
    return result


def encode(
    x: _Array,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | torch.Tensor | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    preset: str | None = None,
) -> _Array:
    """The code of `fmt` that every element rounds to.

    Arguments, special values and errors as for `cast`.

    Args:
        preset: a name in `fp8sim.rounding.PRESETS` ("torch", "ml_dtypes", "cvt.rn.satfinite", ...), for the codes of
            another library, bit for bit; it decides rounding and overflow. The simulator alone takes it.

    Returns:
        [...], uint8; uint16 for formats above 8 bits, uint32 above 16. One code per element, in the low bits.

    Raises:
        ValueError: an unknown preset, one that says nothing of `fmt`, one beside `rounding`, `overflow` or a seed, or
            one on another backend than the simulator.
    """
    random: dict[str, Any] = {"seed": seed, "stream": stream, "offset": offset, "random_bits": random_bits}
    if not isinstance(x, torch.Tensor):
        return casting.encode(x, fmt, rounding=rounding, overflow=overflow, preset=preset, **random)
    if preset is None:
        policy = _policy(fmt, rounding, overflow)
    else:
        check_alone(preset, rounding, overflow, seed)
        policy = _preset(fmt, preset)
    arguments = _arguments("encode", x, policy, **random)
    if preset is not None and arguments[-1] != "simulate":
        raise ValueError(
            f"preset={preset!r} needs the simulator, and this would run on {arguments[-1]!r}: use a CPU tensor, and "
            f"use_backend('simulate')"
        )
    result: torch.Tensor = _encode_op(x.detach(), *arguments)
    return result


def decode(codes: _Array, fmt: str | Format, *, dtype: Any = None) -> _Array:
    """The numbers that codes of `fmt` stand for.

    Args:
        codes: [...], unsigned integers as `encode` returns them.
        fmt: a format or its name.
        dtype: float32 (default), float64, float16 or bfloat16; a number it lacks is rounded to nearest, ties to even.

    Returns:
        [...], of the kind of `codes`. NaN codes give the quiet NaN of their sign.

    Raises:
        ValueError: an unknown format, or a code outside it.
        TypeError: codes that are not unsigned integers, or a dtype that is not a float.
    """
    if not isinstance(codes, torch.Tensor):
        return casting.decode(codes, fmt, dtype=np.float32 if dtype is None else dtype)
    backend = backends.select("decode", codes.device.type)
    name = "float32" if dtype is None else casting.dtype_name(dtype)
    result: torch.Tensor = _decode_op(codes, str(formats.parse(fmt)), getattr(torch, name), backend)
    return result
