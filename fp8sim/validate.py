"""`fp8sim validate`: does the scaling rule hold, and do operations and kernels compute what they claim?"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fp8sim import _core, recipes
from fp8sim.analysis import arithmetic, definitions, kernels, page, unit_scale
from fp8sim.analysis.arithmetic import Row
from fp8sim.analysis.kernels import CAST_ELEMENTS
from fp8sim.analysis.verdicts import Verdict
from fp8sim.compare import NOTHING, Comparison
from fp8sim.nn import TransformerDecoder
from fp8sim.recipes import Recipe
from fp8sim.training import first_step, loop, text
from fp8sim.training.model import STANDARD_SIZE, ModelSize
from fp8sim.training.scaling_check import RecipeResult, check_recipe
from fp8sim.training.text import Sequences, Text

DEFAULT_RECIPES = (
    "bf16",
    "fp16",
    "fp16_loss_scaled",
    "fp8_naive",
    "fp8_loss_scaled",
    "mup_fp8",
    "unit_scaled_fp8",
    "u_mup_fp8",
    "munit_scaled_fp8",
)
"""The table of a run that names none: recipes with ordinary graphs, then those with the factors of unit scaling."""

SCHEMA = 2
"""Version of the structure of validation.json."""


@dataclass(frozen=True)
class Options:
    """What to validate.

    Attributes:
        text: a UTF-8 file; None is Python's help topics.
        recipes: names; `require`: names that decide the exit code too, whatever their recipe expects.
        seed: of weights and batches. steps: optimizer steps between the looks.
        learning_rate: eta of unit-scaled recipes; None is that of `loop.LEARNING_RATES`.
        accumulate: how products of quantized operands are added, as `GemmRecipe.accumulate`; None is as each recipe
            says.
        required_kernels: names of kernels ("triton.cast") that must run.
        out: folder of validation.json and report.html.
        size: of the model. length, batch: characters per sequence, and sequences per step.
        cast_elements: how many numbers each cast is compared on.

    Raises:
        ValueError: a learning rate that is not positive and finite.
    """

    text: Path | None = None
    recipes: tuple[str, ...] = DEFAULT_RECIPES
    require: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 20
    learning_rate: float | None = None
    accumulate: str | None = None
    required_kernels: tuple[str, ...] = ()
    out: Path = Path()
    size: ModelSize = STANDARD_SIZE
    length: int = 128
    batch: int = 8
    cast_elements: int = CAST_ELEMENTS

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive and finite")

    def all_recipes(self) -> list[Recipe]:
        """The recipes to run, each once. ValueError for an unknown name, the reference, or a sum of other formats."""
        names = dict.fromkeys((*self.recipes, *self.require))
        if "fp32" in names:
            raise ValueError("recipe 'fp32' is the reference that the others are held against: leave it out")
        chosen = [recipes.parse(name) for name in names]
        return chosen if self.accumulate is None else [recipe.adding(self.accumulate) for recipe in chosen]


@dataclass
class Validation:
    """Everything that a run found."""

    options: Options
    text: Text
    sequences: Sequences
    results: list[RecipeResult] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def decides(self, recipe: Recipe) -> bool:
        """Whether a FAIL of `recipe` decides the exit code."""
        return recipe.expected_to_hold or recipe.name in self.options.require

    def exit_code(self) -> int:
        """1: an operation or kernel is broken; 2: a recipe that must hold fails; 3: what was asked for did not run."""
        if any(row.verdict is Verdict.FAIL for row in self.rows):
            return 1
        if any(r.verdict is Verdict.FAIL and self.decides(r.recipe) for r in self.results):
            return 2
        ran = any(row.verdict is not Verdict.NOT_CHECKED for row in self.rows)
        return 3 if not ran or self.not_run() else 0

    def not_run(self) -> list[str]:
        """The kernels that options name and that could not run."""
        ran = {row.kernel for row in self.rows if row.verdict is not Verdict.NOT_CHECKED}
        return [name for name in self.options.required_kernels if name not in ran]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the content of validation.json."""
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code(),
            "seconds": self.seconds,
            "environment": environment(),
            "text": {"name": self.text.name, "characters": len(self.text.tokens), "sha256": self.text.sha256},
            "run": self._run(),
            "scaling": [{**r.to_dict(), "decides": self.decides(r.recipe)} for r in self.results],
            "required_but_not_run": self.not_run(),
            "arithmetic": [row.to_dict() for row in self.rows],
        }

    def _run(self) -> dict[str, Any]:
        sequences = self.sequences
        return {
            "seed": self.options.seed,
            "steps": self.options.steps,
            "model": {**vars(self.options.size), "symbols": len(self.text.symbols)},
            "length": sequences.length,
            "batch": sequences.batch,
            "optimizer": {"name": "AdamW", "betas": list(loop.BETAS), "weight_decay": 0.0, "warm_up": 0},
            "accumulation": self.options.accumulate or "float32 (BLAS)",
        }


def environment() -> dict[str, Any]:
    """Versions and the machine, as results record them."""
    return {
        "fp8sim": version("fp8sim"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "isa": _core.isa(),
    }


def run(options: Options, advance: Callable[[str], None] = lambda what: None) -> Validation:
    """Run everything; `advance` is called with what is being done, `total_advances(options)` times.

    Raises:
        ValueError: an option that names nothing, or a text that cannot be used.
    """
    started, chosen = time.monotonic(), options.all_recipes()
    _check_kernel_names(options.required_kernels)
    _make_folder(options.out)
    content = text.load(options.text)
    sequences = Sequences(content, options.length, options.batch, options.seed)
    validation = Validation(options, content, sequences)
    linears = NOTHING
    for recipe in chosen:
        result, checked = _run_recipe(recipe, validation, advance)
        validation.results.append(result)
        linears += checked
    advance("operations and kernels")
    validation.rows.extend(_operation_rows(options, linears))
    validation.rows.extend(kernels.kernel_rows(options.cast_elements))
    validation.seconds = time.monotonic() - started
    return validation


def total_advances(options: Options) -> int:
    """How often `run` calls `advance`."""
    return len(options.all_recipes()) * (options.steps + 1) + 1


def _check_kernel_names(names: Sequence[str]) -> None:
    known = [kernels.kernel_name(backend) for backend in kernels.kernel_backends()]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown kernel {name!r}: use one of {', '.join(known)}")


def _run_recipe(
    recipe: Recipe, validation: Validation, advance: Callable[[str], None]
) -> tuple[RecipeResult, Comparison]:
    """One recipe's figures, and the check of its GEMMs at step 0."""
    options, checked = validation.options, NOTHING

    def first_look(model: TransformerDecoder, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        nonlocal checked
        advance(f"{recipe.name}: arithmetic")
        tokens = validation.sequences.tokens
        checked = first_step.check_first_step(model, recipe, tokens, lambda: loop.backward(model, batch))

    result = check_recipe(
        recipe,
        validation.sequences,
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.learning_rate if recipe.is_unit_scaled else None,
        size=options.size,
        on_step=lambda: advance(f"{recipe.name}: training"),
        on_first_look=first_look,
    )
    return result, checked


def _operation_rows(options: Options, linears: Comparison) -> list[Row]:
    layers = 4 * options.size.blocks + 1
    factors = unit_scale.check_unit_scale(options.seed) + definitions.check_definitions(options.seed)
    unit_scaled = f"unit-scaled ops ({unit_scale.OPERATIONS})"
    return [
        Row(f"linear (3 GEMMs, {layers} layers)", "simulate", "bitwise", linears),
        Row(unit_scaled, "simulate", f"std {unit_scale.TOLERANCE:.0%}", factors),
        Row("cast (e4m3, e5m2, fp16, bf16)", "simulate", "bitwise", arithmetic.check_casts(options.cast_elements)),
    ]


def _make_folder(out: Path) -> None:
    """Before the run, so that a minute's work is not lost. ValueError for a folder that cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> ValueError:
    return ValueError(f"--out {out}: cannot be written ({error.strerror}); give another folder")


def write(validation: Validation) -> tuple[Path, Path]:
    """Write validation.json and report.html into the run's folder; returns their paths.

    Raises:
        ValueError: the folder cannot be written.
    """
    data, out = validation.to_dict(), validation.options.out
    paths = out / "validation.json", out / "report.html"
    try:
        paths[0].write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        paths[1].write_text(page.html(data), encoding="utf-8")
    except OSError as error:
        raise _unwritable(out, error) from error
    return paths
