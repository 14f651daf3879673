"""`fp8sim probe` on the simulator, from its options to its exit code, its file and its golden vectors."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fp8sim import cli
from fp8sim.analysis.probing import Report, StandIn, Tally, load_all, recognise, running
from fp8sim.analysis.probing.gemms import Order
from fp8sim.analysis.probing.invariances import Invariance
from fp8sim.analysis.probing.report import SCHEMA
from fp8sim.mma import parse

NAME = "sm90.wgmma.e4m3.e4m3.f32"
STAND_IN = ("--stand-in", "sm90")
FAST = (*STAND_IN, "--only", "instructions", "--instruction", NAME)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["probe", *map(str, arguments)])


def test_a_run_prints_the_row_and_writes_the_file(tmp_path: Path) -> None:
    done = invoke(*FAST, "--random", 1000, "--golden", tmp_path / "golden", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "probed: stand-in of sm90, not a GPU"
    (row,) = (line for line in lines if line.startswith(NAME))
    assert row.split() == [NAME, "13", "32", "13", "toward", "zero", "-", "kept", "itself"]
    assert "random bits: 1024 outputs of 1 instructions, 0 differ" in done.stdout
    assert "the simulator reproduces everything" in lines
    data = json.loads((tmp_path / "probe.json").read_text())
    assert (data["schema"], data["stand_in"], data["surprises"]) == (SCHEMA, "sm90", [])
    assert data["recognitions"][0]["matches"] == [NAME]
    assert data["recognitions"][0]["measured"]["fraction_bits"] == 13
    assert data["environment"]["torch"] == torch.__version__
    (golden,) = load_all(tmp_path / "golden")
    assert (golden.device, golden.about["stand_in"]) == ("stand-in-sm90", "sm90")
    refused = invoke("--evidence", tmp_path / "golden")
    assert "it is no evidence" in str(refused.exception)


def test_json_is_the_file(tmp_path: Path) -> None:
    done = invoke(*FAST, "--json", "-", "--out", tmp_path)
    assert json.loads(done.stdout) == json.loads((tmp_path / "probe.json").read_text())


def test_evidence_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert json.loads(invoke("--evidence", tmp_path).stdout) == {}


def test_a_difference_is_told_and_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = StandIn(dataclasses.replace(parse(NAME), fraction_bits=12), tile=(64, 8))
    monkeypatch.setattr(running, "_stand_ins", lambda _: iter([odd]))
    done = invoke(*FAST, "--random", 1000, "--out", tmp_path)
    assert done.exit_code == 1
    assert f"none; the nearest is {NAME}" in done.stdout
    assert "    fraction_bits: 12, there 13" in done.stdout
    assert f"    all are those of {NAME} with fraction_bits 12 instead of 13" in done.stdout
    assert f"  {NAME} is no row" in done.stdout
    assert f"{NAME}: " in done.stdout.rpartition("not as the simulator says:")[2]
    assert len(list((tmp_path / "differences").glob(f"{NAME}-*.npz"))) == 8


def test_a_width_of_other_bits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output of the widest tile, off by the last bit."""

    class Odd(StandIn):
        def run(self, inputs: Any) -> Any:
            d = super().run(inputs)
            if self.tile == (64, 256):
                d[0, 63, 255] ^= 1
            return d

    monkeypatch.setattr(running, "_stand_ins", lambda _: iter([Odd(parse(NAME), tile=(64, 8))]))
    done = invoke(*FAST, "--out", tmp_path)
    assert done.exit_code == 1
    assert json.loads((tmp_path / "probe.json").read_text())["surprises"] == [
        f"{NAME}: 8 columns at a time, and 256: 3 of {3 * 64 * 256} differ"
    ]


def test_another_row_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instruction that is a known one, but not the one that it is named for."""

    class Renamed(StandIn):
        @property
        def takes(self) -> Any:
            return dataclasses.replace(super().takes, name="sm90.mma.f16.f16.f32")

    monkeypatch.setattr(running, "_stand_ins", lambda _: iter([Renamed(parse("sm80.mma.f16.f16.f32"))]))
    done = invoke(*STAND_IN, "--only", "instructions", "--out", tmp_path)
    assert done.exit_code == 1
    assert "  sm90.mma.f16.f16.f32 is sm80.mma.f16.f16.f32, sm89.mma.f16.f16.f32" in done.stdout


def test_whatever_differs_is_a_surprise() -> None:
    """A row that is none, another one, ways to a result that differ, random bits, an order that no plan has."""
    fine = recognise(StandIn(parse(NAME)))
    report = Report(
        "sm90",
        {},
        ("instructions", "gemms"),
        [fine, dataclasses.replace(fine, matches=()), dataclasses.replace(fine, matches=("sm89",))],
        [Invariance(NAME, "two ways", 10, 0), Invariance(NAME, "two ways", 10, 3)],
        [Tally(NAME, NAME, 0, 10, 0, 0, 0.0, ()), Tally(NAME, NAME, 0, 10, 4, 0, 0.0, ())],
        [
            Order("P11", "gemm", 128, (), None, ("sm90.wgmma",), 1, "sm90.wgmma"),
            Order("P11", "gemm", 256, (), None, (), 1, "sm90.wgmma"),
            Order("P11", "gemm", 512, (), None, ("sm80.mma",), 1, "sm90.wgmma"),
        ],
    )
    assert report.surprises == [
        f"{NAME} is no row",
        f"{NAME} is sm89",
        f"{NAME}: two ways: 3 of 10 differ",
        f"{NAME}: 4 of 10 random outputs differ",
        "gemm, K = 256: no plan gives its bits",
        "gemm, K = 512: not sm90.wgmma, but sm80.mma",
    ]
    assert dataclasses.replace(report, recognitions=[fine], invariances=[], tallies=[], orders=[]).surprises == []


def test_orders_of_a_gemm_are_told(tmp_path: Path) -> None:
    done = invoke(*STAND_IN, "--only", "gemms", "--gemm-k", "256", "--out", tmp_path)
    scaled_mm = "stand-in for torch._scaled_mm(use_fast_accum={}), K = 256: {}"
    assert scaled_mm.format(True, "one chain; plans sm90.wgmma") in done.stdout
    assert scaled_mm.format(False, "promoted every 128; plans sm90.wgmma;split_k=2") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stand-in", "sm91"), "--stand-in sm91: use one of sm70, sm75, sm80"),
        (("--stand-in", "sm90", "--instruction", "wgmma"), "--instruction wgmma: there are sm90.mma.f16.f16.f32"),
        (
            ("--stand-in", "sm90", "--instruction", NAME, "--instruction", "sm90.wgma"),
            "--instruction sm90.wgma: there are",
        ),
        (("--stand-in", "sm90", "--gemm-k", "128,x"), "--gemm-k '128,x': expected multiples of 16"),
        (("--stand-in", "sm90", "--gemm-k", "24"), "expected multiples of 16"),
        (("--stand-in", "sm90", "--json", "x"), "--json x: only '-'"),
        (("--evidence", "no/such/folder"), "--evidence no/such/folder: there is no such folder"),
        (("--evidence", ".", "--stand-in", "sm90"), "--evidence reads golden vectors and probes nothing"),
        (("--evidence", ".", "--random", "10"), "give it alone"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    done = invoke(*arguments)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)


@pytest.mark.parametrize("option", ["--out", "--golden"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_probed(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of what could not run, not with that of a difference."""
    monkeypatch.setattr(running, "recognise", lambda _: pytest.fail("probed"))
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fp8sim", "probe", *FAST, option, "file"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 3
    assert capsys.readouterr().err.startswith(f"fp8sim: {option} file: cannot write there (File exists); name another")


def test_a_file_that_cannot_be_read_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(running, "instruments", probe)
    monkeypatch.setattr("sys.argv", ["fp8sim", "probe", *FAST])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_way_out_is_named() -> None:
    done = invoke()
    assert isinstance(done.exception, RuntimeError)
    assert "--stand-in ARCHITECTURE" in str(done.exception)
