"""The conversions that are asked, Triton's, ours and torch's, and the rules that they should follow (P14, P13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fp8sim.analysis.probing.calls import Call, DeviceCall
from fp8sim.analysis.probing.conversions import Converter, Rule, stand_in
from fp8sim.analysis.probing.operands import Array
from fp8sim.analysis.probing.products import instruction_of, tf32_mm
from fp8sim.rounding import Overflow, Rounding

_FP8 = ("float8_e4m3fn", "float8_e5m2")
_TO_FP8, _FROM_FP8, _ENCODE = Rule(), Rule(overflow=Overflow.INFINITY), Rule(signed_nan=True)
_TRUNCATED = Rule(Rounding.TOWARD_ZERO, Overflow.INFINITY)
_SIDE = 64
"""K and N of products that show what becomes of tf32 operands."""


PROBES = ("P14",)


@dataclass(frozen=True)
class Row:
    """A conversion to ask.

    Attributes:
        converter: whose `convert` runs on the device.
        needs: "triton" or "torch".
        stands_in: what the simulator does in its stead.
    """

    converter: Converter
    needs: str
    stands_in: Rule

    def on_simulator(self) -> Row:
        """The same, asked of the simulator, and not of every binary32 pattern."""
        asked = self.converter
        simulated = stand_in(self.stands_in, asked.source, asked.target)
        name = f"stand-in for {asked.name}"
        asked = dataclasses.replace(asked, name=name, convert=simulated, every=False, machine_code=tuple)
        return dataclasses.replace(self, converter=asked)


def rows(architecture: str) -> list[Row]:
    """Every conversion that a device of an architecture of `ARCHITECTURES` is asked about."""
    found: list[Row] = []
    if converts_fp8(architecture):
        found += [*_to_fp8(), *_from_fp8()]
    if instruction_of(architecture, "tf32"):
        found += _tf32(architecture)
    return found


def converts_fp8(architecture: str) -> bool:
    """Whether Triton converts by `cvt` alone: from compute capability 9.0 on."""
    return architecture.startswith("sm") and int(architecture.removeprefix("sm")) >= 90


def _to_fp8() -> Iterator[Row]:
    """`cvt.rn.satfinite.e4m3x2` and `.e5m2x2`, bare; and as our casts use it, which put the sign of NaN back."""
    for target in _FP8:
        for source in ("float32", "float16"):
            yield _triton("Triton .to", source, target, _to(target), _TO_FP8, every=source == "float32")
        for source in ("float32", "float16", "bfloat16"):
            yield _triton("fp8sim.encode on triton_hardware", source, target, _encode(target), _ENCODE)


def _from_fp8() -> Iterator[Row]:
    for source in _FP8:
        for target in ("float16", "float32"):
            yield _triton("Triton .to", source, target, _to(target), _FROM_FP8)


def _tf32(architecture: str) -> Iterator[Row]:
    """What becomes of the 13 low bits of float32 operands: those of a product with the identity."""
    if architecture in ("sm80", "sm89", "sm90"):
        yield _tf32_row("Triton tl.dot", _dot, "triton", _TRUNCATED)
    yield _tf32_row("torch.mm", tf32_mm, "torch", None)


def _triton(what: str, source: str, target: str, call: Call, predicted: Rule, every: bool = False) -> Row:
    device = DeviceCall((source,), call, by_triton=True)
    name = f"{what}, {source} to {target}"
    converter = Converter(name, source, target, _codes(device), predicted, every, machine_code=device.machine_code)
    return Row(converter, "triton", predicted)


def _tf32_row(what: str, call: Call, needs: str, predicted: Rule | None) -> Row:
    device = DeviceCall(("tf32", "tf32"), call, by_triton=needs == "triton")
    identity = np.eye(_SIDE, dtype=np.float32).view(np.uint32)

    def convert(patterns: Array) -> Array:
        padded = np.zeros(-(-patterns.size // _SIDE) * _SIDE, np.uint32)
        padded[: patterns.size] = patterns
        return _codes(device)(padded.reshape(-1, _SIDE), identity).reshape(-1)[: patterns.size]

    name, code = f"{what}, operands to tf32", device.machine_code
    converter = Converter(name, "float32", "tf32", convert, predicted, probe="P13", machine_code=code)
    return Row(converter, needs, _TRUNCATED)


def _codes(call: Callable[..., Array]) -> Callable[..., Array]:
    """A call whose float32 results are taken as patterns."""

    def run(*codes: Array) -> Array:
        found = call(*codes)
        return found.view(np.uint32) if found.dtype == np.float32 else found

    return run


def _to(target: str) -> Call:
    def call(x: torch.Tensor) -> torch.Tensor:
        from fp8sim.triton_kernels import probe

        return probe.convert(x, getattr(torch, target))

    return call


def _encode(target: str) -> Call:
    def call(x: torch.Tensor) -> torch.Tensor:
        from fp8sim.triton_kernels import hardware

        return hardware.encode(x, target)

    return call


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from fp8sim.triton_kernels import probe

    return probe.dot(a, b, block=(64, _SIDE, 32))
