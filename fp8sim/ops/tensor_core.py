"""`fp8sim.matmul`: a whole GEMM with the bits that a GPU's tensor cores return."""

from __future__ import annotations

from typing import Any

from fp8sim import backends
from fp8sim.formats import Format
from fp8sim.mma.plans import GemmPlan


def matmul(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    a_format: str | Format | None = None,
    b_format: str | Format | None = None,
    a_scale_inv: Any = None,
    b_scale_inv: Any = None,
    accumulate: str | None = None,
    plan: str | GemmPlan | None = None,
    output: str = "float32",
) -> Any:
    """c + a @ b, times scale factors, bit for bit as tensor cores and a kernel around them compute it.

    Args:
        a: [..., M, K]: a `QuantizedTensor`; codes (uint8, uint16, uint32) of `a_format`; an array or tensor of a float8
            dtype, float16, bfloat16 or float64; or numbers on the grid of `a_format`. CPU alone.
        b: [..., K, N], likewise; but a `QuantizedTensor` is that of b transposed, [..., N, K], since its blocks of
            factors run along K. Leading dimensions broadcast.
        c: [..., M, N], where the sum starts, in the accumulator's dtype: the first instruction adds to it, or with
            `flush` or `split_k` the float32 accumulator does. None: +0.
        a_format, b_format: what codes mean, or on which grid numbers lie.
        a_scale_inv: factors of a's products, rounded to float32: one, [M], or [M, B] for blocks of M and K whose sizes
            are powers of two. b_scale_inv: one, [N], or [B, N]. The plan says where and how they are multiplied.
        accumulate: an instruction, complete or not, as "sm90.wgmma"; None: the plan's, or sm90.wgmma.
        plan: a `GemmPlan`, a name of `fp8sim.mma.PLANS`, or its text; None: one chain of instructions over K, in
            increasing k; a last instruction that K does not fill gets zeros.
        output: "float32", "float16", "bfloat16" (too large a sum is infinite), or another format, whose codes are
            returned (too large a sum saturates); rounded once, as the plan says. "float64" for binary64 instructions.

    Returns:
        [..., M, N], of the kind of `a`. NaN, infinities, signed zeros and subnormals as the instruction makes them.

    Raises:
        ValueError: an unknown instruction or plan, a format that the instruction does not accept (the message lists
            those that it does), numbers off the grid, shapes or factors that do not fit.
        TypeError: no array or tensor, or one of another dtype.
    """
    codes = getattr(a, "codes", a)
    device = codes.device.type if hasattr(codes, "device") and hasattr(codes.device, "type") else "cpu"
    formats = {"a_format": a_format, "b_format": b_format}
    factors = {"a_scale_inv": a_scale_inv, "b_scale_inv": b_scale_inv}
    simulated = backends.row("matmul", backends.select("matmul", device)).load()
    return simulated(a, b, c, **formats, **factors, accumulate=accumulate, plan=plan, output=output)
