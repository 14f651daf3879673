"""What Triton makes of `tl.dot` and of conversions, with nothing around them: the kernels of `fp8sim probe`.

The project's own matrix product (`fp8sim.triton_kernels.matmul`) offers one form of `tl.dot`, and promotion every 128;
here are the others, and tiles of fewer rows than FP8 instructions have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.launching import require_device

FORMS = ("chain", "add", "scaled")
"""`sums = tl.dot(a, b, sums)`; `sums += tl.dot(a, b)`; `sums += tl.dot(a, b) * factors`, of rows and columns."""

_BLOCK = 1024


@triton.jit
def dot_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    a_factor_ptr,
    b_factor_ptr,
    M,
    N,
    K,
    blocks,
    FORM: tl.constexpr,
    IMPRECISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[m, n] = sum_k a[m, k] * b[n, k], a tile of it; with FORM "scaled" each BLOCK_K of K has its factors,
    a_factor[m, block] * b_factor[n, block]."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(tl.cdiv(K, BLOCK_K)):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        a_inside, b_inside = (rows < M)[:, None] & (k < K)[None, :], (columns < N)[None, :] & (k < K)[:, None]
        a = tl.load(a_ptr + rows[:, None] * K + k[None, :], mask=a_inside, other=0.0)
        b = tl.load(b_ptr + columns[None, :] * K + k[:, None], mask=b_inside, other=0.0)
        if FORM == "chain":
            sums = tl.dot(a, b, sums, input_precision="tf32", max_num_imprecise_acc=IMPRECISE)
        elif FORM == "add":
            sums += tl.dot(a, b, input_precision="tf32", max_num_imprecise_acc=IMPRECISE)
        else:
            left = tl.load(a_factor_ptr + rows * blocks + block, mask=rows < M, other=0.0)
            right = tl.load(b_factor_ptr + columns * blocks + block, mask=columns < N, other=0.0)
            factors = left[:, None] * right[None, :]
            sums += tl.dot(a, b, input_precision="tf32", max_num_imprecise_acc=IMPRECISE) * factors
    place = out_ptr + rows[:, None] * N + columns[None, :]
    tl.store(place, sums, mask=(rows < M)[:, None] & (columns < N)[None, :])


@triton.jit
def convert_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """out = x, in out's type."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x = tl.load(x_ptr + index, mask=inside, other=0.0)
    tl.store(out_ptr + index, x.to(out_ptr.dtype.element_ty), mask=inside)


def dot(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    form: str = "chain",
    imprecise: int | None = None,
    factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    fused: bool = True,
    block: tuple[int, int, int] = (64, 64, 128),
) -> torch.Tensor:
    """sum_k a[m, k] * b[n, k], by `tl.dot` in one of its forms and by tiles of a given size.

    Args:
        a: [M, K], contiguous, FP8, float16, bfloat16 or float32, which is multiplied as tf32; on a CUDA device or, in
            the interpreter, on the CPU. b: [N, K], likewise, of the same dtype.
        form: one of `FORMS`.
        imprecise: `max_num_imprecise_acc`; None leaves it to Triton.
        factors: of form "scaled": float32 [M, B] and [N, B], one for each block of K.
        fused: whether the compiler may make one FMA of a product and a sum.
        block: BLOCK_M, BLOCK_N and BLOCK_K: powers of two of 16 or more.

    Returns:
        [M, N], float32.

    Raises:
        ValueError: another form, factors that do not belong to it, operands that do not fit.
        RuntimeError: no kernel runs on the device.
    """
    (m, k), n = a.shape, len(b)
    if form not in FORMS or (factors is not None) != (form == "scaled"):
        raise ValueError(f"form={form!r}: one of {', '.join(FORMS)}; factors belong to 'scaled' alone")
    if b.shape != (n, k) or a.dtype != b.dtype or not (a.is_contiguous() and b.is_contiguous()):
        raise ValueError(
            f"expected contiguous a [M, K] and b [N, K] of one dtype, got {list(a.shape)} {a.dtype} and "
            f"{list(b.shape)} {b.dtype}"
        )
    require_device("a", a)
    block_m, block_n, block_k = block
    left, right = factors or (None, None)
    out = torch.empty(m, n, dtype=torch.float32, device=a.device)
    with torch.cuda.device_of(a):
        dot_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
            a, b, out, left, right, m, n, k, triton.cdiv(k, block_k), FORM=form, IMPRECISE=imprecise,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=2,
            enable_fp_fusion=fused,
        )  # fmt: skip
    return out


def convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x [n], contiguous, as Triton's `.to` converts it to another floating-point dtype: on compute capability 9.0 from
    float32 and float16 to FP8 `cvt.rn.satfinite`, from FP8 to float16 `cvt.rn.f16x2`.

    Raises:
        RuntimeError: no kernel runs on the device.
    """
    require_device("x", x)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = 1 << 16 if interpreter.is_enabled() else _BLOCK
    with torch.cuda.device_of(x):
        convert_kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), BLOCK=block, num_warps=4)
    return out


@contextlib.contextmanager
def launched() -> Iterator[list[Any]]:
    """Inside, every compiled kernel that is launched is appended to the list; the interpreter compiles none."""
    kernels: list[Any] = []
    run = JITFunction.run

    def recorded(self: Any, *args: Any, **options: Any) -> Any:
        kernels.append(run(self, *args, **options))
        return kernels[-1]

    JITFunction.run = recorded
    try:
        yield kernels
    finally:
        JITFunction.run = run
