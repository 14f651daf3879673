"""The command line."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of all errors in the use of a command; typer does not export it."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Low precision, bit for bit."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fp8sim {version('fp8sim')}")
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")


@app.callback()
def _commands(show_version: Annotated[bool, _VERSION] = False) -> None:
    """Low-precision training simulated bit for bit, and checked against kernels."""


@app.command("validate")
def validate_command(
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on (default: Python's help topics).")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe to check; repeat for more (default: nine).")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Recipe whose FAIL decides the exit code too.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Kernel that must run, such as triton.cast.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of weights and batches.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps between the two looks.")] = 20,
    lr: Annotated[float | None, typer.Option(help="Learning rate of unit-scaled recipes (default: theirs).")] = None,
    accumulate: Annotated[
        str | None, typer.Option(help="How quantized operands' products are added, such as sm90.wgmma (default: BLAS).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for validation.json and report.html.")] = Path(),
    json_to: Annotated[str | None, typer.Option("--json", help="'-' prints validation.json instead of tables.")] = None,
) -> None:
    """Does the scaling rule hold, and do operations and kernels compute what they claim?

    Exit code 0: yes. 1: an operation or kernel is broken. 2: a recipe that must hold fails. 3: what was asked for
    could not run.
    """
    _enable_interpreter()
    _keep_freed_memory()
    from fp8sim import validate
    from fp8sim.analysis import report

    options = validate.Options(
        text=text,
        recipes=tuple(recipe or validate.DEFAULT_RECIPES),
        require=tuple(require or ()),
        seed=seed,
        steps=steps,
        learning_rate=lr,
        accumulate=accumulate,
        required_kernels=tuple(kernel or ()),
        out=out,
    )
    if json_to not in (None, "-"):
        raise ValueError(f"--json {json_to}: only '-' (standard output); the file is written to --out anyway")
    with _progress(validate.total_advances(options)) as advance:
        validation = validate.run(options, advance)
    paths = validate.write(validation)
    data = validation.to_dict()
    print(json.dumps(data) if json_to else report.terminal(data, paths))
    raise typer.Exit(validation.exit_code())


@app.command("formats")
def formats_command(
    name: Annotated[str | None, typer.Argument(help="A format; without one, the table of all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The table of formats, or every code of one."""
    from fp8sim import formats, quantizers
    from fp8sim.analysis import format_table

    if name is None:
        catalogue = [format_table.describe(fmt) for fmt in formats.FORMATS.values()]
        print(json.dumps(catalogue) if as_json else format_table.table())
        return
    if name not in formats.ALIASES and name in {**quantizers.QUANTIZERS, **quantizers.ALIASES}:
        element = quantizers.parse(name).format
        raise ValueError(
            f"{name} is a quantizer, of blocks of {element}: fp8sim.quantize(x, {name!r}) makes them, and "
            f"'fp8sim formats {element}' prints the elements"
        )
    fmt = formats.parse(name)
    content = {**format_table.describe(fmt), "codes": format_table.codes(fmt)} if as_json else {}
    print(json.dumps(content) if as_json else format_table.listing(fmt))


@app.command("mma")
def mma_command(
    name: Annotated[str | None, typer.Argument(help="An instruction, or the beginning of its name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The table of tensor-core instructions, or all about one: parameters, source and evidence."""
    from fp8sim.analysis import mma_table

    rows = mma_table.rows(name)
    if as_json:
        print(json.dumps([mma_table.describe(row) for row in rows]))
        return
    print(mma_table.listing(rows[0]) if len(rows) == 1 else mma_table.table(rows))


@app.command("explain")
def explain_command(
    case: Annotated[Path, typer.Argument(help="An .npz: a, b, actual, and formats (docs/explain.md).")],
    hypothesis: Annotated[
        list[str] | None, typer.Option(help="What to try instead of the default; repeat for more.")
    ] = None,
    design: Annotated[
        Path | None, typer.Option(help="Write here the smallest inputs that separate what remains.")
    ] = None,
    design_k: Annotated[int | None, typer.Option(min=1, help="K of these inputs (default: the smallest).")] = None,
    json_to: Annotated[str | None, typer.Option("--json", help="'-' prints JSON instead of text.")] = None,
) -> None:
    """Which arithmetic gives exactly this kernel's output? If none does: what differs, where, and by how much.

    Exit code 0: at least one computation reproduces every bit. 1: none does. 3: the input is wrong.
    """
    from fp8sim.analysis import explaining
    from fp8sim.analysis.explaining import listing

    if json_to not in (None, "-"):
        raise ValueError(f"--json {json_to}: only '-' (standard output)")
    if design_k is not None and design is None:
        raise ValueError("--design-k is K of the inputs that --design FILE writes: give both")
    given = explaining.load_case(case)
    with _progress(None) as advance:
        explanation = given.explain(hypothesis, advance)
    data, lines = explanation.to_dict(), [listing.listing(explanation)]
    if design is not None:
        found = explaining.next_case(given, explanation, design_k)
        if found is None:
            lines.append(f"{design} is not written: there is nothing left to separate")
        else:
            explaining.save_case(found.case, design)
            lines.append(listing.design_listing(found, str(design)))
        data["design"] = None if found is None else found.to_dict()
    print(json.dumps(data) if json_to else "\n".join(lines))
    raise typer.Exit(0 if explanation.classes else 1)


@app.command("probe")
def probe_command(
    only: Annotated[str, typer.Option(help="What to ask, separated by commas.")] = "instructions,gemms,conversions",
    stand_in: Annotated[
        str | None, typer.Option(help="Probe the simulator of this architecture, such as sm90, instead of a GPU.")
    ] = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="An instruction, or the beginning of its name; repeat for more.")
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Outputs of random bits to compare, of each instruction.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random bits.")] = 0,
    golden: Annotated[Path | None, typer.Option(help="Write golden vectors to this folder.")] = None,
    gemm_k: Annotated[
        str, typer.Option(help="K of the GEMMs whose order is probed; '' for none.")
    ] = "128,512,1024,4096",
    evidence: Annotated[
        Path | None, typer.Option(help="Probe nothing: which evidence the golden vectors of this folder are, as JSON.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for probe.json and for cases that differ.")] = Path(),
    json_to: Annotated[str | None, typer.Option("--json", help="'-' prints probe.json instead of text.")] = None,
) -> None:
    """What do this GPU's tensor cores, GEMMs and conversions compute, and does the simulator reproduce every bit?

    Exit code 0: it does. 1: something differs. 3: it, or a part of it, could not run.
    """
    from fp8sim.analysis import probing

    if json_to not in (None, "-"):
        raise ValueError(f"--json {json_to}: only '-' (standard output); the file is written to --out anyway")
    if evidence is not None:
        if stand_in or instruction or random or golden:
            raise ValueError("--evidence reads golden vectors and probes nothing: give it alone")
        print(json.dumps(probing.evidence(evidence), indent=1))
        raise typer.Exit
    options = probing.Options(
        sections=probing.parse_sections(only),
        stand_in=stand_in,
        instructions=tuple(instruction or ()),
        random=random,
        seed=seed,
        golden=golden,
        lengths=probing.parse_lengths(gemm_k),
        out=out,
    )
    with _progress(probing.total_advances(options)) as advance:
        report = probing.run(options, advance)
    path = probing.write(report, out)
    print(json.dumps(report.to_dict()) if json_to else f"{probing.terminal(report)}\n{path}")
    raise typer.Exit(report.exit_code)


@app.command("coord-check")
def coord_check_command(
    factory: Annotated[
        str | None, typer.Option(help="file.py:function or package.module:function, width -> (model, optimizer).")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="A function named likewise, step -> tuple of tensors (default: tokens of --text)."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Without --factory: of the decoder (default: u_mup_fp8).")] = None,
    lr: Annotated[float | None, typer.Option(help="Without --factory: its learning rate.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Without --factory: its attention heads.")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on (default: Python's help topics).")] = None,
    widths: Annotated[str, typer.Option(help="Comma-separated.")] = "64,128,256,512",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps at each width.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Runs at each width.")] = 3,
    expect: Annotated[
        list[str] | None, typer.Option(help="NAME=EXPONENT of a module's own change; repeat for more (default: 0).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for coord-check.json and coord-check.html.")] = Path(),
    json_to: Annotated[str | None, typer.Option("--json", help="'-' prints coord-check.json instead of text.")] = None,
) -> None:
    """Is muP wired right? Sizes of activations, their changes, gradients and updates against width and step.

    Exit code 0: no exponent fails. 2: one does, and the text names the module. 3: the input is wrong.
    """
    from fp8sim.training import coordinates

    if json_to not in (None, "-"):
        raise ValueError(f"--json {json_to}: only '-' (standard output); the file is written to --out anyway")
    options = coordinates.Options(
        factory=factory,
        batch=batch,
        recipe=recipe,
        learning_rate=lr,
        heads=heads,
        text=text,
        widths=coordinates.parse_widths(widths),
        steps=steps,
        seeds=seeds,
        expected=coordinates.parse_expected(expect or ()),
    )
    with _progress(coordinates.total_advances(options)) as advance:
        report = coordinates.run(options, advance)
    paths = coordinates.write(report, out)
    print(json.dumps(report.to_dict()) if json_to else report.terminal(paths))
    raise typer.Exit(2 if report.check.verdict == "FAIL" else 0)


def _enable_interpreter() -> None:
    """Let Triton kernels run on a machine without a GPU; must come before Triton is imported."""
    if importlib.util.find_spec("triton") is None:
        return
    import torch

    if not torch.cuda.is_available():
        from fp8sim.triton_kernels import interpreter

        interpreter.enable()


def _keep_freed_memory() -> None:
    """Reuse the memory of freed tensors instead of returning it to the system: a quarter of a training step's time.

    By default glibc gives the top of its heap back whenever enough of it is free, and the next step pays for every
    page again. Where the C library has no `mallopt`, nothing happens.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's standard error, nothing elsewhere; `total` None: nobody knows how much there is to do."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)


def main() -> None:
    """Entry point: bad input, a file that cannot be read or written included, is one line and exit code 3."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        sys.exit(app(standalone_mode=False))
    except (ValueError, RuntimeError, OSError, _UsageError) as error:
        message = getattr(error, "format_message", error.__str__)()
        if message:  # without a command, the help has been printed already
            print(f"fp8sim: {message}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
