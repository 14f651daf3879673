"""The attention part of a recipe: six GEMMs, each operand cast once, and the fused attention where nothing is cast."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import EXACT, SMALL, TOKENS, decoder
from unit_scaled_ops import assert_same, normal

from fp8sim import mma, quantizers, recipes
from fp8sim.analysis.arithmetic import independent_cast
from fp8sim.nn import TransformerLayer
from fp8sim.recipes import ATTENTION_OPERANDS, GEMM_OPERANDS, RECIPES, AttentionRecipe, Recipe
from fp8sim.simulate.matmul import GemmEvent, observe
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional import scaled_dot_product_attention

CASTS = {
    "query": "e4m3",
    "key": "e5m2",
    "value": "fp16:TIES_TO_EVEN:INFINITY",
    "probabilities": "float8_e4m3",
    "grad_output": "bf16:TIES_TO_EVEN:INFINITY",
    "grad_logits": "e3m4",
}
"""A format of its own for each operand, so that no two can be mistaken for each other."""

FP8 = AttentionRecipe.by_operand(
    query="e4m3", key="e4m3", value="e4m3", probabilities="e4m3", grad_output="e5m2", grad_logits="e5m2"
)


def with_attention(name: str = "unit_scaled", part: AttentionRecipe = FP8) -> Recipe:
    return dataclasses.replace(RECIPES[name], name="mine", attention=part)


def operands(*, heads: int = 3, groups: int = 3, length: int = 5, keys: int = 7) -> list[torch.Tensor]:
    shapes = [(2, heads, length, 4), (2, groups, keys, 4), (2, groups, keys, 6)]
    return [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]


BOOL = torch.arange(35).view(5, 7) % 3 < 2
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": BOOL},
    "float mask": {"attn_mask": normal(2, 1, 5, 7, seed=5).detach()},
    "a row that sees no key": {"attn_mask": BOOL & (torch.arange(5) != 2)[:, None]},
    "shared heads": {"enable_gqa": True},
    "temperature": {"mult": 3.0, "scale_power": 0.5},
    "scale": {"scale": -0.3},
    "root": {"root_softmax": True, "is_causal": True},
    "another length": {"factor_length": 64, "factor_causal": True},
    "all dropped": {"dropout_p": 1.0},
}


@pytest.mark.parametrize("name", ["fp32", "unit_scaled"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_without_quantizers_it_is_the_fused_attention(options: dict[str, Any], name: str) -> None:
    recipe = with_attention(name, AttentionRecipe())
    assert_same(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, recipe=recipe, **options),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, recipe=name, **options),
        *(operands(heads=4, groups=2) if "enable_gqa" in options else operands()),
    )


@pytest.mark.parametrize("length", [1, 2])
def test_short_sequences(length: int) -> None:
    recipe = with_attention(part=AttentionRecipe())
    assert_same(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, recipe=recipe),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
        *operands(length=length, keys=length),
    )


@pytest.mark.parametrize("root_softmax", [False, True])
def test_tied_factors_make_an_ordinary_function(root_softmax: bool) -> None:
    recipe = with_attention(part=AttentionRecipe())

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*inputs, is_causal=True, root_softmax=root_softmax, recipe=recipe)

    assert torch.autograd.gradcheck(attend, tuple(x[:1, :1] for x in operands()))


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_same_probabilities_are_dropped(is_causal: bool) -> None:
    def attend(recipe: str | Recipe, *inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return scaled_dot_product_attention(*inputs, None, 0.5, is_causal, recipe=recipe)

    recipe = with_attention(part=AttentionRecipe())
    assert_same(lambda *inputs: attend(recipe, *inputs), lambda *inputs: attend("unit_scaled", *inputs), *operands())


def detached(event: GemmEvent) -> GemmEvent:
    given, used = (tuple(x.detach() for x in pair) for pair in (event.given, event.used))
    return dataclasses.replace(event, given=given, used=used, result=event.result.detach())


def capture(part: AttentionRecipe, **options: Any) -> tuple[list[GemmEvent], dict[str, torch.Tensor]]:
    """What the GEMMs of one forward and backward pass in float32 did, and what went in and came out."""
    q, k, v = (x.detach().float().requires_grad_() for x in operands())
    events: list[GemmEvent] = []
    grad = normal(2, 3, 5, 6, seed=9).detach().float()
    with observe(lambda event: events.append(detached(event))):
        output = scaled_dot_product_attention(q, k, v, recipe=with_attention(part=part), name="here", **options)
        output.backward(grad)
    tensors = {"query": q, "key": k, "value": v, "output": output}
    gradients = {f"grad_{name}": tensors[name].grad for name in ("query", "key", "value")}
    return events, {**{name: x.detach() for name, x in tensors.items()}, **gradients, "grad_output": grad}


TURNED = {("logits", 1), ("grad_key", 0), ("grad_probabilities", 1), ("grad_value", 0)}
"""The operands that a GEMM reads transposed."""


def check(events: list[GemmEvent], tensors: dict[str, torch.Tensor], factor: float) -> None:
    """Every operand is cast once, by an independent route as `CASTS` says, and every result is their product."""
    found = {(event.layer, event.gemm): event for event in events}
    order = [(f"here.{product}", gemm) for product in ("logits", "mixed") for gemm in GEMM_OPERANDS]
    assert sorted(found) == sorted(order)
    assert len(events) == len(order)
    gemms = dict(zip(ATTENTION_OPERANDS, (found[key] for key in order), strict=True))

    probabilities = torch.softmax(gemms["logits"].result.masked_fill(~torch.ones(5, 7).tril().bool(), -math.inf), -1)
    grad = gemms["grad_probabilities"].result
    grad_logits = probabilities * (grad - (grad * probabilities).sum(-1, keepdim=True))
    torch.testing.assert_close(gemms["grad_query"].given[0], grad_logits, rtol=1e-5, atol=1e-6)
    given = {**tensors, "probabilities": probabilities, "grad_logits": gemms["grad_query"].given[0]}
    cast = {name: independent_cast(given[name], quantizers.parse(text)) for name, text in CASTS.items()}

    for name, pair in ATTENTION_OPERANDS.items():
        a, b = (cast[operand].mT if (name, i) in TURNED else cast[operand] for i, operand in enumerate(pair))
        assert torch.equal(gemms[name].used[0], a), f"{name}: {pair[0]}"
        assert torch.equal(gemms[name].used[1], b), f"{name}: {pair[1]}"
        scale = 1 / 4 if name in ("logits", "grad_query", "grad_key") else factor
        for i in range(2):
            for j in range(3):
                error = (gemms[name].result[i, j].double() - a[i, j].double() @ b[i, j].double() * scale).abs()
                assert bool((error <= mma.float32_error_bound(a[i, j], b[i, j], scale=scale)).all()), name

    left = {"output": "mixed", "grad_query": "grad_query", "grad_key": "grad_key", "grad_value": "grad_value"}
    for outside, name in left.items():
        result = gemms[name].result.mT if name == "grad_value" else gemms[name].result
        assert torch.equal(tensors[outside], result), name


FACTOR = rules.attention(7, 4**-0.5, causal=True)


def test_every_operand_is_cast_once_and_every_gemm_is_the_product_of_the_casts() -> None:
    check(*capture(AttentionRecipe.by_operand(**CASTS), is_causal=True), FACTOR)


@pytest.mark.parametrize("name", ATTENTION_OPERANDS)
@pytest.mark.parametrize("operand", ["first", "second"])
@pytest.mark.parametrize("planted", [None, "e4m3:TOWARD_ZERO", "e2m3"])
def test_a_planted_fault_of_one_operand_is_noticed(name: str, operand: str, planted: str | None) -> None:
    part = AttentionRecipe.by_operand(**CASTS)
    quantizer = None if planted is None else quantizers.parse(planted)
    wrong = dataclasses.replace(part.gemm(name), **{operand: quantizer})
    with pytest.raises(AssertionError, match=f"^{name}: "):
        check(*capture(dataclasses.replace(part, **{name: wrong}), is_causal=True), FACTOR)


def test_planted_factors_are_noticed() -> None:
    events, tensors = capture(AttentionRecipe.by_operand(**CASTS), is_causal=True)
    with pytest.raises(AssertionError):
        check(events, tensors, FACTOR * 1.01)
    with pytest.raises(AssertionError):
        check(events[:-1], tensors, FACTOR)
    moved = [dataclasses.replace(e, result=e.result * 1.001) if e.gemm == "output" else e for e in events]
    with pytest.raises(AssertionError):
        check(moved, tensors, FACTOR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tensors_are_widened_and_the_result_is_rounded_once(dtype: torch.dtype) -> None:
    narrow = [x.detach().to(dtype).requires_grad_() for x in operands()]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    grad = normal(2, 3, 5, 6, seed=9).detach().to(dtype)
    recipe = with_attention()
    mask = normal(5, 7, seed=4).detach()
    outputs = []
    for q, k, v in (narrow, wide):
        output = scaled_dot_product_attention(q, k, v, mask.to(q.dtype).to(dtype).to(q.dtype), recipe=recipe)
        output.backward(grad.to(output.dtype))
        outputs.append(output)
    assert outputs[0].dtype == dtype
    for ours, exact in zip([outputs[0], *(x.grad for x in narrow)], [outputs[1], *(x.grad for x in wide)], strict=True):
        assert ours is not None
        assert exact is not None
        assert torch.equal(ours, exact.to(dtype))


def test_gradients_that_float16_cannot_hold_are_infinite_or_not_a_number() -> None:
    """So that the scaler of the loss sees them."""
    fp16 = quantizers.parse("fp16:TIES_TO_EVEN:INFINITY")
    part = AttentionRecipe().changed(lambda gemm: gemm.casting(fp16))
    for size, is_finite in ((1.0, True), (1e6, False)):
        q, k, v = (x.detach().float().requires_grad_() for x in operands())
        output = scaled_dot_product_attention(q, k, v, recipe=with_attention("fp16", part))
        output.backward(torch.full_like(output, size))
        for x in (q, k, v):
            assert x.grad is not None
            assert bool(x.grad.isfinite().all()) is is_finite


def test_observers_see_the_products_of_each_layer_by_name() -> None:
    names: list[str] = []
    with observe(lambda event: names.append(f"{event.layer} {event.gemm}")):
        model = decoder(recipe=with_attention())
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    wanted = {
        f"layers.{i}.attention.{product} {gemm}"
        for i in (0, 1)
        for product in ("logits", "mixed")
        for gemm in GEMM_OPERANDS
    }
    assert {name for name in names if "attention.logits" in name or "attention.mixed" in name} == wanted
    assert len(names) == len(set(names))


def test_decoding_with_a_cache_equals_the_whole_sequence() -> None:
    config = dataclasses.replace(SMALL, context=16, key_value_heads=2)
    model = decoder(config, with_attention(part=AttentionRecipe())).double()
    caches = model.new_caches()
    parts = [model(part, caches=caches) for part in TOKENS.split([3, *[1] * 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS), **EXACT)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("root_softmax", [False, True])
def test_a_layer_compiles_to_one_graph_with_the_same_bits(root_softmax: bool) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, root_softmax=root_softmax, key_value_heads=2)
    layer = TransformerLayer(config, recipe=with_attention("unit_scaled_fp8"))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer.zero_grad()
        output = run(x)
        output.square().sum().backward()
        results.append([output, x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_the_reference_of_gradients_casts_nothing_and_a_plan_reaches_all_six() -> None:
    recipe = with_attention("u_mup_fp8")
    plain, planned = recipe.without_casts().attention, recipe.adding("sm90.wgmma").attention
    assert plain == AttentionRecipe()
    assert planned is not None
    assert {planned.gemm(name).accumulate for name in ATTENTION_OPERANDS} == {"sm90.wgmma"}
    assert planned == AttentionRecipe.by_operand(
        accumulate="sm90.wgmma",
        **{operand: "e5m2" if operand.startswith("grad") else "e4m3" for operand in CASTS},
    )
    half = AttentionRecipe.by_operand(query="e4m3", key="e4m3", accumulate="sm90.wgmma")
    assert (half.logits.accumulate, half.grad_query.accumulate, half.mixed.accumulate) == (
        "sm90.wgmma",
        *["native"] * 2,
    )
    assert recipe.for_role("attention_qkv").attention == recipe.attention


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionRecipe.by_operand(keys="e4m3"), "operand='keys': use one of query, key, grad_logits"),
        (lambda: AttentionRecipe.by_operand(key="e4m3:STOCHASTIC"), "second=float8_e4m3fn:STOCHASTIC.* no random bits"),
        (
            lambda: AttentionRecipe.by_operand(query="e4m3", key="e4m3", accumulate="sm80.mma"),
            "accumulate='sm80.mma': .*sm80.mma accepts f16",
        ),
        (lambda: AttentionRecipe().gemm("output"), "gemm='output': use one of logits, grad_query"),
        (lambda: recipes.from_dict({"name": "a", "attention": {"scores": {}}}), "unexpected keyword argument 'scores'"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
