"""Sections of `fp8sim probe`: each by itself, what is not asked, what fails, and what differs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fp8sim import cli
from fp8sim.analysis.probing import calls, conversions, converters, device, products, running
from fp8sim.analysis.probing.operands import Array
from fp8sim.mma.plans import parse as parse_plan

SM90 = {row.subject.name: row for row in products.rows("sm90")}
CONVERSIONS = {row.converter.name: row.converter for row in converters.rows("sm90")}


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


def test_options_of_what_is_not_asked_are_refused() -> None:
    done = invoke("--only", "gemms", "--random", 5)
    assert isinstance(done.exception, ValueError)
    assert "--random and --golden are for instructions, and --only gemms leaves them out" in str(done.exception)
