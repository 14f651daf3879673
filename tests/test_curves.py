"""The drawing of losses."""

import xml.etree.ElementTree

import pytest
from validation_sample import entry

from fp8sim.analysis import curves, sections


@pytest.mark.parametrize("losses", [[], [None] * 3, [4.0], [4.0, 1e30, None], [1e300, 1e308]])
def test_loss_figure_takes_any_losses(losses):
    plain = {**entry(blocks=1), "losses": losses}
    plain["looks"] = [{**look, "loss": losses[0] if losses else None} for look in plain["looks"]]
    svg = curves.loss_figure([sections.read_section(plain)])
    assert xml.etree.ElementTree.fromstring(svg.replace("xlink:", "")).tag == "svg"


def test_each_of_many_curves_has_a_stroke():
    many = curves.strokes(20)
    assert len({(stroke.colour, stroke.width) for stroke in many}) == 20
    assert curves.loss_figure([]) == ""
