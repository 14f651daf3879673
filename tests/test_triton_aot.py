"""The machine code of the Triton kernels for sm_80 and sm_90, compiled as their launchers would, with no GPU needed.

The interpreter cannot see what decides speed, and one fault of correctness: Triton 3.6 computes FP8 products with FP16
instructions if the accumulation is asked for in the wrong way.
"""

import re
from collections import Counter

import pytest

pytest.importorskip("triton")

import triton_aot

SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448}
"""Bytes that one program may use."""

REGISTERS = {
    "sm_80 cast float32 to e4m3": 31,
    "sm_80 decode e4m3 to bfloat16": 28,
    "sm_80 encode float32 to e2m1, stochastic": 40,
    "sm_80 matmul bfloat16 x bfloat16": 153,
    "sm_90 cast bfloat16 to e4m3": 32,
    "sm_90 cast float32 to e4m3": 37,
    "sm_90 encode float32 to e2m1, stochastic": 40,
    "sm_90 matmul bfloat16 x bfloat16": 110,
    "sm_90 matmul e4m3 x e4m3": 106,
    "sm_90 matmul e4m3 x e4m3, ragged": 114,
    "sm_90 matmul e5m2 x e4m3": 106,
}
"""Registers per thread at most, as of Triton 3.6.0. These kernels are compiled in every test run."""

REFUSED = "sm_80 matmul e4m3 x e4m3"
FAULTY = "sm_90 matmul e4m3 x e4m3, exact"
TENSOR_CORE = {
    ("sm_90", "e4m3 x e4m3"): "QGMMA.64x128x32.F32.E4M3.E4M3",
    ("sm_90", "e5m2 x e4m3"): "QGMMA.64x128x32.F32.E5M2.E4M3",
    ("sm_90", "bfloat16 x bfloat16"): "HGMMA.64x128x16.F32.BF16",
    ("sm_90", "float16 x float16"): "HGMMA.64x128x16.F32",
    ("sm_80", "bfloat16 x bfloat16"): "HMMA.16816.F32.BF16",
    ("sm_80", "float16 x float16"): "HMMA.16816.F32",
}

triton_aot.define_cases()
REST = sorted(set(triton_aot.CASES) - {*REGISTERS, REFUSED, f"{REFUSED}, ragged", FAULTY})


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return triton_aot.compile_all([*REGISTERS, REFUSED, FAULTY], tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def other_reports(tmp_path_factory):
    return triton_aot.compile_all(REST, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("name", REGISTERS)
def test_machine_code(reports, name):
    report = require_compiled(reports[name])
    check_machine_code(name, report)
    assert report["registers"] <= REGISTERS[name], f"{report['registers']} registers"


@pytest.mark.full
@pytest.mark.parametrize("name", REST)
def test_machine_code_of_the_other_kernels(other_reports, name):
    check_machine_code(name, require_compiled(other_reports[name]))


def require_compiled(report):
    assert "error" not in report, report.get("error")
    return report


def check_machine_code(name, report):
    architecture, kernel = name.split(" ", 1)
    families = count_families(report["opcodes"])
    assert (report["stack"], families["LDL"], families["STL"]) == (0, 0, 0), "registers spill to memory"
    assert report["shared"] <= SHARED_MEMORY[architecture]
    if kernel.startswith("matmul"):
        check_products(architecture, kernel, report["opcodes"], families)
    else:
        check_integer_arithmetic(name, report, families)


def check_products(architecture, kernel, opcodes, families):
    operands = re.search(r"matmul (\w+ x \w+)", kernel).group(1)
    expected = TENSOR_CORE[architecture, operands]
    assert opcodes.get(expected, 0) > 0, f"no {expected} among {sorted(opcodes)}"
    products = {family for family in families if family.endswith("MMA")}
    assert products == {expected.split(".")[0]}, "products are computed by another instruction, too"
    assert opcodes.get("LDGSTS.E.BYPASS.128", 0) > 0, "loads are not 16 bytes wide, straight to shared memory"


def check_integer_arithmetic(name, report, families):
    """No conversion between floating-point types, whatever the formats: what is left makes integers floating-point."""
    assert not {"F2F", "F2FP", "F2I"} & set(families)
    assert not re.search(r"cvt\.\w+(\.satfinite)?\.(e4m3|e5m2|bf16|f16)", report["ptx"])
    wide = [opcode for opcode in report["opcodes"] if re.match(r"LDG\.E\.(64|128)$", opcode)]
    assert wide, f"loads of {name} are narrow"


def count_families(opcodes):
    families = Counter()
    for opcode, count in opcodes.items():
        families[opcode.split(".")[0]] += count
    return families


def test_fp8_products_are_refused_by_the_compiler_on_sm_80(reports):
    """Why the launcher asks for a newer GPU; once this compiles, it can ask for less."""
    assert "fp8e4nv not supported in this architecture" in reports[REFUSED]["error"]


def test_an_exact_accumulator_would_lose_fp8_tensor_cores(reports):
    """The fault that `check_products` is for."""
    opcodes = require_compiled(reports[FAULTY])["opcodes"]
    with pytest.raises(AssertionError, match="no QGMMA"):
        check_products("sm_90", "matmul e4m3 x e4m3", opcodes, count_families(opcodes))
