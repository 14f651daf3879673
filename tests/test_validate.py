"""`fp8sim validate`: its verdicts, its exit codes, and that every fault planted into the arithmetic is named."""

import dataclasses
import importlib
import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fp8sim
from fp8sim import backends, casting, cli, recipes, validate
from fp8sim.analysis import definitions, kernels, report, unit_scale
from fp8sim.analysis.verdicts import Verdict
from fp8sim.backends import Backend
from fp8sim.compare import Comparison
from fp8sim.formats import parse
from fp8sim.mma import GemmPlan
from fp8sim.ops import matmul as ops
from fp8sim.quantizers import Quantizer
from fp8sim.recipes import GEMM_OPERANDS, RECIPES
from fp8sim.rounding import Overflow, Rounding
from fp8sim.simulate import matmul as simulate
from fp8sim.simulate import tensor_core
from fp8sim.simulate.scale import scale_bwd
from fp8sim.training import scaling_check, text
from fp8sim.training.model import ModelSize, build_model
from fp8sim.training.text import Sequences
from fp8sim.unit_scaling import functional, rules
from fp8sim.unit_scaling.functional import products
from fp8sim.validate import Options, Validation

SMALL = Options(
    recipes=("unit_scaled_fp8", "bf16"),
    steps=2,
    size=ModelSize(width=32, blocks=2, heads=2),
    length=32,
    batch=4,
    cast_elements=1 << 12,
)


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels have their own tests; here they are NOT CHECKED unless a test brings one."""
    monkeypatch.setattr(kernels, "BACKENDS", ())


def verdicts(validation: Validation) -> dict[str, Verdict]:
    """Of the rows of operations and kernels, by the first word of their name."""
    return {row.name.split()[0]: row.verdict for row in validation.rows}


def test_without_a_fault_everything_passes() -> None:
    validation = validate.run(SMALL)
    assert verdicts(validation) == {"linear": Verdict.PASS, "unit-scaled": Verdict.PASS, "cast": Verdict.PASS}
    assert validation.exit_code() == 0
    compared = {row.name.split()[0]: row.comparison.compared for row in validation.rows}
    assert compared["linear"] > 500_000


# Faults. Each is planted where a programmer would make it, and must be named by a row.

Plant = Callable[[pytest.MonkeyPatch], None]


def _cast_toward_zero(patch: pytest.MonkeyPatch) -> None:
    original = casting.cast
    patch.setattr(casting, "cast", lambda x, fmt, **policy: original(x, fmt, **{**policy, "rounding": "TOWARD_ZERO"}))


def _cast_to_e5m2(patch: pytest.MonkeyPatch) -> None:
    original, swapped = casting.cast, {parse("e4m3"): parse("e5m2")}
    patch.setattr(casting, "cast", lambda x, fmt, **kw: original(x, swapped.get(parse(fmt), fmt), **kw))


def _factor(which: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        original = rules.linear

        def faulty(*sizes: Any) -> rules.LinearScales:
            scales = original(*sizes)
            return scales._replace(**{which: getattr(scales, which) * math.sqrt(2)})

        patch.setattr(rules, "linear", faulty)

    return plant


def _operand_in_float32(gemm: int, operand: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        original, faulty_name = ops._gemm, list(GEMM_OPERANDS)[gemm]

        def faulty(name: str, a: Any, b: Any, strings: Any, *rest: Any) -> torch.Tensor:
            changed = strings._replace(**{operand: ""}) if name == faulty_name else strings
            return original(name, a, b, changed, *rest)

        patch.setattr(ops, "_gemm", faulty)

    return plant


def _cast_twice_in_the_gemm(patch: pytest.MonkeyPatch) -> None:
    original, first = simulate._quantized, Quantizer(parse("bf16"))
    patch.setattr(simulate, "_quantized", lambda x, q: original(x if q is None else first(x), q))


def _cast_twice_before_the_gemm(patch: pytest.MonkeyPatch) -> None:
    original = products._linear
    patch.setattr(products, "_linear", lambda input, *rest: original(fp8sim.cast(input, "e5m2"), *rest))


def _input_cut_off_from_its_gradient(patch: pytest.MonkeyPatch) -> None:
    original = products._linear
    patch.setattr(products, "_linear", lambda input, *rest: original(input.detach(), *rest))


def _gradient_cast_before_the_gemm(patch: pytest.MonkeyPatch) -> None:
    original, first = ops._gemm, Quantizer(parse("e2m3"))

    def faulty(name: str, a: torch.Tensor, *rest: Any) -> torch.Tensor:
        return original(name, first(a) if name == "grad_input" else a, *rest)

    patch.setattr(ops, "_gemm", faulty)


def _gemm_forgets_its_factor(patch: pytest.MonkeyPatch) -> None:
    original = simulate.gemm
    patch.setattr(simulate, "gemm", lambda a, b, **kw: original(a, b, **{**kw, "scale": 1.0}))


def _gemm_drops_the_last_k(patch: pytest.MonkeyPatch) -> None:
    original = simulate.gemm

    def faulty(a: torch.Tensor, b: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return original(torch.cat([a[..., :-1], torch.zeros_like(a[..., -1:])], -1), b, **keywords)

    patch.setattr(simulate, "gemm", faulty)


FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "cast rounds toward zero": (_cast_toward_zero, {"linear", "cast"}),
    "e5m2 for e4m3": (_cast_to_e5m2, {"linear", "cast"}),
    "forward factor": (_factor("output"), {"linear", "unit-scaled"}),
    "grad_input factor": (_factor("grad_input"), {"linear", "unit-scaled"}),
    "grad_weight factor": (_factor("grad_weight"), {"linear", "unit-scaled"}),
    "input of output in float32": (_operand_in_float32(0, "first"), {"linear"}),
    "weight of output in float32": (_operand_in_float32(0, "second"), {"linear"}),
    "grad_output of grad_input in float32": (_operand_in_float32(1, "first"), {"linear"}),
    "weight of grad_input in float32": (_operand_in_float32(1, "second"), {"linear"}),
    "grad_output of grad_weight in float32": (_operand_in_float32(2, "first"), {"linear"}),
    "input of grad_weight in float32": (_operand_in_float32(2, "second"), {"linear"}),
    "cast twice inside the GEMM": (_cast_twice_in_the_gemm, {"linear"}),
    "input cast twice": (_cast_twice_before_the_gemm, {"linear", "unit-scaled"}),
    "input cut off from its gradient": (_input_cut_off_from_its_gradient, {"linear", "unit-scaled"}),
    "gradient cast twice": (_gradient_cast_before_the_gemm, {"linear", "unit-scaled"}),
    "GEMM without its factor": (_gemm_forgets_its_factor, {"linear", "unit-scaled"}),
    "GEMM without its last k": (_gemm_drops_the_last_k, {"linear", "unit-scaled"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_with_the_rows_that_name_it(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, rows = FAULTS[fault]
    plant(monkeypatch)
    validation = validate.run(dataclasses.replace(SMALL, recipes=("unit_scaled_fp8",)))
    found = {name for name, verdict in verdicts(validation).items() if verdict is Verdict.FAIL}
    assert found == rows
    assert validation.exit_code() == 1
    details = [row.detail for row in validation.rows if row.verdict is Verdict.FAIL]
    assert all("expected" in detail for detail in details)
    printed = report.terminal(validation.to_dict(), (Path("a"), Path("b")))
    assert all(detail in printed for detail in details)


def _plant_wrong_factor(patch: pytest.MonkeyPatch, rule: str, index: int = 0) -> None:
    """Factor `index` of a rule times 2^1/2."""
    original = getattr(rules, rule)

    def faulty(*args: Any, **keywords: Any) -> Any:
        factors = original(*args, **keywords)
        if not isinstance(factors, tuple):
            return factors * 2**0.5
        wrong = [factor * (2**0.5 if i == index else 1) for i, factor in enumerate(factors)]
        return type(factors)(*wrong) if hasattr(factors, "_fields") else tuple(wrong)

    patch.setattr(rules, rule, faulty)


@pytest.mark.parametrize("rule", ["gelu", "embedding", "norm_weight", "residual", "cross_entropy", "readout"])
def test_a_wrong_factor_of_a_unit_scaled_operation_is_named(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant_wrong_factor(monkeypatch, rule)
    validation = validate.run(dataclasses.replace(SMALL, recipes=("bf16",)))
    (row,) = (row for row in validation.rows if row.verdict is Verdict.FAIL)
    assert row.name.startswith("unit-scaled ops")
    assert validation.exit_code() == 1


FACTORS = {
    **dict.fromkeys(("linear", "readout", "matmul", "conv1d", "add"), 3),
    **dict.fromkeys(("gelu", "silu", "relu", "relu_squared", "tanh", "sigmoid", "softmax", "residual"), 2),
    **dict.fromkeys(("silu_glu", "attention", "dropout", "embedding", "norm_weight", "cross_entropy", "mse_loss"), 1),
}
"""Rules, and how many factors each has."""


@pytest.mark.parametrize(
    ("rule", "index"), [(rule, index) for rule, number in FACTORS.items() for index in range(number)]
)
def test_definitions_and_scales_both_see_every_factor(rule: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant_wrong_factor(monkeypatch, rule, index)
    cases = {name: case for name, case in unit_scale.CASES.items() if rule.removesuffix("_weight") in name}
    monkeypatch.setattr(unit_scale, "CASES", cases)
    assert definitions.check_definitions().mismatches > 0
    assert unit_scale.check_unit_scale().mismatches > 0


# Kernels.


def _faulty_cast(x: torch.Tensor, fmt: str, **policy: Any) -> torch.Tensor:
    result = casting.cast(x, fmt, **policy)
    result[0] += 1
    return result


def _faulty_gemm(a: torch.Tensor, b: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return simulate.gemm(a[..., :-1], b[..., :-1, :], **keywords)


def _kernel_with(**change: Any) -> Callable[..., torch.Tensor]:
    def gemm(a: torch.Tensor, b: torch.Tensor, *, quantizers: Any, **keywords: Any) -> torch.Tensor:
        changed = tuple(q and dataclasses.replace(q, **change) for q in quantizers)
        return simulate.gemm(a, b, quantizers=changed, **keywords)  # type: ignore[arg-type]

    return gemm


def _clears_low_bits(x: torch.Tensor, fmt: str, **policy: Any) -> torch.Tensor:
    return casting.cast((x.view(torch.int32) & ~0xFF).view(torch.float32), fmt, **policy)


def _nan_to_zero(a: torch.Tensor, b: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return simulate.gemm(a.nan_to_num(0.0, torch.inf, -torch.inf), b, **keywords)


def _transposed(a: torch.Tensor, b: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Reads the memory of a transposed operand in the wrong order."""
    a = a if a.is_contiguous() else a.mT.reshape(a.shape)
    return simulate.gemm(a, b, **keywords)


def _weight_transposed(*operands: torch.Tensor, **keywords: Any) -> tuple[torch.Tensor, ...]:
    grad_input, grad_weight = simulate.gemm_backward(*operands, **keywords)
    return grad_input, grad_weight.mT


PROMOTED = GemmPlan("sm90.wgmma", flush=128, block_k=128)

KERNEL_FAULTS: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "low bits cleared": ("cast", _clears_low_bits),
    "no cast": ("gemm", lambda a, b, quantizers, **kw: simulate.gemm(a, b, **kw)),
    "second operand not cast": (
        "gemm",
        lambda a, b, quantizers, **kw: simulate.gemm(a, b, quantizers=(quantizers[0], None), **kw),
    ),
    "toward zero": ("gemm", _kernel_with(rounding=Rounding.TOWARD_ZERO)),
    "bf16 for FP8": ("gemm", _kernel_with(format=parse("bf16"))),
    "overflow to NaN": ("gemm", _kernel_with(overflow=Overflow.NAN)),
    "clamped at 240": ("gemm", lambda a, b, **kw: simulate.gemm(a.clamp(-240, 240), b, **kw)),
    "NaN to zero": ("gemm", _nan_to_zero),
    "transposed operand": ("gemm", _transposed),
    "factor": ("gemm", lambda a, b, scale, **kw: simulate.gemm(a, b, scale=scale * 2**0.5, **kw)),
    "another order": ("matmul", lambda a, b, plan, **kw: tensor_core.matmul(a, b, plan=PROMOTED, **kw)),
    "another factor": (
        "matmul",
        lambda a, b, a_scale_inv, b_scale_inv, **kw: tensor_core.matmul(
            a, b, a_scale_inv=a_scale_inv * 2, b_scale_inv=b_scale_inv / 2 + 1e-7, **kw
        ),
    ),
    "gradient of the weight transposed": ("gemm_backward", _weight_transposed),
    "scales swapped": (
        "gemm_backward",
        lambda grad, a, b, scales, **kw: simulate.gemm_backward(grad, a, b, scales=scales[::-1], **kw),
    ),
}


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_a_fault_planted_into_a_kernel_is_a_mismatch(fault: str) -> None:
    op, function = KERNEL_FAULTS[fault]
    check = kernels._CHECKS[op][1]

    class Planted(Backend):
        def load(self) -> Callable[..., torch.Tensor]:
            return function

    planted = Planted(op, "triton", "test", ("cpu",), "integer arithmetic", "bitwise", "")
    assert check(planted, "cpu", 1 << 14).mismatches > 0


DEFINITION_FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "gelu": ("gelu", lambda x, *rest, **kw: x * torch.sigmoid(1.702 * x) * 1.77),
    "gelu gradient negated": ("gelu", lambda x, *rest, **kw: scale_bwd(GOOD.gelu(x, *rest, **kw), -1.0)),
    "gradient of the loss negated": (
        "cross_entropy",
        lambda x, *rest, **kw: scale_bwd(GOOD.cross_entropy(x, *rest, **kw), -1.0),
    ),
    "targets rolled by one": ("cross_entropy", lambda x, t, *rest, **kw: GOOD.cross_entropy(x, t.roll(1), *rest, **kw)),
    "eps": ("rms_norm", lambda x, shape, gain=None: GOOD.rms_norm(x, shape, gain, eps=0.05)),
    "tau ignored": ("residual_add", lambda b, s, tau: GOOD.residual_add(b, s, 1.0)),
    "branch and skip swapped": ("residual_add", lambda b, s, tau: GOOD.residual_add(s, b, tau)),
    "branch negated": ("residual_add", lambda b, s, tau: GOOD.residual_add(-b, s, tau)),
    "bias scaled": ("linear", lambda x, w, b=None, **kw: GOOD.linear(x, w, None if b is None else b * 0.25, **kw)),
}
GOOD = types.SimpleNamespace(**{name: getattr(functional, name) for name, _ in DEFINITION_FAULTS.values()})
"""The functions as they are before a fault replaces them."""


@pytest.mark.parametrize("fault", DEFINITION_FAULTS)
def test_an_operation_that_keeps_its_scale_but_not_its_values_is_named(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, function = DEFINITION_FAULTS[fault]
    assert definitions.check_definitions().mismatches == 0
    monkeypatch.setattr(functional, name, function)
    assert importlib.reload(definitions).check_definitions().mismatches > 0
    monkeypatch.undo()
    importlib.reload(definitions)


def _raises(*args: Any, **keywords: Any) -> torch.Tensor:
    raise AssertionError("must not run")


def _kernel(op: str, function: Callable[..., torch.Tensor], contract: str = "bitwise") -> Backend:
    name = f"{function.__module__}:{function.__name__}"
    return Backend(op, "triton", "test", ("cpu",), "integer arithmetic", contract, name)


@pytest.mark.parametrize(
    ("kernel", "verdict", "code"),
    [
        (_kernel("cast", casting.cast), Verdict.PASS, 0),
        (_kernel("cast", _faulty_cast), Verdict.FAIL, 1),
        (_kernel("gemm", simulate.gemm, "exact-sum"), Verdict.PASS, 0),
        (_kernel("gemm", _faulty_gemm, "exact-sum"), Verdict.FAIL, 1),
    ],
)
def test_a_kernel_is_held_against_its_contract(
    kernel: Backend, verdict: Verdict, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BACKENDS", (kernel,))
    monkeypatch.setitem(backends._MISSING, "triton", lambda: None)
    validation = validate.run(dataclasses.replace(SMALL, recipes=("bf16",)))
    assert verdicts(validation)[f"triton.{kernel.op}"] is verdict
    assert validation.exit_code() == code


def test_a_kernel_that_cannot_run_is_not_checked_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKENDS", (_kernel("cast", _raises),))
    monkeypatch.setitem(backends._MISSING, "triton", lambda: "no CUDA device")
    options = dataclasses.replace(SMALL, recipes=("bf16",))
    validation = validate.run(options)
    assert verdicts(validation)["triton.cast"] is Verdict.NOT_CHECKED
    assert validation.exit_code() == 0
    assert "NOT CHECKED (no CUDA device)" in report.terminal(validation.to_dict(), (Path("a"), Path("b")))
    required = validate.run(dataclasses.replace(options, required_kernels=("triton.cast",)))
    assert required.exit_code() == 3


# Verdicts of the scaling rule.


def check(recipe: str, **keywords: Any) -> scaling_check.RecipeResult:
    return scaling_check.check_recipe(recipe, Sequences(text.load(), seed=keywords.get("seed", 0)), **keywords)


@pytest.mark.parametrize(
    ("recipe", "seed", "learning_rate"),
    [("unit_scaled_fp8", 0, 1.0), ("unit_scaled_fp8", 3, 0.125), ("u_mup_fp8", 1, 1.0), ("munit_scaled_fp8", 2, 0.25)],
)
def test_unit_scaled_fp8_holds(recipe: str, seed: int, learning_rate: float) -> None:
    result = check(recipe, seed=seed, learning_rate=learning_rate)
    assert result.verdict is Verdict.PASS, result.decisive


def test_steps_that_loss_scaling_skips_are_in_the_result() -> None:
    scaling = recipes.LossScaling(2.0**40, growth_interval=100, backoff=2.0**-30)
    recipe = dataclasses.replace(RECIPES["fp16_loss_scaled"], loss_scaling=scaling)
    result = scaling_check.check_recipe(recipe, Sequences(text.load()), steps=3, size=ModelSize(32, 1, 2))
    assert result.skipped_steps == result.to_dict()["skipped_steps"] == [0]
    result = scaling_check.check_recipe("bf16", Sequences(text.load()), steps=1, size=ModelSize(32, 1, 2))
    assert result.skipped_steps == []


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("learning_rate", [0.125, 0.25, 0.5, 1.0])
def test_unit_scaled_fp8_holds_over_seeds_and_learning_rates(seed: int, learning_rate: float) -> None:
    result = check("unit_scaled_fp8", seed=seed, learning_rate=learning_rate)
    assert result.verdict is Verdict.PASS, result.decisive


@pytest.mark.parametrize(
    ("recipe", "verdict", "operand"),
    [
        ("bf16", Verdict.PASS, None),
        ("fp16", Verdict.WARN, "grad_output"),
        ("fp8_naive", Verdict.FAIL, "grad_output"),
        ("fp8_loss_scaled", Verdict.WARN, "weight"),
        ("mup_fp8", Verdict.FAIL, "grad_output"),
    ],
)
def test_the_other_recipes_fare_as_they_are_known_to(recipe: str, verdict: Verdict, operand: str | None) -> None:
    result = check(recipe, steps=3)
    assert result.verdict is verdict
    assert operand is None or result.decisive.subject.endswith(operand)


def test_an_all_zero_gradient_fails_and_says_so() -> None:
    sequences = Sequences(text.load(), length=32, batch=4)
    net = build_model(RECIPES["unit_scaled_fp8"], len(sequences.text.symbols), 0, SMALL.size)
    with torch.no_grad():
        net.readout.weight.zero_()
    look = scaling_check.look(net, sequences, 0)
    failing = [f for f in look.findings() if f.verdict is Verdict.FAIL]
    assert any(f.subject.endswith("grad_output") and f.reason == "all zero" for f in failing)


def test_a_weight_that_is_not_finite_fails() -> None:
    sequences = Sequences(text.load(), length=32, batch=4)
    net = build_model(RECIPES["unit_scaled_fp8"], len(sequences.text.symbols), 0, SMALL.size)
    with torch.no_grad():
        net.layers[0].mlp.up.weight[0, 0] = math.inf
    look = scaling_check.look(net, sequences, 0)
    assert any(f.figure == "finite" and f.subject == "layers.0.mlp.up weight" for f in look.findings())


def test_a_failing_recipe_that_must_hold_decides_the_exit_code() -> None:
    options = dataclasses.replace(SMALL, recipes=("fp8_naive",), size=ModelSize(), length=128, steps=1)
    baseline = validate.run(options)
    assert baseline.results[0].verdict is Verdict.FAIL
    assert baseline.exit_code() == 0
    required = validate.run(dataclasses.replace(options, require=("fp8_naive",)))
    assert required.exit_code() == 2


def test_a_run_that_compared_nothing_is_not_a_success() -> None:
    validation = validate.run(dataclasses.replace(SMALL, recipes=("bf16",)))
    validation.rows = [dataclasses.replace(row, comparison=Comparison(0, 0)) for row in validation.rows]
    assert validation.exit_code() == 3


# The command line.


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["validate", *arguments])


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(validate, "Options", lambda **chosen: dataclasses.replace(SMALL, **chosen))
    monkeypatch.setattr(cli, "_enable_interpreter", lambda: None)
    return tmp_path


def test_the_files_hold_everything_and_the_screen_fits(small_runs: Path) -> None:
    result = invoke("--recipe", "unit_scaled_fp8", "--recipe", "fp8_naive", "--out", str(small_runs), "--steps", "1")
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()[:-1]) <= 132
    data = json.loads((small_runs / "validation.json").read_text())
    assert data["schema"] == validate.SCHEMA
    assert data["exit_code"] == 0
    assert [entry["recipe"]["name"] for entry in data["scaling"]] == ["unit_scaled_fp8", "fp8_naive"]
    for entry in data["scaling"]:
        layers = len({(o["layer"], o["operand"]) for o in entry["looks"][0]["operands"]})
        assert layers == 3 * (8 if entry["recipe"]["name"] == "unit_scaled_fp8" else 9)
        assert entry["recipe"]["output"]["first"] == "float8_e4m3fn:TIES_TO_EVEN:SATURATE"
    assert "<html" in (small_runs / "report.html").read_text()


def test_products_are_added_as_hopper_adds_where_asked(small_runs: Path) -> None:
    arguments = ("--recipe", "unit_scaled_fp8", "--out", str(small_runs), "--steps", "1", "--json", "-")
    runs = [json.loads(invoke(*arguments, *more).stdout) for more in ((), ("--accumulate", "sm90.wgmma"))]
    assert [run["exit_code"] for run in runs] == [0, 0]
    assert runs[1]["run"]["accumulation"] == "sm90.wgmma"
    losses = [run["scaling"][0]["looks"][0]["loss"] for run in runs]
    assert 0 < abs(losses[1] - losses[0]) < 0.01, "fewer bits of every sum, and no more than that"


def test_json_goes_to_standard_output(small_runs: Path) -> None:
    result = invoke("--recipe", "bf16", "--out", str(small_runs), "--steps", "1", "--json", "-")
    assert json.loads(result.stdout)["text"]["name"] == "topics"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "fp9"], "unknown recipe 'fp9': use one of fp32, bf16"),
        (["--require", "fp9"], "unknown recipe 'fp9'"),
        (["--recipe", "fp32"], "is the reference"),
        (["--text", "/nowhere/text"], "cannot be read"),
        (["--kernel", "triton.sort"], "unknown kernel 'triton.sort'"),
        (["--lr", "-1"], "learning_rate=-1.0: must be positive and finite"),
        (["--lr", "nan"], "learning_rate=nan: must be positive and finite"),
        (["--json", "file"], "only '-'"),
        (["--accumulate", "sm70.mma"], "accumulate='sm70.mma': a_format=bfloat16, b_format=bfloat16: sm70.mma accepts"),
        (["--out", "/proc/nothing"], "--out /proc/nothing: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_3(
    small_runs: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = [] if "--out" in arguments else ["--out", str(small_runs)]
    recipe = [] if {"--recipe", "--lr"} & {*arguments} else ["--recipe", "bf16"]
    monkeypatch.setattr("sys.argv", ["fp8sim", "validate", *recipe, "--steps", "1", *out, *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fp8sim: ")
    assert message in line


def test_an_empty_text_is_refused(
    small_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = small_runs / "empty"
    empty.write_text("")
    monkeypatch.setattr("sys.argv", ["fp8sim", "validate", "--text", str(empty)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3
    assert "is empty" in capsys.readouterr().err


def test_backends_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match="unknown operation 'sort': use one of .*cast, .*decode, encode"):
        backends.rows("sort")
    with pytest.raises(ValueError, match="cast has no backend 'tpu': use one of simulate"):
        backends.row("cast", "tpu")
    with pytest.raises(ValueError, match="unknown backend 'tpu'"), backends.use_backend("tpu"):
        pass
