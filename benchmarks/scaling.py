"""How loops scale with threads, beside arithmetic that needs no memory: python -m benchmarks.scaling [--threads 2].

A machine's second thread may be half a processor. What a loop gains from it is compared with what plain arithmetic,
split over as many threads, gains in the same run.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def gains(threads: int, size: int, samples: int) -> list[dict[str, Any]]:
    """For each case, and for arithmetic: the speed on `threads` threads over that on one."""
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        for name in CASES:
            run = REGISTRY[name].build(size).run
            calls = {"one": on_threads(1, run), "many": on_threads(threads, run)}
            calls |= {"arithmetic one": arithmetic_on(pool, 1), "arithmetic many": arithmetic_on(pool, threads)}
            seconds = medians(calls, samples=samples)
            row = {"name": name, "elements": size, "gain": seconds["one"] / seconds["many"]}
            rows.append(row | {"arithmetic_gain": seconds["arithmetic one"] / seconds["arithmetic many"]})
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
        print(f"{row['name']:<36} {size}  gain {row['gain']:.2f}   arithmetic alone {row['arithmetic_gain']:.2f}")
    print(f"results: {save(rows, 'scaling', machine(options.threads))}")


if __name__ == "__main__":
    main()
