"""Scale factors: every rule on boundaries of amax against exact rationals, granularities, and what is refused."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fp8sim import formats, scaling
from fp8sim.formats import Format
from fp8sim.granularity import Granularity
from fp8sim.quantizers import QUANTIZERS
from fp8sim.scaling import Order, ScaleRule, ScaleSpec, amax
from tests import scale_oracle
from tests.boundaries import each_isa

MX_RULES = [rule for rule in ScaleRule if rule.is_mx]
ELEMENTS = [
    "e4m3",
    "e5m2",
    "e2m3",
    "e3m2",
    "e2m1",
    "int8_mx",
    "bf16",
    "e3m2(bias=20,nan=none)",
    "e3m2(bias=-60,nan=none)",
]


def boundaries(fmt: Format) -> NDArray[np.uint32]:
    """Patterns of amax: powers of two, multiples of max, EVEN's thresholds, their neighbours, subnormals, specials."""
    tie = 2 - Fraction(1, 2 ** (fmt.mantissa_bits + 1))
    significands = {Fraction(1), Fraction(3, 2), fmt.max / Fraction(2) ** fmt.emax, tie}
    numbers = [float(s) * 2.0**e for s in significands for e in (*range(-150, -118), *range(-4, 5), *range(112, 128))]
    exact = np.array(numbers, np.float32)[np.abs(numbers) < 2.0**128].view(np.uint32).astype(np.int64)
    around = (exact[:, None] + np.arange(-2, 3)).ravel()
    specials = [0, 1, 2, 3, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]
    return np.unique(np.append(around[(around >= 0) & (around < 0x7F800000)], specials)).astype(np.uint32)


def numbers(bits: NDArray[np.uint32]) -> list[scale_oracle.Number]:
    return [scale_oracle.number(float(x)) for x in bits.view(np.float32)]


def e8m0_codes(bits: NDArray[np.uint32], fmt: Format, rule: ScaleRule) -> NDArray[np.uint8]:
    spec = ScaleSpec(Granularity(1, 1), rule, Order.DIVIDE, scaling.E8M0, propagate=True)
    found = scaling.factors(bits, fmt, spec)
    exponents = np.where(found.stored == 0xFF, np.nan, 127.0 - found.stored)
    assert np.array_equal(found.applied, np.exp2(exponents).astype(np.float32), equal_nan=True)
    return found.stored


@pytest.mark.parametrize("rule", MX_RULES)
@pytest.mark.parametrize("fmt", [formats.parse(name) for name in ELEMENTS], ids=ELEMENTS)
def test_e8m0_codes_are_those_of_the_equations(fmt: Format, rule: ScaleRule) -> None:
    bits = boundaries(fmt)
    expected = [scale_oracle.e8m0_code(x, fmt, rule) for x in numbers(bits)]
    for _ in each_isa():
        assert e8m0_codes(bits, fmt, rule).tolist() == expected


def test_e8m0_codes_at_the_edges() -> None:
    """Read off the text of OCP MX v1.0 and cuBLAS, not computed: amax -> code for E4M3, whose largest number is 448."""
    cases = [
        # amax                  FLOOR CEIL  EVEN RCEIL
        (448.0, (127, 128, 127, 127)),
        (np.nextafter(np.float32(448), np.float32(449)), (127, 128, 127, 128)),
        (256.0, (127, 127, 127, 127)),
        (np.nextafter(np.float32(256), np.float32(0)), (126, 127, 127, 127)),
        (480.0, (127, 128, 127, 128)),
        (496.0, (127, 128, 128, 128)),
        (2.0**-149, (0, 0, 0, 0)),
        (0.0, (0, 0, 0, 0)),
        (float(np.finfo(np.float32).max), (246, 247, 247, 247)),
        (math.inf, (255, 255, 255, 255)),
        (math.nan, (255, 255, 255, 255)),
    ]
    for amax_value, codes in cases:
        bits = np.array([amax_value], np.float32).view(np.uint32)
        assert tuple(int(e8m0_codes(bits, formats.parse("e4m3"), rule)[0]) for rule in MX_RULES) == codes


ONE_LEVEL = {
    f"{rule.name}-{order.name}{'-propagate' * propagate}": ScaleSpec(
        Granularity(1, 1), rule, order, propagate=propagate
    )
    for rule in (ScaleRule.AMAX, ScaleRule.POWER_OF_TWO_AMAX)
    for order in (Order.MULTIPLY, Order.DIVIDE)
    for propagate in (False, True)
} | {
    f"{order.name}-floor{'-propagate' * propagate}": ScaleSpec(
        Granularity(1, 1), ScaleRule.AMAX, order, amax_floor=1e-12, propagate=propagate
    )
    for order in (Order.MULTIPLY, Order.DIVIDE)
    for propagate in (False, True)
}


def same(actual: NDArray[Any], expected: list[scale_oracle.Number]) -> bool:
    """Equal numbers, NaN to NaN."""
    wanted = np.array([float(x) for x in expected])
    return np.array_equal(actual.astype(np.float64), wanted, equal_nan=True)


@pytest.mark.parametrize("spec", ONE_LEVEL.values(), ids=ONE_LEVEL)
@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1", "e3m2(bias=-60,nan=none)", "e3m2(bias=90,nan=none)"])
def test_float32_factors_are_those_of_the_equations(fmt: str, spec: ScaleSpec) -> None:
    form = formats.parse(fmt)
    bits = boundaries(form)
    expected = [scale_oracle.one_level(x, form, spec) for x in numbers(bits)]
    for _ in each_isa():
        found = scaling.factors(bits, form, spec)
        assert same(found.stored, [stored for stored, _ in expected])
        assert same(found.applied, [applied for _, applied in expected])


def check_two_levels(bits: NDArray[np.uint32], fmt: Format, spec: ScaleSpec) -> None:
    expected = scale_oracle.factors({(i,): x for i, x in enumerate(numbers(bits))}, fmt, spec)
    # dividing by infinity makes the zero that the definition wants where the factor is zero
    applied = [math.inf if spec.order.divides and x == 0 else x for x in expected.applied.values()]
    for _ in each_isa():
        found = scaling.factors(bits, fmt, spec)
        assert found.tensor is not None
        assert same(found.tensor.reshape(1), [expected.tensor])
        assert found.stored.tolist() == list(expected.codes.values())
        assert same(found.applied, applied)


@pytest.mark.parametrize("order", [order for order in Order if order.has_two_levels])
@pytest.mark.parametrize("propagate", [False, True])
def test_two_level_factors_are_those_of_the_equations(order: Order, propagate: bool) -> None:
    fmt, store = formats.parse("e2m1"), formats.parse("e4m3")
    spec = ScaleSpec(Granularity(1, 1), ScaleRule.AMAX, order, store, propagate=propagate)
    blocks = boundaries(fmt)[::7]
    for whole in (0, 1, 0x7FFFFF, 0x2F000001, 0x3F7FFFFF, 0x45280000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000):
        bits = np.append(blocks[blocks < whole][::5], [0, whole]).astype(np.uint32)
        check_two_levels(bits, fmt, spec)


@pytest.mark.parametrize("order", [order for order in Order if order.has_two_levels])
def test_two_level_factors_at_the_ties_of_the_blocks_format(order: Order) -> None:
    """amax of blocks so near to ties of E4M3 that each rounding on the way decides."""
    fmt, store = formats.parse("e2m1"), formats.parse("e4m3")
    spec = ScaleSpec(Granularity(1, 1), ScaleRule.AMAX, order, store)
    ties = np.array([float(store.value(c) + store.value(c + 1)) / 2 for c in range(store.max_code)])
    for whole in np.array([2688.0, 5.3, 1.7e-3, 77.7e8], np.float32):
        exact = (ties * float(whole) / 448).astype(np.float32).view(np.uint32)
        around = (exact[:, None] + np.arange(-2, 3)).ravel().astype(np.uint32)
        bits = np.append(around[around < whole.view(np.uint32)], whole.view(np.uint32))
        check_two_levels(bits, fmt, spec)


def test_factors_do_not_depend_on_the_process_flushing_subnormals() -> None:
    fmt = formats.parse("e4m3")
    bits = boundaries(fmt)
    specs = [q.scale for q in QUANTIZERS.values() if q.format == fmt and q.scale is not None]
    expected = [scaling.factors(bits, fmt, spec) for spec in specs]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        actual = [scaling.factors(bits, fmt, spec) for spec in specs]
    finally:
        torch.set_flush_denormal(False)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.stored.tobytes() == theirs.stored.tobytes()
        assert ours.applied.tobytes() == theirs.applied.tobytes()


# amax and granularity


shapes = st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple)
blocks = st.builds(Granularity, st.none() | st.integers(1, 5), st.none() | st.integers(1, 5))


@given(shapes, blocks, st.sampled_from(["numpy", "torch"]), st.integers(0, 2**32 - 1))
def test_amax_is_that_of_a_loop_over_blocks(
    shape: tuple[int, ...], granularity: Granularity, kind: str, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if len(shape) < 1 + (granularity.rows != 1) and not granularity.is_whole_tensor:
        with pytest.raises(ValueError, match=r"x has shape .* takes . axes or more"):
            amax(x, granularity)
        return
    spec = ScaleSpec(granularity, ScaleRule.FLOOR, Order.DIVIDE, scaling.E8M0, propagate=True)
    expected = np.zeros(granularity.scale_shape(shape), np.float32)
    for index in np.ndindex(shape):
        block = scale_oracle.block_of(index, spec)
        expected[block] = max(expected[block], abs(x[index]))
    actual = amax(x, granularity) if kind == "numpy" else amax(torch.from_numpy(x), granularity).numpy()
    assert actual.dtype == np.float32
    assert np.array_equal(actual, expected)


@given(shapes, blocks)
def test_blocks_join_to_what_was_split(shape: tuple[int, ...], granularity: Granularity) -> None:
    x = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    if len(shape) >= 2 or granularity.is_whole_tensor:
        assert np.array_equal(granularity.join(granularity.split(x), shape), x)


def test_amax_of_special_values_and_of_every_dtype() -> None:
    x = np.array([[1, -2, 0.5, -0.0], [-np.inf, 1, 2, 3], [np.nan, np.inf, 0, 1], [-0.0, 0, 0, 0]], np.float32)
    expected = np.array([[2], [np.inf], [np.nan], [0]], np.float32)
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        assert np.array_equal(amax(x.astype(dtype), "row"), expected, equal_nan=True)
    for torch_dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(x).to(torch_dtype).mT.contiguous().mT
        assert torch.equal(amax(tensor, "row").nan_to_num(7.0), torch.from_numpy(expected).nan_to_num(7.0))
    assert not np.signbit(amax(x, "row")).any()
    assert float(amax(np.array([1 + 2.0**-30, 1e300]), "1x1")[0]) == 1.0
    assert math.isinf(amax(np.array([1e300]), "tensor"))


@pytest.mark.parametrize("text", ["tensor", "row", "column", "1x32", "128x128", "*x4", "16x*"])
def test_a_granularity_is_its_text(text: str) -> None:
    assert str(Granularity.parse(text)) == text
    assert Granularity.parse(Granularity.parse(text)) == Granularity.parse(text)


specs = st.sampled_from([q.scale for q in QUANTIZERS.values() if q.scale is not None])


@given(specs, blocks, st.booleans(), st.sampled_from([0.0, 1e-12, 1e-4]))
def test_a_scale_factor_is_its_text(spec: ScaleSpec, granularity: Granularity, fused: bool, floor: float) -> None:
    if spec.order.has_two_levels and granularity.is_whole_tensor:
        granularity = Granularity(1, 16)
    floor = 0.0 if spec.rule.is_mx or spec.order.has_two_levels else floor
    spec = dataclasses.replace(spec, granularity=granularity, fused=fused, amax_floor=floor)
    assert ScaleSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("32/FLOOR/DIVIDE/e8m0/propagate", "granularity='32': use tensor, row, column, or a block as in '1x32'"),
        ("0x4/AMAX/DIVIDE/float32", "rows=0: a block has at least one element"),
        ("1x32/FLOOR", "expected GRANULARITY/RULE/ORDER/FORMAT"),
        ("1x32/LOG/DIVIDE/e8m0", "rule='LOG': use one of AMAX"),
        ("1x32/AMAX/ADD/float32", "order='ADD': use one of MULTIPLY"),
        ("1x32/AMAX/DIVIDE/e9", "unknown format 'e9'"),
        ("1x32/AMAX/DIVIDE/float32/fast", r"unknown \['fast'\]"),
        ("1x32/FLOOR/MULTIPLY/e8m0/propagate", "FLOOR is stored as float8_e8m0fnu, divides and propagates"),
        ("1x32/RCEIL/DIVIDE/float32/propagate", "RCEIL is stored as float8_e8m0fnu, divides and propagates"),
        ("1x32/AMAX/DIVIDE/e8m0", "AMAX in one level is stored as float32"),
        ("1x16/POWER_OF_TWO_AMAX/TWO_LEVEL_DIVIDE/e4m3", "a two-level order takes the rule AMAX"),
        ("1x16/AMAX/TWO_LEVEL_DIVIDE/e8m0", "a format of at most 8 bits with zero"),
        ("tensor/AMAX/TWO_LEVEL_DIVIDE/e4m3", "the whole tensor needs no second level"),
        ("row/AMAX/DIVIDE/float32/amax_floor=-1", "must be finite and not negative"),
        ("1x16/AMAX/TWO_LEVEL_DIVIDE/e4m3/amax_floor=1", "amax_floor belongs to"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleSpec.parse(text)


def test_a_format_must_suit_the_rule() -> None:
    even = ScaleSpec.parse("1x32/EVEN/DIVIDE/e8m0/propagate")
    with pytest.raises(ValueError, match="EVEN rounds amax to fewer than 23 fraction bits"):
        scaling.check(formats.parse("float32"), even)
    with pytest.raises(ValueError, match="largest number is one of float32's normal range"):
        scaling.check(formats.parse("e4m3(bias=200,nan=none)"), even)
    with pytest.raises(ValueError, match="largest number is one of float32's normal range"):
        scaling.check(formats.Codebook("x", (0, 0.1)), ScaleSpec.parse("1x32/AMAX/DIVIDE/float32"))
    with pytest.raises(ValueError, match="fraction bits, which a codebook lacks"):
        scaling.check(formats.parse("nf4"), even)
