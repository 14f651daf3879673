"""What a kernel may have computed, as data: `Hypothesis`, and the grid of those that libraries and GPUs suggest."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fp8sim import formats, quantizers
from fp8sim.analysis.explaining import computation
from fp8sim.formats import Format
from fp8sim.mma.architectures import MODELS
from fp8sim.mma.models import MmaModel
from fp8sim.mma.plans import PLANS, GemmPlan, Merge, Place, Product, parse
from fp8sim.quantizers import Quantizer
from fp8sim.rounding import Overflow, Rounding, member, resolve
from fp8sim.scaling import ScaleRule

ROUNDINGS = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TOWARD_ZERO)
"""Modes that libraries cast with."""
FLUSHES = (None, 32, 64, 128, 256, 512)
"""Products between two additions to a float32 accumulator."""
SPLITS = (2, 4, 8)
"""Parts of K that are added at the end."""
_TILES = (None, 128)


@dataclass(frozen=True)
class Hypothesis:
    """One way in which a kernel may have got its output from its inputs.

    Attributes:
        plan: the instruction and the order of operations, epilogue rounding included; a `GemmPlan` or its text.
        output: the format that sums are rounded to.
        overflow: what becomes of sums beyond it.
        a_quantizer: how the kernel casts a, as `fp8sim.quantizers.parse` takes it; None: a is given as codes, or its
            numbers lie on the grid. b_quantizer: the same of b; blocks of factors run along K.

    Raises:
        ValueError: a plan, format, policy or quantizer that does not exist.
    """

    plan: GemmPlan
    output: str = "float32"
    overflow: Overflow = Overflow.INFINITY
    a_quantizer: str | None = None
    b_quantizer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", parse(self.plan))
        if self.output != "float64":
            fmt = formats.parse(self.output)
            resolve(fmt, self.plan.rounding, self.overflow)
            object.__setattr__(self, "output", str(fmt))
        for name in ("a_quantizer", "b_quantizer"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, str(quantizers.parse(text)))

    def __str__(self) -> str:
        parts = [str(self.plan), f"-> {self.output}"]
        if self.output not in ("float32", "float64") and self.overflow is not default_overflow(self.output):
            parts.append(self.overflow.name)
        casts = [f"{x}={text}" for x, text in (("a", self.a_quantizer), ("b", self.b_quantizer)) if text is not None]
        return " ".join([*parts, *(["with " + ", ".join(casts)] if casts else [])])


def parse_hypothesis(text: str | Hypothesis) -> Hypothesis:
    """The hypothesis whose `str()` is `text`: "PLAN -> OUTPUT [OVERFLOW] [with a=QUANTIZER, b=QUANTIZER]".

    Raises:
        ValueError: another form, or a part that does not exist.
    """
    if isinstance(text, Hypothesis):
        return text
    match = re.fullmatch(r"(\S+)(?: -> (\S+)(?: (\w+))?)?(?: with (?:a=(\S+?))?(?:, )?(?:b=(\S+))?)?", text)
    if match is None:
        raise ValueError(f"hypothesis {text!r}: expected 'PLAN -> OUTPUT [OVERFLOW] [with a=QUANTIZER, b=QUANTIZER]'")
    plan, output, overflow, a, b = match.groups()
    output = output or "float32"
    limit = default_overflow(output) if overflow is None else member(Overflow, overflow, "overflow")
    return Hypothesis(parse(plan), output, limit, a, b)


def default_overflow(output: str) -> Overflow:
    """Infinity for 16 bits and more; narrower formats saturate, as conversions to them do on GPUs."""
    return Overflow.INFINITY if output == "float64" or formats.parse(output).bits >= 16 else Overflow.SATURATE


def default_hypotheses(
    a_format: str | Format,
    b_format: str | Format | None = None,
    *,
    a_quantizer: str | None = None,
    b_quantizer: str | None = None,
    factors: bool = False,
    outputs: Sequence[str] = ("float32",),
) -> list[Hypothesis]:
    """The grid of what libraries and GPUs do, without repetition; the likelier of two comes first.

    It spans instructions (one of `fp8sim.mma.MODELS` for each arithmetic on the formats; FP8 also widened to float16),
    flush intervals, named plans, splits of K with their merge orders, where and in which order factors are applied,
    contraction to FMA, the output's format, epilogue rounding and overflow; and of a cast that the kernel makes
    itself, rounding, overflow and, if there is a factor, the rule for it.

    Args:
        a_format: of a's codes, or the format that a is cast to. b_format: of b; None: that of a.
        a_quantizer: with what a is cast, if it is not given in codes: its policies and scale rules are varied.
            b_quantizer: the same of b.
        factors: whether there are factors outside of the instruction: their places, products and contractions.
        outputs: formats of the output.

    Raises:
        ValueError: an unknown format or quantizer, or formats that no instruction multiplies.
    """
    casts = list(_casts(a_quantizer, b_quantizer))
    plans = list(dict.fromkeys(_plans(a_format, b_format if b_format is not None else a_format, factors)))
    if not plans:
        raise ValueError(f"a_format={a_format}, b_format={b_format}: no instruction multiplies these (fp8sim mma)")
    endings = list(_endings(outputs))
    return [
        Hypothesis(dataclasses.replace(plan, rounding=rounding), output, overflow, a, b)
        for (a, b), plan, (output, rounding, overflow) in itertools.product(casts, plans, endings)
    ]


def _endings(outputs: Iterable[str]) -> Iterator[tuple[str, Rounding, Overflow]]:
    for name in outputs:
        if name in ("float32", "float64"):
            yield name, Rounding.TIES_TO_EVEN, Overflow.INFINITY
            continue
        usual = default_overflow(name)
        for overflow in (usual, *(limit for limit in (Overflow.SATURATE, Overflow.INFINITY) if limit is not usual)):
            yield from ((name, rounding, overflow) for rounding in ROUNDINGS)


def _plans(a_format: str | Format, b_format: str | Format, factors: bool) -> Iterator[GemmPlan]:
    """Named plans, then the grid over instructions."""
    pair = (_name(a_format), _name(b_format))
    instructions = [(model, None) for model in _accepting(*pair)]
    if all(name.startswith("float8") for name in pair):
        instructions += [(model, "float16") for model in _accepting("float16", "float16")]
    for plan in PLANS.values():
        if any(_is_of(plan, model, widen) for model, widen in instructions):
            yield from _placed(plan, factors)
    for model, widen in _distinct(instructions):
        for plan in _orders(GemmPlan(model.name, widen=widen), model):
            yield from _placed(plan, factors)


def _name(fmt: str | Format) -> str:
    return "float64" if fmt == "float64" else str(formats.parse(fmt))


def _accepting(a_format: str, b_format: str) -> list[MmaModel]:
    pair = (a_format, b_format)
    return [row for row in MODELS.values() if tuple(map(_name, (row.a_format, row.b_format))) == pair]


def _is_of(plan: GemmPlan, model: MmaModel, widen: str | None) -> bool:
    return plan.widen == widen and plan.instruction == model.instruction and model.accumulator == "float32"


def _distinct(rows: list[tuple[MmaModel, str | None]]) -> list[tuple[MmaModel, str | None]]:
    """The first of those that compute the same; widened operands are added in float32 alone."""
    kept = [(row, widen) for row, widen in rows if widen is None or row.accumulator == "float32"]
    by_arithmetic = {(computation.arithmetic(row), row.k, widen): (row, widen) for row, widen in reversed(kept)}
    return list(reversed(by_arithmetic.values()))


def _orders(plan: GemmPlan, model: MmaModel) -> Iterator[GemmPlan]:
    """Flush intervals and splits of K; a sum in another accumulator than float32 is one chain."""
    if model.accumulator != "float32":
        yield plan
        return
    for flush in FLUSHES:
        yield dataclasses.replace(plan, flush=flush)
    for split, flush, tile in itertools.product(SPLITS, FLUSHES, _TILES):
        if tile is None or flush is None or flush <= tile:
            for merge in Merge if split > 2 else (Merge.ASCENDING,):
                yield dataclasses.replace(plan, flush=flush, split_k=split, merge=merge, block_k=tile)


def _placed(plan: GemmPlan, factors: bool) -> Iterator[GemmPlan]:
    """The plan with factors where it has them, then everywhere else."""
    yield plan
    if not factors:
        return
    places = [Place.EPILOGUE] if plan.flush is None else [Place.EPILOGUE, Place.FLUSH]
    for place, product in itertools.product(places, Product):
        for fused in (True, False) if place is Place.FLUSH else (True,):
            yield dataclasses.replace(plan, factors=place, product=product, fused=fused)


def _casts(a: str | None, b: str | None) -> Iterator[tuple[str | None, str | None]]:
    """Pairs of quantizers; a library casts both operands by the same rules, so policies vary together."""
    if a is None and b is None:
        yield None, None
        return
    seen = set()
    for rule, overflow, rounding in itertools.product((None, *ScaleRule), Overflow, ROUNDINGS):
        pair = [None if text is None else _varied(quantizers.parse(text), rounding, overflow, rule) for text in (a, b)]
        if any(found is None for found, text in zip(pair, (a, b), strict=True) if text is not None):
            continue
        key = tuple(map(computation.cast, pair))
        if key not in seen:
            yield pair[0], pair[1]
        seen.add(key)


def _varied(quantizer: Quantizer, rounding: Rounding, overflow: Overflow, rule: ScaleRule | None) -> str | None:
    """The quantizer's text by other rules; None where they are not its own kind: `rule` None keeps the rule."""
    spec = quantizer.scale
    if rule is not None and (spec is None or rule is spec.rule or rule.is_mx != spec.rule.is_mx):
        return None
    try:
        scale = spec if spec is None or rule is None else dataclasses.replace(spec, rule=rule)
        return str(dataclasses.replace(quantizer, rounding=rounding, overflow=overflow, scale=scale))
    except ValueError:  # a policy that the format cannot represent
        return None
