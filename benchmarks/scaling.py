"""How loops scale with threads: python -m benchmarks.scaling [--threads 2].

A machine's second thread may be half a processor, and threads share its memory. What a loop gains is compared with what
arithmetic that needs no memory and copies that need nothing else gain, split over as many threads in the same run.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks import floor
from benchmarks.cases import FROM_MEMORY, IN_CACHE, REGISTRY, Call
from benchmarks.run import machine, save
from benchmarks.timing import medians
from fp8sim import _core

CASES = ("cast e4m3:TIES_TO_EVEN:SATURATE", "cast e4m3:TO_ODD:SATURATE", "cast e4m3:STOCHASTIC:SATURATE")
STEPS = 200_000


def on_threads(count: int, call: Call) -> Call:
    def run() -> None:
        _core.set_num_threads(count)
        call()

    return run


def arithmetic_on(pool: ThreadPoolExecutor, count: int) -> Call:
    """STEPS in all, split over `count` threads."""
    return lambda: list(pool.map(floor.arithmetic, [STEPS // count] * count))


def copies_on(pool: ThreadPoolExecutor, count: int, size: int) -> Call:
    """`size` elements of 4 bytes in all, split over `count` threads."""
    x, y = np.ones(size, np.float32), np.zeros(size, np.float32)
    parts = list(zip(np.array_split(x, count), np.array_split(y, count), strict=True))
    return lambda: list(pool.map(lambda part: floor.copy(*part), parts))


def gains(threads: int, size: int, samples: int) -> list[dict[str, Any]]:
    """For each case, for arithmetic and for copies: the speed on `threads` threads over that on one."""
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        for name in CASES:
            run = REGISTRY[name].build(size).run
            calls = {("gain", count): on_threads(count, run) for count in (1, threads)}
            calls |= {("arithmetic_gain", count): arithmetic_on(pool, count) for count in (1, threads)}
            calls |= {("copy_gain", count): copies_on(pool, count, size) for count in (1, threads)}
            seconds = medians({f"{what} {count}": call for (what, count), call in calls.items()}, samples=samples)
            found = {what: seconds[f"{what} 1"] / seconds[f"{what} {threads}"] for what, _ in calls}
            rows.append({"name": name, "elements": size, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the results as JSON; otherwise they are saved")
    options = parser.parse_args()
    rows = [row for size in (IN_CACHE, FROM_MEMORY) for row in gains(options.threads, size, options.samples)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        size = f"2^{row['elements'].bit_length() - 1}"
        alone = f"arithmetic alone {row['arithmetic_gain']:.2f}, copies alone {row['copy_gain']:.2f}"
        print(f"{row['name']:<36} {size}  gain {row['gain']:.2f}   {alone}")
    print(f"results: {save(rows, 'scaling', machine(options.threads))}")


if __name__ == "__main__":
    main()
