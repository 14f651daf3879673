"""`check_cast` passes correct casts, and names the property that a wrong one violates."""

import ml_dtypes
import numpy as np
import pytest
import torch

from fp8sim import casting
from fp8sim.formats import FORMATS, parse
from fp8sim.rounding import Overflow, Rounding
from fp8sim.testing import assert_stochastic_counts, assert_stochastic_unbiased, check_cast
from fp8sim.testing.points import points

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def right(fmt="e4m3", **policy):
    return lambda x: casting.cast(x, fmt, **policy)


# What passes.


@pytest.mark.parametrize("fmt", [*FORMATS, "binary8p4se", "binary8p1uf", "e3m2(bias=140,nan=ieee,infinity)"])
def test_its_own_cast_passes(fmt):
    report = check_cast(right(fmt), fmt)
    assert report.compared > 20000
    assert not report.not_checked


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("takes", ["numpy", "torch"])
@pytest.mark.parametrize("returns", ["values", "codes"])
def test_every_dtype_kind_and_form_passes(dtype, takes, returns):
    cast = casting.cast if returns == "values" else casting.encode
    check_cast(lambda x: cast(x, "e5m2"), "e5m2", dtype=dtype, takes=takes, returns=returns, any_nan=False)


@pytest.mark.parametrize("rounding", [mode for mode in Rounding if not mode.is_stochastic])
@pytest.mark.parametrize("overflow", list(Overflow))
def test_every_policy_passes_and_is_no_other(rounding, overflow):
    check_cast(right("e5m2", rounding=rounding, overflow=overflow), "e5m2", rounding=rounding, overflow=overflow)
    if overflow is not Overflow.SATURATE:
        with pytest.raises(AssertionError, match="on every input the results are those of"):
            check_cast(right("e5m2", rounding=rounding, overflow=overflow), "e5m2", rounding=rounding)


def test_torch_passes_with_the_policy_that_it_has():
    overflow = "SATURATE" if TORCH >= (2, 12) else "NAN"
    options = {"takes": "torch", "returns": "codes", "dtype": "float32"}
    check_cast(lambda x: x.to(torch.float8_e4m3fn), "e4m3", overflow=overflow, **options)
    check_cast(lambda x: x.to(torch.float8_e5m2), "e5m2", overflow="INFINITY", **options)
    with pytest.raises(AssertionError, match="overflow=INFINITY"):
        check_cast(lambda x: x.to(torch.float8_e5m2), "e5m2", **options)


def test_ml_dtypes_passes_with_the_policy_that_it_has():
    def cast(x):
        return x.astype(ml_dtypes.float8_e4m3fn)

    check_cast(cast, "e4m3", overflow="NAN", returns="codes")
    with pytest.raises(AssertionError, match="a first rounding to float32"):
        check_cast(cast, "e4m3", overflow="NAN", returns="codes", dtype="float64")


def test_known_differences_are_left_out_and_counted():
    def cast(x):
        return x.astype(ml_dtypes.float4_e2m1fn)

    with pytest.raises(AssertionError, match="NaN: 2 of 2 differ"):
        check_cast(cast, "e2m1", returns="codes")
    report = check_cast(cast, "e2m1", returns="codes", except_where=np.isnan)
    assert [text.partition(" ")[2] for text in report.not_checked] == ["inputs that except_where names"]
    assert "not checked" in str(report)


def test_layouts_can_be_left_out():
    def cast(x):
        assert x.size
        assert x.flags.c_contiguous
        return casting.cast(x, "e4m3")

    report = check_cast(cast, "e4m3", strided=False, empty=False)
    assert report.not_checked == ("strides and offsets, by request", "empty arrays, by request")
    assert {check.name: check.calls for check in report.checks}["lengths 1 to 130"] == 130


# What fails, and what is said.


def flush(x):
    y = casting.cast(x, "e4m3")
    return np.where(np.abs(y) < 2.0**-6, np.copysign(np.float32(0), y), y)


def clamped_before_rounding(x):
    infinite = np.copysign(np.float32(np.inf), x)
    return casting.cast(np.where(np.abs(x) > 57344, infinite, x), "e5m2", overflow="INFINITY")


def lost_at_a_binade_edge(x):
    """The largest number below each power of two absorbs what should be carried into the next binade."""
    codes = casting.encode(x, "e4m3")
    carried = (codes % 8 == 0) & (np.abs(x) < np.abs(casting.decode(codes, "e4m3")))
    return casting.decode(codes - carried.astype(np.uint8), "e4m3")


def inner(function):
    """`function` for arrays of any shape, flat."""
    return lambda x: function(np.ascontiguousarray(x).reshape(-1)).reshape(x.shape)


PLANTED = {
    "toward zero": (right(rounding="TOWARD_ZERO"), "midpoints between numbers: 126 of 252.*rounding=TOWARD_ZERO"),
    "ties away": (right(rounding="TIES_TO_AWAY"), "midpoints between numbers: 126 of 252.*rounding=TIES_TO_AWAY"),
    "through bfloat16": (
        lambda x: casting.cast(casting.cast(x, "bf16"), "e4m3"),
        "neighbours of midpoints.*a first rounding to bfloat16",
    ),
    "through float16": (
        lambda x: casting.cast(casting.cast(x, "fp16", overflow="INFINITY"), "e4m3"),
        "neighbours of midpoints.*a first rounding to float16",
    ),
    "flush of subnormal numbers": (flush, "subnormal numbers of the format: 14 of 14.*that become zero"),
    "NaN to 480": (
        lambda x: np.where(np.isnan(x), np.float32(480), casting.cast(x, "e4m3")),
        r"NaN: 2 of 2 differ.*got 0x43f00000 \(480.0\), no number of float8_e4m3fn.*expected.*code 0x7f",
    ),
    "-0 lost": (lambda x: casting.cast(x, "e4m3") + np.float32(0), "signed zeros: 1 of 2.*a sign of zero that is lost"),
    "a binade edge": (lost_at_a_binade_edge, "midpoints between numbers: 30 of 252 differ"),
    "a lost tail": (
        inner(lambda x: np.append(casting.cast(x[: x.size // 4 * 4], "e4m3"), x[x.size // 4 * 4 :])),
        r"length [123]: \d of \d differ",
    ),
    "strides ignored": (
        lambda x: casting.cast(np.lib.stride_tricks.as_strided(x, x.shape, x.strides if x.ndim != 1 else (4,)), "e4m3"),
        "every second element",
    ),
    "in place": (lambda x: casting.cast(x, "e4m3", out=x), "the cast changed its input"),
    "wrong shape": (lambda x: casting.cast(x.reshape(-1), "e4m3"), r"a 0-d array: got shape \(1,\), expected \(\)"),
    "another dtype": (lambda x: casting.cast(x, "e4m3").astype(np.float64), "got dtype float64, expected float32"),
    "raises": (lambda x: 1 / 0, "signed zeros: it raised ZeroDivisionError"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault):
    cast, message = PLANTED[fault]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_cast(cast, "e4m3")


def test_overflow_decided_before_rounding_is_named():
    with pytest.raises(AssertionError, match="(?s)the overflow threshold and beyond.*overflow decided before rounding"):
        check_cast(clamped_before_rounding, "e5m2", overflow="INFINITY")


def test_a_wrong_nan_code_is_named_where_it_matters():
    def cast(x):
        return x.astype(ml_dtypes.float8_e5m2)

    check_cast(cast, "e5m2", overflow="INFINITY", returns="codes")
    with pytest.raises(AssertionError, match=r"NaN: 2 of 2 differ.*got 0x7e \(nan\), expected 0x7f \(nan\)"):
        check_cast(cast, "e5m2", overflow="INFINITY", returns="codes", any_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "STOCHASTIC"}, "use assert_stochastic_unbiased"),
        ({"rounding": "NEAREST"}, "rounding='NEAREST': use one of"),
        ({"dtype": "int8"}, "dtype='int8': use one of float32"),
        ({"takes": "jax"}, "takes='jax'"),
        ({"returns": "bits"}, "returns='bits'"),
        ({"overflow": "NAN", "fmt": "e2m1"}, "neither"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        check_cast(right(), **({"fmt": "e4m3"} | options))


def test_points_hold_every_number_and_every_midpoint():
    found = points(parse("e4m3"), "float32")
    assert found["subnormal numbers of the format"].size == 2 * 7
    assert found["normal numbers of the format"].size == 2 * 119
    assert found["midpoints between numbers"].size == 2 * 126
    assert found["neighbours of midpoints"].size == 3 * 4 * 126
    assert 464 in found["the overflow threshold and beyond"]
    ties = found["midpoints between numbers"]
    for beyond in (np.float32(np.inf), np.float32(-np.inf)):
        assert np.isin(np.nextafter(ties, beyond), found["neighbours of midpoints"]).all()
    assert points(parse("e4m3"), "float64")["neighbours of midpoints"].dtype == np.float64


# Stochastic rounding.


def streams(fmt="e4m3", mode="STOCHASTIC", **options):
    """A stochastic cast that takes the next stream of random numbers at every call."""
    calls = iter(range(10**6))
    return lambda x: casting.cast(x, fmt, rounding=mode, seed=3, stream=next(calls), **options)


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1", "e8m0", "bf16", "binary8p3se"])
def test_a_fair_stochastic_cast_passes(fmt):
    report = assert_stochastic_unbiased(streams(fmt), fmt)
    assert any("subnormal" in check.name for check in report.checks) == (parse(fmt).mantissa_bits > 0)
    assert any("the last binade" in check.name for check in report.checks)


def test_few_random_bits_have_their_own_probabilities():
    assert_stochastic_unbiased(streams(random_bits=3), "e4m3", random_bits=3)
    with pytest.raises(AssertionError, match="went away from zero"):
        assert_stochastic_unbiased(streams(random_bits=3), "e4m3")


UNFAIR = {
    "no random bits": (right(), "0 of 32768 went away from zero, expected 2048"),
    "equal probability": (streams(mode="STOCHASTIC_EQUAL"), "expected 2048.0 within 175"),
    "subnormal numbers flushed": (lambda x: flush(streams()(x)), "the smallest|subnormal"),
    "numbers disturbed": (lambda x: streams()(x * np.float32(1.001)), "a number of the format must stay"),
    "too far": (lambda x: streams()(x) * np.float32(2), "are neither neighbour"),
    "codes": (lambda x: casting.encode(x, "e4m3"), r"got uint8 \[32768\], expected values in float32"),
}


@pytest.mark.parametrize("fault", UNFAIR)
def test_an_unfair_stochastic_cast_is_named(fault):
    cast, message = UNFAIR[fault]
    with pytest.raises(AssertionError, match=message):
        assert_stochastic_unbiased(cast, "e4m3")


def with_bits(x, random, bits, mode):
    """Stochastic rounding to e4m3 with explicit random integers, straight from the formulas."""
    low, high = (casting.cast(x, "e4m3", rounding=to) for to in ("TOWARD_ZERO", "TOWARD_POSITIVE"))
    high = np.where(x < 0, casting.cast(x, "e4m3", rounding="TOWARD_NEGATIVE"), high)
    gap = np.where(high == low, 1, high - low).astype(np.float64)
    nu = (x.astype(np.float64) - low) / gap * 2**bits
    share = {"STOCHASTIC": np.rint(nu), "STOCHASTIC_A": np.floor(nu), "STOCHASTIC_B": (np.floor(2 * nu) + 1) // 2}
    return np.where(share[mode] + random >= 2**bits, high, low)


@pytest.mark.parametrize("mode", ["STOCHASTIC", "STOCHASTIC_A", "STOCHASTIC_B"])
@pytest.mark.parametrize("bits", [1, 4, 11])
def test_stochastic_casts_with_explicit_bits_by_exact_counts(mode, bits):
    report = assert_stochastic_counts(
        lambda x, random: with_bits(x, random, bits, mode), "e4m3", random_bits=bits, rounding=mode
    )
    assert report.compared == 2**bits * 60


def test_another_variant_is_told_by_exact_counts():
    with pytest.raises(AssertionError, match="2 of 16 went away from zero, not 1|of 16 went away from zero, not"):
        assert_stochastic_counts(lambda x, r: with_bits(x, r, 4, "STOCHASTIC_A"), "e4m3", random_bits=4)


def test_arguments_of_the_statistics_are_checked():
    with pytest.raises(ValueError, match="takes no random bits"):
        assert_stochastic_counts(with_bits, "e4m3", random_bits=4, rounding="TO_ODD")
    with pytest.raises(ValueError, match="random_bits=17"):
        assert_stochastic_counts(with_bits, "e4m3", random_bits=17)
    with pytest.raises(ValueError, match="use a wider dtype"):
        assert_stochastic_unbiased(lambda x: x, "bf16", dtype="bfloat16", samples=4)
