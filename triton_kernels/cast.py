"""Cast, encode and decode for any format, by integer arithmetic: one kernel, every mode, bit for bit as `fp8sim.casting`.

The kernel never converts between floating-point types: a number travels as its pattern of bits, so subnormal numbers,
infinities, signed zeros and the signs of NaN follow the policy on every GPU, sm_80 included, and in the interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fp8sim import formats
from fp8sim.formats import FORMATS, Format
from fp8sim.rounding import Conversion, Overflow, Rounding, member, resolve
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.random import random_integers
from fp8sim.triton_kernels.rounding import decode as decode_bits
from fp8sim.triton_kernels.rounding import encode as encode_bits


@triton.jit(do_not_specialize=["seed", "stream", "first_group"])
def _convert_kernel(
    x_ptr,
    out_ptr,
    count,
    seed: tl.int64,
    stream: tl.int64,
    first_group: tl.int64,
    skipped,
    SOURCE: tl.constexpr,
    TO: tl.constexpr,
    BACK: tl.constexpr,
    RESULT: tl.constexpr,
    BITS: tl.constexpr,
    RANDOM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = x, converted in up to four steps, between which a number is a pattern of BITS = 32 or 64 bits:

    decode it from SOURCE, if that is a Conversion; encode it to TO, if that is one; decode that again, if BACK; encode
    that to RESULT, if that is one. RANDOM_BITS = 0: no random bits are drawn. Otherwise programs start at multiples of
    64 of the random stream, so that the first one skips elements.
    """
    program = tl.program_id(0).to(tl.int64)
    index = program * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    if RANDOM_BITS > 0:
        index -= skipped
        mask = (index >= 0) & (index < count)
        group = first_group.to(tl.uint64) + (program * (BLOCK // 64)).to(tl.uint64)
        random = random_integers(group, seed.to(tl.uint64), stream.to(tl.uint64), BLOCK // 64, RANDOM_BITS)
    else:
        random = 0
    value = _widen(tl.load(x_ptr + index, mask=mask, other=0), SOURCE, BITS)
    if TO is not None:
        value = encode_bits(value, random, TO, RANDOM_BITS)
        if BACK:
            value = decode_bits(value, TO, BITS)
        if RESULT is not None:
            value = encode_bits(value, 0, RESULT, 0)
    tl.store(out_ptr + index, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _widen(raw, SOURCE: tl.constexpr, BITS: tl.constexpr):
    """The pattern of BITS bits; without SOURCE `raw` is such a pattern, or the high half of one (bfloat16)."""
    if SOURCE is not None:
        return decode_bits(raw.to(tl.uint32), SOURCE, BITS)
    else:
        TARGET: tl.constexpr = tl.uint32 if BITS == 32 else tl.uint64
        return raw.to(TARGET) << (BITS - raw.dtype.primitive_bitwidth)


class _Random(NamedTuple):
    """Which random integers a launch draws: arguments of `cast`, in the units of the kernel."""

    seed: int = 0
    stream: int = 0
    first_group: int = 0
    skipped: int = 0
    bits: int = 0


def cast(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    out: torch.Tensor | None = None,
    block: int | None = None,
) -> torch.Tensor:
    """Round every element to a number of `fmt`, in the dtype of `x`, as `fp8sim.cast` does.

    Args:
        x: [...], float64, float32, float16 or bfloat16, any strides; on a CUDA device, or on the CPU in the interpreter.
        fmt, rounding, overflow, seed, stream, offset, random_bits: as for `fp8sim.cast`.
        out: [...], of x's dtype and device, where to put the result; `x` itself allowed.
        block: elements per program, a power of two from 64 to 2^20.

    Returns:
        [...], contiguous; `out` if given. A number that x's dtype lacks (2^-127 of E8M0 in float16) is rounded to it,
        ties to even, overflow to infinity. NaN is the quiet NaN of its sign.

    Raises:
        TypeError: x is no tensor of these dtypes.
        ValueError: an unknown format or mode, a policy that the format cannot represent, a seed that is missing or
            unused, an `out` that does not fit.
        RuntimeError: x is on a device where no kernel runs.
    """
    to = _conversion(fmt, rounding, overflow)
    source, bits, result = _float_type("x", x)
    random = _random(to, seed, stream, offset, random_bits)
    return _launch(x, _output(x, out), source, to, bits, random, block, back=True, result=result)


def encode(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    block: int | None = None,
) -> torch.Tensor:
    """The code of `fmt` that every element rounds to. Arguments and errors as for `cast`.

    Returns:
        [...], contiguous, uint8; uint16 for formats above 8 bits, uint32 above 16.
    """
    fmt = formats.parse(fmt)
    to = _conversion(fmt, rounding, overflow)
    source, bits, _ = _float_type("x", x)
    random = _random(to, seed, stream, offset, random_bits)
    out = torch.empty(x.shape, dtype=_code_dtype(fmt), device=x.device)
    return _launch(x, out, source, to, bits, random, block)


def decode(
    codes: torch.Tensor, fmt: str | Format, *, dtype: torch.dtype = torch.float32, block: int | None = None
) -> torch.Tensor:
    """The numbers that codes of `fmt` stand for.

    Args:
        codes: [...], of the unsigned integer type that `encode` returns, any strides. Bits above the format's are not
            looked at.
        fmt: a format or its name.
        dtype: float32, float64, float16 or bfloat16; a number it lacks is rounded to it, ties to even, overflow to
            infinity.
        block: as for `cast`.

    Returns:
        [...], contiguous. NaN is the quiet NaN of the code's sign.

    Raises:
        TypeError: codes of another type, or a dtype that is no float.
        RuntimeError: codes are on a device where no kernel runs.
    """
    fmt = formats.parse(fmt)
    if not isinstance(codes, torch.Tensor) or codes.dtype != _code_dtype(fmt):
        got = getattr(codes, "dtype", type(codes).__name__)
        raise TypeError(f"codes of {fmt} must be a tensor of {_code_dtype(fmt)}, as encode gives, got {got}")
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _, bits, result = _float_type("dtype", out)
    source = _conversion(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    return _launch(codes, out, source, result, bits, _Random(), block)


# ----------------------------------------------------------------------------------------------------------------------
# Launching


def _launch(
    x: torch.Tensor,
    out: torch.Tensor,
    source: Conversion | None,
    to: Conversion | None,
    bits: int,
    random: _Random,
    block: int | None,
    **rest: Any,
) -> torch.Tensor:
    require_device("x", x)
    if x.numel() == 0:
        return out
    elements = x.numel() + random.skipped
    block = _block(block, elements)
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    grid = (triton.cdiv(elements, block),)
    constants = {"SOURCE": source, "TO": to, "BACK": False, "RESULT": None, "BITS": bits, "RANDOM_BITS": random.bits}
    constants |= {name.upper(): value for name, value in rest.items()}
    with torch.cuda.device_of(x):
        _convert_kernel[grid](_raw(x), _raw(target), x.numel(), *random[:4], **constants, BLOCK=block, num_warps=4)
    return out if target is out else out.copy_(target)


def require_device(argument: str, x: torch.Tensor) -> None:
    """RuntimeError unless kernels of this process can run on x's device."""
    if x.is_cuda or (x.device.type == "cpu" and interpreter.is_enabled()):
        return
    raise RuntimeError(
        f"{argument} is on {x.device}: Triton kernels run on CUDA tensors, and on CPU tensors only in the interpreter; "
        f"move it to a CUDA device, or call fp8sim.triton_kernels.interpreter.enable()"
    )


_RAW = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def _raw(x: torch.Tensor) -> torch.Tensor:
    """The elements' bits, in row-major order."""
    return x.detach().contiguous().view(_RAW[x.element_size()])


def _block(block: int | None, elements: int) -> int:
    """Elements per program. The interpreter takes milliseconds per program whatever its size, so it gets large ones."""
    if block is None:
        largest = 1 << 18 if interpreter.is_enabled() else 1 << 10
        return min(max(triton.next_power_of_2(elements), 64), largest)
    if block not in [1 << k for k in range(6, 21)]:
        raise ValueError(f"block={block}: expected a power of two from 64 to 2^20")
    return block


def _conversion(fmt: str | Format, rounding: Rounding | str, overflow: Overflow | str) -> Conversion:
    return resolve(formats.parse(fmt), member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow"))


def _float_type(argument: str, x: Any) -> tuple[Conversion | None, int, Conversion | None]:
    """Of x's dtype: how its bits widen to a pattern, how many bits that has, and how a pattern becomes its bits again."""
    dtype = x.dtype if isinstance(x, torch.Tensor) else None
    if dtype in (torch.float32, torch.float64):
        return None, 8 * dtype.itemsize, None
    if dtype not in (torch.float16, torch.bfloat16):
        got = f"{type(x).__name__} {dtype or ''}".strip()
        raise TypeError(f"{argument} must be a torch tensor of float64, float32, float16 or bfloat16, got {got}")
    fmt = FORMATS[str(dtype).removeprefix("torch.")]
    to = resolve(fmt, Rounding.TIES_TO_EVEN, Overflow.INFINITY)
    quiet_nan = to.inf_code | 1 << (to.mantissa_bits - 1)
    to = to._replace(nan_positive=quiet_nan, nan_negative=quiet_nan | to.sign_bit)
    return (to if dtype == torch.float16 else None), 32, to


def _code_dtype(fmt: Format) -> torch.dtype:
    return torch.uint8 if fmt.bits <= 8 else torch.uint16 if fmt.bits <= 16 else torch.uint32


def _random(to: Conversion, seed: int | None, stream: int, offset: int, random_bits: int) -> _Random:
    """The launch's random integers. ValueError for a seed that is missing or unused, or more bits than there are."""
    mode = Rounding(to.rounding)
    if not 1 <= random_bits <= 32:
        raise ValueError(f"random_bits={random_bits}: expected 1 to 32")
    if mode.is_stochastic != (seed is not None):
        need = "needs a seed" if mode.is_stochastic else "takes no seed"
        raise ValueError(f"rounding={mode.name} {need}, got seed={seed}")
    if seed is None:
        return _Random()
    element = offset % 2**64
    return _Random(_signed(seed), _signed(stream), element // 64, element % 64, random_bits)


def _signed(word: int) -> int:
    """The 64-bit pattern of `word` as a signed integer, which is how Triton passes it."""
    return (word + 2**63) % 2**64 - 2**63


def _output(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if out is None:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"out must have x's shape, dtype and device {tuple(x.shape)} {x.dtype} {x.device}, "
            f"got {tuple(out.shape)} {out.dtype} {out.device}"
        )
    return out
