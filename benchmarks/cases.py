"""The registry: what is measured, against which floor and peers, and what is expected of it.

To add a case, write a function from a size to a `Work` and decorate it with `@case(...)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import floor, peers
from fp8sim import _core, casting, formats, quantizers, scaling
from fp8sim.rounding import Overflow, Rounding, member, resolve

Array = np.ndarray[Any, Any]
Call = Callable[[], object]

IN_CACHE, FROM_MEMORY = 2**20, 2**24
"""Elements: 4 MiB of float32 stay in the last level of cache, 64 MiB do not."""


@dataclass(frozen=True)
class Work:
    """One case at one size, with buffers that every call reuses.

    Attributes:
        run: what is measured.
        check: raises AssertionError if the result is wrong.
        elements: elements per call.
        bytes: bytes that a call must read and write.
        floor: moves as many bytes and does nothing else.
        peers: others' ways to the same result, by name.
    """

    run: Call
    check: Call
    elements: int
    bytes: int
    floor: Call
    peers: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A row of the registry.

    Attributes:
        name: unique.
        suite: the file of results that it belongs to.
        build: from a size to the work.
        at_least: what is expected, by size: the ratio to "floor" or to a peer.
    """

    name: str
    suite: str
    build: Callable[[int], Work]
    at_least: Mapping[int, Mapping[str, float]]


REGISTRY: dict[str, Case] = {}


def register(name: str, suite: str, build: Callable[[int], Work], **at_least: tuple[float, float]) -> None:
    """Add a case; `at_least` gives, for "floor" or a peer, the ratios expected in cache and from memory."""
    if name in REGISTRY:
        raise ValueError(f"case {name!r} is there already")
    expected = {
        size: {against: ratios[k] for against, ratios in at_least.items()}
        for k, size in enumerate((IN_CACHE, FROM_MEMORY))
    }
    REGISTRY[name] = Case(name, suite, build, expected)


def sample(size: int, largest: float, smallest_normal: float) -> Array:
    """float32: normal numbers, half of them scaled so that 2.5 % overflow, every fortieth to below the smallest."""
    x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    x[::40] *= np.float32(smallest_normal)
    x.reshape(-1, 4)[:, 2:] *= np.float32(largest / 2.24)
    return x


def numbers_for(size: int, fmt: formats.Format) -> Array:
    largest = min(fmt.to_float(fmt.max_code), float(np.finfo(np.float32).max) / 4)
    return sample(size, largest, max(float(fmt.smallest_normal), 2.0**-126))


@dataclass(frozen=True)
class Policy:
    """A format, a mode and an overflow policy, as the registry writes them: "e4m3:TIES_TO_EVEN:SATURATE"."""

    text: str

    @property
    def fmt(self) -> formats.Format:
        return formats.parse(self.text.split(":")[0])

    @property
    def rounding(self) -> Rounding:
        return member(Rounding, self.text.split(":")[1], "rounding")

    @property
    def overflow(self) -> Overflow:
        return member(Overflow, self.text.split(":")[2], "overflow")

    @property
    def conversion(self) -> list[int]:
        return list(resolve(self.fmt, self.rounding, self.overflow))


def cast_work(policy: Policy, size: int) -> Work:
    x = numbers_for(size, policy.fmt)
    y = np.empty_like(x)
    conversion = policy.conversion
    return Work(
        run=lambda: _core.cast(x, y, "float32", conversion, seed=1),
        check=lambda: peers.check_numbers(x, y, policy.fmt, policy.rounding, policy.overflow),
        elements=size,
        bytes=8 * size,
        floor=lambda: floor.copy(x, y),
        peers=peers.casts(x, policy.fmt, policy.rounding),
    )


def encode_work(policy: Policy, size: int) -> Work:
    x = numbers_for(size, policy.fmt)
    dtype = casting.code_dtype(policy.fmt)
    codes = np.empty(size, dtype)
    bytes_out = np.empty(size, np.uint8)
    conversion = policy.conversion
    return Work(
        run=lambda: _core.encode(x, codes, "float32", dtype, conversion, seed=1),
        check=lambda: peers.check_codes(x, codes, policy.fmt, policy.rounding, policy.overflow),
        elements=size,
        bytes=(4 + codes.itemsize) * size,
        floor=lambda: floor.copy(x, bytes_out),
        peers=peers.encodes(x, policy.fmt),
    )


def decode_work(policy: Policy, size: int) -> Work:
    codes = np.random.default_rng(0).integers(0, 1 << policy.fmt.bits, size, dtype=np.uint8)
    y = np.empty(size, np.float32)
    conversion = policy.conversion
    return Work(
        run=lambda: _core.decode(codes, y, "uint8", "float32", conversion),
        check=lambda: peers.check_decoded(codes, y, policy.fmt),
        elements=size,
        bytes=5 * size,
        floor=lambda: floor.copy(codes, y),
        peers=peers.decodes(codes, policy.fmt),
    )


@dataclass(frozen=True)
class Quantized:
    """What quantizing made: [rows, columns] of codes, the stored factors, the factor of the tensor."""

    codes: Array
    stored: Array
    tensor: float


def quantize_work(name: str, size: int) -> Work:
    quantizer = quantizers.parse(name)
    spec, fmt = quantizer.scale, quantizer.format
    assert spec is not None
    x = np.random.default_rng(0).standard_normal((size // 1024, 1024), dtype=np.float32)
    codes, stored = np.empty(x.shape, np.uint8), np.empty(spec.granularity.scale_shape(x.shape), np.uint32)
    if spec.store.bits == 8:
        stored = stored.astype(np.uint8)
    conversion, cuts = casting.loop_arguments(fmt, quantizer.rounding, quantizer.overflow)
    arguments = ("uint8", spec.granularity.blocks(x.shape), *scaling.constants(fmt, spec), conversion, cuts)
    tensors: list[float] = []

    def run() -> None:
        tensors[:] = [_core.quantize(x.view(np.uint32), codes, stored, *arguments)]

    return Work(
        run=run,
        check=lambda: peers.check_quantized(x, Quantized(codes, stored, *tensors), quantizer),
        elements=size,
        bytes=5 * size + stored.nbytes,
        floor=lambda: floor.copy(x, codes),
        peers=peers.quantizes(x, name),
    )


WORKS = {"cast": cast_work, "encode": encode_work, "decode": decode_work}


def register_conversion(kind: str, text: str, **at_least: tuple[float, float]) -> None:
    policy = Policy(text)
    register(f"{kind} {text}", "casts", lambda size: WORKS[kind](policy, size), **at_least)


for name in ("e4m3", "e5m2", "e2m1"):
    against_torch = {"torch": (15.0, 15.0)} if name == "e4m3" else {}
    register_conversion("cast", f"{name}:TIES_TO_EVEN:SATURATE", floor=(0.85, 0.7), **against_torch)
register_conversion("encode", "e4m3:TIES_TO_EVEN:SATURATE", floor=(0.55, 0.55), torch=(4.0, 2.5))
register_conversion("decode", "e4m3:TIES_TO_EVEN:SATURATE", floor=(0.5, 0.5))
for mode in Rounding:
    if not mode.is_stochastic:
        register_conversion("cast", f"bf16:{mode.name}:SATURATE", floor=(0.4, 0.0))
        if mode is not Rounding.TIES_TO_EVEN:
            register_conversion("cast", f"e4m3:{mode.name}:SATURATE", floor=(0.4, 0.0))
for name in ("e4m3", "e5m2", "e2m1", "bf16"):
    register_conversion("cast", f"{name}:STOCHASTIC:SATURATE", floor=(0.15, 0.0))
for text in ("e5m2:TIES_TO_EVEN:INFINITY", "bf16:TIES_TO_EVEN:INFINITY", "e8m0:TOWARD_POSITIVE:SATURATE"):
    register_conversion("encode", text)
for text in ("e4m3fnuz:TIES_TO_EVEN:SATURATE", "binary8p4se:TIES_TO_EVEN:SATURATE", "fp16:TIES_TO_EVEN:INFINITY"):
    register_conversion("cast", text)

QUANTIZERS = {"mxfp8_e4m3": 2.0, "nvfp4_torchao": 10.0, "mxfp8_e4m3_rceil": None, "mxfp4": None, "mxint8": None}
QUANTIZERS |= dict.fromkeys(("nvfp4", "nvfp4_te", "fp8_1x128", "fp8_128x128", "fp8_tensor_te", "nf4"))
for name, times in QUANTIZERS.items():
    register(
        f"quantize {name}",
        "quantizers",
        functools.partial(quantize_work, name),
        **({} if times is None else {"torchao": (times, times)}),
    )
