"""Plain torch models under a recipe: `convert` and its report."""

from fp8sim.nn.conversion.converting import convert
from fp8sim.nn.conversion.report import Conversion, ModuleLine, conversion_report

__all__ = ["Conversion", "ModuleLine", "conversion_report", "convert"]
