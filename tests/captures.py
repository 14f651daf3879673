"""What real tensor cores returned: the folder that FP8SIM_CAPTURES names, and the instruction of each of its sets."""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8sim import mma
from fp8sim.mma import CAPTURED, MmaModel

Array = np.ndarray[Any, Any]

FOLDER = os.environ.get("FP8SIM_CAPTURES", "")
needs_captures = pytest.mark.skipif(not FOLDER, reason="FP8SIM_CAPTURES names no folder of hardware captures")

_OPERANDS = {"fp16": "float16", "bf16": "bfloat16", "tf32": "tf32", "E4M3": "float8_e4m3fn", "E5M2": "float8_e5m2"}
_ACCUMULATORS = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class CaptureSet:
    """One device's outputs of one instruction: a, b [rows, K] codes; c, d [rows] bits of the accumulator's format."""

    name: str
    gpu: str
    model: MmaModel
    a: Array
    b: Array
    c: Array
    d: Array

    def differences(self, model: MmaModel, rows: slice = slice(None)) -> int:
        """How many of the rows `model` computes otherwise."""
        a, b, c = self.a[rows, None], self.b[rows, None], self.c[rows, None, None].view(model.accumulator)
        found = mma.chain(a, b, c, model=model)[:, 0, 0].view(self.d.dtype)
        return int((found != self.d[rows]).sum())


def instruction_of(entry: dict[str, Any]) -> MmaModel:
    """The one instruction in `CAPTURED` that this device ran on these formats."""
    operand, accumulator = _OPERANDS[entry["inputs"]], _ACCUMULATORS[entry["output"]]
    fitting = [
        model
        for name, capture in CAPTURED.items()
        if (model := mma.parse(name)).a_format == operand
        and model.accumulator == accumulator
        and entry["gpu"].lower() in [device.lower() for device in capture.devices]
    ]
    (model,) = fitting
    return model


@functools.cache
def capture_sets() -> tuple[CaptureSet, ...]:
    return tuple(_read())


def _read() -> Iterator[CaptureSet]:
    folder = Path(FOLDER)
    for entry in json.loads((folder / "index.json").read_text()):
        with np.load(folder / f"{entry['name']}.npz") as arrays:
            a, b, c, d = (arrays[key] for key in "abcd")
        yield CaptureSet(entry["name"], entry["gpu"], instruction_of(entry), a, b, c, d)
