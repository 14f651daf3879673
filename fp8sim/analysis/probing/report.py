"""What a run of probes found: JSON that others can send in, and text for the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8sim.analysis.probing.conversions import Conversion
from fp8sim.analysis.probing.gemms import Order
from fp8sim.analysis.probing.invariances import Invariance
from fp8sim.analysis.probing.recognition import Recognition
from fp8sim.analysis.probing.streaming import Tally

SCHEMA = 2


@dataclass(frozen=True)
class Failure:
    """A probe that did not finish: its name and its error."""

    name: str
    error: str


@dataclass(frozen=True)
class Report:
    """Results of one device, or of a stand-in.

    Attributes:
        stand_in: the architecture that stood in; None on a device.
        environment: `device.environment`.
        sections: those of `running.SECTIONS` that were asked.
        recognitions, invariances, tallies, orders, conversions: what was found.
        goldens: files of golden vectors that were written.
        skipped: what could not be asked here, and why.
        failures: probes that did not finish.
    """

    stand_in: str | None
    environment: Mapping[str, Any]
    sections: tuple[str, ...]
    recognitions: list[Recognition] = field(default_factory=list)
    invariances: list[Invariance] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)
    goldens: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def surprises(self) -> list[str]:
        """What is not as the simulator says: empty if it reproduces everything that was compared."""
        found = [f"{r.name} is no row" for r in self.recognitions if not r.matches]
        found += [
            f"{r.name} is {', '.join(r.matches)}" for r in self.recognitions if r.matches and r.name not in r.matches
        ]
        found += [f"{i.name}: {i.what}: {i.differing} of {i.compared} differ" for i in self.invariances if i.differing]
        found += [f"{t.name}: {t.differing} of {t.compared} random outputs differ" for t in self.tallies if t.differing]
        told = [*(order.surprise for order in self.orders), *(asked.surprise for asked in self.conversions)]
        return found + [surprise for surprise in told if surprise is not None]

    @property
    def exit_code(self) -> int:
        """1: something is not as the simulator says. 3: a probe did not finish. 0: neither."""
        return 1 if self.surprises else 3 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "stand_in": self.stand_in,
            "environment": dict(self.environment),
            "sections": list(self.sections),
            "recognitions": [found.to_dict() for found in self.recognitions],
            **{
                name: [dataclasses.asdict(found) for found in getattr(self, name)]
                for name in ("invariances", "tallies", "orders", "conversions", "failures")
            },
            "goldens": self.goldens,
            "skipped": self.skipped,
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
    """The tables, and everything that is not as expected."""
    who = f"stand-in of {report.stand_in}, not a GPU" if report.stand_in else str(report.environment["device"])
    lines = [f"probed: {who}"]
    if report.recognitions:
        lines += ["", _HEAD, *(line for found in report.recognitions for line in _lines(found))]
    if report.invariances:
        compared = sum(found.compared for found in report.invariances)
        lines += ["", f"invariances: {len(report.invariances)} compared on {compared} outputs"]
    if report.tallies:
        lines += ["", _tallied(report.tallies)]
    if report.orders:
        lines += ["", *_orders(report.orders)]
    if report.conversions:
        lines += ["", *map(_conversion, report.conversions)]
    if report.goldens:
        lines += ["", f"golden vectors: {len(report.goldens)} files in {Path(report.goldens[0]).parent}"]
    for title, told in (("not asked:", report.skipped), ("could not run:", list(map(_failure, report.failures)))):
        lines += ["", title, *(f"  {line}" for line in told)] if told else []
    surprises = report.surprises
    everything = "everything" if not (report.failures or report.skipped) else "everything that was asked"
    lines += ["", f"the simulator reproduces {everything}" if not surprises else "not as the simulator says:"]
    return "\n".join([*lines, *(f"  {surprise}" for surprise in surprises)])


def _failure(found: Failure) -> str:
    return f"{found.name}: {found.error.splitlines()[0]}"


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


def _tallied(tallies: list[Tally]) -> str:
    compared, differing = sum(found.compared for found in tallies), sum(found.differing for found in tallies)
    seconds = sum(found.seconds for found in tallies)
    return f"random bits: {compared} outputs of {len(tallies)} instructions, {differing} differ ({seconds:.0f} s)"


def _orders(orders: list[Order]) -> Iterator[str]:
    """Those that are as predicted are counted, by probe; every other one has its line."""
    predicted = [found for found in orders if found.predicted and not found.surprise]
    for probe, count in sorted(Counter(found.probe for found in predicted).items()):
        code = dict.fromkeys(name for found in predicted if found.probe == probe for name in found.machine_code)
        shown = f" ({', '.join(code)})" if code else ""
        yield f"{probe}: {count} GEMMs have every bit of the plan that is predicted{shown}"
    yield from (_order(found) for found in orders if found not in predicted)


def _order(found: Order) -> str:
    period = f"promoted every {found.period}" if found.period else f"boundaries {list(found.boundaries or ())}"
    what = "not shown" if found.boundaries is None else period if found.boundaries else "one chain"
    return f"{found.name}, K = {found.k}: {what}; plans {', '.join(found.plans) or 'none'}"


def _conversion(found: Conversion) -> str:
    rules = "; or ".join(found.rules) or "no known rule"
    return f"{found.name}: {rules}; {found.compared} patterns"
