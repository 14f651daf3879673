"""Runs the registry: python -m benchmarks.run [--suite casts] [--filter TEXT] [--json -].

First each result is checked; a wrong one is reported and not timed. Then the case, its floor and its peers are timed in
turns. A line says: time, elements, bytes per second, the share of the floor's speed, and how many times a peer's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import fp8sim
from benchmarks.cases import FROM_MEMORY, IN_CACHE, REGISTRY, Case
from benchmarks.timing import medians
from fp8sim import _core

RESULTS = Path(__file__).with_name("results")
SCHEMA = 1


def machine(threads: int) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "processors": os.cpu_count(),
        "instruction_set": _core.isa(),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {module.__name__: str(module.__version__) for module in (np, torch, ml_dtypes)},
        "fp8sim": fp8sim.__version__ if hasattr(fp8sim, "__version__") else None,
    }


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def measure(case: Case, size: int, samples: int) -> dict[str, Any]:
    """One row of results. The key "wrong" replaces all figures if the result is."""
    row: dict[str, Any] = {"name": case.name, "elements": size}
    work = case.build(size)
    work.run()
    try:
        work.check()
    except AssertionError as error:
        return row | {"wrong": str(error)}
    times = medians({"run": work.run, "floor": work.floor, **work.peers}, samples=samples)
    seconds = times.pop("run")
    ratios = {against: other / seconds for against, other in times.items()}
    expected = case.at_least.get(size, {})
    return row | {
        "microseconds": seconds * 1e6,
        "elements_per_second": work.elements / seconds,
        "bytes_per_second": work.bytes / seconds,
        "ratios": ratios,
        "at_least": expected,
        "misses": [against for against, least in expected.items() if ratios.get(against, least) < least],
        "not_measured": [against for against in expected if against not in ratios],
    }


def line(row: dict[str, Any]) -> str:
    head = f"{row['name']:<36} 2^{row['elements'].bit_length() - 1:<3}"
    if "wrong" in row:
        return f"{head} WRONG, not timed: {row['wrong']}"
    speed = f"{row['microseconds']:>10.1f} us {row['elements_per_second'] / 1e9:>7.2f} G/s"
    speed += f" {row['bytes_per_second'] / 1e9:>7.1f} GB/s"
    parts = []
    for against, ratio in row["ratios"].items():
        least = row["at_least"].get(against)
        wanted = f" (>= {least:g}{' MISSED' if against in row['misses'] else ''})" if least else ""
        parts.append(f"{against} {ratio:.2f}{wanted}" if against == "floor" else f"{against} x{ratio:.1f}{wanted}")
    parts += [f"{against} not measured: it is not installed" for against in row["not_measured"]]
    return f"{head}{speed}   {'   '.join(parts)}"


def selected(suite: str | None, text: str) -> Iterable[Case]:
    found = [case for case in REGISTRY.values() if suite in (None, case.suite) and text in case.name]
    if not found:
        raise SystemExit(f"no case matches: there are {', '.join(REGISTRY)}")
    return found


def save(rows: list[dict[str, Any]], suite: str, about: dict[str, Any]) -> Path:
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite}.json"
    path.write_text(json.dumps({"schema": SCHEMA, "machine": about, "rows": rows}, indent=1) + "\n")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", help="only cases of this suite; its results are written to benchmarks/results")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=9, help="samples of each, of which the median counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=[IN_CACHE, FROM_MEMORY], help="elements")
    parser.add_argument("--json", metavar="FILE", help="write the results here; - is standard output")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    _core.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    about = machine(options.threads)
    quiet = options.json == "-"
    rows = []
    for case in selected(options.suite, options.filter):
        for size in options.sizes:
            rows.append(measure(case, size, options.samples))
            if not quiet:
                print(line(rows[-1]), flush=True)
    text = json.dumps({"schema": SCHEMA, "machine": about, "rows": rows}, indent=1)
    if quiet:
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n")
    elif options.suite and not options.filter:
        print(f"results: {save(rows, options.suite, about)}")
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
