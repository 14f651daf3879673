"""What kernels other than the C++ loops are compared on: formats, policies, inputs, and how results are compared."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from boundaries import FIXED, FLOATS, MODES, NARROW, ODD, Array, bits_of, boundaries
from boundaries import policies as overflow_policies

from fp8sim.formats import FORMATS, Format, p3109, parse
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve

WIDE = [f for f in FORMATS.values() if f.bits > 8]
CASES = [*NARROW, *WIDE, *ODD, *FIXED, p3109(8, 1), p3109(11, 1), p3109(8, 1, signed=False), p3109(16, 12)]
SEED, STREAM, OFFSET = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 2**64 - 1500  # the stream wraps round among them


def policies(fmt: Format) -> Iterator[tuple[Rounding, Overflow, dict[str, Any]]]:
    """Every mode and overflow policy that the format can represent, with the random bits that the mode takes."""
    for mode in MODES:
        random = {"seed": SEED, "stream": STREAM, "offset": OFFSET, "random_bits": 7 + mode}
        for overflow in overflow_policies(fmt):
            yield mode, overflow, random if mode.is_stochastic else {}


@functools.cache
def inputs(fmt: Format, dtype: str) -> Array:
    """The format's boundaries in that dtype (a sample of a wide one's) and random bit patterns."""
    near = fmt if fmt.bits <= 16 else parse("float16")
    points = boundaries(near, dtype)[:: 1 if fmt.bits <= 8 else 37]
    words = bits_of(points).dtype
    patterns = np.random.default_rng(0).integers(0, np.iinfo(words).max, 2048, words, endpoint=True)
    return np.concatenate([points, patterns.view(FLOATS[dtype])])


@functools.cache
def codes_of(fmt: Format) -> list[int]:
    """All codes of a narrow format; the ends and an even sample of a wide one."""
    if fmt.bits <= 8:
        return list(fmt.codes)
    ends = (0, fmt.max_code, fmt.sign_bit, fmt.codes[-1])
    near = {code for end in ends for code in range(end - 8, end + 8) if code in fmt.codes}
    return sorted(near | set(fmt.codes[:: len(fmt.codes) // 512 + 1]))


def default_conversion(fmt: Format) -> Conversion:
    return resolve(fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)


def assert_same_bits(actual: Array, expected: Array, what: str) -> None:
    __tracebackhide__ = True
    assert actual.dtype == expected.dtype, what
    wrong = np.flatnonzero(actual.view(np.uint8) != expected.view(np.uint8)) // actual.itemsize
    assert not wrong.size, (
        f"{what}: first of {actual.size} at [{wrong[0]}], {actual[wrong[0]]} not {expected[wrong[0]]}"
    )
