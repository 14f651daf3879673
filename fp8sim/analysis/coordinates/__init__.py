"""Is muP wired right? Sizes of activations, their changes, gradients and updates against width and step."""

from fp8sim.analysis.coordinates.judging import EXPONENT_FAIL, EXPONENT_PASS, Check, Finding, Kind
from fp8sim.analysis.coordinates.loading import load_function
from fp8sim.analysis.coordinates.measuring import Measurements, default_loss
from fp8sim.analysis.coordinates.page import html
from fp8sim.analysis.coordinates.recipe_decoder import CastEffect, DecoderFactory, cast_effects
from fp8sim.analysis.coordinates.result import CoordCheck, Row, coord_check
from fp8sim.analysis.coordinates.slopes import Slope

__all__ = [
    "EXPONENT_FAIL",
    "EXPONENT_PASS",
    "CastEffect",
    "Check",
    "CoordCheck",
    "DecoderFactory",
    "Finding",
    "Kind",
    "Measurements",
    "Row",
    "Slope",
    "cast_effects",
    "coord_check",
    "default_loss",
    "html",
    "load_function",
]
