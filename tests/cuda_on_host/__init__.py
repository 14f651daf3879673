"""The CUDA kernels on a CPU: their source, compiled for it, on an emulation of what a GPU does around the arithmetic.

Threads are fibers; barriers, the copy engine, asynchronous copies and the tensor cores' instructions are written in
C++ here, from the PTX ISA. Multiplying and adding is csrc/core's. What the hardware may do early or late happens as
early or as late as it may, which `SCHEDULES` lists. `StandIn` takes the place of `fp8sim._cuda`.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8sim
from fp8sim import mma
from fp8sim.cuda import attention as attention_module
from fp8sim.cuda import encode_scaled as encode_scaled_module
from fp8sim.cuda import launching
from fp8sim.cuda import matmul as matmul_module
from fp8sim.mma.models import core_fields
from fp8sim.rounding import Conversion

HERE = Path(__file__).resolve().parent
OPERANDS = ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"]
RESULTS = ["float32", "float16", "bfloat16"]
DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8", "uint16", "uint32"]
SCHEDULES = [(late, backwards) for late in (0, 1) for backwards in (0, 1)]
"""Whether copies and products happen late, and whether the last thread is the first to run."""

KERNELS = {
    "wgmma": ("matmul_on_host.cpp", "-DFP8SIM_EMULATED_WGMMA=1"),
    "mma": ("matmul_on_host.cpp", "-DFP8SIM_EMULATED_WGMMA=0"),
    "attention_wgmma": ("attention_on_host.cpp", "-DFP8SIM_EMULATED_WGMMA=1"),
    "attention_mma": ("attention_on_host.cpp", "-DFP8SIM_EMULATED_WGMMA=0"),
    "encode_scaled": ("encode_scaled_on_host.cpp", "-O1"),
    "cast": ("cast_on_host.cpp", "-O1"),
}


def build(name: str, folder: Path) -> ctypes.CDLL:
    """The library of one of `KERNELS`: products of Hopper, or of every GPU since Ampere; encode_scaled; casts."""
    source, option = KERNELS[name]
    library = folder / f"{name}.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", option]
    paths = [f"-I{HERE}", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run(["g++", *flags, *paths, str(HERE / source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def build_all(names: Sequence[str], folder: Path) -> dict[str, ctypes.CDLL]:
    """Several of them, compiled side by side."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: build(name, folder), names), strict=True))


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
        ("extent", ctypes.c_int32 * 4),
        ("a", Matrices),
        ("b", Matrices),
        ("promotes", ctypes.c_bool),
        ("epilogue", Epilogue),
    ]


class EncodeScaledJob(ctypes.Structure):
    """`struct EncodeScaledJob` of csrc/cuda/encode_scaled.hpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("transposed", ctypes.c_void_p),
        ("amax", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 3),
        ("source_dtype", ctypes.c_int),
        ("target_dtype", ctypes.c_int),
        ("meets", ctypes.c_int),
        ("factor", ctypes.c_float),
        ("factor_address", ctypes.c_void_p),
        ("conversion", ctypes.c_uint32 * len(Conversion._fields)),
        ("seed", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("random_bits", ctypes.c_int),
    ]


class HeadMatrices(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_void_p),
        ("per_row", ctypes.c_int64),
        ("per_head", ctypes.c_int64),
        ("per_batch", ctypes.c_int64),
    ]


class Mask(ctypes.Structure):
    _fields_ = [("causal", ctypes.c_bool), ("window", ctypes.c_int32), ("offset", ctypes.c_int32)]


class AttentionJob(ctypes.Structure):
    """`struct AttentionJob` of csrc/cuda/attention.hpp, and what it is made of above."""

    _fields_ = [
        ("extent", ctypes.c_int32 * 6),
        ("type", ctypes.c_int),
        ("q", HeadMatrices),
        ("k", HeadMatrices),
        ("v", HeadMatrices),
        ("transposed_values", ctypes.c_bool),
        ("mask", Mask),
        ("softmax", ctypes.c_float * 3),
        ("out", ctypes.c_void_p),
        ("out_type", ctypes.c_int),
        ("lse", ctypes.c_void_p),
    ]


@dataclass
class StandIn:
    """In the place of `fp8sim._cuda`: the same functions, for memory of the CPU.

    RuntimeError if threads wait for ever or use shared memory that is not theirs.
    """

    libraries: dict[str, ctypes.CDLL]
    capability: tuple[int, int] = (9, 0)
    processors: int = 4
    schedule: tuple[int, int] = (0, 0)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """CPU tensors pass for CUDA tensors of a device of that capability."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fp8sim, "_cuda", self, raising=False)
            patch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
            patch.setattr(launching, "require_cuda", lambda argument, x: None)
            for module in (attention_module, matmul_module, encode_scaled_module):
                patch.setattr(module, "current_stream", lambda x: contextlib.nullcontext(0))
            for module in (attention_module, matmul_module):
                patch.setattr(module, "require_cuda", lambda argument, x: None)
            yield

    def matmul(
        self,
        a: int,
        b: int,
        out: int,
        extent: Sequence[int],
        a_dtype: str,
        b_dtype: str,
        out_dtype: str,
        a_strides: Sequence[int],
        b_strides: Sequence[int],
        cuda_stream: int = 0,
        *,
        fast_accumulation: bool = True,
        scale: float = 1.0,
        a_factors: int = 0,
        a_factor_strides: Sequence[int] = (0, 0),
        b_factors: int = 0,
        b_factor_strides: Sequence[int] = (0, 0),
    ) -> None:
        types, result = [OPERANDS.index(name) for name in (a_dtype, b_dtype)], RESULTS.index(out_dtype)
        if 0 in (extent[0], extent[1], extent[3]):
            return
        job = MatmulJob(
            (ctypes.c_int32 * 4)(*extent),
            Matrices(a, types[0], *a_strides),
            Matrices(b, types[1], *b_strides),
            not fast_accumulation and max(types) < 2,
            Epilogue(
                out,
                result,
                extent[1] % 4 == 0 and out % (16 if result == 0 else 8) == 0,
                scale,
                RowFactors(a_factors, *a_factor_strides),
                RowFactors(b_factors, *b_factor_strides),
            ),
        )
        library = self.libraries["wgmma" if self.capability == (9, 0) else "mma"]
        self._run(library.matmul_on_host, ctypes.byref(job), self._model(a_dtype, b_dtype))

    def attention(
        self,
        query: int,
        key: int,
        value: int,
        out: int,
        lse: int,
        extent: Sequence[int],
        dtype: str,
        out_dtype: str,
        query_strides: Sequence[int],
        key_strides: Sequence[int],
        value_strides: Sequence[int],
        c: float,
        cuda_stream: int = 0,
        *,
        transposed_value: bool = False,
        causal: bool = False,
        window: int = 0,
        offset: int = 0,
        p_offset: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        strides = (query_strides, key_strides, value_strides)
        operands = (
            HeadMatrices(address, *reversed(per)) for address, per in zip((query, key, value), strides, strict=True)
        )
        job = AttentionJob(
            (ctypes.c_int32 * 6)(*extent),
            OPERANDS.index(dtype),
            *operands,
            transposed_value,
            Mask(causal, window, offset),
            (ctypes.c_float * 3)(c, p_offset, factor),
            out,
            RESULTS.index(out_dtype),
            lse,
        )
        name = "wgmma" if self.capability == (9, 0) else "mma"
        library = self.libraries[f"attention_{name}"]
        self._run(library.attention_on_host, ctypes.byref(job), self._model(dtype, dtype))

    def attention_block(self, features: int, capability: int) -> int:
        block: int = next(iter(self.libraries.values())).attention_block_on_host(features, capability)
        return block

    def _model(self, a_dtype: str, b_dtype: str) -> ctypes.Array[ctypes.c_int32]:
        """The instruction's, for a product of operands of these dtypes."""
        plan = matmul_module.plan_of(getattr(torch, a_dtype), self.capability)
        fields = core_fields(mma.resolve(plan, a_dtype, b_dtype))
        return (ctypes.c_int32 * len(fields))(*fields)

    def encode_scaled(
        self,
        x: int,
        codes: int,
        shape: Sequence[int],
        dtype: str,
        code_dtype: str,
        conversion: Sequence[int],
        cuda_stream: int = 0,
        *,
        factor: float | None = None,
        factor_address: int = 0,
        fused: bool = False,
        amax: int = 0,
        transposed: int = 0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
        random_bits: int = 32,
    ) -> None:
        if 0 in shape:
            return
        meets = 0 if factor is None and factor_address == 0 else 2 if fused else 1
        job = EncodeScaledJob(
            x,
            codes,
            transposed,
            amax,
            (ctypes.c_int64 * 3)(*shape),
            DTYPES.index(dtype),
            DTYPES.index(code_dtype),
            meets,
            0.0 if factor is None else factor,
            factor_address,
            (ctypes.c_uint32 * len(conversion))(*conversion),
            seed,
            stream,
            offset,
            random_bits,
        )
        self._run(self.libraries["encode_scaled"].encode_scaled_on_host, ctypes.byref(job))

    def _run(self, function: Any, *arguments: Any) -> None:
        error = ctypes.create_string_buffer(1000)
        order = (ctypes.c_int * 3)(self.processors, *self.schedule)
        if function(*arguments, order, error, ctypes.c_size_t(len(error))) != 0:
            raise RuntimeError(error.value.decode())
