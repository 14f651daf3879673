"""Figures of merit, verdicts and comparisons: on tensors whose figures are known."""

import dataclasses
import math

import pytest
import torch

from fp8sim import casting, compare
from fp8sim.analysis.figures import PLATEAU_DB, CastFigures, cast_figures, gradient_figures, plateau
from fp8sim.analysis.verdicts import Finding, Verdict, decisive, judge_cast, judge_gradient
from fp8sim.formats import FORMATS, parse

E4M3, E5M2 = parse("e4m3"), parse("e5m2")


def figures(values: list[float], fmt: str = "e4m3") -> CastFigures:
    x = torch.tensor(values)
    return cast_figures(x, casting.cast(x, fmt), parse(fmt))


def test_shares_are_of_the_non_zero_finite_elements() -> None:
    tiny, subnormal, large = 2.0**-11, 2.0**-9, 1000.0
    found = figures([0.0, 0.0, 1.0, tiny, subnormal, large])
    assert (found.elements, found.zeros, found.nonfinite) == (6, 2, 0)
    assert found.zeroed == found.subnormal == found.clipped == 1 / 4
    assert found.exponents == {0: 1, -11: 1, -9: 1, 9: 1}


def test_sqnr_and_gain() -> None:
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])
    found = cast_figures(x, y, E4M3)
    assert found.sqnr == pytest.approx(20 * math.log10(5 / 0.5))
    assert found.gain == pytest.approx((9 + 14) / 25 - 1)
    assert not found.exact


def test_an_exact_cast_has_no_sqnr() -> None:
    found = figures([1.0, -2.0, 0.0])
    assert found.sqnr is None
    assert found.exact
    assert found.gain == 0


def test_an_all_zero_tensor_has_no_figures_and_says_why() -> None:
    found = figures([0.0, -0.0])
    assert found.reason == "all zero"
    assert (found.sqnr, found.gain, found.zeroed, found.clipped) == (None,) * 4


def test_non_finite_elements_are_counted_and_left_out() -> None:
    found = figures([math.inf, math.nan, 1.0, 0.3])
    assert found.nonfinite == 2
    assert found.elements == 4
    assert found.sqnr is not None
    assert figures([math.nan]).reason == "no finite element"


def test_an_overflow_to_infinity_is_the_worst_sqnr_and_fails() -> None:
    x = torch.tensor([1.0, 1e6])
    found = cast_figures(x, casting.cast(x, "fp16", overflow="INFINITY"), parse("fp16"))
    assert found.sqnr == -math.inf
    assert found.clipped == 0.5
    assert decisive(list(judge_cast("x", found, parse("fp16"), trained=True))).verdict is Verdict.FAIL


@pytest.mark.parametrize("name", [f for f in FORMATS if FORMATS[f].signed and FORMATS[f].max < 2**100])
def test_clipped_means_that_unbounded_rounding_exceeds_the_largest(name: str) -> None:
    fmt = FORMATS[name]
    largest, step = float(fmt.max), 2.0 ** (fmt.emax - fmt.mantissa_bits)
    midpoint = torch.tensor(largest + step / 2)
    below = torch.nextafter(midpoint, torch.tensor(0.0))
    above = torch.nextafter(midpoint, torch.tensor(math.inf))
    tie_goes_up = fmt.max_code % 2 == 1
    for x, clipped in ((below, 0.0), (midpoint, float(tie_goes_up)), (above, 1.0), (torch.tensor(largest), 0.0)):
        found = cast_figures(x.reshape(1), torch.full((1,), largest), fmt)
        assert found.clipped == clipped


@pytest.mark.parametrize("name", PLATEAU_DB)
def test_plateaus_are_what_a_normal_tensor_measures(name: str) -> None:
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    found = cast_figures(x, casting.cast(x, name), parse(name))
    assert found.sqnr == pytest.approx(plateau(parse(name)), abs=0.1)
    assert 6.02 * parse(name).mantissa_bits + 13.5 == pytest.approx(plateau(parse(name)), abs=0.15)


def test_gradients() -> None:
    g, r = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert gradient_figures(g, r).cosine == pytest.approx(24 / 25)
    assert gradient_figures(2 * r, r).gain == pytest.approx(1.0)
    assert gradient_figures(torch.zeros(2), r).cosine == 0
    assert gradient_figures(torch.zeros(2), torch.zeros(2)).cosine is None
    assert gradient_figures(torch.zeros(2), torch.zeros(2)).gain is None


GOOD = CastFigures(100, 0, 0, 31.0, False, 0.0, 0.001, 0.0, 0.0, {0: 100})


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"sqnr": 28.5}, Verdict.PASS),
        ({"sqnr": 28.4}, Verdict.WARN),
        ({"sqnr": 21.4}, Verdict.WARN),
        ({"sqnr": 20.1}, Verdict.WARN),
        ({"sqnr": 19.9}, Verdict.FAIL),
        ({"sqnr": 60.0}, Verdict.PASS),
        ({"sqnr": None, "exact": True}, Verdict.PASS),
        ({"sqnr": -math.inf}, Verdict.FAIL),
        ({"sqnr": None, "reason": "all zero"}, Verdict.FAIL),
        ({"clipped": 0.99e-4}, Verdict.PASS),
        ({"clipped": 1e-4}, Verdict.WARN),
        ({"clipped": 0.01}, Verdict.FAIL),
        ({"zeroed": 0.0199}, Verdict.PASS),
        ({"zeroed": 0.02}, Verdict.WARN),
        ({"nonfinite": 1}, Verdict.FAIL),
    ],
)
def test_limits_of_a_cast(change: dict[str, float], verdict: Verdict) -> None:
    found = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert decisive(list(judge_cast("x", found, E4M3, trained=False))).verdict is verdict


def test_an_sqnr_far_below_a_high_plateau_only_fails_below_20_db() -> None:
    for sqnr, verdict in ((39.0, Verdict.WARN), (20.0, Verdict.WARN), (19.0, Verdict.FAIL)):
        found = dataclasses.replace(GOOD, sqnr=sqnr)
        assert decisive(list(judge_cast("x", found, parse("fp16"), trained=False))).verdict is verdict


def test_zeroed_is_not_judged_after_training() -> None:
    found = dataclasses.replace(GOOD, zeroed=0.5)
    assert decisive(list(judge_cast("x", found, E4M3, trained=True))).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [
        (1.0, Verdict.PASS),
        (0.98, Verdict.PASS),
        (0.979, Verdict.WARN),
        (0.95, Verdict.WARN),
        (0.949, Verdict.FAIL),
        (None, Verdict.FAIL),
        (math.nan, Verdict.FAIL),
    ],
)
def test_limits_of_a_gradient(cosine: float | None, verdict: Verdict) -> None:
    found = dataclasses.replace(gradient_figures(torch.ones(1), torch.ones(1)), cosine=cosine)
    assert judge_gradient("up", found).verdict is verdict


def test_the_cause_decides_before_its_consequences() -> None:
    def finding(figure: str, value: float | None, margin: float) -> Finding:
        return Finding(figure, figure, value, Verdict.FAIL, margin, "")

    cast, missing, gradient = finding("sqnr", 0.0, -7.5), finding("sqnr", None, -math.inf), finding("cosine", 0.0, -49)
    passing = Finding("x", "zeroed", 0.0, Verdict.PASS, -99, "")
    assert decisive([passing, gradient, missing, cast]) is cast
    assert decisive([gradient, passing]) is gradient


def test_bitwise_tells_signed_zeros_apart_and_nans_not() -> None:
    expected = torch.tensor([[0.0, 1.0], [math.nan, 2.0]])
    assert compare.bitwise("x", expected.clone(), expected).mismatches == 0
    found = compare.bitwise("x", torch.tensor([[-0.0, 1.0], [math.nan, 2.5]]), expected)
    assert (found.compared, found.mismatches) == (4, 2)
    assert found.first == "x at [0, 0]: is -0, expected 0"
    one_nan = compare.bitwise("x", torch.tensor([math.nan]), torch.tensor([1.0]))
    assert one_nan.mismatches == 1


def test_bitwise_of_another_shape_or_dtype_is_a_mismatch_everywhere() -> None:
    assert compare.bitwise("x", torch.ones(2), torch.ones(3)).mismatches == 3
    assert (
        "is [2] torch.float64, expected [2] torch.float32"
        in compare.bitwise("x", torch.ones(2).double(), torch.ones(2)).first
    )


def test_within_counts_what_exceeds_the_bound_and_nan() -> None:
    actual, expected = torch.tensor([1.0, 2.0, math.nan]), torch.tensor([1.1, 2.3, 0.0]).double()
    found = compare.within("x", actual, expected, torch.tensor([0.2, 0.2, 9.0]).double())
    assert found.mismatches == 2
    assert found.first.startswith("x at [1]: is 2")


def test_comparisons_add_up() -> None:
    total = compare.NOTHING + compare.Comparison(5, 0) + compare.Comparison(3, 1, "a") + compare.Comparison(2, 2, "b")
    assert total == compare.Comparison(10, 3, "a")
