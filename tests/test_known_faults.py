"""Faults that other implementations of casts had: each one, by the name of its report, cannot come back here.

`REPORTS` lists them, "project #number"; each has a test with both in its name.
"""

import re

import numpy as np
import pytest
import torch

from fp8sim import casting
from fp8sim.formats import FORMATS, parse
from fp8sim.quantizers import QUANTIZERS
from fp8sim.rounding import Rounding

REPORTS = {
    "ml_dtypes": (223, 401),
    "gfloat": (49, 62),
    "qpytorch": (23, 24, 42, 43, 48),
    "pychop": (4,),
    "chop": (5,),
    "cpfloat": (10,),
    "universal": (1302, 1351),
    "onnx": (7784,),
    "openvino": (30057, 34165),
    "tt_metal": (51975,),
    "triton": (2583, 10745, 10778, 11897),
    "intel_triton": (7771,),
    "stochastic_rounding_jl": (62,),
    "onednn": (2903,),
    "te": (2639, 3281),
    "torchao": (2035, 4725),
    "pytorch": (177769, 179111),
    "ocannl": (647,),
}


@pytest.mark.parametrize("project", REPORTS)
def test_every_report_has_a_test(project: str) -> None:
    tests = [name for name in globals() if name.startswith("test_")]
    for number in REPORTS[project]:
        assert any(re.search(rf"_{project}_(\d+_|and_)*{number}(_|$)", name) for name in tests), (project, number)


def cast64(x: float, fmt: str, **options: object) -> float:
    return float(casting.cast(np.float64([x]), fmt, **options)[0])  # type: ignore[arg-type]


def cast32(x: float, fmt: str, **options: object) -> float:
    return float(casting.cast(np.float32([x]), fmt, **options)[0])  # type: ignore[arg-type]


# Double rounding.


@pytest.mark.parametrize(
    ("x", "fmt", "expected"),
    [
        (1 + 2.0**-4 + 2.0**-40, "e4m3", 1.125),
        (432 - 2.0**-44, "e4m3", 416.0),
        (2.0**-10 + 2.0**-60, "e4m3", 2.0**-9),
        (1 + 2.0**-8 + 2.0**-40, "bf16", 1.0078125),
        (1 + 2.0**-11 + 2.0**-40, "fp16", 1.0009765625),
    ],
)
def test_ml_dtypes_401_and_triton_11897_float64_is_rounded_once(x: float, fmt: str, expected: float) -> None:
    assert cast64(x, fmt) == expected


def test_float64_just_above_the_midpoint_beyond_the_largest_overflows() -> None:
    assert np.isnan(cast64(464 + 2.0**-40, "e4m3", overflow="INFINITY"))
    assert cast64(464, "e4m3", overflow="INFINITY") == 448


def test_triton_2583_float32_does_not_go_through_float16() -> None:
    assert cast32(1 + 2.0**-4 + 2.0**-14, "e4m3") == 1.125


def test_openvino_30057_subnormal_numbers_are_rounded_once() -> None:
    assert cast32(2.0**-10 * (1 + 2.0**-23), "e4m3") == 2.0**-9
    assert cast32(2.5 * 2.0**-9 + 2.0**-30, "e4m3") == 3 * 2.0**-9


# Exponents by floating-point logarithms.


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1", "bf16", "fp16", "e8m0"])
def test_gfloat_49_and_chop_5_numbers_beside_a_binade_edge(fmt: str) -> None:
    edges = [2.0**e for e in range(max(parse(fmt).emin, -120), parse(fmt).emax + 1)]
    for edge in edges:
        assert cast64(edge, fmt) == edge
        assert cast64(float(np.nextafter(edge, 0)), fmt) == edge
        assert cast64(float(np.nextafter(edge, np.inf)), fmt) == edge
        assert cast64(float(np.nextafter(edge, 0)), fmt, rounding="TOWARD_ZERO") < edge or edge == edges[0]


# Subnormal numbers.


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3", "fp16", "bf16"])
def test_qpytorch_24_42_43_and_pychop_4_subnormal_numbers_stay(fmt: str) -> None:
    form = parse(fmt)
    step = float(form.smallest)
    multiples = np.arange(2**form.mantissa_bits) * step
    np.testing.assert_array_equal(casting.cast(multiples, fmt), multiples)
    ties = casting.encode(multiples + step / 2, fmt)
    np.testing.assert_array_equal(ties, (np.arange(ties.size) + 1) // 2 * 2)


def test_microxcaling_what_is_just_below_half_the_smallest_number_is_zero() -> None:
    assert cast32(0.49999997 * 2.0**-9, "e4m3") == 0
    assert np.signbit(casting.cast(np.float32([-0.49999997 * 2.0**-9, -0.0]), "e4m3")).all()


def test_ocannl_647_tiny_magnitudes_are_zero_whatever_the_shift() -> None:
    tiny = np.float32(2.0) ** np.arange(-149, -20, dtype=np.float32)
    for fmt in ("e4m3", "e2m1", "e4m3fnuz"):
        assert not casting.encode(tiny, fmt).any()
        np.testing.assert_array_equal(casting.encode(tiny, fmt, rounding="TOWARD_POSITIVE"), 1)


# Ties.


def test_qpytorch_23_ties_go_to_even() -> None:
    x = np.float32([1.0625, 1.1875, 1.3125, -1.0625, 17, 19])
    np.testing.assert_array_equal(casting.cast(x, "e4m3"), [1, 1.25, 1.25, -1, 16, 20])


def test_ml_dtypes_223_ties_of_e8m0_go_to_the_even_code_in_every_binade() -> None:
    powers = np.float32(2.0) ** np.arange(-126, 126, dtype=np.float32)
    codes = casting.encode(np.float32(1.5) * powers, "e8m0")
    assert not (codes % 2).any()
    np.testing.assert_array_equal(
        casting.encode(np.float32(1.5) * powers, "e8m0", rounding="TIES_TO_AWAY"), np.arange(2, 254)
    )


# Overflow.


def test_universal_1302_and_1351_rounding_comes_before_overflow() -> None:
    assert cast32(58000, "e5m2", overflow="INFINITY") == 57344
    assert cast32(61439.996, "e5m2", overflow="INFINITY") == 57344
    assert cast32(61440, "e5m2", overflow="INFINITY") == np.inf
    assert cast32(464, "e4m3", overflow="NAN") == 448


def test_cpfloat_10_e4m3_that_does_not_saturate_gives_nan() -> None:
    assert np.isnan(cast32(480, "e4m3", overflow="INFINITY"))
    assert cast32(480, "e4m3") == 448


def test_pychop_4_infinities_and_large_numbers() -> None:
    np.testing.assert_array_equal(casting.cast(np.float32([300, 448, np.inf, -np.inf]), "e4m3"), [288, 448, 448, -448])


def test_microxcaling_the_largest_float32_is_no_nan() -> None:
    largest = float(np.finfo(np.float32).max)
    assert cast32(largest, "bf16") == float(FORMATS["bfloat16"].max)
    assert cast32(largest, "bf16", overflow="INFINITY") == np.inf
    assert cast32(largest, "float32") == largest


# Codes of NaN and zero.


@pytest.mark.parametrize("mode", Rounding)
def test_qpytorch_48_float32_as_a_format_changes_nothing(mode: Rounding) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 2**16, dtype=np.uint32).view(np.float32)
    number = ~np.isnan(x)
    same = casting.cast(x, "float32", rounding=mode, overflow="INFINITY", seed=1 if mode.is_stochastic else None)
    np.testing.assert_array_equal(same.view(np.uint32)[number], x.view(np.uint32)[number])


@pytest.mark.parametrize("fmt", ["e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "binary8p4se"])
def test_triton_10745_and_10778_the_lone_sign_bit_is_nan(fmt: str) -> None:
    assert np.isnan(casting.decode(np.uint8([0x80]), fmt)).all()
    zeros = casting.encode(np.float32([0.0, -0.0, -1e-30]), fmt)
    np.testing.assert_array_equal(zeros, 0)


def test_intel_triton_7771_the_nan_code_is_not_480() -> None:
    assert np.isnan(casting.decode(np.uint8([0x7F, 0xFF]), "e4m3")).all()


def test_pytorch_177769_nan_is_nan_in_every_lane() -> None:
    for position in range(130):
        x = np.ones(130, np.float32)
        x[position] = np.nan
        codes = casting.encode(x, "e4m3")
        assert codes[position] == 0x7F
        assert (np.delete(codes, position) == 0x38).all()


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.bits <= 16], ids=str)
def test_tt_metal_51975_every_number_survives_the_round_trip(fmt: object) -> None:
    form = parse(fmt)  # type: ignore[arg-type]
    codes = np.arange(1 << form.bits).astype(casting.code_dtype(form))
    finite = codes[[form.is_finite(int(code)) for code in codes]]
    for dtype in ("float64", "float32"):
        expected = np.where(finite == form.sign_bit, form.lowest_code, finite) if form.symmetric else finite
        np.testing.assert_array_equal(casting.encode(casting.decode(finite, form, dtype=dtype), form), expected)


# E8M0.


def test_gfloat_62_e8m0_underflow_is_its_smallest_number() -> None:
    small = np.float64([2.0**-127, 2.0**-128, 1e-45, 1e-300, 0.0])
    np.testing.assert_array_equal(casting.encode(small, "e8m0"), 0)
    np.testing.assert_array_equal(casting.decode(np.uint8([0]), "e8m0", dtype="float64"), 2.0**-127)


def test_openvino_34165_e8m0_subnormal_float32() -> None:
    x = np.float32([2.0**-127, 1.25 * 2.0**-127, 1.75 * 2.0**-127, 2.0**-126])
    np.testing.assert_array_equal(casting.encode(x, "e8m0"), [0, 0, 1, 1])
    assert casting.decode(np.uint8([0]), "e8m0").view(np.uint32) == 0x00400000


def test_onnx_7784_e8m0_rounds_up_from_the_first_bit_of_the_fraction() -> None:
    above = np.nextafter(np.float32(2.0) ** np.arange(-126, 127, dtype=np.float32), np.float32(np.inf))
    np.testing.assert_array_equal(casting.encode(above, "e8m0", rounding="TOWARD_POSITIVE"), np.arange(2, 255))


def test_te_2639_and_torchao_4725_e8m0_from_float32_does_not_go_through_bfloat16() -> None:
    x = torch.tensor([1.5 - 2.0**-12])
    assert casting.encode(x, "e8m0").item() == 127
    assert casting.encode(x.bfloat16(), "e8m0").item() == 128


# Stochastic rounding.


def test_stochastic_rounding_jl_62_subnormal_numbers_and_below_the_smallest() -> None:
    smallest, count = 2.0**-9, 2**16
    for multiple in (0.25, 0.75, 2.5, 2.0**-8):
        codes = casting.encode(np.full(count, multiple * smallest, np.float32), "e4m3", rounding="STOCHASTIC", seed=1)
        assert set(codes) == {int(multiple), int(multiple) + 1}
        share = multiple % 1
        assert abs(codes.mean() - multiple) < 4 * np.sqrt(share * (1 - share) / count)
    never = casting.encode(np.full(count, 2.0**-33 * smallest, np.float32), "e4m3", rounding="STOCHASTIC", seed=1)
    assert not never.any()


def test_onednn_2903_the_random_bits_meet_the_discarded_ones() -> None:
    for fmt in ("e5m2", "e4m3", "e2m1", "bf16", "fp16"):
        tie = 1 + 2.0 ** -(parse(fmt).mantissa_bits + 1)
        up = casting.cast(np.full(4096, tie, np.float32), fmt, rounding="STOCHASTIC", seed=2) > 1
        assert 0.45 < up.mean() < 0.55


def test_te_3281_small_formats_round_stochastically_without_an_instruction_for_it() -> None:
    x = np.full(4096, 1.25, np.float32)
    for fmt in ("e2m1", "e2m3", "e4m3"):
        for mode in ("STOCHASTIC", "STOCHASTIC_A", "STOCHASTIC_B"):
            numbers = casting.cast(x, fmt, rounding=mode, seed=4)
            assert (numbers >= 1).all()
            assert abs(numbers.mean() - 1.25) < 0.05


# Scale factors.


def test_torchao_2035_the_rule_of_mx_factors_is_part_of_the_name() -> None:
    """FLOOR clips what exceeds 448/512 of the next power of two; RCEIL clips nothing."""
    x = np.full(32, 511, np.float32)
    floor, rceil = (QUANTIZERS[name].quantize(x) for name in ("mxfp8_e4m3", "mxfp8_e4m3_rceil"))
    assert (floor.scales.item(), rceil.scales.item()) == (127, 128)
    assert (floor.dequantize() == 448).all()
    assert (rceil.dequantize() == 512).all()


def test_pytorch_179111_small_factors_of_nvfp4_stay_small() -> None:
    """A factor of at least 2^-6, torchao's, makes a third more of numbers that a subnormal factor keeps."""
    x = np.zeros(32, np.float32)
    x[0], x[16:] = 2688, 6 * 2.0**-9
    plain, torchao = (QUANTIZERS[name].quantize(x) for name in ("nvfp4", "nvfp4_torchao"))
    np.testing.assert_array_equal(plain.dequantize(), x)
    assert torchao.scales[..., 1].item() == 0x08
    np.testing.assert_array_equal(torchao.dequantize()[16:], 4 / 3 * x[16:])
