"""The machine code of the Triton kernels for sm_80 and sm_90, compiled as their launchers would, with no GPU needed.

The interpreter cannot see what decides speed, and one fault of correctness: Triton 3.6 computes FP8 products with FP16
instructions if the accumulation is asked for in the wrong way.
"""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")

import triton_aot

SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448}
"""Bytes that one program may use."""

REGISTERS = {
    "sm_80 attention bfloat16 128": 196,
    "sm_80 attention e4m3 128": 196,
    "sm_80 attention backward over keys bfloat16 128": 176,
    "sm_80 attention backward over queries bfloat16 128": 189,
    "sm_80 cast float32 to e4m3": 30,
    "sm_80 decode e4m3 to bfloat16": 26,
    "sm_80 element rms_norm": 78,
    "sm_80 element rms_norm_backward": 100,
    "sm_80 element silu_glu_backward": 117,
    "sm_80 encode float32 to e2m1, stochastic": 32,
    "sm_80 encode_scaled e4m3": 46,
    "sm_80 encode_scaled e4m3, transposed": 64,
    "sm_80 matmul bfloat16 x bfloat16": 170,
    "sm_80 matmul e4m3 x e4m3": 255,
    "sm_80 matmul e4m3 x e4m3, blocks": 255,
    "sm_80 quantize mxfp8": 40,
    "sm_90 amax": 29,
    "sm_90 attention bfloat16 64": 157,
    "sm_90 attention bfloat16 128": 188,
    "sm_90 attention bfloat16 128, causal": 218,
    "sm_90 attention bfloat16 256": 205,
    "sm_90 attention e4m3 64": 194,
    "sm_90 attention e4m3 128": 227,
    "sm_90 attention e4m3 128, causal": 255,
    "sm_90 attention e4m3 256": 223,
    "sm_90 attention backward over keys bfloat16 128": 185,
    "sm_90 attention backward over keys e4m3 128": 189,
    "sm_90 attention backward over queries bfloat16 128": 255,
    "sm_90 attention backward over queries bfloat16 128, ragged": 255,
    "sm_90 attention backward over queries bfloat16 256": 220,
    "sm_90 attention backward over queries e4m3 128": 224,
    "sm_90 attention backward over queries e4m3 256": 255,
    "sm_90 cast bfloat16 to e4m3": 31,
    "sm_90 cast float32 to e4m3": 28,
    "sm_90 element gelu, transposed": 96,
    "sm_90 element rms_norm": 80,
    "sm_90 element rms_norm_backward": 115,
    "sm_90 element silu_glu": 80,
    "sm_90 encode float32 to e2m1, stochastic": 32,
    "sm_90 encode_scaled e4m3": 46,
    "sm_90 encode_scaled e4m3, transposed": 64,
    "sm_90 hardware element rms_norm": 56,
    "sm_90 hardware element rms_norm, transposed": 79,
    "sm_90 hardware element silu_glu": 56,
    "sm_90 hardware element silu_glu_backward, transposed": 127,
    "sm_90 hardware encode_scaled": 64,
    "sm_90 hardware quantize fp8_1x128": 55,
    "sm_90 loss cross_entropy": 64,
    "sm_90 matmul bfloat16 x bfloat16": 166,
    "sm_90 matmul e4m3 x e4m3": 166,
    "sm_90 matmul e4m3 x e4m3, blocks": 168,
    "sm_90 matmul e4m3 x e4m3, merge": 40,
    "sm_90 matmul e4m3 x e4m3, promoted": 160,
    "sm_90 matmul e4m3 x e4m3, ragged": 91,
    "sm_90 matmul e4m3 x e4m3, rows": 236,
    "sm_90 matmul e4m3 x e4m3, split": 61,
    "sm_90 matmul e4m3 x e4m3, to e4m3": 203,
    "sm_90 matmul e5m2 x e4m3": 166,
    "sm_90 quantize fp8_128x128": 93,
    "sm_90 quantize nvfp4_te": 58,
    "sm_90 values transposed e4m3": 32,
}
"""Registers per thread at most, as of Triton 3.6.0. These kernels are compiled in every test run."""

SPILLS = {
    "sm_90 attention backward over queries e4m3 256, everything seen": 56,
    "sm_90 attention backward over queries e4m3 256, shared": 48,
    "sm_90 attention backward over queries e4m3 256, ragged": 152,
    "sm_90 attention backward over queries e4m3 256, packed": 152,
    "sm_80 attention backward over queries bfloat16 256, everything seen": 16,
    "sm_80 attention backward over queries float16 256, everything seen": 16,
}
"""Bytes of the stack at most, where registers spill and no tiles are known with which they do not: two sums of 64 x 256
and the product that is added to one of them take 192 of 255 registers."""

FAULTY = "sm_90 matmul e4m3 x e4m3, exact"
TENSOR_CORE = {
    ("sm_90", "e4m3 x e4m3"): r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3",
    ("sm_90", "e5m2 x e4m3"): r"QGMMA\.64x\d+x32\.F32\.E5M2\.E4M3",
    ("sm_90", "bfloat16 x bfloat16"): r"HGMMA\.64x\d+x16\.F32\.BF16",
    ("sm_90", "float16 x float16"): r"HGMMA\.64x\d+x16\.F32",
    ("sm_80", "e4m3 x e4m3"): r"HMMA\.16816\.F32",
    ("sm_80", "e5m2 x e4m3"): r"HMMA\.16816\.F32",
    ("sm_80", "bfloat16 x bfloat16"): r"HMMA\.16816\.F32\.BF16",
    ("sm_80", "float16 x float16"): r"HMMA\.16816\.F32",
}
"""The only instruction of each product; FP8 is widened to float16 on sm_80."""

ATTENTION = {
    ("sm_90", "e4m3"): r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3",
    ("sm_90", "e5m2"): r"QGMMA\.64x\d+x32\.F32\.E[45]M[32]\.E5M2",
    ("sm_90", "bfloat16"): r"HGMMA\.64x\d+x16\.F32\.BF16",
    ("sm_90", "float16"): r"HGMMA\.64x\d+x16\.F32",
    ("sm_80", "bfloat16"): r"HMMA\.16816\.F32\.BF16",
}
"""Of both products of attention; on sm_80 FP8 is widened to float16 in memory."""

BACKWARD_PRODUCTS = {
    ("sm_90", "bfloat16"): r"HGMMA\.64x\d+x16\.F32\.BF16",
    ("sm_90", "float16"): r"HGMMA\.64x\d+x16\.F32",
    ("sm_90", "e4m3"): r"QGMMA\.64x\d+x32\.F32\.E[45]M[23]\.E[45]M[23]",
    ("sm_80", "bfloat16"): r"HMMA\.16816\.F32\.BF16",
    ("sm_80", "float16"): r"HMMA\.16816\.F32",
}
"""The instructions of an attention's backward pass; FP8 probabilities are E4M3 and gradients E5M2."""

LOADS = {"sm_80": r"LDGSTS\.E\.BYPASS\.128", "sm_90": r"UTMALDG\.[24]D"}
"""How tiles come in: 16 bytes at a time, straight to shared memory; through the copy engine."""

triton_aot.define_cases()
REST = sorted(set(triton_aot.CASES) - {*REGISTERS, FAULTY})


def test_cases_are_named_alike_where_they_are_compiled():
    """There the interpreter is off, which must not change what is offered."""
    command = [
        sys.executable,
        "-c",
        "import triton_aot; triton_aot.define_cases(); print(*triton_aot.CASES, sep='\\n')",
    ]
    done = subprocess.run(command, env=triton_aot.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(triton_aot.CASES)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return triton_aot.compile_all([*REGISTERS, FAULTY], tmp_path_factory.mktemp("triton"))


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


@pytest.mark.full
def test_what_kernels_take_of_a_chip_is_said_where_it_changed(reports, other_reports, capsys):
    """A note, and no failure: another release of Triton allocates otherwise."""
    recorded = json.loads(triton_aot.RECORD.read_text())["registers, shared"]
    found = {n: [r["registers"], r["shared"]] for n, r in (reports | other_reports).items() if "error" not in r}
    with capsys.disabled():
        for name in sorted(found.keys() & recorded.keys()):
            if found[name] != recorded[name]:
                print(f"\n{name}: registers, shared memory {found[name]}, recorded {recorded[name]}")
    assert found.keys() & recorded.keys(), "nothing compared: python tests/triton_aot.py --record"


def require_compiled(report):
    assert "error" not in report, report.get("error")
    return report


def check_machine_code(name, report):
    architecture, kernel = name.split(" ", 1)
    families = count_families(report["opcodes"])
    allowed = next((stack for start, stack in SPILLS.items() if name.startswith(start)), 0)
    assert report["stack"] <= allowed, f"registers spill to {report['stack']} bytes of memory"
    assert allowed or (families["LDL"], families["STL"]) == (0, 0)
    assert report["shared"] <= SHARED_MEMORY[architecture]
    if kernel.startswith("matmul") and not kernel.endswith("merge"):
        check_products(architecture, kernel, report["opcodes"])
    elif "element" in kernel or kernel.startswith("loss"):
        check_element_work(kernel, report, families)
    elif kernel.startswith("attention backward"):
        check_backward(architecture, kernel, report["opcodes"])
    elif kernel.startswith("attention"):
        expected = ATTENTION.get((architecture, kernel.split()[1].rstrip(",")), r"HMMA\.16816\.F32")
        check_tensor_cores(architecture, expected, report["opcodes"])
        if architecture == "sm_90":
            check_softmax(kernel, report["loops"])
    elif kernel.startswith("values"):
        check_memory(report["opcodes"])
    elif kernel.startswith("hardware"):
        check_conversion(report["opcodes"])
    elif not kernel.startswith("matmul"):
        check_integer_arithmetic(name, report, families)


def check_products(architecture, kernel, opcodes):
    operands = re.search(r"matmul (\w+ x \w+)", kernel).group(1)
    check_tensor_cores(architecture, TENSOR_CORE[architecture, operands], opcodes)


def check_tensor_cores(architecture, expected, opcodes):
    products = {opcode for opcode in opcodes if opcode.split(".")[0].endswith("MMA")}
    assert products, f"no {expected} among {sorted(opcodes)}"
    assert all(re.fullmatch(expected, opcode) for opcode in products), f"{products}, expected {expected}"
    assert any(re.fullmatch(LOADS[architecture], opcode) for opcode in opcodes), f"no load {LOADS[architecture]}"


def check_softmax(kernel, loops):
    """Of each loop over keys: one wait for products, unless values pass through registers; exponentials by one
    instruction; FP8 probabilities by the hardware's conversion, and between threads only what a row's maximum and sum
    take. Most exponentials come while a product is under way, if blocks overlap."""
    is_fp8 = kernel.startswith(("attention e4m3", "attention e5m2"))
    default = not re.search(r"\dx\d|packed", kernel)
    overlaps = default or "overlapping" in kernel
    assert loops
    for body in loops:
        counts = count_families(Counter(body))
        waits = sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in body)
        moves = "packed" in kernel or (is_fp8 and not (overlaps or "transposed" in kernel))
        assert 1 <= waits <= 1 + moves, f"{waits} waits for products"
        exponentials = body.count("MUFU.EX2")
        assert counts["MUFU"] == exponentials
        assert counts["FFMA"] <= exponentials + 4, "more than a factor each"
        if overlaps or "transposed" in kernel:
            assert counts["SHFL"] <= 8, f"{counts['SHFL']} exchanges between threads"
            assert counts["STS"] == 0, "probabilities or values pass through shared memory"
        if is_fp8:
            assert any(opcode.startswith("F2FP.SATFINITE") for opcode in body)
        share = under_way(body) / exponentials
        assert share >= 2 / 3 if overlaps else share == 0, f"{share:.0%} of the exponentials overlap a product"


def under_way(body):
    """How many exponentials of a loop come after a product was started and before it is waited for."""
    flies, found = False, 0
    for turn, opcode in itertools.product(range(2), body):
        flies = (flies or opcode.split(".")[0].endswith("GMMA")) and not opcode.startswith("WARPGROUP.DEPBAR")
        found += turn == 1 and flies and opcode == "MUFU.EX2"
    return found


def check_backward(architecture, kernel, opcodes):
    """All products are on the tensor core of the operands' type, and none waits for another."""
    dtype = re.search(r"over \w+ (\w+)", kernel).group(1)
    products = {opcode for opcode in opcodes if opcode.split(".")[0].endswith("MMA")}
    expected = BACKWARD_PRODUCTS[architecture, dtype]
    assert products
    assert all(re.fullmatch(expected, opcode) for opcode in products), f"{products}, expected {expected}"
    waits = sum(n for opcode, n in opcodes.items() if opcode.startswith("WARPGROUP.DEPBAR"))
    assert waits <= 16, f"{waits} waits for products: ptxas serializes them"
    whole = not re.search("ragged|packed", kernel)
    # FP8 by pointers may pass through registers, where it is transposed, in whole vectors all the same.
    by_pointers = r"LDG(STS\.E\.BYPASS|\.E)\.128" if dtype == "e4m3" else LOADS["sm_80"]
    load = LOADS["sm_90"] if architecture == "sm_90" and whole else by_pointers
    assert any(re.fullmatch(load, opcode) for opcode in opcodes), f"no load {load}"


def check_conversion(opcodes):
    assert any(opcode.startswith("F2FP") and "E4M3" in opcode for opcode in opcodes), f"no F2FP in {sorted(opcodes)}"
    check_memory(opcodes)


def check_element_work(kernel, report, families):
    """Whole vectors of elements are read, and eight codes written, at a time; what else moves belongs to a row."""
    opcodes = report["opcodes"]
    narrow = {o: n for o, n in opcodes.items() if o.startswith(("LDG.E", "STG.E")) and not o.endswith(".128")}
    assert opcodes["LDG.E.128"] >= 4, f"loads are {opcodes}"
    assert sum(narrow.values()) <= 11, f"narrow loads and stores are {narrow}"
    converts = any(o.startswith("F2FP") and re.search("E4M3|E5M2", o) for o in opcodes)
    assert converts == (kernel.startswith("hardware") and "numbers" not in kernel)
    if "glu" in kernel or "gelu" in kernel:
        # 32 elements per thread and two functions of each, at most; were tiles computed twice, it would be four.
        assert families["MUFU"] <= 72, f"{families['MUFU']} of 64 expected"
    quotients = re.findall(r"\bdiv\.[\w.]*f32", report["ptx"])
    assert len(quotients) <= kernel.startswith("loss"), "a quotient takes eight instructions"


def check_integer_arithmetic(name, report, families):
    """No conversion between floating-point types but binary32 and binary64, whatever the formats, and none to integers:
    what is left makes integers floating-point. No two operations in one, and subnormals stay."""
    assert "F2FP" not in families
    conversions = {c for c in re.findall(r"\bcvt\.[\w.]+", report["ptx"]) if re.match("f|bf|e", c.split(".")[-1])}
    assert conversions <= {"cvt.f64.f32", "cvt.rn.f32.f64"}
    assert not re.search(r"\bfma\b|\.ftz", report["ptx"])
    assert "mul.f32" not in report["ptx"], "a product that ptxas may fuse with a sum"
    if "encode_scaled" in name or "quantize" in name or "amax" in name:
        check_memory(report["opcodes"])
    else:
        wide = [opcode for opcode in report["opcodes"] if re.match(r"LDG\.E\.(64|128)$", opcode)]
        assert wide, f"loads of {name} are narrow"


def check_memory(opcodes):
    """Elements are read 16 bytes at a time, and codes written so; other loads and stores are of single factors."""
    loads, stores = ({o: n for o, n in opcodes.items() if o.startswith(kind)} for kind in ("LDG.E", "STG.E"))
    assert loads.pop("LDG.E.128", 0) >= 2, f"loads are {loads}"
    assert sum(loads.values()) <= 2, f"loads are {loads}"
    assert sum(n for opcode, n in stores.items() if opcode != "STG.E.128") <= 2, f"stores are {stores}"


def count_families(opcodes):
    families = Counter()
    for opcode, count in opcodes.items():
        families[opcode.split(".")[0]] += count
    return families


def test_an_exact_accumulator_would_lose_fp8_tensor_cores(reports):
    """The fault that `check_products` is for."""
    opcodes = require_compiled(reports[FAULTY])["opcodes"]
    with pytest.raises(AssertionError, match="HMMA.*expected QGMMA"):
        check_products("sm_90", "matmul e4m3 x e4m3", opcodes)
