"""How a fused attention kernel proceeds from logits to output: `AttentionPlan` as data, and the plans of known kernels.

To add a kernel's plan, add one entry to `ATTENTION_PLANS`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fp8sim import formats
from fp8sim.mma import plans
from fp8sim.mma.plans import GemmPlan
from fp8sim.rounding import Overflow

_HOPPER = GemmPlan("sm90.wgmma")


class Denominator(enum.Enum):
    """Which probabilities the denominator adds up."""

    BEFORE = "before"
    """Those in float32, before they are cast: what the cast loses is missing from the numerator alone."""
    AFTER = "after"
    """The cast ones, which the numerator has, too."""


@dataclass(frozen=True)
class AttentionPlan:
    """The order of operations of a fused attention kernel over blocks of keys (FlashAttention: Dao et al. 2022).

    With s = q k^T of a block and c = scale * log2(e), a row of the block gives

        m' = max(m, max(s))                   kept at m while c (m' - m) <= rescale_above, after the first block
        p  = 2^(c s - (c m' - p_offset))      one FMA and one exp2, in float32
        l  = l 2^(c (m - m')) + sum(p)
        o  = o 2^(c (m - m')) + cast(p) v     the products' chain starts at the rescaled o

    and the output is o / l. c m' - p_offset is one FMA, too. The offset multiplies numerator and denominator alike, and
    moves p into the part of its format where it keeps its precision. A maximum that is kept lets p exceed 2^p_offset by
    up to 2^rescale_above.

    Attributes:
        block: keys per block. A block of which a row sees no key leaves the row's bits as they are.
        descending: from the last block to the first.
        p_format, p_overflow: what probabilities are cast to, with ties to even.
        p_offset: added to their exponents before the cast.
        rescale_above: by how much, in base-2 logits, the maximum must rise to be followed; 0: always.
        denominator: which probabilities it adds.
        reciprocal: the output is o * (1 / l), rounded twice, instead of o / l.
        logits, mixed: the orders of additions in q k^T, over the features, and in p v, over the keys of a block.

    Raises:
        ValueError: a block below 1, a threshold below 0, an offset that is not finite, an unknown format, or a plan of
            `mixed` that does not add into one running chain.
    """

    block: int = 128
    p_format: str = "float8_e4m3fn"
    p_offset: float = 0.0
    rescale_above: float = 0.0
    denominator: Denominator = Denominator.BEFORE
    p_overflow: Overflow = Overflow.SATURATE
    descending: bool = False
    reciprocal: bool = False
    logits: GemmPlan = _HOPPER
    mixed: GemmPlan = _HOPPER

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block={self.block}: a number of 1 or more")
        if not 0 <= self.rescale_above < math.inf:
            raise ValueError(f"rescale_above={self.rescale_above}: a finite number, 0 or more")
        if not math.isfinite(self.p_offset):
            raise ValueError(f"p_offset={self.p_offset}: a finite number")
        object.__setattr__(self, "p_format", str(formats.parse(self.p_format)))
        for name in ("logits", "mixed"):
            object.__setattr__(self, name, plans.parse(getattr(self, name)))
        if self.mixed.split_k != 1:
            raise ValueError(f"mixed={self.mixed}: the keys of a block are not split")

    @property
    def largest_p(self) -> float:
        """What a probability before its cast can reach: 2^(p_offset + rescale_above)."""
        return math.exp2(self.p_offset + self.rescale_above)

    @property
    def clamps(self) -> bool:
        """Whether a probability can exceed the largest number of its format."""
        return self.largest_p > _largest(self.p_format)

    def __str__(self) -> str:
        name = next((name for name, plan in ATTENTION_PLANS.items() if plan == self), None)
        if name is not None:
            return name
        return ";".join(
            f"{field.name}={_text(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )


def _largest(fmt: str) -> float:
    parsed = formats.parse(fmt)
    return parsed.to_float(parsed.max_code)


def _text(value: object) -> str:
    if isinstance(value, Overflow):
        return value.name
    return str(value.value if isinstance(value, enum.Enum) else value).replace(";", ",")


def parse(text: str | AttentionPlan) -> AttentionPlan:
    """The plan that a name of `ATTENTION_PLANS` or "field=value;..." stands for; `parse(str(plan)) == plan`.

    Raises:
        ValueError: an unknown name, field or value; the message lists what there is.
    """
    if isinstance(text, AttentionPlan):
        return text
    if text in ATTENTION_PLANS:
        return ATTENTION_PLANS[text]
    fields: dict[str, object] = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if name not in _READERS or not equals:
            raise ValueError(
                f"attention plan {text!r}: {part!r} is none of {', '.join(f'{known}=' for known in _READERS)}, and the "
                f"named plans are {', '.join(ATTENTION_PLANS)}"
            )
        try:
            fields[name] = _READERS[name](value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"attention plan {text!r}: {part!r} cannot be read ({error})") from error
    return AttentionPlan(**fields)  # type: ignore[arg-type]


_FLAGS = {"True": True, "False": False}

_READERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "block": int,
        "p_format": str,
        "p_offset": float,
        "rescale_above": float,
        "denominator": Denominator,
        "p_overflow": Overflow.__getitem__,
        "descending": _FLAGS.__getitem__,
        "reciprocal": _FLAGS.__getitem__,
        "logits": lambda value: plans.parse(value.replace(",", ";")),
        "mixed": lambda value: plans.parse(value.replace(",", ";")),
    }
)


def base2_scale(scale: float, query_scale_inv: float = 1.0, key_scale_inv: float = 1.0) -> float:
    """c, by which q k^T is multiplied to be an exponent of 2, before it is rounded to float32."""
    return scale * query_scale_inv * key_scale_inv * math.log2(math.e)


_FA4 = AttentionPlan(p_offset=8.0, rescale_above=4.0, logits=GemmPlan("sm100.tcgen05"), mixed=GemmPlan("sm100.tcgen05"))

ATTENTION_PLANS: Mapping[str, AttentionPlan] = MappingProxyType(
    {
        # FlashAttention-3 in FP8 (hopper/softmax.h): last block first, p up to 2^8, the inverse of the sum.
        "fa3.fp8": AttentionPlan(p_offset=8.0, descending=True, reciprocal=True),
        # FlashAttention-4 in FP8 before and after pull request 2717: the maximum lags behind by up to 4, which E4M3
        # has room for after it alone.
        "fa4.fp8.before_2717": _FA4,
        "fa4.fp8": dataclasses.replace(_FA4, p_offset=4.0),
        # A cast without an offset, as in flashinfer before pull request 5020 and FlyDSL before 1020.
        "fp8.no_offset": AttentionPlan(),
        "bf16": AttentionPlan(p_format="bfloat16", p_overflow=Overflow.INFINITY),
        "fp16": AttentionPlan(p_format="float16", p_overflow=Overflow.INFINITY),
    }
)
"""The named plans."""


def default_plan(dtype: str) -> AttentionPlan:
    """The named plan for values of a format: bfloat16, float16, or FP8, of which it uses E4M3's range."""
    return ATTENTION_PLANS[{"bfloat16": "bf16", "float16": "fp16"}.get(str(formats.parse(dtype)), "fa3.fp8")]
