"""How the backward pass of fused attention adds and casts: `AttentionBackwardPlan` as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from fp8sim import formats
from fp8sim.mma import plans
from fp8sim.mma.attention import base2_scale
from fp8sim.mma.plans import GemmPlan

_HOPPER = GemmPlan("sm90.wgmma")


@dataclass(frozen=True)
class AttentionBackwardPlan:
    """The order of operations of a backward pass in two passes over the logits (FlashAttention-2: Dao 2023, sec. 3.1).

    With the rows q, k, v, g and o of query, key, value, the gradient of the output as it is cast, and the output; c the
    factor of base-2 logits, lse their log2-sum, f all factors between p v and the output:

        delta = sum(g o)                          in float32, in an order of the kernel's own
        s = q k^T,  t = g v^T
        p = 2^(c s - lse)                         one FMA and one exp2, in float32
        d = p * (f t - delta)                     one FMA and one product, in float32
        grad_value += cast(p 2^p_offset)^T g      over queries
        grad_key   += cast(d)^T q                 over queries
        grad_query += cast(d) k                   over keys

    The first pass goes over queries in ascending order, the heads that share a key one after the other, in blocks of
    `queries`; the second computes s, t, p and d again and goes over keys, in ascending blocks of `keys`. No sum depends
    on which program is faster. Where `over_queries` and `over_keys` do not flush, each sum is one chain and the blocks'
    lengths do not change a bit; where they do, each block is a chain of its own, added in float32.

    Attributes:
        p_format, grad_output_format, grad_logits_format: what p, g and d are cast to, ties to even, FP8 saturating.
        p_offset: added to the exponents of p in the first pass, and taken off the sum.
        queries, keys: lengths of the blocks.
        logits: the order of additions in s and t, over the features.
        over_queries, over_keys: the orders in the sums over queries and over keys.

    Raises:
        ValueError: a block below 1, an unknown format, a plan that splits, or one that flushes within a block.
    """

    p_format: str = "bfloat16"
    grad_output_format: str = "bfloat16"
    grad_logits_format: str = "bfloat16"
    p_offset: int = 0
    queries: int = 64
    keys: int = 64
    logits: GemmPlan = _HOPPER
    over_queries: GemmPlan = _HOPPER
    over_keys: GemmPlan = _HOPPER

    def __post_init__(self) -> None:
        for name in ("p_format", "grad_output_format", "grad_logits_format"):
            object.__setattr__(self, name, str(formats.parse(getattr(self, name))))
        for name in ("logits", "over_queries", "over_keys"):
            plan = plans.parse(getattr(self, name))
            object.__setattr__(self, name, plan)
            if plan.split_k != 1:
                raise ValueError(f"{name}={plan}: the sums of a backward pass are not split")
        for block, name in (("queries", "over_queries"), ("keys", "over_keys")):
            length, flush = getattr(self, block), getattr(self, name).flush
            if length < 1:
                raise ValueError(f"{block}={length}: a number of 1 or more")
            if flush is not None and flush < length:
                raise ValueError(f"{name} flushes every {flush} within a block of {block}={length}: use flush={length}")

    def __str__(self) -> str:
        name = next((name for name, plan in ATTENTION_BACKWARD_PLANS.items() if plan == self), None)
        if name is not None:
            return name
        return ";".join(
            f"{field.name}={str(getattr(self, field.name)).replace(';', ',')}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )


def parse(text: str | AttentionBackwardPlan) -> AttentionBackwardPlan:
    """The plan of a name of `ATTENTION_BACKWARD_PLANS` or "field=value;..."; `parse(str(plan)) == plan`.

    Raises:
        ValueError: an unknown name, field or value; the message lists what there is.
    """
    if isinstance(text, AttentionBackwardPlan):
        return text
    if text in ATTENTION_BACKWARD_PLANS:
        return ATTENTION_BACKWARD_PLANS[text]
    fields: dict[str, object] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if name not in _READERS or not equals:
            raise ValueError(
                f"backward plan {text!r}: {part!r} is none of {', '.join(f'{known}=' for known in _READERS)}, and the "
                f"named plans are {', '.join(ATTENTION_BACKWARD_PLANS)}"
            )
        try:
            fields[name] = _READERS[name](value)
        except ValueError as error:
            raise ValueError(f"backward plan {text!r}: {part!r} cannot be read ({error})") from error
    return AttentionBackwardPlan(**fields)  # type: ignore[arg-type]


def _gemm_plan(value: str) -> GemmPlan:
    return plans.parse(value.replace(",", ";"))


_READERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "p_format": str,
        "grad_output_format": str,
        "grad_logits_format": str,
        "p_offset": int,
        "queries": int,
        "keys": int,
        "logits": _gemm_plan,
        "over_queries": _gemm_plan,
        "over_keys": _gemm_plan,
    }
)

_FP8_SUMS = GemmPlan("sm90.wgmma", flush=64)

ATTENTION_BACKWARD_PLANS: Mapping[str, AttentionBackwardPlan] = MappingProxyType(
    {
        "bf16": AttentionBackwardPlan(),
        "fp16": AttentionBackwardPlan("float16", "float16", "float16"),
        # Probabilities up to 2^8 of E4M3's 448; gradients in E5M2; Hopper's 13-bit sums last one block.
        "fp8": AttentionBackwardPlan(
            "float8_e4m3fn", "float8_e5m2", "float8_e5m2", p_offset=8, over_queries=_FP8_SUMS, over_keys=_FP8_SUMS
        ),
    }
)
"""The named plans, as Hopper adds."""


@dataclass(frozen=True)
class BackwardFactors:
    """The factors of a backward pass, each a product in double precision that is rounded to float32 once.

    The forward pass is O = output_factor * softmax(scale * Q K^T) V, where Q, K and V are numbers as stored times their
    scale_inv. Gradients are those of the products, Q, K and V.

    Attributes:
        base2: of s, for logits in base 2; `fp8sim.simulate.attention` takes the same.
        value: of t. query, key, value_sum: of the sums that become the gradients.
    """

    base2: float
    value: float
    query: float
    key: float
    value_sum: float

    @classmethod
    def of(
        cls,
        scale: float,
        scale_inv: tuple[float, float, float],
        output_factor: float,
        grad_factors: tuple[float, float, float],
    ) -> BackwardFactors:
        """From the scale of the logits, the factors of query, key and value, of the output, and of the gradients.

        Raises:
            ValueError: a scale that is not positive.
        """
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be positive")
        query, key, value = scale_inv
        products = (
            base2_scale(scale, query, key),
            output_factor * value,
            scale * key * grad_factors[0],
            scale * query * grad_factors[1],
            output_factor * grad_factors[2],
        )
        return cls(*(float(np.float32(product)) for product in products))


def backward_scales(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    value_factor: float,
    grad_output_scale: float | None = None,
    grad_logits_scale: float | None = None,
) -> torch.Tensor:
    """Powers of two that bring the gradients of output and logits into the range of E5M2, and their inverses.

    Those that are not given follow from bounds, on the tensors' device and without waiting for it: no element exceeds
    G, the largest norm of a row of `grad_output`, and no gradient of a logit 2 |f| G sqrt(E) max |value|
    (Cauchy-Schwarz, p <= 1). E5M2 has normal numbers from 2^-14 on, so that what lies up to 29 binades below its bound
    keeps its precision.

    Args:
        grad_output: [..., E], float. value: [..., E], float16, bfloat16 or FP8, without its factor.
        value_factor: f, what the product of the two is multiplied with.
        grad_output_scale, grad_logits_scale: powers of two, or None.

    Returns:
        [4] float32: the two scales and their inverses; NaN where a tensor has infinities or NaN.

    Raises:
        ValueError: a scale that is no power of two from 2^-126 to 2^126.
    """
    given = {"grad_output_scale": grad_output_scale, "grad_logits_scale": grad_logits_scale}
    for name, number in given.items():
        if number is not None and not (2.0**-126 <= number <= 2.0**126 and math.frexp(number)[0] == 0.5):
            raise ValueError(f"{name}={number}: expected a power of two from 2^-126 to 2^126, or None")
    if None in given.values():
        width = value.shape[-1]
        largest = torch.linalg.vector_norm(grad_output, dim=-1, dtype=torch.float32).amax()
        bounds = largest, _amax(value) * largest * (2 * math.sqrt(width) * abs(value_factor))
    scales = [
        _scale_below_maximum(bounds[i]) if number is None else torch.full((), number, device=grad_output.device)
        for i, number in enumerate(given.values())
    ]
    pair = torch.stack(scales)
    return torch.cat([pair, 1 / pair])


def _amax(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude, float32; NaN above all."""
    if x.element_size() == 1:
        return (x.view(torch.uint8) & 0x7F).amax().view(x.dtype).float()
    return x.abs().amax().float()


def _scale_below_maximum(bound: torch.Tensor) -> torch.Tensor:
    """The power of two that takes `bound` to between 2^14 and 2^15, from 2^-100 to 2^100; NaN if it is not finite."""
    exponent = torch.frexp(bound)[1].clamp(-85, 115)
    scale = ((127 + 15 - exponent) << 23).to(torch.int32).view(torch.float32)
    return torch.where(bound.isfinite(), torch.where(bound == 0, 1.0, scale), torch.nan)
