"""Writes what README.md says of speed, and a table and a plot for each GPU, from benchmarks/results/: `make figures`.

python -m benchmarks.figures [--add FOLDER]: results of `make gpu` in FOLDER are taken in first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.gpu_figures import HEADLINES, Headline, headline_cell, plot, table
from benchmarks.gpu_parts import SUITES
from benchmarks.gpu_rows import NOT_MEASURED, SCHEMA
from benchmarks.gpu_timing import STAND_IN

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
CPU = "amd-epyc"
"""The folder whose results README.md shows."""

BEGIN, END = "<!-- written by `make figures` -->", "<!-- end of what `make figures` writes -->"

SIZES = (1 << 20, 1 << 24)
CASTS = (
    ("`cast` to e4m3", "cast e4m3:TIES_TO_EVEN:SATURATE"),
    ("`cast` to e5m2", "cast e5m2:TIES_TO_EVEN:SATURATE"),
    ("`cast` to e2m1", "cast e2m1:TIES_TO_EVEN:SATURATE"),
    ("`cast` to bfloat16", "cast bf16:TIES_TO_EVEN:SATURATE"),
    ("`cast` to e4m3, toward zero", "cast e4m3:TOWARD_ZERO:SATURATE"),
    ("`cast` to e4m3, stochastic (Philox)", "cast e4m3:STOCHASTIC:SATURATE"),
    ("`encode` to e4m3", "encode e4m3:TIES_TO_EVEN:SATURATE"),
    ("`decode` of e4m3", "decode e4m3:TIES_TO_EVEN:SATURATE"),
)
PRODUCTS = {
    "hopper_e4m3": ("sm90.wgmma.e4m3.e4m3.f32", "avx512"),
    "blackwell_e4m3": ("sm100.tcgen05.e4m3.e4m3.f32", "avx512"),
    "hopper_fp16": ("sm90.wgmma.f16.f16.f32", "avx512"),
    "ampere_fp16": ("sm80.mma.f16.f16.f32", "avx512"),
    "hopper_e4m3_avx2": ("sm90.wgmma.e4m3.e4m3.f32", "avx2"),
}
"""Instruction and the CPU's instruction set."""

WIDTH = 125
"""Of the lines of README.md."""

Rows = list[dict[str, Any]]


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a folder of results, by stem."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def gpus(results: Path = RESULTS) -> dict[str, dict[str, dict[str, Any]]]:
    """What GPUs measured: by folder, then by suite."""
    found = {folder.name: load(folder) for folder in sorted(results.iterdir()) if folder.is_dir()}
    suites = {
        folder: {stem.removeprefix("gpu_"): file for stem, file in files.items() if stem.startswith("gpu_")}
        for folder, files in found.items()
    }
    return {folder: files for folder, files in suites.items() if files}


def speed(cpu: Mapping[str, Mapping[str, Any]], gpu: Mapping[str, Mapping[str, Any]]) -> str:
    """What README.md says, from the files of one CPU's folder and those of all GPUs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is Markdown
    )
    quantizers, products = cpu["quantizers"]["rows"], cpu["mma"]["rows"]
    text = environment.get_template("speed.md.j2").render(
        folder=CPU,
        cast_table=_cast_table(cpu["casts"]["rows"]),
        mxfp8=_times(quantizers, "quantize mxfp8_e4m3", "torchao"),
        nvfp4=_times(quantizers, "quantize nvfp4_torchao", "torchao"),
        gains=_gains(cpu["scaling"]["rows"]),
        gflops={name: f"{_product(products, *which)['gflops']:.0f}" for name, which in PRODUCTS.items()},
        mmasim=f"{_product(products, *PRODUCTS['hopper_e4m3'], size=128)['times_mmasim']:.0f}",
        step={name: f"{ms:.0f}" for name, ms in _only(products, "training step, two threads")["milliseconds"].items()},
        layer=_layers(cpu["layers"]["rows"]),
        gpus={_device(files): folder for folder, files in gpu.items()},
        gpu_table=_gpu_table(gpu),
    )
    return "\n\n".join(map(_wrapped, text.split("\n\n")))


def _wrapped(paragraph: str) -> str:
    if paragraph.startswith("|"):
        return paragraph
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def _only(rows: Rows, name: str, **values: Any) -> dict[str, Any]:
    """The first row of this name with these values."""
    return next(row for row in rows if row["name"] == name and all(row[key] == values[key] for key in values))


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(header), *map(list, rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def _cast_table(rows: Rows) -> str:
    def shown(label: str, name: str) -> list[str]:
        floor = " / ".join(f"{_only(rows, name, elements=size)['ratios']['floor']:.2f}" for size in SIZES)
        return [
            label,
            floor,
            _times(rows, name, "torch") or "torch has none",
            _times(rows, name, "ml_dtypes") or "none",
        ]

    header = ("work", "share of the copy rate", "times torch", "times ml_dtypes")
    return _markdown(header, (shown(*which) for which in CASTS))


def _times(rows: Rows, name: str, peer: str) -> str:
    """How many times a peer's speed at both sizes; empty where there is no such peer."""
    ratios = [_only(rows, name, elements=size)["ratios"].get(peer) for size in SIZES]
    return "" if None in ratios else " / ".join(f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}" for ratio in ratios)


def _gains(rows: Rows) -> dict[str, str]:
    def span(name: str, gain: str) -> str:
        found = [f"{_only(rows, name, elements=size)[gain]:.1f}" for size in SIZES]
        return " to ".join(sorted(set(found)))

    stochastic, cast = "cast e4m3:STOCHASTIC:SATURATE", "cast e4m3:TIES_TO_EVEN:SATURATE"
    return {
        "stochastic": span(stochastic, "gain"),
        "arithmetic": span(stochastic, "arithmetic_gain"),
        "cast": span(cast, "gain"),
        "copies": span(cast, "copy_gain"),
    }


def _product(rows: Rows, instruction: str, isa: str, size: int = 512) -> dict[str, Any]:
    return _only([row for row in rows if row.get("instruction_set") == isa], f"{instruction} {size}^3")


def _layers(rows: Rows) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for row in rows:
        for name, ratio in row["ratios"].items():
            found.setdefault(name, {})[row["width"]] = f"{ratio:.2f}"
    return found


def _device(suites: Mapping[str, Mapping[str, Any]]) -> str:
    return str(next(iter(suites.values()))["machine"]["device"])


def _gpu_table(gpu: Mapping[str, Mapping[str, Any]]) -> str:
    def cells(headline: Headline) -> list[str]:
        found = [headline_cell(headline, suites) for suites in gpu.values()]
        return [headline.work, str(headline.bar), *(found or [NOT_MEASURED])]

    devices = [_device(suites) for suites in gpu.values()]
    return _markdown(("work", "bar", *(devices or ["any GPU"])), map(cells, HEADLINES))


def in_readme(readme: str, section: str) -> str:
    """`readme` with this section between its marks. ValueError if the marks are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def add(folder: Path, results: Path = RESULTS) -> list[Path]:
    """Take in what `make gpu` left in `folder`; the files written.

    Raises:
        ValueError: there is nothing, or a file is the stand-in's, is not complete or is of something else. Then none is
            taken in.
    """
    found = sorted(folder.glob("gpu_*.json")) or sorted((folder / "results").glob("gpu_*.json"))
    if not found:
        raise ValueError(f"{folder} has no gpu_*.json: expected the folder of the results of `make gpu`")
    written = []
    for path, file in [(path, measured(path)) for path in found]:
        target = results / slug(file["machine"]["device"])
        target.mkdir(parents=True, exist_ok=True)
        written.append(target / path.name)
        written[-1].write_text(json.dumps(file, indent=1) + "\n")
    return written


def measured(path: Path) -> dict[str, Any]:
    """A file of results. ValueError unless a GPU measured all of its suite."""
    again = "run `make gpu-bench` again with the same OUT"
    try:
        file: dict[str, Any] = json.loads(path.read_text())
        schema, suite, complete, machine = (file[key] for key in ("schema", "suite", "complete", "machine"))
        device, stand_in = machine["device"], machine["stand_in"]
        devices = {row["device"] for row in file["rows"]}
        table({suite: file})  # everything that is shown is there
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        raise ValueError(f"{path} is no file of results ({type(error).__name__}: {error}): {again}") from error
    if stand_in is not False or STAND_IN in devices:
        raise ValueError(f"{path}: the stand-in measures nothing; run `make gpu` on a GPU")
    if schema != SCHEMA or suite not in SUITES or path.stem != f"gpu_{suite}":
        raise ValueError(f"{path}: suite {suite!r} of schema {schema}, expected gpu_SUITE.json of {SCHEMA}: {again}")
    if devices - {device} or not slug(str(device or "")):
        raise ValueError(f"{path} is of {device!r}, and its rows of {sorted(map(str, devices))}: {again}")
    if complete is not True:
        raise ValueError(f"{path} is not complete: {again}")
    return file


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write(results: Path = RESULTS, readme: Path = README) -> list[Path]:
    """Write tables, plots and README.md; the files written."""
    written = [readme]
    found = gpus(results)
    for folder, suites in found.items():
        written += [results / folder / "gpu.md", results / folder / "gpu.svg"]
        written[-2].write_text(table(suites))
        written[-1].write_text(plot(suites))
    readme.write_text(in_readme(readme.read_text(), speed(load(results / CPU), found)))
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="take in the results of `make gpu` first")
    options = parser.parse_args()
    try:
        written = [*(add(options.add) if options.add else []), *write()]
    except ValueError as error:
        print(error)
        return 1
    print("\n".join(str(path.relative_to(ROOT)) for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
