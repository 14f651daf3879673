"""Which number each code of a binary format stands for.

There are two kinds, of one structure: floating point, and fixed point, which is a float with one exponent bit, whose
numbers are equally spaced, with two's complement for its codes. Dropping the sign, codes count upwards with the values
they stand for:

    zero, subnormals, normals, [infinity], [NaN ...]

so code + 1 is the next larger number, and rounding, saturation and distance are integer operations on codes.
`fp8sim.formats` has the formats themselves.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction


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


LARGEST_BIAS = 1 << 15
"""Of either sign: what formats of 16 exponent bits need. It bounds all exponents by 2^17, below which conversions put
that of zero, and numbers that float64 lacks still convert: to and from 0 or infinity."""


@dataclass(frozen=True)
class CodeLayout:
    """The codes of a binary floating-point format of 2 to 32 bits, or of one of fixed point.

    A code is, from the most significant bit: sign (if `signed`), exponent field E of `exponent_bits`, fraction T of
    `mantissa_bits` = M. With `zero` (all formats but E8M0) it stands for

        (-1)^sign * 2^(E - bias) * (1 + T * 2^-M)    for E > 0
        (-1)^sign * 2^(1 - bias) * T * 2^-M          for E = 0

    except where `nan` and `infinity` say otherwise. Without `zero`, E = 0 is a normal exponent like every other.

    Attributes:
        name: a label; it takes no part in comparison.
        bias: subtracted from the exponent field; -32768 to 32768.
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
        yield f"bias must lie in -{LARGEST_BIAS}..{LARGEST_BIAS}, got {self.bias}", abs(self.bias) > LARGEST_BIAS
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
