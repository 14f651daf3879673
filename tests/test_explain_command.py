"""Cases as files, and `fp8sim explain`."""

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fp8sim
from fp8sim import cli
from fp8sim.analysis.explaining import Case, load_case, save_case

A = np.asarray(fp8sim.encode(np.random.default_rng(0).standard_normal((8, 512)), "e4m3"))
B = np.asarray(fp8sim.encode(np.random.default_rng(1).standard_normal((512, 8)), "e4m3"))
GIVEN = {"a": A, "b": B, "a_format": "e4m3", "b_format": "e4m3", "output": "bfloat16"}
PLAN = "triton.sm90.imprecise128"


def kernel(case: Any) -> Any:
    out = fp8sim.matmul(case["a"], case["b"], a_format="e4m3", b_format="e4m3", plan=PLAN, output="bfloat16")
    return out.view(np.uint16)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "case.npz", **GIVEN, actual=kernel(GIVEN))
    return tmp_path / "case.npz"


def test_a_mismatch_is_explained_in_three_commands(path, tmp_path):
    found = invoke(path, "--design", tmp_path / "next.npz")
    assert found.exit_code == 0
    assert found.stdout.startswith("ambiguous: ")
    assert "triton.sm90.imprecise128 output=bfloat16" in found.stdout
    assert "evidence: hardware (H100, H200: 4000): normal" in found.stdout
    following = dict(np.load(tmp_path / "next.npz"))
    assert following["a"].size <= 512
    np.savez(tmp_path / "next.npz", **following | {"actual": kernel(following)})
    found = invoke(tmp_path / "next.npz", "--json", "-")
    assert found.exit_code == 0
    data = json.loads(found.stdout)
    assert data["verdict"] == "unique"
    assert "triton.sm90.imprecise128 output=bfloat16" in data["classes"][0]["hypotheses"]
    assert data["elements"] == data["shape"][0] * data["shape"][1]


def test_nothing_explains_it(path):
    actual = kernel(GIVEN)
    actual[2, 3] ^= 0x4000
    np.savez(path, **GIVEN, actual=actual)
    found = invoke(path, "--json", "-")
    assert found.exit_code == 1
    data = json.loads(found.stdout)
    assert (data["verdict"], data["classes"], data["closest"]["rows"]) == ("none", [], [2, 2])
    text = invoke(path).stdout
    assert "differs in 1 of 64 elements: one element, rows 2..2 and columns 3..3" in text


def test_own_hypotheses(path):
    assert invoke(path, "--hypothesis", f"{PLAN} output=bfloat16").stdout.startswith("unique: 1 of 1")
    assert invoke(path, "--hypothesis", "sm100.tcgen05 output=bfloat16").exit_code == 1


def test_a_larger_k_is_asked_for(path, tmp_path):
    texts = (f"{PLAN} output=bfloat16", "triton.sm90.add128 output=bfloat16", "triton.sm90.add256 output=bfloat16")
    arguments = [part for text in texts for part in ("--hypothesis", text)]
    found = invoke(path, *arguments, "--design", tmp_path / "next.npz", "--design-k", 640)
    assert "b [640, 1]" in found.stdout or "is not written" in found.stdout


def test_nothing_left_to_separate(path, tmp_path):
    found = invoke(path, "--hypothesis", f"{PLAN} output=bfloat16", "--design", tmp_path / "next.npz")
    assert "is not written: there is nothing left to separate" in found.stdout
    assert not (tmp_path / "next.npz").exists()


CASES = {
    "codes": Case(**GIVEN, actual=kernel(GIVEN), a_scale_inv=np.float32(0.5), hypotheses=("sm90.wgmma",)),
    "to be cast": Case(np.ones((2, 3)), np.ones((3, 2)), a_quantizer="e4m3", b_quantizer="e4m3"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_survives_its_file(name, tmp_path):
    case = CASES[name]
    save_case(case, tmp_path / "case.npz")
    again = load_case(tmp_path / "case.npz")
    for field, value in vars(case).items():
        assert np.array_equal(getattr(again, field), value), field


def test_quantized_operands_in_a_file(tmp_path):
    x = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    q = fp8sim.quantize(x, "mxfp8")
    out = fp8sim.matmul(q, q, accumulate="sm100.tcgen05.mxf8f6f4")
    fields = {f"{name}{key}": value for name in "ab" for key, value in (("", q.codes), ("_scales", q.scales))}
    save_case(Case(**fields, a_quantizer="mxfp8", b_quantizer="mxfp8", actual=out), tmp_path / "case.npz")
    explanation = load_case(tmp_path / "case.npz").explain()
    assert any("mxf8f6f4" in str(found) for found in explanation.surviving)
    found = invoke(tmp_path / "case.npz", "--design", tmp_path / "next.npz")
    assert found.exit_code == 0
    if (tmp_path / "next.npz").exists():
        assert load_case(tmp_path / "next.npz").shape[2] <= 64


WRONG = {
    "no b": ({"b": None}, "b missing: the keys are a, b, actual"),
    "unknown key": ({"B": B}, "B unknown: the keys are"),
    "no output yet": ({"actual": None}, "run the kernel on its a and b"),
    "a format that is no string": ({"a_format": np.float32(1)}, "a_format has dtype float32.*expected one string"),
    "an unknown format": ({"a_format": "e9m9"}, "e9m9"),
    "codes without format": ({"a_format": None}, "a_format="),
    "a shape": ({"actual": np.zeros((3, 8), np.uint16)}, r"actual has shape \[3, 8\]: expected \[M, N\] = \[8, 8\]"),
    "scales without quantizer": ({"a_scales": B}, "a_scales without a_quantizer"),
    "bfloat16 as NumPy stores it": ({"actual": np.zeros((8, 8), "V2")}, "save the codes, as x.view"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_an_error_that_says_why(fault, tmp_path):
    changes, message = WRONG[fault]
    content = {**GIVEN, "actual": kernel(GIVEN)} | changes
    np.savez(tmp_path / "case.npz", **{key: value for key, value in content.items() if value is not None})
    found = invoke(tmp_path / "case.npz")
    assert found.exit_code != 0
    with pytest.raises(ValueError, match=message):
        raise found.exception


def test_no_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("nothing.npz", "text.npz"):
        monkeypatch.setattr("sys.argv", ["fp8sim", "explain", str(tmp_path / name)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 3
        assert "not a readable .npz file" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [(["--json", "x"], "only '-'"), (["--design-k", "3"], "give both")])
def test_wrong_options(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        raise invoke(path, *arguments).exception
