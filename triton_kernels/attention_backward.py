"""The backward pass of fused attention: gradients of query, key and value, in two passes over the logits.

Query, key and value are read as the forward pass did, in float16, bfloat16 or FP8; FP8 is widened to bfloat16 first, or
multiplied as it is. Every launch is described by a `fp8sim.mma.AttentionBackwardPlan` (`plan_of`), by which
`fp8sim.simulate.attention_backward` computes the same sums. Nothing is added atomically: two runs give the same bits.

Products: five of L * S * D for each head, and the logits' and their gradients' two a second time. Memory besides
operands and results: one float32 per query and head; two bytes per element of FP8 that is widened; where FP8 is
multiplied, one byte per element of the gradient of the output.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from fp8sim.mma.attention_backward import (
    ATTENTION_BACKWARD_PLANS,
    AttentionBackwardPlan,
    BackwardFactors,
    backward_scales,
)
from fp8sim.triton_kernels import interpreter, matmul, tuning
from fp8sim.triton_kernels.attention_backward_configs import Config, Tile, configs, same_sums
from fp8sim.triton_kernels.attention_backward_kernel import over_keys_kernel, over_queries_kernel, row_sums_kernel
from fp8sim.triton_kernels.launching import require_device
from fp8sim.triton_kernels.matmul import HOPPER, Capability, capability_of

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FLOAT16 = (torch.float16, torch.bfloat16)

P_OFFSET = ATTENTION_BACKWARD_PLANS["fp8"].p_offset


_INTERPRETED = Config(Tile(256, 256), Tile(256, 256))
"""Few, large programs: the interpreter takes milliseconds for each whatever its size."""


def attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    lower_right: bool = False,
    query_scale_inv: float = 1.0,
    key_scale_inv: float = 1.0,
    value_scale_inv: float = 1.0,
    output_factor: float = 1.0,
    grad_factors: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    fp8: bool = False,
    grad_output_scale: float | None = None,
    grad_logits_scale: float | None = None,
    dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of O = output_factor * softmax(scale * Q K^T) V, where Q, K, V are numbers as stored times scale_inv.

    They are those of the products Q, K and V, and so of the numbers before they were scaled and cast. The sums follow
    the plan that `plan_of` states; delta, a sum over E, is added in an order of the device's own, and 2^x errs by up to
    2 ulp on a GPU (ex2.approx, PTX ISA).

    Args:
        grad_output: [B, H, L, E], float32, float16 or bfloat16, any strides, expanded ones too; rounded to the dtype
            that is multiplied before anything else.
        query: [B, H, L, D], float16, bfloat16, float8_e4m3fn or float8_e5m2, any strides, on a CUDA device or, in the
            interpreter, on the CPU. FP8 is widened to bfloat16, which holds it.
        key: [B, G, S, D]. value: [B, G, S, E]. G divides H. Of query's dtype; the FP8 dtypes may be mixed.
        output: [B, H, L, E], O, in any floating dtype.
        lse: [B, H, L] float32: log2 sum_j 2^(c s_ij) over the keys that query i sees, s = q k^T of numbers as stored
            and c = scale * query_scale_inv * key_scale_inv * log2(e); +inf where it sees none, which makes the
            gradient of such a row, and all it contributes, exactly zero.
        scale: on the logits, positive; None: D^-1/2.
        is_causal: query i sees keys 0 .. i. window: query i sees keys i - window + 1 .. i.
        lower_right: for both, query i stands at key i + S - L instead of i, so that the last query sees the last key.
        query_scale_inv, key_scale_inv, value_scale_inv: factors of the operands.
        output_factor: of the output. grad_factors: of the gradients of query, key and value; all of these are
            multiplied in float32, once, on sums.
        cu_seqlens_q, cu_seqlens_k: [N + 1] int32, where packed sequences start, 0 first, the number of rows last; B is
            then 1, and each sequence sees itself alone, i counted from its start.
        fp8: multiply FP8: the operands as they are, probabilities in E4M3 times 2^8, gradients of output and logits in
            E5M2, each block of a sum promoted to float32. Gradients then err by E5M2's 2^-3 of single terms. Needs
            compute capability 9.0 and FP8 query, key and value.
        grad_output_scale, grad_logits_scale: with `fp8`, powers of two that multiply these gradients before their cast;
            None: found by `fp8sim.mma.attention_backward.backward_scales`, at the price of reading `grad_output` once
            more.
        dtype: of the results: float32, float16 or bfloat16; None: that of query, bfloat16 for FP8.
        config: tiles; None: those of `tuning.use`, by default those of `attention_backward_configs.configs`.

    Returns:
        Gradients of query [B, H, L, D], key [B, G, S, D] and value [B, G, S, E], contiguous, ties to even. Infinities
        and NaN propagate as in IEEE 754 sums and products, where a mask is a product with zero: a row of the gradient
        that is not finite reaches keys it does not see, up to the end of a block. The cast of `fp8` saturates
        infinities of a gradient whose scale is given; with one that is found, all gradients are NaN.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes, factors or devices that do not fit.
        RuntimeError: no kernel runs on the device: it needs compute capability 8.0 (Ampere) or later.
    """
    _require_operands(grad_output, query, key, value, output, lse, dtype)
    require_device("query", query)
    _require_sequences(query, cu_seqlens_q, cu_seqlens_k)
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a number of keys, 1 or more, or None")
    capability = capability_of(query)
    _require_capability(query, capability, fp8)
    stored_fp8 = query.dtype in _FLOAT8
    multiplied = torch.bfloat16 if stored_fp8 else query.dtype
    factors = BackwardFactors.of(
        query.shape[-1] ** -0.5 if scale is None else scale,
        (query_scale_inv, key_scale_inv, value_scale_inv),
        output_factor,
        grad_factors,
    )
    if 0 in (*query.shape, *value.shape):
        query_grad, key_grad, value_grad = (
            x.new_zeros(x.shape, dtype=dtype or multiplied) for x in (query, key, value)
        )
        return query_grad, key_grad, value_grad
    scales = None
    if fp8:
        scales = backward_scales(grad_output, value, factors.value, grad_output_scale, grad_logits_scale)
    elif (grad_output_scale, grad_logits_scale) != (None, None):
        raise ValueError(
            "grad_output_scale and grad_logits_scale are factors of FP8 casts: pass fp8=True, or drop them"
        )
    grad = _with_contiguous_rows(grad_output if fp8 else grad_output.to(multiplied))
    sums = torch.empty(lse.shape, dtype=torch.float32, device=lse.device)
    cast = torch.empty(grad.shape, dtype=torch.float8_e5m2, device=grad.device) if fp8 else None
    allocate = torch.empty if cu_seqlens_q is None else torch.zeros  # rows may belong to no sequence
    query_grad, key_grad, value_grad = (
        allocate(x.shape, dtype=dtype or multiplied, device=x.device) for x in (query, key, value)
    )
    launch = _Launch(
        operands=tuple(_with_contiguous_rows(x if fp8 else x.to(multiplied)) for x in (query, key, value)),
        grad=grad if cast is None else cast,
        lse=lse.contiguous(),
        sums=sums,
        scales=scales,
        starts=(cu_seqlens_q, cu_seqlens_k),
        factors=factors,
        window=window,
        is_causal=is_causal or window is not None,
        lower_right=lower_right,
        results=(query_grad, key_grad, value_grad),
    )
    with torch.cuda.device_of(query):
        launch.add_rows(grad, _with_contiguous_rows(output), cast)
        launch.run(config or launch.tuned(_offered(query, key, value, capability, fp8, cu_seqlens_q is not None)))
    return query_grad, key_grad, value_grad


def plan_of(
    dtype: torch.dtype, capability: Capability, *, fp8: bool = False, config: Config | None = None
) -> AttentionBackwardPlan:
    """The order in which `attention_backward` adds, for `fp8sim.simulate.attention_backward` to compute the same sums.

    Args:
        dtype: of query, key and value. capability: of the device. fp8: as for `attention_backward`.
        config: tiles of the launch; their steps matter with `fp8`, which adds each by itself. None: 64.

    Raises:
        ValueError: no order is known for the device.
    """
    queries, keys = (config.over_queries.step, config.over_keys.step) if config else (64, 64)
    if fp8:
        chain = matmul.plan_of(dtype, capability)
        over_queries, over_keys = (dataclasses.replace(chain, flush=step) for step in (queries, keys))
        return AttentionBackwardPlan(
            "float8_e4m3fn", "float8_e5m2", "float8_e5m2", P_OFFSET, queries, keys, chain, over_queries, over_keys
        )
    multiplied = torch.bfloat16 if dtype in _FLOAT8 else dtype
    name, chain = str(multiplied).removeprefix("torch."), matmul.plan_of(multiplied, capability)
    if dtype in _FLOAT8:
        chain = dataclasses.replace(chain, widen="bfloat16")
    return AttentionBackwardPlan(name, name, name, 0, queries, keys, chain, chain, chain)


@dataclass(frozen=True)
class _Launch:
    """Everything that the launches of a backward pass share."""

    operands: tuple[torch.Tensor, ...]
    grad: torch.Tensor
    lse: torch.Tensor
    sums: torch.Tensor
    scales: torch.Tensor | None
    starts: _Starts
    factors: BackwardFactors
    window: int | None
    is_causal: bool
    lower_right: bool
    results: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """The gradients of query, key and value."""

    def tuned(self, choices: list[Config]) -> Config:
        """The one of these configurations that `tuning` has, or the first."""
        query, key, value = self.operands
        options = {
            "q": query.dtype,
            "k": key.dtype,
            "v": value.dtype,
            "fp8": self.scales is not None,
            "causal": self.is_causal,
            "windowed": self.window is not None,
            "shared": query.shape[1] // key.shape[1],
        }
        shape = query.shape[0] * query.shape[1], query.shape[2], key.shape[2], query.shape[3], value.shape[3]
        return tuning.pick("attention_backward", query.device, options, shape, choices, self.run)

    def run(self, config: Config) -> None:
        """Both passes, after `add_rows`."""
        query_grad, key_grad, value_grad = self.results
        self.over_queries(config, key_grad, value_grad)
        self.over_keys(config, query_grad)

    def add_rows(self, grad: torch.Tensor, output: torch.Tensor, cast: torch.Tensor | None) -> None:
        """The sums of g * output over the features, and the gradient's cast."""
        batch, heads, length, features = grad.shape
        rows = 1024 if interpreter.is_enabled() else 64
        row_sums_kernel[(triton.cdiv(length, rows) * batch * heads,)](
            grad, output, self.sums, cast, self.scales, grad.stride()[:3], output.stride()[:3],
            length, heads, features, ROWS=rows, BLOCK_E=_padded(features), num_warps=4,
        )  # fmt: skip

    def over_queries(self, config: Config, grad_key: torch.Tensor, grad_value: torch.Tensor) -> None:
        tile, factors = config.over_queries, self.factors
        batch, groups, keys, _ = grad_key.shape
        table, blocks = _table(self.starts, self.starts[1], keys, tile.rows)
        tensors, strides, loads = self._operands(tile.step, tile.rows, config.descriptors)
        over_queries_kernel[(blocks * batch * groups,)](
            *tensors, self.lse, self.sums, grad_key, grad_value, self.scales, strides, self._sizes(groups), table,
            (factors.base2, factors.value, factors.key, factors.value_sum), blocks, self.window, **self._constants(),
            LOADS=loads, P_OFFSET=P_OFFSET if self.scales is not None else 0,
            KEYS=tile.rows, QUERIES=tile.step, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    def over_keys(self, config: Config, grad_query: torch.Tensor) -> None:
        tile, factors = config.over_keys, self.factors
        batch, heads, length, _ = grad_query.shape
        table, blocks = _table(self.starts, self.starts[0], length, tile.rows)
        tensors, strides, loads = self._operands(tile.rows, tile.step, config.descriptors)
        over_keys_kernel[(blocks * batch * heads,)](
            *tensors, self.lse, self.sums, grad_query, self.scales, strides, self._sizes(heads), table,
            (factors.base2, factors.value, factors.query), blocks, self.window, **self._constants(),
            LOADS=loads, KEYS=tile.step, QUERIES=tile.rows, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    def _operands(
        self, queries: int, keys: int, descriptors: bool
    ) -> tuple[list[Any], tuple[tuple[int, ...], ...], bool]:
        """Query, key, value and gradient as a kernel sees them, their strides, and whether they are descriptors.

        Tiles of descriptors lie within their heads.
        """
        tensors = [*self.operands, self.grad]
        rows = (queries, keys, keys, queries)
        if descriptors and self.starts[0] is None:
            cut = [_descriptor(x, count) for x, count in zip(tensors, rows, strict=True)]
            found = [descriptor for descriptor in cut if descriptor is not None]
            if len(found) == len(cut):
                return [descriptor for descriptor, _ in found], tuple(strides for _, strides in found), True
        return tensors, tuple(x.stride()[:3] for x in tensors), False

    def _sizes(self, heads: int) -> tuple[int, int, int, int, int]:
        query, _, value = self.operands
        return query.shape[2], value.shape[2], query.shape[3], value.shape[3], heads

    def _constants(self) -> dict[str, Any]:
        query, key, value = self.operands
        return {
            "CAUSAL": self.is_causal,
            "LOWER_RIGHT": self.lower_right,
            "SHARED": query.shape[1] // key.shape[1],
            "FP8": self.scales is not None,
            "BLOCK_D": _padded(query.shape[3]),
            "BLOCK_E": _padded(value.shape[3]),
        }


def _descriptor(x: torch.Tensor, rows: int) -> tuple[TensorDescriptor, tuple[int, int, int, int]] | None:
    """Tiles [rows, features] of x [B, H, R, W], and the rows from one batch and one head to the next, 1, and the
    columns from one head to the next; None if tiles would leave their head, or the copy engine does not reach them."""
    batch, heads, length, width = x.shape
    per_batch, per_head, per_row, _ = x.stride()
    unit = 16 // x.element_size()
    if length % rows or width != _padded(width) or x.data_ptr() % 16 or per_row % unit or per_row < width:
        return None
    columns = per_head if per_head < per_row else 0
    if per_batch % per_row or (per_head % per_row and not columns) or columns % unit:
        return None
    strides = (per_batch // per_row, 0 if columns else per_head // per_row, 1, columns)
    last = (batch - 1) * strides[0] + (heads - 1) * strides[1] + length
    shape = [last, (heads - 1) * columns + width]
    return TensorDescriptor(x, shape, [per_row, 1], [rows, width]), strides


_Starts = tuple[torch.Tensor | None, torch.Tensor | None]


def _table(both: _Starts, starts: torch.Tensor | None, rows: int, block: int) -> tuple[tuple[Any, ...], int]:
    """Which sequence each program of a head works on, the first program of that sequence, and where sequences start;
    and how many programs there are.

    Packed sequences take at most one block more each than their rows fill; programs without one see themselves as
    before their first block.
    """
    if starts is None:
        return (None, None, None, None), triton.cdiv(rows, block)
    sequences = len(starts) - 1
    programs = rows // block + sequences
    counts = (starts.diff() + block - 1) // block
    ends = counts.cumsum(0)
    index = torch.arange(programs, device=starts.device)
    sequence = torch.searchsorted(ends, index, right=True)
    known = sequence.clamp(max=sequences - 1)
    first = torch.where(sequence < sequences, (ends - counts)[known], index + 1)
    return (known.to(torch.int32), first.to(torch.int32), *both), programs


def _padded(features: int) -> int:
    """Features of a tile: a power of two that the products of every type can add over."""
    width: int = max(32, triton.next_power_of_2(features))
    return width


def _with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy if its features are not next to each other, or its rows too far apart for tiles of 32-bit places."""
    return x if x.stride(-1) == 1 and x.stride(-2) < 1 << 22 else x.contiguous()


def _offered(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, capability: Capability, fp8: bool, packed: bool
) -> list[Config]:
    """The default and, where its tiles fill the heads, others that give the same bits; the last of `configs` where they
    do not."""
    widths = [_padded(x.shape[-1]) for x in (query, value)]
    *whole, ragged = configs(max(widths), capability, fp8=fp8)
    tiles = [tile for config in whole for tile in (config.over_queries, config.over_keys)]
    rows = {rows for tile in tiles for rows in (tile.rows, tile.step)}
    fill = not any(length % count for length in (query.shape[2], key.shape[2]) for count in rows)
    fill = fill and not packed and widths == [query.shape[-1], value.shape[-1]]
    choices = whole if whole and fill else [ragged]
    if interpreter.is_enabled():
        choices = [Config(Tile(256, 64), Tile(256, 64)) if fp8 else _INTERPRETED, *choices[1:]]
    return same_sums(choices, fp8=fp8)


def _require_operands(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    dtype: torch.dtype | None,
) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, torch.Tensor) or x.dtype not in (*_FLOAT8, *_FLOAT16):
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} must be a tensor of float8_e4m3fn, float8_e5m2, float16 or bfloat16, got {got}")
        if x.dtype != query.dtype and not {x.dtype, query.dtype} <= set(_FLOAT8):
            raise TypeError(f"query is {query.dtype} and {name} {x.dtype}: cast one of them, or both to FP8")
    for name, x in (("grad_output", grad_output), ("output", output)):
        if x.dtype not in (torch.float32, *_FLOAT16):
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")
    if lse.dtype != torch.float32:
        raise TypeError(f"lse must be float32, as the forward pass returns it, got {lse.dtype}")
    if dtype not in (None, torch.float32, *_FLOAT16):
        raise TypeError(f"dtype must be float32, float16, bfloat16 or None, got {dtype}")
    _require_shapes(grad_output, query, key, value, output, lse)
    for name, x in (("key", key), ("value", value), ("grad_output", grad_output), ("output", output), ("lse", lse)):
        if x.device != query.device:
            raise ValueError(f"{name} is on {x.device} and query on {query.device}: move one of them")


def _require_shapes(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    fits = query.ndim == key.ndim == value.ndim == 4 and key.shape[:3] == value.shape[:3]
    fits = fits and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not fits or key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"expected query [B, H, L, D], key [B, G, S, D] and value [B, G, S, E], G dividing H, got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    if max(query.shape[3], value.shape[3]) > 256:
        raise ValueError(
            f"heads have D = {query.shape[3]} and E = {value.shape[3]} features: the kernel takes up to 256"
        )
    rows = query.shape[:3]
    for name, x, shape in (
        ("grad_output", grad_output, (*rows, value.shape[3])),
        ("output", output, (*rows, value.shape[3])),
        ("lse", lse, rows),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {list(x.shape)}: expected {list(shape)}")


def _require_sequences(query: torch.Tensor, starts_q: torch.Tensor | None, starts_k: torch.Tensor | None) -> None:
    if starts_q is None and starts_k is None:
        return
    if starts_q is None or starts_k is None:
        raise ValueError("cu_seqlens_q and cu_seqlens_k go together: pass both, or neither")
    for name, starts in (("cu_seqlens_q", starts_q), ("cu_seqlens_k", starts_k)):
        if starts.ndim != 1 or starts.dtype != torch.int32 or starts.device != query.device or len(starts) < 2:
            raise ValueError(
                f"{name} must be int32 [N + 1] on {query.device}, got {starts.dtype} {list(starts.shape)} on "
                f"{starts.device}"
            )
    if len(starts_q) != len(starts_k) or query.shape[0] != 1:
        raise ValueError(
            f"packed sequences are those of one batch, as many of queries as of keys: got B = {query.shape[0]}, "
            f"{len(starts_q) - 1} and {len(starts_k) - 1} sequences"
        )


def _require_capability(query: torch.Tensor, capability: Capability, fp8: bool) -> None:
    if capability < (8, 0):
        raise RuntimeError(
            f"attention needs compute capability 8.0 or later (Ampere), and {query.device} has "
            f"{capability[0]}.{capability[1]}: simulate on the CPU, with fp8sim.use_backend('simulate')"
        )
    if fp8 and query.dtype not in _FLOAT8:
        raise ValueError(f"fp8=True multiplies query, key and value as they are stored, and query is {query.dtype}")
    if fp8 and capability != HOPPER:
        raise RuntimeError(
            f"fp8=True needs compute capability 9.0 (Hopper), and {query.device} has {capability[0]}.{capability[1]}: "
            f"leave it out, and FP8 is widened to bfloat16"
        )
