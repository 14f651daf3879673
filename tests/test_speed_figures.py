"""README.md's figures of speed, and each GPU's table and plot, are what `make figures` writes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import figures, gpu_figures, gpu_run
from benchmarks.figures import README, RESULTS
from benchmarks.gpu_figures import HEADLINES
from benchmarks.gpu_parts import SUITES
from benchmarks.gpu_rows import Row
from benchmarks.gpu_timing import STAND_IN, Device

HOPPER = Device("NVIDIA H200", "cuda", (9, 0), 50 << 20)


def row(name: str, ratio: float | None = 1.2, tflops: float | None = 700.0) -> Row:
    peers = {} if ratio is None else {"torch._scaled_mm": {"microseconds": 120.0, "quartiles": [1, 2], "ratio": ratio}}
    return {
        "name": name,
        "device": HOPPER.name,
        "microseconds": 100.0,
        "quartiles": [98.0, 103.0],
        "tflops": tflops,
        "gigabytes_per_second": 3900.0,
        "peers": peers,
        "absent_peers": {"Transformer Engine": "not installed"},
        "ratio": ratio,
        "floor": {"of": "copy", "microseconds": 93.0},
        "floor_ratio": 0.93,
        "bar": {"against": "floor", "at_least": 0.9, "stretch": None},
        "verdict": "met",
    }


def file(suite: str, *rows: Row) -> dict[str, Any]:
    machine = {
        "device": HOPPER.name,
        "stand_in": False,
        "date": "2026-11-21",
        "smi": {"driver_version": "580.1"},
        "cuda": "13.0",
        "versions": {"torch": "2.11.0", "torchao": None},
    }
    rates = {"copy": 4.3e12, "products": {"BF16": 7.9e14}}
    return {"schema": 2, "suite": suite, "machine": machine, "rates": rates, "complete": True, "rows": list(rows)}


SUITE_FILES = {
    "casts": file("casts", row(HEADLINES[0].row, ratio=None, tflops=None)),
    "matmul": file(
        "matmul",
        row("8192x8192x8192, e4m3fn x e4m3fn, triton"),
        {"name": "it", "device": HOPPER.name, "wrong": "bits", "verdict": "WRONG"},
    ),
}


def test_the_readme_is_what_is_written() -> None:
    section = figures.speed(figures.load(RESULTS / figures.CPU), figures.gpus())
    assert figures.in_readme(README.read_text(), section) == README.read_text(), "run: make figures"


def test_tables_of_gpus_are_what_is_written() -> None:
    for folder, suites in figures.gpus().items():
        assert (RESULTS / folder / "gpu.md").read_text() == gpu_figures.table(suites), "run: make figures"
        assert (RESULTS / folder / "gpu.svg").exists()


def test_another_result_is_another_readme() -> None:
    cpu = copy.deepcopy(figures.load(RESULTS / figures.CPU))
    before = figures.speed(cpu, {})
    for one in cpu["casts"]["rows"]:
        one["ratios"]["floor"] /= 2
    assert figures.speed(cpu, {}) != before


def test_what_has_no_file_is_not_measured() -> None:
    cpu = figures.load(RESULTS / figures.CPU)
    lines = figures.speed(cpu, {}).splitlines()
    assert sum(line.endswith("| not measured |") for line in lines) == len(HEADLINES)
    lines = figures.speed(cpu, {"nvidia-h200": SUITE_FILES}).splitlines()
    assert sum(line.endswith("| not measured |") for line in lines) == len(HEADLINES) - 2
    assert "| cast to e4m3, 64 Mi bfloat16 | 0.9 of floor, stretch 0.95 | 0.93 (3900 GB/s) |" in lines
    assert "| FP8 matmul, 8192^3 | 0.95 of torch._scaled_mm, stretch 1 | 1.20 (700 TFLOP/s) |" in lines
    assert "| work | bar | NVIDIA H200 |" in lines


def test_a_wrong_result_has_no_figure() -> None:
    wrong = {"matmul": file("matmul", {"name": HEADLINES[5].row, "wrong": "bits", "verdict": "WRONG"})}
    assert gpu_figures.headline_cell(HEADLINES[5], wrong) == "WRONG"


def test_every_headline_is_a_case_with_its_bar() -> None:
    cases = {suite: {case.name: case.bar for case in gpu_run.cases(suite, HOPPER)} for suite in SUITES}
    for headline in HEADLINES:
        assert cases[headline.suite][headline.row] == headline.bar


def test_a_table_has_every_row_and_what_it_belongs_to() -> None:
    text = gpu_figures.table(SUITE_FILES)
    assert text.startswith("# NVIDIA H200")
    assert "driver 580.1, CUDA 13.0, torch 2.11.0, torchao absent" in text
    assert "4300 GB/s" in text
    assert (
        "| 100.0 (98.0 to 103.0) | 700 | 3900 | 1.20 x torch._scaled_mm | 0.93 of copy | 0.9 of floor | met |" in text
    )
    assert "| it |  |  |  |  |  |  | WRONG: bits |" in text
    assert "Peers that are absent: Transformer Engine (not installed)." in text


def test_a_plot_names_every_row_and_is_the_same_twice() -> None:
    text = gpu_figures.plot(SUITE_FILES)
    assert HEADLINES[0].row in text
    assert "8192x8192x8192, e4m3fn x e4m3fn, triton" in text
    assert text == gpu_figures.plot(SUITE_FILES)


def test_results_are_taken_in_and_shown(tmp_path: Path) -> None:
    results, readme, out = tmp_path / "results", tmp_path / "README.md", tmp_path / "out" / "results"
    out.mkdir(parents=True)
    (out / "gpu_matmul.json").write_text(json.dumps(SUITE_FILES["matmul"]))
    assert figures.add(tmp_path / "out", results) == [results / "nvidia-h200" / "gpu_matmul.json"]
    (results / figures.CPU).mkdir()
    for path in (RESULTS / figures.CPU).glob("*.json"):
        (results / figures.CPU / path.name).write_text(path.read_text())
    readme.write_text(README.read_text())
    figures.write(results, readme)
    assert "| 1.20 (700 TFLOP/s) |" in readme.read_text()
    assert (results / "nvidia-h200" / "gpu.md").read_text() == gpu_figures.table({"matmul": SUITE_FILES["matmul"]})
    assert (results / "nvidia-h200" / "gpu.svg").read_text().startswith("<?xml")


MACHINE, ROWS = SUITE_FILES["casts"]["machine"], SUITE_FILES["casts"]["rows"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"complete": False}, "is not complete: run `make gpu-bench` again"),
        ({"machine": MACHINE | {"stand_in": True}}, "the stand-in measures nothing"),
        ({"rows": [ROWS[0] | {"device": STAND_IN}]}, "the stand-in measures nothing"),
        ({"rows": [ROWS[0] | {"device": "NVIDIA A100"}]}, r"is of 'NVIDIA H200', and its rows of \['NVIDIA A100'\]"),
        ({"machine": MACHINE | {"device": ""}, "rows": []}, "is of ''"),
        ({"schema": 1}, "suite 'casts' of schema 1, expected gpu_SUITE.json of 2: run `make gpu-bench` again"),
        ({"suite": "matmul"}, "suite 'matmul' of schema 2"),
        ({"machine": {"device": "NVIDIA H200"}}, r"is no file of results \(KeyError: 'stand_in'\): run"),
        ({"rates": {}}, r"is no file of results \(KeyError"),
        ({"rows": 3}, r"is no file of results \(TypeError"),
    ],
)
def test_what_was_not_measured_is_not_taken_in(change: Any, message: str, tmp_path: Path) -> None:
    """Nor is the file before it, which was."""
    (tmp_path / "gpu_attention.json").write_text(json.dumps(file("attention", row("it"))))
    (tmp_path / "gpu_casts.json").write_text(json.dumps(SUITE_FILES["casts"] | change))
    with pytest.raises(ValueError, match=message):
        figures.add(tmp_path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", ["", '{"schema": ', "[1]"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "gpu_casts.json").write_text(content)
    with pytest.raises(ValueError, match=r"gpu_casts.json is no file of results"):
        figures.add(tmp_path, tmp_path / "results")


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no gpu_\*\.json: expected the folder of the results"):
        figures.add(tmp_path, tmp_path / "results")


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no <!-- written by"):
        figures.in_readme("# Nothing", "figures")
