"""Operands for instructions, under the name by which tests know them: `fp8sim.analysis.probing.operands`."""

from fp8sim.analysis.probing.operands import (
    CATEGORIES,
    Array,
    Case,
    bits,
    case,
    encoded,
    finite,
    overflow,
    wide,
    width,
)

__all__ = ["CATEGORIES", "Array", "Case", "bits", "case", "encoded", "finite", "overflow", "wide", "width"]
