"""A run of all probes: on the device here, or on the simulator in its stead."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8sim import mma
from fp8sim.analysis.probing import device, gemms, goldens, invariances, machine_code
from fp8sim.analysis.probing.gemms import Order
from fp8sim.analysis.probing.instruments import Instrument, StandIn
from fp8sim.analysis.probing.invariances import Invariance
from fp8sim.analysis.probing.recognition import Recognition, recognise
from fp8sim.analysis.probing.report import Report
from fp8sim.analysis.probing.streaming import Tally, batches_of, stream
from fp8sim.mma import ARCHITECTURES, MODELS
from fp8sim.mma.plans import GemmPlan

_WGMMA_TILE, _MMA_TILE = (64, 8), (16, 8)
_WIDER_WGMMA_TILES = (64, 64), (64, 128), (64, 256)
_INVARIANT_OUTPUTS = 10_000
"""Outputs of each comparison in `invariances`."""

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to probe.

    Attributes:
        stand_in: an architecture whose rows stand in for a device; None: the CUDA device.
        instructions: beginnings of names, up to a dot; none: all.
        random: outputs of random bits for each instruction, a hundredth of it for binary64; 0: none.
        seed: of these.
        golden: folder of golden vectors to write to; None: none.
        lengths: K of the GEMMs whose order is probed; none: no GEMM.
        out: folder for cases of differences.
    """

    stand_in: str | None = None
    instructions: tuple[str, ...] = ()
    random: int = 0
    seed: int = 0
    golden: Path | None = None
    lengths: tuple[int, ...] = (128, 512, 1024, 4096)
    out: Path = Path()


def parse_lengths(text: str) -> tuple[int, ...]:
    """K of GEMMs, from "128,512". ValueError for anything but multiples of 16."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) % 16 == 0 and int(part) > 0 for part in parts):
        raise ValueError(f"--gemm-k {text!r}: expected multiples of 16, separated by commas")
    return tuple(map(int, parts))


def instruments(options: Options) -> list[Instrument]:
    """What will be probed.

    Raises:
        ValueError: an unknown architecture, a name of no instruction.
        RuntimeError: no CUDA device, or no `fp8sim._cuda`.
    """
    if options.stand_in is None:
        found: list[Instrument] = list(device.instruments())
    else:
        found = list(_stand_ins(options.stand_in))
    unknown = [name for name in options.instructions if not any(_begins(x, name) for x in found)]
    if unknown:
        raise ValueError(f"--instruction {', '.join(unknown)}: there are {', '.join(x.takes.name for x in found)}")
    return [x for x in found if not options.instructions or any(_begins(x, name) for name in options.instructions)]


def _begins(instrument: Instrument, name: str) -> bool:
    return f"{instrument.takes.name}.".startswith(f"{name}.")


def _stand_ins(architecture: str) -> Iterator[StandIn]:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"--stand-in {architecture}: use one of {', '.join(ARCHITECTURES)}")
    for name, model in MODELS.items():
        if name.startswith(f"{architecture}."):
            yield StandIn(model, tile=_WGMMA_TILE if ".wgmma." in name else _MMA_TILE)


def total_advances(options: Options) -> int:
    """How often `run` advances."""
    return sum(1 + batches_of(_outputs(instrument, options)) for instrument in instruments(options))


def run(options: Options, advance: Advance) -> Report:
    """Probe everything that `options` names.

    Raises:
        ValueError, RuntimeError: as of `instruments`; a folder that cannot be written to, before anything is probed.
    """
    for option, folder in (("--out", options.out), ("--golden", options.golden)):
        if folder is not None:
            _refuse_unless_writable(option, folder)
    recognitions: list[Recognition] = []
    unchanged: list[Invariance] = []
    tallies: list[Tally] = []
    files: list[str] = []
    for instrument in instruments(options):
        recognitions.append(recognise(instrument))
        unchanged += _invariances(instrument)
        if options.random:
            tallies.append(_stream(instrument, options, advance))
        if options.golden is not None:
            files.append(str(goldens.save(_golden(instrument, options), options.golden)))
        advance(instrument.takes.name)
    return Report(
        options.stand_in,
        device.environment(),
        tuple(recognitions),
        tuple(unchanged),
        tuple(tallies),
        tuple(_orders(options)),
        tuple(files),
    )


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


def _orders(options: Options) -> list[Order]:
    """Of `torch._scaled_mm` on a device that has FP8; of the simulator in its stead."""
    if not options.lengths:
        return []
    if options.stand_in is not None:
        return _stand_in_orders(options.stand_in, options.lengths)
    here = device.capability()
    return gemms.scaled_mm_orders(device.architecture(here), options.lengths) if here >= 89 else []


def _stand_in_orders(architecture: str, lengths: tuple[int, ...]) -> list[Order]:
    instruction = f"{architecture}.wgmma"
    if f"{instruction}.e4m3.e4m3.f32" not in MODELS:
        return []
    named = {"stand-in, fast": GemmPlan(instruction), "stand-in, every 128": GemmPlan(instruction, flush=128)}
    return [gemms.order_of(gemms.stand_in(plan), name, k, instruction) for name, plan in named.items() for k in lengths]
