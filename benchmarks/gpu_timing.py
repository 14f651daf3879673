"""Timing on a GPU by the GPU's own clock, in turns: what is compared is measured side by side.

Each call reads other inputs than the one before, and all of them together are larger than the cache. The GPU is kept
waiting while the host launches, so that what is timed is the work and not the launching of it.

Where there is no GPU, a stand-in takes its place: the CPU, tiny sizes, Triton's interpreter and the host's clock. It
shows that a benchmark runs, and measures nothing that is worth a look.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Call = Callable[[int], object]
"""Takes the number of the turn, which chooses the inputs."""

STAND_IN = "stand-in: CPU and interpreter"

WARM_UP = 3
"""Turns that are not counted: compilation, tuning, allocation."""

TIMES_CACHE = 4
"""Inputs of all turns are so many times as large as the cache."""

MOST_SETS = 16

CYCLES_PER_SECOND = 2e9
"""A bound on the clock of every GPU, for how long it is told to wait."""

LONGEST_WAIT = 0.02
"""Seconds that a GPU waits at most while the host launches."""

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Spread:
    """Seconds of several samples: the median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: list[float]) -> Spread:
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive") if samples[1:] else samples * 3
        return Spread(median, low, high)

    @property
    def microseconds(self) -> dict[str, Any]:
        """As a row of results holds them."""
        return {"microseconds": self.median * 1e6, "quartiles": [self.low * 1e6, self.high * 1e6]}


@dataclass(frozen=True)
class Device:
    """Where benchmarks run.

    Attributes:
        name: of the GPU, as its driver says it.
        kind: torch's device type: "cuda", or "cpu" of the stand-in.
        capability: compute capability.
        cache_bytes: of its last level of cache.
    """

    name: str
    kind: str
    capability: tuple[int, int]
    cache_bytes: int

    @property
    def is_stand_in(self) -> bool:
        return self.kind == "cpu"

    def size(self, real: Choice, tiny: Choice) -> Choice:
        """`real` on a GPU, `tiny` on the stand-in."""
        return tiny if self.is_stand_in else real

    def sets(self, size: int) -> int:
        """How many sets of inputs of `size` bytes each must take turns."""
        return min(MOST_SETS, max(2, math.ceil(TIMES_CACHE * self.cache_bytes / size)))

    def numbers(self, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
        """Normal random numbers; on the stand-in -1, 0 and 1, whose sums are exact in the interpreter's order, too."""
        generator = torch.Generator(device=self.kind).manual_seed(seed)
        if self.is_stand_in:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return torch.randn(shape, device=self.kind, generator=generator).to(dtype)

    def seconds(self, call: Call, turn: int, wait: float) -> float:
        """Of one call; a GPU starts it after `wait` seconds, in which the host launches it."""
        if self.is_stand_in:
            start = time.perf_counter()
            call(turn)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(wait * CYCLES_PER_SECOND))
        begin.record()
        call(turn)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        if not self.is_stand_in:
            torch.cuda.synchronize()


def device(*, stand_in: bool = False) -> Device:
    """The first GPU, or the stand-in, which enables the interpreter for this process."""
    if not stand_in:
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, "cuda", (properties.major, properties.minor), properties.L2_cache_size)
    from fp8sim.triton_kernels import interpreter

    interpreter.enable()
    return Device(STAND_IN, "cpu", (9, 0), 1024)


@dataclass(frozen=True)
class Taken:
    """What was measured: a spread for each call that ran, and why the others did not."""

    spreads: dict[str, Spread]
    launch: dict[str, float]
    """Seconds in which the host launches each."""
    failed: dict[str, str]


def in_turns(device: Device, calls: Mapping[str, Call], samples: int) -> Taken:
    """The times of each call, taken in turns, so that a disturbance hits all alike.

    The first call must run; another one that raises an exception while it warms up is left out, and `failed` says why.
    """
    launch: dict[str, float] = {}
    failed: dict[str, str] = {}
    first = next(iter(calls))
    for name, call in calls.items():
        try:
            launch[name] = _warm_up(device, call)
        except Exception as error:
            if name == first:
                raise
            failed[name] = reason(error)
    taken: dict[str, list[float]] = {name: [] for name in launch}
    for turn in range(WARM_UP, WARM_UP + samples):
        for name, times in taken.items():
            times.append(device.seconds(calls[name], turn, min(2 * launch[name] + 1e-5, LONGEST_WAIT)))
    return Taken({name: Spread.of(times) for name, times in taken.items()}, launch, failed)


def _warm_up(device: Device, call: Call) -> float:
    """Seconds in which the host launches `call`, once it is warm."""
    for turn in range(WARM_UP):
        device.synchronize()
        start = time.perf_counter()
        call(turn)
        elapsed = time.perf_counter() - start
    device.synchronize()
    return elapsed


def reason(error: Exception) -> str:
    """An exception in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def copies(device: Device, size: int) -> Call:
    """A copy that reads and writes `size` bytes in all."""
    half = max(1, size // 2)
    count = device.sets(2 * half)
    sources = [torch.randint(0, 256, (half,), dtype=torch.uint8, device=device.kind) for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]
    return lambda turn: targets[turn % count].copy_(sources[turn % count])
