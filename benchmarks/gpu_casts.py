"""Casts on a GPU against a copy of as many bytes, in one run: python -m benchmarks.gpu_casts [--elements 67108864].

Each result is first compared with the simulator's, on a part of the data, and a wrong one is not timed. Then kernel
and copy are timed in turns by the device's own clock. The ratio is that of bytes per
second to the copy's. Without a CUDA device nothing is measured, and the command says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fp8sim import backends, quantizers

Call = Callable[[], Any]

COLUMNS = 8192
CHECKED_ROWS = 128
FLUSHED = 1 << 28
"""Bytes overwritten between samples, more than any level of cache holds."""


@dataclass(frozen=True)
class CastCase:
    """One kernel on x [rows, COLUMNS].

    Attributes:
        name: unique.
        run: of a row of `BACKENDS`, loaded, and x: the tensors that it computes.
        op, backend: the row.
        bytes: that must move, read and written, per element of x that has so many bytes; factors are left out.
        at_least: the share of the copy's speed that is expected.
    """

    name: str
    op: str
    backend: str
    run: Callable[[Callable[..., Any], torch.Tensor], Any]
    bytes: Callable[[int], float]
    at_least: float


def cases() -> Iterator[CastCase]:
    for backend in ("triton", "triton_hardware"):
        for name, options, written, least in (
            ("encode", {}, 1, 0.9),
            ("encode, factor", {"scale": 0.5}, 1, 0.9),
            ("encode, factor, amax", {"scale": 0.5, "amax": True}, 1, 0.9),
            ("encode, transposed", {"transpose": True}, 2, 0.8),
            ("encode, factor, amax, transposed", {"scale": 0.5, "amax": True, "transpose": True}, 2, 0.8),
        ):
            yield CastCase(
                f"{name} e4m3", "encode_scaled", backend, _encode(options), lambda size, w=written: size + w, least
            )
        for name in ("mxfp8", "fp8_1x128", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te"):
            passes = 2 if name == "fp8_tensor_te" else 1
            yield CastCase(
                f"quantize {name}", "quantize", backend, _quantize(name), lambda size, p=passes: p * size + 1, 0.8
            )
    for name in ("mxfp4", "nvfp4", "nvfp4_te"):
        passes = 1 if name == "mxfp4" else 2
        yield CastCase(
            f"quantize {name}", "quantize", "triton", _quantize(name), lambda size, p=passes: p * size + 1, 0.8
        )


def _encode(options: dict[str, Any]) -> Callable[[Callable[..., Any], torch.Tensor], Any]:
    return lambda implementation, x: implementation(x, "e4m3", **options)


def _quantize(name: str) -> Callable[[Callable[..., Any], torch.Tensor], Any]:
    def run(implementation: Callable[..., Any], x: torch.Tensor) -> Any:
        found = implementation(x, quantizers.parse(name))
        return found.codes, found.scales, found.tensor_scale

    return run


def same(case: CastCase, x: torch.Tensor) -> bool:
    """Whether the kernel has the simulator's bits on x."""
    actual = case.run(backends.row(case.op, case.backend).load(), x)
    expected = case.run(backends.row(case.op, "simulate").load(), x.cpu())
    pairs = zip(actual, expected, strict=True)
    return all((a is None and e is None) or torch.equal(_bits(a.cpu()), _bits(e)) for a, e in pairs)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x


def medians(calls: dict[str, Call], samples: int) -> dict[str, float]:
    """The median seconds of each call, taken in turns by the device's clock, with the cache overwritten before each."""
    cache = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for sample in range(samples + 2):
        for name, call in calls.items():
            cache.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()  # type: ignore[no-untyped-call]
            call()
            end.record()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            if sample >= 2:
                taken[name].append(start.elapsed_time(end) / 1e3)  # type: ignore[no-untyped-call]
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(case: CastCase, x: torch.Tensor, samples: int) -> dict[str, Any]:
    """One row of results; "wrong" replaces all figures if the result is."""
    row: dict[str, Any] = {"name": case.name, "backend": case.backend, "dtype": str(x.dtype), "elements": x.numel()}
    if not same(case, x[:CHECKED_ROWS]):
        return row | {"wrong": "the bits are not the simulator's"}
    moved = int(case.bytes(x.element_size()) * x.numel())
    source, target = (torch.empty(moved // 2, dtype=torch.uint8, device=x.device) for _ in range(2))
    implementation = backends.row(case.op, case.backend).load()
    seconds = medians(
        {"run": lambda: case.run(implementation, x), "copy": lambda: target.copy_(source)},
        samples,
    )
    share = seconds["copy"] / seconds["run"]
    return row | {
        "microseconds": seconds["run"] * 1e6,
        "bytes_per_second": moved / seconds["run"],
        "copy_ratio": share,
        "at_least": case.at_least,
        "missed": share < case.at_least,
    }


def line(row: dict[str, Any]) -> str:
    head = f"{row['name']:<36} {row['backend']:<16} {row['dtype'].removeprefix('torch.'):<9}"
    if "wrong" in row:
        return f"{head} WRONG, not timed: {row['wrong']}"
    missed = " MISSED" if row["missed"] else ""
    speed = f"{row['microseconds']:>9.1f} us {row['bytes_per_second'] / 1e9:>7.0f} GB/s"
    return f"{head}{speed}   copy {row['copy_ratio']:.2f} (>= {row['at_least']:g}{missed})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the results here; - is standard output")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return 0
    generator = torch.Generator(device="cuda").manual_seed(0)
    numbers = torch.randn(options.elements // COLUMNS, COLUMNS, device="cuda", generator=generator)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for case in cases():
            rows.append(measure(case, numbers.to(dtype), options.samples))
            if options.json != "-":
                print(line(rows[-1]), flush=True)
    text = json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1)
    if options.json == "-":
        print(text)
    elif options.json:
        with open(options.json, "w") as file:
            file.write(text + "\n")
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
