"""What other libraries make of numbers where they differ: overflow, the codes of NaN, and everything about E8M0.

`PRESETS` states it as one `Policy` for each format, for `encode(preset=...)` and `cast(preset=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fp8sim.formats import Format
from fp8sim.random_bits import DEFAULTS
from fp8sim.rounding import Conversion, Overflow, Rounding, member, resolve


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


_FP8 = ("float8_e4m3fn", "float8_e5m2")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz")
_FP6 = ("float6_e2m3fn", "float6_e3m2fn")
_FP6_AND_FP4 = (*_FP6, "float4_e2m1fn")
_WIDE = ("float16", "bfloat16")

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
    "float16": Policy(overflow=Overflow.INFINITY, nan=(0x7E00, 0xFE00)),
    "bfloat16": Policy(overflow=Overflow.INFINITY, nan=(0x7FC0, 0x7FC0)),
}

_QUIET = {"float8_e5m2": 0x7E, "float8_e4m3": 0x7C, "float8_e3m4": 0x78}
_ML_DTYPES = {
    "float8_e4m3fn": Policy(overflow=Overflow.NAN),
    **{name: Policy(overflow=Overflow.INFINITY, nan=(nan, nan | 0x80)) for name, nan in _QUIET.items()},
    **{name: Policy(overflow=Overflow.NAN) for name in _FNUZ},
    "float8_e8m0fnu": _ML_DTYPES_E8M0,
    **{name: Policy(nan=(0x20, 0x00)) for name in _FP6},  # -0 and 0
    "float4_e2m1fn": Policy(nan=(0x08, 0x00)),
    "float16": Policy(overflow=Overflow.INFINITY, nan=(0x7E00, 0xFE00)),
    "bfloat16": Policy(overflow=Overflow.INFINITY, nan=(0x7FC0, 0xFFC0)),
}

_CVT_NAN = {
    "float16": 0x7FFF,
    "bfloat16": 0x7FFF,
    "tf32": 0x3FFFF,
    "float8_e8m0fnu": 0xFF,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7F,
    "float4_e2m1fn": 0x07,
    **dict.fromkeys(_FP6, 0x1F),
}


def _cvt(mode: Rounding, overflow: Overflow, *names: str) -> dict[str, Policy]:
    """PTX `cvt`: NaN is positive, and the sign of what becomes E8M0 is dropped."""
    return {n: Policy(mode, overflow, (_CVT_NAN[n],) * 2, drops_sign=n == "float8_e8m0fnu") for n in names}


_SATURATES, _OVERFLOWS = Overflow.SATURATE, Overflow.INFINITY

PRESETS: dict[str, dict[str, Policy]] = {
    "torch": _TORCH,
    "torch_before_2.12": _TORCH | {"float8_e4m3fn": Policy(overflow=Overflow.NAN)},
    "ml_dtypes": _ML_DTYPES,
    "cvt.rn.satfinite": _cvt(Rounding.TIES_TO_EVEN, _SATURATES, *_FP8, *_FP6_AND_FP4, *_WIDE, "tf32"),
    "cvt.rn": _cvt(Rounding.TIES_TO_EVEN, _OVERFLOWS, *_FP8, *_WIDE, "tf32"),
    "cvt.rna.satfinite": _cvt(Rounding.TIES_TO_AWAY, _SATURATES, "tf32"),
    "cvt.rna": _cvt(Rounding.TIES_TO_AWAY, _OVERFLOWS, "tf32"),
    "cvt.rz.satfinite": _cvt(Rounding.TOWARD_ZERO, _SATURATES, *_FP6_AND_FP4, "float8_e8m0fnu", *_WIDE, "tf32"),
    "cvt.rz": _cvt(Rounding.TOWARD_ZERO, _OVERFLOWS, "float8_e8m0fnu", *_WIDE, "tf32"),
    "cvt.rm": _cvt(Rounding.TOWARD_NEGATIVE, _OVERFLOWS, *_WIDE),
    "cvt.rp.satfinite": _cvt(Rounding.TOWARD_POSITIVE, _SATURATES, "float8_e8m0fnu"),
    "cvt.rp": _cvt(Rounding.TOWARD_POSITIVE, _OVERFLOWS, "float8_e8m0fnu", *_WIDE),
}
"""What libraries make of binary32 (and of binary16 and bfloat16, which widen to it), bit for bit, by format.

torch: `Tensor.to`; 2.12 changed float8_e4m3fn, which saturated no infinity and no number before. The other formats are
taken to be as they were; an older torch was not at hand to compare them with.
ml_dtypes: `astype`, which is NumPy's for float16. cvt: CUDA's conversions, named as in PTX (ISA 9.1), as the headers
emulate them (`__NV_SATFINITE` or `__NV_NOSAT`); FP8 without satfinite and FP6 and FP4 toward zero are the header's own.
The header has neither tf32 nor float16 and bfloat16 with satfinite: these are by the text of the ISA, which does not
say which NaN tf32 gets (0x7FFFFFFF is assumed; Ampere's machine code for `.rna` adds 0x1000 to NaN as to numbers).

binary64 is rounded once here; torch and ml_dtypes round it twice. Three kinds of NaN are no function of the number
alone, and the preset has one answer: torch's bfloat16 (that of its scalar code; its vector code gives 0xFFFF), and
float16 of torch and NumPy, which keep what fits of a payload (the quiet NaN of the sign, as without payload).
"""


def preset_policy(name: str, fmt: Format) -> Policy:
    """The policy of preset `name` for `fmt`. ValueError for an unknown preset, or a format that it has none for."""
    if not isinstance(name, str) or name not in PRESETS:
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


def check_alone(preset: str, rounding: Rounding | str, overflow: Overflow | str, random: Mapping[str, object]) -> None:
    """ValueError unless all that a preset decides was left to it; `random` has the seed and its places."""
    mode, limit = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    given = {"rounding": mode is not Rounding.TIES_TO_EVEN, "overflow": limit is not Overflow.SATURATE}
    given |= {name: value is not None and value != DEFAULTS.get(name) for name, value in random.items()}
    others = [f"{name}=" for name, is_given in given.items() if is_given]
    if others:
        raise ValueError(
            f"preset={preset!r} decides rounding and overflow, and is not stochastic: drop {', '.join(others)}"
        )
