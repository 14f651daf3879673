"""GEMMs and conversions that `fp8sim probe` asks: Triton's kernels in the interpreter, and planted differences."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fp8sim import casting, cli
from fp8sim.analysis.probing import calls, conversions, converters, device, gemms, products, running
from fp8sim.analysis.probing.conversions import Converter, Rule
from fp8sim.analysis.probing.gemms import Subject
from fp8sim.analysis.probing.operands import Array
from fp8sim.mma.gemm import Operand, multiply
from fp8sim.mma.plans import PLANS, GemmPlan
from fp8sim.mma.plans import parse as parse_plan
from fp8sim.rounding import Overflow, Rounding

SM90 = {row.subject.name: row for row in products.rows("sm90")}
CONVERSIONS = {row.converter.name: row.converter for row in converters.rows("sm90")}
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


@pytest.mark.parametrize("name", [name for name in CONVERSIONS if "torch" not in name])
def test_triton_converts_as_predicted(name: str, on_tensor_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter by tables that were read off NVIDIA's header."""
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)
    found = conversions.examine(dataclasses.replace(CONVERSIONS[name], every=False))
    assert (found.surprise, found.differing, found.examples) == (None, 0, ())
    assert found.compared >= 256


def test_torch_is_called_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)
    assert conversions.examine(CONVERSIONS["torch.mm, operands to tf32"]).rules == ()  # a CPU multiplies float32


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


RULES: dict[str, tuple[str, str, Rule, Rule]] = {
    "ties away": ("float32", E4M3, Rule(), Rule(Rounding.TIES_TO_AWAY)),
    "toward zero": ("float16", "float8_e5m2", Rule(), Rule(Rounding.TOWARD_ZERO)),
    "no saturation": ("float32", "float8_e5m2", Rule(), Rule(overflow=Overflow.INFINITY)),
    "infinity kept": ("float16", "float8_e5m2", Rule(), Rule(overflow=Overflow.SAT_PROPAGATE)),
    "NaN of its sign": ("float32", E4M3, Rule(), Rule(signed_nan=True)),
    "results flushed": ("float32", E4M3, Rule(), Rule(flushes=frozenset({"result"}))),
    "operands flushed": (
        "float8_e5m2",
        "float16",
        Rule(overflow=Overflow.INFINITY),
        Rule(overflow=Overflow.INFINITY, flushes=frozenset({"source"})),
    ),
    "rounded twice": ("float32", E4M3, Rule(), Rule(through="float16")),
    "tf32 to nearest": (
        "float32",
        "tf32",
        Rule(Rounding.TOWARD_ZERO, Overflow.INFINITY),
        Rule(Rounding.TIES_TO_AWAY, Overflow.INFINITY),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_another_conversion_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)
    source, target, predicted, planted = RULES[name]
    converter = Converter("x", source, target, conversions.stand_in(planted, source, target), predicted)
    found = conversions.examine(converter)
    assert str(planted) in found.rules
    assert found.differing > 0
    assert found.surprise is not None
    assert str(planted) in found.surprise
    pattern, code, other = found.examples[0]
    given = np.array([int(pattern, 16)], conversions.operand_dtype(source))
    assert int(code, 16) == planted.apply(given, source, target)[0] != int(other, 16)


def test_no_rule_for_what_follows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)

    def odd(codes: Array) -> Array:
        found = Rule().apply(codes, "float16", E4M3)
        found[0x3C00] ^= 1
        return found

    found = conversions.examine(Converter("x", "float16", E4M3, odd, Rule()))
    assert (found.differing, found.rules, found.examples) == (1, (), (("0x3c00", "0x39", "0x38"),))
    assert found.surprise == "x: 1 of 65536 differ, as 0x3c00 to 0x39 instead of 0x38: converted by no known rule"


def test_every_pattern_of_binary32_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "_CHUNK", 1 << 16)
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 10)
    asked = Converter("x", "float32", E4M3, lambda codes: codes, every=True)
    first, second, third = itertools.islice(conversions.chunks(asked), 3)
    assert conversions.total_chunks(asked) == 65537
    assert [(part.size, part[0], part[-1]) for part in (second, third)] == [
        (1 << 16, 0, 0xFFFF),
        (1 << 16, 0x10000, 0x1FFFF),
    ]
    midway = np.float32(17 / 16).view(np.uint32)  # of E4M3's 1 and 1.125
    assert {midway - 1, midway, midway + 1, 0x7F800001, 0xFFFFFFFF} <= set(first.tolist())


# Sections of the command


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["probe", "--stand-in", "sm90", *map(str, arguments)])


def test_conversions_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)
    done = invoke("--only", "conversions", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "probe.json").read_text())
    assert (data["sections"], data["recognitions"], data["orders"]) == (["conversions"], [], [])
    assert len(data["conversions"]) == len(CONVERSIONS)
    assert {found["probe"] for found in data["conversions"]} == {"P13", "P14"}
    name = "stand-in for Triton .to, float16 to float8_e4m3fn"
    assert f"{name}: TIES_TO_EVEN, SATURATE, NaN positive; 65536 patterns" in done.stdout
    assert done.stdout.splitlines()[-2] == "the simulator reproduces everything"


def rows_with(monkeypatch: pytest.MonkeyPatch, *changed: products.Row) -> None:
    monkeypatch.setattr(products, "rows", lambda architecture: list(changed))


def test_what_fails_does_not_take_the_others_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*operands: Array) -> Array:
        raise RuntimeError("CUDA error: an illegal instruction was encountered\nand more")

    class Broken(products.Row):
        def on_simulator(self) -> products.Row:
            asked = super().on_simulator()
            return dataclasses.replace(asked, subject=dataclasses.replace(asked.subject, gemm=broken))

    first, second = SM90["Triton matmul, 64x64x64"], SM90["Triton matmul, blocks"]
    rows_with(monkeypatch, Broken(**vars(first)), second)
    done = invoke("--only", "gemms", "--gemm-k", "128", "--out", tmp_path)
    assert done.exit_code == 3
    data = json.loads((tmp_path / "probe.json").read_text())
    assert [found["name"] for found in data["orders"]] == ["stand-in for Triton matmul, blocks"]
    (failure,) = data["failures"]
    assert failure["name"] == "stand-in for Triton matmul, 64x64x64, K = 128"
    assert failure["error"].startswith("RuntimeError: CUDA error")
    lines = done.stdout.splitlines()
    told = lines.index("could not run:")
    error = "RuntimeError: CUDA error: an illegal instruction was encountered"
    assert lines[told + 1] == f"  {failure['name']}: {error}"
    assert "the simulator reproduces everything that was asked" in lines
    assert {"P10", "P12"} >= {found["probe"] for found in data["orders"]}
    assert "  P11: there is nothing to ask of sm90" in lines


def test_a_planted_difference_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SM90["Triton matmul, bfloat16"]
    rows_with(monkeypatch, dataclasses.replace(row, stands_in=parse_plan("sm90.wgmma;split_k=2")))
    done = invoke("--only", "gemms", "--gemm-k", "128,256", "--out", tmp_path)
    assert done.exit_code == 1
    wrong = "stand-in for Triton matmul, bfloat16, K = 256: not sm90.wgmma, but sm90.wgmma;split_k=2"
    assert f"  {wrong}" in done.stdout.splitlines()
    assert json.loads((tmp_path / "probe.json").read_text())["surprises"] == [wrong]


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device: without Triton, and without nvcc when fp8sim was built."""
    monkeypatch.setattr(device, "capability", lambda: 90)
    monkeypatch.setattr(calls, "unavailable", lambda needs: None if needs == "torch" else f"no {needs}")
    options = running.Options(("gemms", "conversions"), lengths=(128,))
    report = running._empty(options)
    names = [job.name for job in running._jobs(options, report)]
    assert all("torch" in name for name in names)
    assert "P12, fp8sim.cuda matmul, promoted: no cuda" in report.skipped
    assert "P10, Triton matmul, 64x64x64: no triton" in report.skipped
    assert len(names) + len(report.skipped) == len(SM90) + len(CONVERSIONS)


def test_what_there_is_no_triton_or_cuda_for() -> None:
    assert calls.unavailable("torch") is None
    assert (calls.unavailable("cuda") is None) == (running.device.importlib.util.find_spec("fp8sim._cuda") is not None)


@pytest.mark.parametrize("text", ["", "gemm", "gemms,x"])
def test_sections_that_do_not_exist_are_refused(text: str) -> None:
    done = invoke("--only", text)
    assert isinstance(done.exception, ValueError)
    assert f"--only {text!r}: expected some of instructions, gemms, conversions" in str(done.exception)


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
    for name, converter in CONVERSIONS.items():
        if converter.target in (E4M3, "float8_e5m2"):
            kind = "E4M3" if converter.target == E4M3 else "E5M2"
            assert found[name][0].startswith(f"F2FP.SATFINITE.{kind}"), name
