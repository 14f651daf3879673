"""Exponents: how sizes grow with width, as straight lines in logarithms."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fp8sim.analysis.coordinates.measuring import Measurements


class Slope(NamedTuple):
    """The exponent e of a size that goes as width^e.

    Attributes:
        value: the mean over seeds; None where a size is zero at some width, or there is none.
        error: its standard error over the seeds; None for one seed.
    """

    value: float | None
    error: float | None


NONE = Slope(None, None)


def slope_at(measured: Measurements, name: str, quantity: str, step: int) -> Slope:
    """The exponent at one step."""
    return _slope(measured, name, quantity, [step])


def mean_slope(measured: Measurements, name: str, quantity: str) -> Slope:
    """The mean exponent over the steps from 1 on at which nothing is zero."""
    return _slope(measured, name, quantity, list(range(1, measured.steps + 1)))


def _slope(measured: Measurements, name: str, quantity: str, steps: list[int]) -> Slope:
    """Least squares over the widths, then means over steps and seeds."""
    values = measured.values.get((name, quantity))
    if values is None:
        return NONE
    chosen = values[:, :, steps]  # [S, W, steps]
    chosen = chosen[:, :, (chosen > 0).all((0, 1))]
    if chosen.shape[-1] == 0:
        return NONE
    x = np.log2(np.array(measured.widths, dtype=float))
    x -= x.mean()
    by_seed = np.einsum("swt,w->st", np.log2(chosen), x).mean(1) / (x @ x)
    error = float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else None
    return Slope(float(by_seed.mean()), error)
