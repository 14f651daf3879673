"""`fp8sim._cuda` without a GPU: it builds, imports and checks its arguments; its machine code and arithmetic are right.

What needs a device is in test_hardware.py. The arithmetic is compiled for the host from the same sources and compared
with `fp8sim._core`, bit for bit.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from boundaries import FLOATS
from cast_cases import CASES, assert_same_bits, codes_of, default_conversion, inputs, policies

import fp8sim
from fp8sim import casting
from fp8sim.formats import parse
from fp8sim.rounding import Conversion, resolve

ROOT = Path(__file__).resolve().parents[1]
E4M3 = default_conversion(parse("e4m3"))
SOMEWHERE, ELSEWHERE = 1 << 20, 1 << 21


def nvcc_is_found() -> bool:
    return shutil.which("nvcc") is not None and os.environ.get("FP8SIM_CUDA") != "0"


@pytest.mark.skipif(not nvcc_is_found(), reason="no nvcc on PATH, or FP8SIM_CUDA=0")
def test_module_is_built_where_nvcc_is():
    assert importlib.util.find_spec("fp8sim._cuda"), "nvcc is here: run `make clean install`"


@pytest.fixture
def cuda():
    return pytest.importorskip("fp8sim._cuda", reason="fp8sim was built without nvcc")


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


def test_same_memory_of_two_widths_overlaps(cuda):
    with pytest.raises(ValueError, match="overlap"):
        cuda.encode(**GOOD["encode"] | {"target": SOMEWHERE})


def test_conversion_has_its_length(cuda):
    with pytest.raises(TypeError):
        cuda.cast(**GOOD_CAST | {"conversion": E4M3[:-1]})


def test_nothing_to_do_needs_nothing(cuda):
    cuda.cast(**GOOD_CAST | {"source": 0, "target": 0, "size": 0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("op", GOOD)
def test_launch_says_that_no_device_is_here(cuda, op):
    with pytest.raises(RuntimeError, match="no CUDA device: .*use_backend"):
        getattr(cuda, op)(**GOOD[op])


def cuobjdump(module, *arguments: str) -> str:
    """Output of NVIDIA's object dumper, which comes with Triton, for a module."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("Triton, which brings the disassembler, is not installed")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments, module.__file__], capture_output=True, text=True, check=True).stdout


def test_machine_code_for_each_device(cuda):
    """Machine code for A100 and H100/H200, PTX for what comes later; nothing else."""
    kinds = re.findall(r"Fatbin (elf|ptx) code:\n=+\narch = (\w+)", cuobjdump(cuda))
    assert sorted(kinds) == [("elf", "sm_80"), ("elf", "sm_90a"), ("ptx", "sm_90")]


def test_machine_code_spills_nothing(cuda):
    """44 kernels for each device, none with a stack frame or local memory."""
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", cuobjdump(cuda, "-res-usage"))
    assert len(usage) == 2 * 44
    assert {(stack, local) for _, stack, local in usage} == {("0", "0")}
    assert max(int(registers) for registers, _, _ in usage) <= 64


class CastJob(ctypes.Structure):
    """`struct CastJob` of csrc/cpu/cast_job.hpp."""

    _fields_ = [
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("source_dtype", ctypes.c_int),
        ("target_dtype", ctypes.c_int),
        ("conversion", ctypes.c_uint32 * len(Conversion._fields)),
        ("seed", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("random_bits", ctypes.c_int),
    ]


JOB_DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8", "uint16", "uint32"]


@pytest.fixture(scope="session")
def element_on_host(tmp_path_factory):
    """The CUDA cast's dispatch and element function as a host library."""
    library = tmp_path_factory.mktemp("element") / "element_on_host.so"
    source = ROOT / "tests" / "element_on_host.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library)).convert_on_host


def convert_on_host(function, source, target_dtype, conversion, *, seed=0, stream=0, offset=0, random_bits=32):
    target = np.empty(source.shape, target_dtype)
    fields = (ctypes.c_uint32 * len(conversion))(*conversion)
    dtypes = JOB_DTYPES.index(source.dtype.name), JOB_DTYPES.index(target.dtype.name)
    addresses = source.ctypes.data, target.ctypes.data
    job = CastJob(*addresses, source.size, *dtypes, fields, seed, stream, offset, random_bits)
    function(ctypes.byref(job))
    return target


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_element_arithmetic_is_that_of_core(element_on_host, fmt, dtype):
    x = inputs(fmt, dtype)
    for mode, overflow, random in policies(fmt):
        conversion, what = resolve(fmt, mode, overflow), f"{mode.name} {overflow.name}"
        codes = fp8sim.encode(x, fmt, rounding=mode, overflow=overflow, **random)
        values = fp8sim.cast(x, fmt, rounding=mode, overflow=overflow, **random)
        assert_same_bits(convert_on_host(element_on_host, x, codes.dtype, conversion, **random), codes, what)
        assert_same_bits(convert_on_host(element_on_host, x, x.dtype, conversion, **random), values, what)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_element_decode_is_that_of_core(element_on_host, fmt, dtype):
    codes = np.array(codes_of(fmt), casting.code_dtype(fmt))
    actual = convert_on_host(element_on_host, codes, FLOATS[dtype], default_conversion(fmt))
    assert_same_bits(actual, fp8sim.decode(codes, fmt, dtype=FLOATS[dtype]), dtype)
