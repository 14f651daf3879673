"""What a tensor core computes, asked of it: its arithmetic measured, recognised, and compared with the simulator."""

from fp8sim.analysis.probing.goldens import Golden, capture, compare_golden, confirmed, evidence, load, load_all, save
from fp8sim.analysis.probing.instruments import Inputs, Instrument, Interface, StandIn
from fp8sim.analysis.probing.measuring import PROPERTIES, measure
from fp8sim.analysis.probing.recognition import Change, Recognition, recognise
from fp8sim.analysis.probing.report import Report, terminal, write
from fp8sim.analysis.probing.running import SECTIONS, Options, parse_lengths, parse_sections, run, total_advances
from fp8sim.analysis.probing.streaming import Tally, stream

__all__ = [
    "PROPERTIES",
    "SECTIONS",
    "Change",
    "Golden",
    "Inputs",
    "Instrument",
    "Interface",
    "Options",
    "Recognition",
    "Report",
    "StandIn",
    "Tally",
    "capture",
    "compare_golden",
    "confirmed",
    "evidence",
    "load",
    "load_all",
    "measure",
    "parse_lengths",
    "parse_sections",
    "recognise",
    "run",
    "save",
    "stream",
    "terminal",
    "total_advances",
    "write",
]
