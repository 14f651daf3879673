"""The hot loops are vector code, as the machine code of the built extension shows: none stops being so unnoticed.

Loops are written on vector types (csrc/cpu/lanes.hpp). What a compiler cannot do with them it does element by element:
it takes each element out, works on it, and puts it back, which is some thirty instructions for one.
"""

import platform
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from fp8sim import _core

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 machine code"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump, of binutils"),
]

LOOPS = ("fast_loop", "encode_loop", "decode_loop", "widen_loop", "narrow_loop")
REGISTERS = ("zmm", "ymm", "xmm")  # AVX-512, AVX2, SSE2: one instance of every loop uses each
MOVES = ("vmov", "mov", "vbroadcast", "vpbroadcast")
ELEMENT_BY_ELEMENT = re.compile(
    r"v?p(extr|insr)[bwdq]?|(sh[lr]|sa[rl]|ro[rl])x?[bwlq]?|i?(mul|div)[bwlq]?|bsr|lzcnt|v?(add|sub|mul|div|min|max|cvt\w*)s[sd]"
)
FEW, MOST_SCALAR = 4, 0.5
"""Scalar instructions, for pointers and for what remains after the last vector: so many, and so many more for each
vector instruction. At most 3 + 0.4 when this was written; a single operation done element by element adds some 30."""


@dataclass(frozen=True)
class Loop:
    """One instance of a loop."""

    name: str
    register: str
    """The widest that it uses; "" for none."""
    vector: int
    scalar: int


def loop_of(name: str, instructions: list[tuple[str, str]]) -> Loop:
    register = next((r for r in REGISTERS if any(f"%{r}" in operands for _, operands in instructions)), "")
    vector = sum(f"%{register}" in rest and not op.startswith(MOVES) for op, rest in instructions) if register else 0
    return Loop(name, register, vector, sum(bool(ELEMENT_BY_ELEMENT.fullmatch(op)) for op, _ in instructions))


def loops_in(binary: str | Path) -> list[Loop]:
    """Every instance of a hot loop in an object file or library."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for function in re.split(r"\n(?=[0-9a-f]+ <)", listing):
        name = re.match(r"[0-9a-f]+ <(\w+)[^>]*>:", function)
        if name and re.search(rf"\d({'|'.join(LOOPS)})[IEN]", name[1]):
            found.append(loop_of(name[1], re.findall(r"^ +[0-9a-f]+:\t(\S+) *(.*)", function, re.MULTILINE)))
    return found


def slow_loops(loops: list[Loop]) -> list[Loop]:
    return [loop for loop in loops if loop.scalar > FEW + MOST_SCALAR * loop.vector]


@pytest.fixture(scope="module")
def loops() -> list[Loop]:
    return loops_in(_core.__file__)


def test_every_kind_of_loop_is_found(loops: list[Loop]) -> None:
    for kind in LOOPS:
        assert any(kind in loop.name for loop in loops), f"no {kind} in {_core.__file__}: was it renamed?"


def test_every_loop_uses_the_registers_of_its_instruction_set(loops: list[Loop]) -> None:
    registers = defaultdict(list)
    for loop in loops:
        registers[loop.name].append(loop.register)
    times = {name: Counter(found) for name, found in registers.items()}
    wrong = {name: found for name, found in times.items() if set(found) != set(REGISTERS) or len({*found.values()}) > 1}
    assert not wrong


def test_no_loop_works_element_by_element(loops: list[Loop]) -> None:
    slow = slow_loops(loops)
    assert not slow
