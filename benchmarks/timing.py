"""Interleaved medians: on a shared machine, what is compared is measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def seconds_per_call(call: Call, least: float) -> float:
    """Mean seconds of one call, over as many calls as take `least` seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / calls


def medians(calls: Mapping[str, Call], *, samples: int = 9, least: float = 0.01) -> dict[str, float]:
    """The median seconds per call of each, sampled in turns, so that a disturbance hits all alike.

    Args:
        calls: what to time, by name; each is called once beforehand.
        samples: how many samples of each.
        least: seconds that one sample takes at least.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(samples):
        for name, call in calls.items():
            taken[name].append(seconds_per_call(call, least))
    return {name: statistics.median(times) for name, times in taken.items()}
