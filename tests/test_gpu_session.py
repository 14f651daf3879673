"""`make gpu`: parts are taken up where they were left, and one that fails does not keep the others from running."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_parts
from benchmarks.gpu import Session
from benchmarks.gpu_parts import Part

ROOT = gpu_parts.ROOT


def part(name: str, code: str, piece: str = "bench", **changes: Any) -> Part:
    """A part that runs Python `code`, on the stand-in too."""
    return Part(piece, name, ("-c", code), ("-c", code), **changes)


def ran(out: Path, name: str) -> str:
    return f"open({str(out / name)!r}, 'a').write('x')"


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hash of the sources, which a test may change."""
    known = ["a"]
    monkeypatch.setattr(gpu, "sources", lambda: known[0])
    return known


def run(session: Session, *chosen: Part) -> tuple[int, str]:
    said: list[str] = []
    return gpu.run_all(session, chosen, said.append), "\n".join(said)


def record(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "done" / f"{name}.json").read_text())
    return found


def test_a_part_that_is_done_is_not_run_again(tmp_path: Path, sources: list[str]) -> None:
    one, counted = part("bench-one", ran(tmp_path, "runs")), tmp_path / "runs"
    session = Session(tmp_path, stand_in=True)
    assert run(session, one)[0] == 0
    assert run(session, one) == (0, f"{'bench-one':<28} done before")
    assert counted.read_text() == "x"
    sources[0] = "b"
    run(session, one)
    assert counted.read_text() == "xx"
    run(Session(tmp_path, stand_in=True, force=True), one)
    assert counted.read_text() == "xxx"
    run(Session(tmp_path, stand_in=False), one)  # what the stand-in did is not done on a GPU
    assert counted.read_text() == "xxxx"
    assert record(tmp_path, "bench-one")["stand_in"] is False


def test_what_was_done_on_another_gpu_or_with_another_torch_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, session = part("bench-one", "print(1)"), Session(tmp_path, stand_in=True)
    run(session, one)
    assert session.is_done(one)
    monkeypatch.setattr(gpu, "smi", lambda: "NVIDIA A100, 580.1")
    assert not session.is_done(one)
    run(session, one)
    assert session.is_done(one)
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "9.9")
    assert not session.is_done(one)


@pytest.mark.parametrize("content", ["", '{"part": ', "[1]", "{}"])
def test_a_record_that_cannot_be_read_is_none(content: str, tmp_path: Path) -> None:
    one, session = part("bench-one", ran(tmp_path, "runs")), Session(tmp_path, stand_in=True)
    run(session, one)
    session.record_of(one).write_text(content)
    run(session, one)
    assert (tmp_path / "runs").read_text() == "xx"


def test_what_is_interrupted_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it was done before: its results are half written."""
    one = part("bench-one", "print(1)")
    run(Session(tmp_path, stand_in=True), one)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_returned", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Session(tmp_path, stand_in=True, force=True), one)
    assert not Session(tmp_path, stand_in=True).is_done(one)
    monkeypatch.setattr(gpu, "parts", lambda: iter([one]))
    monkeypatch.setattr(gpu, "missing", lambda: "")
    assert gpu.main(["--stand-in", "--out", str(tmp_path)]) == 3


def test_a_part_that_is_run_always_is_run_again(tmp_path: Path) -> None:
    always = part("build", ran(tmp_path, "runs"), piece="build", always=True)
    for _ in range(2):
        assert run(Session(tmp_path, stand_in=True), always)[0] == 0
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    broken, fine = part("bench-a", "print('why'); raise SystemExit(7)"), part("bench-b", "print('fine')")
    status, said = run(Session(tmp_path, stand_in=True), broken, fine)
    assert status == 1
    assert "bench-a.log ends: why" in said
    assert [record(tmp_path, name)["verdict"] for name in ("bench-a", "bench-b")] == ["FAILED", "done"]
    assert record(tmp_path, "bench-a")["returned"] == 7
    assert (tmp_path / "logs" / "bench-b.log").read_text() == "fine\n"
    assert not Session(tmp_path, stand_in=True).is_done(broken)


def test_without_its_build_nothing_is_run(tmp_path: Path) -> None:
    build = part("build", "raise SystemExit(1)", piece="build")
    assert run(Session(tmp_path, stand_in=True), build, part("bench-b", ran(tmp_path, "runs")))[0] == 1
    assert not (tmp_path / "runs").exists()


def test_a_part_that_takes_too_long_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = f"import time; time.sleep(2); {ran(tmp_path, 'late')}"
    slow = part("bench-slow", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    start = time.monotonic()
    status, _ = run(Session(tmp_path, stand_in=True, part_seconds=0.7), slow)
    assert (status, record(tmp_path, "bench-slow")["verdict"]) == (1, "TIMED OUT")
    assert time.monotonic() - start < 2
    time.sleep(max(0.0, start + 3 - time.monotonic()))
    assert not (tmp_path / "late").exists()


def test_a_session_that_is_terminated_stops_its_part(tmp_path: Path) -> None:
    """What it started would write into the results of the next session."""
    part_code = f"print(1, flush=True); import time; time.sleep(2); {ran(tmp_path, 'late')}"
    code = (
        "import os, sys; from benchmarks import gpu; gpu.stop_on_terminate(); "
        f"gpu._returned([sys.executable, '-c', {part_code!r}], open({str(tmp_path / 'log')!r}, 'w'), os.environ, 60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "log").exists() and (tmp_path / "log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) != 0
    time.sleep(2.2)
    assert (tmp_path / "log").read_text() == "1\n"
    assert not (tmp_path / "late").exists()


def test_what_there_is_no_time_for_is_left(tmp_path: Path) -> None:
    one = part("bench-one", ran(tmp_path, "runs"))
    status, said = run(Session(tmp_path, stand_in=True, until=time.monotonic() + 1), one)
    assert (status, said.split()[1:3]) == (3, ["left:", "time"])
    assert not (tmp_path / "runs").exists()
    assert run(Session(tmp_path, stand_in=True), one)[0] == 0


def test_a_tool_that_is_not_there_is_named(tmp_path: Path) -> None:
    checked = part("test-memcheck", ran(tmp_path, "runs"), tool=("no-such-sanitizer", "--tool", "memcheck"))
    status, said = run(Session(tmp_path, stand_in=False), checked)
    assert (status, record(tmp_path, "test-memcheck")["verdict"]) == (0, "absent")
    assert "no-such-sanitizer is not installed here" in said
    run(Session(tmp_path, stand_in=True), checked)
    assert (tmp_path / "runs").exists()


def test_a_part_that_needs_the_cuda_kernels_is_absent_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_parts, "BUILD", tmp_path)
    probe = part("probe-one", ran(tmp_path, "runs"), piece="probe", needs_cuda=True)
    status, said = run(Session(tmp_path, stand_in=False), probe)
    assert (status, record(tmp_path, "probe-one")["verdict"]) == (0, "absent")
    assert "fp8sim was built without nvcc" in said
    (tmp_path / "lib" / "fp8sim").mkdir(parents=True)
    (tmp_path / "lib" / "fp8sim" / "_cuda.cpython-312-x86_64-linux-gnu.so").touch()
    assert run(Session(tmp_path, stand_in=False), probe)[0] == 0
    assert (tmp_path / "runs").exists()


def test_tests_that_are_all_deselected_pass_on_the_stand_in_alone(tmp_path: Path) -> None:
    empty = part("test-hardware", f"raise SystemExit({gpu_parts.NO_TESTS})", piece="test")
    assert run(Session(tmp_path, stand_in=True), empty)[0] == 0
    assert run(Session(tmp_path, stand_in=False), empty)[0] == 1


def test_parts_see_the_build_and_not_the_sources(tmp_path: Path) -> None:
    code = "import sys; print(*sys.path[:2], sep='\\n')"
    run(Session(tmp_path, stand_in=True), part("bench-path", code))
    assert (tmp_path / "logs" / "bench-path.log").read_text().split() == [str(gpu_parts.BUILD / "lib"), str(ROOT)]


def test_results_are_packed(tmp_path: Path) -> None:
    run(Session(tmp_path, stand_in=True), part("bench-one", "print(1)"))
    with tarfile.open(gpu.pack(tmp_path)) as archive:
        assert {"done/bench-one.json", "logs/bench-one.log"} <= set(archive.getnames())


# The parts as they are


def test_parts_have_names_of_their_own_and_begin_with_the_build() -> None:
    found = list(gpu_parts.parts())
    assert found[0].piece == "build"
    assert len({part.name for part in found}) == len(found)
    assert all(part.name.startswith(part.piece) for part in found)
    assert {part.piece for part in found} == set(gpu_parts.PIECES)


def test_every_test_that_runs_on_a_gpu_is_a_part() -> None:
    names = {path.stem for path in gpu_parts.tests_of_the_gpu()}
    assert {"test_hardware", "test_triton_cast", "test_triton_matmul_plans", "test_encode_scaled"} <= names
    assert "test_casting" not in names


def test_the_stand_in_rehearses_the_same_files_and_suites() -> None:
    for one in gpu_parts.parts():
        real, rehearsed = (one.command(Path("OUT"), stand_in) for stand_in in (False, True))
        assert [word for word in real if word.startswith("tests/")] == [w for w in rehearsed if w.startswith("tests/")]
        assert all((ROOT / word).exists() for word in rehearsed if word.startswith("tests/"))
        assert {word for word in rehearsed if word.startswith("OUT")} <= set(real)
        assert any(word.startswith("OUT") for word in rehearsed) == (one.piece in ("probe", "bench"))
        assert ("--stand-in" in rehearsed) == (one.piece in ("probe", "bench"))
        assert "--stand-in" not in real


def test_pieces_and_parts_are_chosen_by_name() -> None:
    assert [part.name for part in gpu.chosen_parts([], ["bench-casts"])] == ["build", "bench-casts"]
    assert {part.piece for part in gpu.chosen_parts(["test"], [])} == {"build", "test"}
    assert {part.piece for part in gpu.chosen_parts([], [])} == set(gpu_parts.PIECES)
    with pytest.raises(SystemExit, match="no part bench-cats: there are build, test-"):
        gpu.chosen_parts([], ["bench-cats"])


def test_an_interpreter_that_lacks_something_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.10.1+cu128", "triton": "3.6.0", "setuptools": "84.2.1"}
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "rich" else name)
    assert gpu.missing() == "torch 2.11 or later, rich"
    versions["torch"] = "2.11.0"
    assert gpu.missing() == "rich"
    assert gpu.main(["--check"]) == 1


ABSENT = (
    *("ml_dtypes", "safetensors", "matplotlib", "gfloat", "torchao", "unit_scaling"),
    *("xdist", "pytest_timeout", "pytest_benchmark"),
)
"""What a machine that only lends a GPU may lack."""

WITHOUT = """
import importlib, sys
import pytest
sys.modules.update(dict.fromkeys({absent}))
for name in {modules}:
    importlib.import_module(name)
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *{files}]))
"""


def test_parts_need_no_more_than_is_asked_for() -> None:
    """Every module that a part runs, and every file of tests, is imported without what may be absent."""
    assert not set(ABSENT) & set(gpu.NEEDED)
    modules = ["fp8sim.cli", "benchmarks.gpu_run", *(f"benchmarks.gpu_{suite}" for suite in gpu_parts.SUITES)]
    files = [str(path) for path in gpu_parts.tests_of_the_gpu()]
    code = WITHOUT.format(absent=ABSENT, modules=modules, files=files)
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins are found by what is installed
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=alone
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_piece_is_run_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "parts", lambda: iter([part("build", "print(1)", "build"), part("bench-one", "print(2)")]))
    monkeypatch.setattr(gpu, "missing", lambda: "")
    assert gpu.main(["bench", "--stand-in", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("STAND-IN, no GPU")
    assert f"results: {tmp_path / 'fp8sim-gpu.tar.gz'}" in said
    assert gpu.main(["bench", "--stand-in", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["build", "bench-one"]


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert gpu.main(["bench", "--stand-in", "--out", str(tmp_path / "file")]) == 1
    assert f"cannot write to {tmp_path / 'file'} (File exists): OUT=folder" in capsys.readouterr().out


def test_without_time_there_are_results_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--stand-in", "--out", str(tmp_path / "new"), "--limit", "0"]) == 3
    assert "build                        left: time is up" in capsys.readouterr().out
    assert (tmp_path / "new" / "fp8sim-gpu.tar.gz").exists()
    for limit in ("-1", "nan", "soon"):
        with pytest.raises(SystemExit):
            gpu.main(["--stand-in", "--limit", limit])
        assert f"argument --limit: invalid seconds value: '{limit}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "piece"), [("gpu", ""), ("gpu-test", "test"), ("gpu-probe", "probe"), ("gpu-bench", "bench")]
)
def test_make_passes_its_options_on(target: str, piece: str) -> None:
    options = ["OUT=here", "LIMIT=500", "FORCE=1", "STANDIN=1", "PART=bench-casts bench-linear", "PYTHON=true"]
    command = ["make", "--no-print-directory", "--dry-run", target, *options]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # make may run the tests
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=alone)
    last = done.stdout.strip().splitlines()[-1].split()
    expected = f'"$python" -m benchmarks.gpu {piece} --out "here" --limit 500 --force --stand-in'.split()
    assert last == [*expected, "--part", "bench-casts", "bench-linear"]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_everything_runs_on_the_stand_in(tmp_path: Path) -> None:
    """The build, every file of tests collected, every probe and suite."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--stand-in", "--out", str(tmp_path)]
    without_nvcc = os.environ | {"FP8SIM_CUDA": "0"}  # what nvcc compiles is tested elsewhere, and takes minutes
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=without_nvcc)
    assert done.returncode == 0, done.stdout
    for suite in gpu_parts.SUITES:
        file = json.loads((tmp_path / "results" / f"gpu_{suite}.json").read_text())
        assert file["machine"]["stand_in"]
        assert file["complete"]
        for row in file["rows"]:  # the kernels in CUDA C++ run on a GPU alone
            assert row["verdict"] == ("absent" if ", cuda" in row["name"] else "stand-in"), row["name"]
