"""What confirms an instruction's arithmetic: outputs of hardware, a reference model, or nothing but inference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

CATEGORIES = ("normal", "nonzero_c", "chains", "subnormals", "zero_terms", "overflow", "specials")
"""Inputs by what they exercise: normal numbers; c other than 0; more than one step in an instruction; subnormal
operands and results; terms whose being zero shows; results beyond the largest number; infinities and NaN."""

OUTPUTS_PER_CAPTURE = 2000
"""Dot products that were captured from each device for each instruction, and with which tests compare."""


@dataclass(frozen=True)
class Evidence:
    """What confirms one category of inputs.

    Attributes:
        kind: "hardware": outputs of real devices are reproduced bit for bit. "reference": the published model that its
            authors tested on hardware (MMA-Sim 2.1.1) says so. "inferred": neither.
        devices: which devices, with "hardware".
        outputs: how many of their outputs, with "hardware".
    """

    kind: str
    devices: tuple[str, ...] = ()
    outputs: int = 0

    def __str__(self) -> str:
        return f"hardware ({', '.join(self.devices)}: {self.outputs})" if self.devices else self.kind


@dataclass(frozen=True)
class Capture:
    """Which devices' outputs of one instruction are reproduced, and what its inputs exercised.

    Attributes:
        devices: as in the names of the capture sets.
        nonzero_c: whether c was other than 0; it is of devices that are named.
        chained: whether the instruction has more than one step.
    """

    devices: tuple[str, ...]
    nonzero_c: tuple[str, ...] = ()
    chained: bool = False


def _with_c(*devices: str, chained: bool = False) -> Capture:
    return Capture(devices, devices, chained)


CAPTURED: Mapping[str, Capture] = MappingProxyType(
    {
        "sm70.mma.f16.f16.f32": _with_c("V100"),
        "sm70.mma.f16.f16.f16": _with_c("V100"),
        "sm80.mma.k8.f16.f16.f32": _with_c("A100", "A2"),
        "sm80.mma.k8.f16.f16.f16": _with_c("A100", "A2"),
        "sm80.mma.k8.bf16.bf16.f32": _with_c("A100", "A2"),
        "sm80.mma.k4.tf32.tf32.f32": _with_c("A100", "A2"),
        "sm89.mma.k8.f16.f16.f32": _with_c("Ada", "L40S"),
        "sm89.mma.k8.f16.f16.f16": _with_c("Ada", "L40S"),
        "sm89.mma.k8.bf16.bf16.f32": _with_c("Ada", "L40S"),
        "sm89.mma.k4.tf32.tf32.f32": _with_c("Ada", "L40S"),
        "sm89.mma.e4m3.e4m3.f32": _with_c("Ada", "L40S", chained=True),
        "sm89.mma.e4m3.e4m3.f16": _with_c("Ada", chained=True),
        "sm89.mma.e5m2.e5m2.f32": _with_c("Ada", "L40S", chained=True),
        "sm89.mma.e5m2.e5m2.f16": _with_c("Ada", chained=True),
        "sm90.mma.f16.f16.f32": _with_c("H100", "H200"),
        "sm90.mma.f16.f16.f16": _with_c("H100", "H200"),
        "sm90.mma.bf16.bf16.f32": _with_c("H100", "H200"),
        "sm90.mma.k4.tf32.tf32.f32": _with_c("H100", "H200"),
        "sm90.mma.e4m3.e4m3.f16": _with_c("H100", "H200"),
        "sm90.mma.e5m2.e5m2.f16": _with_c("H100", "H200"),
        "sm90.wgmma.e4m3.e4m3.f32": Capture(("H100", "H200")),
        "sm90.wgmma.e5m2.e5m2.f32": Capture(("H100", "H200")),
        "sm100.mma.f16.f16.f32": _with_c("B200"),
        "sm100.mma.f16.f16.f16": _with_c("B200"),
        "sm100.mma.bf16.bf16.f32": _with_c("B200"),
        "sm100.mma.k4.tf32.tf32.f32": _with_c("B200"),
        "sm100.mma.e4m3.e4m3.f32": _with_c("B200"),
        "sm100.mma.e4m3.e4m3.f16": _with_c("B200"),
        "sm100.mma.e5m2.e5m2.f32": _with_c("B200"),
        "sm100.mma.e5m2.e5m2.f16": _with_c("B200"),
    }
)
"""What was captured, by instruction: the folder that FP8SIM_CAPTURES names has the outputs. Their operands lie below
4.5 in magnitude, without infinities and NaN; no output is subnormal or overflows."""


PROBED_FILE = Path(__file__).with_name("probed.json")

PROBED: Mapping[str, Mapping[str, Mapping[str, int]]] = MappingProxyType(json.loads(PROBED_FILE.read_text()))
"""What fp8sim's own golden vectors confirm: instruction -> category -> device -> outputs. `fp8sim probe --evidence`
writes the file from tests/golden; nobody edits it."""


def evidence_of(name: str, unit: str | None, others: str) -> dict[str, Evidence]:
    """The evidence of an instruction, by category.

    Args:
        name: the instruction's full name.
        unit: the name in `CAPTURED` of an instruction of the same formats whose steps are the same, perhaps itself.
        others: "reference" or "inferred", for what the captures do not show.
    """
    found = dict.fromkeys(CATEGORIES, Evidence(others))
    if unit is not None:
        capture = CAPTURED[unit]
        found["normal"] = _hardware(capture.devices)
        if capture.nonzero_c:
            found["nonzero_c"] = _hardware(capture.nonzero_c)
        if capture.chained and unit == name:
            found["chains"] = _hardware(capture.devices)
    return with_probes(found, PROBED.get(name, {}))


def with_probes(found: Mapping[str, Evidence], probed: Mapping[str, Mapping[str, int]]) -> dict[str, Evidence]:
    """Evidence with what was probed added: devices that are not named yet, and outputs of all."""
    return {category: _and_probes(before, probed.get(category, {})) for category, before in found.items()}


def _and_probes(before: Evidence, outputs: Mapping[str, int]) -> Evidence:
    if not outputs:
        return before
    devices = tuple(dict.fromkeys((*before.devices, *outputs)))
    return Evidence("hardware", devices, before.outputs + sum(outputs.values()))


def _hardware(devices: tuple[str, ...]) -> Evidence:
    return Evidence("hardware", devices, OUTPUTS_PER_CAPTURE * len(devices))
