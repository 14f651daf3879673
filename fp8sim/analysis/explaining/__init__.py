"""Why a kernel's output is what it is: hypotheses as data, which of them give exactly its bits, and what differs."""

from fp8sim.analysis.explaining.cases import Case, load_case, save_case
from fp8sim.analysis.explaining.difference import Difference
from fp8sim.analysis.explaining.faults import Fault
from fp8sim.analysis.explaining.grid import default_hypotheses
from fp8sim.analysis.explaining.hypothesis import Hypothesis, parse_hypothesis
from fp8sim.analysis.explaining.inputs import Design, design, next_case, pairs_of
from fp8sim.analysis.explaining.trial import EquivalenceClass
from fp8sim.analysis.explaining.verdict import Explanation, explain

__all__ = [
    "Case",
    "Design",
    "Difference",
    "EquivalenceClass",
    "Explanation",
    "Fault",
    "Hypothesis",
    "default_hypotheses",
    "design",
    "explain",
    "load_case",
    "next_case",
    "pairs_of",
    "parse_hypothesis",
    "save_case",
]
