"""Do the tests notice wrong arithmetic? Plants one fault at a time in csrc, builds it, and runs the tests of casts.

    python tests/mutants.py [--count 60] [--seed 0] [--jobs 2]

A fault is a changed comparison, constant, shift or operator. Prints the survivors and the share that was killed; exit
1 below 95 %. A survivor may compute the same as the original.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
MUTATED = ("core/rounding.hpp", "cpu/cast_adder.hpp", "cpu/cast_finish.hpp", "cpu/philox_block.hpp")
MUTATED_UNIT = "cast_portable.cpp"  # the only translation unit that computes with them
TESTS = ("test_known_faults.py", "test_rounding.py", "test_random_bits.py", "test_loops.py")
FLAGS = ["-std=c++17", "-O1", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-pthread", "-w"]
SMALLER_AND_LARGER = ("return a < b ? a : b;", "return a > b ? a : b;")  # of equals, either will do
# Starts of lines that compute nothing or, after a switch over all modes, are not reached.
NO_ARITHMETIC = ("#", "template", "using", "static_assert", "case", "FP8SIM_HD", "return 0;", *SMALLER_AND_LARGER)
ENOUGH = 0.95

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
        return f"{self.file}:{self.line + 1}: {line[: self.start]}[{self.text}]{line[self.end :]}".strip()

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


def compile_object(source: Path, target: Path, *includes: Path) -> bool:
    folders = [*includes, ROOT / "csrc", sysconfig.get_path("include"), pybind11.get_include()]
    command = ["g++", *FLAGS, *(f"-I{folder}" for folder in folders), "-c", str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compile_the_rest(folder: Path) -> None:
    """Objects of everything that no mutant changes."""
    for source in (ROOT / "csrc/cpu").glob("*.cpp"):
        if "avx" not in source.stem and source.name != MUTATED_UNIT:
            assert compile_object(source, folder / f"{source.stem}.o"), f"{source} does not compile"


def build(mutant: Mutant, folder: Path, rest: Path) -> bool:
    """Whether the mutant compiles to folder/_core.so, for the portable instruction set."""
    (folder / mutant.file).parent.mkdir(parents=True)
    (folder / mutant.file).write_text(mutant.apply((ROOT / "csrc" / mutant.file).read_text()))
    if not compile_object(ROOT / "csrc/cpu" / MUTATED_UNIT, folder / "mutant.o", folder):
        return False
    objects = [str(path) for path in (folder / "mutant.o", *sorted(rest.glob("*.o")))]
    subprocess.run(["g++", "-shared", "-pthread", *objects, "-o", str(folder / "_core.so")], check=True)
    return True


def survives(mutant: Mutant, rest: Path) -> bool | None:
    """Whether all tests pass with the mutant; None if it does not compile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not build(mutant, folder, rest):
            return None
        (folder / "sitecustomize.py").write_text(
            "import importlib.util, sys\n"
            f"spec = importlib.util.spec_from_file_location('_core', {str(folder / '_core.so')!r})\n"
            "sys.modules['fp8sim._core'] = module = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(module)\n"
        )
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [str(ROOT / "tests" / test) for test in TESTS]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        try:
            return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=600).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=60, help="how many faults to plant")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    arguments = parser.parse_args()
    everything = [mutant for file in MUTATED for mutant in candidates(file)]
    chosen = random.Random(arguments.seed).sample(everything, min(arguments.count, len(everything)))
    results = {}
    with tempfile.TemporaryDirectory() as rest, ThreadPoolExecutor(arguments.jobs) as pool:
        compile_the_rest(Path(rest))
        for mutant, survived in zip(chosen, pool.map(lambda m: survives(m, Path(rest)), chosen), strict=True):
            results[mutant] = survived
            print({True: "SURVIVED", False: "killed  ", None: "invalid "}[survived], mutant, flush=True)
    built = [survived for survived in results.values() if survived is not None]
    share = built.count(False) / max(1, len(built))
    print(f"{built.count(False)} of {len(built)} faults killed ({share:.1%}), of {len(everything)} possible ones")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
