"""A run of all probes: on the device here, or on the simulator in its stead."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fp8sim import mma
from fp8sim.analysis.probing import (
    calls,
    conversions,
    converters,
    device,
    gemms,
    goldens,
    invariances,
    machine_code,
    products,
)
from fp8sim.analysis.probing.instruments import Instrument, StandIn
from fp8sim.analysis.probing.invariances import Invariance
from fp8sim.analysis.probing.recognition import recognise
from fp8sim.analysis.probing.report import Failure, Report
from fp8sim.analysis.probing.streaming import Tally, batches_of, stream
from fp8sim.mma import ARCHITECTURES, MODELS

_WGMMA_TILE, _MMA_TILE = (64, 8), (16, 8)
_WIDER_WGMMA_TILES = (64, 64), (64, 128), (64, 256)
_INVARIANT_OUTPUTS = 10_000
"""Outputs of each comparison in `invariances`."""

SECTIONS = ("instructions", "gemms", "conversions")
"""What can be asked, each by itself: P1 to P9 and P15, P10 to P13, P14 (docs/probe.md)."""

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to probe.

    Attributes:
        sections: of `SECTIONS`, those that are asked.
        stand_in: an architecture whose rows stand in for a device; None: the CUDA device.
        instructions: beginnings of names, up to a dot; none: all.
        random: outputs of random bits for each instruction, a hundredth of it for binary64; 0: none.
        seed: of these.
        golden: folder of golden vectors to write to; None: none.
        lengths: K of the GEMMs whose order is probed, our own and Triton's for the longest alone; none: no GEMM.
        out: folder for cases of differences.

    Raises:
        ValueError: something is chosen for instructions, which are not asked.
    """

    sections: tuple[str, ...] = SECTIONS
    stand_in: str | None = None
    instructions: tuple[str, ...] = ()
    random: int = 0
    seed: int = 0
    golden: Path | None = None
    lengths: tuple[int, ...] = (128, 512, 1024, 4096)
    out: Path = Path()

    def __post_init__(self) -> None:
        if "instructions" not in self.sections and (self.instructions or self.random or self.golden is not None):
            raise ValueError(
                f"--instruction, --random and --golden are for instructions, and --only {','.join(self.sections)} "
                f"leaves them out"
            )


def parse_lengths(text: str) -> tuple[int, ...]:
    """K of GEMMs, from "128,512". ValueError for anything but multiples of 16."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) % 16 == 0 and int(part) > 0 for part in parts):
        raise ValueError(f"--gemm-k {text!r}: expected multiples of 16, separated by commas")
    return tuple(map(int, parts))


def parse_sections(text: str) -> tuple[str, ...]:
    """Sections, from "gemms,conversions". ValueError for one that does not exist, or none."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts or not set(parts) <= set(SECTIONS):
        raise ValueError(f"--only {text!r}: expected some of {', '.join(SECTIONS)}, separated by commas")
    return parts


def instruments(options: Options) -> list[Instrument]:
    """What will be probed.

    Raises:
        ValueError: an unknown architecture, a name of no instruction.
        RuntimeError: no CUDA device, or no `fp8sim._cuda`.
    """
    if options.stand_in is None:
        found: list[Instrument] = list(device.instruments())
    else:
        found = list(_stand_ins(_architecture(options)))
    unknown = [name for name in options.instructions if not any(_begins(x, name) for x in found)]
    if unknown:
        raise ValueError(f"--instruction {', '.join(unknown)}: there are {', '.join(x.takes.name for x in found)}")
    return [x for x in found if not options.instructions or any(_begins(x, name) for name in options.instructions)]


def _begins(instrument: Instrument, name: str) -> bool:
    return f"{instrument.takes.name}.".startswith(f"{name}.")


def _stand_ins(architecture: str) -> Iterator[StandIn]:
    for name, model in MODELS.items():
        if name.startswith(f"{architecture}."):
            yield StandIn(model, tile=_WGMMA_TILE if ".wgmma." in name else _MMA_TILE)


def total_advances(options: Options) -> int:
    """How often `run` advances. Errors as of `run`."""
    return sum(job.advances for job in _jobs(options, _empty(options)))


def run(options: Options, advance: Advance) -> Report:
    """Probe everything that `options` names. What fails is recorded with its error, and the rest goes on.

    Raises:
        ValueError: an unknown architecture, no instruction of that name; a folder that cannot be written to, before
            anything is probed.
        RuntimeError: no CUDA device; or no `fp8sim._cuda`, which the section "instructions" needs.
    """
    for option, folder in (("--out", options.out), ("--golden", options.golden)):
        if folder is not None:
            _refuse_unless_writable(option, folder)
    report = _empty(options)
    for job in list(_jobs(options, report)):
        try:
            job.run(advance)
        except Exception as error:
            report.failures.append(Failure(job.name, f"{type(error).__name__}: {error}"))
    return report


class _Job(NamedTuple):
    name: str
    advances: int
    run: Callable[[Advance], None]


def _empty(options: Options) -> Report:
    return Report(options.stand_in, device.environment(), options.sections)


def _jobs(options: Options, report: Report) -> Iterator[_Job]:
    """What is to be done, each of which adds to the report; what cannot be asked here is said there at once."""
    if "instructions" in options.sections:
        for instrument in instruments(options):
            advances = 1 + batches_of(_outputs(instrument, options))
            yield _Job(instrument.takes.name, advances, partial(_instruction, instrument, options, report))
    if "gemms" in options.sections and options.lengths:
        yield from _gemm_jobs(options, report)
    if "conversions" in options.sections:
        yield from _conversion_jobs(options, report)


def _instruction(instrument: Instrument, options: Options, report: Report, advance: Advance) -> None:
    report.recognitions.append(recognise(instrument))
    report.invariances.extend(_invariances(instrument))
    if options.random:
        report.tallies.append(_stream(instrument, options, advance))
    if options.golden is not None:
        report.goldens.append(str(goldens.save(_golden(instrument, options), options.golden)))
    advance(instrument.takes.name)


def _gemm_jobs(options: Options, report: Report) -> Iterator[_Job]:
    architecture = _architecture(options)
    rows = products.rows(architecture)
    report.skipped.extend(_nothing_to_ask(architecture, products.PROBES, {row.subject.probe for row in rows}))
    if options.stand_in is not None:
        rows = [row.on_simulator() for row in rows if row.is_small]
    for row in rows:
        name = row.subject.name
        if (why := _unavailable(row.needs, options)) is not None:
            report.skipped.append(f"{row.subject.probe}, {name}: {why}")
            continue
        for k in options.lengths if row.every_length else (max(options.lengths),):
            yield _Job(f"{name}, K = {k}", 1, partial(_order, row.subject, k, report))


def _order(subject: gemms.Subject, k: int, report: Report, advance: Advance) -> None:
    advance(subject.name)
    report.orders.append(gemms.order_of(subject, k))


def _conversion_jobs(options: Options, report: Report) -> Iterator[_Job]:
    architecture = _architecture(options)
    rows = converters.rows(architecture)
    report.skipped.extend(_nothing_to_ask(architecture, converters.PROBES, {row.converter.probe for row in rows}))
    if options.stand_in is not None:
        rows = [row.on_simulator() for row in rows]
    for row in rows:
        asked = row.converter
        if (why := _unavailable(row.needs, options)) is not None:
            report.skipped.append(f"{asked.probe}, {asked.name}: {why}")
            continue
        yield _Job(asked.name, conversions.total_chunks(asked), partial(_conversion, asked, report))


def _conversion(converter: conversions.Converter, report: Report, advance: Advance) -> None:
    report.conversions.append(conversions.examine(converter, advance))


def _architecture(options: Options) -> str:
    if options.stand_in is None:
        return device.architecture(device.capability())
    if options.stand_in not in ARCHITECTURES:
        raise ValueError(f"--stand-in {options.stand_in}: use one of {', '.join(ARCHITECTURES)}")
    return options.stand_in


def _unavailable(needs: str, options: Options) -> str | None:
    return None if options.stand_in is not None else calls.unavailable(needs)


def _nothing_to_ask(architecture: str, probes: tuple[str, ...], asked: set[str]) -> Iterator[str]:
    for probe in probes:
        if probe not in asked:
            yield f"{probe}: there is nothing to ask of {architecture}"


def _refuse_unless_writable(option: str, folder: Path) -> None:
    """Make the folder and a file in it. ValueError names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot write there ({error.strerror}); name another folder") from error


def _stream(instrument: Instrument, options: Options, advance: Advance) -> Tally:
    model, folder = mma.parse(instrument.takes.name), options.out / "differences"
    outputs = _outputs(instrument, options)
    return stream(instrument, model, outputs, seed=options.seed, folder=folder, advance=advance)


def _outputs(instrument: Instrument, options: Options) -> int:
    """Of random bits; a hundredth for binary64, whose exact sums the simulator takes fifty times as long for."""
    return -(-options.random // 100) if instrument.takes.accumulator == "float64" else options.random


def _invariances(instrument: Instrument) -> Iterator[Invariance]:
    yield invariances.chained(instrument, _INVARIANT_OUTPUTS)
    yield invariances.rows_and_columns(instrument, _INVARIANT_OUTPUTS)
    for other in _wider(instrument):
        yield invariances.columns(instrument, other, _INVARIANT_OUTPUTS)
    if not isinstance(instrument, device.DeviceInstrument) or len(instrument.kernel.variants) == 1:
        return
    registers, negates = (dataclasses.replace(instrument, variant=name) for name in ("registers", "negated"))
    ignores_c = dataclasses.replace(instrument, replaces_c=True)
    yield invariances.same(instrument, registers, "a from shared memory, and from registers", _INVARIANT_OUTPUTS)
    yield invariances.ignoring_c(instrument, ignores_c, _INVARIANT_OUTPUTS)
    yield invariances.negated(instrument, negates, _INVARIANT_OUTPUTS)


def _wider(instrument: Instrument) -> list[Instrument]:
    """The same instruction with more columns, which only wgmma has."""
    if isinstance(instrument, device.DeviceInstrument):
        return list(device.wider(instrument))
    if isinstance(instrument, StandIn) and instrument.tile == _WGMMA_TILE:
        return [dataclasses.replace(instrument, tile=tile) for tile in _WIDER_WGMMA_TILES]
    return []


def _golden(instrument: Instrument, options: Options) -> goldens.Golden:
    about: dict[str, Any] = device.environment() | {"stand_in": options.stand_in}
    name = f"stand-in-{options.stand_in}"
    if isinstance(instrument, device.DeviceInstrument):
        name = device.label(str(about["device"]))
        code = machine_code.mnemonics(instrument.kernel, machine_code.architecture_in_file(int(about["capability"])))
        about |= {"ptx": instrument.kernel.ptx, "machine_code": code}
    return goldens.capture(instrument, name, about)
