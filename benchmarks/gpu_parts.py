"""The parts of `make gpu`: what each runs on a GPU, and on the stand-in where there is none."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / f"gpu-{sys.implementation.cache_tag}"
"""Where fp8sim is built for this interpreter: `lib` is what the parts import."""

SUITES = ("casts", "fused", "matmul", "linear", "attention", "attention_backward")
"""Of benchmarks: each is `benchmarks/gpu_<suite>.py`, whose `cases(device)` are its rows."""

PIECES = ("build", "test", "probe", "bench")

MARKED = re.compile(r"mark\.gpu|interpreter\.is_enabled|triton_tensors")
"""In the source of a test that runs on the GPU where there is one."""

NO_TESTS = 5
"""What pytest returns where every test is deselected."""


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        piece: one of `PIECES`.
        name: unique; begins with the piece.
        arguments: of the interpreter; {out} is the folder of the results.
        rehearsal: those on the stand-in.
        tool: a program, with arguments, that runs the interpreter on a GPU; without it the part is absent.
        needs_cuda: whether the part is absent on a GPU if fp8sim was built without nvcc.
        variables: of the environment, on a GPU.
        always: whether the part is run although it is done; it knows itself what is left to do.
    """

    piece: str
    name: str
    arguments: tuple[str, ...]
    rehearsal: tuple[str, ...]
    tool: tuple[str, ...] = ()
    needs_cuda: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    always: bool = False

    def command(self, out: Path, stand_in: bool) -> list[str]:
        tool, arguments = ((), self.rehearsal) if stand_in else (self.tool, self.arguments)
        return [*tool, sys.executable, *(argument.replace("{out}", str(out)) for argument in arguments)]

    def missing(self, stand_in: bool) -> str:
        """Why the part is absent here; empty if it is not."""
        program = self.command(Path(), stand_in)[0]
        if shutil.which(program) is None:
            return f"{program} is not installed here"
        if self.needs_cuda and not stand_in and not list((BUILD / "lib" / "fp8sim").glob("_cuda*.so")):
            return "fp8sim was built without nvcc, so there is no fp8sim._cuda"
        return ""

    def accepted(self, stand_in: bool) -> tuple[int, ...]:
        """Exit statuses of a part that is done."""
        return (0, NO_TESTS) if stand_in and self.piece == "test" else (0,)


def parts() -> Iterator[Part]:
    """All, in the order in which they are run."""
    yield _build()
    yield from (_tests(path) for path in tests_of_the_gpu())
    yield from (_sanitized(tool) for tool in ("memcheck", "racecheck"))
    yield from _probes()
    yield from (_suite(suite) for suite in SUITES)


def _build() -> Part:
    lib = str(BUILD / "lib")
    folders = ("--build-lib", lib, "--build-temp", str(BUILD / "objects"))
    command = ("setup.py", "--quiet", "egg_info", "--egg-base", lib, "build", *folders)
    return Part("build", "build", command, command, always=True)


def tests_of_the_gpu() -> list[Path]:
    """Files of tests that run on a GPU where there is one; those of machine code need none."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in found if MARKED.search(path.read_text())]


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default")
"""Warnings are shown instead of being errors: libraries there are of other versions than in constraints.txt."""


def _tests(path: Path) -> Part:
    """The tests of a file; of test_hardware*.py the long ones, too."""
    marks = ("-m", "gpu") if path.stem.startswith("test_hardware") else ()
    file = str(path.relative_to(ROOT))
    return Part(
        "test",
        path.stem.replace("_", "-"),
        (*PYTEST, *_workers(), *marks, file),
        (*PYTEST, "--collect-only", *marks, file),
    )


def _workers() -> tuple[str, ...]:
    """Several processes, where pytest-xdist is there: much of the time goes into predictions on the CPU."""
    count = min(4, (os.cpu_count() or 1) // 2)
    return ("-n", str(count)) if count > 1 and importlib.util.find_spec("xdist") else ()


def _sanitized(tool: str) -> Part:
    """Tests marked `sanitized`, under NVIDIA's checker of memory accesses or of races."""
    files = tuple(str(path.relative_to(ROOT)) for path in tests_of_the_gpu())
    selection = ("-m", "sanitized", *files)
    return Part(
        "test",
        f"test-{tool}",
        (*PYTEST, *selection),
        (*PYTEST, "--collect-only", *selection),
        tool=("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"),
        variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


RANDOM_OUTPUTS = 10_000_000
"""Of each instruction, of random bits."""


def _probes() -> Iterator[Part]:
    """What instructions compute, with golden vectors; random bits beside the simulator; GEMMs; conversions."""
    probe, stand_in = ("-m", "fp8sim.cli", "probe", "--only"), ("--stand-in", "sm90")
    golden = (*probe, "instructions", "--out", "{out}/results", "--golden", "{out}/golden")
    random = (*probe, "instructions", "--out", "{out}/random", "--random")
    few = (*stand_in, "--instruction", "sm90.wgmma.e4m3")
    yield Part("probe", "probe-golden", golden, (*golden, *few), needs_cuda=True)
    yield Part("probe", "probe-random", (*random, str(RANDOM_OUTPUTS)), (*random, "1000", *few), needs_cuda=True)
    gemms = (*probe, "gemms", "--out", "{out}/results/gemms")
    yield Part("probe", "probe-gemms", gemms, (*gemms, *stand_in, "--gemm-k", "128"))
    conversions = (*probe, "conversions", "--out", "{out}/results/conversions")
    yield Part("probe", "probe-conversions", conversions, (*conversions, *stand_in))


def _suite(suite: str) -> Part:
    command = ("-m", "benchmarks.gpu_run", "--suite", suite, "--out", "{out}/results")
    tuned = (*command, "--tune", "{out}/results/tuning.json")
    return Part("bench", f"bench-{suite}", tuned, (*command, "--stand-in", "--samples", "2"))
