"""Which configuration of a kernel is the fastest: measured when asked, kept in a file, and read from it afterwards.

Launchers take the first of the configurations that they offer, unless `use` names a file of choices. All that are
offered give the same bits, so that a choice is one of speed alone: a `GemmPlan` does not depend on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

SCHEMA = 1
"""Version of the structure of the file."""

WORTH = 0.98
"""A configuration replaces the default if it takes at most this share of its time: less is noise."""

SAMPLES = 15
WARM_UP = 3
FLUSHED = 1 << 28
"""Bytes overwritten before each sample, more than any cache holds."""

Call = Callable[[], object]
Timer = Callable[[Sequence[Call]], list[float]]
"""The median seconds of each call, taken in turns."""

Choice = TypeVar("Choice")


class Choices:
    """Choices of one device, and the file that keeps them.

    Attributes:
        path: of the JSON file. measure: whether what is missing there is measured and added. timer: by which.
        entries: key -> what was chosen, and how long it and the default took.
    """

    def __init__(self, path: Path, measure: bool, timer: Timer) -> None:
        self.path, self.measure, self.timer = path, measure, timer
        self.entries: dict[str, dict[str, Any]] = _read(path) if path.exists() else {}
        if not self.entries and not measure:
            raise ValueError(
                f"{path} has no choices: measure them with fp8sim.triton_kernels.tuning.use(path, measure=True)"
            )

    def pick(self, key: str, offered: Sequence[Choice], run: Callable[[Choice], object]) -> Choice:
        """The choice for `key`; the first of `offered` if there is none, or it is not offered, and none is measured."""
        recorded = self.entries.get(key, {}).get("choice")
        for candidate in offered:
            if recorded is not None and _plain(candidate) == recorded:
                return candidate
        if not self.measure:
            if recorded is not None:
                raise ValueError(
                    f"{self.path}: '{key}' chooses {recorded}, which is not offered any more: measure it anew, with "
                    f"measure=True"
                )
            return offered[0]
        best, seconds = tune(offered, run, self.timer)
        self.entries[key] = {
            "choice": _plain(offered[best]),
            "seconds": seconds[best],
            "default_seconds": seconds[0],
            "offered": len(offered),
            "triton": version("triton"),
        }
        _write(self.path, self.entries)
        return offered[best]


_active: Choices | None = None


@contextlib.contextmanager
def use(path: str | os.PathLike[str], *, measure: bool = False, timer: Timer | None = None) -> Iterator[Choices]:
    """Inside the `with` block kernels are launched with the choices in a file.

    Args:
        path: of the JSON file, or of a folder that holds one for each kind of GPU.
        measure: measure what the file has no choice for, on the operands of the call, and add it. It takes seconds per
            kernel and size; a call that is measured waits for the device.
        timer: replaces the device's clock.

    Raises:
        ValueError: the file is missing, or no such file, or names a configuration that is not offered (any more).
    """
    global _active
    path = Path(path)
    if path.is_dir():
        path = (
            path
            / f"{_slug(device_name(torch.device('cuda') if torch.cuda.is_available() else torch.device('cpu')))}.json"
        )
    before, _active = _active, Choices(path, measure, timer or device_seconds)
    try:
        yield _active
    finally:
        _active = before


def pick(
    kernel: str,
    device: torch.device,
    options: Mapping[str, object],
    shape: Sequence[int],
    offered: Sequence[Choice],
    run: Callable[[Choice], object],
) -> Choice:
    """The configuration with which a launcher launches.

    Args:
        kernel: its name. device: where it runs.
        options: what else decides which configuration is fast, by name: dtypes, factors.
        shape: sizes, of which those between two powers of two share a choice.
        offered: configurations, dataclasses or numbers, which give the same bits; the default first.
        run: launches one of them on the operands of the call; may be called many times.
    """
    if _active is None or len(offered) == 1:
        return offered[0]
    return _active.pick(key_of(kernel, device, options, shape), offered, run)


def key_of(kernel: str, device: torch.device, options: Mapping[str, object], shape: Sequence[int]) -> str:
    """The name under which a choice is kept."""
    sizes = "x".join(str(1 << max(size - 1, 0).bit_length()) for size in shape)
    what = ", ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in options.items())
    return f"{device_name(device)}; {kernel}; {what}; {sizes}"


def tune(offered: Sequence[Choice], run: Callable[[Choice], object], timer: Timer) -> tuple[int, list[float]]:
    """The place of the fastest, 0 unless another is clearly faster (`WORTH`), and the seconds of each."""
    seconds = timer([lambda candidate=candidate: run(candidate) for candidate in offered])  # type: ignore[misc]
    best = min(range(len(offered)), key=seconds.__getitem__)
    return (best if seconds[best] <= WORTH * seconds[0] else 0), seconds


def device_seconds(calls: Sequence[Call]) -> list[float]:
    """The median seconds of each call by the GPU's clock, in turns, with its cache overwritten before each.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device, whose clock measures kernels: run this where there is one")
    cache = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP + SAMPLES):
        for times, call in zip(taken, calls, strict=True):
            cache.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return [statistics.median(times[WARM_UP:]) for times in taken]


def device_name(device: torch.device) -> str:
    """What choices are kept under: the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _plain(choice: Any) -> Any:
    """A configuration as JSON has it."""
    return choice if isinstance(choice, int | str) else dataclasses.asdict(choice)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, dict[str, Any]] = content["choices"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of choices ({error}): name another") from None
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')}, expected {SCHEMA}: measure it anew")
    return entries


def _write(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    """In one step, so that a run that is stopped leaves the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"schema": SCHEMA, "choices": dict(sorted(entries.items()))}, indent=1) + "\n")
    partial.replace(path)
