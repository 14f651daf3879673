"""The CUDA casts on a CPU: the source of their kernel, compiled for it, behind the functions of `_cuda`."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import cuda_on_host
import fp8sim
from fp8sim.cuda import cast as cast_module
from fp8sim.cuda import launching
from fp8sim.rounding import Conversion


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


def build(folder: Path) -> Any:
    """The function of `cast_on_host.cpp`, which takes a `CastJob`."""
    return cuda_on_host.build("cast", folder).cast_on_host


def convert(
    function: Any,
    source: int,
    target: int,
    size: int,
    dtypes: tuple[str, str],
    conversion: Sequence[int],
    *,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
    schedule: tuple[int, int] = (0, 0),
) -> None:
    """Run what `build` returned, from memory at one address to memory at another, in an order of `SCHEDULES`."""
    fields = (ctypes.c_uint32 * len(conversion))(*conversion)
    kinds = (cuda_on_host.DTYPES.index(name) for name in dtypes)
    job = CastJob(source, target, size, *kinds, fields, seed, stream, offset, random_bits)
    error, order = ctypes.create_string_buffer(1000), (ctypes.c_int * 3)(1, *schedule)
    assert function(ctypes.byref(job), order, error, ctypes.c_size_t(len(error))) == 0, error.value.decode()


class StandIn:
    """The casts of `fp8sim._cuda`, for memory of the CPU."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.schedule = (0, 0)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """CPU tensors pass for CUDA tensors."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fp8sim, "_cuda", self, raising=False)
            patch.setattr(launching, "require_cuda", lambda argument, x: None)
            patch.setattr(cast_module, "current_stream", lambda x: contextlib.nullcontext(0))
            yield

    def cast(
        self, source: int, target: int, size: int, dtype: str, conversion: Any, cuda_stream: int, **random: int
    ) -> None:
        self._convert(source, target, size, (dtype, dtype), conversion, **random)

    def encode(
        self,
        source: int,
        target: int,
        size: int,
        dtype: str,
        codes: str,
        conversion: Any,
        cuda_stream: int,
        **bits: int,
    ) -> None:
        self._convert(source, target, size, (dtype, codes), conversion, **bits)

    def decode(
        self, source: int, target: int, size: int, codes: str, dtype: str, conversion: Any, cuda_stream: int
    ) -> None:
        self._convert(source, target, size, (codes, dtype), conversion)

    def _convert(self, *arguments: Any, **random: int) -> None:
        convert(self.function, *arguments, **random, schedule=self.schedule)
