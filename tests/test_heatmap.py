"""The heat map of exponents: where numbers lie in a format, and where they are drawn."""

import math

import pytest
import torch
from validation_sample import entry, look, operand

from fp8sim.analysis import heatmap, sections
from fp8sim.formats import FORMATS


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_zone_says_where_a_number_lies_in_the_format(fmt):
    def zone(number):
        return heatmap.range_of(fmt).zone(math.frexp(float(number))[1] - 1)

    assert zone(fmt.smallest / 2) == "below"
    assert zone(fmt.smallest) == ("subnormal" if fmt.smallest < fmt.smallest_normal else "normal")
    assert zone(fmt.smallest_normal) == "normal"
    assert zone(fmt.max) == "normal"
    assert zone(fmt.max / 2**100) == ("below" if fmt.max / 2**100 < fmt.smallest else "normal")
    assert heatmap.range_of(fmt).zone(fmt.emax + 1) == "above"


def test_shade_rises_with_the_share():
    shades = [heatmap.shade(share) for share in (1e-6, *reversed(heatmap.LEVELS), 1.0)]
    assert shades == [*range(len(heatmap.LEVELS) + 1), len(heatmap.LEVELS)]


def test_histogram_fills_each_octave_once():
    """Every octave that has elements is one cell, in the shade of its share and at the place of its exponent."""
    x = torch.tensor([2.0**-12] * 1 + [2.0**-8] * 9 + [1.5] * 90)
    plain = {**entry(blocks=1), "looks": [{**look(0, 1, 1.0), "operands": [operand("a", "input", "e4m3", x)]}]}
    section = sections.read_section(plain)
    assert heatmap.exponent_bounds([section]) == (-12, 10)
    drawn = heatmap.heat_map(section, (-12, 10))
    (line,) = drawn.bands[0].lines
    octave = drawn.axis.width / 22
    cells = {(zone, shade): path for zone, shade, path in line.cells[0].paths}
    assert set(cells) == {("below", 4), ("subnormal", 5), ("normal", 7)}
    assert cells["below", 4] == f"M0 0h{octave:.4g}v12H0z"
    left = f"{round(12 * octave, 2):g}"
    assert cells["normal", 7] == f"M{left} 0h{octave:.4g}v12H{left}z"
