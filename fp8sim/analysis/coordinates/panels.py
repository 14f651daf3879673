"""Sizes against width as small drawings, in SVG coordinates: a curve per step, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fp8sim.analysis.coordinates.measuring import Measurements

WIDTH, HEIGHT, MARGIN = 190, 96, 6
"""Of a drawing, and of the rim around its curves."""

FIRST, LAST = (198, 219, 239), (8, 48, 107)
"""Colours of the first and the last step."""


@dataclass(frozen=True)
class Curve:
    """One step: `points` as SVG takes them, and what to show beside it."""

    step: int
    colour: str
    points: str


@dataclass(frozen=True)
class Panel:
    """One quantity of one module: its curves, and the sizes at the lower and upper end of its axis."""

    quantity: str
    curves: list[Curve]
    low: float
    high: float


def panel(measured: Measurements, name: str, quantity: str) -> Panel | None:
    """The drawing; None if nothing of that name has that quantity, or only zeros.

    An octave is as long upwards as sideways or shorter, so that an exponent of one never looks steeper than the
    diagonal of the drawing.
    """
    values = measured.values.get((name, quantity))
    if values is None:
        return None
    logs = np.log2(values, out=np.full_like(values, math.nan), where=values > 0).mean(0)  # [W, T + 1]
    known = logs[np.isfinite(logs)]
    if known.size == 0:
        return None
    x = np.log2(np.array(measured.widths, dtype=float))
    centre, span = (known.max() + known.min()) / 2, max(known.max() - known.min(), x[-1] - x[0])
    low, high = centre - span / 2, centre + span / 2
    xs = MARGIN + (x - x[0]) / (x[-1] - x[0]) * (WIDTH - 2 * MARGIN)
    ys = HEIGHT - MARGIN - (logs - low) / span * (HEIGHT - 2 * MARGIN)
    return Panel(quantity, list(_curves(xs, ys)), 2.0**low, 2.0**high)


def _curves(xs: np.ndarray, ys: np.ndarray) -> Iterator[Curve]:
    steps = ys.shape[1] - 1
    for step in range(steps + 1):
        if np.isfinite(ys[:, step]).all():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys[:, step], strict=True))
            yield Curve(step, colour(step / max(1, steps)), points)


def colour(share: float) -> str:
    """Between `FIRST` (0) and `LAST` (1)."""
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(FIRST, LAST, strict=True))
