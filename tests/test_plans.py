"""Plans: their texts, how they cut K, and whole GEMMs against one number after another in plain arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fp8sim
from fp8sim import mma
from fp8sim.mma.plans import GemmPlan, Merge, Place, Product
from fp8sim.ops.matmul import linear
from fp8sim.recipes import RECIPES, parse
from fp8sim.rounding import Rounding

E4M3 = "float8_e4m3fn"
WGMMA = mma.parse("sm90.wgmma", E4M3)


def codes(seed: int, *shape: int, spread: float = 1.0) -> np.ndarray[Any, Any]:
    x = np.random.default_rng(seed).standard_normal(shape) * spread
    return fp8sim.encode(x.astype(np.float32), "e4m3")


plan_strategy = st.builds(
    GemmPlan,
    st.sampled_from(["sm90.wgmma", "sm89.mma", "sm100.tcgen05"]),
    flush=st.sampled_from([32, 48, 64, 128]),
    block_k=st.sampled_from([None, 64, 96]),
    split_k=st.integers(1, 4),
    merge=st.sampled_from(Merge),
    factors=st.sampled_from(Place),
    product=st.sampled_from(Product),
    fused=st.booleans(),
    rounding=st.sampled_from([Rounding.TIES_TO_EVEN, Rounding.TOWARD_ZERO]),
)


@given(plan_strategy)
def test_a_plan_is_what_its_text_says(plan: GemmPlan) -> None:
    assert mma.parse_plan(str(plan)) == plan


@pytest.mark.parametrize("name", mma.PLANS)
def test_named_plans_are_what_their_texts_say(name: str) -> None:
    plan = mma.PLANS[name]
    assert mma.parse_plan(name) == plan
    assert mma.parse_plan(str(plan)) == plan
    assert mma.resolve(plan, E4M3, E4M3).k in (16, 32)


@given(plan_strategy, st.integers(0, 700))
def test_chains_cover_k_once_in_order_and_end_where_the_plan_says(plan: GemmPlan, k: int) -> None:
    parts = plan.segments(k, 32)
    chains = [chain for part in parts for chain in part]
    assert len(parts) <= plan.split_k
    assert [start for start, _ in chains] == [0, *(stop for _, stop in chains[:-1])][: len(chains)]
    assert chains == [] or chains[-1][1] == k
    assert plan.flush is not None
    for start, stop in chains:
        assert stop - start <= -(-plan.flush // 32) * 32
        assert plan.block_k is None or start // plan.block_k == (stop - 1) // plan.block_k


def rounded(x: Fraction) -> Fraction:
    """To binary32, ties to even; every number here is in range."""
    if x == 0:
        return x
    exponent = 0
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    return round(x / unit) * unit  # Python rounds ties to even


def by_hand(a: Any, b: Any, row: Any, column: Any, c: Any, plan: GemmPlan) -> np.ndarray[Any, Any]:
    """One element after another: chains from `mma.chain`, everything else in exact rationals, rounded to binary32."""
    model, k = mma.resolve(plan, E4M3, E4M3), a.shape[1]
    result = np.empty((len(a), len(b)), np.float32)
    for i, j in np.ndindex(*result.shape):
        sums = []
        for part in plan.segments(k, model.k):
            total = Fraction(0) if c is None or sums else Fraction(float(c[i, j]))
            for start, stop in part:
                partial = mma.chain(a[i : i + 1, start:stop], b[j : j + 1, start:stop], model=model)
                at_flush = plan.factors is Place.FLUSH
                total = flushed(total, Fraction(float(partial[0, 0])), row[i], column[j], plan, at_flush)
            sums.append(total)
        total = merged(sums, plan.merge)
        if plan.factors is Place.EPILOGUE:
            x, y = Fraction(float(row[i])), Fraction(float(column[j]))
            total = rounded(rounded(total * x) * y) if plan.product is Product.SUCCESSIVE else total * rounded(x * y)
        result[i, j] = float(rounded(total))
    return result


def flushed(total: Fraction, p: Fraction, row: float, column: float, plan: GemmPlan, with_factors: bool) -> Fraction:
    if not with_factors:
        return rounded(total + p)
    x, y = Fraction(float(row)), Fraction(float(column))
    left, right = (rounded(p * x), y) if plan.product is Product.SUCCESSIVE else (rounded(x * y), p)
    return rounded(total + left * right) if plan.fused else rounded(total + rounded(left * right))


def merged(sums: list[Fraction], merge: Merge) -> Fraction:
    if merge is Merge.DESCENDING:
        sums = sums[::-1]
    while merge is Merge.TREE and len(sums) > 1:
        sums = [rounded(sum(sums[i : i + 2], Fraction(0))) for i in range(0, len(sums), 2)]
    total = sums[0]
    for part in sums[1:]:
        total = rounded(total + part)
    return total


@settings(max_examples=60)
@given(plan_strategy, st.integers(1, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_a_gemm_is_its_plan_carried_out_by_hand(plan: GemmPlan, k: int, seed: int, starts: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = codes(seed, 2, k, spread=4), codes(seed + 1, 3, k)
    row, column = (rng.uniform(0.1, 3, n).astype(np.float32) for n in (2, 3))
    c = rng.standard_normal((2, 3)).astype(np.float32) if starts else None
    actual = fp8sim.matmul(a, b.T, c, a_format="e4m3", b_format="e4m3", a_scale_inv=row, b_scale_inv=column, plan=plan)
    np.testing.assert_array_equal(actual, by_hand(a, b, row, column, c, plan))


def test_one_chain_is_the_chain() -> None:
    a, b, c = codes(1, 5, 100), codes(2, 7, 100), np.ones((5, 7), np.float32)
    for accumulate in ("sm90.wgmma", "sm89.mma", "sm90.mma", "sm100.tcgen05"):
        actual = fp8sim.matmul(a, b.T, c, a_format="e4m3", b_format="e4m3", accumulate=accumulate)
        model = mma.parse(accumulate, E4M3)
        np.testing.assert_array_equal(actual, mma.chain(a, b, c, model=model))


def test_triton_without_imprecise_accumulation_multiplies_float16() -> None:
    a, b = codes(1, 5, 100), codes(2, 7, 100)
    halves = [fp8sim.decode(x, "e4m3").astype(np.float16) for x in (a, b)]
    actual = fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3", plan="triton.sm90.imprecise0")
    np.testing.assert_array_equal(actual, fp8sim.matmul(halves[0], halves[1].T, accumulate="sm90.mma"))


def test_deepgemm_applies_each_blocks_factor_as_it_flushes() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(5, 300), torch.randn(200, 300)
    a, b = fp8sim.quantize(x, "fp8_1x128"), fp8sim.quantize(w, "fp8_128x128")
    actual = fp8sim.matmul(a, b, plan="deepgemm.sm90")
    # The same from codes and factors of the public form, B blocks along K.
    column_blocks = torch.as_tensor(b.scales)
    again = fp8sim.matmul(
        a.codes,
        b.codes.T,
        a_format="e4m3",
        b_format="e4m3",
        a_scale_inv=a.scales,
        b_scale_inv=column_blocks.T,
        plan="deepgemm.sm90",
    )
    assert torch.equal(actual, again)
    doubled = a.scales.clone()
    doubled[2, 1] *= 2
    changed = fp8sim.matmul(
        a.codes,
        b.codes.T,
        a_format="e4m3",
        b_format="e4m3",
        a_scale_inv=doubled,
        b_scale_inv=column_blocks.T,
        plan="deepgemm.sm90",
    )
    assert (changed != again).any(1).nonzero().flatten().tolist() == [2], "one block's factor changes its own row alone"


@pytest.mark.parametrize(
    ("quantizer", "accumulate"),
    [
        ("mxfp8", "sm100.tcgen05.mxf8f6f4"),
        ("mxfp4", "sm120.mma.mxf4"),
        ("nvfp4", "sm100.tcgen05.mxf4nvf4.block16.ue4m3"),
    ],
)
def test_block_scaled_instructions_take_the_quantizers_factors(quantizer: str, accumulate: str) -> None:
    torch.manual_seed(0)
    a, b = (fp8sim.quantize(torch.randn(rows, 160), quantizer) for rows in (6, 5))
    actual = fp8sim.matmul(a, b, accumulate=accumulate)
    exact = a.dequantize(torch.float64) @ b.dequantize(torch.float64).T
    amax = [float(x.dequantize().abs().max()) for x in (a, b)]
    bound = mma.error_bound(160, *amax, mma.parse(accumulate, str(a.quantizer.format)))
    assert 0 <= float((actual - exact).abs().max()) <= float(bound) < 0.2


@pytest.mark.parametrize("output", ["float16", "bfloat16", "e5m2"])
def test_the_output_is_rounded_once(output: str) -> None:
    a, b = codes(1, 9, 64), codes(2, 8, 64)
    wide = fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3")
    for plan, mode in (("sm90.wgmma", "TIES_TO_EVEN"), ("sm90.wgmma;rounding=TOWARD_ZERO", "TOWARD_ZERO")):
        actual = fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3", plan=plan, output=output)
        numbers = fp8sim.decode(actual, output) if output == "e5m2" else actual.astype(np.float32)
        np.testing.assert_array_equal(numbers, fp8sim.cast(wide, output, rounding=mode))


def test_kinds_of_operands_agree() -> None:
    torch.manual_seed(0)
    x, w = (fp8sim.cast(torch.randn(rows, 70), "e4m3") for rows in (4, 6))
    expected = fp8sim.matmul(x, w.T, a_format="e4m3", b_format="e4m3")
    forms = [
        (x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn).T, {}),
        (fp8sim.encode(x, "e4m3"), fp8sim.encode(w, "e4m3").T, {"a_format": "e4m3", "b_format": "e4m3"}),
        (fp8sim.quantize(x, "e4m3"), fp8sim.quantize(w, "e4m3"), {}),
        (x.bfloat16(), w.bfloat16().T, {"a_format": "e4m3", "b_format": "e4m3"}),
    ]
    for a, b, options in forms:
        assert torch.equal(fp8sim.matmul(a, b, **options), expected)
    in_numpy = fp8sim.matmul(x.numpy(), w.numpy().T, a_format="e4m3", b_format="e4m3")
    assert isinstance(in_numpy, np.ndarray)
    np.testing.assert_array_equal(in_numpy, expected.numpy())


def test_leading_dimensions_broadcast_and_empty_sums_are_c() -> None:
    a, b = codes(1, 3, 1, 4, 50), codes(2, 5, 6, 50)
    actual = fp8sim.matmul(a, b.swapaxes(1, 2), a_format="e4m3", b_format="e4m3", plan="deepgemm.sm90")
    assert actual.shape == (3, 5, 4, 6)
    for i, j in itertools.product(range(3), range(5)):
        one = fp8sim.matmul(a[i, 0], b[j].T, a_format="e4m3", b_format="e4m3", plan="deepgemm.sm90")
        np.testing.assert_array_equal(actual[i, j], one)
    c = np.full((2, 3), 1.5, np.float32)
    for plan in ("sm90.wgmma", "deepgemm.sm90", "sm90.wgmma;split_k=2"):
        nothing = fp8sim.matmul(codes(1, 2, 0), codes(1, 3, 0).T, c, a_format="e4m3", b_format="e4m3", plan=plan)
        np.testing.assert_array_equal(nothing, c)


def test_bits_do_not_depend_on_the_process_flushing_subnormals() -> None:
    a, b = codes(1, 4, 256), codes(2, 4, 256)
    options = {"a_format": "e4m3", "b_format": "e4m3", "a_scale_inv": 2.0**-135, "plan": "deepgemm.sm90"}
    expected = fp8sim.matmul(a, b.T, **options)
    assert 0 < np.abs(expected).min() < 2.0**-126
    torch.set_flush_denormal(True)
    try:
        np.testing.assert_array_equal(fp8sim.matmul(a, b.T, **options).view(np.int32), expected.view(np.int32))
    finally:
        torch.set_flush_denormal(False)


def test_nan_is_the_one_that_gpus_return() -> None:
    a, b = codes(1, 2, 256), codes(2, 2, 256)
    a[0, 0] = 0x7F
    for plan in ("sm90.wgmma", "deepgemm.sm90"):
        result = fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3", plan=plan).view(np.uint32)
        assert result[0].tolist() == [0x7FFFFFFF] * 2


BOUNDED = ["sm90.wgmma", "sm89.mma", "sm90.mma", "sm100.tcgen05", "deepgemm.sm90", "sm90.wgmma;split_k=3"]


@pytest.mark.parametrize("plan", BOUNDED)
@pytest.mark.parametrize("output", ["float32", "bfloat16"])
def test_errors_stay_within_the_bound(plan: str, output: str) -> None:
    order = mma.parse_plan(plan)
    model = mma.resolve(order, E4M3, E4M3)
    for seed, k in itertools.product(range(4), (32, 100, 1024)):
        a, b = codes(seed, 8, k, spread=3) & 0x7F, codes(seed + 9, 8, k) & 0x7F  # cuts of one sign add up
        x, y = (fp8sim.decode(operand, "e4m3", dtype="float64") for operand in (a, b))
        bound = mma.error_bound(k, x.max(1)[:, None], y.max(1)[None], model, order, output=output)
        result = fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3", plan=plan, output=output)
        assert (np.abs(result.astype(np.float64) - x @ y.T) <= bound).all()


def test_the_bound_is_within_a_factor_of_three_of_what_hopper_can_lose() -> None:
    """Beside a product of 1, thirty-one below 2^-13 are cut to nothing."""
    a, b = np.full((1, 32), 1.875 * 2.0**-6, np.float32), np.full((1, 32), 2.0**-8, np.float32)
    a[0, 0] = b[0, 0] = 1
    lost = float((a.astype(np.float64) @ b.T).item() - fp8sim.matmul(a, b.T, a_format="e4m3", b_format="e4m3").item())
    assert lost == 31 * 1.875 * 2.0**-14
    assert lost < float(mma.error_bound(32, 1, 1, WGMMA)) < 3 * lost


@pytest.mark.parametrize("accumulate", ["sm90.wgmma", "deepgemm.sm90"])
def test_a_recipe_adds_as_a_tensor_core_in_all_three_gemms(accumulate: str) -> None:
    base = RECIPES["fp8_naive"]
    gemms = {name: dataclasses.replace(base.gemm(name), accumulate=accumulate) for name in ("output", "grad_input")}
    gemms["grad_weight"] = dataclasses.replace(base.grad_weight, accumulate=accumulate)
    recipe = dataclasses.replace(base, name="hopper", **gemms)
    assert parse(str(recipe)) == recipe
    torch.manual_seed(0)
    x, w, g = torch.randn(6, 40, requires_grad=True), torch.randn(5, 40, requires_grad=True), torch.randn(6, 5)
    y = linear(x, w, recipe=recipe)
    y.backward(g)
    cast = {name: fp8sim.quantize(t, fmt) for name, t, fmt in (("x", x, "e4m3"), ("w", w, "e4m3"), ("g", g, "e5m2"))}
    turned = {
        name: fp8sim.quantize(t.mT, fmt) for name, t, fmt in (("x", x, "e4m3"), ("w", w, "e4m3"), ("g", g, "e5m2"))
    }
    assert torch.equal(y, fp8sim.matmul(cast["x"], cast["w"], plan=accumulate))
    assert torch.equal(x.grad, fp8sim.matmul(cast["g"], turned["w"], plan=accumulate))
    assert torch.equal(w.grad, fp8sim.matmul(turned["g"], turned["x"], plan=accumulate))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a_format": None}, "a has dtype uint8: say what its codes mean with a_format="),
        ({"b_format": "e2m1"}, "b_format=float4_e2m1fn: sm90.wgmma accepts"),
        ({"b_format": "e2m1", "accumulate": "sm120.mma"}, "codes contain"),
        ({"accumulate": "sm80.mma"}, "sm80.mma accepts f16.f16.f32"),
        ({"accumulate": "sm91.mma"}, "accumulate='sm91.mma' is no instruction"),
        ({"plan": "deepgem"}, "plan 'deepgem': 'deepgem' is no instruction .* the named plans are triton.sm90"),
        ({"output": "int8"}, "output='int8': unknown format"),
        ({"plan": "sm90.wgmma;flash=3"}, "'flash=3' is none of widen="),
        ({"plan": "sm90.wgmma;flush=0"}, "flush=0: must be positive"),
        ({"plan": "sm90.wgmma;factors=flush"}, "factors=flush needs flush=N"),
        ({"plan": "deepgemm.sm90", "accumulate": "sm89.mma"}, "is made of sm90.wgmma: leave one out"),
        ({"a_scale_inv": np.ones(2)}, "a_scale_inv has 2 factors: expected one, or M = 4"),
        ({"b_scale_inv": np.ones((1, 3))}, "b_scale_inv has 3 blocks for 4 elements"),
        ({"a_scale_inv": np.ones((4, 2))}, "flushes as often, as plan='INSTRUCTION;flush=32;factors=flush'"),
        ({"output": "float64"}, "binary64 instructions alone"),
        ({"output": "e9m9"}, "output='e9m9': unknown format 'e9m9'"),
        (
            {"accumulate": "sm100.tcgen05.mxf8f6f4"},
            "takes a float8_e8m0fnu scale factor for 32 elements along K, got none",
        ),
    ],
)
def test_bad_input_is_refused_with_what_helps(change: dict[str, Any], message: str) -> None:
    options = {"a_format": "e4m3", "b_format": "e4m3", **change}
    with pytest.raises((ValueError, TypeError), match=message):
        fp8sim.matmul(codes(1, 4, 64), codes(2, 4, 64).T, **options)


def test_numbers_off_the_grid_are_refused_with_their_place() -> None:
    x = torch.ones(2, 32)
    x[1, 3] = 0.3
    with pytest.raises(ValueError, match=r"a\[1, 3\] is 0.30.*not a number of float8_e4m3fn: cast it first"):
        fp8sim.matmul(x, torch.ones(32, 2), a_format="e4m3", b_format="e4m3")
