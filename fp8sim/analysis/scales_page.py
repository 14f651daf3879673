"""docs/model-scales.md from the results of `fp8sim.training.model_scales` and `fp8sim.training.paired_runs`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fp8sim.analysis import model_scales
from fp8sim.analysis.model_scales import BUCKETS
from fp8sim.analysis.scale_causes import CAUSES, UNIT, causes_of, evidence_of, is_unit
from fp8sim.analysis.scale_predictions import Evidence
from fp8sim.analysis.scale_table import DISTINCT, SIGNS, TEXT, Table

RESULTS, PAGE = Path("docs/results"), Path("docs/model-scales.md")
"""Where committed results lie that do not depend on a machine's speed, and the page, from the root of a checkout."""

SHOWN = (256, 4)
"""(width, blocks) of the models whose tensors the page lists."""

MOST_LOSS = 0.01
"""The mean difference in loss that FP8 may make, in nats."""


def page(scales: Mapping[str, Any], paired: Mapping[str, Any]) -> str:
    """The page, from the content of model_scales.json and paired_runs.json."""
    parts = (_head(scales), _operands(scales), _trained(scales), _paired(paired), _causes(scales), _tensors(scales))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(scales: Mapping[str, Any]) -> Iterator[str]:
    text, run = scales["text"], scales["run"]
    yield "# Scales and losses of whole models"
    yield ""
    yield "Measured, and written by `make tables` from `docs/results/`; a test holds this page against them."
    yield f"Decoders of {run['head_width']} features per head on {run['batch']} sequences of {run['length']} characters"
    yield f"of the text {text['name']!r} ({text['characters']:,} characters, SHA-256 `{text['sha256'][:12]}`), seed 0."
    yield "u-muP models have SwiGLU, mu-nit scaled ones GELU, as published. No factor was tuned."


def _operands(scales: Mapping[str, Any]) -> Iterator[str]:
    models = [model for model in scales["models"] if model["step"] == 0]
    below, zeroed, first = (
        model_scales.SQNR_BELOW_PLATEAU,
        model_scales.ZEROED,
        model_scales.ZEROED_FROM_EMBEDDING,
    )
    yield "## Operands at step 0"
    yield ""
    yield f"Limits: sqnr at most {below:g} dB below the plateau of its format (31.5 dB E4M3, 25.5 dB E5M2), nothing clipped,"
    yield f"zeroed below {zeroed:.1%}, and below {first:.0%} for what comes straight from the embedding. Each line is the worst"
    yield f"operand of models of {', '.join(str(b) for b in sorted({m['blocks'] for m in models}))} blocks."
    yield ""
    yield from _markdown(
        ("recipe", "width", "E4M3, dB from plateau", "E5M2", "clipped", "zeroed", "from embedding", "misses"),
        (_operand_line(group) for group in _grouped(models, ("recipe", "width"))),
    )
    yield ""
    yield "The gradient of a query all of whose visible values are equal, such as that at position 0, is zero in exact"
    yield "arithmetic. What stands there, 1e-7 and less, is rounding residue, and FP8 makes it zero. It is left out; with it, up to"
    yield f"{max(m['zeroed_with_residue'] for m in models):.1%} of a gradient of queries, keys and values is zeroed."


def _grouped(models: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for model in models:
        groups.setdefault(tuple(model[key] for key in keys), []).append(model)
    return list(groups.values())


def _operand_line(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return [models[0]["recipe"], str(models[0]["width"]), *_figures(models), str(sum(len(m["misses"]) for m in models))]


def _figures(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The worst sqnr by format, clipped, zeroed, zeroed straight from the embedding."""
    sqnr = [f"{min(m[name]['above_plateau'] for m in models):+.2f}" for name in ("float8_e4m3fn", "float8_e5m2")]
    zeroed = (max(m["zeroed"]["share"] for m in models), max(m["zeroed_from_embedding"] for m in models))
    clipped = max(m["clipped"] for m in models)
    return [*sqnr, f"{clipped:.2g}" if clipped else "0", *(f"{share:.2%}" for share in zeroed)]


def _trained(scales: Mapping[str, Any]) -> Iterator[str]:
    run = scales["run"]
    yield f"## Operands after {run['steps']} steps"
    yield ""
    yield "The same figures after a short run at the default learning rate; they are not judged."
    yield ""
    lines = (
        [m["recipe"], str(m["width"]), str(m["blocks"]), f"{m['loss']:.3f}", *_figures([m]), m["zeroed"]["at"]]
        for m in scales["models"]
        if m["step"] > 0
    )
    head = ("recipe", "width", "blocks", "loss", "E4M3, dB from plateau", "E5M2", "clipped", "zeroed", "from embedding")
    yield from _markdown((*head, "most zeroed"), lines)


def _paired(paired: Mapping[str, Any]) -> Iterator[str]:
    run, seeds = paired["run"], len(paired["losses"])
    yield "## Short training in pairs"
    yield ""
    yield f"loss(run) - loss(FP32) in nats per character after {run['steps']} steps of {run['batch'] * run['length']:,} characters,"
    yield f"width {run['width']}, {run['blocks']} blocks, {seeds} seeds. Runs of a seed start from the same weights and see the same"
    yield f"batches; the loss is the mean over the same {run['judged'] * run['batch'] * run['length']:,} held-out characters. Learning"
    yield "rates start at the default and fall linearly to zero."
    yield ""
    lines = (
        [style, label, *(_signed(entry[key]) for key in ("mean", "deviation", "error")), _signed(*entry["differences"])]
        for style, entries in paired["summary"].items()
        for label, entry in entries.items()
    )
    yield from _markdown(("style", "run", "mean", "deviation", "error of the mean", "each seed"), lines)
    yield ""
    means = [e["mean"] for entries in paired["summary"].values() for label, e in entries.items() if "fp8" in label]
    kept = "is kept" if max(means) <= MOST_LOSS else "IS MISSED"
    yield f"The limit, a mean of at most {MOST_LOSS:g}, {kept}: the largest is {max(means):+.4f}."


def _signed(*values: float) -> str:
    return " ".join(f"{value:+.4f}" for value in values)


def _causes(scales: Mapping[str, Any]) -> Iterator[str]:
    tables = {(t.style, t.condition): t for t in tables_of(scales)}
    yield "## Why standard deviations are not one"
    yield ""
    yield "Every cause predicts sizes (root mean squares) from others and from the factors of the rules. Sizes are given by"
    yield f"position, {' / '.join(BUCKETS)}. {_conditions()}"
    for name, cause in CAUSES.items():
        yield ""
        yield f"**{name}**. {cause.text}"
        yield ""
        lines = ([style, e.what, _predicted(e), _sizes(e.measured)] for style, e in evidence_of(cause, tables))
        yield from _markdown(("style", "where", "predicted", "measured"), lines)


def _conditions() -> str:
    return (
        f"Besides {TEXT} there are two experiments in which a cause is taken away: {SIGNS}, where every element that enters\n"
        f"an attention or its projection gets a random sign, and {DISTINCT}, where no token occurs twice in the batch."
    )


def tables_of(scales: Mapping[str, Any]) -> list[Table]:
    """The tables of the models that the page shows, in every condition."""
    entries = [entry for entry in scales["tables"] if (entry["width"], entry["blocks"]) == SHOWN]
    return [Table(entry, scales["run"]) for entry in entries]


def _predicted(evidence: Evidence) -> str:
    if evidence.upper is None:
        return _sizes(evidence.predicted)
    return f"{_sizes(evidence.predicted)} to {_sizes(evidence.upper)}"


def _sizes(values: Iterable[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.2g}" for value in values)


def _tensors(scales: Mapping[str, Any]) -> Iterator[str]:
    yield "## Standard deviations"
    yield ""
    yield f"At step 0, on text, width {SHOWN[0]}, {SHOWN[1]} blocks, by position {' / '.join(BUCKETS)}, with the causes of what is"
    yield f"more than {UNIT:.0%} from one: those of the forward tensor; those of its gradient. `docs/results/model_scales.json` has"
    yield "other sizes, the experiments and a trained model, with root mean squares and the shares that positions have in common."
    for table in tables_of(scales):
        if table.condition == TEXT:
            yield ""
            yield f"### {table.style}"
            yield ""
            yield from _markdown(("tensor", "block", "forward", "gradient", "causes"), _tensor_lines(table))


def _tensor_lines(table: Table) -> Iterator[list[str]]:
    for tensor, block in dict.fromkeys((tensor, block) for tensor, block, _ in table.rows):
        found = [table.rows.get((tensor, block, direction), [[]])[0] for direction in ("forward", "gradient")]
        causes = [
            ", ".join(causes_of(table.style, direction, tensor))
            for direction, sizes in zip(("forward", "gradient"), found, strict=True)
            if not is_unit(sizes)
        ]
        yield [tensor, "" if block is None else str(block), *map(_sizes, found), "; ".join(causes)]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(line)} |" for line in lines)


def load(results: Path = RESULTS) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of model_scales.json and paired_runs.json."""
    names = ("model_scales", "paired_runs")
    scales, paired = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in names)
    return scales, paired


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    options = parser.parse_args()
    options.page.write_text(page(*load(options.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
