"""A coordinate check as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from fp8sim.analysis import heatmap
from fp8sim.analysis.coordinates import judging, panels, table
from fp8sim.analysis.coordinates.probe import ACTIVATION, CHANGE, OWN_CHANGE
from fp8sim.analysis.coordinates.recipe_decoder import CastEffect
from fp8sim.analysis.coordinates.result import CoordCheck
from fp8sim.analysis.page import css, number

DRAWN = (ACTIVATION, CHANGE, OWN_CHANGE)


def html(check: CoordCheck, subject: str, effects: Sequence[CastEffect] = ()) -> str:
    """The page that shows `check`: verdict, exponents, and every size against width. It loads nothing.

    Args:
        check: what to show.
        subject: what was checked, in words.
        effects: of a recipe's casts.
    """
    measured = check.measured
    lines = list(table.lines(measured, check.findings))
    content = {
        "check": check,
        "subject": subject,
        "header": table.header(measured),
        "columns": table.COLUMNS,
        "lines": lines,
        "drawings": [[panels.panel(measured, line.finding.name, quantity) for quantity in DRAWN] for line in lines],
        "steps": [(step, panels.colour(step / measured.steps)) for step in range(measured.steps + 1)],
        "effects": effects,
        "limits": judging,
        "panels": panels,
        "heatmap": heatmap,  # the style sheet has its shades
    }
    return _environment().get_template("coordinates.html.j2").render(content)


def _environment() -> jinja2.Environment:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, here.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, css=css)
    return environment
