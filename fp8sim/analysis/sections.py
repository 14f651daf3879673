"""What the page says of one recipe: its operands and gradients of both looks, read back from validation.json."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fp8sim.analysis.figures import CastFigures, GradientFigures, plateau
from fp8sim.analysis.verdicts import SEVERITY, Finding, Verdict, judge_cast, judge_gradient
from fp8sim.formats import ALIASES, Format, parse


@dataclass(frozen=True)
class CastLook:
    """One operand at one step: its figures and what the limits say of them."""

    step: int
    figures: CastFigures
    findings: list[Finding]
    above_plateau: float | None

    def verdict(self, figure: str) -> Verdict | None:
        """The verdict on a figure; None where it is not judged."""
        return next((f.verdict for f in self.findings if f.figure == figure), None)

    @property
    def worst(self) -> Verdict:
        """The worst verdict of any figure."""
        return max((f.verdict for f in self.findings), key=SEVERITY.index)

    @property
    def zeros(self) -> float | None:
        """Share of elements that are zero before the cast; None if there is no element."""
        return self.figures.zeros / self.figures.elements if self.figures.elements else None

    @property
    def nonfinite(self) -> str:
        """In words, how many elements are not finite; empty if all are."""
        return next((f.reason for f in self.findings if f.figure == "finite"), "")


@dataclass(frozen=True)
class GradientLook:
    """The gradient of one weight class at one step."""

    figures: GradientFigures
    finding: Finding


@dataclass(frozen=True)
class Row:
    """One operand of a layer: a look per step, None where the operand was not seen."""

    label: str
    layer: str
    looks: list[CastLook | None]


@dataclass(frozen=True)
class Group:
    """The operands of one kind and format, layers in the order of the forward pass."""

    operand: str
    format: Format
    rows: list[Row]

    @property
    def short_format(self) -> str:
        """The shortest name of the format."""
        name = str(self.format)
        return min([name, *(alias for alias, full in ALIASES.items() if full == name)], key=len)

    @property
    def largest(self) -> float:
        """The largest number of the format."""
        return float(self.format.max)

    @property
    def plateau(self) -> float:
        """sqnr in dB of a normal tensor inside the range of the format."""
        return plateau(self.format)


@dataclass(frozen=True)
class Section:
    """One recipe: its entry in validation.json, and what that comes to."""

    entry: dict[str, Any]
    steps: list[int]
    groups: list[Group]
    gradients: dict[str, list[GradientLook | None]]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.entry["recipe"]["name"])

    @property
    def casts(self) -> Counter[str]:
        """How many operands, counted at every step, have each verdict."""
        return Counter(look.worst.value for look in self._cast_looks())

    @property
    def decided_at(self) -> int | None:
        """The step of the finding that decides; None if it is not a figure of a cast or a gradient."""
        wanted = tuple(self.entry["decisive"][key] for key in ("subject", "figure", "value"))
        return next((step for step, f in self._findings() if (f.subject, f.figure, f.value) == wanted), None)

    def _cast_looks(self) -> Iterator[CastLook]:
        for group in self.groups:
            for row in group.rows:
                yield from filter(None, row.looks)

    def _findings(self) -> Iterator[tuple[int, Finding]]:
        for look in self._cast_looks():
            yield from ((look.step, finding) for finding in look.findings)
        for looks in self.gradients.values():
            yield from ((step, look.finding) for step, look in zip(self.steps, looks, strict=True) if look)


def read_section(entry: dict[str, Any]) -> Section:
    """The section of one entry of "scaling" in validation.json."""
    looks = entry["looks"]
    gradients: dict[str, list[GradientLook | None]] = {}
    for at, look in enumerate(looks):
        for name, plain in look["gradients"].items():
            figures = GradientFigures(**plain)
            finding = judge_gradient(f"{name} gradient", figures)
            gradients.setdefault(name, [None] * len(looks))[at] = GradientLook(figures, finding)
    return Section(entry, [look["step"] for look in looks], _read_groups(looks), gradients)


def _read_groups(looks: list[dict[str, Any]]) -> list[Group]:
    groups: dict[tuple[str, str], dict[str, list[CastLook | None]]] = {}
    layers: dict[str, None] = {}
    for at, look in enumerate(looks):
        for plain in look["operands"]:
            layers.setdefault(plain["layer"])
            group = groups.setdefault((plain["operand"], plain["format"]), {})
            group.setdefault(plain["layer"], [None] * len(looks))[at] = _read_cast(plain, look["step"])
    return [
        Group(
            operand,
            parse(fmt),
            [Row(_label(layer, operand), layer, group[layer]) for layer in layers if layer in group],
        )
        for (operand, fmt), group in groups.items()
    ]


def _label(layer: str, operand: str) -> str:
    return f"{layer} {operand}"


def _read_cast(plain: dict[str, Any], step: int) -> CastLook:
    fields = {field.name: plain[field.name] for field in dataclasses.fields(CastFigures)}
    if plain["sqnr"] is None and not plain["exact"] and not plain["reason"]:
        fields["sqnr"] = -math.inf  # JSON has no infinity: an infinite error was written as null
    exponents = {int(exponent): count for exponent, count in plain["exponents"].items()}
    figures, fmt = CastFigures(**{**fields, "exponents": exponents}), parse(plain["format"])
    label = _label(plain["layer"], plain["operand"])
    findings = judge_cast(label, figures, fmt, trained=step > 0, high_precision=plain["high_precision"])
    above = None if figures.sqnr is None else figures.sqnr - plateau(fmt)
    return CastLook(step, figures, list(findings), above)
