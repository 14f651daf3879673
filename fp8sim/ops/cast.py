"""`cast`, `encode` and `decode` for NumPy arrays and torch tensors: registered, differentiable, on any backend."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from fp8sim import array_memory, backends, casting, formats, presets
from fp8sim.arguments import FLOATING, check_tensor_of, names
from fp8sim.derivatives import differentiable_once
from fp8sim.formats import Format
from fp8sim.ops.library import constant_result, register
from fp8sim.random_bits import check, signed64
from fp8sim.rounding import Overflow, Rounding, member

_CODES = (torch.uint8, torch.uint16, torch.uint32)

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
    options |= random_options(seed, stream, offset, random_bits)
    result: torch.Tensor = backends.row(op, on).load()(x, fmt, **options)
    return result


def random_options(seed: torch.Tensor | None, stream: int, offset: int, random_bits: int) -> dict[str, int]:
    """The keywords that an implementation takes; none without a seed."""
    if seed is None:
        return {}
    words = {"seed": int(seed) % 2**64, "stream": stream % 2**64, "offset": offset % 2**64}
    return words | {"random_bits": random_bits}


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
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad if ctx.grad_policy is None else _cast_gradient(ctx, grad), None, None


@differentiable_once
def _cast_gradient(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _cast_op(grad, ctx.grad_policy, None, 0, 0, 0, ctx.backend)
    return result


class _Random(NamedTuple):
    """The arguments that say which random bits to draw, as given."""

    seed: int | torch.Tensor | None = None
    stream: int = 0
    offset: int = 0
    random_bits: int = 32


@constant_result
def format_text(fmt: str | Format) -> str:
    """The format's one canonical name. ValueError for one that does not exist."""
    return str(formats.parse(fmt))


@constant_result
def policy_text(fmt: str | Format, rounding: Rounding | str, overflow: Overflow | str) -> tuple[str, Rounding]:
    """The policy as one string, and its mode. ValueError for a format, mode or combination that does not exist."""
    parsed = formats.parse(fmt)
    mode, limit = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    casting.policy_of(parsed, mode, limit)
    return f"{parsed}:{mode.name}:{limit.name}", mode


@constant_result
def _preset(fmt: str | Format, name: str, rounding: Rounding | str, overflow: Overflow | str) -> str:
    """The policy of a preset as one string. ValueError for one that does not exist, know the format, or stand alone."""
    parsed = formats.parse(fmt)
    presets.preset_policy(name, parsed)
    presets.check_alone(name, rounding, overflow, {})
    return f"{parsed}:{name}"


@constant_result
def _grad_policy(fmt: str | Format) -> str:
    """The policy of gradients. Errors name `grad_format`."""
    return policy_text(formats.parse(fmt, "grad_format"), Rounding.TIES_TO_EVEN, Overflow.SATURATE)[0]


def _arguments(
    op: str,
    x: torch.Tensor,
    fmt: str | Format,
    rounding: Rounding | str,
    overflow: Overflow | str,
    preset: str | None,
    random: _Random,
) -> tuple[Any, ...]:
    """The arguments of the registered `op` after `x`: the seed as a tensor, 64-bit patterns as int64."""
    check_tensor_of("x", x)
    backend = backends.select(op, x.device.type)
    if preset is None:
        policy, mode = policy_text(fmt, rounding, overflow)
        return (policy, *random_arguments(mode, *random), backend)
    else:
        policy = _preset(fmt, preset, rounding, overflow)
        presets.check_alone(preset, Rounding.TIES_TO_EVEN, Overflow.SATURATE, random._asdict())
        if backend != "simulate":
            raise ValueError(
                f"preset={preset!r} needs the simulator, and this would run on {backend!r}: use a CPU tensor, and "
                f"use_backend('simulate')"
            )
    return (policy, None, 0, 0, random.random_bits, backend)


def random_arguments(
    mode: Rounding, seed: int | torch.Tensor | None, stream: int, offset: int, random_bits: int
) -> tuple[torch.Tensor | None, int, int, int]:
    """Which random bits a registered op draws: the seed as a tensor, 64-bit patterns as int64. Raises as `check`."""
    check(mode, seed, stream, offset, random_bits)
    return _seed_tensor(seed), signed64("stream", stream), signed64("offset", offset), random_bits


def _seed_tensor(seed: int | torch.Tensor | None) -> torch.Tensor | None:
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"seed has dtype {seed.dtype} and {seed.numel()} elements: expected one int64, or an int")
        return seed
    return None if seed is None else torch.tensor(signed64("seed", seed))


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
    preset: str | None = None,
    grad_format: str | Format | None = None,
    out: _Array | None = None,
) -> _Array:
    """Round every element to a number of `fmt`, in the dtype of `x`: `decode(encode(x))` in one pass.

    Each of float64, float32, float16 and bfloat16 is rounded once. Subnormal numbers of either side, signed zeros and
    infinities follow `fmt` and `overflow`, which says what a format without infinities does; NaN stays NaN, or becomes
    the largest number in a format without NaN.
    The gradient is straight-through: it passes unchanged, or cast to `grad_format`.

    Args:
        x: [...], a NumPy array or scalar, or a torch tensor.
        fmt: a format or its name; its name inside a function that torch before 2.13 compiles.
        rounding, overflow: members of `Rounding` and `Overflow` or their names. `Overflow.INFINITY` makes NaN of too
            large numbers in a format without infinities (E4M3), the largest number in a P3109 finite domain, and is
            refused by a format that has neither infinity nor NaN (FP6, FP4).
        seed: 64 bits, for stochastic rounding; an int64 tensor does too.
        stream, offset: 64 bits each: which random numbers, and the index of the first element among them.
        random_bits: random bits per element, 1 to 32.
        preset: a name in `fp8sim.presets.PRESETS` ("torch", "ml_dtypes", "cvt.rn.satfinite", ...), for the numbers that
            another library gives, to which it converts and back; it decides rounding, overflow, and which NaN or number
            a NaN becomes. The simulator alone takes it.
        grad_format: format of the gradient; ties to even, SATURATE.
        out: [...], where to put the result, `x` itself allowed; refused when a gradient is needed.

    Returns:
        [...], of the kind and dtype of `x`; `out` if given.

    Raises:
        ValueError: an unknown format, mode or preset, a policy that the format cannot represent, a preset that says
            nothing of `fmt`, stands beside what it decides or on another backend than the simulator, a seed that is
            missing or unused, stream, offset or random_bits without one, an `out` that does not fit.
        TypeError: an array or dtype that cannot be cast, a masked array, a seed or the like that is no integer.
    """
    random = _Random(seed, stream, offset, random_bits)
    if not isinstance(x, torch.Tensor):
        if grad_format is not None and isinstance(x, np.ndarray | np.generic):
            raise ValueError("grad_format is for torch tensors, and x is of NumPy: its arrays have no gradient")
        options: dict[str, Any] = {"preset": preset, "out": out, **random._asdict()}
        return casting.cast(x, fmt, rounding=rounding, overflow=overflow, **options)
    arguments = _arguments("cast", x, fmt, rounding, overflow, preset, random)
    if out is not None:
        return _cast_into(x, arguments, out, random)
    grad_policy = None if grad_format is None else _grad_policy(grad_format)
    result: torch.Tensor = _Cast.apply(x, arguments, grad_policy)  # type: ignore[no-untyped-call]
    return result


def _cast_into(x: torch.Tensor, arguments: tuple[Any, ...], out: torch.Tensor, random: _Random) -> torch.Tensor:
    """`cast` with `out=`, which records no gradient."""
    if not isinstance(out, torch.Tensor) or out.dtype != x.dtype:
        got = out.dtype if isinstance(out, torch.Tensor) else type(out).__name__
        raise TypeError(f"out is {got}: expected a torch tensor of x's dtype, {x.dtype}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("out= is refused when a gradient is needed: drop it, or call under torch.no_grad()")
    fmt, options = _parse(arguments[0])
    load = backends.row("cast", arguments[-1]).load
    result: torch.Tensor = load()(x, fmt, out=out, **options, **random._asdict())
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

    Arguments, special values and errors as for `cast`; a preset gives the codes of another library bit for bit, those
    of NaN included.

    Returns:
        [...], uint8; uint16 for formats above 8 bits, uint32 above 16. One code per element, in the low bits.
    """
    random = _Random(seed, stream, offset, random_bits)
    if not isinstance(x, torch.Tensor):
        options: dict[str, Any] = random._asdict()
        return casting.encode(x, fmt, rounding=rounding, overflow=overflow, preset=preset, **options)
    arguments = _arguments("encode", x, fmt, rounding, overflow, preset, random)
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
    check_tensor_of("codes", codes, _CODES)
    backend = backends.select("decode", codes.device.type)
    name = "float32" if dtype is None else _float_name(dtype)
    result: torch.Tensor = _decode_op(codes, format_text(fmt), getattr(torch, name), backend)
    return result


def _float_name(dtype: Any) -> str:
    """The name of one of four dtypes, given as any library has it. TypeError for any other."""
    try:
        name = array_memory.dtype_name(dtype)
    except TypeError:
        name = ""
    if getattr(torch, name, None) not in FLOATING:
        raise TypeError(f"dtype={dtype!r}: expected {names(FLOATING)}")
    return name
