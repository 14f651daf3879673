"""The CUDA kernels on a CPU: their source, compiled for it, on an emulation of what a GPU does around the arithmetic.

Threads are fibers; barriers, the copy engine, asynchronous copies and the tensor cores' instructions are written in
C++ here, from the PTX ISA. Multiplying and adding is csrc/core's. What the hardware may do early or late happens as
early or as late as it may, which `SCHEDULES` lists.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import torch

from fp8sim import mma
from fp8sim.mma.models import core_fields
from fp8sim.mma.plans import GemmPlan

HERE = Path(__file__).resolve().parent
OPERANDS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16]
RESULTS = [torch.float32, torch.float16, torch.bfloat16]
SCHEDULES = [(late, backwards) for late in (0, 1) for backwards in (0, 1)]
"""Whether copies and products happen late, and whether the last thread is the first to run."""


class Extent(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("m", "n", "k", "batches")]


class Matrices(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("per_row", ctypes.c_int64),
        ("per_batch", ctypes.c_int64),
    ]


class RowFactors(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("per_row", ctypes.c_int64), ("per_batch", ctypes.c_int64)]


class Epilogue(ctypes.Structure):
    _fields_ = [
        ("out", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("in_quads", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("a", RowFactors),
        ("b", RowFactors),
    ]


class MatmulJob(ctypes.Structure):
    """`struct MatmulJob` of csrc/cuda/matmul.hpp, and what it is made of above."""

    _fields_ = [
        ("extent", Extent),
        ("a", Matrices),
        ("b", Matrices),
        ("promotes", ctypes.c_bool),
        ("epilogue", Epilogue),
    ]


def build(folder: Path, *, wgmma: bool) -> ctypes.CDLL:
    """The kernels of Hopper, or those of every GPU since Ampere."""
    library = folder / f"on_host_{int(wgmma)}.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    paths = [f"-DFP8SIM_EMULATED_WGMMA={int(wgmma)}", f"-I{HERE}", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run(["g++", *flags, *paths, str(HERE / "matmul_on_host.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def matmul(
    library: ctypes.CDLL,
    a: torch.Tensor,
    b: torch.Tensor,
    plan: GemmPlan,
    *,
    promotes: bool = False,
    scale: float = 1.0,
    a_factors: torch.Tensor | None = None,
    b_factors: torch.Tensor | None = None,
    out: torch.Tensor,
    processors: int = 4,
    schedule: tuple[int, int] = (0, 0),
) -> None:
    """out = a [..., M, K] times b [..., N, K], both with contiguous rows, as the kernel computes it with `processors`.

    Factors are those of rows [..., M] and [..., N]. RuntimeError if threads wait for ever or use memory that is not
    theirs.
    """
    batches = out.shape[0] if out.ndim == 3 else 1
    in_quads = out.shape[-1] % 4 == 0 and out.data_ptr() % (4 * out.element_size()) == 0
    job = MatmulJob(
        Extent(out.shape[-2], out.shape[-1], a.shape[-1], batches),
        _matrices(a),
        _matrices(b),
        promotes,
        Epilogue(
            out.data_ptr(), RESULTS.index(out.dtype), in_quads, scale, _row_factors(a_factors), _row_factors(b_factors)
        ),
    )
    types = [str(x.dtype).removeprefix("torch.") for x in (a, b)]
    fields = core_fields(mma.resolve(plan, *types))
    model = (ctypes.c_int32 * len(fields))(*fields)
    error = ctypes.create_string_buffer(1000)
    order = (ctypes.c_int * 3)(processors, *schedule)
    if library.matmul_on_host(ctypes.byref(job), model, order, error, ctypes.c_size_t(len(error))) != 0:
        raise RuntimeError(error.value.decode())


def _matrices(x: torch.Tensor) -> Matrices:
    per_batch = x.stride(0) if x.ndim == 3 and x.shape[0] > 1 else 0
    return Matrices(x.data_ptr(), OPERANDS.index(x.dtype), x.stride(-2), per_batch)


def _row_factors(factors: torch.Tensor | None) -> RowFactors:
    if factors is None:
        return RowFactors(None, 0, 0)
    shape: Any = factors.stride()
    return RowFactors(factors.data_ptr(), shape[-1] if factors.numel() > 1 else 0, shape[0] if factors.ndim == 2 else 0)
