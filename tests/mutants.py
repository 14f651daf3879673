"""Do the tests notice wrong arithmetic? Plants one fault at a time in csrc/core and runs the tests of casts.

    python tests/mutants.py [--count 130] [--seed 0] [--lines TEXT]

A fault is a changed comparison, constant, shift or operator. Prints the survivors and the share that was killed; exit
1 below 95 %. A survivor may compute the same as the original: `EQUIVALENT` says of which that was found, and why.

Only the portable loops are compiled again, and tests run in a fork of a process that has imported everything but
fp8sim: some ten seconds for each fault.
"""

import argparse
import importlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]
MUTATED_UNIT = "cast_portable.cpp"  # the only translation unit of _core that computes with them
LOOPS = ("test_known_faults.py", "test_rounding.py", "test_random_bits.py", "test_loops.py")
ELEMENTS = (
    *LOOPS,
    "test_cuda.py::test_element_decode_is_that_of_core",
    "test_cuda.py::test_element_arithmetic_is_that_of_core",
)
TESTS = {"core/rounding.hpp": LOOPS, "core/random.hpp": ELEMENTS, "core/element.hpp": ELEMENTS}
"""Files that faults are planted in, and the tests that ought to notice, the quickest first."""
HEAVY = ("torch", "ml_dtypes", "gfloat", "triton", "numpy", "hypothesis.strategies", "pytest")
"""What the tests import beside fp8sim: imported once, before the first fork."""
TIMEOUT = 180
BROKEN = 70  # exit status of a child that failed before the tests
FLAGS = ["-std=c++17", "-O1", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-pthread", "-w"]
SMALLER_AND_LARGER = ("return a < b ? a : b;", "return a > b ? a : b;")  # of equals, either will do
# Starts of lines that compute nothing or, after a switch over all modes, are not reached.
NO_ARITHMETIC = ("#", "template", "using", "static_assert", "case", "FP8SIM_HD", "return 0;", *SMALLER_AND_LARGER)
ENOUGH = 0.95
_UNUSED = "a signed format uses no `below`, and `narrow` names the rounding mode itself"
_DETERMINISTIC = "ties to even takes no random bits"
_SLOWER = "a path that is right for more formats, and slower"
_ANY_BUT_ZERO = "whether it has -0: all but 0 say yes"
_LOWEST_BIT = "significands are shifted left by one: the lowest bit is 0"
_LOW_ENOUGH = "any exponent below that of every format will do"
EQUIVALENT = {
    "core/element.hpp: 0,      0x8000, 0x7F80, 0xFF80, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, [1]};": _UNUSED,
    "core/element.hpp: 0,      0x8000, 0x7C00, 0xFC00, 0x7C00, 0xFC00, 0x7E00, 0xFE00, [1]};": _UNUSED,
    "core/element.hpp: return {7,      -126,   0, 0x7F7F, 0x7F80, 0x7F81, 0x8000, 1,      [1],": _UNUSED,
    "core/element.hpp: return {10,     -14,    0, 0x7BFF, 0x7C00, 0x7C01, 0x8000, 1,      [1],": _UNUSED,
    "core/element.hpp: return static_cast<uint16_t>(encode<Rounding::kTiesToEven, Reach::kAligned, "
    "uint32_t>(bits, to_bfloat16(), [1], 32));": _DETERMINISTIC,
    "core/element.hpp: return static_cast<uint16_t>(encode<Rounding::kTiesToEven, Reach::kWithin, "
    "uint32_t>(bits, to_float16(), 0, [33]));": _DETERMINISTIC,
    "core/element.hpp: code = encode<Rounding::kTiesToEven, Reach::kWithin, Bits>(widen(From{}, x), c, [1], 32);": (
        _DETERMINISTIC
    ),
    "core/element.hpp: return {7,      -126,   0, 0x7F7F, 0x7F80, 0x7F81, 0x8000, [2],      0,": _ANY_BUT_ZERO,
    "core/element.hpp: return {10,     -14,    0, 0x7BFF, 0x7C00, 0x7C01, 0x8000, [2],      0,": _ANY_BUT_ZERO,
    "core/rounding.hpp: field = subnormal ? (bits == 0 ? Int{} - (1 << [18]) : normalised) : field;": _LOW_ENOUGH,
    "core/rounding.hpp: field = subnormal ? (bits == 0 ? Int{} - ([2] << 17) : normalised) : field;": _LOW_ENOUGH,
    "core/rounding.hpp: static constexpr int kAllShiftedOut = kFractionBits + [4];": "all is shifted out",
    "core/rounding.hpp: const Word far = smaller<Word>(scaled.shift, all_shifted_out + [33]);": "all is shifted out",
    "core/rounding.hpp: const Word left = where(n [>=] shift, n - shift);": "0 either way where they are equal",
    "core/rounding.hpp: const Word right = smaller<Word>(where(shift [>=] n, shift - n), all_shifted_out);": "as left",
    "core/rounding.hpp: const Word rest_mask = half + half - [2];": _LOWEST_BIT,
    "core/rounding.hpp: const int64_t highest_field = lowest_field + binades [+] 1;": _SLOWER,
    "core/rounding.hpp: const int64_t binades = larger<int64_t>(largest [<<] c.mantissa_bits, 1);": _SLOWER,
    "core/rounding.hpp: const int64_t binades = larger<int64_t>(largest >> c.mantissa_bits, [2]);": _SLOWER,
    "core/rounding.hpp: return emin_field > [2] ? Reach::kWithin : (emin_field == 1 ? Reach::kAligned : "
    "Reach::kBeyond);": _SLOWER,
    "core/rounding.hpp: return emin_field > 1 ? Reach::kWithin : (emin_field == [2] ? Reach::kAligned : "
    "Reach::kBeyond);": _SLOWER,
}
"""Faults that change no result, and why: each was printed as a survivor and then looked into. They do not count."""

# pattern -> replacements, tried at every occurrence outside of comments
OPERATORS = {
    r"(?<=[\w)] )<(?= [\w(])": ["<=", ">"],
    r"(?<=[\w)] )>(?= [\w(])": [">=", "<"],
    r"(?<=[\w)] )>=(?= )": [">"],
    r"(?<=[\w)] )==(?= )": ["!="],
    r"(?<=[\w)] )!=(?= )": ["=="],
    r"(?<=[\w)}] )\+(?= [\w(])": ["-"],
    r"(?<=[\w)}] )-(?= [\w(])": ["+"],
    r"(?<=[\w)}] )&(?= [\w(~])": ["|"],
    r"(?<=[\w)}] )\|(?= [\w(])": ["&"],
    r"(?<=[\w)}] )<<(?= )": [">>"],
    r"(?<=[\w)}] )>>(?= )": ["<<"],
    r"(?<=[ (\-+])\b[0-9]+\b(?![.\w])": ["{+1}"],
}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        line = (ROOT / "csrc" / self.file).read_text().splitlines()[self.line]
        changed = f"{line[: self.start]}[{self.text}]{line[self.end :]}"
        return f"{self.file}: {changed.strip()}"

    def apply(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        line = lines[self.line]
        lines[self.line] = line[: self.start] + self.text + line[self.end :]
        return "".join(lines)


def candidates(file: str) -> list[Mutant]:
    found = []
    for number, line in enumerate((ROOT / "csrc" / file).read_text().splitlines()):
        code = line.split("//")[0]
        if code.lstrip().startswith(NO_ARITHMETIC):
            continue
        for pattern, replacements in OPERATORS.items():
            for match in re.finditer(pattern, code):
                for text in replacements:
                    new = str(int(match.group()) + 1) if text == "{+1}" else text
                    found.append(Mutant(file, number, *match.span(), new))
    return found


def compile_object(source: Path, target: Path, csrc: Path) -> bool:
    folders = [csrc, sysconfig.get_path("include"), pybind11.get_include()]
    command = ["g++", *FLAGS, *(f"-I{folder}" for folder in folders), "-c", str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compile_the_rest(folder: Path) -> list[str]:
    """Objects of everything that no fault changes, for the portable instruction set alone."""
    objects = []
    for source in (ROOT / "csrc/cpu").glob("*.cpp"):
        if "avx" not in source.stem and source.name != MUTATED_UNIT:
            objects.append(str(folder / f"{source.stem}.o"))
            assert compile_object(source, Path(objects[-1]), ROOT / "csrc"), f"{source} does not compile"
    return objects


def build(mutant: Mutant, folder: Path, rest: list[str]) -> bool:
    """Whether the mutant compiles to folder/_core.so, beside copies of the sources and the tests that read them."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "csrc" / mutant.file).write_text(mutant.apply((ROOT / "csrc" / mutant.file).read_text()))
    if not compile_object(folder / "csrc/cpu" / MUTATED_UNIT, folder / "mutant.o", folder / "csrc"):
        return False
    objects = [str(folder / "mutant.o"), *rest]
    subprocess.run(["g++", "-shared", "-pthread", *objects, "-o", str(folder / "_core.so")], check=True)
    return True


def run_tests(folder: Path, tests: tuple[str, ...]) -> int:
    """In a child process: the exit status of the tests against folder/_core.so."""
    signal.alarm(TIMEOUT)
    os.chdir(folder)
    spec = importlib.util.spec_from_file_location("fp8sim._core", folder / "_core.so")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["fp8sim._core"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hypothesis.settings.register_profile("mutants", phases=[hypothesis.Phase.generate], database=None)
    hypothesis.settings.load_profile("mutants")
    arguments = [
        "-x",
        "-q",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *(f"tests/{test}" for test in tests),
    ]
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    return int(pytest.main(arguments))


def survives(mutant: Mutant, rest: list[str]) -> bool | None:
    """Whether all tests pass with the mutant; None if it does not compile."""
    with tempfile.TemporaryDirectory() as name:
        if not build(mutant, Path(name), rest):
            return None
        child = os.fork()
        if child == 0:
            status = BROKEN
            try:
                status = run_tests(Path(name), TESTS[mutant.file])
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) not in (3, 4, 5, BROKEN), "the tests did not run"
        return status == 0


def check_without_fault(rest: list[str]) -> None:
    """AssertionError unless the tests pass where nothing was changed: otherwise they would kill everything."""
    for file in TESTS:
        assert survives(Mutant(file, 0, 0, 0, ""), rest), f"the tests of {file} fail without any fault"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=130, help="how many faults to plant")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--lines", default="", help="only faults whose printed line contains this")
    arguments = parser.parse_args()
    everything = [mutant for file in TESTS for mutant in candidates(file) if arguments.lines in str(mutant)]
    possible = [mutant for mutant in everything if str(mutant) not in EQUIVALENT]
    chosen = random.Random(arguments.seed).sample(possible, min(arguments.count, len(possible)))
    for name in filter(importlib.util.find_spec, HEAVY):
        importlib.import_module(name)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        rest = compile_the_rest(Path(folder))
        check_without_fault(rest)
        for mutant in chosen:
            results.append(survives(mutant, rest))
            print({True: "SURVIVED", False: "killed  ", None: "invalid "}[results[-1]], mutant, flush=True)
    built = [survived for survived in results if survived is not None]
    share = built.count(False) / max(1, len(built))
    print(f"{built.count(False)} of {len(built)} faults killed ({share:.1%}), of {len(possible)} possible ones")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
