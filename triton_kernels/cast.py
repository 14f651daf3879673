"""Cast, encode and decode for any format, by integer arithmetic: one kernel, every mode, the bits of `fp8sim.casting`.

The kernel never converts between floating-point types: a number travels as its pattern of bits, so subnormal numbers,
infinities, signed zeros and the signs of NaN follow the policy on every GPU, sm_80 included, and in the interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fp8sim import formats
from fp8sim.casting import check_code_tensor, code_dtype
from fp8sim.formats import Format
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve_names
from fp8sim.triton_kernels.elements import widen
from fp8sim.triton_kernels.launching import (
    RandomIntegers,
    elements_per_program,
    float_type,
    random_integers_of,
    raw_bits,
    require_device,
)
from fp8sim.triton_kernels.random import random_integers
from fp8sim.triton_kernels.rounding import decode as decode_bits
from fp8sim.triton_kernels.rounding import encode as encode_bits

_CODES = (torch.uint8, torch.uint16, torch.uint32)


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
    value = widen(tl.load(x_ptr + index, mask=mask, other=0), SOURCE, BITS)
    if TO is not None:
        value = encode_bits(value, random, TO, RANDOM_BITS)
        if BACK:
            value = decode_bits(value, TO, BITS)
        if RESULT is not None:
            value = encode_bits(value, 0, RESULT, 0)
    tl.store(out_ptr + index, value.to(out_ptr.dtype.element_ty), mask=mask)


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
        x: [...], float64, float32, float16 or bfloat16, any strides; on a CUDA device, or interpreted on the CPU.
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
    to = resolve_names(fmt, rounding, overflow)
    source, bits, result = float_type("x", x)
    require_device("x", x)
    random = random_integers_of(to, seed, stream, offset, random_bits)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _require_output(out, x)
    return _launch(x, out, source, to, bits, random, block, back=True, result=result)


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
    to = resolve_names(fmt, rounding, overflow)
    source, bits, _ = float_type("x", x)
    require_device("x", x)
    random = random_integers_of(to, seed, stream, offset, random_bits)
    out = torch.empty(x.shape, dtype=getattr(torch, code_dtype(fmt)), device=x.device)
    return _launch(x, out, source, to, bits, random, block)


def decode(
    codes: torch.Tensor, fmt: str | Format, *, dtype: torch.dtype | str = torch.float32, block: int | None = None
) -> torch.Tensor:
    """The numbers that codes of `fmt` stand for.

    Args:
        codes: [...], uint8, uint16 or uint32, one code per element, any strides.
        fmt: a format or its name.
        dtype: float32, float64, float16 or bfloat16; a number it lacks is rounded to it, ties to even, overflow to
            infinity.
        block: as for `cast`.

    Returns:
        [...], contiguous. NaN is the quiet NaN of the code's sign.

    Raises:
        TypeError: codes of another dtype, or a dtype that is none of the four.
        ValueError: an unknown format, or a code outside it.
        RuntimeError: codes are on a device where no kernel runs.
    """
    fmt = formats.parse(fmt)
    if not isinstance(codes, torch.Tensor) or codes.dtype not in _CODES:
        got = getattr(codes, "dtype", type(codes).__name__)
        raise TypeError(f"codes must be a torch tensor of uint8, uint16 or uint32, got {got}")
    require_device("codes", codes)
    check_code_tensor(codes, fmt)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _, bits, result = float_type("dtype", out)
    source = resolve_names(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    return _launch(codes, out, source, result, bits, RandomIntegers(), block)


# Launching


def _launch(
    x: torch.Tensor,
    out: torch.Tensor,
    source: Conversion | None,
    to: Conversion | None,
    bits: int,
    random: RandomIntegers,
    block: int | None,
    **rest: Any,
) -> torch.Tensor:
    if x.numel() == 0:
        return out
    elements = x.numel() + random.skipped
    block = elements_per_program(block, elements)
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    grid = (triton.cdiv(elements, block),)
    constants = {"SOURCE": source, "TO": to, "BACK": False, "RESULT": None, "BITS": bits, "RANDOM_BITS": random.bits}
    constants |= {name.upper(): value for name, value in rest.items()}
    with torch.cuda.device_of(x):
        _convert_kernel[grid](
            raw_bits(x), raw_bits(target), x.numel(), *random[:4], **constants, BLOCK=block, num_warps=4
        )
    if target is not out:
        return out.copy_(target)
    torch.autograd.graph.increment_version(out)
    return out


def _require_output(out: torch.Tensor, x: torch.Tensor) -> None:
    """TypeError or ValueError unless results for `x` can be written to `out` while `x` is read."""
    if not isinstance(out, torch.Tensor) or out.dtype != x.dtype:
        raise TypeError(f"out must be a tensor of x's dtype {x.dtype}, got {getattr(out, 'dtype', type(out).__name__)}")
    if (out.shape, out.device) != (x.shape, x.device):
        raise ValueError(
            f"out must have x's shape and device {list(x.shape)} {x.device}, got {list(out.shape)} {out.device}"
        )
    if any(step == 0 and length > 1 for step, length in zip(out.stride(), out.shape, strict=True)):
        raise ValueError("out has elements that share memory (an expanded tensor): pass a copy of it")
    same = out.data_ptr() == x.data_ptr() and out.stride() == x.stride()
    if not same and max(out.data_ptr(), x.data_ptr()) < min(_end(out), _end(x)):
        raise ValueError("out overlaps x without being x: pass x itself, or memory of its own")


def _end(x: torch.Tensor) -> int:
    """The address behind the last element; of an empty tensor that of its memory."""
    if x.numel() == 0:
        return x.data_ptr()
    last = sum(step * (length - 1) for step, length in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr() + (last + 1) * x.element_size()
