"""Formats: the table of the standards, texts that parse back, combinations that are refused."""

import dataclasses
import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from boundaries import CODEBOOKS, FIXED, NARROW, ODD, P3109_NARROW

from fp8sim.formats import ALIASES, FORMATS, Codebook, Format, Nan, fixed_point, p3109, p3109_formats, parse

# name: largest, smallest normal, smallest, code of the largest, infinity, NaN codes (OCP, IEEE 754, P3109 v4.0 and the
# FNUZ paper); None where there is none.
TABLE = {
    "float32": ((2 - Fraction(2) ** -23) * 2**127, -126, -149, 0x7F7FFFFF, 0x7F800000, 2**24 - 2),
    "tf32": ((2 - Fraction(2) ** -10) * 2**127, -126, -136, 0x3FBFF, 0x3FC00, 2**11 - 2),
    "float16": (65504, -14, -24, 0x7BFF, 0x7C00, 2046),
    "bfloat16": ((2 - Fraction(2) ** -7) * 2**127, -126, -133, 0x7F7F, 0x7F80, 254),
    "float8_e5m2": (57344, -14, -16, 0x7B, 0x7C, 6),
    "float8_e4m3fn": (448, -6, -9, 0x7E, None, 2),
    "float8_e4m3": (240, -6, -9, 0x77, 0x78, 14),
    "float8_e3m4": (Fraction(31, 2), -2, -6, 0x6F, 0x70, 30),
    "float8_e3m4fn": (30, -2, -6, 0x7E, None, 2),
    "float8_e4m3fnuz": (240, -7, -10, 0x7F, None, 1),
    "float8_e5m2fnuz": (57344, -15, -17, 0x7F, None, 1),
    "float8_e4m3b11fnuz": (30, -10, -13, 0x7F, None, 1),
    "float8_e8m0fnu": (Fraction(2) ** 127, -127, -127, 0xFE, None, 1),
    "float6_e2m3fn": (Fraction(15, 2), 0, -3, 0x1F, None, 0),
    "float6_e3m2fn": (28, -2, -4, 0x1F, None, 0),
    "float4_e2m1fn": (6, 0, -1, 0x07, None, 0),
    "binary8p1se": (Fraction(2) ** 62, -63, -63, 0x7E, 0x7F, 1),
    "binary8p1sf": (Fraction(2) ** 63, -63, -63, 0x7F, None, 1),
    "binary8p2se": (Fraction(2) ** 31, -31, -32, 0x7E, 0x7F, 1),
    "binary8p3sf": (57344, -15, -17, 0x7F, None, 1),
    "binary8p4se": (224, -7, -10, 0x7E, 0x7F, 1),
    "binary8p7se": (Fraction(63, 32), 0, -6, 0x7E, 0x7F, 1),
    "binary8p1ue": (Fraction(2) ** 125, -127, -127, 0xFD, 0xFE, 1),
    "binary8p3uf": (3 * Fraction(2) ** 30, -31, -33, 0xFE, None, 1),
    "binary8p8uf": (Fraction(127, 64), 0, -7, 0xFE, None, 1),
    "binary4p2sf": (3, -1, -2, 0x07, None, 1),
    "binary6p4sf": (Fraction(15, 4), -1, -4, 0x1F, None, 1),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str) -> None:
    fmt = parse(name)
    largest, emin, smallest, max_code, inf_code, nan_count = TABLE[name]
    assert (fmt.max, fmt.smallest_normal, fmt.smallest) == (largest, Fraction(2) ** emin, Fraction(2) ** smallest)
    assert (fmt.max_code, fmt.inf_code, fmt.emin) == (max_code, inf_code, emin)
    if fmt.bits <= 16:
        assert sum(fmt.is_nan(code) for code in fmt.codes) == nan_count


@pytest.mark.parametrize("name", [*(n for n in FORMATS if hasattr(ml_dtypes, n)), "float16"])
def test_every_code_is_the_number_of_ml_dtypes(name: str) -> None:
    fmt = FORMATS[name]
    codes = np.arange(1 << fmt.bits, dtype=np.uint8 if fmt.bits <= 8 else np.uint16)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        witness = codes.view(getattr(ml_dtypes, name, name)).astype(np.float64)
    ours = np.array([fmt.to_float(int(code)) for code in codes])
    np.testing.assert_array_equal(ours, witness)
    np.testing.assert_array_equal(np.signbit(ours[~np.isnan(ours)]), np.signbit(witness[~np.isnan(ours)]))


@pytest.mark.parametrize("fmt", [*FORMATS.values(), *P3109_NARROW, *ODD, *FIXED, *CODEBOOKS], ids=str)
def test_texts_parse_back(fmt: Format) -> None:
    assert parse(str(fmt)) == fmt
    assert parse(fmt) is fmt
    renamed = renamed_to("mine", fmt)
    assert renamed == fmt
    assert parse(str(renamed)) == fmt


def renamed_to(name: str, fmt: Format) -> Format:
    if isinstance(fmt, Codebook):
        return Codebook(name, fmt.levels)
    return dataclasses.replace(fmt, name=name)


def test_aliases_name_formats() -> None:
    for alias, name in ALIASES.items():
        assert parse(alias) is FORMATS[name]


@pytest.mark.parametrize("text", ["e4m4", "float8", "", "binary8p9se", "binary2p1se", "e4m3(bias=7)", "E4M3", "fixed8"])
def test_an_unknown_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown format|P3109 has K"):
        parse(text)


REFUSED = {
    "exponent_bits must be": ("x", 0, 3, 7, Nan.NONE),
    "mantissa_bits must be": ("x", 4, 24, 7, Nan.NONE),
    "2 to 32 bits": ("x", 15, 23, 7, Nan.NONE),
    "at most 31 bits": ("x", 9, 23, 7, Nan.NONE, False, False),
    "bias must lie": ("x", 4, 3, 2**15 + 1, Nan.NONE),
    "set infinity=True": ("x", 4, 3, 7, Nan.IEEE),
    "needs a fraction bit": ("x", 4, 0, 7, Nan.IEEE, True),
    "at least 2 exponent bits": ("x", 1, 3, 7, Nan.IEEE, True),
    "use Nan.ALL_ONES": ("x", 4, 3, 7, Nan.NEGATIVE_ZERO, False, False),
    "a finite domain has no infinity": ("x", 4, 3, 7, Nan.NEGATIVE_ZERO, True, True, True, True),
    "can do without zero": ("x", 4, 3, 7, Nan.ALL_ONES, False, True, False),
    "no code is left": ("x", 1, 0, 0, Nan.ALL_ONES, False, True),
    "must be a member of": ("x", 4, 3, 7, "ieee"),
    "bias=1.5 must be an integer": ("x", 4, 3, 1.5, Nan.NONE),
    "use one exponent bit": ("x", 2, 6, 1, Nan.NONE, False, True, True, False, True),
    "a two's complement has a sign": ("x", 1, 6, 1, Nan.NONE, False, False, True, False, True),
    "neither NaN nor infinity: use Nan.NONE": ("x", 1, 6, 1, Nan.NEGATIVE_ZERO, False, True, True, False, True),
    "leaves a code of a two's complement unused": ("x", 1, 6, 1, Nan.NONE, False, True, True, False, False, True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_impossible_combination_is_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Format(*REFUSED[reason])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        ((0.0, 1.0, 2.0), "a codebook has 2, 4, 8, ... or 256 levels, got 3"),
        ((1.0,), "levels, got 1"),
        ((), "levels, got 0"),
        ((1.0, 1.0), "levels must ascend, none of them twice"),
        ((0.0, 1.0, 3.0, 2.0), "levels must ascend"),
        ((0.0, math.inf), "levels must be finite"),
        ((math.nan, 1.0), "levels must be finite"),
        ((-2.0, -1.0), r"the last level must be positive, got \(-1.0,\)"),
    ],
)
def test_levels_that_make_no_codebook_are_refused(levels: tuple[float, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Codebook("x", levels)


def test_texts_that_name_no_codebook_and_no_fixed_point_are_refused() -> None:
    with pytest.raises(ValueError, match="expected numbers, separated by commas"):
        parse("codebook(1,two)")
    with pytest.raises(ValueError, match="nan=quiet: use one of ieee, all_ones, negative_zero, none"):
        parse("e4m3(bias=7,nan=quiet)")
    assert parse("fixed8(fraction=6, symmetric)") == FORMATS["int8_mx_symmetric"]


@pytest.mark.parametrize("text", [None, 3, b"e4m3", ["e4m3"]], ids=repr)
def test_what_is_no_text_names_no_format(text: object) -> None:
    with pytest.raises(TypeError, match="expected a Format or its name, such as 'e4m3'"):
        parse(text)  # type: ignore[arg-type]


FIXED_REFUSED = {
    "bits=1: fixed point takes an integer from 2 to 25 here": (1, 0),
    "bits=26: fixed point": (26, 0),
    "bits=8.0: fixed point": (8.0, 0),
    "fraction_bits=1.5: fixed point": (8, 1.5),
    "fraction_bits=32774: fixed point takes an integer from -32763 to 32773 here": (8, 32774),
    "fraction_bits=-32764: fixed point": (8, -32764),
}


@pytest.mark.parametrize("reason", FIXED_REFUSED)
def test_fixed_point_out_of_range_is_refused_by_its_arguments(reason: str) -> None:
    bits, fraction_bits = FIXED_REFUSED[reason]
    with pytest.raises(ValueError, match=reason):
        fixed_point(bits, fraction_bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 2 to 24 here"):
        fixed_point(25, 0, signed=False)
    for end in (-32763, 32773):
        assert parse(str(fixed_point(8, end))) == fixed_point(8, end)


@pytest.mark.parametrize("fmt", FIXED, ids=str)
def test_fixed_point_is_an_integer_times_a_power_of_two(fmt: Format) -> None:
    for code in fmt.codes:
        integer = code - (1 << fmt.bits) if code & fmt.sign_bit else code
        assert fmt.value(code) == integer * fmt.smallest
        assert fmt.to_float(code) == float(integer * fmt.smallest)
        assert fmt.ordinal(code) == integer
        assert fmt.is_finite(code)
    assert fmt.lowest_code == (0 if not fmt.signed else fmt.sign_bit + fmt.symmetric)
    assert fmt.smallest_normal == fmt.smallest or not fmt.signed
    assert not (fmt.signed and fmt.has_negative_zero)


def test_the_elements_of_mxint8_and_nf4() -> None:
    """OCP MX v1.0, section 5.3.4; QLoRA, appendix E."""
    int8 = parse("int8_mx")
    assert (int8.max, int8.emax, int8.bits, int8.value(0x80), int8.smallest) == (Fraction(127, 64), 0, 8, -2, 2**-6)
    nf4 = parse("nf4")
    assert (nf4.bits, nf4.max, nf4.max_code, nf4.value(7), nf4.value(0), nf4.emax) == (4, 1, 15, 0, -1, 0)
    assert [round(nf4.to_float(code), 8) for code in (1, 6, 8, 14)] == [-0.6961928, -0.09105004, 0.0795803, 0.72295684]
    assert all(float(np.float32(level)) == level for level in nf4.levels)  # type: ignore[attr-defined]
    assert [nf4.ordinal(code) for code in nf4.codes] == list(range(16))
    for method in (nf4.value, nf4.to_float, nf4.ordinal, nf4.is_nan):
        with pytest.raises(ValueError, match="no code of normalfloat4"):
            method(16)


@pytest.mark.parametrize("fmt", [*NARROW, *P3109_NARROW, *ODD], ids=str)
def test_codes_go_up_with_their_numbers(fmt: Format) -> None:
    numbers = [fmt.value(code) for code in range(fmt.max_code + 1)]
    assert all(low < high for low, high in itertools.pairwise(numbers))
    assert [fmt.ordinal(code) for code in range(fmt.max_code + 1)] == list(range(fmt.max_code + 1))
    finite = [code for code in fmt.codes if fmt.is_finite(code)]
    assert all(fmt.ordinal(code) == -fmt.ordinal(code ^ fmt.sign_bit) for code in finite if code & fmt.sign_bit)
    assert Fraction(2) ** fmt.emax <= fmt.max < Fraction(2) ** (fmt.emax + 1)


def test_p3109_has_every_format_of_a_width() -> None:
    names = [fmt.name for fmt in p3109_formats(4)]
    assert len(names) == len(set(names)) == 2 * 3 + 2 * 4
    assert all(parse(name).bits == 4 for name in names)
    for bits in range(3, 17):
        for fmt in p3109_formats(bits):
            one = 1 << (bits - 2 if fmt.signed else bits - 1)
            assert fmt.value(one) == 1
    with pytest.raises(ValueError, match="K-1"):
        p3109(8, 8)


def test_a_code_of_another_format_is_refused() -> None:
    fmt = parse("e2m1")
    for method in (fmt.value, fmt.is_nan, fmt.is_infinite, fmt.is_finite, fmt.to_float, fmt.ordinal):
        with pytest.raises(ValueError, match="no code of float4_e2m1fn"):
            method(16)
    with pytest.raises(ValueError, match="no place among the numbers"):
        parse("e4m3").ordinal(0x7F)
    with pytest.raises(ValueError, match="no fraction can state"):
        parse("e5m2").value(0x7C)
