"""The default hypotheses: what libraries and GPUs do, and the usual mistakes, as a grid without repetition."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fp8sim import formats, quantizers
from fp8sim.analysis.explaining import computation
from fp8sim.analysis.explaining.hypothesis import UNROUNDED, Hypothesis, default_overflow
from fp8sim.formats import Format
from fp8sim.mma.architectures import MODELS
from fp8sim.mma.models import MmaModel
from fp8sim.mma.plans import PLANS, GemmPlan, Merge, Place, Product
from fp8sim.quantizers import Quantizer
from fp8sim.rounding import Overflow, Rounding
from fp8sim.scaling import ScaleRule

ROUNDINGS = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TOWARD_ZERO)
"""Modes that libraries cast with."""
FLUSHES = (None, 32, 64, 128, 256, 512)
"""Products between two additions to a float32 accumulator."""
SPLITS = (2, 4, 8)
"""Parts of K that are added at the end."""
TILES = (None, 128)
"""Multiples of which these parts are."""
DETOURS = ("bfloat16", "float16")
"""Formats that a number may pass through on its way to a narrower one."""
LIMITS = {
    "float16": (Overflow.SATURATE,),
    "float8_e4m3fn": (Overflow.INFINITY,),
    "float8_e5m2": (Overflow.SAT_PROPAGATE, Overflow.INFINITY),
}
"""What else than usual becomes of sums beyond a format's largest number."""
CONFUSED = {"float8_e4m3fn": "float8_e5m2", "float8_e5m2": "float8_e4m3fn"}
"""Formats that are taken for each other."""

Cast = tuple[str | None, str | None, str | None]
"""Quantizers of a and b, and what both pass through."""
Ending = tuple[str, Rounding, Overflow, str | None]
"""Output, rounding, overflow, and what it passes through."""


def default_hypotheses(
    a_format: str | Format | None,
    b_format: str | Format | None,
    *,
    a: str | None = None,
    b: str | None = None,
    factors: bool = False,
    outputs: Sequence[str] = ("float32",),
) -> list[Hypothesis]:
    """What libraries and GPUs do, without repetition; the likelier of two comes first.

    Instructions (one of `fp8sim.mma.MODELS` for each arithmetic on the formats; FP8 also widened to float16 on NVIDIA),
    named plans, flush intervals, splits of K with their merge orders, places, orders and contraction of factors, each
    with every output format, its rounding, overflow and detours. Of a cast that the kernel makes itself, one thing at a
    time differs from the given quantizer: rounding, overflow, the rule of its factors, a detour, or E4M3 taken for
    E5M2; splits of K are tried with the cast as given.

    Args:
        a_format, b_format: of the codes; None where a quantizer makes them.
        a, b: the quantizers with which the kernel casts.
        factors: whether there are factors outside of the instruction.
        outputs: formats of the output.

    Raises:
        ValueError: an unknown format or quantizer, or formats that no instruction multiplies.
    """
    casts, endings = list(_casts(a, b)), list(_endings(outputs))
    found: dict[Hypothesis, None] = {}
    for index, (left, right, detour) in enumerate(casts):
        pair = (_format_of(left, a_format), _format_of(right, b_format))
        for plan in _plans(*pair, factors=factors, splits=index == 0):
            for output, rounding, overflow, through in endings:
                order = dataclasses.replace(plan, rounding=rounding)
                found[Hypothesis(order, output, overflow, through, left, right, detour)] = None
    if not found:
        raise ValueError(f"a_format={a_format}, b_format={b_format}: no instruction multiplies these (fp8sim mma)")
    return list(found)


def _format_of(quantizer: str | None, fmt: str | Format | None) -> str:
    if quantizer is not None:
        return str(quantizers.parse(quantizer).format)
    return "float64" if fmt == "float64" else str(formats.parse(fmt or ""))


# Epilogues


def _endings(outputs: Iterable[str]) -> Iterator[Ending]:
    for name in outputs:
        usual = default_overflow(name)
        yield name, Rounding.TIES_TO_EVEN, usual, None
        if name in UNROUNDED:
            continue
        for overflow in (usual, *LIMITS.get(name, ())):
            yield from ((name, rounding, overflow, None) for rounding in ROUNDINGS)
        if formats.parse(name).bits < 16:
            yield from ((name, Rounding.TIES_TO_EVEN, usual, detour) for detour in DETOURS)


# Casts of operands


def _casts(a: str | None, b: str | None) -> Iterator[Cast]:
    """As given, then with one thing changed: in both operands, since a library casts both alike, or in one."""
    yield a, b, None
    given = tuple(None if text is None else quantizers.parse(text) for text in (a, b))
    present = [quantizer for quantizer in given if quantizer is not None]
    if not present:
        return
    for change in _changes():
        for which in ((True, True), (True, False), (False, True)):
            if all(quantizer is not None for quantizer, chosen in zip(given, which, strict=True) if chosen):
                pair = [
                    _changed(quantizer, change) if chosen and quantizer is not None else quantizer
                    for quantizer, chosen in zip(given, which, strict=True)
                ]
                if not any(new is None and old is not None for new, old in zip(pair, given, strict=True)):
                    yield _text(pair[0]), _text(pair[1]), None
    yield from ((a, b, detour) for detour in DETOURS)


def _changes() -> Iterator[dict[str, Any]]:
    yield from ({"rounding": mode} for mode in ROUNDINGS)
    yield from ({"overflow": limit} for limit in Overflow)
    yield from ({"rule": rule} for rule in ScaleRule)
    yield {"format": None}


def _changed(quantizer: Quantizer, change: dict[str, Any]) -> Quantizer | None:
    """The quantizer with one thing changed; None where it cannot be, or is so already."""
    spec, confused = quantizer.scale, CONFUSED.get(str(quantizer.format))
    try:
        if "rule" in change:
            if spec is None or change["rule"].is_mx != spec.rule.is_mx:
                return None
            change = {"scale": dataclasses.replace(spec, rule=change["rule"])}
        elif "format" in change:
            if confused is None:
                return None
            change = {"format": formats.parse(confused)}
        changed = quantizers.parse(str(dataclasses.replace(quantizer, **change)))
    except ValueError:  # a policy that the format cannot represent, or a rule that the order does not take
        return None
    return None if changed == quantizer else changed


def _text(quantizer: Quantizer | None) -> str | None:
    return None if quantizer is None else str(quantizer)


# Orders of operations


def _plans(a_format: str, b_format: str, *, factors: bool, splits: bool) -> Iterator[GemmPlan]:
    """Named plans, then the grid over instructions."""
    pair = (a_format, b_format)
    instructions: list[tuple[MmaModel, str | None]] = [(model, None) for model in _accepting(*pair)]
    widened = [model for model in _accepting("float16", "float16") if model.name.startswith("sm")]
    if all(name.startswith("float8") for name in pair):
        instructions += [(model, "float16") for model in widened]
    for plan in PLANS.values():
        if any(_is_of(plan, model, widen) for model, widen in instructions):
            yield from _placed(plan, factors)
    for model, widen in _distinct(instructions):
        for plan in _orders(GemmPlan(model.name, widen=widen), model, splits):
            yield from _placed(plan, factors)


def _accepting(a_format: str, b_format: str) -> list[MmaModel]:
    names = ((row, _format_of(None, row.a_format), _format_of(None, row.b_format)) for row in MODELS.values())
    return [row for row, *pair in names if tuple(pair) == (a_format, b_format)]


def _is_of(plan: GemmPlan, model: MmaModel, widen: str | None) -> bool:
    return plan.widen == widen and plan.instruction == model.instruction and model.accumulator == "float32"


def _distinct(rows: list[tuple[MmaModel, str | None]]) -> list[tuple[MmaModel, str | None]]:
    """The first of those that compute the same; widened operands are added in float32 alone."""
    kept = [(row, widen) for row, widen in rows if widen is None or row.accumulator == "float32"]
    by_arithmetic = {(computation.arithmetic(row), row.k, widen): (row, widen) for row, widen in reversed(kept)}
    return list(reversed(by_arithmetic.values()))


def _orders(plan: GemmPlan, model: MmaModel, splits: bool) -> Iterator[GemmPlan]:
    """Flush intervals and splits of K; a sum in another accumulator than float32 is one chain."""
    if model.accumulator != "float32":
        yield plan
        return
    for flush in FLUSHES:
        yield dataclasses.replace(plan, flush=flush)
    for split, flush, tile in itertools.product(SPLITS if splits else (), FLUSHES, TILES):
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
