"""Outputs as codes: what a hypothesis returns, where codes differ, and how far apart they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import casting, formats
from fp8sim.analysis.explaining.hypothesis import UNROUNDED, Hypothesis
from fp8sim.formats import Nan
from fp8sim.mma.models import operand_dtype

Array = NDArray[Any]


def rounded(sums: Array, hypothesis: Hypothesis, container: str) -> Array:
    """The output's codes, in the format that holds the actual ones.

    Raises:
        ValueError: the container cannot hold the output's numbers.
    """
    name = hypothesis.output
    if (sums.dtype == np.float64) != (name == "float64"):
        raise ValueError(f"a sum in {sums.dtype} is not returned as {name}")
    if name != container and container not in ("float32", "float64"):
        raise ValueError(f"the output's dtype {container} does not hold {name}")
    if hypothesis.through is not None:
        sums = casting.cast(sums, hypothesis.through, overflow="INFINITY")
    if name in UNROUNDED:
        numbers = np.ascontiguousarray(sums.astype(container))
    else:
        codes = casting.encode(sums, name, rounding=hypothesis.plan.rounding, overflow=hypothesis.limit)
        if name == container:
            return codes
        numbers = casting.decode(codes, name, dtype=container)
    return numbers.view(operand_dtype(container))


def numbers_of(codes: Array, fmt: str) -> Array:
    """What codes stand for, in binary64."""
    return codes.view(np.float64) if fmt == "float64" else casting.decode(codes, fmt, dtype="float64")


def differs(x: Array, y: Array, fmt: str) -> NDArray[np.bool_]:
    """Where codes differ; any NaN is any other."""
    wrong: NDArray[np.bool_] = x != y
    if wrong.any():
        wrong = wrong & ~(_is_nan(x, fmt) & _is_nan(y, fmt))
    return wrong


def _is_nan(codes: Array, name: str) -> NDArray[np.bool_]:
    if name == "float64":
        nan: NDArray[np.bool_] = np.isnan(codes.view(np.float64))
        return nan
    fmt = formats.parse(name)
    if fmt.nan is Nan.NEGATIVE_ZERO:
        is_nan: NDArray[np.bool_] = codes == fmt.sign_bit
    else:
        is_nan = (codes & codes.dtype.type(fmt.top_code)) > fmt.max_code + fmt.infinity
    return is_nan


def ordinals(codes: Array, name: str) -> NDArray[np.float64]:
    """Places on the number line in units of codes (`Format.ordinal`); NaN for NaN."""
    if name == "float64":
        patterns = codes.astype(np.uint64)
        sign, magnitude = patterns >> np.uint64(63), (patterns & np.uint64(2**63 - 1)).astype(np.float64)
    else:
        fmt = formats.parse(name)
        sign, magnitude = codes & codes.dtype.type(fmt.sign_bit), (codes & codes.dtype.type(fmt.top_code)).astype(float)
    return np.where(_is_nan(codes, name), np.nan, np.where(sign != 0, -magnitude, magnitude))
