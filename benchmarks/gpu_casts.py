"""Casts on a GPU: `python -m benchmarks.gpu_run --suite casts`.

Each result is first compared with the simulator's, bit for bit and all of it. The bar is a share of the speed
of a copy of as many bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import peers
from benchmarks.gpu_bars import CAST, CAST_REORDERED, Bar
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Call, Device
from fp8sim import backends, quantizers

SHAPE, TINY = (8192, 8192), (4, 256)


@dataclass(frozen=True)
class Cast:
    """One kernel on x [rows, columns].

    Attributes:
        name: says what it does.
        op, backend: a row of `BACKENDS`.
        run: of that row, loaded, and x: the tensors that it computes.
        passes: over x that it must make. written: bytes that it writes for each element, factors left out; codes of any
            format take one.
        bar: what is expected.
        peer: of x: a call of another library that does the same.
    """

    name: str
    op: str
    backend: str
    run: Callable[[Callable[..., Any], torch.Tensor], Any]
    passes: int
    written: int
    bar: Bar
    peer: Callable[[torch.Tensor], Any] | None = None
    peer_name: str = ""


ENCODINGS: tuple[tuple[str, dict[str, Any], Bar], ...] = (
    ("encode", {}, CAST),
    ("encode, factor", {"scale": 0.5}, CAST),
    ("encode, factor, amax", {"scale": 0.5, "amax": True}, CAST),
    ("encode, transposed", {"transpose": True}, CAST_REORDERED),
    ("encode, factor, amax, transposed", {"scale": 0.5, "amax": True, "transpose": True}, CAST_REORDERED),
)

QUANTIZERS = {"mxfp8": 1, "fp8_1x128": 1, "fp8_128x128": 1, "fp8_row_torchao": 1, "fp8_tensor_te": 2} | {
    "mxfp4": 1,
    "nvfp4": 2,
    "nvfp4_te": 2,
}
"""Passes over x of each: the largest magnitude of a whole tensor takes one of its own."""

CONVERTED = ("float8_e4m3fn", "float8_e5m2")
"""Formats that the GPU's own conversion knows."""


def casts() -> Iterator[Cast]:
    """Each, on every backend but the simulator."""
    for backend in _kernels("encode_scaled"):
        for name, options, bar in ENCODINGS:
            peer = (_torch_encode, "torch") if not options else (None, "")
            written = 2 if options.get("transpose") else 1
            yield Cast(f"{name} e4m3", "encode_scaled", backend, _encode(options), 1, written, bar, *peer)
    for backend in _kernels("quantize"):
        for name, passes in QUANTIZERS.items():
            if backend == "triton_hardware" and quantizers.parse(name).format.name not in CONVERTED:
                continue
            peer = (_torchao_mx, "torchao") if name == "mxfp8" and peers.torchao() is not None else (None, "")
            run = _quantize(name)
            yield Cast(f"quantize {name}", "quantize", backend, run, passes, 1, CAST_REORDERED, *peer)


def _kernels(op: str) -> list[str]:
    return [row.name for row in backends.rows(op) if row.name != "simulate"]


def _encode(options: dict[str, Any]) -> Callable[[Callable[..., Any], torch.Tensor], Any]:
    return lambda implementation, x: implementation(x, "e4m3", **options)


def _quantize(name: str) -> Callable[[Callable[..., Any], torch.Tensor], Any]:
    def run(implementation: Callable[..., Any], x: torch.Tensor) -> Any:
        found = implementation(x, quantizers.parse(name))
        return found.codes, found.scales, found.tensor_scale

    return run


def _torch_encode(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float8_e4m3fn)


def _torchao_mx(x: torch.Tensor) -> Any:
    modules = peers.torchao()
    assert modules is not None
    return modules[0].to_mx(x, torch.float8_e4m3fn, 32)


def wrong(cast: Cast, x: torch.Tensor) -> str:
    """What differs between the kernel's bits and the simulator's on x; empty if nothing does."""
    actual = cast.run(backends.row(cast.op, cast.backend).load(), x)
    expected = cast.run(backends.row(cast.op, "simulate").load(), x.cpu())
    pairs = zip(actual, expected, strict=True)
    same = all((a is None and e is None) or torch.equal(_bits(a.cpu()), _bits(e)) for a, e in pairs)
    return "" if same else "the bits are not the simulator's"


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x


def work(cast: Cast, dtype: torch.dtype, device: Device) -> Work:
    if missing := backends.row(cast.op, cast.backend).missing():
        raise Absent(missing)
    shape = device.size(SHAPE, TINY)
    elements = shape[0] * shape[1]
    inputs = [device.numbers(shape, dtype, seed) for seed in range(device.sets(elements * dtype.itemsize))]
    implementation = backends.row(cast.op, cast.backend).load()

    def on_inputs(call: Callable[[torch.Tensor], Any]) -> Call:
        return lambda turn: call(inputs[turn % len(inputs)])

    return Work(
        run=on_inputs(lambda x: cast.run(implementation, x)),
        wrong=lambda: wrong(cast, inputs[0]),
        bytes=(cast.passes * dtype.itemsize + cast.written) * elements,
        peers={cast.peer_name: on_inputs(cast.peer)} if cast.peer else {},
    )


def cases(device: Device) -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        for cast in casts():
            name = f"{cast.name}, {cast.backend}, {str(dtype).removeprefix('torch.')}"
            yield Case(name, functools.partial(work, cast, dtype), cast.bar)
