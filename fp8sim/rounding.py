"""Rounding modes and overflow policies, and what a format and a policy come to in integers.

Every conversion, on every backend, does the same in this order (P3109 v4.0, section 4.6; IEEE 754-2019, 7.4):

1. round the magnitude as if exponents had no upper bound, giving a magnitude code that may exceed the largest one;
2. decide overflow by comparing that code with the largest;
3. add the sign.

`resolve` turns a `Format`, a `Rounding` and an `Overflow` into a `Conversion`: the integers those steps need. The loops
in C++, CUDA and Triton read nothing else, so a policy is decided here and nowhere else.
"""

from __future__ import annotations

import enum
import functools
from typing import NamedTuple, TypeVar

from fp8sim.formats import Codebook, Format, Nan, parse


class Rounding(enum.IntEnum):
    """Which neighbour a number between two codes becomes. Numbers are those of `enum Rounding` in `csrc/core`.

    nu is the discarded fraction of |x| in units of the code spacing, 0 <= nu < 1; R is a random integer, uniform in
    [0, 2^N) with N = `random_bits`. "Even" and "odd" speak of the code, as P3109 does.
    """

    TIES_TO_EVEN = 0
    """The nearer one; of two equally near the even code (IEEE 754-2019, 4.3.1: roundTiesToEven)."""
    TIES_TO_AWAY = 1
    """The nearer one; of two equally near the larger magnitude (IEEE 754-2019, 4.3.1: roundTiesToAway)."""
    TIES_TO_ZERO = 2
    """The nearer one; of two equally near the smaller magnitude."""
    TOWARD_ZERO = 3
    """The smaller magnitude (IEEE 754-2019, 4.3.2: roundTowardZero)."""
    TOWARD_POSITIVE = 4
    """The larger number (IEEE 754-2019, 4.3.2: roundTowardPositive)."""
    TOWARD_NEGATIVE = 5
    """The smaller number (IEEE 754-2019, 4.3.2: roundTowardNegative)."""
    TO_ODD = 6
    """The odd code (P3109 v4.0, ToOdd): the right intermediate step of a conversion in two steps."""
    STOCHASTIC = 7
    """Away from zero iff roundTiesToEven(nu * 2^N) + R >= 2^N (P3109 v4.0, StochasticC)."""
    STOCHASTIC_A = 8
    """Away from zero iff floor(nu * 2^N) + R >= 2^N (P3109 v4.0, StochasticA; biased toward zero)."""
    STOCHASTIC_B = 9
    """Away from zero iff floor(nu * 2^(N+1)) + 2R + 1 >= 2^(N+1) (P3109 v4.0, StochasticB)."""
    STOCHASTIC_EQUAL = 10
    """Either neighbour of an inexact number with probability 1/2: away iff R >= 2^(N-1)."""

    @property
    def is_stochastic(self) -> bool:
        """Whether the mode takes random bits."""
        return self >= Rounding.STOCHASTIC


class Overflow(enum.IntEnum):
    """What becomes of a magnitude that rounds to more than the format's largest, and of an infinity."""

    SATURATE = 0
    """Both become the largest number of their sign (P3109 v4.0, SatFinite)."""
    SAT_PROPAGATE = 1
    """Finite overflow becomes the largest number; an infinity stays where the format has it (SatPropagate)."""
    INFINITY = 2
    """Both become infinity, but the largest number where a directed mode points inward (IEEE 754-2019, 7.4; SatNone).

    A format without infinities gives NaN (`e4m3`: 0x7F with the sign), a P3109 finite domain its largest number, and
    one that has neither infinity nor NaN (FP6, FP4, fixed point, codebooks) refuses with ValueError.
    """
    NAN = 3
    """Both become NaN. A format without NaN refuses."""


class Conversion(NamedTuple):
    """A format and a policy as integers: all that a conversion loop reads (`struct Conversion` in `csrc/core`).

    A *counting code* is a magnitude code plus `offset`, so that counting code 0 is zero in every format. Fields that
    end in `_positive` and `_negative` are full codes, sign bit included, for an input of that sign.
    """

    mantissa_bits: int
    emin: int
    offset: int
    """0; 1 in a format without zero, whose magnitude code 0 is counting code 1."""
    max_code: int
    """Magnitude code of the largest number."""
    inf_code: int
    """Magnitude code of infinity; NO_CODE if there is none."""
    nan_from: int
    """The smallest magnitude code that is NaN; NO_CODE if NaN is the negative zero or there is none."""
    sign_bit: int
    negative_zero: int
    """1: `sign_bit` alone is -0. 0: it is NaN (signed formats) or there is no sign."""
    rounding: int
    zero_positive: int
    """What zero, and what rounds to zero, becomes."""
    zero_negative: int
    overflow_positive: int
    overflow_negative: int
    infinity_positive: int
    infinity_negative: int
    nan_positive: int
    nan_negative: int
    below: int
    """What a negative number that does not round to zero becomes in an unsigned format; unused in a signed one."""
    twos_complement: int
    """1: the code of -x is that of x, negated in the format's bits, the highest of which is `sign_bit`."""


NO_CODE = 0xFFFFFFFF
"""Stands in a `Conversion` for "no such code"."""

_E = TypeVar("_E", bound=enum.IntEnum)


def member(kind: type[_E], value: _E | str | int, argument: str) -> _E:
    """The member of `kind` that `value` is or names (in any case). ValueError names `argument` and the members."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value.upper() in kind.__members__:
        return kind[value.upper()]
    raise ValueError(f"{argument}={value!r}: use one of {', '.join(kind.__members__)}")


def resolve_names(fmt: str | Format, rounding: Rounding | str, overflow: Overflow | str) -> Conversion:
    """As `resolve`, for names in any case. ValueError for one that does not exist, too."""
    return resolve(parse(fmt), member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow"))


@functools.cache
def resolve(fmt: Format, rounding: Rounding, overflow: Overflow) -> Conversion:
    """The integers of converting to `fmt` under `rounding` and `overflow`.

    NaN becomes NaN of the same sign; in a format without NaN it becomes the largest positive number, as in PTX `cvt`.
    A negative number in an unsigned format is overflow below zero (P3109 v4.0, section 4.6): the smallest code under
    the saturating policies and for modes that round it up; otherwise NaN.

    Raises:
        ValueError: the format cannot represent the policy, or is a codebook.
    """
    if isinstance(fmt, Codebook):
        raise ValueError(
            f"{fmt} is a codebook, which no kernel takes: cast it under fp8sim.use_backend('simulate'), on the CPU"
        )
    nan = fmt.max_code if fmt.nan_code is None else fmt.nan_code
    nan_sign = fmt.sign_bit if fmt.nan_code is not None else 0
    below = _below_zero(fmt, rounding, overflow)
    return Conversion(
        mantissa_bits=fmt.mantissa_bits,
        emin=fmt.emin,
        offset=0 if fmt.zero else 1,
        max_code=fmt.max_code,
        inf_code=NO_CODE if fmt.inf_code is None else fmt.inf_code,
        nan_from=NO_CODE if fmt.nan in (Nan.NEGATIVE_ZERO, Nan.NONE) else fmt.max_code + fmt.infinity + 1,
        sign_bit=fmt.sign_bit,
        negative_zero=int(fmt.has_negative_zero),
        rounding=int(rounding),
        zero_positive=0,
        zero_negative=fmt.sign_bit if fmt.has_negative_zero else 0,
        overflow_positive=_overflowed(fmt, rounding, overflow, negative=False),
        overflow_negative=_overflowed(fmt, rounding, overflow, negative=True) if fmt.signed else below,
        infinity_positive=_infinite(fmt, overflow, negative=False),
        infinity_negative=_infinite(fmt, overflow, negative=True) if fmt.signed else _below_zero(fmt, None, overflow),
        nan_positive=nan,
        nan_negative=nan | nan_sign,
        below=below,
        twos_complement=int(fmt.twos_complement),
    )


def _overflowed(fmt: Format, rounding: Rounding, overflow: Overflow, *, negative: bool) -> int:
    """The code of a finite number whose rounding exceeds the largest."""
    largest = fmt.lowest_code if negative else fmt.max_code
    if overflow in (Overflow.SATURATE, Overflow.SAT_PROPAGATE):
        return largest
    if overflow is Overflow.INFINITY and _stays_inside(fmt, rounding, negative=negative):
        return largest
    return _infinite(fmt, overflow, negative=negative)


def _stays_inside(fmt: Format, rounding: Rounding, *, negative: bool) -> bool:
    """Whether `rounding` prefers the largest number to the infinity behind it."""
    inward = Rounding.TOWARD_POSITIVE if negative else Rounding.TOWARD_NEGATIVE
    largest_is_odd = fmt.max_code % 2 == 1
    return rounding in (Rounding.TOWARD_ZERO, inward) or (rounding is Rounding.TO_ODD and largest_is_odd)


def _infinite(fmt: Format, overflow: Overflow, *, negative: bool) -> int:
    """The code of an infinity."""
    sign = fmt.sign_bit if negative else 0
    if overflow in (Overflow.SAT_PROPAGATE, Overflow.INFINITY) and fmt.inf_code is not None:
        return fmt.inf_code | sign
    if overflow in (Overflow.SATURATE, Overflow.SAT_PROPAGATE) or (overflow is Overflow.INFINITY and fmt.finite_domain):
        return fmt.lowest_code if negative else fmt.max_code
    if fmt.nan_code is None:
        raise ValueError(f"overflow={overflow.name} needs an infinity or NaN, and {fmt.name} has neither: use SATURATE")
    return fmt.nan_code | sign


def _below_zero(fmt: Format, rounding: Rounding | None, overflow: Overflow) -> int:
    """The code of a negative number in an unsigned format; `rounding=None` for -infinity."""
    if fmt.signed:
        return 0
    upward = rounding in (Rounding.TOWARD_ZERO, Rounding.TOWARD_POSITIVE)
    if overflow in (Overflow.SATURATE, Overflow.SAT_PROPAGATE) or (upward and overflow is Overflow.INFINITY):
        return 0
    if fmt.nan_code is None:
        raise ValueError(f"overflow={overflow.name} turns negative numbers into NaN, and {fmt.name} has none")
    return fmt.nan_code
