"""What a recipe is made of: a GEMM, the six GEMMs of attention, and the factor on the loss. Data only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from fp8sim import mma, quantizers
from fp8sim.quantizers import Quantizer

ACCUMULATIONS = ("native", "float32", "float32.sequential")
"""How a GEMM adds: what the backend does; BLAS in float32; one product after the other in float32, K ascending. Or as a
plan of `fp8sim.mma.parse_plan` says: "sm90.wgmma", "deepgemm.sm90", ..."""


def one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless `value` is allowed."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}: use one of {', '.join(allowed)}")


def refuse_random_bits(argument: str, quantizer: Quantizer | None) -> None:
    """ValueError for a quantizer that rounds stochastically."""
    if quantizer is not None and quantizer.rounding.is_stochastic:
        raise ValueError(f"{argument}={quantizer}: the GEMMs of a recipe draw no random bits; use TIES_TO_EVEN")


class GemmStrings(NamedTuple):
    """A `GemmRecipe` in canonical strings; an empty one stands for None."""

    first: str
    second: str
    accumulate: str
    dtype: str


@dataclass(frozen=True)
class GemmRecipe:
    """One GEMM: a quantizer for each operand, in the order that names them, and how products are added.

    Attributes:
        first, second: quantizers; None leaves the operand as it is.
        accumulate: one of `ACCUMULATIONS`, or a plan, whose instruction takes the formats of both quantizers.
        dtype: dtype of the result; None is the dtype of the operands.

    Raises:
        ValueError: stochastic rounding, an unknown accumulation or dtype, a plan that does not take the formats, or
            that widens operands to a format without all of their numbers.
    """

    first: Quantizer | None = None
    second: Quantizer | None = None
    accumulate: str = "native"
    dtype: str | None = None

    def __post_init__(self) -> None:
        for operand, quantizer in (("first", self.first), ("second", self.second)):
            refuse_random_bits(operand, quantizer)
        if self.accumulate not in ACCUMULATIONS:
            self._check_plan()
        if self.dtype is not None:
            one_of("dtype", self.dtype, ("float32", "float16", "bfloat16", "float64"))
        first, second = (str(q) if q is not None else "" for q in (self.first, self.second))
        object.__setattr__(self, "strings", GemmStrings(first, second, self.accumulate, self.dtype or ""))

    def _check_plan(self) -> None:
        pair = (self.first, self.second)
        formats = [str(quantizer.format) if quantizer is not None else None for quantizer in pair]
        try:
            plan = mma.parse_plan(self.accumulate)
            mma.resolve(plan, *formats)
            for name in filter(None, formats):
                mma.check_widening(plan.widen, name)
        except ValueError as error:
            raise ValueError(f"accumulate={self.accumulate!r}: {error}; or use {', '.join(ACCUMULATIONS)}") from error

    @property
    def as_strings(self) -> GemmStrings:
        """This GEMM as registered operations take it; made once, so that compilers find finished constants."""
        strings: GemmStrings = self.__dict__["strings"]
        return strings

    def without_casts(self) -> GemmRecipe:
        """The same GEMM on unquantized operands, added as the backend adds."""
        return dataclasses.replace(self, first=None, second=None, accumulate="native")

    def adding(self, accumulate: str) -> GemmRecipe:
        """The same GEMM, added as `accumulate` says if both operands are quantized. ValueError as for the class."""
        if self.first is not None and self.second is not None:
            return dataclasses.replace(self, accumulate=accumulate)
        if accumulate not in ACCUMULATIONS:
            mma.parse_plan(accumulate)  # a name that is none is refused here too
        return self

    def casting(self, quantizer: Quantizer) -> GemmRecipe:
        """The same GEMM with both operands cast by `quantizer`, added as the backend adds."""
        return dataclasses.replace(self, first=quantizer, second=quantizer, accumulate="native")

    def to_dict(self) -> dict[str, Any]:
        """Strings and None, ready for JSON or YAML; `from_dict` inverts it."""
        plain = dataclasses.asdict(self)
        return {**plain, **{name: _text(getattr(self, name)) for name in ("first", "second")}}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> GemmRecipe:
        """The GEMM that `to_dict` wrote. TypeError for an unknown key, ValueError for a value that is not allowed."""
        return GemmRecipe(**{**plain, **{name: parse_cast(plain.get(name)) for name in ("first", "second")}})


UNQUANTIZED = GemmRecipe()
"""A GEMM in high precision."""


def _text(quantizer: Quantizer | None) -> str | None:
    return None if quantizer is None else str(quantizer)


def parse_cast(text: str | None) -> Quantizer | None:
    """The quantizer of that text; None is None."""
    return None if text is None else quantizers.parse(text)


ATTENTION_OPERANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "logits": ("query", "key"),
        "grad_query": ("grad_logits", "key"),
        "grad_key": ("grad_logits", "query"),
        "mixed": ("probabilities", "value"),
        "grad_probabilities": ("grad_output", "value"),
        "grad_value": ("grad_output", "probabilities"),
    }
)
"""The two operands of each GEMM of attention, in order."""

_OPERANDS = tuple(dict.fromkeys(operand for pair in ATTENTION_OPERANDS.values() for operand in pair))

ATTENTION_PRODUCTS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "logits": ("logits", "grad_query", "grad_key"),
        "mixed": ("mixed", "grad_probabilities", "grad_value"),
    }
)
"""The GEMMs of attention's two products: forward, gradient of the left operand, gradient of the right one."""


@dataclass(frozen=True)
class AttentionRecipe:
    """The six GEMMs of attention, for queries [L, D], keys [S, D], values [S, E] of one head:

        logits             [L, S] = query [L, D]         @ key^T [D, S]
        grad_query         [L, D] = grad_logits [L, S]   @ key [S, D]
        grad_key           [S, D] = grad_logits^T [S, L] @ query [L, D]
        mixed              [L, E] = probabilities [L, S] @ value [S, E]
        grad_probabilities [L, S] = grad_output [L, E]   @ value^T [E, S]
        grad_value^T       [E, S] = grad_output^T [E, L] @ probabilities [L, S]

    Operands are in the order of `ATTENTION_OPERANDS`; `by_operand` makes all six from one quantizer for each operand.
    The default is six GEMMs in high precision, which differ from no attention part only in rounding.

    Or `plan` names the fused kernel that computes all of it, casts included, as `fp8sim.scaled_dot_product_attention`
    has it: an `AttentionPlan`'s text. The six GEMMs are then left as they are by default.

    Raises:
        ValueError: an unknown plan, or one beside GEMMs of quantized operands.
    """

    logits: GemmRecipe = UNQUANTIZED
    grad_query: GemmRecipe = UNQUANTIZED
    grad_key: GemmRecipe = UNQUANTIZED
    mixed: GemmRecipe = UNQUANTIZED
    grad_probabilities: GemmRecipe = UNQUANTIZED
    grad_value: GemmRecipe = UNQUANTIZED
    plan: str | None = None

    def __post_init__(self) -> None:
        if self.plan is None:
            return
        object.__setattr__(self, "plan", str(mma.parse_attention_plan(self.plan)))
        given = [name for name in ATTENTION_OPERANDS if self.gemm(name) != UNQUANTIZED]
        if given:
            raise ValueError(f"plan={self.plan!r} and {', '.join(given)}: a fused kernel's casts are those of its plan")

    @staticmethod
    def by_operand(*, accumulate: str = "native", **casts: str | Quantizer) -> AttentionRecipe:
        """All six GEMMs from one quantizer for each operand.

        Args:
            accumulate: how GEMMs of two quantized operands add.
            casts: a quantizer or its text for query, key, value, probabilities, grad_output and grad_logits; those left
                out are not quantized.

        Raises:
            ValueError: another operand, and as for `GemmRecipe`.
        """
        for operand in casts:
            one_of("operand", operand, _OPERANDS)
        found = {operand: quantizers.parse(cast) for operand, cast in casts.items()}
        pairs = ATTENTION_OPERANDS.items()
        gemms: dict[str, Any] = {name: GemmRecipe(found.get(a), found.get(b)) for name, (a, b) in pairs}
        return AttentionRecipe(**gemms).changed(lambda gemm: gemm.adding(accumulate))

    def gemm(self, name: str) -> GemmRecipe:
        """The recipe of the GEMM `name`, one of `ATTENTION_OPERANDS`. ValueError for another name."""
        one_of("gemm", name, tuple(ATTENTION_OPERANDS))
        found: GemmRecipe = getattr(self, name)
        return found

    def changed(self, change: Callable[[GemmRecipe], GemmRecipe]) -> AttentionRecipe:
        """The same recipe, without a plan, with `change` applied to each GEMM."""
        gemms: dict[str, Any] = {name: change(self.gemm(name)) for name in ATTENTION_OPERANDS}
        return AttentionRecipe(**gemms)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON or YAML; `from_dict` inverts it."""
        plain: dict[str, Any] = {name: self.gemm(name).to_dict() for name in ATTENTION_OPERANDS}
        return plain if self.plan is None else {**plain, "plan": self.plan}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> AttentionRecipe:
        """The part that `to_dict` wrote. TypeError for an unknown key, ValueError for a value that is not allowed."""
        gemms: dict[str, Any] = {name: GemmRecipe.from_dict(gemm) for name, gemm in plain.items() if name != "plan"}
        return AttentionRecipe(**gemms, plan=plain.get("plan"))


@dataclass(frozen=True)
class LossScaling:
    """The factor on the loss before the backward pass, divided out of the gradients before the optimizer step.

    It is constant, or dynamic: after a step whose gradients are not all finite, which is skipped, it is multiplied by
    `backoff`, and by `growth` after `growth_interval` steps in a row whose gradients are (Micikevicius et al. 2018,
    section 3.2). The scaler that does so, with the state, is torch's: `fp8sim.optim.grad_scaler`.

    Attributes:
        factor: the factor, or where it starts.
        growth_interval: None for a constant factor.
        growth, backoff: above and below 1.

    Raises:
        ValueError: a value out of range.
    """

    factor: float = 1.0
    growth_interval: int | None = None
    growth: float = 2.0
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and 0 < self.factor < 2.0**128):
            raise ValueError(f"factor={self.factor}: a loss scale is a positive finite number, of float32")
        if self.growth_interval is not None and self.growth_interval < 1:
            raise ValueError(
                f"growth_interval={self.growth_interval}: a number of steps, or None for a constant factor"
            )
        if not (1 < self.growth < math.inf and 0 < self.backoff < 1):
            raise ValueError(f"growth={self.growth}, backoff={self.backoff}: must be above 1, and between 0 and 1")

    @property
    def is_dynamic(self) -> bool:
        """Whether the factor changes."""
        return self.growth_interval is not None


NO_LOSS_SCALING = LossScaling()
"""The factor is 1."""

DYNAMIC_LOSS_SCALING = LossScaling(2.0**16, growth_interval=2000)
"""The numbers of torch.amp.GradScaler."""
