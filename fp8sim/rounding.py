"""Rounding modes and overflow policies, and what a format and a policy come to in integers.

Every conversion, on every backend, does the same in this order (P3109 v4.0, section 4.6; IEEE 754-2019, 7.4):

1. round the magnitude as if exponents had no upper bound, giving a magnitude code that may exceed the largest one;
2. decide overflow by comparing that code with the largest;
3. add the sign.

`resolve` turns a `Format`, a `Rounding` and an `Overflow` into a `Conversion`: the integers those steps need. The loops
in C++, CUDA and Triton read nothing else, so a policy is decided here and nowhere else.

`PRESETS` states, as one `Policy` for each format, what other libraries do where they differ: overflow, the codes of
NaN, and everything about E8M0.
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

    A format without infinities gives NaN, a P3109 finite domain its largest number, and any other format refuses.
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


class Replacement(NamedTuple):
    """Numbers from `low` to `high`, both included, become `code`, whatever rounding and overflow say."""

    low: float
    high: float
    code: int


class Policy(NamedTuple):
    """All that a conversion decides beyond the format: `Rounding`, `Overflow`, and what libraries do differently."""

    rounding: Rounding = Rounding.TIES_TO_EVEN
    overflow: Overflow = Overflow.SATURATE
    nan: tuple[int, int] | None = None
    """Codes of a positive and of a negative NaN; None: what `resolve` says."""
    drops_sign: bool = False
    """Whether |x| is converted, for a format without sign; otherwise negative numbers are overflow below zero."""
    replacements: tuple[Replacement, ...] = ()


_QUIET = {"float8_e5m2": 0x7E, "float8_e4m3": 0x7C, "float8_e3m4": 0x78}
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz")
_FP6 = ("float6_e2m3fn", "float6_e3m2fn")

# Subnormal binary32 numbers go to E8M0's 2^-126 as soon as they exceed 2^-127, which is its code 0, not its zero.
_UP_TO_NORMAL = Replacement(2.0**-127 + 2.0**-149, 2.0**-126 - 2.0**-149, 1)
_TORCH_E8M0 = Policy(Rounding.TIES_TO_AWAY, Overflow.NAN, drops_sign=True, replacements=(_UP_TO_NORMAL,))
_ML_DTYPES_E8M0 = Policy(
    Rounding.TIES_TO_AWAY,
    Overflow.NAN,
    replacements=(_UP_TO_NORMAL, Replacement(0.0, 0.0, 0xFF), Replacement(-(2.0**-128), -(2.0**-149), 0xFF)),
)

_TORCH = {
    "float8_e4m3fn": Policy(),
    "float8_e5m2": Policy(overflow=Overflow.INFINITY),
    **{name: Policy(overflow=Overflow.NAN) for name in _FNUZ[:2]},
    "float8_e8m0fnu": _TORCH_E8M0,
}
_ML_DTYPES = {
    "float8_e4m3fn": Policy(overflow=Overflow.NAN),
    **{name: Policy(overflow=Overflow.INFINITY, nan=(nan, nan | 0x80)) for name, nan in _QUIET.items()},
    **{name: Policy(overflow=Overflow.NAN) for name in _FNUZ},
    "float8_e8m0fnu": _ML_DTYPES_E8M0,
    **{name: Policy(nan=(0x20, 0x00)) for name in _FP6},  # -0 and 0
    "float4_e2m1fn": Policy(nan=(0x08, 0x00)),
    "bfloat16": Policy(overflow=Overflow.INFINITY, nan=(0x7FC0, 0xFFC0)),
}


def _cvt(mode: Rounding, overflow: Overflow, *names: str) -> dict[str, Policy]:
    """PTX `cvt`: NaN is positive, and the sign of what becomes E8M0 is dropped."""
    nan = {"float16": 0x7FFF, "bfloat16": 0x7FFF, "float8_e8m0fnu": 0xFF, **dict.fromkeys(_FP6, 0x1F)}
    nan |= {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F, "float4_e2m1fn": 0x07}
    return {n: Policy(mode, overflow, (nan[n], nan[n]), drops_sign=n == "float8_e8m0fnu") for n in names}


_FP6_AND_FP4 = (*_FP6, "float4_e2m1fn")
_OCP_FP8 = ("float8_e4m3fn", "float8_e5m2")
_SATURATES, _OVERFLOWS = Overflow.SATURATE, Overflow.INFINITY

PRESETS: dict[str, dict[str, Policy]] = {
    "torch": _TORCH,
    "torch_before_2.12": _TORCH | {"float8_e4m3fn": Policy(overflow=Overflow.NAN)},
    "ml_dtypes": _ML_DTYPES,
    "cvt.rn.satfinite": _cvt(Rounding.TIES_TO_EVEN, _SATURATES, *_OCP_FP8, *_FP6_AND_FP4),
    "cvt.rn": _cvt(Rounding.TIES_TO_EVEN, _OVERFLOWS, *_OCP_FP8, "float16", "bfloat16"),
    "cvt.rz.satfinite": _cvt(Rounding.TOWARD_ZERO, _SATURATES, *_FP6_AND_FP4, "float8_e8m0fnu"),
    "cvt.rz": _cvt(Rounding.TOWARD_ZERO, _OVERFLOWS, "float8_e8m0fnu"),
    "cvt.rp.satfinite": _cvt(Rounding.TOWARD_POSITIVE, _SATURATES, "float8_e8m0fnu"),
    "cvt.rp": _cvt(Rounding.TOWARD_POSITIVE, _OVERFLOWS, "float8_e8m0fnu"),
}
"""What libraries make of binary32 (and of binary16 and bfloat16, which widen to it), bit for bit, by format.

torch: `Tensor.to`; 2.12 changed float8_e4m3fn, which saturated no infinity and no number before. ml_dtypes: `astype`.
cvt: CUDA's conversions as the headers emulate them (`__NV_SATFINITE` or `__NV_NOSAT`), named as in PTX; FP8 without
satfinite and FP6 and FP4 toward zero are the header's own. binary64 is rounded once here; torch and ml_dtypes round it
twice. torch's float16 and bfloat16 are missing: their NaN depends on where in a tensor it stands.
"""


def preset_policy(name: str, fmt: Format) -> Policy:
    """The policy of preset `name` for `fmt`. ValueError for an unknown preset, or a format that it has none for."""
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: use one of {', '.join(PRESETS)}")
    if fmt.name not in PRESETS[name]:
        raise ValueError(f"preset={name!r} says nothing of {fmt}: it has {', '.join(PRESETS[name])}")
    return PRESETS[name][fmt.name]


def resolve_policy(fmt: Format, policy: Policy) -> Conversion:
    """As `resolve`, with the policy's NaN; its `drops_sign` and `replacements` are the caller's business."""
    conversion = resolve(fmt, policy.rounding, policy.overflow)
    if policy.nan is None:
        return conversion
    return conversion._replace(nan_positive=policy.nan[0], nan_negative=policy.nan[1])


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
