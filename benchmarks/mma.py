"""Matrix products in tensor-core arithmetic: python -m benchmarks.mma [--samples 5] [--filter TEXT] [--json].

Operands are uniformly random finite codes. Each result is first compared with the interpreter's on a few rows; a wrong
one is not timed. GFLOP/s count two operations per product. MMA-Sim, where it is installed, is timed in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.run import machine, save
from benchmarks.scaling import arithmetic_on, on_threads
from benchmarks.timing import medians
from fp8sim import _core, casting, mma, recipes
from fp8sim.mma import MmaModel
from fp8sim.recipes import Recipe
from fp8sim.training import loop, text
from fp8sim.training.model import build_model

Array = np.ndarray[Any, Any]

HOPPER = "sm90.wgmma.e4m3.e4m3.f32"


@dataclass(frozen=True)
class Case:
    """One product of square matrices.

    Attributes:
        instruction: its full name.
        size: of every dimension.
        at_least: GFLOP/s expected with the best instruction set; with AVX2, half of it.
        special: the share of rows of a that are NaN or infinite.
    """

    instruction: str
    size: int
    at_least: float = 0.0
    special: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.instruction} {self.size}^3" + (f", {self.special:.0%} special rows" if self.special else "")


CASES = (
    Case(HOPPER, 128),
    Case(HOPPER, 512, 30),
    Case(HOPPER, 1024, 27),
    Case(HOPPER, 512, 15, special=0.01),
    Case("sm90.wgmma.e5m2.e5m2.f32", 512, 15, special=0.01),
    Case("sm80.mma.f16.f16.f32", 512, 6),
    Case("sm80.mma.bf16.bf16.f32", 512, 6),
    Case("sm90.wgmma.f16.f16.f32", 512, 6),
    Case("sm90.wgmma.bf16.bf16.f32", 512, 6),
    Case("sm100.tcgen05.f16.f16.f32", 512, 6),
    Case("sm100.tcgen05.bf16.bf16.f32", 512, 6),
    Case("sm100.tcgen05.e4m3.e4m3.f32", 512, 6),
)


def operand(rng: np.random.Generator, fmt: str, size: int) -> Array:
    dtype = np.dtype(mma.operand_dtype(fmt))
    codes = rng.integers(0, np.iinfo(dtype).max, (size, size), dtype=dtype, endpoint=True)
    return np.where(np.isfinite(casting.decode(codes, fmt)), codes, dtype.type(0))


def operands(case: Case) -> tuple[MmaModel, Array, Array]:
    rng = np.random.default_rng(0)
    model = mma.parse(case.instruction)
    a, b = operand(rng, model.a_format, case.size), operand(rng, model.b_format, case.size)
    if case.special:
        rows = rng.choice(case.size, int(case.special * case.size), replace=False)
        a[rows] = 0x7C if model.a_format == "float8_e5m2" else 0x7F
    return model, a, b


def is_right(model: MmaModel, a: Array, b: Array, d: Array) -> bool:
    """Whether a few rows are the interpreter's."""
    chosen = _core.isa()
    _core.set_isa("portable")
    rows = np.linspace(0, len(a) - 1, 4).astype(int)
    expected = mma.chain(a[rows], b, model=model)
    _core.set_isa(chosen)
    return np.array_equal(d[rows].view(np.uint32), expected.view(np.uint32))


def mmasim_call(a: Array, b: Array) -> Callable[[], object] | None:
    """Hopper's E4M3 product by MMA-Sim, or None without it."""
    if importlib.util.find_spec("mmasim") is None:
        return None
    from mmasim import nv_ptx  # type: ignore[import-not-found]

    instruction = nv_ptx.WGMMA("Hopper", "m64n8k32.f32.e4m3.e4m3")
    x, y = (torch.from_numpy(codes).view(torch.float8_e4m3fn) for codes in (a, b))

    def run() -> torch.Tensor:
        d = torch.zeros(len(a), len(b))
        for k in range(0, a.shape[1], 32):
            d = instruction(x[:, k : k + 32], y[:, k : k + 32].T, d)
        return d

    return run


def measure(case: Case, samples: int) -> dict[str, Any]:
    model, a, b = operands(case)
    d = np.empty((case.size, case.size), np.float32)

    def run() -> None:
        mma.chain(a, b, model=model, out=d)

    run()
    row: dict[str, Any] = {"name": case.name, "instruction_set": _core.isa()}
    if not is_right(model, a, b, d):
        return row | {"wrong": "differs from the interpreter"}
    calls: dict[str, Callable[[], object]] = {"run": run}
    peer = mmasim_call(a, b) if (case.instruction, case.size) == (HOPPER, 128) else None
    if peer is not None:
        calls["mmasim"] = peer
    seconds = medians(calls, samples=samples)
    flops = 2 * case.size**3
    expected = case.at_least / (2 if _core.isa() == "avx2" else 1)
    row |= {"microseconds": seconds["run"] * 1e6, "gflops": flops / seconds["run"] / 1e9, "at_least": expected}
    if peer is not None:
        row["times_mmasim"] = seconds["mmasim"] / seconds["run"]
    return row


def thread_gain(samples: int) -> dict[str, Any]:
    """Two threads over one, beside what plain arithmetic gains in the same run."""
    model, a, b = operands(Case(HOPPER, 512))
    d = np.empty((512, 512), np.float32)
    with ThreadPoolExecutor(2) as pool:
        calls = {str(count): on_threads(count, lambda: mma.chain(a, b, model=model, out=d)) for count in (1, 2)}
        calls |= {f"arithmetic {count}": arithmetic_on(pool, count) for count in (1, 2)}
        seconds = medians(calls, samples=samples)
    gain, plain = seconds["1"] / seconds["2"], seconds["arithmetic 1"] / seconds["arithmetic 2"]
    return {"name": f"{HOPPER} 512^3, two threads", "gain": gain, "arithmetic_gain": plain, "share": gain / plain}


def training_step(samples: int) -> dict[str, Any]:
    """A step of the validated model with Hopper's arithmetic in all three GEMMs, over one in float32; two threads."""
    sequences = text.Sequences(text.load(), seed=0)
    _core.set_num_threads(2)
    torch.set_num_threads(2)

    def steps(recipe: Recipe) -> Callable[[], float]:
        model = build_model(recipe, len(sequences.text.symbols), 0)
        train = loop.train(model, sequences, 10**6, loop.LEARNING_RATES[recipe.parametrization])
        return lambda: next(train)

    names = {"float32": "unit_scaled", "FP8, float32 sums": "unit_scaled_fp8"}
    calls = {label: steps(recipes.parse(name)) for label, name in names.items()}
    calls["FP8, Hopper's sums"] = steps(recipes.parse("unit_scaled_fp8").adding("sm90.wgmma"))
    seconds = medians(calls, samples=samples)
    return {"name": "training step, two threads", "milliseconds": {name: 1e3 * s for name, s in seconds.items()}}


def line(row: dict[str, Any]) -> str:
    if "wrong" in row:
        return f"{row['name']:<52} WRONG, not timed: {row['wrong']}"
    if "milliseconds" in row:
        return f"{row['name']:<52} " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in row["milliseconds"].items())
    if "gain" in row:
        return f"{row['name']:<52} gain {row['gain']:.2f}, arithmetic alone {row['arithmetic_gain']:.2f}"
    missed = " MISSED" if row["gflops"] < row["at_least"] else ""
    wanted = f" (>= {row['at_least']:g}{missed})" if row["at_least"] else ""
    peer = f"   mmasim x{row['times_mmasim']:.0f}" if "times_mmasim" in row else ""
    head = f"{row['name']:<52} {row['instruction_set']:<8}"
    return f"{head} {row['microseconds']:>9.0f} us {row['gflops']:>6.1f} GFLOP/s{wanted}{peer}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="print the results as JSON; otherwise they are saved")
    options = parser.parse_args()
    _core.set_num_threads(1)
    torch.set_num_threads(1)
    rows = []
    for isa in [isa for isa in reversed(_core.isas()) if isa != "portable"] or ["portable"]:
        _core.set_isa(isa)
        for case in CASES:
            if options.filter in case.name:
                rows.append(measure(case, options.samples))
                print(line(rows[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
    _core.set_isa(_core.isas()[-1])
    if not options.filter:
        for whole in (thread_gain, training_step):
            rows.append(whole(options.samples))
            print(line(rows[-1]), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(rows, indent=1))
    elif not options.filter:
        print(f"results: {save(rows, 'mma', machine(1))}")
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
