"""`fp8sim._cuda` without a GPU: it builds, imports and checks its arguments; its machine code and arithmetic are right.

What needs a device is in test_hardware*.py. The arithmetic is compiled for the host from the same sources and compared
with `fp8sim._core`, bit for bit.
"""

import importlib.util
import itertools
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from boundaries import FLOATS
from cast_cases import CASES, assert_same_bits, codes_of, default_conversion, inputs, policies
from cuda_on_host import casts

import fp8sim
from fp8sim import casting
from fp8sim.formats import parse
from fp8sim.rounding import resolve

ROOT = Path(__file__).resolve().parents[1]
E4M3 = default_conversion(parse("e4m3"))
SOMEWHERE, ELSEWHERE = 1 << 20, 1 << 21


def nvcc_is_found() -> bool:
    return shutil.which("nvcc") is not None and os.environ.get("FP8SIM_CUDA") != "0"


@pytest.mark.skipif(not nvcc_is_found(), reason="no nvcc on PATH, or FP8SIM_CUDA=0")
def test_module_is_built_where_nvcc_is():
    assert importlib.util.find_spec("fp8sim._cuda"), "nvcc is here: run `make clean install`"


GOOD_CAST = {"source": SOMEWHERE, "target": ELSEWHERE, "size": 1, "dtype": "float32", "conversion": E4M3}
GOOD = {
    "cast": GOOD_CAST,
    "encode": GOOD_CAST | {"code_dtype": "uint8"},
    "decode": GOOD_CAST | {"code_dtype": "uint8"},
}
BAD = [
    ({"source": 0}, "source is a null pointer"),
    ({"target": 0}, "target is a null pointer"),
    ({"target": ELSEWHERE + 1, "dtype": "float16", "code_dtype": "uint16"}, "target=2097153 is not aligned to"),
    ({"size": -1}, "size=-1: expected 0 or more"),
    ({"size": 2**63 - 1}, "reaches beyond the address space"),
    ({"target": SOMEWHERE + 4, "size": 8}, "source and target overlap"),
    ({"dtype": "float8"}, "dtype='float8': use one of float16, bfloat16, float32, float64"),
    ({"dtype": "uint8"}, "dtype='uint8': use one of float16, bfloat16, float32, float64"),
    ({"code_dtype": "float32"}, "code_dtype='float32': use one of uint8, uint16, uint32"),
    ({"conversion": E4M3._replace(rounding=11)}, "conversion: expected what fp8sim.rounding.resolve returns"),
    ({"random_bits": 0}, "random_bits=0: expected 1 to 32"),
    ({"random_bits": 33}, "random_bits=33: expected 1 to 32"),
]


@pytest.mark.parametrize("op", GOOD)
@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_argument_is_named(cuda, op, change, message):
    """Arguments are checked before the device is asked for."""
    known = {*GOOD[op], *(() if op == "decode" else ("random_bits",))}
    change = {name: value for name, value in change.items() if name in known}
    if change:
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(cuda, op)(**GOOD[op] | change)


GOOD_ENCODE_SCALED = {
    "x": SOMEWHERE,
    "codes": ELSEWHERE,
    "shape": (1, 2, 3),
    "dtype": "float32",
    "code_dtype": "uint8",
    "conversion": E4M3,
}
BAD_ENCODE_SCALED = [
    ({"x": 0}, "x is a null pointer"),
    ({"x": SOMEWHERE + 2}, "x=1048578 is not aligned to float32"),
    ({"codes": 0}, "codes is a null pointer"),
    ({"codes": SOMEWHERE + 8}, "x and codes overlap: pass disjoint memory"),
    ({"transposed": SOMEWHERE}, "x and transposed overlap"),
    ({"transposed": ELSEWHERE + 5}, "codes and transposed overlap"),
    ({"shape": (1, -2, 3)}, "shape: expected three lengths of 0 or more"),
    ({"shape": (2**20, 2**20, 2)}, "shape: expected at most 2^40 elements"),
    (
        {"shape": (2**31 + 1, 1, 1), "codes": 1 << 41, "transposed": 1 << 42},
        "shape: expected at most 2^31 tiles of 64 rows and columns to transpose, got 2147483649 matrices of 1 by 1",
    ),
    ({"shape": (1, 2**38, 1), "codes": 1 << 41, "transposed": 1 << 42}, "got 1 matrices of 274877906944 by 1"),
    ({"dtype": "uint8"}, "dtype='uint8': use one of float16, bfloat16, float32, float64"),
    ({"code_dtype": "float32"}, "code_dtype='float32': use one of uint8, uint16, uint32"),
    ({"factor": 1.0, "factor_address": SOMEWHERE}, "factor and factor_address: give one of them"),
    ({"factor_address": SOMEWHERE + 1}, "factor_address=1048577 is not aligned to float32"),
    ({"amax": SOMEWHERE + 1}, "amax=1048577 is not aligned to float32"),
    ({"conversion": E4M3._replace(rounding=11)}, "conversion: expected what fp8sim.rounding.resolve returns"),
    ({"random_bits": 0}, "random_bits=0: expected 1 to 32"),
]

GOOD_MATMUL = {
    "a": SOMEWHERE,
    "b": ELSEWHERE,
    "out": ELSEWHERE << 1,
    "extent": (16, 24, 40, 2),
    "a_dtype": "float8_e4m3fn",
    "b_dtype": "float8_e5m2",
    "out_dtype": "bfloat16",
    "a_strides": (48, 768),
    "b_strides": (48, 0),
}
BAD_MATMUL = [
    ({"a": 0}, "a is a null pointer"),
    ({"b": ELSEWHERE + 8}, "b=2097160 is no multiple of 16 bytes: copy it to memory that is"),
    ({"out": 0}, "out is a null pointer"),
    ({"out": SOMEWHERE + 1}, "out=1048577 is not aligned to bfloat16"),
    ({"out": SOMEWHERE + 2}, "a and out overlap: pass disjoint memory"),
    ({"out": ELSEWHERE + 2}, "b and out overlap: pass disjoint memory"),
    ({"extent": (16, -1, 40, 2)}, "n=-1: expected 0 to 2147482623"),
    ({"extent": (2**31 - 1, 24, 40, 2)}, "m=2147483647: expected 0 to 2147482623"),
    ({"extent": (16, 24, 0, 2)}, "k=0: expected 1 to 2147482623"),
    ({"extent": (16, 24, 40, -2)}, "batches=-2: expected 0 to 2147482623"),
    ({"extent": (2**30, 2**30, 40, 2**30)}, "m, n, batches: the result is larger than the address space"),
    ({"a_dtype": "float32"}, "a_dtype='float32': use one of float8_e4m3fn, float8_e5m2, float16, bfloat16"),
    ({"b_dtype": "float16"}, "a_dtype='float8_e4m3fn', b_dtype='float16': expected the same dtype, or both FP8"),
    ({"out_dtype": "float64"}, "out_dtype='float64': use one of float32, float16, bfloat16"),
    ({"a_strides": (40, 640)}, "a_strides: 40 elements of float8_e4m3fn are no multiple of 16 bytes"),
    ({"a_strides": (48, -16)}, "a_strides: -16 elements of float8_e4m3fn are no multiple of 16 bytes"),
    ({"a_strides": (2**40, 0)}, "a_strides: 1099511627776 elements of float8_e4m3fn are no multiple of 16 bytes below"),
    ({"b_strides": (32, 0)}, "b_strides: rows of 40 elements overlap"),
    ({"a_factors": SOMEWHERE + 2}, "a_factors=1048578 is not aligned to float32"),
    ({"b_factors": SOMEWHERE, "b_factor_strides": (-1, 0)}, "b_factors: strides -1, 0 are below 0"),
    ({"b_factors": ELSEWHERE << 1}, "b_factors and out overlap"),
    (
        {"b_factors": SOMEWHERE, "b_factor_strides": (2**62, 0)},
        "b_factors_strides: 4611686018427387904 elements, 24 times, reach beyond the address space",
    ),
    (
        {"extent": (2**30, 24, 40, 2), "a_strides": (2**34, 0)},
        "a_strides: 17179869184 elements, 1073741824 times, reach beyond the address space",
    ),
]

GOOD_ATTENTION = {
    "query": SOMEWHERE,
    "key": SOMEWHERE << 2,
    "value": SOMEWHERE << 3,
    "out": SOMEWHERE << 4,
    "lse": SOMEWHERE << 5,
    "extent": (2, 4, 2, 33, 40, 72),
    "dtype": "float16",
    "out_dtype": "bfloat16",
    "query_strides": (4 * 33 * 72, 33 * 72, 72),
    "key_strides": (2 * 40 * 72, 40 * 72, 72),
    "value_strides": (2 * 40 * 72, 40 * 72, 72),
    "c": 0.1,
}
QUERY_BYTES, OUT_BYTES = 2 * 4 * 33 * 72 * 2, 2 * 4 * 33 * 72 * 2
BAD_ATTENTION = [
    ({"query": 0}, "query is a null pointer"),
    ({"key": 0}, "key is a null pointer"),
    ({"value": (SOMEWHERE << 3) + 8}, "value=8388616 is no multiple of 16 bytes"),
    ({"out": 0}, "out is a null pointer"),
    ({"out": (SOMEWHERE << 4) + 1}, "out=16777217 is not aligned to bfloat16"),
    ({"lse": 0}, "lse is a null pointer"),
    ({"lse": (SOMEWHERE << 5) + 2}, "lse=33554434 is not aligned to float32"),
    ({"lse": (SOMEWHERE << 4) + OUT_BYTES - 4}, "lse and out overlap: pass disjoint memory"),
    ({"out": SOMEWHERE + QUERY_BYTES - 2}, "query and out overlap"),
    ({"out": (SOMEWHERE << 2) - OUT_BYTES + 2}, "key and out overlap"),
    ({"lse": SOMEWHERE << 3}, "value and lse overlap"),
    ({"extent": (0, 4, 2, 33, 40, 72)}, "batches=0: expected 1 to 2147482623"),
    ({"extent": (2, 4, 0, 33, 40, 72)}, "groups=0: expected 1 to"),
    ({"extent": (2, 4, 3, 33, 40, 72)}, "groups=3: must divide heads=4"),
    ({"extent": (2, 4, 2, 0, 40, 72)}, "queries=0: expected 1 to"),
    ({"extent": (2, 4, 2, 33, -1, 72)}, "keys=-1: expected 1 to"),
    ({"extent": (2, 4, 2, 33, 40, 257)}, "features=257: expected 1 to 256"),
    ({"extent": (2**12, 2**10, 2, 2**10, 40, 72)}, "batches, heads, queries: more than 2^31 rows"),
    ({"dtype": "float32"}, "dtype='float32': use one of float8_e4m3fn"),
    ({"dtype": "float8_e5m2"}, "dtype='float8_e5m2': use one of float8_e4m3fn, float16, bfloat16"),
    ({"out_dtype": "float64"}, "out_dtype='float64': use one of float32, float16, bfloat16"),
    ({"transposed_value": True}, "transposed_value: only values of FP8 are"),
    ({"query_strides": (4 * 33 * 72, 33 * 72, 71)}, "query_strides: 71 elements of float16 are no multiple of 16"),
    ({"key_strides": (-8, 40 * 72, 72)}, "key_strides: -8 elements of float16 are no multiple of 16"),
    (
        {"extent": (2, 4, 2, 33, 2**22, 72), "value_strides": (2**38, 2**38, 2**38 + 2**36)},
        "value_strides: 343597383680 elements, 4194304 times, reach beyond the address space",
    ),
    ({"c": 0.0}, "c=0.000000: expected a positive, finite number"),
    ({"c": float("nan")}, "c=nan: expected a positive, finite number"),
    ({"p_offset": float("inf")}, "p_offset=inf: expected a finite number"),
    ({"window": -1}, "window=-1: expected a number of keys, or 0 for all"),
    ({"offset": 2**31}, "offset=2147483648 is out of range"),
]
MORE_BAD = [("encode_scaled", GOOD_ENCODE_SCALED, *bad) for bad in BAD_ENCODE_SCALED]
MORE_BAD += [("matmul", GOOD_MATMUL, *bad) for bad in BAD_MATMUL]
MORE_BAD += [("attention", GOOD_ATTENTION, *bad) for bad in BAD_ATTENTION]
MORE_BAD += [
    ("attention_block", {"features": 64, "capability": 90}, {"features": 0}, "features=0: expected 1 to 256"),
    ("attention_block", {"features": 64, "capability": 90}, {"capability": 75}, "capability=75: expected 10 * major"),
]


@pytest.mark.parametrize(("op", "good", "change", "message"), MORE_BAD, ids=[bad[3] for bad in MORE_BAD])
def test_bad_argument_of_a_larger_kernel_is_named(cuda, op, good, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(cuda, op)(**good | change)


def test_same_memory_of_two_widths_overlaps(cuda):
    with pytest.raises(ValueError, match="overlap"):
        cuda.encode(**GOOD["encode"] | {"target": SOMEWHERE})


def test_conversion_has_its_length(cuda):
    with pytest.raises(TypeError):
        cuda.cast(**GOOD_CAST | {"conversion": E4M3[:-1]})


def test_nothing_to_do_needs_nothing(cuda):
    cuda.cast(**GOOD_CAST | {"source": 0, "target": 0, "size": 0})
    cuda.encode_scaled(**GOOD_ENCODE_SCALED | {"x": 0, "codes": 0, "shape": (3, 0, 5)})
    cuda.matmul(**GOOD_MATMUL | {"a": 0, "out": 0, "extent": (0, 24, 40, 2)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("op", [*GOOD, "encode_scaled", "matmul", "attention"])
def test_launch_says_that_no_device_is_here(cuda, op):
    good = {**GOOD, "encode_scaled": GOOD_ENCODE_SCALED, "matmul": GOOD_MATMUL, "attention": GOOD_ATTENTION}
    with pytest.raises(RuntimeError, match="no CUDA device: .*use_backend"):
        getattr(cuda, op)(**good[op])


def cuobjdump(module, *arguments: str) -> str:
    """Output of NVIDIA's object dumper, which comes with Triton, for a module."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("Triton, which brings the disassembler, is not installed")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments, module.__file__], capture_output=True, text=True, check=True).stdout


def test_machine_code_for_each_device(cuda):
    """Machine code for A100 and H100/H200, of the probes for Ada too, PTX for what comes later; nothing else."""
    kinds = re.findall(r"Fatbin (elf|ptx) code:\n=+\narch = (\w+)", cuobjdump(cuda))
    assert set(kinds) == {("elf", "sm_80"), ("elf", "sm_89"), ("elf", "sm_90a"), ("ptx", "sm_90")}


KERNELS = {
    "convert_kernel": (44, 64),
    "encode_scaled_kernel": (7, 64),
    "encode_transposing_kernel": (7, 96),
    "matmul_wgmma_kernel": (16, 168),
    "matmul_mma_kernel": (6, 224),
    "attention_wgmma_kernel": (9, 168),
    "attention_mma_kernel": (9, 255),
}
"""How many of each there are for each device, and registers of a thread at most: of 384 threads that share a processor
no more than 168."""


@pytest.fixture(scope="module")
def kernels(cuda):
    """(device, symbol) -> (registers, stack, local memory)."""
    usage = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    found = {}
    for device in ("sm_80", "sm_90a"):
        for symbol, *numbers in re.findall(usage, cuobjdump(cuda, "-res-usage", "-arch", device)):
            found[device, symbol] = tuple(map(int, numbers))
    return found


def test_machine_code_spills_nothing(kernels):
    """No kernel has a stack frame or local memory."""
    for device, (family, (count, registers)) in itertools.product(("sm_80", "sm_90a"), KERNELS.items()):
        used = [kernels[key] for key in kernels if key[0] == device and family in key[1]]
        assert len(used) == count, f"{len(used)} of {family} for {device}"
        assert {(stack, local) for _, stack, local in used} == {(0, 0)}, f"{family} for {device}"
        assert max(number for number, _, _ in used) <= registers, f"{family} for {device}"


def opcodes_of(cuda, kernels, device, family):
    """A kernel's name in C++ -> how often each instruction is in its machine code."""
    symbols = [symbol for where, symbol in kernels if where == device and family in symbol]
    found = {}
    for function in cuobjdump(cuda, "-sass", "-arch", device, "-fun", ",".join(symbols)).split("Function : ")[1:]:
        symbol, code = function.split("\n", 1)
        name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
        instructions = re.findall(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
        found[name.replace("fp8sim::", "")] = Counter(instructions)
    return found


TYPES = {"E4m3": "E4M3", "E5m2": "E5M2", "Float16": "", "Bfloat16": "BF16"}


def test_hopper_multiplies_by_wgmma(cuda, kernels):
    """Each product by the instruction of its types and columns, four to a stage; tiles through the copy engine."""
    tiles = opcodes_of(cuda, kernels, "sm_90a", "matmul_wgmma")
    assert len(tiles) == 16
    for name, code in tiles.items():
        a, b, columns, blocks, promotes = re.search(r"WgmmaTile<(\w+), (\w+), (\d+), (\d+), (\w+)>", name).groups()
        fp8 = a.startswith("E")
        kind = f"QGMMA.64x{columns}x32.F32.{TYPES[a]}.{TYPES[b]}" if fp8 else f"HGMMA.64x{columns}x16.F32.{TYPES[a]}"
        assert {o: n for o, n in code.items() if "MMA" in o} == {kind.rstrip("."): 4}, name
        loads = {"UTMALDG.3D": 1, "UTMALDG.3D.MULTICAST": 1} if blocks == "2" else {"UTMALDG.3D": 2}
        assert {o: n for o, n in code.items() if o.startswith("UTMALDG")} == loads, name
        assert code["USETMAXREG.TRY_ALLOC.CTAPOOL"] == code["USETMAXREG.DEALLOC.CTAPOOL"] == 1, name
        assert any(o.startswith("STG.E.128") for o in code), name
        # ptxas waits for each product by itself where registers of running ones are touched.
        waits = 1 if promotes == "true" else 2
        assert (code["WARPGROUP.ARRIVE"], code["WARPGROUP.DEPBAR.LE"]) == (1, waits), f"{name}: products run one by one"
        # A barrier that orders more than it must waits for all memory or empties the cache: only clusters that meet do.
        assert (code["MEMBAR.ALL.GPU"], code["CCTL.IVALL"]) == (2, 2), name


def test_ampere_multiplies_by_mma(cuda, kernels):
    """FP8 as binary16; 16 bytes at a time, straight to shared memory."""
    tiles = opcodes_of(cuda, kernels, "sm_80", "matmul_mma")
    assert len(tiles) == 6
    for name, code in tiles.items():
        kind = "HMMA.16816.F32.BF16" if "Bfloat16" in name else "HMMA.16816.F32"
        assert {o for o in code if "MMA" in o} == {kind}, name
        assert any(o.startswith("LDGSTS.E.BYPASS.128") for o in code), name


def test_hopper_attends_by_wgmma(cuda, kernels):
    """Logits from rows of features; values of 16 bits are read across, FP8 ones along their keys."""
    tiles = opcodes_of(cuda, kernels, "sm_90a", "attention_wgmma")
    assert len(tiles) == 9
    for name, code in tiles.items():
        type_, features = re.search(r"AttentionWgmmaTile<(\w+), (\d+)>", name).groups()
        keys = 64 if features == "256" else 128
        kind = "QGMMA.64x{}x32.F32.E4M3.E4M3" if type_ == "E4m3" else "HGMMA.64x{}x16.F32." + TYPES[type_]
        products = {kind.format(columns).rstrip(".") for columns in (keys, features)}
        assert {o for o in code if "MMA" in o} == products, name
        # For the first block its logits; for every other one the first of two running products, then both; the last.
        assert (code["WARPGROUP.ARRIVE"], code["WARPGROUP.DEPBAR.LE"]) == (4, 4), f"{name}: products run one by one"
        assert not any(o.startswith("STS") for o in code), f"{name}: probabilities leave their registers"
        assert {o for o in code if o.startswith("UTMALDG")} == {"UTMALDG.4D"}, name
        assert (code["MEMBAR.ALL.GPU"], code["CCTL.IVALL"]) == (0, 0), name
        assert code["USETMAXREG.TRY_ALLOC.CTAPOOL"] == code["USETMAXREG.DEALLOC.CTAPOOL"] == 1, name


def test_ampere_attends_by_mma(cuda, kernels):
    tiles = opcodes_of(cuda, kernels, "sm_80", "attention_mma")
    assert len(tiles) == 9
    for name, code in tiles.items():
        kind = "HMMA.16816.F32.BF16" if "Bfloat16" in name else "HMMA.16816.F32"
        assert {o for o in code if "MMA" in o} == {kind}, name
        assert any(o.startswith("LDGSTS.E.BYPASS.128") for o in code), name


@pytest.fixture(scope="session")
def cast_on_host(tmp_path_factory):
    """The kernel of casts on a CPU."""
    return casts.build(tmp_path_factory.mktemp("cuda_on_host"))


def convert_on_host(function, source, target_dtype, conversion, *, start=0, **random):
    """`start`: how many elements the target is away from an aligned address."""
    memory = np.full(source.size + start + 16, 7, target_dtype)
    target = memory[start : start + source.size]
    dtypes = source.dtype.name, target.dtype.name
    casts.convert(function, source.ctypes.data, target.ctypes.data, source.size, dtypes, conversion, **random)
    assert (memory[:start] == 7).all()
    assert (memory[start + source.size :] == 7).all()
    return target.reshape(source.shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_every_code_and_number_is_that_of_core(cast_on_host, fmt, dtype):
    x = inputs(fmt, dtype)
    for mode, overflow, random in policies(fmt):
        conversion, what = resolve(fmt, mode, overflow), f"{mode.name} {overflow.name}"
        codes = fp8sim.encode(x, fmt, rounding=mode, overflow=overflow, **random)
        values = fp8sim.cast(x, fmt, rounding=mode, overflow=overflow, **random)
        assert_same_bits(convert_on_host(cast_on_host, x, codes.dtype, conversion, **random), codes, what)
        assert_same_bits(convert_on_host(cast_on_host, x, x.dtype, conversion, **random), values, what)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_every_decoded_number_is_that_of_core(cast_on_host, fmt, dtype):
    codes = np.array(codes_of(fmt), casting.code_dtype(fmt))
    actual = convert_on_host(cast_on_host, codes, FLOATS[dtype], default_conversion(fmt))
    assert_same_bits(actual, fp8sim.decode(codes, fmt, dtype=FLOATS[dtype]), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1"])
def test_any_size_and_alignment(cast_on_host, fmt, dtype):
    """Whole packs and single elements, of a few blocks; numbers that the quick way takes, and some that it does not."""
    conversion = default_conversion(parse(fmt))
    x = torch.randn(3 * 256 * 16 + 5, generator=torch.Generator().manual_seed(0)) * 2
    x[1000:1200:7] = torch.tensor([math.inf, -math.inf, math.nan, 1e6, -1e6])[torch.arange(29) % 5]
    x = x.to(getattr(torch, dtype))
    for first, start, size in itertools.product((0, 1), (0, 1, 3), (1, 15, 4099, 12288)):
        part = x[first : first + size]
        raw = part.view(torch.int16).numpy().view(FLOATS[dtype]) if dtype == "bfloat16" else part.numpy()
        codes, values = fp8sim.encode(raw, fmt), fp8sim.cast(raw, fmt)
        for target in (codes, values):
            actual = convert_on_host(cast_on_host, raw, target.dtype, conversion, start=start)
            assert_same_bits(actual, target, f"{first} {start} {size}")
