"""Golden vectors: what an instruction of a device returned for inputs of every category, in one small file.

`tests/golden/<device>/<instruction>.npz` holds operands and results as raw bits, and how they came about. The simulator
is compared with them on every machine; what they confirm is written to `fp8sim/mma/probed.json`, from which the rows
of `MODELS` take their evidence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp8sim import mma
from fp8sim.analysis.probing import golden_files
from fp8sim.analysis.probing.battery import differences
from fp8sim.analysis.probing.device import label
from fp8sim.analysis.probing.edges import sums_beside_zero
from fp8sim.analysis.probing.instruments import Inputs, Instrument, Interface, StandIn, on_diagonals
from fp8sim.analysis.probing.operands import CATEGORIES, Array, Case, bits, case, mantissa_bits, values, width
from fp8sim.analysis.probing.terms import Ruler
from fp8sim.mma import MmaModel

OUTPUTS = 1024
"""Of each category, at least."""

CHAIN = 4
"""Instructions of a chain."""

_CHAINED = {"chain": "wide", "chain of normal": "normal"}


@dataclass(frozen=True, eq=False)
class Golden:
    """One device's results of one instruction.

    Attributes:
        row: the name in `MODELS` of what the instruction is meant to be.
        device: as evidence names it, such as "H200".
        about: the instruction in PTX and in machine code, and versions (`device.environment`); what stood in for a
            device, if something did, as "stand_in".
        parts: category -> (inputs, bits of d).
    """

    row: str
    device: str
    about: Mapping[str, Any]
    parts: Mapping[str, tuple[Inputs, Array]]

    @property
    def outputs(self) -> int:
        return sum(d.size for _, d in self.parts.values())


def capture(instrument: Instrument, device: str, about: Mapping[str, Any], outputs: int = OUTPUTS) -> Golden:
    """The results of an instrument for every category: single instructions, and chains of `CHAIN`."""
    parts = {}
    for category in (*CATEGORIES, *_CHAINED):
        inputs = inputs_of(instrument.takes, instrument.tile, category, outputs)
        parts[category] = inputs, instrument.run(inputs)
    _, a, b = sums_beside_zero(Ruler(instrument))
    if len(a):
        inputs, _ = on_diagonals(instrument.takes, instrument.tile, a, b)
        parts["beside zero"] = inputs, instrument.run(inputs)
    return Golden(instrument.takes.name, device, dict(about), parts)


def inputs_of(takes: Interface, tile: tuple[int, int], category: str, outputs: int, seed: int = 0) -> Inputs:
    """Cases of one category, so many that there are `outputs` results."""
    m, n = tile
    k = takes.k * (CHAIN if category in _CHAINED else 1)
    name = _CHAINED.get(category, category)
    cases = [case(takes, name, m, n, k, seed * 1000 + i) for i in range(-(-outputs // (m * n)))]
    scales = [np.stack([found.scales[key] for found in cases]) for key in cases[0].scales]
    return Inputs(
        np.stack([found.a for found in cases]),
        np.stack([found.b for found in cases]),
        np.stack([_start(found, (m, n), takes) for found in cases]),
        *scales,
    )


def _start(found: Case, shape: tuple[int, int], takes: Interface) -> Array:
    return np.zeros(shape, takes.accumulator_bits) if found.c is None else bits(found.c)


# Files


def save(golden: Golden, folder: Path) -> Path:
    """Write `<folder>/<device>/<row>.npz`, the device in lower case."""
    path = place_of(golden, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"schema": golden_files.SCHEMA, "row": golden.row, "device": golden.device, "about": dict(golden.about)}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for category, (inputs, d) in golden.parts.items():
        named = {name: getattr(inputs, name) for name in golden_files.INPUTS}
        arrays |= {f"{category}/{name}": x for name, x in named.items() if x is not None}
        arrays[f"{category}/d"] = d
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def place_of(golden: Golden, folder: Path) -> Path:
    """Where `save` writes it."""
    return folder / golden.device.lower() / f"{golden.row}.npz"


def load(path: Path) -> Golden:
    """The golden vectors of a file. ValueError as of `golden_files.read`."""
    head, parts = golden_files.read(path)
    return Golden(head["row"], head["device"], head["about"], parts)


def load_all(folder: Path) -> Iterator[Golden]:
    """Every file of every device."""
    for path in sorted(folder.glob("*/*.npz")):
        yield load(path)


# Comparison


@dataclass(frozen=True)
class Comparison:
    """The simulator beside golden vectors.

    Attributes:
        row, device: as in `Golden`.
        compared: outputs.
        differing: how many the simulator computes otherwise.
        first: the first of them: category, place, what was captured and what is computed; "" if there is none.
    """

    row: str
    device: str
    compared: int
    differing: int
    first: str


def compare_golden(golden: Golden, model: MmaModel | None = None) -> Comparison:
    """Golden vectors with the row that they are of, or with another."""
    row = mma.parse(golden.row) if model is None else model
    compared = differing = 0
    first = ""
    for category, (inputs, d) in golden.parts.items():
        found = StandIn(row).run(inputs)
        wrong = differences(d, found, row)
        compared, differing = compared + d.size, differing + int(wrong.sum())
        if wrong.any() and not first:
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            first = f"{category} {list(at)}: {golden.device} returned {int(d[at]):#x}, computed {int(found[at]):#x}"
    return Comparison(golden.row, golden.device, compared, differing, first)


# Evidence


def confirmed(golden: Golden) -> dict[str, int]:
    """Category of `mma.CATEGORIES` -> outputs that exercise it; nothing unless every output is reproduced."""
    model = mma.parse(golden.row)
    if compare_golden(golden).differing:
        return {}
    counts: dict[str, int] = {}
    for inputs, d in golden.parts.values():
        for name, outputs in exercised(inputs, d, model).items():
            counts[name] = counts.get(name, 0) + int(outputs.sum())
    return {name: counts[name] for name in mma.CATEGORIES if counts.get(name)}


def exercised(inputs: Inputs, d: Array, model: MmaModel) -> dict[str, Array]:
    """Which outputs [cases, M, N] exercise what (`mma.CATEGORIES`)."""
    a, b = _Kinds(inputs.a, model.a_format), _Kinds(inputs.b, model.b_format)
    c, results = _Kinds(inputs.c, model.accumulator), _Kinds(d, model.accumulator)
    special: Array = _either(a.special, b.special) | c.special
    subnormal = _either(a.subnormal, b.subnormal) | c.subnormal | results.subnormal
    overflows = results.special & ~special
    chained = np.full(d.shape, inputs.a.shape[-1] > model.terms)
    ordinary = ~special & ~overflows
    return {
        "normal": ordinary & ~subnormal,
        "nonzero_c": ordinary & ~c.zero,
        "chains": ordinary & chained,
        "subnormals": ordinary & subnormal,
        "zero_terms": ordinary & _zeros_show(inputs, d, model),
        "overflow": overflows,
        "specials": special,
    }


def _zeros_show(inputs: Inputs, d: Array, model: MmaModel) -> Array:
    """Where another exponent of terms that are zero gives another result."""
    found: Array = np.zeros(d.shape, bool)
    if model.zero_exponent is not None:
        for step in (-1, 1):
            found |= StandIn(dataclasses.replace(model, zero_exponent=model.zero_exponent + step)).run(inputs) != d
    return found


class _Kinds:
    """Which codes are infinities or NaN, zeros, subnormal numbers."""

    def __init__(self, codes: Array, fmt: str) -> None:
        magnitude = codes & codes.dtype.type((1 << (width(fmt) - 1)) - 1)
        numbers = values(codes, fmt)
        self.special: Array = ~np.isfinite(numbers)
        self.zero: Array = numbers == 0
        self.subnormal: Array = ~self.special & ~self.zero & (magnitude < (1 << mantissa_bits(fmt)))


def _either(a: Array, b: Array) -> Array:
    """Of [cases, M, K] and [cases, N, K]: whether any of the operands of an output [cases, M, N] is one."""
    found: Array = np.logical_or.reduce(a, -1)[:, :, None] | np.logical_or.reduce(b, -1)[:, None, :]
    return found


def evidence(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """What the golden vectors of a folder confirm: row -> category -> device -> outputs. It is `probed.json`.

    Raises:
        ValueError: there is no such folder; a file is damaged, is not at its place, or is no device's.
    """
    if not folder.is_dir():
        raise ValueError(f"--evidence {folder}: there is no such folder; 'fp8sim probe --golden FOLDER' makes one")
    found: dict[str, dict[str, dict[str, int]]] = {}
    for path in sorted(folder.rglob("*.npz")):
        golden = load(path)
        _refuse_what_is_no_evidence(golden, path, folder)
        for category, outputs in confirmed(golden).items():
            found.setdefault(golden.row, {}).setdefault(category, {})[golden.device] = outputs
    return found


def _refuse_what_is_no_evidence(golden: Golden, path: Path, folder: Path) -> None:
    """ValueError for a file of a stand-in, of no device or another one, and for a copy, which would count twice."""
    if golden.about.get("stand_in"):
        raise ValueError(f"{path} was captured from the simulator: it is no evidence; remove it")
    named = golden.about.get("device")
    if not isinstance(named, str) or label(named) != golden.device:
        raise ValueError(f"{path} is of {golden.device!r}, captured on {named!r}: it is no evidence; capture it again")
    place = place_of(golden, folder)
    if path != place:
        raise ValueError(f"{path} belongs at {place}: name the folder that has a folder for each device")
