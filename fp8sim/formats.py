"""Number formats as data: which numbers exist and which code stands for each.

A `Format` is a row of numbers and flags; every other property is derived from it, and everything that iterates formats
(C++ and CUDA loops, Triton kernels, tests, the command line) takes a `Format`. To add one, add one line to
`_CATALOGUE`. There are three kinds:

- floating point, `Format(...)`, P3109's by formula (`p3109`);
- fixed point, `fixed_point(8, 6)`: a float with one exponent bit, whose numbers are equally spaced, with two's
  complement for its codes;
- a codebook, `Codebook("mine", levels)`: any list of numbers.

The first two share one structure. Dropping the sign, codes count upwards with the values they stand for:

    zero, subnormals, normals, [infinity], [NaN ...]

so code + 1 is the next larger number, and rounding, saturation and distance are integer operations on codes.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType


class Nan(enum.Enum):
    """Which codes stand for NaN."""

    IEEE = "ieee"
    """Largest exponent field, non-zero fraction; the zero fraction is infinity (IEEE 754-2019, 3.4)."""
    ALL_ONES = "all_ones"
    """Only the largest magnitude code, with either sign (OCP E4M3; unsigned P3109 formats)."""
    NEGATIVE_ZERO = "negative_zero"
    """Only the code of a lone sign bit, so there is no negative zero (the FNUZ family; signed P3109 formats)."""
    NONE = "none"
    """No code (OCP FP6 and FP4)."""


@dataclass(frozen=True)
class Format:
    """A binary floating-point format of 2 to 32 bits, or one of fixed point (see `fixed_point`).

    A code is, from the most significant bit: sign (if `signed`), exponent field E of `exponent_bits`, fraction T of
    `mantissa_bits` = M. With `zero` (all formats but E8M0) it stands for

        (-1)^sign * 2^(E - bias) * (1 + T * 2^-M)    for E > 0
        (-1)^sign * 2^(1 - bias) * T * 2^-M          for E = 0

    except where `nan` and `infinity` say otherwise. Without `zero`, E = 0 is a normal exponent like every other.

    Attributes:
        name: a label; it takes no part in comparison.
        bias: subtracted from the exponent field.
        nan: which codes are NaN.
        infinity: whether the magnitude code after the largest finite one is infinity. Implied by `Nan.IEEE`.
        signed: whether there is a sign bit.
        zero: whether code 0 is zero.
        finite_domain: a P3109 finite format: `Overflow.INFINITY` gives the largest number instead of NaN.
        twos_complement: the code of -x is 2^bits minus that of x: fixed point, with one exponent bit.
        symmetric: of a two's complement: conversions leave the lowest code (0x80 of 8 bits), which has no positive
            counterpart, unused. It stands for its number all the same.

    Raises:
        ValueError: a combination that describes no format; the message says why.
    """

    name: str = field(compare=False)
    exponent_bits: int
    mantissa_bits: int
    bias: int
    nan: Nan
    infinity: bool = False
    signed: bool = True
    zero: bool = True
    finite_domain: bool = False
    twos_complement: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.nan, Nan):
            raise ValueError(f"{self.name}: nan={self.nan!r} must be a member of fp8sim.formats.Nan")
        for argument in ("exponent_bits", "mantissa_bits", "bias"):
            if not isinstance(getattr(self, argument), int):
                raise ValueError(f"{self.name}: {argument}={getattr(self, argument)!r} must be an integer")
        for reason, broken in self._conflicts():
            if broken:
                raise ValueError(f"{self.name}: {reason}")

    def _conflicts(self) -> Iterator[tuple[str, bool]]:
        e, m, ieee = self.exponent_bits, self.mantissa_bits, self.nan is Nan.IEEE
        yield f"exponent_bits must be 1 to 16, got {e}", not 1 <= e <= 16
        yield f"mantissa_bits must be 0 to 23, got {m}", not 0 <= m <= 23
        yield f"a format has 2 to 32 bits, got {self.bits}", not 2 <= self.bits <= 32
        yield f"a magnitude code has at most 31 bits, got {e + m}", e + m > 31
        yield f"bias must lie in -32768..32768, got {self.bias}", not -32768 <= self.bias <= 32768
        yield "Nan.IEEE means that there is an infinity: set infinity=True", ieee and not self.infinity
        yield "Nan.IEEE needs a fraction bit to tell NaN from infinity", ieee and m < 1
        yield "Nan.IEEE takes the largest exponent field away: use at least 2 exponent bits", ieee and e < 2
        negative_zero = self.nan is Nan.NEGATIVE_ZERO
        yield "Nan.NEGATIVE_ZERO needs a sign bit: use Nan.ALL_ONES", negative_zero and not self.signed
        yield "a finite domain has no infinity", self.finite_domain and self.infinity
        yield "only a format without sign and fraction can do without zero", not self.zero and (self.signed or m > 0)
        yield "no code is left for a number", self.max_code < 1
        yield from self._conflicts_of_fixed_point()

    def _conflicts_of_fixed_point(self) -> Iterator[tuple[str, bool]]:
        twos, special = self.twos_complement, self.nan is not Nan.NONE or self.infinity or self.finite_domain
        yield "a two's complement has equally spaced numbers: use one exponent bit", twos and self.exponent_bits != 1
        yield "a two's complement has a sign; without one, fixed point is its own code", twos and not self.signed
        yield "a two's complement has a code for neither NaN nor infinity: use Nan.NONE", twos and special
        yield "symmetric=True leaves a code of a two's complement unused", self.symmetric and not twos

    # Codes. A magnitude code is a code without its sign bit.

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def sign_bit(self) -> int:
        """The code's sign bit as a mask; 0 in an unsigned format."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def top_code(self) -> int:
        """The largest magnitude code, whatever it stands for."""
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        if self.nan is Nan.IEEE:
            return self.top_code - (1 << self.mantissa_bits)
        return self.top_code - (self.nan is Nan.ALL_ONES) - self.infinity

    @property
    def lowest_code(self) -> int:
        """Code of the lowest number that conversions produce: -max, or 0 in an unsigned format."""
        if not self.signed:
            return 0
        return self.negative(self.max_code + (self.twos_complement and not self.symmetric))

    def negative(self, magnitude: int) -> int:
        """The code of minus the number with that magnitude code."""
        return ((1 << self.bits) - magnitude) % (1 << self.bits) if self.twos_complement else magnitude | self.sign_bit

    @property
    def inf_code(self) -> int | None:
        """Code of +infinity, or None."""
        return self.max_code + 1 if self.infinity else None

    @property
    def nan_code(self) -> int | None:
        """The NaN code that conversions produce for a positive NaN, or None.

        Where several codes are NaN this is the largest magnitude, as in torch and CUDA (0x7F for both OCP FP8 formats).
        """
        if self.nan is Nan.NONE:
            return None
        return self.sign_bit if self.nan is Nan.NEGATIVE_ZERO else self.top_code

    @property
    def has_negative_zero(self) -> bool:
        """Whether a lone sign bit stands for -0."""
        return self.signed and self.nan is not Nan.NEGATIVE_ZERO and not self.twos_complement

    @property
    def codes(self) -> range:
        """Every code, NaN and infinities included."""
        return range(1 << self.bits)

    def is_nan(self, code: int) -> bool:
        """Whether `code` stands for NaN. ValueError if it is no code of this format."""
        magnitude, _ = self._split(code)
        if self.nan is Nan.NEGATIVE_ZERO:
            return code == self.sign_bit
        return magnitude > self.max_code + self.infinity and self.nan is not Nan.NONE

    def is_infinite(self, code: int) -> bool:
        """Whether `code` stands for an infinity. ValueError if it is no code of this format."""
        magnitude, _ = self._split(code)
        return magnitude == self.inf_code and not self.is_nan(code)

    def is_finite(self, code: int) -> bool:
        """Whether `code` stands for a number. ValueError if it is no code of this format."""
        return not self.is_nan(code) and not self.is_infinite(code)

    # Numbers.

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number."""
        return self.zero - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest finite number: floor(log2(max)), exact because the denominator is a power of two."""
        numerator, denominator = self.max.as_integer_ratio()
        return numerator.bit_length() - denominator.bit_length()

    @property
    def max(self) -> Fraction:
        """The largest finite number."""
        return self.value(self.max_code)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest positive number of full precision: 2^emin, in fixed point `smallest`."""
        return self.smallest if self.twos_complement else Fraction(2) ** self.emin

    @property
    def smallest(self) -> Fraction:
        """The smallest positive number: subnormal where the format has subnormals."""
        return self.value(1 if self.zero else 0)

    def value(self, code: int) -> Fraction:
        """The number that `code` stands for, exactly; -0 gives 0.

        Raises:
            ValueError: `code` is NaN, an infinity, or no code of this format.
        """
        if not self.is_finite(code):
            raise ValueError(f"code {code:#x} of {self.name} is {self.to_float(code)}, which no fraction can state")
        magnitude, negative = self._split(code)
        exponent_field, fraction = divmod(magnitude, 1 << self.mantissa_bits)
        normal = exponent_field > 0 or not self.zero
        significand = fraction + (normal << self.mantissa_bits)
        exponent = exponent_field - self.bias if normal else self.emin
        number = significand * Fraction(2) ** (exponent - self.mantissa_bits)
        return -number if negative else number

    def to_float(self, code: int) -> float:
        """The number, infinity or NaN that `code` stands for, as a Python float; keeps the sign of -0.

        Exact wherever binary64 has the number; otherwise rounded to it (infinity above its range).
        """
        magnitude, negative = self._split(code)
        if self.is_nan(code):
            return math.nan
        sign = -1.0 if negative else 1.0
        if self.is_infinite(code):
            return math.copysign(math.inf, sign)
        try:
            return math.copysign(float(self.value(magnitude)), sign)
        except OverflowError:
            return math.copysign(math.inf, sign)

    def ordinal(self, code: int) -> int:
        """Position of `code` on the number line in units of codes: distances between ordinals are ulps.

        +0 and -0 are both 0; infinities follow the largest finite numbers. ValueError for NaN.
        """
        if self.is_nan(code):
            raise ValueError(f"code {code:#x} of {self.name} is NaN, which has no place among the numbers")
        magnitude, negative = self._split(code)
        return -magnitude if negative else magnitude

    def _split(self, code: int) -> tuple[int, bool]:
        """(magnitude code, sign)."""
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"{code:#x} is no code of {self.name}: its codes are 0 to {(1 << self.bits) - 1:#x}")
        negative = bool(code & self.sign_bit)
        return self.negative(code) if negative and self.twos_complement else code & ~self.sign_bit, negative

    # Text. parse(str(x)) == x.

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
        bits: of a code, 2 to 25.
        fraction_bits: may be negative.
        signed: whether there are negative numbers.
        symmetric: leave the lowest code unused, so that the numbers are -max to max.
        name: a label.

    Raises:
        ValueError: widths out of range; symmetric without sign.
    """
    mantissa_bits = bits - 1 - signed
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


def parse(text: str | Format) -> Format:
    """The format that `text` names: a name, an alias, a P3109 name, or `str()` of any format.

    Raises:
        ValueError: no such format; the message lists the names.
    """
    if isinstance(text, Format):
        return text
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
        Nan(nan),
        infinity="infinity" in given,
        signed="unsigned" not in given,
        zero="nonzero" not in given,
        finite_domain="finite_domain" in given,
    )


def _levels(text: str) -> list[float]:
    try:
        return [float(level) for level in text.split(",")]
    except ValueError as error:
        raise ValueError(f"codebook({text}): expected numbers, separated by commas") from error
