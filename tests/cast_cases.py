"""Inputs where conversions can go wrong, for every format and dtype: shared by the tests of backends other than C++."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from fp8sim.formats import FORMATS, Format, parse
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# The catalogue, and formats with what it lacks: no zero, beyond binary32's range, more bits than float16.
FORMAT_NAMES = [*FORMATS, "binary8p1se", "binary8p1ue", "binary11p1se", "binary16p3uf", "binary16p12se"]
SEED, STREAM, OFFSET = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 2**64 - 5


def policies(fmt: Format) -> Iterator[tuple[Rounding, Overflow]]:
    """Every mode and overflow policy that the format can represent."""
    for rounding in Rounding:
        for overflow in Overflow:
            try:
                resolve(fmt, rounding, overflow)
            except ValueError:
                continue
            yield rounding, overflow


def random_arguments(rounding: Rounding, random_bits: int) -> dict[str, Any]:
    if not rounding.is_stochastic:
        return {}
    return {"seed": SEED, "stream": STREAM, "offset": OFFSET, "random_bits": random_bits}


def sampled_codes(fmt: Format) -> list[int]:
    """All codes of a narrow format; the ends and an even sample of a wide one."""
    codes = fmt.codes
    if len(codes) <= 512:
        return list(codes)
    step = len(codes) // 256 | 1
    edges = {code for start in (0, fmt.max_code, fmt.sign_bit) for code in range(start - 8, start + 8) if code in codes}
    return sorted(edges | set(codes[::step]))


@functools.cache
def boundary_values(name: str, dtype_name: str) -> torch.Tensor:
    """Values of the format, midpoints, their neighbours in the dtype on both sides, special values, random patterns."""
    fmt, dtype = parse(name), DTYPES[dtype_name]
    numbers = {fmt.to_float(code) for code in sampled_codes(fmt)}
    values = sorted(number for number in numbers if math.isfinite(number))
    midpoints = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    centres = torch.tensor([*values, *midpoints, 2 * values[-1], 2 * values[0]], dtype=torch.float64).to(dtype)
    word = WORDS[dtype.itemsize]
    neighbours = torch.cat([centres.view(word) + step for step in (-1, 0, 1)])
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(word)
    patterns = torch.randint(limits.min, limits.max, (2048,), dtype=word, generator=generator)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan], dtype=dtype).view(word)
    lowest = torch.tensor([1, -1, 2, limits.min + 1, limits.min + 2], dtype=word)
    return torch.cat([neighbours, patterns, special, lowest]).view(dtype)


def conversion_of(name: str, rounding: Rounding, overflow: Overflow) -> Conversion:
    return resolve(parse(name), rounding, overflow)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    __tracebackhide__ = True
    same = actual.contiguous().view(torch.uint8) == expected.contiguous().view(torch.uint8)
    assert bool(same.all()), f"{what}: first difference at byte {int((~same).nonzero()[0])} of {same.numel()}"
