"""All 2^32 patterns of binary32, to E4M3 and E5M2: every policy against exact rationals, and against torch.

Rounding to nearest is monotone, so that a format's codes cut the magnitudes of binary32 into runs of patterns with one
code each. Bisection in exact rationals finds where runs start; the expected codes of a chunk are those runs, repeated.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from boundaries import assert_same_codes, bits_of, decoded, each_isa, policies

from fp8sim import _core, casting
from fp8sim.formats import Format, parse
from fp8sim.rounding import Overflow, Rounding

Array = np.ndarray[Any, Any]

FORMATS = [parse("e4m3"), parse("e5m2")]
STEP, SIGN, INFINITY = 2**24, 2**31, 0x7F800000
MODE = Rounding.TIES_TO_EVEN


def number(pattern: int) -> float:
    return float(np.uint32(pattern).view(np.float32))


def first_pattern(holds: Callable[[float], bool]) -> int:
    """The smallest pattern of a finite magnitude for which `holds` is true; it is for all larger ones."""
    low, high = 0, INFINITY - 1
    assert holds(number(high))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(number(middle)) else (middle + 1, high)
    return low


@functools.cache
def starts(fmt: Format) -> Array:
    """The first pattern, without sign, of every run: of each number, of overflow, of infinity, of NaN."""

    def rounded(x: float) -> Any:
        return oracle.round_magnitude(oracle.Fraction(x), False, fmt, MODE)

    values = [fmt.value(code) for code in range(fmt.max_code + 1)]
    found = [first_pattern(lambda x, value=value: rounded(x) >= value) for value in values]  # type: ignore[misc]
    found += [first_pattern(lambda x: rounded(x) > fmt.max), INFINITY, INFINITY + 1]
    return np.array(found)


@functools.cache
def runs(fmt: Format, overflow: Overflow) -> tuple[Array, Array]:
    """(first patterns, codes) of all runs, of positive numbers and then of negative ones."""
    both = np.concatenate([starts(fmt), starts(fmt) + SIGN])
    codes = [oracle.encode(number(pattern), fmt, MODE, overflow) for pattern in both.tolist()]
    return both, np.array(codes)


def expected_codes(fmt: Format, overflow: Overflow, first: int, count: int) -> Array:
    """The codes of `count` patterns from `first` on."""
    begins, codes = runs(fmt, overflow)
    begin = int(np.searchsorted(begins, first, side="right")) - 1
    end = int(np.searchsorted(begins, first + count, side="left"))
    edges = np.concatenate([[first], begins[begin + 1 : end], [first + count]])
    return np.repeat(codes[begin:end], np.diff(edges)).astype(np.uint8)


def check_patterns(fmt: Format, overflow: Overflow, first: int, count: int, out: Array) -> None:
    x = np.arange(first, first + count, dtype=np.uint32).view(np.float32)
    what, expected = f"{fmt} {overflow.name} {_core.isa()}", expected_codes(fmt, overflow, first, count)
    assert_same_codes(casting.encode(x, fmt, overflow=overflow), expected, x, what)
    casting.cast(x, fmt, overflow=overflow, out=out)
    assert_same_codes(bits_of(out), decoded(fmt, "float32").astype(np.uint32)[expected], x, f"cast {what}")


@contextmanager
def all_processors() -> Iterator[None]:
    before = _core.get_num_threads()
    _core.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_patterns_around_every_run(fmt: Format) -> None:
    out = np.empty(64, np.float32)
    for overflow in policies(fmt):
        for begin in runs(fmt, overflow)[0].tolist():
            check_patterns(fmt, overflow, max(begin - 32, 0), 64, out)


@pytest.mark.full
@pytest.mark.parametrize("overflow", list(Overflow))
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_pattern_by_exact_rationals(fmt: Format, overflow: Overflow) -> None:
    out = np.empty(STEP, np.float32)
    with all_processors():
        for first in range(0, 2**32, STEP):
            check_patterns(fmt, overflow, first, STEP, out)


@pytest.mark.full
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_pattern_on_every_instruction_set(fmt: Format) -> None:
    out = np.empty(STEP, np.float32)
    with all_processors():
        for _ in each_isa():
            for first in range(0, 2**32, STEP):
                check_patterns(fmt, Overflow.SATURATE, first, STEP, out)


@pytest.mark.full
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_pattern_against_torch(fmt: Format) -> None:
    largest = float(fmt.max)
    for first in range(0, 2**32, STEP):
        x = np.arange(first, first + STEP, dtype=np.uint32).view(np.float32)
        codes = torch.from_numpy(x).clamp(-largest, largest).to(getattr(torch, fmt.name)).view(torch.uint8).numpy()
        assert_same_codes(casting.encode(x, fmt), codes, x, str(fmt))
