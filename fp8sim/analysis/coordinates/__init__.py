"""Is muP wired right? Sizes of activations, their changes, gradients and updates against width and step.

The page (`page`) and the decoder of a recipe (`recipe_decoder`) are imported by those who need them: they bring
matplotlib and torch.distributed.
"""

from fp8sim.analysis.coordinates.judging import EXPONENT_FAIL, EXPONENT_PASS, Check, Finding, Kind
from fp8sim.analysis.coordinates.loading import load_function
from fp8sim.analysis.coordinates.measuring import Measurements, default_loss
from fp8sim.analysis.coordinates.result import CoordCheck, Row, coord_check
from fp8sim.analysis.coordinates.slopes import Slope

__all__ = [
    "EXPONENT_FAIL",
    "EXPONENT_PASS",
    "Check",
    "CoordCheck",
    "Finding",
    "Kind",
    "Measurements",
    "Row",
    "Slope",
    "coord_check",
    "default_loss",
    "load_function",
]
