"""Number formats as data: which numbers exist and which code stands for each.

A `Format` is a row of numbers and flags; every other property is derived from it, and everything that iterates formats
(C++ and CUDA loops, Triton kernels, tests, the command line) takes a `Format`. To add one, add one line to
`_CATALOGUE`. There are three kinds:

- floating point, `Format(...)`, P3109's by formula (`p3109`);
- fixed point, `fixed_point(8, 6)`;
- a codebook, `Codebook("mine", levels)`: any list of numbers.

What the codes of the first two stand for is in `fp8sim.code_layout`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from fp8sim.code_layout import LARGEST_BIAS, CodeLayout, Nan

__all__ = ["ALIASES", "FORMATS", "Codebook", "Format", "Nan", "fixed_point", "p3109", "p3109_formats", "parse"]


@dataclass(frozen=True)
class Format(CodeLayout):
    """A binary format of 2 to 32 bits; `CodeLayout` has its attributes, the errors, and what its codes stand for.

    `str(fmt)` is its name where that is one of the catalogue or P3109's, else a text that says it all:
    `parse(str(fmt)) == fmt`.
    """

    def __str__(self) -> str:
        with contextlib.suppress(ValueError):  # a label like "binary99p1se" names no format
            if _by_name(self.name) == self:
                return self.name
        if self.twos_complement:
            return f"fixed{self.bits}(fraction={self.bias + self.mantissa_bits - 1}{',symmetric' * self.symmetric})"
        flags = [f"bias={self.bias}", f"nan={self.nan.value}"]
        flags += [name for name, is_on in self._flags().items() if is_on]
        return f"e{self.exponent_bits}m{self.mantissa_bits}({','.join(flags)})"

    def _flags(self) -> dict[str, bool]:
        return {
            "infinity": self.infinity,
            "unsigned": not self.signed,
            "nonzero": not self.zero,
            "finite_domain": self.finite_domain,
        }


@dataclass(frozen=True, init=False)
class Codebook(Format):
    """A list of numbers, the levels, each the number that its index stands for: codes of 1 to 8 bits.

    There is no sign bit, NaN or infinity, and one zero at most. Conversion takes the closest level, and of two equally
    close ones that which the rounding mode names; modes that are not ties to something are refused. The attributes of
    `Format` describe the width alone: `exponent_bits` is that of a code, `mantissa_bits` and `bias` are 0.

    Attributes:
        levels: 2, 4, ... or 256 finite numbers, ascending, the last one positive.

    Raises:
        ValueError: levels that make no codebook; the message says why.
    """

    levels: tuple[float, ...] = ()

    def __init__(self, name: str, levels: Iterable[float]) -> None:
        numbers = tuple(float(level) + 0.0 for level in levels)  # -0 becomes 0
        width = max(len(numbers) - 1, 0).bit_length()
        fields = {"name": name, "exponent_bits": width, "mantissa_bits": 0, "bias": 0, "nan": Nan.NONE}
        for field_name, value in (fields | {"signed": False, "zero": False, "levels": numbers}).items():
            object.__setattr__(self, field_name, value)
        self.__post_init__()

    def _conflicts(self) -> Iterator[tuple[str, bool]]:
        levels, count = self.levels, len(self.levels)
        yield f"a codebook has 2, 4, 8, ... or 256 levels, got {count}", count not in [2**k for k in range(1, 9)]
        yield "levels must be finite", not all(map(math.isfinite, levels))
        ascending = all(low < high for low, high in itertools.pairwise(levels))
        yield "levels must ascend, none of them twice", not ascending
        yield f"the last level must be positive, got {levels[-1:]}", not levels or levels[-1] <= 0

    @property
    def lowest_code(self) -> int:
        """Code of the lowest level: 0."""
        return 0

    @property
    def emin(self) -> int:
        """Exponent of `smallest`."""
        return math.frexp(float(self.smallest))[1] - 1

    @property
    def smallest(self) -> Fraction:
        """The smallest positive level."""
        return min(Fraction(level) for level in self.levels if level > 0)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest positive level."""
        return self.smallest

    def value(self, code: int) -> Fraction:
        """The level that `code` stands for, exactly. ValueError if it is no code of this format."""
        self._split(code)
        return Fraction(self.levels[code])

    def to_float(self, code: int) -> float:
        """The level that `code` stands for. ValueError if it is no code of this format."""
        self._split(code)
        return self.levels[code]

    def __str__(self) -> str:
        with contextlib.suppress(ValueError):
            if _by_name(self.name) == self:
                return self.name
        return f"codebook({','.join(map(repr, self.levels))})"


def fixed_point(
    bits: int, fraction_bits: int, *, signed: bool = True, symmetric: bool = False, name: str = "fixed"
) -> Format:
    """Integers of `bits` bits times 2^-`fraction_bits`; signed ones in two's complement.

    A float with one exponent bit has equally spaced numbers, which are these. Conversion rounds in every mode and
    saturates, since no code is left for NaN and infinities.

    Args:
        bits: of a code, 2 to 25; 2 to 24 without sign.
        fraction_bits: negative for multiples of 2, 4, ...; at most some 32768 either way, as `bias` of a `Format`.
        signed: whether there are negative numbers.
        symmetric: leave the lowest code unused, so that the numbers are -max to max.
        name: a label.

    Raises:
        ValueError: a width that is out of range or no integer; symmetric without sign.
    """
    _check_integer("bits", bits, 2, 24 + signed)
    mantissa_bits = bits - 1 - signed
    _check_integer("fraction_bits", fraction_bits, mantissa_bits - 1 - LARGEST_BIAS, mantissa_bits - 1 + LARGEST_BIAS)
    return Format(
        name,
        exponent_bits=1,
        mantissa_bits=mantissa_bits,
        bias=1 - mantissa_bits + fraction_bits,
        nan=Nan.NONE,
        signed=signed,
        twos_complement=signed,
        symmetric=symmetric,
    )


def _check_integer(argument: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{argument}={value!r}: fixed point takes an integer from {least} to {most} here")


# The quantiles of a normal distribution that QLoRA (Dettmers et al. 2023, appendix E) lists, as float32 numbers.
_NORMAL_QUANTILES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

_CATALOGUE = (
    #      name                 E   M  bias  NaN
    Format("float32", 8, 23, 127, Nan.IEEE, infinity=True),
    Format("tf32", 8, 10, 127, Nan.IEEE, infinity=True),
    Format("float16", 5, 10, 15, Nan.IEEE, infinity=True),
    Format("bfloat16", 8, 7, 127, Nan.IEEE, infinity=True),
    Format("float8_e5m2", 5, 2, 15, Nan.IEEE, infinity=True),
    Format("float8_e4m3fn", 4, 3, 7, Nan.ALL_ONES),
    Format("float8_e4m3", 4, 3, 7, Nan.IEEE, infinity=True),
    Format("float8_e3m4", 3, 4, 3, Nan.IEEE, infinity=True),
    Format("float8_e3m4fn", 3, 4, 3, Nan.ALL_ONES),
    Format("float8_e4m3fnuz", 4, 3, 8, Nan.NEGATIVE_ZERO),
    Format("float8_e5m2fnuz", 5, 2, 16, Nan.NEGATIVE_ZERO),
    Format("float8_e4m3b11fnuz", 4, 3, 11, Nan.NEGATIVE_ZERO),
    Format("float8_e8m0fnu", 8, 0, 127, Nan.ALL_ONES, signed=False, zero=False),
    Format("float6_e2m3fn", 2, 3, 1, Nan.NONE),
    Format("float6_e3m2fn", 3, 2, 3, Nan.NONE),
    Format("float4_e2m1fn", 2, 1, 1, Nan.NONE),
    fixed_point(8, 6, name="int8_mx"),
    fixed_point(8, 6, symmetric=True, name="int8_mx_symmetric"),
    Codebook("normalfloat4", _NORMAL_QUANTILES),
)

FORMATS: Mapping[str, Format] = MappingProxyType({f.name: f for f in _CATALOGUE})
"""The named formats, by name. P3109 names (`binary8p4se`) are made by formula: see `p3109`."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
        "e5m2": "float8_e5m2",
        "e4m3": "float8_e4m3fn",
        "e4m3fn": "float8_e4m3fn",
        "e3m4": "float8_e3m4",
        "e4m3fnuz": "float8_e4m3fnuz",
        "e5m2fnuz": "float8_e5m2fnuz",
        "e4m3b11fnuz": "float8_e4m3b11fnuz",
        "e8m0": "float8_e8m0fnu",
        "e2m3": "float6_e2m3fn",
        "e3m2": "float6_e3m2fn",
        "e2m1": "float4_e2m1fn",
        "nf4": "normalfloat4",
    }
)
"""Short names. (The quantizers `mxint8` and `nf4` add scale factors to the formats int8_mx and normalfloat4.)"""


@functools.cache
def p3109(bits: int, precision: int, *, signed: bool = True, extended: bool = True) -> Format:
    """The P3109 format binary{K}p{P}{s|u}{e|f} with K = `bits` and P = `precision` (P3109 v4.0, section 4).

    Args:
        bits: K, 3 to 16.
        precision: P, significand bits with the hidden one: 1 to K - 1, or to K if unsigned.
        signed: whether there are negative numbers.
        extended: whether there are infinities; without them overflow gives the largest number.

    Raises:
        ValueError: K or P out of range.
    """
    largest = bits - 1 if signed else bits
    if not 3 <= bits <= 16 or not 1 <= precision <= largest:
        raise ValueError(f"P3109 has K = 3..16 bits and P = 1..{'K-1' if signed else 'K'}, got K={bits}, P={precision}")
    return Format(
        f"binary{bits}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}",
        exponent_bits=largest - precision + 1,
        mantissa_bits=precision - 1,
        bias=1 << (largest - precision),
        nan=Nan.NEGATIVE_ZERO if signed else Nan.ALL_ONES,
        infinity=extended,
        signed=signed,
        finite_domain=not extended,
    )


def p3109_formats(bits: int) -> list[Format]:
    """Every P3109 format of K = `bits` bits."""
    return [
        p3109(bits, precision, signed=signed, extended=extended)
        for signed in (True, False)
        for extended in (True, False)
        for precision in range(1, bits + (not signed))
    ]


def parse(text: str | Format, argument: str = "fmt") -> Format:
    """The format that `text`, an `argument`, names: a name, an alias, a P3109 name, or `str()` of any format.

    Raises:
        ValueError: no such format; the message lists the names.
        TypeError: neither text nor a `Format`.
    """
    if isinstance(text, Format):
        return text
    if not isinstance(text, str):
        raise TypeError(
            f"{argument}={text!r} is a {type(text).__name__}: expected a Format or its name, such as 'e4m3'"
        )
    found = _by_name(text) or _from_spec(text.replace(" ", ""))
    if found is None:
        raise ValueError(f"unknown format {text!r}: use one of {', '.join([*FORMATS, *ALIASES])}, or binary8p4se")
    return found


@functools.cache
def _by_name(name: str) -> Format | None:
    if name in FORMATS or name in ALIASES:
        return FORMATS[ALIASES.get(name, name)]
    match = re.fullmatch(r"binary(\d+)p(\d+)([su])([ef])", name)
    if match is None:
        return None
    bits, precision, signedness, domain = match.groups()
    return p3109(int(bits), int(precision), signed=signedness == "s", extended=domain == "e")


@functools.cache
def _from_spec(text: str) -> Format | None:
    """What `str()` makes of a format without a name."""
    if match := re.fullmatch(r"fixed(\d+)\(fraction=(-?\d+)(,symmetric)?\)", text):
        return fixed_point(int(match[1]), int(match[2]), symmetric=match[3] is not None, name=text)
    if match := re.fullmatch(r"codebook\((.*)\)", text):
        return Codebook(text, _levels(match[1]))
    match = re.fullmatch(r"e(\d+)m(\d+)\(bias=(-?\d+),nan=(\w+)((?:,\w+)*)\)", text)
    if match is None:
        return None
    exponent_bits, mantissa_bits, bias, nan, flags = match.groups()
    given = set(filter(None, flags.split(",")))
    unknown = given - {"infinity", "unsigned", "nonzero", "finite_domain"}
    if unknown:
        raise ValueError(f"unknown flags {sorted(unknown)} in format {text!r}")
    return Format(
        text,
        int(exponent_bits),
        int(mantissa_bits),
        int(bias),
        _nan(nan),
        infinity="infinity" in given,
        signed="unsigned" not in given,
        zero="nonzero" not in given,
        finite_domain="finite_domain" in given,
    )


def _nan(name: str) -> Nan:
    if name not in [kind.value for kind in Nan]:
        raise ValueError(f"nan={name}: use one of {', '.join(kind.value for kind in Nan)}")
    return Nan(name)


def _levels(text: str) -> list[float]:
    try:
        return [float(level) for level in text.split(",")]
    except ValueError as error:
        raise ValueError(f"codebook({text}): expected numbers, separated by commas") from error
