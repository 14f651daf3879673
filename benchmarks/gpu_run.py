"""Runs suites of the GPU: python -m benchmarks.gpu_run [--suite casts] [--filter TEXT] [--out FOLDER] [--stand-in].

A line says: time with its quartiles | TFLOP/s | GB/s | how many times the fastest peer's speed | the share of the
floor's | the bar | the verdict. `FOLDER/gpu_<suite>.json` keeps all of it, with the versions of everything involved.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fp8sim
from benchmarks import gpu_peers, gpu_timing
from benchmarks.gpu_matmul import BF16, E4M3
from benchmarks.gpu_parts import SUITES
from benchmarks.gpu_rows import FAILED, SCHEMA, WRONG, Case, Row, line, measure
from benchmarks.gpu_timing import Call, Device, copies, in_turns, reason
from fp8sim.triton_kernels import tuning

RESULTS = Path(__file__).with_name("results")
SAMPLES = 31

COPIED_BYTES = 1 << 31
SQUARE = 8192
QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


def cases(suite: str, device: Device) -> Iterator[Case]:
    found: Iterator[Case] = importlib.import_module(f"benchmarks.gpu_{suite}").cases(device)
    return found


def rates(device: Device, samples: int) -> tuple[dict[str, float], dict[str, str]]:
    """Operations per second of torch's large products of random numbers, by operands; and what did not run."""
    size = device.size(SQUARE, 64)
    wide, narrow = ([device.numbers((size, size), dtype, seed) for seed in (0, 1)] for dtype in (BF16, E4M3))
    half = [x.half() for x in wide]
    calls: dict[str, Call] = {
        "BF16": lambda _: torch.matmul(wide[0], wide[1].T),
        "FP16": lambda _: torch.matmul(half[0], half[1].T),
        "FP8": lambda _: gpu_peers.scaled_mm(*narrow),
    }
    taken = in_turns(device, calls, samples)
    return {name: 2 * size**3 / spread.median for name, spread in taken.spreads.items()}, taken.failed


def copy_rate(device: Device, samples: int) -> float:
    """Bytes per second of a large copy, read and written."""
    size = device.size(COPIED_BYTES, 1 << 16)
    return size / in_turns(device, {"copy": copies(device, size)}, samples).spreads["copy"].median


def machine(device: Device) -> dict[str, Any]:
    """What the results belong to."""
    import triton

    return {
        "device": device.name,
        "stand_in": device.is_stand_in,
        "capability": list(device.capability),
        "cache_bytes": device.cache_bytes,
        "smi": smi(device),
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": str(torch.__version__), "triton": str(triton.__version__)} | gpu_peers.versions(),
        "fp8sim": fp8sim.__version__,
    }


def smi(device: Device) -> dict[str, str] | None:
    """Driver, clocks, power and temperature as nvidia-smi tells them now; None where it does not."""
    if device.is_stand_in:
        return None
    try:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERY.split(","), (value.strip() for value in text.split(",")), strict=True))


def run(suite: str, device: Device, text: str, samples: int, out: Path | None) -> list[Row]:
    """Measure the cases of a suite whose names contain `text`; the file has what is known after each."""
    prepare(out, device)
    found = {"schema": SCHEMA, "suite": suite, "machine": machine(device)}
    products, failed = rates(device, samples)
    found["rates"] = {"copy": copy_rate(device, samples), "products": products, "failed": failed}
    found["complete"] = False
    rows: list[Row] = []
    complete = not text
    try:
        for case in cases(suite, device):
            if text in case.name:
                rows.append(measure(case, device, products, samples))
                print(line(rows[-1]), flush=True)
                save(found | {"rows": rows}, out)
    except Exception as error:
        complete = False
        rows.append({"name": suite, "device": device.name, "failed": reason(error), "verdict": FAILED})
        print(line(rows[-1]), flush=True)
    save(found | {"rows": rows, "smi_after": smi(device), "complete": complete}, out)
    return rows


def prepare(out: Path | None, device: Device) -> None:
    """Make the folder of results. SystemExit where it cannot be, or where the stand-in's do not belong."""
    if out is None:
        return
    if device.is_stand_in and RESULTS.resolve() in [out.resolve(), *out.resolve().parents]:
        raise SystemExit(f"--out {out}: the stand-in measures nothing, and its files do not belong there")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise SystemExit(f"--out {out}: cannot write there ({error.strerror}); name another folder") from error


def save(found: dict[str, Any], out: Path | None) -> None:
    """Write a file of results; one that is interrupted leaves what was there."""
    if out is None:
        return
    path = out / f"gpu_{found['suite']}.json"
    path.with_suffix(".part").write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".part").replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each, of which the median counts")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument(
        "--tune", type=Path, help="measure the kernels' configurations first, and keep the choices there"
    )
    parser.add_argument("--stand-in", action="store_true", help="run on the stand-in, which measures nothing")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error(f"--samples {options.samples}: expected 1 or more")
    if not torch.cuda.is_available() and not options.stand_in:
        print("no CUDA device: not measured (--stand-in shows that the benchmarks run)")
        return 0
    device = gpu_timing.device(stand_in=options.stand_in)
    if device.is_stand_in:
        print(f"{device.name}: times mean nothing")
    verdicts: list[str] = []
    with tuning.use(options.tune, measure=True) if options.tune else contextlib.nullcontext():
        for suite in options.suite:
            verdicts += [row["verdict"] for row in run(suite, device, options.filter, options.samples, options.out)]
    if not verdicts:
        raise SystemExit(f"--filter {options.filter!r}: no case has it in its name")
    return 1 if {WRONG, FAILED} & set(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
