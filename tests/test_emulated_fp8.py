"""FP8 `mma.sync` on Hopper and data-centre Blackwell, in machine code: what `Adder.EMULATED` says, and no FP8 unit.

Two HMMA over halves of the products, the first from zero, then an ordinary addition of c: for either k, accumulator and
all types. Nothing runs here, so this says what the compiler makes of the instruction, not what HMMA computes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fp8sim.mma import MODELS, MmaModel
from fp8sim.mma.models import Adder

EMULATED = [model for model in MODELS.values() if model.adder is Adder.EMULATED]
TARGETS = {"sm90": "sm_90a", "sm100": "sm_100a"}
SHORT = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "float32": "f32", "float16": "f16"}
TRITON = importlib.util.find_spec("triton")
CUOBJDUMP = Path(str(TRITON and TRITON.origin)).parent / "backends/nvidia/bin/cuobjdump"

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None or os.environ.get("FP8SIM_CUDA") == "0", reason="needs nvcc"),
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="needs cuobjdump, which comes with Triton"),
]


def name_of(model: MmaModel) -> str:
    return re.sub(r"\W", "_", model.name)


def kernel(model: MmaModel) -> str:
    """A kernel that executes the instruction once on registers read from memory."""
    a, b, d = (SHORT[name] for name in (model.a_format, model.b_format, model.accumulator))
    results, inputs = (4 if d == "f32" else 2), model.k // 8 + model.k // 16
    kind, constraint = ("float", "f") if d == "f32" else ("unsigned", "r")
    at = iter(range(99))
    counts = (results, model.k // 8, model.k // 16, results)
    groups = ["{" + ", ".join(f"%{next(at)}" for _ in range(count)) + "}" for count in counts]
    outputs = ", ".join(f'"={constraint}"(d[{i}])' for i in range(results))
    operands = [f'"r"(p[{i}])' for i in range(inputs)] + [f'"{constraint}"(c[{i}])' for i in range(results)]
    instruction = f"mma.sync.aligned.m16n8k{model.k}.row.col.{d}.{a}.{b}.{d} {', '.join(groups)};"
    return f"""
        extern "C" __global__ void {name_of(model)}(const unsigned* p, {kind}* c) {{
            {kind} d[{results}];
            asm volatile("{instruction}" : {outputs} : {", ".join(operands)});
            for (int i = 0; i < {results}; ++i) c[i] = d[i];
        }}
    """


@pytest.fixture(scope="module", params=TARGETS)
def machine_code(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """An architecture, and the machine code of each of its emulated instructions."""
    folder = tmp_path_factory.mktemp("emulated")
    source, binary = folder / "emulated.cu", folder / "emulated.cubin"
    source.write_text("".join(kernel(model) for model in EMULATED if model.name.startswith(f"{request.param}.")))
    command = ["nvcc", f"-arch={TARGETS[request.param]}", "-cubin", "-o", str(binary), str(source)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if "is not defined for option 'gpu-architecture'" in compiled.stderr:
        pytest.skip(f"nvcc is too old for {TARGETS[request.param]}")
    assert compiled.returncode == 0, compiled.stderr
    listing = subprocess.run([CUOBJDUMP, "-sass", binary], capture_output=True, text=True, check=True).stdout
    _, *functions = re.split(r"Function : (\w+)", listing)
    return request.param, dict(zip(functions[::2], functions[1::2], strict=True))


def test_an_emulated_instruction_is_two_halves_and_an_addition(machine_code: tuple[str, dict[str, str]]) -> None:
    architecture, functions = machine_code
    models = [model for model in EMULATED if model.name.startswith(f"{architecture}.")]
    assert {name_of(model) for model in models} == set(functions)
    assert len(models) == 16
    for model in models:
        code = functions[name_of(model)]
        d = "F32" if model.accumulator == "float32" else "F16"
        products = re.findall(r"(\w*MMA\S*) (\w+), \w+, \w+, (\w+) ;", code)
        assert [name for name, _, _ in products] == [f"HMMA.{'16816' if model.k == 32 else '1688'}.{d}"] * 2, model.name
        (_, first, zero), (_, _, second_adds) = products
        assert (zero, second_adds) == ("RZ", first), model.name
        after = code[code.rindex("HMMA") :]
        additions = re.findall(r"(FADD|HADD2)[^\n;]*", after)
        assert additions == ["FADD"] * 4 if d == "F32" else additions == ["HADD2"] * 2, model.name
        assert "F2FP" in code[: code.index("HMMA")], model.name


def test_the_first_half_is_the_low_pairs_of_registers_and_the_second_the_high_ones(
    machine_code: tuple[str, dict[str, str]],
) -> None:
    _, functions = machine_code
    for name, code in functions.items():
        halves: dict[int, str] = {}  # what each register holds, as the code goes on
        found = []
        for to, half, a, b in re.findall(r"F2FP\S+UNPACK_B R(\d+), R\d+(\.H1|)|HMMA\S* R\d+, R(\d+), R(\d+),", code):
            if to:
                halves[int(to)] = half
            else:
                rows, columns = (2, 1) if "k16" in name else (4, 2)
                registers = [*range(int(a), int(a) + rows), *range(int(b), int(b) + columns)]
                found.append({halves.get(register) for register in registers})
        assert found == [{""}, {".H1"}], name
