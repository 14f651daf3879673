"""The exponents of every module, in the columns that the terminal and the page show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fp8sim.analysis.coordinates.judging import Finding
from fp8sim.analysis.coordinates.measuring import GRADIENT, UPDATE, Measurements
from fp8sim.analysis.coordinates.probe import ACTIVATION, CHANGE, OWN_CHANGE
from fp8sim.analysis.coordinates.slopes import Slope, mean_slope, slope_at

COLUMNS = ("activation at 0", CHANGE, OWN_CHANGE, GRADIENT, UPDATE)
"""Headings. All but the first are means over the steps from 1 on; the last two are of the module's largest weight."""

_QUANTITIES = (ACTIVATION, CHANGE, OWN_CHANGE)


@dataclass(frozen=True)
class Line:
    """One module: its finding, and its exponents in the order of `COLUMNS`."""

    finding: Finding
    slopes: tuple[Slope, ...]

    @property
    def decisive_column(self) -> int | None:
        """Index of the column that the finding is about."""
        check = self.finding.check
        return None if check is None else _QUANTITIES.index(check.quantity)


def lines(measured: Measurements, findings: Sequence[Finding]) -> Iterator[Line]:
    """A line for each finding."""
    for finding in findings:
        name, weight = finding.name, _largest_parameter(measured, finding.name)
        yield Line(
            finding,
            (
                slope_at(measured, name, ACTIVATION, 0),
                mean_slope(measured, name, CHANGE),
                mean_slope(measured, name, OWN_CHANGE),
                mean_slope(measured, weight, GRADIENT),
                mean_slope(measured, weight, UPDATE),
            ),
        )


def _largest_parameter(measured: Measurements, name: str) -> str:
    """The full name of the largest parameter that a module uses; empty if it has none."""
    parameters = measured.shapes[name][-1].parameters
    return max(parameters, key=lambda key: (len(parameters[key]), parameters[key]), default="")


def header(measured: Measurements) -> str:
    """What was run."""
    widths = ", ".join(map(str, measured.widths))
    return f"widths {widths}   steps {measured.steps}   seeds {measured.seeds}"
