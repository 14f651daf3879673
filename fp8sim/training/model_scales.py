"""How large the tensors of whole models are, and what FP8 does to them: python -m fp8sim.training.model_scales.

Decoders of many widths and depths on one batch of real text. At step 0 the operands of their FP8 GEMMs are judged;
after a short run the same figures are recorded. For some of the models the size of every tensor is recorded, also where
one cause of a size that is not one is taken away.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fp8sim import formats
from fp8sim.analysis import model_scales as scales
from fp8sim.analysis import scales_page
from fp8sim.analysis.figures import cast_figures
from fp8sim.analysis.model_scales import OperandScale, TensorScale
from fp8sim.analysis.scale_table import MUNIT
from fp8sim.nn import TransformerDecoder, TransformerLayer
from fp8sim.ops.cast import cast
from fp8sim.recipes import Recipe
from fp8sim.training import tables, text
from fp8sim.training.tables import STYLES
from fp8sim.training.text import Sequences, Text
from fp8sim.unit_scaling import functional

WIDTHS, DEPTHS = (64, 128, 256, 512, 1024), (2, 4, 8, 16)
"""Of the judged models; depth in blocks."""

TRAINED = ((128, 4), (256, 4))
"""(width, blocks) of the models that are trained."""

TABLED = ((64, 2), (256, 4), (1024, 16))
"""(width, blocks) of the models the size of whose every tensor is recorded."""

EXPLAINED = (256, 4)
"""(width, blocks) of the models in which causes are taken away, and of the trained one whose tensors are recorded."""

STEPS = 150
"""Of a short run."""

LENGTH, BATCH = 128, 8
"""Of the sequences."""

DIGITS = 3
"""Significant ones of a recorded size."""

Tokens = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One model: its style, its recipe, its sizes, and tau where it is not `tables.munit_tau`."""

    style: str
    recipe: Recipe
    width: int
    blocks: int
    tau: float | None = None

    def build(self, symbols: int, seed: int = 0) -> TransformerDecoder:
        """The untrained model over so many symbols."""
        return tables.decoder(self.recipe, STYLES[self.style], symbols, self.width, self.blocks, seed, self.tau)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {"style": self.style, "recipe": self.recipe.name, "width": self.width, "blocks": self.blocks}
        if self.style != MUNIT:
            return plain
        return plain | {"tau": rounded(tables.munit_tau(self.blocks) if self.tau is None else self.tau)}


FLAT_TAU = (Case(MUNIT, STYLES[MUNIT].recipes[0], 64, 16, 0.4), Case(MUNIT, STYLES[MUNIT].recipes[0], 128, 16, 0.4))
"""Deep models with the tau of shallow ones."""


def cases(sizes: Sequence[tuple[int, int]], *, every_recipe: bool = True) -> list[Case]:
    """Models of the given (width, blocks), of every style, in all of its recipes or in the first alone."""
    return [
        Case(name, recipe, width, blocks)
        for name, style in STYLES.items()
        for recipe in (style.recipes if every_recipe else style.recipes[:1])
        for width, blocks in sizes
    ]


def sequences(content: Text) -> Sequences:
    """The batches that all models see."""
    return Sequences(content, LENGTH, BATCH)


def summary(operands: Sequence[OperandScale]) -> dict[str, Any]:
    """The worst of each figure over the operands of a model, and the limits of step 0 that were missed.

    Returns:
        For each format "above_plateau", in dB, and the operand "at" which it is lowest; the largest shares "clipped",
        "zeroed" (and "at" which operand), "zeroed_from_embedding" and "zeroed_with_residue".
    """
    found: dict[str, Any] = {}
    for name in sorted({str(operand.format) for operand in operands}):
        lowest = min((o for o in operands if str(o.format) == name), key=lambda operand: operand.above_plateau)
        found[name] = {"above_plateau": round(lowest.above_plateau, 2), "at": _label(lowest)}
    others = [o for o in operands if (o.layer, o.operand) != scales.FROM_EMBEDDING]
    first = [o for o in operands if (o.layer, o.operand) == scales.FROM_EMBEDDING]
    most = max(others, key=lambda operand: operand.figures.zeroed or 0.0)
    return found | {
        "clipped": max(o.figures.clipped or 0.0 for o in operands),
        "zeroed": {"share": rounded(most.figures.zeroed), "at": _label(most)},
        "zeroed_from_embedding": rounded(max(o.figures.zeroed or 0.0 for o in first)),
        "zeroed_with_residue": rounded(max(o.zeroed_with_residue or 0.0 for o in operands)),
        "misses": [miss for operand in operands for miss in operand.misses()],
    }


def _label(operand: OperandScale) -> str:
    return f"{operand.layer} {operand.operand}"


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """`value` with so many significant digits."""
    return None if value is None else float(f"{value:.{digits}g}")


def row(scale: TensorScale) -> list[Any]:
    """A `TensorScale` as a row of the tables: [class, block, "forward" or "gradient", std, rms, shared]."""
    direction = "gradient" if scale.is_gradient else "forward"
    sizes = ([rounded(value) for value in values] for values in (scale.std, scale.rms))
    return [scale.tensor, scale.block, direction, *sizes, rounded(scale.shared)]


@contextlib.contextmanager
def independent_signs(model: TransformerDecoder, seed: int = 0) -> Iterator[None]:
    """Give every element that enters an attention, or its projection, a random sign.

    Magnitudes stay; what enters is then independent between positions, as the derivation of attention's factor assumes.
    Signs are independent in backward too.
    """
    generator = torch.Generator().manual_seed(seed)

    def sign(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0] * (torch.randint(0, 2, inputs[0].shape, generator=generator) * 2 - 1)

    layers = [layer for layer in model.layers if isinstance(layer, TransformerLayer)]
    linears = [linear for layer in layers for linear in (layer.attention.qkv, layer.attention.out)]
    handles = [linear.register_forward_pre_hook(sign) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def distinct_tokens(seed: int = 0) -> Tokens:
    """tokens, targets [B, L] in which every one of B * L symbols occurs once: no token repeats another."""
    generator = torch.Generator().manual_seed(seed)
    symbols = LENGTH * BATCH
    return tuple(torch.randperm(symbols, generator=generator).view(BATCH, LENGTH) for _ in range(2))  # type: ignore[return-value]


def unit_swiglu_zeroed() -> float:
    """Share of SwiGLU's product of two unit-normal tensors that E4M3 makes zero: its density has a pole at zero."""
    up, gate = torch.randn(2, 1 << 20, generator=torch.Generator().manual_seed(0))
    product, e4m3 = functional.silu_glu(up, gate), formats.parse("e4m3")
    share = cast_figures(product, cast(product, e4m3), e4m3).zeroed
    assert share is not None
    return share


def judge(case: Case, content: Text) -> dict[str, Any]:
    """The operands of one model at step 0."""
    operands = scales.operand_scales(case.build(len(content.symbols)), *sequences(content)[0])
    return case.to_dict() | {"step": 0, **summary(operands)}


def flat_tau(case: Case, content: Text) -> dict[str, Any]:
    """The operands of one model at step 0, and how alike its values are beside those with tau by depth."""
    otherwise = dataclasses.replace(case, tau=None)
    return judge(case, content) | {"alike": alike(case, content), "alike_otherwise": alike(otherwise, content)}


def alike(case: Case, content: Text) -> dict[str, float | None]:
    """In the middle block: the share that positions' values have in common, and the size of late queries' gradients."""
    found = scales.tensor_scales(case.build(len(content.symbols)), *sequences(content)[0])
    middle = {(s.tensor, s.is_gradient): s for s in found if s.block == case.blocks // 2}
    gradient = middle["query", True].rms[-1]
    return {"values": rounded(middle["value", False].shared), "query_gradient": rounded(gradient)}


def train(case: Case, content: Text) -> tuple[TransformerDecoder, dict[str, Any]]:
    """One model after a short run, and its operands on the batch after the last."""
    model, batches = case.build(len(content.symbols)), sequences(content)
    for _ in tables.train(model, batches, tables.RATES[case.style], STEPS):
        pass
    with torch.no_grad():
        loss = model.loss(*batches[STEPS]).item()
    operands = scales.operand_scales(model, *batches[STEPS])
    return model, case.to_dict() | {"step": STEPS, "loss": rounded(loss, 4), **summary(operands)}


def table(case: Case, condition: str, model: TransformerDecoder, batch: Tokens) -> dict[str, Any]:
    """The size of every tensor of one model on one batch."""
    return case.to_dict() | {
        "condition": condition,
        "rows": [row(scale) for scale in scales.tensor_scales(model, *batch)],
    }


def text_table(case: Case, content: Text) -> dict[str, Any]:
    """The size of every tensor of one model at step 0, on text."""
    return table(case, "text", case.build(len(content.symbols)), sequences(content)[0])


def experiments(case: Case, content: Text) -> Iterator[dict[str, Any]]:
    """Tables of one model at step 0 in which one cause of a size other than one is taken away."""
    model = case.build(len(content.symbols))
    with independent_signs(model):
        yield table(case, "independent signs", model, sequences(content)[0])
    yield table(case, "distinct tokens", case.build(LENGTH * BATCH), distinct_tokens())


def measure(content: Text, advance: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the committed results hold."""
    found: dict[str, Any] = {
        "run": {"length": LENGTH, "batch": BATCH, "head_width": tables.HEAD_WIDTH, "steps": STEPS},
        "buckets": list(scales.BUCKETS),
        "unit_swiglu_zeroed": rounded(unit_swiglu_zeroed()),
        "models": [],
        "tables": [],
    }
    for case in cases([(width, blocks) for width in WIDTHS for blocks in DEPTHS]):
        advance(f"step 0: {case.recipe.name}, {case.width} x {case.blocks}")
        found["models"].append(judge(case, content))
    found["flat_tau"] = [flat_tau(case, content) for case in FLAT_TAU]
    for case in cases(TRAINED):
        advance(f"step {STEPS}: {case.recipe.name}, {case.width} x {case.blocks}")
        model, entry = train(case, content)
        found["models"].append(entry)
        if case in cases([EXPLAINED], every_recipe=False):
            found["tables"].append(table(case, f"text, step {STEPS}", model, sequences(content)[STEPS]))
    for case in cases(TABLED, every_recipe=False):
        advance(f"tensors: {case.recipe.name}, {case.width} x {case.blocks}")
        found["tables"].append(text_table(case, content))
    for case in cases([EXPLAINED], every_recipe=False):
        advance(f"causes: {case.recipe.name}")
        found["tables"].extend(experiments(case, content))
    return found


def total_advances() -> int:
    """How often `measure` calls `advance`."""
    judged, trained = (len(cases([(1, 1)])) * count for count in (len(WIDTHS) * len(DEPTHS), len(TRAINED)))
    return judged + trained + len(cases([*TABLED, EXPLAINED], every_recipe=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, help="UTF-8 text (default: Python's help topics)")
    parser.add_argument("--out", type=Path, default=scales_page.RESULTS, help="folder of model_scales.json")
    options = parser.parse_args()
    content = text.load(options.text)
    with tables.progress(total_advances()) as advance:
        found = measure(content, advance)
    print(f"results: {tables.save('model_scales', content, found, options.out)}")


if __name__ == "__main__":
    main()
