"""A validation as one self-contained page, from the content of validation.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from fp8sim.analysis import heatmap, verdicts
from fp8sim.analysis.curves import loss_figure, strokes
from fp8sim.analysis.report import explain_baselines
from fp8sim.analysis.sections import read_section
from fp8sim.analysis.verdicts import SEVERITY, Verdict
from fp8sim.recipes import GEMM_OPERANDS


def html(data: Mapping[str, Any]) -> str:
    """The page that shows `data`, the content of validation.json (schema 2).

    It loads nothing: style and drawings are inside, and there is no script. Text from outside (names of files, layers
    and recipes, reasons) is escaped. Figures that are None are shown as a dash, with their reason where there is one.

    Raises:
        KeyError, jinja2.UndefinedError: `data` lacks something that schema 2 has.
    """
    sections = [read_section(entry) for entry in data["scaling"]]
    bounds = heatmap.exponent_bounds(sections)
    content = {
        "data": data,
        "answers": _answers(data),
        "sections": sections,
        "maps": [heatmap.heat_map(section, bounds) for section in sections],
        "strokes": strokes(len(sections)),
        "loss_figure": loss_figure(sections),
        "gemm_operands": GEMM_OPERANDS,
        "heatmap": heatmap,
        "limits": verdicts,
        "explanations": explain_baselines(data),
    }
    return _environment().get_template("report.html.j2").render(content)


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
