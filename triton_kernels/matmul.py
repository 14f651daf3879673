"""Matrix product of FP8, FP16 or bfloat16 matrices on tensor cores, with float32 accumulation.

Contract: `exact-sum`. Products are exact and every order of additions is allowed, so results are bit-equal to any other
correct product where every order gives the same sum, and otherwise within K * 2^-22 * sum|a*b| of it. The tensor core
accumulates all of K (fast accumulation): `max_num_imprecise_acc` stays unset, because 0 makes Triton 3.6 compute FP8 on
sm_90 with FP16 instructions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.cast import require_device


@triton.jit
def _matmul_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_a,
    stride_b,
    stride_c,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """c[m, n] = scale * sum_k a[m, k] * b[n, k]; columns are contiguous, strides are those of the rows."""
    tile_m, tile_n = _tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)

    # Rows outside read row 0, whose results are not stored: only the tail of K needs masks.
    a_rows = tl.where(rows < M, rows, 0).to(tl.int64)
    b_rows = tl.where(columns < N, columns, 0).to(tl.int64)
    a_tile = a_ptr + a_rows[:, None] * stride_a + k[None, :]
    b_tile = b_ptr + b_rows[:, None] * stride_b + k[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k[None, :] < K - start
        a = tl.load(a_tile, mask=inside, other=0.0)
        b = tl.load(b_tile, mask=inside, other=0.0)
        sums = tl.dot(a, b.T, sums)
        a_tile += BLOCK_K
        b_tile += BLOCK_K

    result = sums * tl.full([], scale, tl.float32)
    c_tile = c_ptr + rows.to(tl.int64)[:, None] * stride_c + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(c_tile, result.to(c_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _tile(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The tile of a program. GROUP_M rows of tiles are walked column by column, so that programs that run at the same
    time share rows of a and b in the cache; the last group may have fewer rows."""
    per_group = GROUP_M * tiles_n
    first_m = program // per_group * GROUP_M
    rows = tl.minimum(tiles_m - first_m, GROUP_M)
    within = program % per_group
    return first_m + within % rows, within // rows


@dataclass(frozen=True)
class Config:
    """How a launch is cut up: a tile of c and a step of K per program, warps, and tiles loaded ahead."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 8
    num_warps: int = 8
    num_stages: int = 3


CONFIGS = {
    1: Config(128, 128, 128, num_stages=4),
    2: Config(128, 128, 64, num_stages=4),
}
"""The configuration for operands of 1 or 2 bytes: spill-free on sm_90, and 2 bytes on sm_80."""

_INTERPRETED = Config(256, 256, 256)
"""Few, large programs: the interpreter takes milliseconds for each whatever its size."""

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FLOAT16 = (torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float = 1.0,
    out_dtype: torch.dtype = torch.float32,
    config: Config | None = None,
) -> torch.Tensor:
    """scale * sum_k a[m, k] * b[n, k], accumulated in float32.

    Args:
        a: [M, K], float8_e4m3fn, float8_e5m2, float16 or bfloat16, any strides, on a CUDA device or, in the
            interpreter, on the CPU.
        b: [N, K], of the same dtype; the FP8 dtypes may be mixed. An operand whose rows are not contiguous, or do not
            start and end at multiples of 16 elements, is copied first.
        scale: rounded to float32; multiplies the finished sum in float32.
        out_dtype: float32, bfloat16 or float16: ties to even, overflow to infinity.
        config: tile sizes, warps and stages; by default those of `CONFIGS`.

    Returns:
        [M, N], contiguous; zeros if K = 0. NaN and infinities propagate as in IEEE 754 sums of products.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes or devices that do not fit.
        RuntimeError: no kernel runs on the device: FP8 needs compute capability 8.9 (Ada, Hopper) or later.
    """
    _require_operands(a, b, out_dtype)
    require_device("a", a)
    _require_capability(a)
    out = torch.empty(a.shape[0], b.shape[0], dtype=out_dtype, device=a.device)
    if out.numel() == 0:
        return out
    if a.shape[1] == 0:
        return out.zero_()
    if config is None:
        config = _INTERPRETED if interpreter.is_enabled() else CONFIGS[a.element_size()]
    _launch(_k_major(a), _k_major(b), out, scale, config)
    return out


def _launch(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scale: float, config: Config) -> None:
    (m, n), k = out.shape, a.shape[1]
    options = asdict(config)
    constants = {name.upper(): options.pop(name) for name in ("block_m", "block_n", "block_k", "group_m")}
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)
    with torch.cuda.device_of(a):
        _matmul_kernel[grid](
            a, b, out, m, n, k, a.stride(0), b.stride(0), out.stride(0), float(scale), **constants, **options
        )


def _k_major(x: torch.Tensor) -> torch.Tensor:
    """x [R, K], with contiguous rows that start and end at multiples of 16 elements, as fast loads need: x or a copy.

    A copy's rows are padded with zeros, which add nothing to any sum.
    """
    rows, k = x.shape
    if x.stride(1) == 1 and k % 16 == 0 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x.detach()
    copy = torch.zeros(rows, triton.cdiv(k, 16) * 16, dtype=x.dtype, device=x.device)
    copy[:, :k] = x.detach()
    return copy


def _require_operands(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor) or x.dtype not in (*_FLOAT8, *_FLOAT16):
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} must be a tensor of float8_e4m3fn, float8_e5m2, float16 or bfloat16, got {got}")
    if a.dtype != b.dtype and not {a.dtype, b.dtype} <= set(_FLOAT8):
        raise TypeError(f"a and b must have the same dtype, or both FP8, got {a.dtype} and {b.dtype}: cast one of them")
    if out_dtype not in _OUTPUTS:
        raise TypeError(f"out_dtype must be float32, bfloat16 or float16, got {out_dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected a [M, K] and b [N, K], got {list(a.shape)} and {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}")


def _require_capability(x: torch.Tensor) -> None:
    if not x.is_cuda or interpreter.is_enabled() or x.dtype not in _FLOAT8:
        return
    capability = torch.cuda.get_device_capability(x.device)
    if capability < (8, 9):
        raise RuntimeError(
            f"FP8 matrix products need compute capability 8.9 or later (Ada, Hopper), and {x.device} has "
            f"{capability[0]}.{capability[1]}: convert a and b to float16, which holds every FP8 number, "
            f"or simulate with fp8sim.use_backend('simulate') on the CPU"
        )
