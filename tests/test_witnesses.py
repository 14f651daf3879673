"""Independent implementations agree, but for the differences written down here as data, each of which must be real."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import nvidia_header
import pytest
import torch
from boundaries import NARROW, P3109_NARROW, assert_same_codes, bits_of, boundaries, random_integers

from fp8sim import casting
from fp8sim.formats import FORMATS, Format, Nan, parse
from fp8sim.rounding import Overflow

Array = np.ndarray[Any, Any]
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class Difference:
    """Where a witness gives another code than the policy it otherwise follows; `theirs=None` is any NaN code."""

    witness: str
    formats: tuple[str, ...]
    why: str
    where: Callable[[Array], Array]
    theirs: int | None


def negative_nan(x: Array) -> Array:
    return np.isnan(x) & np.signbit(x)


def positive_nan(x: Array) -> Array:
    return np.isnan(x) & ~np.signbit(x)


def is_power_and_half(x: Array) -> Array:
    """1.5 times 2^-127 or a power 2, 4, 6 ... binades above: a tie of E8M0 whose even neighbour is the lower one."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(x), x, 0))
    return (mantissa == 0.75) & (exponent % 2 == 0) & (x > 2.0**-127)


def is_small_negative(x: Array) -> Array:
    """What rounds to E8M0's zero, which is its smallest number."""
    return (x < 0) & (x > -(2.0**-128))


# What a NaN is, everywhere: fp8sim gives the largest magnitude code.
DIFFERENCES = [
    Difference("ml_dtypes", ("float8_e5m2",), "the quiet NaN", positive_nan, 0x7E),
    Difference("ml_dtypes", ("float8_e5m2",), "the quiet NaN", negative_nan, 0xFE),
    Difference("ml_dtypes", ("float8_e4m3",), "the quiet NaN", positive_nan, 0x7C),
    Difference("ml_dtypes", ("float8_e4m3",), "the quiet NaN", negative_nan, 0xFC),
    Difference("ml_dtypes", ("float8_e3m4",), "the quiet NaN", positive_nan, 0x78),
    Difference("ml_dtypes", ("float8_e3m4",), "the quiet NaN", negative_nan, 0xF8),
    Difference("ml_dtypes", ("float6_e2m3fn", "float6_e3m2fn"), "NaN becomes -0", positive_nan, 0x20),
    Difference("ml_dtypes", ("float4_e2m1fn",), "NaN becomes -0", positive_nan, 0x08),
    Difference("ml_dtypes", ("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"), "-NaN becomes 0", negative_nan, 0),
    Difference("ml_dtypes", ("bfloat16",), "the quiet NaN", np.isnan, None),
    Difference("ml_dtypes", ("float8_e8m0fnu",), "zero is NaN", lambda x: x == 0, 0xFF),
    Difference("ml_dtypes", ("float8_e8m0fnu",), "nor is a small negative number zero", is_small_negative, 0xFF),
    Difference(
        "both",
        ("float8_e8m0fnu",),
        "subnormal numbers below the midpoint go up",
        lambda x: (x > 2.0**-127) & (x <= 1.5 * 2.0**-127),
        1,
    ),
    Difference("torch", ("float16", "bfloat16"), "NaN keeps payload, or loses its sign", np.isnan, None),
]


def apply_differences(witness: str, fmt: Format, codes: Array, theirs: Array, x: Array) -> Array:
    """`codes` with the witness's differences; fails if one of them is none."""
    expected = codes.astype(theirs.dtype)
    for difference in DIFFERENCES:
        if difference.witness not in (witness, "both") or fmt.name not in difference.formats:
            continue
        where = difference.where(x)
        if difference.theirs is None:
            assert all(fmt.is_nan(int(code)) for code in np.unique(theirs[where]))
            assert (expected[where] != theirs[where]).any(), f"no longer different: {difference}"
            expected[where] = theirs[where]
        else:
            assert (expected[where] != difference.theirs).any(), f"no longer different: {difference}"
            expected[where] = difference.theirs
    return expected


def inputs(fmt: Format, dtype: str = "float32") -> Array:
    """Every boundary, and random patterns."""
    random = np.random.default_rng(0).integers(0, 2**32, 2**18, dtype=np.uint32).view(np.float32)
    points = boundaries(fmt, dtype)
    with np.errstate(invalid="ignore"):
        return np.concatenate([points, random.astype(points.dtype)])


def policy(fmt: Format) -> Overflow:
    """That of formats in which finite numbers overflow to what IEEE 754 says, or to NaN."""
    if fmt.nan is Nan.NONE:
        return Overflow.SATURATE
    return Overflow.INFINITY if fmt.infinity else Overflow.NAN


def mode_of_witnesses(fmt: Format) -> str:
    """Ties go to even everywhere but in E8M0, where all witnesses round them up."""
    return "TIES_TO_EVEN" if fmt.zero else "TIES_TO_AWAY"


@pytest.mark.parametrize("name", [name for name in FORMATS if hasattr(ml_dtypes, name)])
def test_ml_dtypes(name: str) -> None:
    fmt = FORMATS[name]
    x = inputs(fmt)
    with np.errstate(all="ignore"):
        theirs = x.astype(getattr(ml_dtypes, name))
    theirs = theirs.view(np.uint8 if fmt.bits <= 8 else np.uint16)
    ours = casting.encode(x, fmt, rounding=mode_of_witnesses(fmt), overflow=policy(fmt))
    assert_same_codes(apply_differences("ml_dtypes", fmt, ours, theirs, x), theirs, x, name)


TORCH_FORMATS = [n for n in FORMATS if hasattr(torch, n) and n not in ("float32", "float4_e2m1fn", "float8_e8m0fnu")]


@pytest.mark.parametrize("name", TORCH_FORMATS)
def test_torch(name: str) -> None:
    fmt = FORMATS[name]
    x = inputs(fmt)
    theirs = torch.from_numpy(x).to(getattr(torch, name))
    theirs = theirs.view(torch.uint8 if fmt.bits <= 8 else torch.uint16).numpy()
    saturates = name == "float8_e4m3fn" and TORCH >= (2, 12)
    ours = casting.encode(x, fmt, overflow=Overflow.SATURATE if saturates else policy(fmt))
    assert_same_codes(apply_differences("torch", fmt, ours, theirs, x), theirs, x, name)


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="this torch has no E8M0")
def test_torch_rounds_e8m0_ties_away_and_drops_the_sign() -> None:
    fmt = FORMATS["float8_e8m0fnu"]
    x = inputs(fmt)
    theirs = torch.from_numpy(x).to(torch.float8_e8m0fnu).view(torch.uint8).numpy()
    magnitude = np.abs(x)
    ours = casting.encode(magnitude, fmt, rounding=mode_of_witnesses(fmt), overflow="NAN")
    ours[np.isinf(x)] = theirs[np.isinf(x)]
    assert_same_codes(apply_differences("torch", fmt, ours, theirs, magnitude), theirs, x, "float8_e8m0fnu")
    even = casting.encode(magnitude, fmt, overflow="NAN")
    assert set(np.flatnonzero(even != ours)) == set(np.flatnonzero(is_power_and_half(magnitude)))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "bfloat16"])
def test_torch_rounds_twice_from_float64_and_we_once(name: str) -> None:
    half = 2.0 ** -(FORMATS[name].mantissa_bits + 1)
    x = torch.tensor([1 + half + 2.0**-40], dtype=torch.float64)
    assert x.to(getattr(torch, name)).double().item() == 1
    assert casting.cast(x, name).item() == 1 + 2 * half


# NVIDIA's header, whose conversions from binary32 are those of the presets "cvt" (see test_presets.py).


@pytest.fixture(scope="module")
def header() -> Callable[..., Array]:
    try:
        nvidia_header.build()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return nvidia_header.convert


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize(("name", "target"), [("float8_e4m3fn", "fp8e4nv"), ("float8_e5m2", "fp8e5")])
def test_nvidia_header_from_every_half(source: str, name: str, target: str, header: Callable[..., Array]) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    x = patterns.view(np.float16 if source == "fp16" else ml_dtypes.bfloat16)
    theirs = header(patterns, source, target)
    assert_same_codes(casting.encode(x, name, preset="cvt.rn.satfinite"), theirs, x, f"{source} {name}")


@pytest.mark.parametrize(("name", "source"), [("float8_e4m3fn", "fp8e4nv"), ("float8_e5m2", "fp8e5")])
def test_nvidia_header_decodes_every_code(name: str, source: str, header: Callable[..., Array]) -> None:
    """Finite codes and infinities; of NaN the header keeps neither sign nor a fixed payload."""
    codes = np.arange(256, dtype=np.uint8)
    theirs, ours = header(codes, source, "fp32").view(np.float32), casting.decode(codes, name)
    np.testing.assert_array_equal(np.isnan(theirs), np.isnan(ours))
    number = ~np.isnan(ours)
    np.testing.assert_array_equal(bits_of(theirs)[number], bits_of(ours)[number])


# gfloat, which has most modes.


def gfloat_format(fmt: Format) -> Any:
    import gfloat
    import gfloat.formats as known

    names = {
        "float16": "binary16",
        "bfloat16": "bfloat16",
        "float8_e5m2": "ocp_e5m2",
        "float8_e4m3fn": "ocp_e4m3",
        "float6_e2m3fn": "ocp_e2m3",
        "float6_e3m2fn": "ocp_e3m2",
        "float4_e2m1fn": "ocp_e2m1",
    }
    if fmt.name in names:
        return getattr(known, f"format_info_{names[fmt.name]}")
    domain = gfloat.Domain.Extended if fmt.infinity else gfloat.Domain.Finite
    sign = gfloat.Signedness.Signed if fmt.signed else gfloat.Signedness.Unsigned
    return known.format_info_p3109(fmt.bits, fmt.mantissa_bits + 1, sign, domain)


GFLOAT_MODES = {
    "TIES_TO_EVEN": "TiesToEven",
    "TIES_TO_AWAY": "TiesToAway",
    "TOWARD_ZERO": "TowardZero",
    "TOWARD_POSITIVE": "TowardPositive",
    "TOWARD_NEGATIVE": "TowardNegative",
    "STOCHASTIC": "Stochastic",
    "STOCHASTIC_A": "StochasticFastest",
    "STOCHASTIC_B": "StochasticFast",
}
GFLOAT_FORMATS = ["fp16", "bf16", "e5m2", "e4m3", "e2m3", "e3m2", "e2m1", "binary8p3se", "binary8p5sf", "binary6p2se"]


@pytest.mark.skipif(importlib.util.find_spec("gfloat") is None, reason="gfloat is not installed")
@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize("name", GFLOAT_FORMATS)
def test_gfloat(name: str, mode: str) -> None:
    import gfloat

    fmt = parse(name)
    x = boundaries(fmt, "float32")[:: 1 if fmt.bits <= 8 else 101].astype(np.float64)
    x = x[np.isfinite(x)] if fmt.nan is Nan.NONE else x[~np.isnan(x)]
    options: dict[str, Any] = {}
    random: dict[str, Any] = {}
    if mode.startswith("STOCHASTIC"):
        options = {"seed": 5, "random_bits": 9}
        random = {"srbits": random_integers(x.size, options).astype(np.int64), "srnumbits": 9}
    with np.errstate(all="ignore"):
        theirs = gfloat.round_ndarray(
            gfloat_format(fmt), x, getattr(gfloat.RoundMode, GFLOAT_MODES[mode]), sat=True, **random
        )
    ours = casting.cast(x, fmt, rounding=mode, **options)
    wrong = bits_of(ours) != bits_of(theirs)
    if not fmt.has_negative_zero:
        wrong &= (ours != 0) | (theirs != 0)
    first = [(float(a[wrong][0]) if wrong.any() else None) for a in (x, ours, theirs)]
    assert not wrong.any(), f"{wrong.sum()} differ, first x, ours, theirs: {first}"


def test_the_narrow_formats_are_those_that_the_witnesses_know() -> None:
    """A new format in the catalogue needs a witness, or a line here that says it has none."""
    without = {"float8_e3m4fn"}
    known = {name for name in FORMATS if hasattr(ml_dtypes, name)}
    assert {fmt.name for fmt in NARROW} - known == without
    assert all(fmt.name.startswith("binary") for fmt in P3109_NARROW)
