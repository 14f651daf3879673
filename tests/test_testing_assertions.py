"""The assertions of the testing kit: what they accept, what they refuse, and what they say."""

import ml_dtypes
import numpy as np
import pytest
import torch

from fp8sim import casting, interop
from fp8sim.formats import FORMATS, parse
from fp8sim.testing import assert_bitwise_equal, assert_codes_close
from fp8sim.testing.elements import infinite_codes, nan_codes, ordinals

NARROW = [f for f in FORMATS.values() if f.bits <= 8] + [parse("binary8p4se"), parse("binary6p3uf")]


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_ordinals_and_classes_are_those_of_the_format(fmt):
    codes = np.arange(1 << fmt.bits).astype(np.uint8)
    assert nan_codes(codes, fmt).tolist() == [fmt.is_nan(code) for code in fmt.codes]
    assert infinite_codes(codes, fmt).tolist() == [fmt.is_infinite(code) for code in fmt.codes]
    places = ordinals(codes, fmt)
    assert all(fmt.is_nan(code) or places[code] == fmt.ordinal(code) for code in fmt.codes)


# Bitwise.


def test_bitwise_names_the_first_element_both_codes_and_both_values():
    expected = np.uint8([[0x38, 0x39], [0x3A, 0x7F]])
    actual = np.uint8([[0x38, 0x39], [0x3B, 0x00]])
    with pytest.raises(AssertionError) as caught:
        assert_bitwise_equal(actual, expected, "e4m3", what="output")
    assert str(caught.value) == (
        "output: 2 of 4 elements differ, first at [1, 0]: got 0x3b (1.375), expected 0x3a (1.25)"
    )


def test_bitwise_shows_codes_of_values():
    with pytest.raises(AssertionError, match=r"got 0x3fa00000 \(1\.25\), float8_e4m3fn code 0x3a"):
        assert_bitwise_equal(np.float32([1.25]), np.float32([1.375]), "e4m3")
    with pytest.raises(AssertionError, match=r"\(1\.26\), no number of float8_e4m3fn"):
        assert_bitwise_equal(np.float64([1.26]), np.float64([1.25]), "e4m3")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_bitwise_tells_signed_zeros_apart_and_takes_any_nan_for_any(dtype):
    nan = np.array([np.nan, np.nan], dtype)
    assert_bitwise_equal(nan, -nan)
    with pytest.raises(AssertionError, match="2 of 2"):
        assert_bitwise_equal(nan, -nan, any_nan=False)
    with pytest.raises(AssertionError, match=r"first at \[1\]: got 0x0 \(0\.0\), expected 0x8.*\(-0\.0\)"):
        assert_bitwise_equal(np.array([0.0, 0.0], dtype), np.array([0.0, -0.0], dtype))


def test_bitwise_takes_arrays_of_every_library():
    values = np.float32([0, -0.0, 1.5, np.nan, 448])
    narrow = values.astype(ml_dtypes.float8_e4m3fn)
    tensor = torch.from_numpy(values).to(torch.float8_e4m3fn)
    assert_bitwise_equal(tensor, narrow)
    assert_bitwise_equal(torch.from_numpy(values).bfloat16(), values.astype(ml_dtypes.bfloat16))
    assert_bitwise_equal(narrow, casting.encode(values, "e4m3"), "e4m3")
    assert_bitwise_equal(np.float32(1.5), torch.tensor(1.5))
    assert_bitwise_equal(interop.pack_float4(np.uint8([[1, 2]])), np.uint8([[1, 2]]), "e2m1")
    assert_bitwise_equal(torch.zeros(2, 0), np.zeros((2, 0), np.float32))
    assert_bitwise_equal(np.arange(3), torch.arange(3))


def test_bitwise_refuses_what_cannot_be_equal():
    with pytest.raises(AssertionError, match=r"got shape \(2,\), expected \(1, 2\)"):
        assert_bitwise_equal(np.zeros(2), np.zeros((1, 2)))
    with pytest.raises(AssertionError, match="got dtype float32, expected float64"):
        assert_bitwise_equal(np.zeros(2, np.float32), np.zeros(2))
    with pytest.raises(TypeError, match="actual is a list"):
        assert_bitwise_equal([1.0], np.zeros(1))
    with pytest.raises(TypeError, match="dtype complex128"):
        assert_bitwise_equal(np.zeros(1, complex), np.zeros(1, complex))
    with pytest.raises(ValueError, match="the codes of float4_e2m1fn are 0 to 15"):
        assert_bitwise_equal(np.uint8([16]), np.uint8([0]), "e2m1")


# Close codes.


def test_close_takes_a_budget_that_is_a_count():
    expected = np.full(1000, 0x38, np.uint8)
    actual = expected.copy()
    actual[[3, 700]] = 0x39, 0x37
    assert_codes_close(actual, expected, "e4m3", max_mismatches=2)
    assert_codes_close(actual, expected, "e4m3", max_mismatches=None)
    with pytest.raises(AssertionError, match="2 of 1000 elements differ, 0 beyond max_ulp=1"):
        assert_codes_close(actual, expected, "e4m3", max_mismatches=1)
    with pytest.raises(AssertionError, match="2 beyond max_ulp=0"):
        assert_codes_close(actual, expected, "e4m3", max_ulp=0, max_mismatches=5)


def test_close_shows_a_histogram_and_the_worst_element():
    expected = np.full((10, 10), 0x38, np.uint8)
    actual = expected.copy()
    actual[0, :3], actual[4, 5] = 0x39, 0x3C
    with pytest.raises(AssertionError) as caught:
        assert_codes_close(actual, expected, "e4m3", max_mismatches=10)
    assert str(caught.value) == (
        "codes: 4 of 100 elements differ, 1 beyond max_ulp=1 (allowed to differ: 10)\n"
        "  distance 1: 3\n  distance 4: 1\n"
        "worst at [4, 5]: got 0x3c (1.5), expected 0x38 (1.0)"
    )


def test_close_shortens_a_long_histogram():
    with pytest.raises(AssertionError, match=r"distance 9 to 20: 12"):
        assert_codes_close(np.arange(21).astype(np.uint8), np.zeros(21, np.uint8), "e4m3", max_mismatches=None)


def test_close_crosses_zero():
    assert_codes_close(np.uint8([0x80, 0x00]), np.uint8([0x00, 0x80]), "e4m3")
    assert_codes_close(np.uint8([0x81]), np.uint8([0x01]), "e4m3", max_ulp=2, max_mismatches=1)
    with pytest.raises(AssertionError, match="distance 2: 1"):
        assert_codes_close(np.uint8([0x81]), np.uint8([0x01]), "e4m3", max_mismatches=1)


@pytest.mark.parametrize(
    ("fmt", "actual", "expected"),
    [("e4m3", 0x7F, 0x7E), ("e4m3", 0x7E, 0x7F), ("e5m2", 0x7C, 0x7B), ("e5m2", 0x7C, 0xFC), ("e5m2", 0x7C, 0x7D)],
)
def test_close_has_no_distance_to_nan_and_infinity(fmt, actual, expected):
    with pytest.raises(AssertionError, match="NaN or infinity against something else: 1"):
        assert_codes_close(np.uint8([actual]), np.uint8([expected]), fmt, max_ulp=1000, max_mismatches=None)


def test_close_takes_any_nan_for_any_and_an_infinity_for_itself():
    assert_codes_close(np.uint8([0x7D, 0xFF, 0x7C]), np.uint8([0x7F, 0x7E, 0x7C]), "e5m2")


def test_close_takes_narrow_dtypes_and_refuses_values():
    x = torch.ones(3).to(torch.float8_e5m2)
    assert_codes_close(x, np.uint8([0x3C] * 3), "e5m2")
    with pytest.raises(TypeError, match=r"expected codes of float8_e4m3fn; fp8sim\.encode"):
        assert_codes_close(x, x, "e4m3")
    with pytest.raises(AssertionError, match="shape"):
        assert_codes_close(x, x[:2], "e5m2")
