"""What is shown of a GPU's results: a row of README.md's table, the whole table, a plot."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu_bars import (
    ATTENTION_BACKWARD,
    BF16_ATTENTION,
    CAST,
    CAST_REORDERED,
    CUDA_ATTENTION,
    CUDA_PRODUCT,
    FASTEST,
    FLOOR,
    FP8_ATTENTION,
    FP8_PRODUCT,
    FUSED_CAST,
    LINEAR,
    Bar,
)
from benchmarks.gpu_rows import COLUMNS, NOT_MEASURED, Row, cells

Suites = Mapping[str, Mapping[str, Any]]
"""Files of results by suite."""


@dataclass(frozen=True)
class Headline:
    """A line of README.md's table: the work in words, where its row of results is, and what is expected of it."""

    work: str
    suite: str
    row: str
    bar: Bar


HEADLINES = (
    Headline("cast to e4m3, 64 Mi bfloat16", "casts", "encode, factor e4m3, triton, bfloat16", CAST),
    Headline("cast + amax", "casts", "encode, factor, amax e4m3, triton, bfloat16", CAST),
    Headline(
        "cast + amax + transpose", "casts", "encode, factor, amax, transposed e4m3, triton, bfloat16", CAST_REORDERED
    ),
    Headline("1x128 blocks", "casts", "quantize fp8_1x128, triton, bfloat16", CAST_REORDERED),
    Headline("MXFP8", "casts", "quantize mxfp8, triton, bfloat16", CAST_REORDERED),
    Headline("FP8 matmul, 4096^3", "matmul", "4096x4096x4096, e4m3fn x e4m3fn, triton", FP8_PRODUCT),
    Headline("FP8 matmul, 8192^3", "matmul", "8192x8192x8192, e4m3fn x e4m3fn, triton", FP8_PRODUCT),
    Headline("FP8 matmul, 4096x14336x4096", "matmul", "4096x14336x4096, e4m3fn x e4m3fn, triton", FP8_PRODUCT),
    Headline("FP8 matmul, 8192^3, CUDA C++", "matmul", "8192x8192x8192, e4m3fn x e4m3fn, cuda", CUDA_PRODUCT),
    Headline("rms_norm + cast", "fused", "rms_norm, triton, bfloat16", FUSED_CAST),
    Headline("silu_glu + cast", "fused", "silu_glu, triton, bfloat16", FUSED_CAST),
    Headline("attention forward, BF16, head 128, 16k", "attention", "bfloat16 head 128 length 16384", BF16_ATTENTION),
    Headline("attention forward, FP8, head 128, 16k", "attention", "e4m3fn head 128 length 16384", FP8_ATTENTION),
    Headline(
        "attention forward, FP16, head 128, 16k, CUDA C++",
        "attention",
        "float16 head 128 length 16384, cuda",
        CUDA_ATTENTION,
    ),
    Headline("attention backward, BF16, head 128, 16k", "attention_backward", "bfloat16 head 128", ATTENTION_BACKWARD),
    *(
        Headline(
            f"FP8 linear, forward + backward, {inputs} to {outputs}",
            "linear",
            f"linear forward and backward, 16384 tokens, {inputs} to {outputs}, triton",
            LINEAR,
        )
        for inputs, outputs in ((4096, 14336), (8192, 8192))
    ),
)


def headline_cell(headline: Headline, suites: Suites) -> str:
    """The ratio that the bar is about, and the speed; "not measured" where there is no row."""
    rows = suites.get(headline.suite, {"rows": []})["rows"]
    row = next((row for row in rows if row["name"] == headline.row), None)
    if row is None:
        return NOT_MEASURED
    if "microseconds" not in row:
        return str(row["verdict"])
    ratio = ratio_of(row, headline.bar)
    rate = f"{row['gigabytes_per_second']:.0f} GB/s" if row["tflops"] is None else f"{row['tflops']:.0f} TFLOP/s"
    return NOT_MEASURED if ratio is None else f"{ratio:.2f} ({rate})"


def ratio_of(row: Row, bar: Bar) -> float | None:
    """Of speeds: a row's and what its bar is against."""
    if bar.against == FLOOR:
        return float(row["floor_ratio"])
    if bar.against == FASTEST:
        return None if row["ratio"] is None else float(row["ratio"])
    peer = row["peers"].get(bar.against)
    return None if peer is None else float(peer["ratio"])


def table(suites: Suites) -> str:
    """All rows as Markdown, with what they belong to."""
    first = next(iter(suites.values()))["machine"]
    parts = [f"# {first['device']}\n\n![speed](gpu.svg)\n"]
    for suite, file in suites.items():
        parts.append(f"## {suite}\n\n{_about(file)}\n\n{_markdown(file['rows'])}\n")
        parts += [f"Peers that are absent: {text}.\n" for text in [_absent(file["rows"])] if text]
    return "\n".join(parts)


def _about(file: Mapping[str, Any]) -> str:
    machine, rates = file["machine"], file["rates"]
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in machine["versions"].items())
    products = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in rates["products"].items())
    driver = (machine["smi"] or {}).get("driver_version", "unknown")
    return (
        f"{machine['date']}, driver {driver}, CUDA {machine['cuda']}, {versions}.\n"
        f"In the same run a large copy moved {rates['copy'] / 1e9:.0f} GB/s, read and written, and torch's products of "
        f"8192^3 ran at {products} TFLOP/s."
    )


def _markdown(rows: list[Row]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (COLUMNS, *map(cells, rows))]
    return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]])


def _absent(rows: list[Row]) -> str:
    found = {f"{peer} ({why})" for row in rows for peer, why in row.get("absent_peers", {}).items()}
    return "; ".join(sorted(found))


def plot(suites: Suites) -> str:
    """For each suite, each row's share of the floor's speed and how many times the fastest peer's, as SVG."""
    drawn = {suite: [row for row in file["rows"] if "microseconds" in row] for suite, file in suites.items()}
    drawn = {suite: rows for suite, rows in drawn.items() if rows}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rc("font", size=8)
        matplotlib.rc("svg", fonttype="none", hashsalt="fp8sim")  # text stays text; the same results, the same drawing
        heights = [len(rows) + 5 for rows in drawn.values()]
        figure = Figure(figsize=(9, 0.18 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(drawn), squeeze=False, height_ratios=heights)[:, 0]
        for one, (suite, rows) in zip(axes, drawn.items(), strict=True):
            _draw(one, suite, rows)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", written.getvalue(), flags=re.MULTILINE)


FLOOR_COLOUR, PEER_COLOUR, BAR_COLOUR = "#56b4e9", "#d55e00", "#111111"


def _draw(axes: Axes, suite: str, rows: list[Row]) -> None:
    """A bar for the floor with the quartiles, a point for the peer, marks for what is expected."""
    heights = range(len(rows))
    shares = [row["floor_ratio"] for row in rows]
    spreads = [
        [
            abs(row["microseconds"] / quartile - 1) * share
            for row, share, quartile in zip(rows, shares, (r["quartiles"][i] for r in rows), strict=True)
        ]
        for i in (1, 0)
    ]
    axes.barh(heights, shares, color=FLOOR_COLOUR, label="share of the floor", xerr=spreads, ecolor="#777777")
    peers = [(row["ratio"], i) for i, row in enumerate(rows) if row["ratio"] is not None]
    axes.plot(*zip(*peers, strict=True) if peers else ([], []), "o", color=PEER_COLOUR, label="times the fastest peer")
    for colour, is_floor in ((BAR_COLOUR, True), (PEER_COLOUR, False)):
        bars = [(row["bar"], i) for i, row in enumerate(rows) if row["bar"]]
        marks = [(bar["at_least"], i) for bar, i in bars if (bar["against"] == FLOOR) is is_floor]
        label = f"expected, of the {'floor' if is_floor else 'peer'}"
        axes.plot(*zip(*marks, strict=True) if marks else ([], []), "|", color=colour, markersize=10, label=label)
    axes.set_yticks(heights, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(suite, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=7, frameon=False)
