"""What a benchmark of the GPU measures, and the row of results that it becomes.

The floor of a piece of work is the longer of two times, measured in the same run: that of a copy of as many bytes as
must move, and that of a large product of torch's with as many operations. `ratio` is how many times faster the work is
than the fastest peer, `floor ratio` the share of the floor's speed. A wrong result is not timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_bars import FASTEST, FLOOR, Bar
from benchmarks.gpu_timing import Call, Device, Spread, Taken, copies, in_turns, reason

MET, STRETCH, MISSED, WRONG, FAILED = "met", "stretch met", "missed", "WRONG", "FAILED"
NOT_MEASURED, ABSENT, NOT_JUDGED = "not measured", "absent", "stand-in"

Row = dict[str, Any]

SCHEMA = 2
"""Of files of results."""


@dataclass(frozen=True)
class Work:
    """A case, ready to run.

    Attributes:
        run: does it once.
        wrong: what is wrong with its result, or nothing.
        bytes: that must move, read and written. Inputs and results count once.
        flops: that must be done, two for a product and its addition.
        operands: what is multiplied, a key of the rates of products.
        peers: other implementations of the same work.
        absent: peers that are not here, and why.
    """

    run: Call
    wrong: Callable[[], str]
    bytes: int
    flops: int = 0
    operands: str = ""
    peers: Mapping[str, Call] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


class Absent(Exception):
    """What a case times is not here; the message says why. That is no failure."""


@dataclass(frozen=True)
class Case:
    """One row of a suite: a name unique in it, how to build the work, and what is expected of it."""

    name: str
    build: Callable[[Device], Work]
    bar: Bar | None = None


def measure(case: Case, device: Device, rates: Mapping[str, float], samples: int) -> Row:
    """One row of results; "wrong", "failed" or "absent" with the reason replaces all figures where there are none.

    Args:
        case, device: what and where.
        rates: operations per second of torch's large products, by operands.
        samples: how many of each call, of which the median counts.
    """
    row: Row = {"name": case.name, "device": device.name}
    try:
        work = case.build(device)
        if wrong := work.wrong():
            return row | {"wrong": wrong, "verdict": WRONG}
        taken = in_turns(device, {"run": work.run, "copy": copies(device, work.bytes), **work.peers}, samples)
    except Absent as why:
        return row | {"absent": str(why), "verdict": ABSENT}
    except Exception as error:
        return row | {"failed": reason(error), "verdict": FAILED}
    return row | _figures(case, work, taken, rates, judged=not device.is_stand_in) | {"samples": samples}


def _figures(case: Case, work: Work, taken: Taken, rates: Mapping[str, float], *, judged: bool) -> Row:
    run, copy = taken.spreads["run"], taken.spreads["copy"]
    peers = {name: taken.spreads[name] for name in work.peers if name in taken.spreads}
    floor = _floor(work, copy, rates)
    ratios = {name: spread.median / run.median for name, spread in peers.items()}
    ratios |= {FASTEST: min(ratios.values())} if ratios else {}
    ratios[FLOOR] = floor["microseconds"] / (run.median * 1e6)
    return {
        **run.microseconds,
        "launch_microseconds": taken.launch["run"] * 1e6,
        "tflops": work.flops / run.median / 1e12 if work.flops else None,
        "gigabytes_per_second": work.bytes / run.median / 1e9,
        "peers": {name: spread.microseconds | {"ratio": ratios[name]} for name, spread in peers.items()},
        "absent_peers": {**work.absent, **taken.failed},
        "ratio": ratios.get(FASTEST),
        "floor": floor,
        "floor_ratio": ratios[FLOOR],
        "bar": case.bar and dataclasses.asdict(case.bar),
        "verdict": verdict(case.bar, ratios) if judged else NOT_JUDGED,
    }


def _floor(work: Work, copy: Spread, rates: Mapping[str, float]) -> Row:
    """The longer of both times, in microseconds, and what it is of."""
    times = {"copy": copy.median * 1e6}
    if work.flops and work.operands in rates:
        times[f"{work.operands} product"] = work.flops / rates[work.operands] * 1e6
    longest = max(times, key=lambda name: times[name])
    return {"of": longest, "microseconds": times[longest]}


def verdict(bar: Bar | None, ratios: Mapping[str, float]) -> str:
    """What a bar says of ratios to the speeds of peers and of the floor; empty without a bar."""
    if bar is None:
        return ""
    ratio = ratios.get(bar.against)
    if ratio is None:
        return NOT_MEASURED
    if bar.stretch is not None and ratio >= bar.stretch:
        return STRETCH
    return MET if ratio >= bar.at_least else MISSED


COLUMNS = ("work", "µs", "TFLOP/s", "GB/s", "ratio", "floor ratio", "bar", "verdict")


def cells(row: Row) -> list[str]:
    """A row of results under `COLUMNS`."""
    if "microseconds" not in row:
        reason = next(row[key] for key in ("wrong", "failed", "absent") if key in row)
        return [row["name"], *[""] * 6, f"{row['verdict']}: {reason}"]
    low, high = row["quartiles"]
    return [
        row["name"],
        f"{row['microseconds']:.1f} ({low:.1f} to {high:.1f})",
        "" if row["tflops"] is None else f"{row['tflops']:.0f}",
        f"{row['gigabytes_per_second']:.0f}",
        "" if row["ratio"] is None else f"{row['ratio']:.2f} x {fastest_peer(row)}",
        f"{row['floor_ratio']:.2f} of {row['floor']['of']}",
        str(Bar(**row["bar"])) if row["bar"] else "",
        row["verdict"],
    ]


def fastest_peer(row: Row) -> str:
    times: dict[str, float] = {name: peer["microseconds"] for name, peer in row["peers"].items()}
    return min(times, key=lambda name: times[name])


def line(row: Row) -> str:
    """A row of results for people, without empty cells."""
    name, *rest = cells(row)
    units = ("us", "TFLOP/s", "GB/s", "", "", "", "")
    parts = [f"{cell} {unit}".strip() for cell, unit in zip(rest, units, strict=True) if cell]
    return f"{name:<52} {' | '.join(parts)}"
