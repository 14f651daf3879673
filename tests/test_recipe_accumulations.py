"""Every recipe that casts, added in every way: one training step, each GEMM equal to one that names its plan itself."""

import dataclasses

import pytest
import torch
from decoders import recipe_of

import fp8sim
from fp8sim import mma
from fp8sim.analysis.arithmetic import independent_cast
from fp8sim.nn import Linear, TransformerConfig, TransformerDecoder
from fp8sim.optim import grad_scaler, parameter_groups
from fp8sim.quantizers import parse
from fp8sim.recipes import ACCUMULATIONS, ATTENTION_OPERANDS, GEMM_OPERANDS, RECIPES, AttentionRecipe, Recipe, uniform
from fp8sim.simulate.matmul import GemmEvent, observe

TINY = TransformerConfig(vocabulary=17, width=16, blocks=1, heads=2)
TOKENS = torch.randint(0, 17, (2, 8), generator=torch.Generator().manual_seed(0))
PLANS = ("sm90.wgmma", "triton.sm90.imprecise32", "sm100.tcgen05", "sm80.mma", "sm70.mma")

FP8_ATTENTION = AttentionRecipe.by_operand(
    query="e4m3", key="e4m3", value="e4m3", probabilities="e4m3", grad_output="e5m2", grad_logits="e5m2"
)
CASTING = {name: recipe for name, recipe in RECIPES.items() if recipe.output.first is not None} | {
    "u_mup_fp8 with FP8 attention": dataclasses.replace(RECIPES["u_mup_fp8"], name="mine", attention=FP8_ATTENTION)
}


def takes(plan: str, recipe: Recipe) -> bool:
    """Whether the plan's instruction multiplies the formats of all three GEMMs."""
    try:
        for gemm in GEMM_OPERANDS:
            pair = recipe.gemm(gemm)
            mma.resolve(mma.parse_plan(plan), str(pair.first.format), str(pair.second.format))
    except ValueError:
        return False
    return True


def kept(event: GemmEvent) -> GemmEvent:
    """A copy, laid out as the original: the optimizer changes weights in place."""
    given, used = (tuple(x.detach().clone() for x in pair) for pair in (event.given, event.used))
    return dataclasses.replace(event, given=given, used=used, result=event.result.clone())


def step(recipe: Recipe) -> tuple[TransformerDecoder, list[GemmEvent]]:
    """A decoder after one step by AdamW that changed every parameter, and its GEMMs."""
    torch.manual_seed(0)
    model, events = TransformerDecoder(TINY, recipe=recipe), []
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=0.01, parametrization=recipe.parametrization))
    scaler = grad_scaler(recipe)
    with observe(lambda event: events.append(kept(event))):
        scaler.scale(model.loss(TOKENS[:, :-1], TOKENS[:, 1:])).backward()
    scaler.step(optimizer)
    for old, new in zip(before, model.parameters(), strict=True):
        assert bool(new.isfinite().all())
        assert not torch.equal(old, new)
    return model, events


def as_codes(x: torch.Tensor, fmt: str) -> torch.Tensor:
    """Numbers on a grid in the dtype of that name."""
    return x.to(getattr(torch, fmt))


def expected(event: GemmEvent, accumulate: str) -> torch.Tensor:
    """The GEMM computed anew from what it was given."""
    a, b = (x if q is None else independent_cast(x, q) for x, q in zip(event.given, event.quantizers, strict=True))
    assert torch.equal(a, event.used[0])
    assert torch.equal(b, event.used[1])
    if accumulate in ("native", "float32"):
        return (event.used[0] @ event.used[1]) * event.scale
    if accumulate == "float32.sequential":
        total = torch.zeros(*a.shape[:-1], b.shape[-1])
        for k in range(a.shape[-1]):
            total += a[..., k].unsqueeze(-1) * b[..., k, :].unsqueeze(-2)
        return total * event.scale
    codes = [as_codes(x, str(q.format)) for x, q in zip((a, b), event.quantizers, strict=True)]
    return fp8sim.matmul(*codes, plan=accumulate) * event.scale


@pytest.mark.parametrize("accumulate", [*ACCUMULATIONS, *PLANS])
@pytest.mark.parametrize("name", CASTING)
def test_every_recipe_trains_with_every_accumulation(name: str, accumulate: str) -> None:
    recipe = CASTING[name]
    if accumulate in PLANS and not takes(accumulate, recipe):
        with pytest.raises(ValueError, match=f"accumulate='{accumulate}': .* accepts .*; or use native, float32"):
            recipe.adding(accumulate)
        return
    model, events = step(recipe.adding(accumulate))
    roles = {name: module.role for name, module in model.named_modules() if isinstance(module, Linear)}
    products = 2 if recipe.attention else 0
    assert len(events) == len(GEMM_OPERANDS) * (len(roles) + products)
    added = set()
    gemms = {layer: recipe.for_role(role) for layer, role in roles.items()}
    for product, of_product in zip(("logits", "mixed"), recipe.attention_products or (), strict=False):
        gemms[f"layers.0.attention.{product}"] = of_product
    for event in events:
        wanted = gemms[event.layer].gemm(event.gemm)
        assert event.quantizers == (wanted.first, wanted.second)
        is_kept = roles.get(event.layer) in recipe.high_precision
        how = "native" if is_kept else accumulate
        added.add(how)
        assert torch.equal(event.result, expected(event, how)), f"{event.layer} {event.gemm}"
    assert added == ({accumulate, "native"} if recipe.high_precision else {accumulate})


@pytest.mark.parametrize("plan", PLANS)
def test_plans_are_taken_and_refused(plan: str) -> None:
    """So that the test above is not all refusals."""
    fp8, fp16, bf16 = (takes(plan, RECIPES[name]) for name in ("fp8_naive", "fp16", "bf16"))
    assert (fp8, fp16, bf16) == (plan not in ("sm80.mma", "sm70.mma"), True, plan != "sm70.mma")


def test_each_gemm_may_be_added_in_its_own_way() -> None:
    """Fast accumulation forward and promotion every 128 products backward, as libraries do on Hopper."""
    recipe = recipe_of("u_mup", "fp8_naive")
    plans = dict(zip(GEMM_OPERANDS, ("cutlass.sm90.fast", "cutlass.sm90.slow", "float32.sequential"), strict=True))
    recipe = dataclasses.replace(
        recipe, **{gemm: recipe.gemm(gemm).adding(plans[gemm]) for gemm in GEMM_OPERANDS}, attention=FP8_ATTENTION
    )
    attention = {name: recipe.attention.gemm(name).adding("sm89.mma") for name in list(ATTENTION_OPERANDS)[:3]}
    recipe = dataclasses.replace(recipe, attention=dataclasses.replace(recipe.attention, **attention))
    for event in step(recipe)[1]:
        how = {"logits": "sm89.mma", "mixed": "native"}.get(event.layer.split(".")[-1], plans[event.gemm])
        assert torch.equal(event.result, expected(event, how)), f"{event.layer} {event.gemm}"


def test_a_gemm_added_in_another_way_is_noticed() -> None:
    """Tiny GEMMs tell the plans apart: the check above can fail."""
    events = step(RECIPES["fp8_naive"].adding("sm90.wgmma"))[1]
    for other in ("float32", "float32.sequential", "sm100.tcgen05"):
        assert not all(torch.equal(event.result, expected(event, other)) for event in events), other


@pytest.mark.parametrize("name", ["bf16", "u_mup_fp8"])
def test_a_plan_that_widens_to_a_narrower_format_is_refused_with_the_recipe(name):
    recipe = RECIPES[name]
    if name == "bf16":
        with pytest.raises(ValueError, match="'triton.sm80': widen=float16 does not hold every number of bfloat16"):
            recipe.adding("triton.sm80")
    else:  # E4M3 and E5M2 fit into float16, and layers in bfloat16 are added as the backend adds
        assert recipe.adding("triton.sm80").output.accumulate == "triton.sm80"
    with pytest.raises(ValueError, match="widen=float16 does not hold every number of float32"):
        uniform("wide", parse("float32"), parse("float32")).adding("triton.sm80")
    assert RECIPES["fp16"].adding("triton.sm80").output.accumulate == "triton.sm80"


def test_a_recipe_without_casts_refuses_a_name_that_is_no_plan():
    with pytest.raises(ValueError, match="plan 'sm80'"):
        RECIPES["fp32"].adding("sm80")
    assert RECIPES["fp32"].adding("sm90.wgmma") == RECIPES["fp32"]
