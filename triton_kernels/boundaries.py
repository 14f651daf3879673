"""Conversions between binary32 and bfloat16, float16, E4M3 and E5M2 as NVIDIA GPUs make them, on NumPy arrays.

They serve the interpreter as an independent witness, so nothing of fp8sim's arithmetic is used: a code is looked up
among the boundaries in `boundaries.json`, which were read off NVIDIA's header (`tests/nvidia_header` does it again).
Types have their Triton names: fp32, fp16, bf16, fp8e4nv (E4M3), fp8e5 (E5M2).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_INFINITY = np.uint32(0x7F800000)
_FP16_NAN = np.uint16(0x7FFF)


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(Path(__file__).with_name("boundaries.json").read_text())
    return tables


class _Boundaries:
    """Where the codes of one type begin, on the line of positive binary32 patterns.

    A bucket is all patterns that share their high 16 bits. It holds one boundary at most, so a pattern's code is its
    bucket's first code, or the next one from the bucket's boundary on.
    """

    def __init__(self, first: int, steps: list[int], count: int, nan: list[int]) -> None:
        starts = first + np.concatenate([[0], np.cumsum(np.resize(steps, count - 1))])
        bucket_starts = np.arange(1 << 15) << 16
        self.code = np.searchsorted(starts, bucket_starts, side="right")
        if (np.searchsorted(starts, bucket_starts + 0xFFFF, side="right") - self.code).max() > 1:
            raise ValueError("boundaries closer than 2^16 binary32 patterns: they need smaller buckets")
        self.next_code_from = np.append(starts, 1 << 32)[self.code]
        self.nan = nan

    def encode(self, values: Array, dtype: type[np.unsignedinteger[Any]]) -> Array:
        patterns = values.view(np.uint32)
        magnitude = patterns & np.uint32(0x7FFFFFFF)
        bucket = magnitude >> np.uint32(16)
        code: Array = (self.code.astype(dtype)[bucket] + (magnitude >= self.next_code_from[bucket])).astype(dtype)
        sign_shift = np.uint32(32 - 8 * code.itemsize)
        code |= ((patterns ^ magnitude) >> sign_shift).astype(dtype)
        is_nan = magnitude > _INFINITY
        code[is_nan] = np.asarray(self.nan, dtype)[patterns[is_nan] >> np.uint32(31)]
        return code


@functools.cache
def _boundaries(name: str) -> _Boundaries:
    return _Boundaries(**_tables()["encode"][name])


@functools.cache
def _values(name: str) -> Array:
    return np.array(_tables()["decode"][name], np.uint32).view(np.float32)


def from_float32(values: Array, target: str) -> Array:
    """The codes of type `target` for float32 `values`: ties to even; FP8 saturates, fp16 and bf16 overflow to infinity.

    Returns:
        As `values`, uint8 or uint16; float16 for fp16. NaN becomes the canonical NaN that the GPU gives.

    Raises:
        KeyError: no boundaries for `target`.
    """
    values = np.ascontiguousarray(values, np.float32)
    if target != "fp16":
        return _boundaries(target).encode(values, np.uint16 if target == "bf16" else np.uint8)
    with np.errstate(all="ignore"):
        half = values.astype(np.float16)
    half.view(np.uint16)[np.isnan(values)] = _FP16_NAN
    return half


def to_float32(codes: Array, source: str) -> Array:
    """The float32 values of codes of type `source`; exact.

    Args:
        codes: as `from_float32` returns them.
        source: a type's Triton name.

    Raises:
        KeyError: no values for `source`.
    """
    if source == "fp16":
        return codes.astype(np.float32)
    if source == "bf16":
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return _values(source)[codes]
