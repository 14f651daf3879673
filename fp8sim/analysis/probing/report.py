"""What a run of probes found: JSON that others can send in, and text for the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8sim.analysis.probing.gemms import Order
from fp8sim.analysis.probing.invariances import Invariance
from fp8sim.analysis.probing.recognition import Recognition
from fp8sim.analysis.probing.streaming import Tally

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Results of one device, or of a stand-in.

    Attributes:
        stand_in: the architecture that stood in; None on a device.
        environment: `device.environment`.
        recognitions, invariances, tallies, orders: what was found.
        goldens: files of golden vectors that were written.
    """

    stand_in: str | None
    environment: Mapping[str, Any]
    recognitions: tuple[Recognition, ...]
    invariances: tuple[Invariance, ...] = ()
    tallies: tuple[Tally, ...] = ()
    orders: tuple[Order, ...] = ()
    goldens: tuple[str, ...] = ()

    @property
    def surprises(self) -> list[str]:
        """What is not as `MODELS` says: empty if the simulator reproduces everything."""
        found = [f"{r.name} is no row" for r in self.recognitions if not r.matches]
        found += [
            f"{r.name} is {', '.join(r.matches)}" for r in self.recognitions if r.matches and r.name not in r.matches
        ]
        found += [f"{i.name}: {i.what}: {i.differing} of {i.compared} differ" for i in self.invariances if i.differing]
        found += [f"{t.name}: {t.differing} of {t.compared} random outputs differ" for t in self.tallies if t.differing]
        found += [f"{o.name}, K = {o.k}: no plan gives its bits" for o in self.orders if not o.plans]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "stand_in": self.stand_in,
            "environment": dict(self.environment),
            "recognitions": [found.to_dict() for found in self.recognitions],
            **{
                name: [dataclasses.asdict(found) for found in getattr(self, name)]
                for name in ("invariances", "tallies", "orders")
            },
            "goldens": list(self.goldens),
            "surprises": self.surprises,
        }


def write(report: Report, folder: Path) -> Path:
    """Write `probe.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe.json"
    path.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    return path


_COLUMNS = "{:<32} {:>3} {:>3} {:>5}  {:<12} {:>6}  {:<10} {}"
_HEAD = _COLUMNS.format("instruction", "F", "L", "kept", "rounding", "e_zero", "subnormals", "row")


def terminal(report: Report) -> str:
    """The table, and everything that is not as expected."""
    who = f"stand-in of {report.stand_in}, not a GPU" if report.stand_in else str(report.environment["device"])
    lines = [f"probed: {who}", "", _HEAD, *(line for found in report.recognitions for line in _lines(found))]
    if report.invariances:
        compared = sum(found.compared for found in report.invariances)
        lines += ["", f"invariances: {len(report.invariances)} compared on {compared} outputs"]
    if report.tallies:
        lines += ["", _tallied(report.tallies)]
    if report.orders:
        lines += ["", *map(_order, report.orders)]
    if report.goldens:
        lines += ["", f"golden vectors: {len(report.goldens)} files in {Path(report.goldens[0]).parent}"]
    surprises = report.surprises
    lines += ["", "the simulator reproduces everything" if not surprises else "not as the simulator says:"]
    return "\n".join([*lines, *(f"  {surprise}" for surprise in surprises)])


def _lines(found: Recognition) -> list[str]:
    measured = found.measured
    kinds = {measured[f"subnormal_{what}"] for what in ("a", "b", "c", "result")} - {None}
    subnormals = "/".join(sorted(map(str, kinds))) or "-"
    shown = [measured[name] for name in ("fraction_bits", "products_per_step", "result_bits", "rounding")]
    shown += [measured["zero_exponent"], subnormals]
    row = _others(found) if found.matches else f"none; the nearest is {found.nearest}"
    lines = [_COLUMNS.format(found.name, *("-" if value is None else value for value in shown), row)]
    lines += [f"    {name}: {mine}, there {theirs}" for name, (mine, theirs) in found.differences.items() if row]
    if not found.matches:
        lines += [f"    {found.differing} of {found.compared} outputs differ from {found.nearest}"]
        lines += [f"    all are those of {change}" for change in found.changes]
    return lines


def _others(found: Recognition) -> str:
    if found.name in found.matches:
        return "itself" + (f", as {len(found.matches) - 1} more" if len(found.matches) > 1 else "")
    return ", ".join(found.matches)


def _tallied(tallies: tuple[Tally, ...]) -> str:
    compared, differing = sum(found.compared for found in tallies), sum(found.differing for found in tallies)
    seconds = sum(found.seconds for found in tallies)
    return f"random bits: {compared} outputs of {len(tallies)} instructions, {differing} differ ({seconds:.0f} s)"


def _order(found: Order) -> str:
    period = f"promoted every {found.period}" if found.period else f"boundaries {list(found.boundaries)}"
    what = period if found.boundaries else "one chain"
    return f"{found.name}, K = {found.k}: {what}; plans {', '.join(found.plans) or 'none'}"
