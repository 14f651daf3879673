"""The backward pass of fused attention as a kernel computes it, in the order of additions that a plan states."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8sim import casting, formats
from fp8sim.formats import FORMATS
from fp8sim.mma import attention_backward as plans
from fp8sim.mma import gemm
from fp8sim.mma.attention_backward import AttentionBackwardPlan, BackwardFactors, backward_scales
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import operand_dtype
from fp8sim.rounding import Overflow
from fp8sim.simulate.attention import _exp2, _fused_multiply_add
from fp8sim.simulate.operands import Operands, operands

Array = NDArray[Any]
Float32 = NDArray[np.float32]


def attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    *,
    plan: str | AttentionBackwardPlan | None = None,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of O = output_factor * softmax(scale * Q K^T) V, where Q, K, V are numbers as stored times scale_inv.

    Products are added bit for bit as the plan's instructions do. 2^x is rounded correctly to float32, where GPUs err by
    up to 2 ulp (ex2.approx, PTX ISA), and delta is added exactly, then rounded to float32, where a GPU's threads add in
    float32. So where logits in base 2 and `lse` are integers and the products of `grad_output` and `output` small ones,
    every bit is a kernel's.

    Args:
        plan: the order of operations: an `AttentionBackwardPlan`, a name of `ATTENTION_BACKWARD_PLANS`, or its text;
            None: that of the dtypes on Hopper, FP8 widened to bfloat16 unless `fp8`.
        fp8: without a plan: the one that multiplies FP8.

    The other arguments, the result and the errors are those of `fp8sim.triton_kernels.attention_backward`, on the CPU.
    """
    plan = plans.parse(plan) if plan is not None else _default_plan(query.dtype, fp8)
    q, k, v = operands(query, "a", None, None), operands(key, "a", None, None), operands(value, "a", None, None)
    factors = BackwardFactors.of(
        query.shape[-1] ** -0.5 if scale is None else scale,
        (query_scale_inv, key_scale_inv, value_scale_inv),
        output_factor,
        grad_factors,
    )
    scales = np.ones(4, np.float32)
    if formats.parse(plan.grad_output_format).bits == 8:
        scales = backward_scales(grad_output, value, factors.value, grad_output_scale, grad_logits_scale).numpy()
    grad = casting.encode(
        _float32(grad_output) * scales[0], plan.grad_output_format, overflow=_overflow(plan.grad_output_format)
    )
    delta = _row_sums(casting.decode(grad, plan.grad_output_format, dtype="float32"), _float32(output)) * scales[2]

    gradients = [np.zeros(x.shape, np.float32) for x in (query, key, value)]
    heads, groups = query.shape[1], key.shape[1]
    for batch, group in np.ndindex(query.shape[0], groups):
        for rows, keys in _sequences(cu_seqlens_q, cu_seqlens_k, query.shape[2], key.shape[2]):
            shared = range(group * heads // groups, (group + 1) * heads // groups)
            one = _Sequence(
                key=_matrix(k, (batch, group), keys),
                value=_matrix(v, (batch, group), keys),
                heads=[
                    _Head(
                        query=_matrix(q, (batch, head), rows),
                        grad=Operand(grad[batch, head, rows], plan.grad_output_format),
                        lse=lse[batch, head, rows].numpy(),
                        delta=delta[batch, head, rows],
                    )
                    for head in shared
                ],
                seen=_visible(rows, keys, is_causal, window, lower_right),
                plan=plan,
                factors=factors,
                scales=scales,
            )
            gradients[1][batch, group, keys], gradients[2][batch, group, keys] = one.over_queries()
            for head, sums in zip(shared, one.over_keys(), strict=True):
                gradients[0][batch, head, rows] = sums
    stored = torch.bfloat16 if query.element_size() == 1 else query.dtype
    query_grad, key_grad, value_grad = (torch.from_numpy(x).to(dtype or stored) for x in gradients)
    return query_grad, key_grad, value_grad


@dataclass(frozen=True)
class _Head:
    """One head of queries [L, D], the gradient of its output as it is multiplied [L, E], and what each row has [L]."""

    query: Operand
    grad: Operand
    lse: Float32
    delta: Float32


@dataclass(frozen=True)
class _Sequence:
    """Keys [S, D] and values [S, E] of one head, and the heads of queries that read them."""

    key: Operand
    value: Operand
    heads: list[_Head]
    seen: NDArray[np.bool_]
    plan: AttentionBackwardPlan
    factors: BackwardFactors
    scales: Float32

    def over_queries(self) -> tuple[Float32, Float32]:
        """The gradients of keys and values."""
        plan, scales = self.plan, self.scales
        grad_k = np.zeros(self.key.codes.shape, np.float32)
        grad_v = np.zeros(self.value.codes.shape, np.float32)
        for head in self.heads:
            for first in range(0, len(head.lse), plan.queries):
                rows = slice(first, first + plan.queries)
                p, d = self._tile(head, rows, slice(None), plan.p_offset)
                grad = _columns(head.grad, rows)
                grad_v = gemm.multiply(_cast(p.T, plan.p_format), grad, grad_v, plan.over_queries)
                query = _columns(head.query, rows)
                grad_k = gemm.multiply(_cast(d.T, plan.grad_logits_format), query, grad_k, plan.over_queries)
        undone = np.float32(2.0**-plan.p_offset) * scales[2]
        return (
            grad_k * (np.float32(self.factors.key) * scales[3]),
            grad_v * (np.float32(self.factors.value_sum) * undone),
        )

    def over_keys(self) -> list[Float32]:
        """The gradients of each head of queries."""
        plan, gradients = self.plan, []
        for head in self.heads:
            grad_q = np.zeros(head.query.codes.shape, np.float32)
            for first in range(0, len(self.key.codes), plan.keys):
                keys = slice(first, first + plan.keys)
                _, d = self._tile(head, slice(None), keys, 0)
                key = _columns(self.key, keys)
                grad_q = gemm.multiply(_cast(d, plan.grad_logits_format), key, grad_q, plan.over_keys)
            gradients.append(grad_q * (np.float32(self.factors.query) * self.scales[3]))
        return gradients

    def _tile(self, head: _Head, rows: slice, keys: slice, p_offset: int) -> tuple[Float32, Float32]:
        """Probabilities times 2^p_offset, and gradients of logits times their scale, in float32 [rows, keys]."""
        plan = self.plan
        s = gemm.multiply(_rows(head.query, rows), _rows(self.key, keys), None, plan.logits)
        t = gemm.multiply(_rows(head.grad, rows), _rows(self.value, keys), None, plan.logits)
        exponents = _fused_multiply_add(s, np.float32(self.factors.base2), np.float32(p_offset) - head.lse[rows])
        p = np.where(self.seen[rows, keys], _exp2(exponents), np.float32(0))
        sum_factor = np.float32(2.0**-p_offset) * self.scales[1]
        t_factor = np.float32(self.factors.value) * (sum_factor * self.scales[2])
        with np.errstate(invalid="ignore", over="ignore"):
            return p, p * _fused_multiply_add(t, t_factor, -(head.delta[rows] * sum_factor))


def _default_plan(dtype: torch.dtype, fp8: bool) -> AttentionBackwardPlan:
    if fp8:
        return plans.parse("fp8")
    if dtype.itemsize == 1:
        chain = "sm90.wgmma;widen=bfloat16"
        return AttentionBackwardPlan(logits=chain, over_queries=chain, over_keys=chain)  # type: ignore[arg-type]
    return plans.parse("fp16" if dtype == torch.float16 else "bf16")


def _float32(x: torch.Tensor) -> Float32:
    numbers: Float32 = x.detach().float().contiguous().numpy()
    return numbers


def _row_sums(grad: Float32, output: Float32) -> Float32:
    """sum(g o) over the features, rounded to float32 once."""
    with np.errstate(invalid="ignore"):
        sums: Float32 = (grad.astype(np.float64) * output).sum(-1).astype(np.float32)
    return sums


def _sequences(
    starts_q: torch.Tensor | None, starts_k: torch.Tensor | None, length: int, keys: int
) -> list[tuple[slice, slice]]:
    """The rows of queries and of keys of each sequence."""
    if starts_q is None or starts_k is None:
        return [(slice(0, length), slice(0, keys))]
    bounds = [[slice(*pair) for pair in itertools.pairwise(x)] for x in (starts_q.tolist(), starts_k.tolist())]
    return list(zip(*bounds, strict=True))


def _visible(rows: slice, keys: slice, is_causal: bool, window: int | None, lower_right: bool) -> NDArray[np.bool_]:
    """[L, S]: which keys of its sequence a query sees."""
    length, count = rows.stop - rows.start, keys.stop - keys.start
    place = np.arange(length)[:, None] + (count - length if lower_right else 0)
    key = np.arange(count)[None, :]
    seen = np.ones((length, count), bool)
    if is_causal or window is not None:
        seen &= key <= place
    if window is not None:
        seen &= key > place - window
    return seen


def _matrix(x: Operands, index: tuple[int, int], rows: slice) -> Operand:
    return Operand(x.codes[index][rows], x.format)


def _rows(x: Operand, rows: slice) -> Operand:
    return Operand(x.codes[rows], x.format)


def _columns(x: Operand, rows: slice) -> Operand:
    """Rows of x as what is added over: [features, rows]."""
    return Operand(np.ascontiguousarray(x.codes[rows].T), x.format)


def _cast(x: Float32, fmt: str) -> Operand:
    codes = casting.encode(np.ascontiguousarray(x), fmt, overflow=_overflow(fmt))
    return Operand(codes.astype(operand_dtype(fmt)), fmt)


def _overflow(fmt: str) -> Overflow:
    """FP8 saturates, as the GPU's conversion does; wider formats have infinities."""
    return Overflow.SATURATE if FORMATS[fmt].bits == 8 else Overflow.INFINITY
