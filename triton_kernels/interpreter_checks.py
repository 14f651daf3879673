"""The interpreter's self-test: small kernels whose results torch, or plain integers, know as well.

Exhaustive where that is small: all 256 codes of an FP8 type, all 65,536 of a 16-bit type; conversions from float32 at
every midpoint between two codes and its two neighbours. torch is the reference because it shares nothing with the
boundaries that the interpreter uses, and nothing with fp8sim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels import interpreter

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOAT16 = (torch.float16, torch.bfloat16)
_CODES = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}


def self_test() -> dict[str, int]:
    """Run small kernels in the interpreter and compare every result with torch: seconds, on one core.

    Returns:
        For each check its name and how many results were compared.

    Raises:
        RuntimeError: the interpreter is not enabled, or a result is wrong; the message names Triton's version.
    """
    if not interpreter.is_enabled():
        raise RuntimeError("the interpreter is off: call fp8sim.triton_kernels.interpreter.enable() first")
    compared: dict[str, int] = {}
    for name, check in _checks().items():
        actual, expected = check()
        _require_equal(name, actual, expected)
        compared[name] = actual.numel()
    return compared


_Result = tuple[torch.Tensor, torch.Tensor]
Check = Callable[[], _Result]


def _checks() -> dict[str, Check]:
    checks: dict[str, Check] = {
        "loop bound from a tensor": _loop_bound,
        "overflow of float32": _overflow,
        "bfloat16 arithmetic": _bfloat16_arithmetic,
        "fused multiply-add": _fused_multiply_add,
    }
    for dtype in (*FLOAT8, *FLOAT16):
        checks[f"{_name(dtype)} to float32, every code"] = partial(_widening, dtype)
        checks[f"float32 to {_name(dtype)}, boundaries"] = partial(_narrowing, _around_midpoints(dtype), dtype)
        checks[f"dot of {_name(dtype)}"] = partial(_dot, dtype)
    for source, target in itertools.product(FLOAT16, FLOAT8):
        checks[f"{_name(source)} to {_name(target)}, every code"] = partial(_narrowing, _all_codes(source), target)
    return checks


def _require_equal(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    same &= (actual.signbit() == expected.signbit()) | actual.isnan()
    if bool(same.all()):
        return
    first = int((~same).flatten().nonzero()[0])
    raise RuntimeError(
        f"the corrected interpreter computes wrongly under Triton {triton.__version__}: {name}: "
        f"{int((~same).sum())} of {same.numel()} results differ, the first at {first}: "
        f"got {float(actual.flatten()[first])!r}, expected {float(expected.flatten()[first])!r}. "
        f"fp8sim corrects the interpreter of Triton 3.6: install triton==3.6.0"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _all_codes(dtype: torch.dtype) -> torch.Tensor:
    bits = 8 * dtype.itemsize
    return torch.arange(1 << bits, dtype=torch.int32).to(_CODES[dtype.itemsize]).view(dtype)


def _around_midpoints(dtype: torch.dtype) -> torch.Tensor:
    """float32: midpoints of neighbouring numbers of `dtype` with their neighbours, both signs, and the far ends."""
    numbers = _all_codes(dtype).float()
    numbers = numbers[numbers.isfinite() & ~numbers.signbit()]
    spacing = numbers[-1] - numbers[-2]
    numbers = torch.cat([numbers, numbers[-1:] + spacing, torch.tensor([torch.finfo(torch.float32).max])])
    patterns = ((numbers[1:].double() + numbers[:-1].double()) / 2).float().view(torch.int32)
    around = torch.cat([numbers, *((patterns + step).view(torch.float32) for step in (-1, 0, 1))])
    around = torch.cat([around, torch.tensor([torch.inf, torch.nan])])
    return torch.cat([around, -around])


def _widening(dtype: torch.dtype) -> _Result:
    codes = _all_codes(dtype)
    return _convert(codes, torch.float32), codes.float()


def _narrowing(x: torch.Tensor, dtype: torch.dtype) -> _Result:
    """Both results in float32. GPUs saturate at the largest FP8 number; torch, depending on its version, does not."""
    largest = torch.finfo(dtype).max if dtype in FLOAT8 else torch.inf
    expected = x.float().clamp(-largest, largest).to(dtype)
    return _convert(x, dtype).float(), expected.float()


def _convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=dtype)
    block = 1 << 16
    _convert_kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), BLOCK=block)
    return out


@triton.jit
def _convert_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, mask=index < count)
    tl.store(out_ptr + index, x.to(out_ptr.dtype.element_ty), mask=index < count)


def _loop_bound() -> _Result:
    total = torch.zeros(1, dtype=torch.int32)
    _sum_kernel[(1,)](total, 10, STEP=4)
    return total, torch.tensor([0 + 4 + 8], dtype=torch.int32)


@triton.jit
def _sum_kernel(total_ptr, count, STEP: tl.constexpr):
    total = tl.load(total_ptr)
    for k in range(0, count, STEP):
        total += k
    tl.store(total_ptr, total)


def _overflow() -> _Result:
    """Overflow and invalid operations pass without a warning: under -W error one would be an exception."""
    x = torch.tensor([3e38, -3e38, torch.inf, torch.nan], dtype=torch.float32)
    out = torch.empty_like(x)
    _multiply_kernel[(1,)](x, x, out, BLOCK=4)
    return out, x * x


def _bfloat16_arithmetic() -> _Result:
    x = torch.randn(1 << 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = x.flip(0).contiguous()
    out = torch.empty_like(x)
    _multiply_kernel[(1,)](x, y, out, BLOCK=x.numel())
    return out.float(), (x * y).float()


@triton.jit
def _multiply_kernel(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(out_ptr + index, tl.load(x_ptr + index) * tl.load(y_ptr + index))


def _dot(dtype: torch.dtype) -> _Result:
    """Small integers, so that every order of additions gives the same sum."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (64, 64), generator=generator) for _ in range(2))
    out = torch.empty(64, 64)
    _dot_kernel[(1,)](a.float().to(dtype), b.float().to(dtype), out, SIZE=64)
    return out, (a @ b).float()


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + index, tl.dot(tl.load(a_ptr + index), tl.load(b_ptr + index)))


def _fused_multiply_add() -> _Result:
    """Sums that a second rounding, of the product or in binary64, would change."""
    step, tie = 2.0**-23, 2.0**30 + 2.0**7
    x = torch.tensor([1 + 2.0**-12, 2.0**6 * (1 + step), 2.0**6 * (1 + step), 3.0, -0.0, torch.inf])
    y = torch.tensor([1 + 2.0**-12, 1 - step, -(1 - step), 5.0, 1.0, 0.0])
    z = torch.tensor([-1 - 2.0**-11, tie, -tie, 0.25, -0.0, 1.0])
    out = torch.empty(8)
    _fma_kernel[(1,)](*(torch.nn.functional.pad(t, (0, 2)) for t in (x, y, z)), out, SIZE=8)
    return out[:6], torch.tensor([2.0**-24, tie, -tie, 15.25, -0.0, torch.nan])


@triton.jit
def _fma_kernel(x_ptr, y_ptr, z_ptr, out_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    result = tl.fma(tl.load(x_ptr + index), tl.load(y_ptr + index), tl.load(z_ptr + index))
    tl.store(out_ptr + index, result)
