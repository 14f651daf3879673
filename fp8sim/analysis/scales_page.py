"""docs/model-scales.md from the results of `fp8sim.training.model_scales` and `fp8sim.training.paired_runs`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fp8sim.analysis import model_scales
from fp8sim.analysis.model_scales import BUCKETS
from fp8sim.analysis.scale_causes import CAUSES, causes_of, evidence_of, is_unit, sampling_error
from fp8sim.analysis.scale_predictions import Evidence
from fp8sim.analysis.scale_table import MUNIT, TEXT, Table

RESULTS, PAGE = Path("docs/results"), Path("docs/model-scales.md")
"""Where committed results lie that do not depend on a machine's speed, and the page, from the root of a checkout."""

SHOWN = (256, 4)
"""(width, blocks) of the models whose tensors the page lists."""

MOST_LOSS = 0.01
"""The mean difference in loss that FP8 may make, in nats."""


RESIDUE = 1e-5
"""A size below this is that of the rounding of a tensor that is zero."""


def page(scales: Mapping[str, Any], paired: Sequence[Mapping[str, Any]]) -> str:
    """The page, from the content of model_scales.json and of paired_runs_TEXT.json for every text, runs of one size."""
    models = [model for model in scales["models"] if model["step"] == 0]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fp8sim.analysis", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # it is Markdown
    )
    return environment.get_template("model_scales.md.j2").render(
        text=scales["text"],
        run=scales["run"],
        below=f"{model_scales.SQNR_BELOW_PLATEAU:g}",
        zeroed=f"{model_scales.ZEROED:.1%}",
        first=f"{model_scales.ZEROED_FROM_EMBEDDING:.0%}",
        depths=", ".join(str(blocks) for blocks in sorted({model["blocks"] for model in models})),
        operands=_operands(models),
        residue=f"{max(model['zeroed_with_residue'] for model in models):.1%}",
        missed=Counter(is_swiglu_miss(miss) for model in models for miss in model["misses"]),
        unit_swiglu=f"{scales['unit_swiglu_zeroed']:.2%}",
        flat_tau=_flat_tau(scales["flat_tau"]),
        grown=_grown(scales),
        trained=_trained([model for model in scales["models"] if model["step"] > 0]),
        paired=_paired_run(paired[0]["run"]),
        rates=" and ".join(f"{rate:g} for {style}" for style, rate in paired[0]["run"]["rates"].items()),
        pairs=[_pairs(one) for one in paired],
        verdict=_verdict(paired),
        buckets=" / ".join(BUCKETS),
        causes=list(_causes(scales)),
        shown=SHOWN,
        unit=f"{3 * sampling_error(SHOWN[0]):.0%}",
        tables=[
            {"style": table.style, "rows": _tensors(table)} for table in tables_of(scales) if table.condition == TEXT
        ],
    )


_FIGURES = ("E4M3, dB from plateau", "E5M2", "clipped", "zeroed", "from embedding")


def _operands(models: Sequence[Mapping[str, Any]]) -> str:
    """A line for each recipe and width."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model in models:
        groups.setdefault((model["recipe"], str(model["width"])), []).append(model)
    return _markdown(
        ("recipe", "width", *_FIGURES, "limits missed"),
        ([*key, *_figures(group), str(sum(len(m["misses"]) for m in group))] for key, group in groups.items()),
    )


def _flat_tau(models: Sequence[Mapping[str, Any]]) -> str:
    """A line for each deep model with the tau of shallow ones, beside tau by depth."""
    return _markdown(
        (
            "width",
            "limits missed",
            "values in common",
            "with tau by depth",
            "gradients of queries",
            "with tau by depth",
        ),
        (
            [str(m["width"]), str(len(m["misses"]))]
            + [f"{m[key]['values']:.0%}" for key in ("alike", "alike_otherwise")]
            + [f"{m[key]['query_gradient']:.2g}" for key in ("alike", "alike_otherwise")]
            for m in models
        ),
    )


def is_swiglu_miss(miss: str) -> bool:
    """Whether a missed limit is the share of SwiGLU's product that becomes zero."""
    return "mlp.down input: " in miss and "zeroed" in miss


def _figures(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """`_FIGURES`, each the worst of the models."""
    sqnr = [f"{min(m[name]['above_plateau'] for m in models):+.2f}" for name in ("float8_e4m3fn", "float8_e5m2")]
    shares = (max(m["zeroed"]["share"] for m in models), max(m["zeroed_from_embedding"] for m in models))
    clipped = max(m["clipped"] for m in models)
    return [*sqnr, f"{clipped:.2g}" if clipped else "0", *(f"{share:.2%}" for share in shares)]


def _trained(models: Sequence[Mapping[str, Any]]) -> str:
    return _markdown(
        ("recipe", "width", "blocks", "loss", *_FIGURES, "most zeroed"),
        (
            [m["recipe"], str(m["width"]), str(m["blocks"]), f"{m['loss']:.3f}", *_figures([m]), m["zeroed"]["at"]]
            for m in models
        ),
    )


def _grown(scales: Mapping[str, Any]) -> str:
    """Sizes, at the last positions, of queries and keys of block 0 of the trained model under mu-nit scaling."""
    (table,) = (t for t in tables_of(scales) if t.style == MUNIT and t.condition.startswith(f"{TEXT}, step"))
    return " and ".join(f"{table.rms(name, 0)[-1]:.2g}" for name in ("query", "key"))


def _paired_run(run: Mapping[str, Any]) -> dict[str, Any]:
    characters = run["batch"] * run["length"]
    return {**run, "characters": f"{characters:,}", "judged_characters": f"{run['judged'] * characters:,}"}


def _pairs(paired: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of the runs on one text."""
    return {**paired["text"], "seeds": len(paired["losses"]), "differences": _differences(paired["summary"])}


def _differences(summary: Mapping[str, Any]) -> str:
    return _markdown(
        ("style", "run", "mean", "deviation", "error of the mean", "each seed"),
        (
            [style, label, *(_signed(spread[key]) for key in ("mean", "deviation", "error")), _signed(*spread["each"])]
            for style, spreads in summary.items()
            for label, spread in spreads.items()
        ),
    )


def _signed(*values: float) -> str:
    return " ".join(f"{value:+.4f}" for value in values)


def in_fp8(paired: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The differences in loss of each run in FP8, of every text and seed."""
    found: dict[str, list[float]] = {}
    for one in paired:
        for spreads in one["summary"].values():
            for label, spread in spreads.items():
                if "fp8" in label:
                    found.setdefault(label, []).extend(spread["each"])
    return found


def _verdict(paired: Sequence[Mapping[str, Any]]) -> str:
    """Whether the mean difference of every run in FP8 keeps the limit: over all texts, and on each."""
    pooled = [
        f"{label} {statistics.fmean(values):+.4f} (error {statistics.stdev(values) / len(values) ** 0.5:.4f})"
        for label, values in in_fp8(paired).items()
    ]
    above = [
        f"{label} on {one['text']['name']}"
        for one in paired
        for label, values in in_fp8([one]).items()
        if statistics.fmean(values) > MOST_LOSS
    ]
    kept = all(statistics.fmean(values) <= MOST_LOSS for values in in_fp8(paired).values())
    alone = f" Of single texts it is missed by {', '.join(above)}." if above else " So it is on each text."
    return (
        f"The limit, a mean of at most {MOST_LOSS:g}, is {'kept' if kept else 'missed'} over all texts and seeds: "
        f"{', '.join(pooled)}.{alone}"
    )


def _causes(scales: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    tables = {(table.style, table.condition): table for table in tables_of(scales)}
    for name, cause in CAUSES.items():
        lines = ([style, e.what, _predicted(e), _sizes(e.measured)] for style, e in evidence_of(cause, tables))
        evidence = _markdown(("style", "where", "predicted", "measured"), lines)
        yield {"name": name, "text": cause.text, "evidence": evidence}


def _predicted(evidence: Evidence) -> str:
    if evidence.upper is None:
        return _sizes(evidence.predicted)
    return f"{_sizes(evidence.predicted)} to {_sizes(evidence.upper)}"


def _sizes(values: Iterable[float | None]) -> str:
    """Two digits of each; rounding residue is 0."""
    return " / ".join("-" if value is None else f"{value:.2g}" if value > RESIDUE else "0" for value in values)


def tables_of(scales: Mapping[str, Any]) -> list[Table]:
    """The tables of the models that the page shows, in every condition."""
    entries = [entry for entry in scales["tables"] if (entry["width"], entry["blocks"]) == SHOWN]
    return [Table(entry, scales["run"]) for entry in entries]


def _tensors(table: Table) -> str:
    """A line for each tensor and block."""
    lines = []
    for tensor, block in dict.fromkeys((tensor, block) for tensor, block, _ in table.rows):
        found = {d: table.rows.get((tensor, block, d), [[]])[0] for d in ("forward", "gradient")}
        causes = [
            ", ".join(causes_of(table.style, d, tensor))
            for d, sizes in found.items()
            if not is_unit(sizes, table.width)
        ]
        lines.append([tensor, "" if block is None else str(block), *map(_sizes, found.values()), "; ".join(causes)])
    return _markdown(("tensor", "block", "forward", "gradient", "causes"), lines)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def load(results: Path = RESULTS) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The contents of model_scales.json, and of paired_runs_TEXT.json for every text."""
    scales, *paired = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (results / "model_scales.json", *sorted(results.glob("paired_runs_*.json")))
    )
    return scales, paired


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    options = parser.parse_args()
    options.page.write_text(page(*load(options.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
