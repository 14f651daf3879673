"""Exponent histograms as a heat map in SVG coordinates: a row per operand, a panel per step, a column per octave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from fp8sim.analysis.sections import CastLook, Group, Row, Section
from fp8sim.formats import Format

WIDTH, LABELS, GAP = 1140, 154, 18
"""Of the drawing, of the column of labels, and between panels."""
ROW, CELL, HEADING, AXIS = 14, 12, 22, 18
"""Heights: of a row, of the cells in it, of a group's heading, and of the axis above and below."""

LEVELS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
"""Shares of an operand's elements that begin a shade, darkest first; the lightest shade is any smaller share."""

FORMAT_REACH = 16
"""Octaves beyond the data within which a limit of a format still widens the axis."""


@dataclass(frozen=True)
class Range:
    """Where a format's numbers lie: subnormal from 2^`smallest`, normal from 2^`normal`, none from 2^`end` on."""

    smallest: int
    normal: int
    end: int

    def zone(self, exponent: int) -> str:
        """What |x| with this floor(log2) is in the format."""
        if exponent < self.smallest:
            return "below"
        return "subnormal" if exponent < self.normal else "normal" if exponent < self.end else "above"


def range_of(fmt: Format) -> Range:
    """The range of `fmt`; without subnormal numbers `smallest` equals `normal`."""
    return Range(_exponent(fmt.smallest), min(_exponent(fmt.smallest_normal), fmt.emax + 1), fmt.emax + 1)


def _exponent(number: Fraction) -> int:
    """floor(log2), exact because the denominator is a power of two."""
    return number.numerator.bit_length() - number.denominator.bit_length()


@dataclass(frozen=True)
class Axis:
    """|x| from 2^low to 2^high on `width` units, an octave as wide as the other."""

    low: int
    high: int
    width: float

    def x(self, exponent: int) -> float:
        """Where 2^exponent lies, clipped to the axis."""
        return round((min(max(exponent, self.low), self.high) - self.low) * self.width / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[int]:
        """Exponents to write, as multiples of a power of two and about 50 units or more apart."""
        step = 2 ** math.ceil(math.log2(max(1.0, 50 * (self.high - self.low) / self.width)))
        return list(range(-(-self.low // step) * step, self.high + 1, step))


@dataclass(frozen=True)
class Cells:
    """One operand at one step: title, why it is empty, and for each zone and shade the path that fills its octaves."""

    title: str
    reason: str
    paths: list[tuple[str, int, str]]


@dataclass(frozen=True)
class Line:
    """One operand: where it lies, and its cells in each panel (None: not seen)."""

    y: int
    row: Row
    cells: list[Cells | None]


@dataclass(frozen=True)
class Band:
    """A group of rows of one format: heading, the format's zones as (zone, x, width), and its lines."""

    y: int
    group: Group
    zones: list[tuple[str, float, float]]
    lines: list[Line]

    @property
    def top(self) -> int:
        """Where its rows begin."""
        return self.y + HEADING

    @property
    def height(self) -> int:
        """Of its rows."""
        return ROW * len(self.lines)


@dataclass(frozen=True)
class HeatMap:
    """All of one recipe."""

    axis: Axis
    panels: list[tuple[int, float]]
    """Step and left edge."""
    bands: list[Band]
    height: int


def exponent_bounds(sections: Iterable[Section]) -> tuple[int, int]:
    """The octaves (low, high) that a common axis of all heat maps spans: all data, and nearby limits of formats."""
    groups = [group for section in sections for group in section.groups]
    looks = [look for group in groups for row in group.rows for look in row.looks if look]
    seen = [exponent for look in looks for exponent in look.figures.exponents] or [0]
    low, high = min(seen), max(seen) + 1
    limits = [limit for group in groups for limit in _limits(group.format)]
    near = [limit for limit in limits if low - FORMAT_REACH <= limit <= high + FORMAT_REACH]
    return min([low, *(limit - 1 for limit in near)]), max([high, *(limit + 1 for limit in near)])


def _limits(fmt: Format) -> tuple[int, int, int]:
    bounds = range_of(fmt)
    return bounds.smallest, bounds.normal, bounds.end


def heat_map(section: Section, bounds: tuple[int, int]) -> HeatMap:
    """Lay out the histograms of `section` on an axis from 2^low to 2^high."""
    pitch = (WIDTH - LABELS) / max(1, len(section.steps))
    axis = Axis(*bounds, pitch - GAP)
    bands, y = [], AXIS
    for group in section.groups:
        bands.append(_band(group, axis, y))
        y = bands[-1].top + bands[-1].height
    return HeatMap(axis, [(step, LABELS + i * pitch) for i, step in enumerate(section.steps)], bands, y + AXIS)


def _band(group: Group, axis: Axis, y: int) -> Band:
    bounds, lines = range_of(group.format), []
    for i, row in enumerate(group.rows):
        cells = [None if look is None else _cells(row.label, look, bounds, axis) for look in row.looks]
        lines.append(Line(y + HEADING + i * ROW, row, cells))
    return Band(y, group, list(_zones(bounds, axis)), lines)


def _zones(bounds: Range, axis: Axis) -> Iterator[tuple[str, float, float]]:
    edges = (axis.low, bounds.smallest, bounds.normal, bounds.end, axis.high)
    for zone, left, right in zip(("below", "subnormal", "normal", "above"), edges, edges[1:], strict=False):
        if axis.x(right) > axis.x(left):
            yield zone, axis.x(left), round(axis.x(right) - axis.x(left), 2)


def _cells(label: str, look: CastLook, bounds: Range, axis: Axis) -> Cells:
    counts = look.figures.exponents
    total = sum(counts.values())
    paths: dict[tuple[str, int], str] = {}
    for exponent, count in sorted(counts.items()):
        key = bounds.zone(exponent), shade(count / total)
        left = axis.x(exponent)
        paths[key] = f"{paths.get(key, '')}M{left:g} 0h{axis.x(exponent + 1) - left:.4g}v{CELL}H{left:g}z"
    title = f"{label}, step {look.step}: {look.figures.reason or _span(counts)}"
    return Cells(title, look.figures.reason, [(*key, path) for key, path in paths.items()])


def _span(counts: dict[int, int]) -> str:
    low, high = min(counts), max(counts) + 1
    return f"|x| from 2^{low} to 2^{high}, most often from 2^{max(counts, key=counts.__getitem__)} on"


def shade(share: float) -> int:
    """0 for the smallest shares, len(LEVELS) for the largest."""
    return sum(share >= level for level in LEVELS)
