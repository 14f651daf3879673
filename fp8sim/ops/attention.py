"""`scaled_dot_product_attention` by a fused kernel's plan: registered, differentiable, on any backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from fp8sim import backends, formats
from fp8sim.arguments import FLOATS
from fp8sim.derivatives import differentiable_once
from fp8sim.mma.attention import AttentionPlan, default_plan
from fp8sim.mma.attention import parse as parse_plan
from fp8sim.ops.attention_arguments import (
    FLOAT8,
    check_factors,
    check_mask,
    check_operands,
    check_options,
    check_sequences,
)
from fp8sim.ops.cast import encode
from fp8sim.ops.encode_scaled import encode_scaled
from fp8sim.ops.library import constant_result, register
from fp8sim.rounding import Overflow
from fp8sim.torch_autocast import autocast


class _Options(NamedTuple):
    """What both passes need to know, beside tensors; `factors` are of query, key, value and output."""

    scale: float
    is_causal: bool
    window: int | None
    lower_right: bool
    factors: list[float]

    def as_keywords(self) -> dict[str, Any]:
        """As backends take them."""
        names = ("query_scale_inv", "key_scale_inv", "value_scale_inv", "output_factor")
        rest = self._asdict()
        del rest["factors"]
        return {**rest, **dict(zip(names, self.factors, strict=True))}


def _attention_impl(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    plan: str,
    scale: float,
    is_causal: bool,
    window: int | None,
    lower_right: bool,
    factors: list[float],
    dtype: torch.dtype,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    result: tuple[torch.Tensor, ...] = backends.row("attention", backend).load()(
        query,
        key,
        value,
        plan=plan or None,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        dtype=dtype,
        **_Options(scale, is_causal, window, lower_right, factors).as_keywords(),
    )
    return result


def _attention_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    dtype, rows = rest[-2], query.shape[:-1]
    return query.new_empty(*rows, value.shape[-1], dtype=dtype), query.new_empty(rows, dtype=torch.float32)


_attention_op = register(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, str plan, "
    "float scale, bool is_causal, int? window, bool lower_right, float[] factors, ScalarType dtype, str backend) "
    "-> (Tensor, Tensor)",
    _attention_impl,
    _attention_fake,
)


def _backward_impl(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    scale: float,
    is_causal: bool,
    window: int | None,
    lower_right: bool,
    factors: list[float],
    fp8: bool,
    dtype: torch.dtype,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = backends.row("attention_backward", backend).load()(
        grad_output,
        query,
        key,
        value,
        output,
        lse,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        fp8=fp8,
        dtype=dtype,
        **_Options(scale, is_causal, window, lower_right, factors).as_keywords(),
    )
    return result


def _backward_fake(
    grad_output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = rest[-2]
    gradients = [x.new_empty(x.shape, dtype=dtype) for x in (query, key, value)]
    return gradients[0], gradients[1], gradients[2]


_backward_op = register(
    "attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, float scale, bool is_causal, int? window, bool lower_right, "
    "float[] factors, bool fp8, ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)


class _Attention(torch.autograd.Function):
    """The first three tensors are what gradients are for; the next three are what is computed with, and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_starts: torch.Tensor | None,
        k_starts: torch.Tensor | None,
        plan: str,
        options: _Options,
        dtype: torch.dtype,
        fp8_backward: bool,
        backend: str,
    ) -> torch.Tensor:
        output, lse = _attention_op(q, k, v, q_starts, k_starts, plan, *options, dtype, backend)
        ctx.save_for_backward(q, k, v, output, lse, q_starts, k_starts)
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        ctx.options, ctx.fp8, ctx.backend = options, fp8_backward, backend
        result: torch.Tensor = output
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, q_starts, k_starts = ctx.saved_tensors
        # One dtype that all three round to once.
        dtype = ctx.dtypes[0] if len(set(ctx.dtypes)) == 1 and ctx.dtypes[0] in FLOATS else torch.float32
        found = _backward_op(grad, *tensors, q_starts, k_starts, *ctx.options, ctx.fp8, dtype, ctx.backend)
        gradients = (
            x.to(own) if needed else None
            for x, own, needed in zip(found, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        )
        return (*gradients, *[None] * 10)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    plan: str | AttentionPlan | None = None,
    window: int | None = None,
    lower_right: bool = False,
    query_scale_inv: float = 1.0,
    key_scale_inv: float = 1.0,
    value_scale_inv: float = 1.0,
    output_factor: float = 1.0,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    fp8_backward: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """output_factor * softmax(scale * query @ key^T) @ value, as a fused kernel that follows `plan` computes it.

    In place of torch's function: a Triton kernel on CUDA tensors, its simulation on a CPU. Operands in FP8 are numbers
    as stored, which `*_scale_inv` multiply; a plan of 16 bits widens them, exactly. Others are cast to what the plan
    multiplies: E4M3 if it casts probabilities to FP8, otherwise its 16-bit format; they are multiplied by 1 / scale_inv
    first, rounded to float32, ties to even, out of range to the largest (FP8) or to infinity. Under `torch.autocast`
    those that are not FP8 have its dtype before, as in torch. Gradients are those of the real numbers, as if nothing
    were cast, and can be differentiated no further; what is kept for them are the cast operands, the output and one
    number for each row. The backward pass multiplies in bfloat16 if operands are FP8.

    Args:
        query: [..., H, L, D], float32, float16, bfloat16, float8_e4m3fn or float8_e5m2; the last two get no gradient.
        key: [..., G, S, D]. value: [..., G, S, E].
        attn_mask, dropout_p: None and 0: fused kernels here have no others.
        is_causal: query i sees keys 0 .. i.
        scale: on the logits, positive; None: D^-1/2.
        enable_gqa: G divides H, each key and value serving H / G queries; otherwise G is H.
        plan: an `AttentionPlan`, a name of `fp8sim.mma.ATTENTION_PLANS` or its text; None: what fits the dtype of
            `value`, in the order in which the device adds (`fp8sim.triton_kernels.attention.plan_of`). A plan that the
            backend cannot follow is refused.
        window: query i sees keys i - window + 1 .. i.
        lower_right: for both, query i stands at key i + S - L, so that the last query sees the last key.
        query_scale_inv, key_scale_inv, value_scale_inv: factors of the operands. output_factor: of the output. All are
            positive, and numbers of float32 with their inverses and products.
        cu_seqlens_q, cu_seqlens_k: [N + 1] int32: N sequences packed in L and in S, where each begins, and the end.
        fp8_backward: multiply FP8 in the backward pass, too.
        dtype: of the output: float32, float16 or bfloat16; None: that of the query (autocast's), or bfloat16 for FP8.

    Returns:
        [..., H, L, E]. Rows that see no key are 0.

    Raises:
        ValueError: shapes, a plan or an option that does not fit.
        TypeError: a dtype that is not taken, or an argument of another kind.
        RuntimeError: no kernel runs on the device; the message says what it needs.
    """
    check_operands(query, key, value, enable_gqa)
    check_mask(attn_mask, dropout_p)
    check_options(plan, scale, window, dtype, is_causal=is_causal, lower_right=lower_right, fp8_backward=fp8_backward)
    check_sequences(query, cu_seqlens_q, cu_seqlens_k)
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    given = {"query_scale_inv": query_scale_inv, "key_scale_inv": key_scale_inv, "value_scale_inv": value_scale_inv}
    check_factors(scale, **given, output_factor=output_factor)
    query, key, value = autocast(query, key, value)
    order, target = _resolved(plan, str(value.dtype).removeprefix("torch."))
    factors = [float(x) for x in given.values()]
    batch = math.prod(query.shape[:-3])
    matrices = [x.reshape(batch, *x.shape[-3:]) for x in (query, key, value)]
    cast = [_stored(x, target, factor) for x, factor in zip(matrices, factors, strict=True)]
    if fp8_backward and not all(x.dtype in FLOAT8 for x in cast):
        raise ValueError(
            f"fp8_backward=True multiplies operands in FP8, got {[str(x.dtype) for x in cast]}: pass plan='fa3.fp8'"
        )
    options = _Options(scale, is_causal, window, lower_right, [*factors, float(output_factor)])
    if dtype is None:
        dtype = torch.bfloat16 if query.dtype in FLOAT8 else query.dtype
    output: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        *matrices,
        *cast,
        cu_seqlens_q,
        cu_seqlens_k,
        order,
        options,
        dtype,
        fp8_backward,
        backends.select("attention", query.device.type),
    )
    return output.reshape(*query.shape[:-1], value.shape[-1])


@constant_result
def _resolved(plan: str | AttentionPlan | None, value: str) -> tuple[str, str]:
    """The plan's text, or nothing; and what operands that are not FP8 are cast to, with values of that dtype."""
    if plan is None and value == "float32":
        raise TypeError(
            "value is float32, which no fused kernel multiplies: choose what it is cast to with plan='bf16', 'fp16' or "
            "'fa3.fp8'"
        )
    chosen = default_plan(value) if plan is None else parse_plan(plan)
    target = chosen.p_format if formats.parse(chosen.p_format).bits == 16 else "float8_e4m3fn"
    return "" if plan is None else str(chosen), target


def _stored(x: torch.Tensor, target: str, scale_inv: float) -> torch.Tensor:
    """x in FP8 as it is, or widened if that is the format of 16 bits; other x / scale_inv cast to the format."""
    x = x.detach()
    dtype = getattr(torch, target)
    if x.dtype in FLOAT8:
        return x if dtype in FLOAT8 else x.to(dtype)
    if x.dtype == dtype and scale_inv == 1.0:
        return x
    overflow = Overflow.SATURATE if dtype in FLOAT8 else Overflow.INFINITY
    if scale_inv == 1.0:
        codes = encode(x, target, overflow=overflow)
    else:
        codes = encode_scaled(x, target, 1 / scale_inv, overflow=overflow).codes
    stored: torch.Tensor = codes.view(dtype)
    return stored
