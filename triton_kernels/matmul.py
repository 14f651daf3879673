"""Matrix products of FP8, FP16 or bfloat16 matrices on tensor cores, with float32 accumulation.

Every launch is described by a `fp8sim.mma.GemmPlan` (`plan_of`), by which `fp8sim.matmul` predicts the bits of the
result. On Hopper, FP8 products are accumulated in the tensor core over all of K (fast accumulation), or promoted to
float32 every 128; GPUs without FP8 tensor cores (compute capability 8.0 to 8.8) multiply the same numbers in float16,
which holds them.

Bytes moved at least: those of a, b and the result, once; a split K adds 8 * SPLIT_K bytes per element of the result.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from fp8sim.formats import FORMATS
from fp8sim.mma.plans import GemmPlan, Place, Product
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve
from fp8sim.triton_kernels import interpreter, tuning
from fp8sim.triton_kernels.launching import require_device
from fp8sim.triton_kernels.matmul_configs import (
    PROMOTION,
    Config,
    Kind,
    choose,
    configs,
    offered,
    require_config,
)
from fp8sim.triton_kernels.matmul_kernel import (
    BLOCK_FACTORS,
    EPILOGUE_FACTORS,
    NO_FACTORS,
    matmul_kernel,
    merge_kernel,
)
from fp8sim.triton_kernels.requirements import HOPPER, Capability, require

__all__ = [
    "HOPPER",
    "PROMOTION",
    "Capability",
    "Config",
    "Factors",
    "capability_of",
    "is_of_blocks",
    "matmul",
    "plan_for",
    "plan_of",
]

_INTERPRETED = Config(256, 256, 256)
"""Few, large programs: the interpreter takes milliseconds for each whatever its size."""

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FLOAT16 = (torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, *_FLOAT16, *_FLOAT8)

Factors = float | torch.Tensor | None


class _Factors(NamedTuple):
    """Factors of one operand as the kernel reads them: strides are 0 where one factor serves all."""

    pointer: torch.Tensor | None = None
    batch: int = 0
    row: int = 0
    k: int = 0
    rows: int = 1
    """How many rows share a factor."""
    is_blocks: bool = False


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float = 1.0,
    a_scale_inv: Factors = None,
    b_scale_inv: Factors = None,
    fast_accumulation: bool = True,
    out_dtype: torch.dtype = torch.float32,
    overflow: Overflow = Overflow.SATURATE,
    amax: torch.Tensor | None = None,
    split_k: int | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """scale * sum_k a[..., m, k] * b[..., n, k] times factors, accumulated in float32 as `plan_of` says.

    Args:
        a: [..., M, K], float8_e4m3fn, float8_e5m2, float16 or bfloat16, any strides, on a CUDA device or, in the
            interpreter, on the CPU.
        b: [..., N, K], of the same dtype; the FP8 dtypes may be mixed. Leading dimensions broadcast. An operand whose
            rows are not contiguous, or do not start and end at multiples of 16 elements, is copied first.
        scale: rounded to float32; multiplies the sum, after the factors below, in float32.
        a_scale_inv: float32 factors of a's products: a number or [...] of one element, [..., M], or
            [..., ceil(M / r), ceil(K / 128)] for blocks of r = 1 or 128 rows. Those of rows multiply the finished sum,
            a's first; those of blocks multiply the sum of 128 products (both factors' product, rounded) as it is added.
        b_scale_inv: likewise, [..., N] or [..., ceil(N / r), ceil(K / 128)].
        fast_accumulation: False: FP8 sums are promoted to float32 every 128 products on Hopper. Nothing else changes.
        out_dtype: float32, bfloat16, float16 (ties to even, overflow to infinity), float8_e4m3fn or float8_e5m2.
        overflow: what FP8 results do out of range.
        amax: int32 or float32 of one element, at least 0: raised to the largest magnitude of the result before its
            rounding; NaN above all.
        split_k: parts of K that are added one after the other at the end; None: as many as fill the device where the
            result has too few tiles for it, 1 with factors of blocks.
        config: tile sizes, warps and stages; None: that of `tuning.use`, by default one of `configs` for the size of
            the result. None changes no bit, whatever was measured.

    Returns:
        [..., M, N], contiguous; zeros if K = 0. NaN and infinities propagate as in IEEE 754 sums of products.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes, factors, devices or a configuration that do not fit.
        RuntimeError: no kernel runs on the device: it needs compute capability 8.0 (Ampere) or later.
    """
    _require_operands(a, b, out_dtype)
    require_device("a", a)
    capability = capability_of(a)
    batch = _batch(a, b)
    (m, k), n = a.shape[-2:], b.shape[-2]
    factors = _factors("a_scale_inv", a_scale_inv, a, batch), _factors("b_scale_inv", b_scale_inv, b, batch)
    to = _conversion(out_dtype, overflow)
    _require_amax(amax, a.device)
    out = torch.empty((*batch, m, n), dtype=out_dtype, device=a.device)
    if out.numel() == 0:
        return out
    if k == 0:
        return out.zero_()
    blocks = any(factor.is_blocks for factor in factors)
    kind = _fitting(a, capability, fast_accumulation, blocks, out_dtype)
    chosen, parts = _cut(kind, a, out.shape, split_k, config)
    (left, left_rows), (right, right_rows) = _matrices(a, batch), _matrices(b, batch)
    launch = _Launch(
        a=(left, left_rows),
        b=(right, right_rows),
        out=out.view(math.prod(batch) * m, n),
        sizes=(m, n, left.shape[1], math.prod(batch)),
        factors=factors,
        kind=_kind(factors),
        imprecise=PROMOTION if kind.promoted else 0,
        to=to,
        scale=float(scale),
        amax=None if amax is None else amax.view(torch.int32),
        widens=a.dtype in _FLOAT8 and capability < (8, 9),
        parts=parts,
        config=chosen,
    )
    if config is None:
        launch = _tuned(launch, replace(kind, out_size=4 if parts > 1 else kind.out_size))
    with torch.cuda.device_of(a):
        launch.run()
    return out


def plan_of(
    dtype: torch.dtype,
    capability: Capability,
    *,
    fast_accumulation: bool = True,
    blocks: bool = False,
    split_k: int = 1,
    block_k: int | None = None,
) -> GemmPlan:
    """The order in which `matmul` adds, for `fp8sim.matmul` to predict the bits of its result.

    Args:
        dtype: of the operands.
        capability: of the device.
        fast_accumulation, split_k: as for `matmul`. blocks: whether factors belong to blocks.
        block_k: step of K of the launch; it matters if K is split.

    Raises:
        ValueError: no order is known for the device.
    """
    fp8 = dtype in _FLOAT8
    parts: dict[str, Any] = {"split_k": split_k, "block_k": block_k} if split_k > 1 else {}
    if blocks:
        parts |= {"flush": PROMOTION, "factors": Place.FLUSH, "product": Product.FIRST}
    if capability == HOPPER:
        if fp8 and not fast_accumulation and not blocks:
            parts |= {"flush": PROMOTION, "block_k": PROMOTION}
        return GemmPlan("sm90.wgmma", **parts)
    if (8, 0) <= capability < (9, 0):
        if fp8 and capability == (8, 9):
            return GemmPlan("sm89.mma", **parts)
        return GemmPlan("sm80.mma", widen="float16" if fp8 else None, **parts)
    raise ValueError(
        f"compute capability {capability[0]}.{capability[1]}: the order in which Triton's products are added there is "
        f"not known; it is for 8.0 to 9.0"
    )


def plan_for(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    blocks: bool = False,
    fast_accumulation: bool = True,
    out_dtype: torch.dtype = torch.float32,
    split_k: int | None = None,
    config: Config | None = None,
) -> GemmPlan:
    """The order in which `matmul`, called with these arguments, adds on the device of `a`.

    Where K is split by default, the parts depend on sizes and on the device's processors, and never on what was tuned.

    Args:
        blocks: whether a factor belongs to blocks. The others are those of `matmul`.

    Raises:
        ValueError: no order is known for the device; sizes that do not fit.
    """
    _require_operands(a, b, out_dtype)
    shape = torch.Size((*_batch(a, b), a.shape[-2], b.shape[-2]))
    kind = _fitting(a, capability_of(a), fast_accumulation, blocks, out_dtype)
    chosen, parts = _cut(kind, a, shape, split_k, config) if shape.numel() and a.shape[-1] else (None, 1)
    block_k = None if chosen is None else chosen.block_k
    options = {"fast_accumulation": fast_accumulation, "blocks": blocks, "split_k": parts, "block_k": block_k}
    return plan_of(a.dtype, kind.capability, **options)  # type: ignore[arg-type]


def _fitting(
    a: torch.Tensor, capability: Capability, fast_accumulation: bool, blocks: bool, out_dtype: torch.dtype
) -> Kind:
    """What decides which configurations fit."""
    promoted = a.dtype in _FLOAT8 and capability == HOPPER and not fast_accumulation and not blocks
    return Kind(a.element_size(), capability, promoted, out_dtype in _FLOAT8, blocks, out_dtype.itemsize)


def _cut(
    kind: Kind, a: torch.Tensor, shape: torch.Size, split_k: int | None, config: Config | None
) -> tuple[Config, int]:
    """The configuration, by default the one for a result of this shape, and how many parts K is cut into."""
    chosen = _default(kind, a, shape) if config is None else config
    require_config(chosen, kind, a.device)
    return chosen, _parts(split_k, _tiles(shape, chosen), _processors(a), a.shape[-1], chosen, kind.blocks)


@dataclass(frozen=True)
class _Launch:
    """Everything that a launch passes to the kernels."""

    a: tuple[torch.Tensor, int]
    b: tuple[torch.Tensor, int]
    """Matrices of all batches below each other [R, K], and how many rows each batch has of its own."""
    out: torch.Tensor
    sizes: tuple[int, int, int, int]
    factors: tuple[_Factors, _Factors]
    kind: int
    imprecise: int
    to: Conversion | None
    scale: float
    amax: torch.Tensor | None
    widens: bool
    parts: int
    config: Config

    def run(self) -> None:
        """Launch the product, and the merge of its parts."""
        m, n, _, _ = self.sizes
        out = self.out.view(torch.uint8) if self.to is not None else self.out
        if self.parts == 1:
            self._multiply(out, self.to, self.amax)
            return
        parts = torch.empty((self.parts, *out.shape), dtype=torch.float32, device=out.device)
        self._multiply(parts.view(-1, n), None, None)
        a, b = self.factors
        block = 1 << 16 if interpreter.is_enabled() else 1024
        merge_kernel[(triton.cdiv(out.numel(), block),)](
            parts, out, self.amax, a.pointer, b.pointer, out.numel(), m, n, a.batch, a.row, b.batch, b.row, self.scale,
            TO=self.to, SPLIT_K=self.parts, BLOCK=block,
        )  # fmt: skip

    def _multiply(self, out: torch.Tensor, to: Conversion | None, amax: torch.Tensor | None) -> None:
        config, (m, n, k, batches) = self.config, self.sizes
        tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n) * self.parts * batches
        programs = min(tiles, _processors(out))
        stores = config.descriptors and self.parts == 1 and batches == 1 and n * out.element_size() % 16 == 0
        a, b = (operand.view(torch.uint8) if self.widens else operand for operand, _ in (self.a, self.b))
        e5m2 = [operand.dtype == torch.float8_e5m2 if self.widens else None for operand, _ in (self.a, self.b)]
        left, right = self.factors
        matmul_kernel[(programs,)](
            _descriptor(a, config.block_m, config.block_k) if config.descriptors else a,
            _descriptor(b, config.block_n, config.block_k) if config.descriptors else b,
            _descriptor(out, config.block_m, config.block_n // (2 if config.halves else 1)) if stores else out,
            amax, left.pointer, right.pointer, m, n, k, batches, a.stride(0), b.stride(0), self.a[1], self.b[1],
            left.batch, left.row, left.k, right.batch, right.row, right.k, self.scale,
            A_E5M2=e5m2[0], B_E5M2=e5m2[1],
            FACTORS=self.kind if self.parts == 1 else NO_FACTORS,
            A_FACTOR_ROWS=left.rows, B_FACTOR_ROWS=right.rows,
            IMPRECISE=self.imprecise, TO=to, SPLIT_K=self.parts, LOADS=config.descriptors, STORES=stores,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=config.group_m,
            HALVES=config.halves, PROGRAMS=programs, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def _descriptor(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])


def capability_of(x: torch.Tensor) -> Capability:
    """Compute capability of the device of `x`; in the interpreter 9.0, whose ways need the most of it."""
    if x.is_cuda:
        return torch.cuda.get_device_capability(x.device)
    return HOPPER


@functools.cache
def _processors_of(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _processors(x: torch.Tensor) -> int:
    """How many programs run at the same time; in the interpreter one, which then computes all tiles."""
    if x.is_cuda:
        return _processors_of(x.get_device())
    return 1


def _default(kind: Kind, a: torch.Tensor, shape: torch.Size) -> Config:
    """The first configuration whose tiles keep every processor busy, or the one with the smallest tiles."""
    if interpreter.is_enabled():
        wide = not (kind.blocks or kind.promoted or kind.rounded)
        return _INTERPRETED if wide else replace(_INTERPRETED, block_k=PROMOTION)
    choices = configs(kind)
    return choose(choices, [_tiles(shape, config) for config in choices], _processors(a))


def _tiles(shape: torch.Size, config: Config) -> int:
    """Tiles of a result [..., M, N]."""
    *batch, m, n = shape
    tiles: int = math.prod(batch) * triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    return tiles


def _parts(split_k: int | None, tiles: int, processors: int, k: int, config: Config, blocks: bool) -> int:
    """How many parts K is cut into: none of them empty."""
    if split_k is not None and split_k < 1:
        raise ValueError(f"split_k={split_k}: a number of 1 or more, or None")
    if blocks and split_k not in (None, 1):
        raise ValueError(f"split_k={split_k}: sums with factors of blocks are not split: leave it out")
    steps = triton.cdiv(k, config.block_k)
    if split_k is None:
        # A part of fewer than four steps does not fill the pipeline.
        split_k = 1 if blocks else max(1, min(processors // tiles, steps // 4))
    parts: int = triton.cdiv(steps, triton.cdiv(steps, split_k))
    return parts


def _matrices(x: torch.Tensor, batch: torch.Size) -> tuple[torch.Tensor, int]:
    """x [..., R, K] as matrices below each other [*, K], K-major, and how many rows of them each place of `batch` has.

    0 rows: all places share one matrix.
    """
    rows, k = x.shape[-2:]
    raw = x.detach().view(torch.uint8 if x.element_size() == 1 else torch.int16)  # FP8 cannot be expanded everywhere
    if math.prod(x.shape[:-2]) == 1:
        return _k_major(raw.reshape(rows, k)).view(x.dtype), 0
    return _k_major(raw.expand(*batch, rows, k).reshape(-1, k)).view(x.dtype), rows


def _k_major(x: torch.Tensor) -> torch.Tensor:
    """x [R, K], with contiguous rows that start and end at multiples of 16 elements, as fast loads need: x or a copy.

    A copy's rows are padded with zeros, which add nothing to any sum.
    """
    rows, k = x.shape
    if x.stride(1) == 1 and k % 16 == 0 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x
    copy = torch.zeros(rows, triton.cdiv(k, 16) * 16, dtype=x.dtype, device=x.device)
    copy[:, :k] = x
    return copy


def _factors(name: str, given: Factors, x: torch.Tensor, batch: torch.Size) -> _Factors:
    """Factors of the operand x [..., R, K]."""
    if given is None:
        return _Factors()
    values = torch.as_tensor(given, dtype=torch.float32, device=x.device)
    rows, k = x.shape[-2:]
    if values.numel() == 1:
        return _Factors(values.reshape(1))
    if not is_of_blocks(values, x) and values.shape == x.shape[:-1]:
        spread = values.expand(*batch, rows).contiguous()
        return _Factors(spread, batch=rows, row=1)
    for shared in (1, PROMOTION):
        blocks = triton.cdiv(rows, shared), triton.cdiv(k, PROMOTION)
        if values.shape == (*x.shape[:-2], *blocks):
            spread = values.expand(*batch, *blocks).contiguous()
            return _Factors(spread, batch=math.prod(blocks), row=blocks[1], k=1, rows=shared, is_blocks=True)
    raise ValueError(
        f"{name} has shape {list(values.shape)} and its operand {list(x.shape)}: expected one factor, "
        f"{[*x.shape[:-1]]} for rows, or [..., ceil(R / 1 or 128), ceil(K / 128)] for blocks"
    )


def is_of_blocks(factor: Factors, x: torch.Tensor) -> bool:
    """Whether factors of the operand x [..., R, K] belong to blocks."""
    return isinstance(factor, torch.Tensor) and factor.numel() > 1 and factor.ndim == x.ndim


def _tuned(launch: _Launch, kind: Kind) -> _Launch:
    """The launch with the configuration that `tuning` has for it; a split K keeps its parts, and so their sum."""
    default = launch.config
    same_sum = [other for other in offered(kind) if launch.parts == 1 or other.block_k == default.block_k]
    others = [other for other in same_sum if other != default]
    options = {
        "a": launch.a[0].dtype,
        "b": launch.b[0].dtype,
        "out": launch.out.dtype,
        "factors": ("none", "epilogue", "blocks")[launch.kind],
        "promoted": launch.imprecise > 0,
        "amax": launch.amax is not None,
        "parts": launch.parts,
    }
    config = tuning.pick(
        "matmul",
        launch.out.device,
        options,
        launch.sizes,
        [default, *others],
        lambda c: replace(launch, config=c).run(),
    )
    return replace(launch, config=config)


def _kind(factors: tuple[_Factors, _Factors]) -> int:
    if any(factor.is_blocks for factor in factors):
        return BLOCK_FACTORS
    return EPILOGUE_FACTORS if any(factor.pointer is not None for factor in factors) else NO_FACTORS


def _conversion(out_dtype: torch.dtype, overflow: Overflow) -> Conversion | None:
    if out_dtype not in _FLOAT8:
        return None
    return resolve(FORMATS[str(out_dtype).removeprefix("torch.")], Rounding.TIES_TO_EVEN, overflow)


def _batch(a: torch.Tensor, b: torch.Tensor) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    except RuntimeError:
        raise ValueError(f"leading dimensions of a {list(a.shape)} and b {list(b.shape)} do not broadcast") from None


def _require_operands(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor) or x.dtype not in (*_FLOAT8, *_FLOAT16):
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} must be a tensor of float8_e4m3fn, float8_e5m2, float16 or bfloat16, got {got}")
    if a.dtype != b.dtype and not {a.dtype, b.dtype} <= set(_FLOAT8):
        raise TypeError(f"a and b must have the same dtype, or both FP8, got {a.dtype} and {b.dtype}: cast one of them")
    if out_dtype not in _OUTPUTS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _OUTPUTS)
        raise TypeError(f"out_dtype must be one of {names}, got {out_dtype}")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"expected a [..., M, K] and b [..., N, K], got {list(a.shape)} and {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}")
    require("Triton kernels", capability_of(a), a.device)


def _require_amax(amax: torch.Tensor | None, device: torch.device) -> None:
    if amax is None:
        return
    if amax.numel() != 1 or amax.dtype not in (torch.int32, torch.float32) or amax.device != device:
        raise ValueError(
            f"amax must be one float32 or int32 on {device}, got {list(amax.shape)} {amax.dtype} on {amax.device}: "
            f"torch.zeros((), device=a.device)"
        )
