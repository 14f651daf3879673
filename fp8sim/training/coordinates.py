"""`fp8sim coord-check`: a factory, or a decoder by recipe, on text, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8sim import recipes
from fp8sim.analysis.coordinates import CoordCheck, coord_check, load_function
from fp8sim.analysis.coordinates.page import html
from fp8sim.analysis.coordinates.recipe_decoder import CastEffect, DecoderFactory, cast_effects
from fp8sim.training.text import Sequences, load

LENGTH, SEQUENCES = 16, 4
"""Of the text in a batch: as many tokens as the smallest default width (see `judging` on why so few)."""

DEFAULT_RECIPE = "u_mup_fp8"


@dataclass(frozen=True)
class Options:
    """What is checked. Strings are as on the command line.

    Attributes:
        factory, batch: functions, "file.py:function" or "package.module:function". Without a factory the decoder of
            `recipe` is checked, whose learning rate and heads may be given; without a batch, on tokens of `text`.
        text: a UTF-8 file; None: Python's help topics.
        widths, steps, seeds, expected: see `coord_check`.

    Raises:
        ValueError: options of the decoder beside a factory, a text beside a batch, or a batch without a factory.
    """

    factory: str | None
    batch: str | None
    recipe: str | None
    learning_rate: float | None
    heads: int | None
    text: Path | None
    widths: tuple[int, ...]
    steps: int
    seeds: int
    expected: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.factory is not None:
            for name, value in (("--recipe", self.recipe), ("--lr", self.learning_rate), ("--heads", self.heads)):
                if value is not None:
                    raise ValueError(f"{name} {value}: is for the decoder, and --factory says what model there is")
        elif self.batch is not None:
            raise ValueError(f"--batch {self.batch}: is for a --factory; give it too")
        if self.batch is not None and self.text is not None:
            raise ValueError(f"--text {self.text}: --batch says what is trained on; leave one out")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--lr {self.learning_rate}: must be positive")


@dataclass(frozen=True)
class Report:
    """A check, what was checked, and what the casts of a recipe do."""

    check: CoordCheck
    subject: str
    effects: list[CastEffect]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        effects = [effect._asdict() for effect in self.effects]
        return {**self.check.to_dict(), "subject": self.subject, "cast_effects": effects}

    def terminal(self, paths: tuple[Path, Path]) -> str:
        """The table, the verdict, the effect of casts, and where the details are."""
        lines = [f"fp8sim coord-check   {self.subject}", str(self.check)]
        if self.effects:
            largest = [f"{e.quantity} x {e.ratio:.3f} ({e.name}, width {e.width}, step {e.step})" for e in self.effects]
            lines += ["largest effects of the recipe's casts on a size, seed 0:", *(f"  {text}" for text in largest)]
        return "\n".join([*lines, f"plots: {paths[1]}   data: {paths[0]} (schema {self.check.to_dict()['schema']})"])


def parse_widths(text: str) -> tuple[int, ...]:
    """ "64,128" -> (64, 128). ValueError for anything but integers and commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--widths {text}: expected integers with commas between, such as 64,128,256") from None


def parse_expected(texts: Iterable[str]) -> dict[str, float]:
    """ "embedding=-0.5" -> {"embedding": -0.5}. ValueError for texts of another form."""
    expected: dict[str, float] = {}
    for text in texts:
        name, _, exponent = text.rpartition("=")
        try:
            expected[name] = float(exponent)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"--expect {text}: expected NAME=EXPONENT, such as embedding=-0.5")
    return expected


def total_advances(options: Options) -> int:
    """How often `run` calls `advance`."""
    runs = options.seeds + (1 if _casts(options) else 0)
    return options.steps * len(options.widths) * runs


def run(options: Options, advance: Callable[[str], None]) -> Report:
    """Measure and judge; a recipe's decoder also without its casts, from seed 0.

    Raises:
        ValueError: what `coord_check` refuses, an unknown recipe, a function or text that cannot be read, or tokens
            that the model has not.
    """
    shared: dict[str, Any] = {"widths": options.widths, "steps": options.steps, "advance": advance}
    shared["expected"] = options.expected
    if options.factory is not None:
        factory = load_function("--factory", options.factory)
        batch = _tokens(options)[0] if options.batch is None else load_function("--batch", options.batch)
        return Report(coord_check(factory, batch=batch, seeds=options.seeds, **shared), options.factory, [])
    recipe = recipes.parse(options.recipe or DEFAULT_RECIPE)
    batch, vocabulary = _tokens(options)
    decoder = DecoderFactory(recipe, vocabulary, options.learning_rate, options.heads)
    check = coord_check(decoder, batch=batch, seeds=options.seeds, **shared)
    effects: list[CastEffect] = []
    if _casts(options):
        plain = DecoderFactory(recipe.without_casts(), vocabulary, options.learning_rate, options.heads)
        effects = cast_effects(check, coord_check(plain, batch=batch, seeds=1, **shared))
    return Report(check, f"decoder, recipe {recipe.name}, learning rate {decoder.rate:g}", effects)


def _casts(options: Options) -> bool:
    """Whether the recipe of the decoder casts anything."""
    if options.factory is not None:
        return False
    recipe = recipes.parse(options.recipe or DEFAULT_RECIPE)
    plain = recipe.without_casts()
    return any(recipe.gemm(name) != plain.gemm(name) for name in recipes.GEMM_OPERANDS)


def _tokens(options: Options) -> tuple[Callable[[int], Any], int]:
    """Batches of a text, and how many symbols it has."""
    sequences = Sequences(load(options.text), LENGTH, SEQUENCES)
    return sequences.__getitem__, len(sequences.text.symbols)


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write coord-check.json and coord-check.html; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "coord-check.json", folder / "coord-check.html"
    data.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    page.write_text(html(report.check, report.subject, report.effects), encoding="utf-8")
    return data, page
