"""Recipes and quantizers are data: valid by construction, with one canonical text each."""

import dataclasses
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fp8sim import quantizers, recipes
from fp8sim.codebooks import TIES
from fp8sim.formats import FORMATS, Codebook, Nan
from fp8sim.quantizers import Quantizer
from fp8sim.recipes import (
    ATTENTION_OPERANDS,
    GEMM_OPERANDS,
    RECIPES,
    AttentionRecipe,
    GemmRecipe,
    LossScaling,
    Recipe,
)
from fp8sim.rounding import Overflow, Rounding

deterministic = st.sampled_from([mode for mode in Rounding if not mode.is_stochastic])


@st.composite
def any_quantizer(draw: st.DrawFn) -> Quantizer:
    fmt = draw(st.sampled_from(list(FORMATS.values())))
    policies = [Overflow.SATURATE, Overflow.SAT_PROPAGATE]
    if fmt.nan is not Nan.NONE:
        policies += [Overflow.INFINITY, Overflow.NAN]
    modes = st.sampled_from(TIES) if isinstance(fmt, Codebook) else deterministic
    return Quantizer(fmt, draw(modes), draw(st.sampled_from(policies)))


gemms = st.builds(
    GemmRecipe,
    first=st.none() | any_quantizer(),
    second=st.none() | any_quantizer(),
    accumulate=st.sampled_from(recipes.ACCUMULATIONS),
    dtype=st.sampled_from([None, "float32", "bfloat16"]),
)
any_recipe = st.builds(
    Recipe,
    name=st.sampled_from(["mine", "fp8_naive"]),
    output=gemms,
    grad_input=gemms,
    grad_weight=gemms,
    parametrization=st.sampled_from(recipes.PARAMETRIZATIONS),
    loss_scaling=st.builds(LossScaling, st.sampled_from([1.0, 0.5, 4096.0]), st.sampled_from([None, 1, 2000])),
    attention=st.none() | st.builds(AttentionRecipe, **dict.fromkeys(ATTENTION_OPERANDS, gemms)),
    high_precision=st.lists(st.sampled_from(recipes.ROLES), unique=True).map(tuple),
    high_precision_cast=st.none() | any_quantizer(),
    expected_to_hold=st.booleans(),
)


@given(any_quantizer())
def test_a_quantizer_is_its_text(quantizer: Quantizer) -> None:
    assert quantizers.parse(str(quantizer)) == quantizer


def test_a_short_text_takes_the_defaults() -> None:
    assert quantizers.parse("e4m3") == Quantizer(FORMATS["float8_e4m3fn"])
    assert quantizers.parse("e4m3:toward_zero").rounding is Rounding.TOWARD_ZERO
    assert quantizers.parse("fp16:ties_to_even:infinity").overflow is Overflow.INFINITY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e9m9", "unknown format 'e9m9'"),
        ("e4m3:nearest", "rounding='nearest': use one of TIES_TO_EVEN"),
        ("e4m3:TO_ODD:clip", "overflow='clip': use one of SATURATE"),
        ("e2m1:TIES_TO_EVEN:INFINITY", "has neither"),
        ("a:b:c:d:e", r"expected FORMAT\[:ROUNDING\[:OVERFLOW\[:SCALE\]\]\], got 5 parts"),
    ],
)
def test_a_bad_quantizer_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantizers.parse(text)


def test_a_gemm_draws_no_random_bits() -> None:
    with pytest.raises(
        ValueError, match="second=float8_e4m3fn:STOCHASTIC:SATURATE: the GEMMs of a recipe draw no random"
    ):
        GemmRecipe(second=quantizers.parse("e4m3:STOCHASTIC"))


@given(any_recipe)
def test_a_recipe_is_its_text_and_survives_json_and_yaml(recipe: Recipe) -> None:
    assert recipes.parse(str(recipe)) == recipe
    assert recipes.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipes.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_its_name(name: str) -> None:
    assert str(RECIPES[name]) == name
    assert recipes.parse(name) is RECIPES[name]


def test_the_fp8_recipes_put_e4m3_on_the_forward_operands_and_e5m2_on_gradients() -> None:
    for name in ("fp8_naive", "fp8_loss_scaled", "unit_scaled_fp8"):
        for gemm, operands in GEMM_OPERANDS.items():
            pair = (RECIPES[name].gemm(gemm).first, RECIPES[name].gemm(gemm).second)
            for operand, quantizer in zip(operands, pair, strict=True):
                wanted = "float8_e5m2" if operand == "grad_output" else "float8_e4m3fn"
                assert str(quantizer) == f"{wanted}:TIES_TO_EVEN:SATURATE"


def test_the_recipes_of_u_mup_mup_and_mu_nit_scaling_are_those_published() -> None:
    """u-muP, section 4.3, and muS, section 2: what is FP8, what BF16, and under which parametrization."""
    kept = {
        "u_mup_fp8": ("u_mup", {"attention_out", "ffn_down", "readout"}),
        "mup_fp8": ("mup", {"attention_out", "ffn_down", "readout"}),
        "munit_scaled_fp8": ("munit", {"readout"}),
    }
    for name, (parametrization, roles) in kept.items():
        recipe = RECIPES[name]
        assert (recipe.parametrization, recipe.loss_scaling) == (parametrization, LossScaling())
        for role in recipes.ROLES:
            for gemm, operands in GEMM_OPERANDS.items():
                found = recipe.for_role(role).gemm(gemm)
                for operand, quantizer in zip(operands, (found.first, found.second), strict=True):
                    fp8 = "float8_e5m2" if operand == "grad_output" else "float8_e4m3fn"
                    wanted = "bfloat16:TIES_TO_EVEN:INFINITY" if role in roles else f"{fp8}:TIES_TO_EVEN:SATURATE"
                    assert str(quantizer) == wanted, (name, role, gemm, operand)


def test_without_casts_keeps_everything_else() -> None:
    recipe = RECIPES["unit_scaled_fp8"].without_casts()
    assert recipe.is_unit_scaled
    for gemm in GEMM_OPERANDS:
        assert recipe.gemm(gemm).first is None
        assert recipe.gemm(gemm).second is None


def test_the_readout_of_unit_scaled_fp8_stays_in_high_precision() -> None:
    recipe = RECIPES["unit_scaled_fp8"]
    assert recipe.for_role("hidden") is recipe
    assert recipe.for_role("readout").output.first is None
    assert RECIPES["fp8_naive"].for_role("readout").output.first is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parametrization": "ntk"}, "parametrization='ntk': use one of standard, mup, unit_scaled"),
        ({"high_precision": ("head",)}, "high_precision='head': use one of hidden, attention_qkv, .*, readout"),
        ({"high_precision_cast": "bf16:STOCHASTIC"}, "high_precision_cast=bfloat16:STOCHASTIC.* draw no random bits"),
        ({"output": {"accumulate": "float8"}}, "accumulate='float8': .*or use native, float32"),
        ({"output": {"dtype": "int8"}}, "dtype='int8'"),
        ({"loss_scaling": {"factor": 0}}, "a loss scale is a positive finite number"),
        ({"precision": "low"}, "unexpected keyword argument 'precision'"),
    ],
)
def test_a_bad_recipe_says_what_is_wrong(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.from_dict({"name": "mine", **fields})


def test_a_recipe_written_before_roles_were_finer_is_still_read() -> None:
    plain = RECIPES["unit_scaled_fp8"].to_dict()
    del plain["high_precision_cast"]
    assert recipes.from_dict(plain) == RECIPES["unit_scaled_fp8"]
    both = recipes.from_dict({**plain, "high_precision": ["hidden", "readout"]})
    assert all(both.for_role(role).output.first is None for role in (*recipes.HIDDEN_ROLES, "readout"))


@pytest.mark.parametrize("role", recipes.ROLES)
def test_layers_of_the_roles_that_a_recipe_names_are_cast_by_what_it_says(role: str) -> None:
    keeping = Recipe("mine", high_precision=("attention_out", "readout"), high_precision_cast=quantizers.parse("bf16"))
    fp8 = dataclasses.replace(RECIPES["fp8_naive"].adding("sm90.wgmma"), high_precision=keeping.high_precision)
    kept = dataclasses.replace(fp8, high_precision_cast=keeping.high_precision_cast).for_role(role)
    formats = {str(q.format) for gemm in GEMM_OPERANDS for q in (kept.gemm(gemm).first, kept.gemm(gemm).second) if q}
    is_kept = role in keeping.high_precision
    assert formats == ({"bfloat16"} if is_kept else {"float8_e4m3fn", "float8_e5m2"})
    assert kept.output.accumulate == ("native" if is_kept else "sm90.wgmma")
    assert fp8.for_role(role).output.first is None or not is_kept


def test_an_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'fp9': use one of fp32, bf16, fp16, fp16_loss_scaled"):
        recipes.parse("fp9")
