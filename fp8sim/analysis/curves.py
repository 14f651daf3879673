"""The losses of several runs as one small drawing."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fp8sim.analysis.sections import Section

COLOURS = ("#56b4e9", "#d55e00", "#009e73", "#8a4b9e", "#111111", "#b8860b")
"""Of the curves, in turn: told apart by readers who see no red or green."""

WIDTHS = (5.0, 1.2)
"""Of the first and the last curve, the others between; every second one is dashed. Where curves coincide, all show."""

CEILING = 1.5
"""The axis ends at this many times the losses at the start, so that a diverging run hides no other."""

POINT = 0.75
"""A unit of the page in matplotlib's unit, points."""


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn, lengths in units of the page."""

    colour: str
    width: float
    dashes: tuple[float, float] | None


def strokes(count: int) -> list[Stroke]:
    """One for each of `count` curves, the first the widest."""
    widest, narrowest = WIDTHS
    widths = [widest + (narrowest - widest) * i / max(1, count - 1) for i in range(count)]
    return [
        Stroke(COLOURS[i % len(COLOURS)], width, (2 * width, 2 * width) if i % 2 else None)
        for i, width in enumerate(widths)
    ]


def loss_figure(sections: list[Section]) -> Markup:
    """The losses of all recipes as an SVG element, without a legend (`strokes` says which is whose); empty for none."""
    if not sections:
        return Markup()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rc("font", size=12 * POINT)
        matplotlib.rc("lines", scale_dashes=False)
        matplotlib.rc("svg", fonttype="none", hashsalt="fp8sim")  # text stays text; the same losses, the same drawing
        figure = Figure(figsize=(6.2, 2.7), layout="constrained")
        _draw(figure.subplots(), sections)
        return _svg(figure)


def _draw(axes: Axes, sections: list[Section]) -> None:
    axes.set(xlabel="step", ylabel="loss, nats per character")
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for section, stroke in zip(sections, strokes(len(sections)), strict=True):
        dashes = "-" if stroke.dashes is None else (0, [POINT * length for length in stroke.dashes])
        axes.plot(*_points(section), color=stroke.colour, linewidth=POINT * stroke.width, linestyle=dashes)
    starts = [loss for section in sections for loss in section.entry["losses"][:1] if loss is not None]
    if starts:
        axes.set_ylim(top=min(axes.get_ylim()[1], CEILING * max(starts)))


def _points(section: Section) -> tuple[list[int], list[float]]:
    """Steps and losses: those of training, then that of the last look; NaN, a gap, where one is not finite."""
    losses = dict(enumerate(section.entry["losses"])) | {look["step"]: look["loss"] for look in section.entry["looks"]}
    return list(losses), [math.nan if loss is None else loss for loss in losses.values()]


def _svg(figure: Figure) -> Markup:
    """`figure` as an element of a page: what only a file of its own needs is left out."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = out.getvalue()[out.getvalue().index("<svg") :]
    return Markup(re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", element))
