"""Kernels of the device as functions of codes, and what Triton compiled for them.

Without a CUDA device tensors stay on the CPU, where Triton's kernels run in the interpreter alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fp8sim.analysis.probing import machine_code
from fp8sim.analysis.probing.operands import Array

Call = Callable[..., torch.Tensor]

_DTYPES = {"tf32": torch.float32}
_CODES = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}


class DeviceCall:
    """A call on tensors of the device, as one on codes.

    Attributes:
        formats: of the arguments, in their order; further ones are float32. "tf32" is float32, too.
        call: the call.
        by_triton: whether it launches Triton kernels, whose machine code is kept.
    """

    def __init__(self, formats: tuple[str, ...], call: Call, *, by_triton: bool = False) -> None:
        self.formats, self.call, self.by_triton = formats, call, by_triton
        self._kernels: dict[int, Any] = {}

    def __call__(self, *arguments: Array) -> Array:
        """The result: float32 numbers, or the codes of a narrower dtype."""
        formats = (*self.formats, *("float32" for _ in arguments[len(self.formats) :]))
        tensors = [to_device(x, fmt) for x, fmt in zip(arguments, formats, strict=True)]
        with self._launched() as kernels:
            found = from_device(self.call(*tensors))
        self._kernels |= {id(kernel): kernel for kernel in kernels}
        return found

    def _launched(self) -> contextlib.AbstractContextManager[list[Any]]:
        if not self.by_triton:
            return contextlib.nullcontext([])
        from fp8sim.triton_kernels import probe

        return probe.launched()

    def machine_code(self) -> tuple[str, ...]:
        """What multiplies, adds and converts in the kernels that were launched; empty where it is not known."""
        names = (name for kernel in self._kernels.values() for name in machine_code.of_triton(kernel))
        return tuple(dict.fromkeys(names))


def unavailable(needs: str) -> str | None:
    """Why what needs "triton" or "cuda" (`fp8sim._cuda`) cannot be asked here; None if it can, as can "torch"."""
    if needs == "triton":
        from fp8sim.triton_kernels.requirements import triton_missing

        return triton_missing()
    if needs == "cuda" and importlib.util.find_spec("fp8sim._cuda") is None:
        return "fp8sim was built without nvcc, so there is no fp8sim._cuda"
    return None


def to_device(codes: Array, fmt: str) -> torch.Tensor:
    """Codes of a format, or float32 numbers, as a tensor of its dtype."""
    memory = torch.from_numpy(np.array(codes, order="C").view(np.uint8))
    there = memory.cuda() if torch.cuda.is_available() else memory
    return there.view(_DTYPES.get(fmt) or getattr(torch, fmt))


def from_device(x: torch.Tensor) -> Array:
    """float32 numbers, or the codes of another dtype; waits for the device."""
    here = x.detach().cpu()
    found: Array = (here if here.dtype == torch.float32 else here.view(_CODES[here.element_size()])).numpy()
    return found
