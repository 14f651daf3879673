"""The tensor-core instructions of the CUDA device here as instruments, through `fp8sim._cuda`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp8sim.analysis.probing.instruments import Inputs, Interface
from fp8sim.analysis.probing.operands import Array
from fp8sim.cuda.launching import require_built
from fp8sim.mma import ARCHITECTURES, MODELS, MmaModel
from fp8sim.mma.architectures import OPERANDS

_ACCUMULATORS = {"f32": "float32", "f16": "float16", "f64": "float64"}
_MOST_STEPS = 8
_BATCH_BYTES = 1 << 28
"""Of operands and results on the device at a time."""


@dataclass(frozen=True)
class Kernel:
    """A row of `_cuda.probe_instructions()`: a PTX instruction.

    Attributes:
        ptx: its name, without .sync and .aligned.
        symbol: part of the kernel's name in machine code.
        tile: M and N.
        k: products of one.
        least_capability: 10 * major + minor of the first device that has it.
        on_later_devices: whether later ones have it too.
        variants: how a reaches it: "shared", and for the narrowest wgmma "registers" and "negated".
    """

    ptx: str
    symbol: str
    tile: tuple[int, int]
    k: int
    least_capability: int
    on_later_devices: bool
    variants: tuple[str, ...]

    def runs_on(self, capability: int) -> bool:
        later = self.on_later_devices and capability >= self.least_capability
        return later or capability == self.least_capability

    def takes(self, name: str) -> Interface:
        """What it takes, under the name of a row of `MODELS`."""
        _, _, d, a, b, *_ = self.ptx.split(".")
        return Interface(name, OPERANDS[a], OPERANDS[b], _ACCUMULATORS[d], self.k)


def kernels() -> list[Kernel]:
    """Every instruction that `fp8sim._cuda` was built with.

    Raises:
        RuntimeError: it was built without nvcc.
    """
    try:
        require_built()
    except RuntimeError as error:
        raise RuntimeError(f"{error}; --only gemms,conversions asks what needs no kernel of it") from error
    from fp8sim import _cuda

    return [
        Kernel(ptx, symbol, (m, n), k, least, later, ("shared", "registers", "negated") if variants else ("shared",))
        for ptx, symbol, m, n, k, least, later, variants in _cuda.probe_instructions()
    ]


def row_names(kernel: Kernel) -> list[str]:
    """The rows of `MODELS` that this PTX instruction is, one for each architecture that has it."""
    return [name for name, model in MODELS.items() if _is(model, kernel)]


def _is(model: MmaModel, kernel: Kernel) -> bool:
    kind, family = kernel.ptx.partition(".")[0], model.instruction.split(".")[1:]
    short = family[1:] in ([], ["k4"], ["k8"], ["k16"])
    return family[0] == kind and short and kernel.takes(model.name) == Interface.of(model)


@dataclass(frozen=True)
class DeviceInstrument:
    """One instruction of the current CUDA device; `run` takes chains of up to any number of instructions."""

    kernel: Kernel
    name: str
    variant: str = "shared"
    replaces_c: bool = False
    """Whether the first instruction is told to ignore c (wgmma's scale-d = 0)."""

    @property
    def takes(self) -> Interface:
        return self.kernel.takes(self.name)

    @property
    def tile(self) -> tuple[int, int]:
        return self.kernel.tile

    def run(self, inputs: Inputs) -> Array:
        """The bits of d, [cases, M, N]; many cases go in parts."""
        cases = len(inputs.a)
        if cases == 0:
            return np.zeros_like(inputs.c)
        per_case = (inputs.a.nbytes + inputs.b.nbytes + 2 * inputs.c.nbytes) // cases
        count = max(1, _BATCH_BYTES // per_case)
        return np.concatenate([self._part(inputs, slice(i, i + count)) for i in range(0, cases, count)])

    def _part(self, inputs: Inputs, cases: slice) -> Array:
        from fp8sim import _cuda

        a, b, c = inputs.a[cases], inputs.b[cases], inputs.c[cases]
        k, stream = a.shape[-1], torch.cuda.current_stream().cuda_stream
        d = _to_device(c)
        length = _MOST_STEPS * self.kernel.k
        for start in range(0, k, length):
            left, right = (_to_device(x[..., start : start + length]) for x in (a, b))
            ignores_c = self.replaces_c and start == 0
            _cuda.probe(
                self.kernel.ptx,
                left.data_ptr(),
                right.data_ptr(),
                0 if ignores_c else d.data_ptr(),
                d.data_ptr(),
                len(a),
                min(length, k - start) // self.kernel.k,
                self.variant,
                stream,
            )
        return d.cpu().numpy().view(c.dtype).reshape(c.shape)


def _to_device(x: Array) -> torch.Tensor:
    contiguous = np.ascontiguousarray(x)
    return torch.from_numpy(contiguous.reshape(-1).view(np.uint8).copy()).cuda()


def capability() -> int:
    """10 * major + minor of the current device. RuntimeError without one."""
    if not torch.cuda.is_available():
        why = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise RuntimeError(f"no CUDA device here{why}: --stand-in ARCHITECTURE (as sm90) probes the simulator instead")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def architecture(here: int) -> str:
    """The architecture in `ARCHITECTURES` of a compute capability: 86 -> "sm80", 103 -> "sm100"."""
    known = [int(name.removeprefix("sm")) for name in ARCHITECTURES if name.startswith("sm")]
    return f"sm{max((number for number in known if number <= here), default=min(known))}"


def instruments() -> Iterator[DeviceInstrument]:
    """Every instruction of the current device, under the name of its architecture's row in `MODELS`.

    Of those that differ in the columns of their tile only the narrowest: `wider` has the others.
    """
    here = capability()
    narrowest: dict[str, Kernel] = {}
    for kernel in kernels():
        names = [name for name in row_names(kernel) if name.startswith(f"{architecture(here)}.")]
        if kernel.runs_on(here) and names:
            known = narrowest.setdefault(names[0], kernel)
            narrowest[names[0]] = min(known, kernel, key=lambda kernel: kernel.tile)
    for name, kernel in narrowest.items():
        yield DeviceInstrument(kernel, name)


def wider(instrument: DeviceInstrument) -> list[DeviceInstrument]:
    """The same instruction with more columns."""
    model = MODELS[instrument.name]
    others = [kernel for kernel in kernels() if kernel.tile > instrument.tile and _is(model, kernel)]
    return [dataclasses.replace(instrument, kernel=kernel) for kernel in others]


# What a result is worth nothing without


def environment() -> dict[str, Any]:
    """Device, driver, CUDA, torch and Triton versions; None where something is absent."""
    found: dict[str, Any] = {
        "device": None,
        "capability": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "fp8sim": _version("fp8sim"),
    }
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "capability": capability(), "driver": _driver()}
    return found


def label(device: str) -> str:
    """As "NVIDIA H200" -> "H200", and "NVIDIA A100-SXM4-80GB" -> "A100-SXM4-80GB"."""
    return re.sub(r"[^A-Za-z0-9]+", "-", device.removeprefix("NVIDIA ")).strip("-")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
