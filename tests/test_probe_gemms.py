"""The order of GEMMs that `fp8sim probe` asks: Triton's kernels in the interpreter, and planted differences."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fp8sim import casting
from fp8sim.analysis.probing import converters, gemms, products
from fp8sim.analysis.probing.gemms import Subject
from fp8sim.analysis.probing.operands import Array
from fp8sim.mma.gemm import Operand, multiply
from fp8sim.mma.plans import PLANS, GemmPlan
from fp8sim.mma.plans import parse as parse_plan

SM90 = {row.subject.name: row for row in products.rows("sm90")}
E4M3 = "float8_e4m3fn"


# Triton's launchers, in the interpreter: there `tl.dot` is a model of the instruction, and nothing is rewritten or
# contracted, as a compiler does.

FORMATS = {"fp8e4nv": E4M3, "fp16": "float16", "bf16": "bfloat16", "fp32": "tf32"}
UNFUSED, APART = "Triton += tl.dot * factors", "sm90.wgmma;flush=128;factors=flush;product=first;fused=False"
PARTS = {"Triton += tl.dot, bfloat16, 64x64x64": "sm90.wgmma;split_k=4"}
"""The sums that the compiler makes one chain of."""


def tensor_core(a: Any, b: Any, c: Array, imprecise: int) -> Array:
    """A tile's products on Hopper: fewer than 64 rows of FP8 are multiplied in float16, and promoted by nobody."""
    fmt, rows = FORMATS[a.dtype], a.values.shape[0]
    narrow = rows < 64 and fmt == E4M3
    plan = GemmPlan("sm90.mma", widen="float16") if narrow else GemmPlan("sm90.wgmma")
    left, right = (codes(x, fmt) for x in (a.values, b.values.T))
    if narrow or not imprecise:
        return multiply(Operand(left, fmt), Operand(right, fmt), np.ascontiguousarray(c), plan)
    for start in range(0, left.shape[1], imprecise):
        part = slice(start, start + imprecise)
        c = c + multiply(Operand(left[:, part], fmt), Operand(right[:, part], fmt), None, plan)
    return c


def codes(x: Array, fmt: str) -> Array:
    x = np.ascontiguousarray(x)
    return x.view(np.uint32) if fmt == "tf32" else casting.encode(x, fmt)


@pytest.fixture
def on_tensor_cores() -> Iterator[None]:
    pytest.importorskip("triton")
    from fp8sim.triton_kernels import interpreter

    if not interpreter.is_enabled():
        pytest.skip("a GPU has tensor cores of its own: test_hardware_probes.py")
    with interpreter.use_dot(tensor_core):
        yield


@pytest.mark.parametrize(
    "name",
    [
        "Triton matmul, 128x64x64",
        "Triton matmul, promoted, 64x64x128",
        "Triton tl.dot(acc), 32x64x256",
        "Triton += tl.dot, 32x64x64",
        "Triton += tl.dot, 128x64x128",
        "Triton tl.dot(acc, max_num_imprecise_acc=32), 64x64x256",
        "Triton tl.dot(acc, max_num_imprecise_acc=64), 32x64x128",
        "Triton matmul, blocks",
        "Triton += tl.dot * factors, enable_fp_fusion=False",
        "Triton matmul, bfloat16, split_k=2",
        "Triton tl.dot(acc), float16, 16x64x64",
        "Triton tl.dot(acc), tf32, 64x64x32",
    ],
)
def test_triton_kernels_add_as_predicted(name: str, on_tensor_cores: None) -> None:
    order = gemms.order_of(SM90[name].subject, 256)
    predicted = SM90[name].subject.predicted
    assert (order.surprise, order.plans) == (None, (str(predicted),))
    assert predicted is not None
    starts = [start for part in predicted.segments(256, 16) for start, _ in part]
    assert order.boundaries == tuple(starts[1:])


@pytest.mark.parametrize(("name", "plan"), [(UNFUSED, APART), *PARTS.items()])
def test_what_a_compiler_did_not_do_is_told(name: str, plan: str, on_tensor_cores: None) -> None:
    order = gemms.order_of(SM90[name].subject, 256)
    assert order.plans == (plan,)
    assert order.surprise == f"{name}, K = 256: not {order.predicted}, but {plan}"


def test_predictions_are_those_of_the_kernels() -> None:
    """Our products say by themselves how they add."""
    matmul = pytest.importorskip("fp8sim.triton_kernels.matmul")
    from fp8sim.cuda import matmul as cuda

    fp8, hopper = torch.float8_e4m3fn, (9, 0)
    promoted = matmul.plan_of(fp8, hopper, fast_accumulation=False)
    for name, plan in {
        "Triton matmul, 64x64x64": matmul.plan_of(fp8, hopper),
        "Triton matmul, promoted, 64x64x128": promoted,
        "fp8sim.cuda matmul, promoted": cuda.plan_of(fp8, hopper, fast_accumulation=False),
        "Triton matmul, blocks": matmul.plan_of(fp8, hopper, blocks=True),
        "Triton matmul, bfloat16": matmul.plan_of(torch.bfloat16, hopper),
        "Triton matmul, float16, split_k=2": matmul.plan_of(torch.float16, hopper, split_k=2, block_k=64),
        "Triton tl.dot(acc), 16x64x64": PLANS["triton.sm90.imprecise0"],
        "Triton += tl.dot, 64x64x256": PLANS["triton.sm90.add256"],
        "Triton tl.dot(acc, max_num_imprecise_acc=64), 64x64x128": PLANS["triton.sm90.imprecise64"],
    }.items():
        assert SM90[name].subject.predicted == plan, name


def test_every_promised_case_is_asked() -> None:
    names = [name for name, row in SM90.items() if row.subject.probe == "P10"]
    for rows in (16, 32, 64, 128):
        for block_k in (64, 128, 256):
            tile = f", {rows}x64x{block_k}"
            assert any(f"(acc){tile}" in name or f"matmul{tile}" in name for name in names)
            assert f"Triton += tl.dot{tile}" in names
            for every in (32, 64, 128):
                assert (f"Triton tl.dot(acc, max_num_imprecise_acc={every}){tile}" in names) == (every <= block_k)
    assert {row.subject.probe for row in SM90.values()} == set(products.PROBES)


@pytest.mark.parametrize("architecture", ["sm75", "sm80", "sm89", "sm100", "sm120", "cdna3"])
def test_other_devices_are_asked_what_is_known_of_them(architecture: str) -> None:
    rows = [row for row in products.rows(architecture) if row.is_small]
    assert {row.subject.probe for row in rows} == ASKED[architecture]
    for row in rows:
        assert gemms.order_of(row.on_simulator().subject, 128).surprise is None


ASKED: dict[str, set[str]] = {
    "sm75": set(),
    "sm80": {"P13"},
    "sm89": {"P11", "P13"},
    "sm100": {"P11", "P13"},
    "sm120": {"P11", "P13"},
    "cdna3": set(),
}


def test_torch_is_called_as_it_wants_to_be() -> None:
    """On a CPU as far as torch has it there: the simulator's plans do not hold, but sums of few products are exact."""
    if torch.cuda.is_available():
        pytest.skip("a GPU answers for itself: test_hardware_probes.py")
    rng, before = np.random.default_rng(0), torch.backends.cuda.matmul.fp32_precision
    numbers = rng.integers(-4, 5, (64, 64)).astype(np.float32)
    asked = [row.subject for name, row in SM90.items() if row.needs == "torch" and "to float32" not in name]
    for subject in (subject for subject in asked if subject.size == 64):
        left = gemms.encoded(numbers, subject.fmt)
        found = subject.gemm(left, left)
        wanted = numbers @ numbers.T
        assert np.array_equal(found, wanted if subject.output == "float32" else gemms.encoded(wanted, subject.output))
    assert torch.backends.cuda.matmul.fp32_precision == before


# Planted differences

PLANTED: dict[str, tuple[Subject, str]] = {
    "promotion": (Subject("x", gemms.stand_in(parse_plan("sm90.wgmma;flush=64")), "sm90.wgmma"), "sm90.wgmma;flush=64"),
    "split, bfloat16": (
        Subject("x", gemms.stand_in(parse_plan("sm90.wgmma;split_k=3"), "bfloat16"), "sm90.wgmma", "bfloat16"),
        "sm90.wgmma;split_k=3",
    ),
    "split, to bfloat16": (
        Subject(
            "x",
            gemms.stand_in(parse_plan("sm90.wgmma;split_k=3;merge=descending"), "bfloat16", "bfloat16"),
            "sm90.wgmma",
            "bfloat16",
            "bfloat16",
        ),
        "sm90.wgmma;split_k=3;merge=descending",
    ),
    "rounding of the result": (
        Subject(
            "x",
            gemms.stand_in(parse_plan("sm90.wgmma;rounding=TOWARD_ZERO"), "float16", "float16"),
            "sm90.wgmma",
            "float16",
            "float16",
        ),
        "sm90.wgmma;rounding=TOWARD_ZERO",
    ),
    "another unit": (Subject("x", gemms.stand_in(parse_plan("sm80.mma"), "tf32"), "sm90.wgmma", "tf32"), "sm80.mma"),
    "float16 instead of FP8": (
        Subject("x", gemms.stand_in(parse_plan("sm90.mma;widen=float16;flush=128")), "sm90.wgmma"),
        "sm90.mma;widen=float16;flush=128",
    ),
    "order of factors": (
        Subject(
            "x",
            gemms.stand_in(parse_plan("cutlass.sm90.blockwise")),
            "sm90.wgmma",
            factor_block=128,
        ),
        "cutlass.sm90.blockwise",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_another_order_is_named(name: str) -> None:
    subject, plan = PLANTED[name]
    predicted = PLANS["deepgemm.sm90"] if subject.factor_block else GemmPlan("sm90.wgmma")
    order = gemms.order_of(dataclasses.replace(subject, predicted=predicted), 768)
    assert order.plans == (str(parse_plan(plan)),)
    assert order.surprise == f"x, K = 768: not {predicted}, but {order.plans[0]}"


@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "tf32", "float8_e5m2"])
@pytest.mark.parametrize("plan", ["sm90.wgmma", "sm90.wgmma;split_k=4;block_k=64", "sm90.wgmma;flush=64"])
def test_where_sums_end_is_seen_whatever_the_unit_keeps(plan: str, fmt: str) -> None:
    """25 bits hide 2^-26 beside 1, and float32 hides it, too: what shows is how 1.5 * 2^-24 is rounded."""
    wanted = parse_plan(plan)
    found = gemms.boundaries(Subject(plan, gemms.stand_in(wanted, fmt), "sm90.wgmma", fmt), 256)
    starts = {start for part in wanted.segments(256, 16) for start, _ in part}
    assert set(found) == starts - {0}


# Machine code

COMPILED = """
import json, sys, numpy as np, triton_aot
from triton.runtime import driver
from fp8sim.analysis.probing import converters, products
from fp8sim.mma import operand_dtype
from fp8sim.triton_kernels import probe

probe.require_device = lambda argument, x: None
driver.set_active(triton_aot.AbsentGpu(90))
names, found = sys.argv[1:], {}
with triton_aot.launches_compiled():
    for asked in [row.subject for row in products.rows("sm90") if row.needs == "triton"]:
        if not names or asked.name in names:
            x, blocks = np.zeros((64, 512), operand_dtype(asked.fmt)), np.ones((64, 4), np.float32)
            asked.gemm(x, x, *([blocks, blocks] if asked.factor_block else []))
            found[asked.name] = asked.machine_code()
    for asked in [row.converter for row in converters.rows("sm90") if row.needs == "triton"]:
        if not names or asked.name in names:
            asked.convert(np.zeros(4096, operand_dtype(asked.source)))
            found[asked.name] = asked.machine_code()
print(json.dumps(found))
"""
"""What Triton makes for sm_90 of every row, with no GPU: name -> its instructions."""


def compiled(*names: str) -> dict[str, list[str]]:
    triton_aot = pytest.importorskip("triton_aot")
    command = [sys.executable, "-c", COMPILED, *names]
    done = subprocess.run(command, env=triton_aot.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def check_code(asked: Subject, code: list[str]) -> None:
    """That instructions are those of the plan: nothing is added outside of the tensor core where no sum ends."""
    plan = asked.predicted
    assert plan is not None
    (product,) = (name for name in code if "MMA" in name)
    kind = "HMMA" if ".mma" in plan.instruction else "QGMMA" if asked.fmt == E4M3 else "HGMMA"
    assert product.startswith(f"{kind}."), asked.name
    fused = asked.factor_block is not None and plan.fused
    assert ("FFMA" in code) == fused, asked.name
    assert ("FADD" in code) == ((plan.flush is not None or plan.split_k > 1) and not fused), asked.name
    assert any(name.startswith("F2FP.F16") for name in code) == (plan.widen is not None), asked.name


def test_the_machine_code_is_what_the_predictions_assume() -> None:
    added, fused, wide = "Triton += tl.dot, 16x64x64", UNFUSED, "Triton += tl.dot, float16, 64x64x64"
    promoted, converted = (
        "Triton tl.dot(acc, max_num_imprecise_acc=64), 64x64x128",
        "Triton .to, float16 to float8_e5m2",
    )
    found = compiled(added, fused, wide, promoted, converted)
    for name in (added, fused, wide, promoted):
        check_code(SM90[name].subject, found[name])
    assert found[converted] == ["F2FP.SATFINITE.E5M2.F16.UNPACK_B_MERGE_C"]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_machine_code_of_every_row() -> None:
    found = compiled()
    for name, row in SM90.items():
        if row.needs == "triton":
            check_code(row.subject, found[name])
    for name, converter in ((row.converter.name, row.converter) for row in converters.rows("sm90")):
        if converter.target in (E4M3, "float8_e5m2"):
            kind = "E4M3" if converter.target == E4M3 else "E5M2"
            assert found[name][0].startswith(f"F2FP.SATFINITE.{kind}"), name
