"""Fused attention, block of keys by block of keys, with the bits of the probabilities that a kernel casts.

The difference to the definition, softmax(q k^T) v, is what FP8 kernels get wrong: where probabilities lie in their
format, which maximum they are relative to, and what the denominator adds up. `AttentionPlan` holds these choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8sim import _core, casting, formats
from fp8sim.arguments import check_positive, check_tensor_of
from fp8sim.mma import attention as plans
from fp8sim.mma import gemm
from fp8sim.mma.attention import AttentionPlan, Denominator
from fp8sim.mma.gemm import Operand
from fp8sim.simulate.operands import operands

Array = NDArray[Any]
Float32 = NDArray[np.float32]

_FIRST_PRODUCT, _FUSED = 2, 2
_DTYPES = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float16,
    torch.bfloat16,
)


@dataclass(frozen=True)
class AttentionResult:
    """What a fused kernel computes.

    Attributes:
        output: [..., H, L, E] float32: o / l times the factors, unrounded; 0 in rows that see no key.
        p_codes: [..., H, L, S], the probabilities' codes in the plan's format, relative to the maximum of their time;
            code 0 where a key is not seen.
        denominator: [..., H, L] float32, l.
        maximum: [..., H, L] float32, m, in units of q k^T; -inf in rows that see no key.
        lse: [..., H, L] float32, log2 of the denominator, relative to a logit of 0 and without the plan's offset:
            c m + (log2(l) - p_offset), so that 2^(c s - lse) are the row's probabilities; +inf in rows that see no key.
    """

    output: torch.Tensor
    p_codes: torch.Tensor
    denominator: torch.Tensor
    maximum: torch.Tensor
    lse: torch.Tensor


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    plan: str | AttentionPlan = "fa3.fp8",
    scale: float | None = None,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    lower_right: bool = False,
    query_scale_inv: float = 1.0,
    key_scale_inv: float = 1.0,
    value_scale_inv: float = 1.0,
    output_factor: float = 1.0,
) -> AttentionResult:
    """softmax(scale * query @ key^T) @ value as a kernel that follows `plan` computes it.

    Products are added bit for bit as the plan's instructions do. 2^x is rounded correctly to float32, where GPUs err by
    up to 2 ulp (ex2.approx, PTX ISA), and a block's probabilities are added exactly, then rounded to float32, where a
    GPU's threads add in float32. So with logits whose base-2 values are integers every bit is a kernel's, and otherwise
    codes differ where a probability lies within these errors of a boundary.

    Args:
        query: [..., H, L, D], a tensor of a float8 dtype, float16 or bfloat16.
        key: [..., G, S, D]. value: [..., G, S, E]. G divides H: each key and value serves H / G queries.
        plan: an `AttentionPlan`, a name of `fp8sim.mma.ATTENTION_PLANS`, or its text.
        scale: on the logits, positive; None: D^-1/2.
        attn_mask: [L, S] bool, True where a key is seen; None: everywhere.
        is_causal: query i sees keys 0 .. i, in addition.
        window: query i sees keys i - window + 1 .. i, in addition.
        lower_right: for both, query i stands at key i + S - L instead of i, so that the last query sees the last key.
        query_scale_inv, key_scale_inv, value_scale_inv: factors of the operands; the first two multiply the scale.
        output_factor: multiplies the output, together with the factor of the values, in float32.

    Raises:
        ValueError: shapes that do not fit, a scale that is not positive, an unknown plan or one whose instructions do
            not take the formats.
        TypeError: an operand of another kind.
    """
    plan = plans.parse(plan)
    given = {"query": query, "key": key, "value": value}
    for name, x in given.items():
        check_tensor_of(name, x, _DTYPES)
    q, k, v = (operands(x, name, None, None) for name, x in given.items())
    _check(q.codes.shape, k.codes.shape, v.codes.shape, window)
    _check_products(plan, q.format, k.format, v.format)
    *batch, heads, length, width = q.codes.shape
    groups, keys, features = *k.codes.shape[-3:-1], v.codes.shape[-1]
    scale = width**-0.5 if scale is None else scale
    check_positive("scale", scale)
    base2 = np.float32(plans.base2_scale(scale, query_scale_inv, key_scale_inv))
    seen = _visible(length, keys, attn_mask, is_causal, window, keys - length if lower_right else 0)

    rows = (*batch, heads, length)
    output = np.zeros((*rows, features), np.float32)
    codes = np.zeros((*rows, keys), casting.code_dtype(formats.parse(plan.p_format)))
    denominator, maximum = np.zeros(rows, np.float32), np.full(rows, -np.inf, np.float32)
    for index in np.ndindex(*batch, heads):
        group = (*index[:-1], index[-1] * groups // heads)
        state = _Rows.empty(length, features)
        for block in _starts(keys, plan):
            columns = slice(block, block + plan.block)
            codes[index][:, columns] = state.add(
                Operand(q.codes[index], q.format),
                Operand(k.codes[group][columns], k.format),
                Operand(np.ascontiguousarray(v.codes[group][columns].T), v.format),
                seen[:, columns],
                base2,
                plan,
            )
        output[index] = state.finish(np.float32(value_scale_inv * output_factor), plan)
        denominator[index], maximum[index] = state.denominator, state.maximum
    lse = _log2_of_sums(denominator, maximum, base2, plan)
    return AttentionResult(*(torch.from_numpy(x) for x in (output, codes, denominator, maximum, lse)))


@dataclass
class _Rows:
    """What a program keeps of its rows of queries between blocks of keys."""

    output: Float32
    denominator: Float32
    maximum: Float32

    @classmethod
    def empty(cls, rows: int, features: int) -> _Rows:
        return cls(
            np.zeros((rows, features), np.float32), np.zeros(rows, np.float32), np.full(rows, -np.inf, np.float32)
        )

    def add(
        self,
        query: Operand,
        key: Operand,
        value: Operand,
        seen: NDArray[np.bool_],
        base2: np.float32,
        plan: AttentionPlan,
    ) -> Array:
        """Take in a block of keys [B, D] and values, transposed [E, B]; returns the codes of its probabilities."""
        logits = np.where(seen, gemm.multiply(query, key, None, plan.logits), np.float32(-np.inf))
        before, self.maximum = self.maximum, self._followed(logits.max(1), base2, plan)
        reference = np.where(np.isneginf(self.maximum), np.float32(0), self.maximum)  # rows that see no key yet
        shrink = _exp2(base2 * (before - reference))
        offset = np.full(len(reference), plan.p_offset, np.float32)
        shift = _fused_multiply_add(reference[:, None], -base2, offset)[:, 0]
        exact = _exp2(_fused_multiply_add(logits, base2, shift))
        codes = casting.encode(exact, plan.p_format, overflow=plan.p_overflow)
        kept = (
            exact if plan.denominator is Denominator.BEFORE else casting.decode(codes, plan.p_format, dtype="float32")
        )
        self.denominator = self.denominator * shrink + kept.astype(np.float64).sum(1).astype(np.float32)
        start = np.ascontiguousarray(self.output * shrink[:, None])
        self.output = gemm.multiply(Operand(codes, plan.p_format), value, start, plan.mixed)
        return codes

    def _followed(self, block_maximum: Float32, base2: np.float32, plan: AttentionPlan) -> Float32:
        """The maximum that this block's probabilities are relative to."""
        risen: Float32 = np.maximum(self.maximum, block_maximum)
        with np.errstate(invalid="ignore"):  # -inf - -inf, which follows
            keeps = base2 * (risen - self.maximum) <= np.float32(plan.rescale_above)
        return np.where(keeps, self.maximum, risen)

    def finish(self, factor: np.float32, plan: AttentionPlan) -> Float32:
        """o / l times the factor of the values."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if plan.reciprocal:
                quotient = self.output * (np.float32(1) / self.denominator * factor)[:, None]
            else:
                quotient = self.output / self.denominator[:, None] * factor
        return np.where((self.denominator == 0)[:, None], np.float32(0), quotient)


def _exp2(x: Float32) -> Float32:
    """2^x, rounded correctly: binary64's error is far below half an ulp of float32."""
    return np.exp2(x.astype(np.float64)).astype(np.float32)


def _log2_of_sums(denominator: Float32, maximum: Float32, base2: np.float32, plan: AttentionPlan) -> Float32:
    """`AttentionResult.lse`; log2 is rounded correctly."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log2(denominator.astype(np.float64)).astype(np.float32) - np.float32(plan.p_offset)
    sums = _fused_multiply_add(maximum.reshape(-1, 1), base2, logarithm.reshape(-1)).reshape(denominator.shape)
    return np.where(denominator == 0, np.float32(np.inf), sums)


def _fused_multiply_add(x: Float32, factor: np.float32, addend: Float32) -> Float32:
    """x [R, C] * factor + addend [R], rounded once."""
    total = np.broadcast_to(addend[:, None], x.shape).copy()
    row, column = np.full(x.shape[0], factor, np.float32), np.ones(x.shape[1], np.float32)
    _core.promote(total, np.ascontiguousarray(x), row, column, _FIRST_PRODUCT, _FUSED)
    return total


def _starts(keys: int, plan: AttentionPlan) -> Sequence[int]:
    """The first key of each block, in the plan's order."""
    starts = range(0, keys, plan.block)
    return starts[::-1] if plan.descending else starts


def _visible(
    length: int, keys: int, attn_mask: torch.Tensor | None, is_causal: bool, window: int | None, shift: int
) -> NDArray[np.bool_]:
    """[L, S]: which keys a query sees; query i stands at key i + shift."""
    seen = np.ones((length, keys), bool)
    if attn_mask is not None:
        if attn_mask.dtype != torch.bool or tuple(attn_mask.shape) != (length, keys):
            raise ValueError(
                f"attn_mask is {attn_mask.dtype} {list(attn_mask.shape)}: expected bool [L, S] = [{length}, {keys}]"
            )
        seen &= attn_mask.numpy()
    if is_causal or window is not None:
        seen = np.tril(seen, shift)
    if window is not None:
        seen = np.triu(seen, shift + 1 - window)
    return seen


def _check_products(plan: AttentionPlan, query: str, key: str, value: str) -> None:
    """ValueError unless the plan's instructions multiply operands of these formats."""
    products = ("query and key", plan.logits, query, key), ("probabilities and value", plan.mixed, plan.p_format, value)
    for names, order, left, right in products:
        try:
            gemm.resolve(order, left, right)
        except ValueError as error:
            raise ValueError(
                f"{names} are {left} and {right}, which {order.instruction} does not multiply: cast operands to what "
                f"plan='{plan}' multiplies, or choose another ({error})"
            ) from error


def _check(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], window: int | None) -> None:
    fits = min(len(query), len(key), len(value)) >= 3 and query[-1] == key[-1] and key[:-1] == value[:-1]
    if not fits or query[:-3] != key[:-3] or key[-3] == 0 or query[-3] % key[-3]:
        raise ValueError(
            f"attention takes query [..., H, L, D], key [..., G, S, D] and value [..., G, S, E], G dividing H, got "
            f"{list(query)}, {list(key)} and {list(value)}"
        )
    if query[-1] == 0:
        raise ValueError("D=0: heads have one feature or more")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a number of keys, 1 or more, or None")
