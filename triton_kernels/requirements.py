"""What a GPU and the installed Triton must have: one table, asked before anything is launched."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from typing import NamedTuple

import torch

Capability = tuple[int, int]
"""Major and minor number of a GPU's compute capability."""

AMPERE, HOPPER = (8, 0), (9, 0)
TRITON = (3, 6)
"""The oldest Triton whose language the kernels are written in."""


class Requirement(NamedTuple):
    """The compute capability that a feature needs, and what to do without it."""

    capability: Capability
    generation: str
    instead: str


REQUIREMENTS = {
    "Triton kernels": Requirement(AMPERE, "Ampere", "simulate on the CPU, with fp8sim.use_backend('simulate')"),
    "tensor descriptors": Requirement(HOPPER, "Hopper", "choose a configuration with descriptors=False"),
    "hardware conversion": Requirement(
        HOPPER, "Hopper", "use the backend 'triton', which converts by integer arithmetic"
    ),
}
"""What needs more than any GPU has."""


def require(feature: str, capability: Capability, device: torch.device) -> None:
    """RuntimeError unless a device of this capability has what `feature`, one of `REQUIREMENTS`, needs."""
    needed = REQUIREMENTS[feature]
    if capability >= needed.capability:
        return
    least = f"{_dotted(needed.capability)} or later ({needed.generation})"
    raise RuntimeError(
        f"{feature}: needs compute capability {least}, and {device} has {_dotted(capability)}: {needed.instead}"
    )


def triton_missing() -> str | None:
    """What is wrong with the installed Triton, or None: nothing installed, or too old a version."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (pip install 'triton>={_dotted(TRITON)}')"
    found = version("triton")
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < TRITON:
        return f"Triton {found} is too old for the kernels (pip install 'triton>={_dotted(TRITON)}')"
    return None


def _dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
