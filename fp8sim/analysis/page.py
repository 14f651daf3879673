"""A validation as one self-contained page, from the content of validation.json."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from fp8sim.analysis import heatmap, verdicts
from fp8sim.analysis.sections import Section, read_section
from fp8sim.analysis.verdicts import SEVERITY, Verdict
from fp8sim.recipes import GEMM_OPERANDS

COLOURS = ("#56b4e9", "#d55e00", "#009e73", "#8a4b9e", "#111111", "#b8860b")
"""Of the curves, in turn: told apart by readers who see no red or green."""
CURVE_WIDTHS = (5.0, 1.2)
"""Of the first and the last curve, the others between; every second one is dashed. Where curves coincide, all show."""

POINT = 0.75
"""Of a figure's units (points) in a unit of the page."""

CURVE_CEILING = 1.5
"""The loss axis ends at this many times the losses at the start, so that a diverging run hides no other."""


def html(data: Mapping[str, Any]) -> str:
    """The page that shows `data`, the content of validation.json (schema 1).

    It loads nothing: style and drawings are inside, and there is no script. Text from outside (names of files, layers
    and recipes, reasons) is escaped. Figures that are None are shown as a dash, with their reason where there is one.

    Raises:
        KeyError, jinja2.UndefinedError: `data` lacks something that schema 1 has.
    """
    sections = [read_section(entry) for entry in data["scaling"]]
    bounds = heatmap.exponent_bounds(sections)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            sections=sections,
            maps=[heatmap.heat_map(section, bounds) for section in sections],
            heatmap=heatmap,
            answers=_answers(data),
            strokes=strokes(len(sections)),
            loss_figure=_loss_figure(sections),
            limits=verdicts,
            gemm_operands=GEMM_OPERANDS,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, power=power, css=css, flatten=flatten)
    return environment


def number(value: float | None, spec: str = "z.1f") -> str:
    """`value` by a format specification, with a true minus sign; a dash for None."""
    return "–" if value is None else f"{value:{spec}}".replace("-", "−")


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent, without the sign; "0" is exactly none and "<0.01" a share that would round to none."""
    if value is None or value == 0:
        return "–" if value is None else "0"
    least = 10.0**-digits
    return f"<{least:g}" if abs(100 * value) < least / 2 else number(100 * value, f"z.{digits}f")


def power(exponent: int) -> str:
    """2 to the `exponent`, as in "2⁻⁹"."""
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def css(verdict: str | None) -> str:
    """The style class of a verdict; empty for None, which stands for what is not judged."""
    return "" if verdict is None else Verdict(verdict).name.lower()


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dictionaries."""
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Answer:
    """What the run says to one of its questions."""

    question: str
    verdict: Verdict
    lines: list[str]


def _answers(data: Mapping[str, Any]) -> list[Answer]:
    deciding = [entry for entry in data["scaling"] if entry["decides"]]
    baselines = [f"{entry['recipe']['name']} {entry['verdict']}" for entry in data["scaling"] if not entry["decides"]]
    scaling = [f"{verdict}: {', '.join(names)}." for verdict, names in _by_verdict(deciding).items()]
    scaling += [f"Baselines, which decide nothing: {', '.join(baselines)}."] if baselines else []
    rows = data["arithmetic"]
    compared, mismatches = (sum(row[key] for row in rows) for key in ("compared", "mismatches"))
    arithmetic = [f"{compared:,} numbers compared, {mismatches:,} mismatches."]
    arithmetic += [f"{row['verdict']}: {row['name']}." for row in rows if row["verdict"] != Verdict.PASS]
    return [
        Answer("Does the scaling rule hold?", _worst(deciding), scaling or ["No recipe was run that decides this."]),
        Answer("Do operations and kernels compute what they claim?", _worst(rows), arithmetic),
    ]


def _by_verdict(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry["verdict"], []).append(entry["recipe"]["name"])
    return names


def _worst(judged: Iterable[Mapping[str, Any]]) -> Verdict:
    """The worst verdict; NOT CHECKED if there is none."""
    return max((Verdict(one["verdict"]) for one in judged), key=SEVERITY.index, default=Verdict.NOT_CHECKED)


@dataclass(frozen=True)
class Stroke:
    """How a recipe's loss curve is drawn."""

    colour: str
    width: float
    dashes: tuple[float, float] | None


def strokes(count: int) -> list[Stroke]:
    """One for each of `count` curves, the first the widest."""
    widest, narrowest = CURVE_WIDTHS
    widths = [widest + (narrowest - widest) * i / max(1, count - 1) for i in range(count)]
    return [
        Stroke(COLOURS[i % len(COLOURS)], width, (2 * width, 2 * width) if i % 2 else None)
        for i, width in enumerate(widths)
    ]


def _loss_figure(sections: list[Section]) -> Markup:
    """The losses of all recipes as SVG; empty without recipes. The page draws the legend, where names are escaped."""
    if not sections:
        return Markup()
    figure = Figure(figsize=(6.2, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss, nats per character")
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for section, stroke in zip(sections, strokes(len(sections)), strict=True):
        dashes = stroke.dashes and [POINT * length for length in stroke.dashes]
        style = (0, dashes) if dashes else "-"
        axes.plot(*_points(section), color=stroke.colour, linewidth=POINT * stroke.width, linestyle=style)
    starts = [loss for section in sections for loss in section.entry["losses"][:1] if loss is not None]
    if starts:
        axes.set_ylim(top=min(axes.get_ylim()[1], CURVE_CEILING * max(starts)))
    return _svg(figure)


def _points(section: Section) -> tuple[list[int], list[float]]:
    """Steps and losses of a run: those of training, then that of the last look; NaN, a gap, where one is not finite."""
    losses = dict(enumerate(section.entry["losses"])) | {look["step"]: look["loss"] for look in section.entry["looks"]}
    return list(losses), [math.nan if loss is None else loss for loss in losses.values()]


def _svg(figure: Figure) -> Markup:
    """`figure` as an element of a page: text stays text, and what only a file of its own needs is left out."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "fp8sim", "font.size": 8.5, "lines.scale_dashes": False}
    out, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata=no_metadata)
    element = out.getvalue()[out.getvalue().index("<svg") :]
    return Markup(re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", element))
