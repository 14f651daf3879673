"""What holds of the transformer in any style: gradients, decoding, precision policy, compilation, copies, errors."""

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest
import torch
from decoders import EXACT, SMALL, TOKENS, decoder, recipe_of
from torch.nn import functional as F

from fp8sim import quantizers, recipes
from fp8sim.nn import Linear, TransformerConfig, TransformerDecoder, TransformerLayer, roles
from fp8sim.recipes import GEMM_OPERANDS, PARAMETRIZATIONS
from fp8sim.simulate.matmul import GemmEvent, observe
from fp8sim.unit_scaling import functional


@pytest.mark.parametrize("style", PARAMETRIZATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "gelu", "key_value_heads": 2, "qk_norm": True, "bias": True, "norm_gain": True, "dropout": 0.1},
    ],
    ids=["plain", "all options"],
)
def test_gradients_reach_every_parameter(style: str, options: dict[str, object]) -> None:
    config = dataclasses.replace(SMALL, **options)  # type: ignore[arg-type]
    model = decoder(config, recipe_of(style, "bf16"))
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_every_option_reaches_its_module() -> None:
    config = dataclasses.replace(
        SMALL,
        key_value_heads=2,
        rotary_base=500.0,
        qk_norm=True,
        root_softmax=True,
        scale_power=0.7,
        context=11,
        expansion=2.5,
        norm="layer",
        norm_gain=True,
        bias=True,
        dropout=0.25,
    )
    model = decoder(config)
    layer = model.layers[1]
    attention = layer.attention
    assert (attention.groups, attention.rotary_base, attention.scale_power, attention.context) == (2, 500.0, 0.7, 11)
    assert (attention.root_softmax, attention.dropout, layer.dropout) == (True, 0.25, 0.25)
    assert layer.mlp.up.out_features == 80
    names = {name.removeprefix("layers.1.") for name, _ in layer.named_parameters()}
    linear = {"attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down"}
    norms = {"attention_norm", "mlp_norm", "attention.query_norm", "attention.key_norm"}
    assert names == {f"{name}.{parameter}" for name in linear | norms for parameter in ("weight", "bias")}
    assert {name for name, _ in model.named_parameters() if "layers" not in name} == {
        "embedding.weight",
        "norm.weight",
        "norm.bias",
        "readout.weight",
    }


@pytest.mark.parametrize("style", PARAMETRIZATIONS)
def test_decoding_token_by_token_equals_the_whole_sequence(style: str) -> None:
    config = dataclasses.replace(SMALL, context=16, key_value_heads=2)
    model = decoder(config, recipe_of(style)).double()
    caches = model.new_caches()
    parts = [model(part, caches=caches) for part in TOKENS.split([3, *[1] * 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS), **EXACT)
    assert [cache.length for cache in caches] == [9, 9]


def casts(model: TransformerDecoder) -> dict[str, set[str]]:
    """Formats that the GEMMs of each layer cast to, seen in a forward and a backward pass; "" is no cast."""
    seen: dict[str, set[str]] = {}

    def watch(event: GemmEvent) -> None:
        for given, used, quantizer in zip(event.given, event.used, event.quantizers, strict=True):
            assert (quantizer is None) == torch.equal(given, used), "a cast moves some element, and no cast moves none"
            seen.setdefault(event.layer, set()).add("" if quantizer is None else str(quantizer.format))

    gemms: list[tuple[str, str]] = []
    with observe(watch), observe(lambda event: gemms.append((event.layer, event.gemm))):
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert len(gemms) == len(set(gemms)) == len(GEMM_OPERANDS) * len(seen)
    return seen


FP8 = {"float8_e4m3fn", "float8_e5m2"}
BF16 = {"bfloat16"}
LAYERS = ("attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down")


@pytest.mark.parametrize(
    ("kept", "layers"),
    [
        ((), ()),
        (("readout",), ("readout",)),
        (("embedding", "readout"), ("readout",)),
        (("attention_out", "ffn_down", "readout"), ("attention.out", "mlp.down", "readout")),
        (("attention_qkv", "ffn_up"), ("attention.qkv", "mlp.up", "mlp.gate")),
        (("hidden",), LAYERS),
    ],
)
@pytest.mark.parametrize("cast", ["", "bf16"])
def test_the_recipe_says_which_layers_are_cast(kept: tuple[str, ...], layers: tuple[str, ...], cast: str) -> None:
    keeping = quantizers.parse(cast) if cast else None
    recipe = dataclasses.replace(recipe_of("u_mup", "fp8_naive"), high_precision=kept, high_precision_cast=keeping)
    names = [f"layers.{i}.{name}" for i in (0, 1) for name in LAYERS]
    expected = {
        name: ((BF16 if cast else {""}) if name.endswith(layers) and layers else FP8) for name in [*names, "readout"]
    }
    assert casts(decoder(recipe=recipe)) == expected


def test_blocks_may_have_recipes_of_their_own() -> None:
    fp8, bf16 = recipe_of("u_mup", "fp8_naive"), recipe_of("u_mup", "bf16")
    seen = casts(decoder(recipe=fp8, block_recipes=[bf16, fp8]))
    assert {name: formats for name, formats in seen.items() if formats == BF16} == {
        f"layers.0.{name}": BF16 for name in LAYERS
    }


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("style", ["u_mup", "munit"])
def test_the_decoder_compiles_to_one_graph_with_the_same_bits(style: str) -> None:
    model = decoder(recipe=recipe_of(style, "fp8_naive"))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for loss in (model.loss, compiled):
        model.zero_grad()
        loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


class Graphs:
    """A compiler that runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        self.count += 1
        return graph.forward


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("style", ["standard", "u_mup"])
def test_decoding_compiles_to_one_graph_for_all_lengths_of_the_cache(style: str) -> None:
    model = decoder(dataclasses.replace(SMALL, context=16, key_value_heads=2), recipe_of(style))
    graphs = Graphs()
    compiled = torch.compile(
        lambda tokens, caches: model(tokens, caches=caches), fullgraph=True, dynamic=True, backend=graphs
    )
    caches = model.new_caches()
    with torch.no_grad():
        parts = [compiled(part, caches) for part in TOKENS.split([3, *[1] * 6], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS), atol=1e-5, rtol=1e-5)
    assert graphs.count <= 3, "the first call, the second, and all others"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("style", ["standard", "u_mup", "munit"])
def test_one_graph_is_for_all_lengths_whatever_the_factors(style: str) -> None:
    """More lengths than torch would compile graphs for."""
    model, graphs = decoder(dataclasses.replace(SMALL, context=32), recipe_of(style, "fp8_naive")), Graphs()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=True, backend=graphs)
    for length in range(4, 14):
        tokens = torch.randint(0, 50, (3, length + 1))
        found = []
        for loss in (model.loss, compiled):
            model.zero_grad()
            loss(tokens[:, :-1], tokens[:, 1:]).backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert all(map(torch.equal, *found))
    assert graphs.count == 1


@pytest.mark.parametrize("style", PARAMETRIZATIONS)
def test_autocast_computes_products_in_its_dtype(style: str) -> None:
    model = decoder(dataclasses.replace(SMALL, context=16, qk_norm=True, bias=True), recipe_of(style))
    expected = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    seen: list[GemmEvent] = []
    with torch.autocast("cpu", torch.bfloat16), observe(seen.append):
        loss = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    loss.backward()
    assert {x.dtype for event in seen for x in event.given} == {torch.bfloat16}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert 0 < abs(float(loss.detach() - expected.detach())) < 0.02


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by torch's own compiler
@pytest.mark.parametrize("style", ["u_mup", "munit"])
def test_the_decoder_compiled_by_inductor_has_the_same_gradients(style: str) -> None:
    model = decoder(recipe=recipe_of(style, "fp8_naive"))
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True)):
        model.zero_grad()
        loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    # An operand that differs in its last float32 bit may be cast to the neighbour, one step of E5M2 apart.
    for name, gradient in results[0].items():
        assert F.cosine_similarity(gradient.flatten(), results[1][name].flatten(), dim=0) > 0.9999, name


@pytest.mark.parametrize("style", PARAMETRIZATIONS)
def test_a_decoder_made_on_the_meta_device_starts_as_any(style: str) -> None:
    with torch.device("meta"):
        late = TransformerDecoder(dataclasses.replace(SMALL, norm_gain=True, bias=True), recipe=recipe_of(style))
    late.to_empty(device="cpu")
    early = decoder(dataclasses.replace(SMALL, norm_gain=True, bias=True), recipe_of(style))
    for model in (early, late):
        torch.manual_seed(7)
        model.reset_parameters()
    for ours, theirs in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(early(TOKENS), late(TOKENS))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_give_the_same_bits(copied: Callable[[TransformerDecoder], TransformerDecoder]) -> None:
    model = decoder(recipe=recipe_of("u_mup", "fp8_naive"))
    other = copied(model)
    assert torch.equal(other(TOKENS), model(TOKENS))
    assert other.config == model.config
    assert other.recipe == model.recipe


def test_what_parameters_are_and_how_deep() -> None:
    found = {name: (w.kind, w.depth) for name, (_, w) in roles.weights(decoder()).items()}
    assert found["embedding.weight"] == ("embedding", None)
    assert found["readout.weight"] == ("readout", None)
    hidden = {what for name, what in found.items() if name.startswith("layers.")}
    assert hidden == {("hidden", 2)}


def test_the_loss_is_that_of_the_multiplied_logits_in_float32() -> None:
    model = decoder(dataclasses.replace(SMALL, alpha_loss_softmax=3.0), "fp32").bfloat16()
    tokens, targets = TOKENS[:, :-1], TOKENS[:, 1:].clone()
    targets[0] = -1
    loss = model.loss(tokens, targets, ignore_index=-1, z_loss=0.1)
    assert loss.dtype == torch.float32
    logits = model(tokens).float().flatten(0, 1)[8:] * 3
    expected = F.cross_entropy(logits, targets.flatten()[8:]) + 0.1 * logits.logsumexp(1).square().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerConfig(50, 32, 0, 4), "blocks=0: must be at least 1"),
        (lambda: TransformerConfig(50, 32, 2, 4, context=0), "context=0: must be at least 1"),
        (lambda: TransformerConfig(50, 32, 2, 4, activation="relu"), "activation='relu': use one of swiglu, gelu"),
        (lambda: TransformerConfig(50, 32, 2, 4, norm="batch"), "norm='batch': use one of None, rms, layer"),
        (lambda: TransformerConfig(50, 32, 2, 4, depth_convention="layers"), "depth_convention='layers'"),
        (lambda: TransformerConfig(50, 32, 2, 4, alpha_res=0.0), "alpha_res=0.0: expected a positive"),
        (lambda: TransformerConfig(50, 32, 2, 4, tau=1.5), "tau=1.5: as a share it is 0 to 1"),
        (lambda: TransformerConfig(50, 32, 2, 4, dropout=2.0), "dropout=2.0: a probability is 0 to 1"),
        (lambda: decoder(TransformerConfig(50, 32, 2, 5)), "heads=5 must divide width=32"),
        (lambda: decoder(dataclasses.replace(SMALL, alpha_res=2.0), "fp32"), "alpha_res=2.0 is for unit_scaled and"),
        (lambda: decoder(dataclasses.replace(SMALL, tau=0.1)), "tau=0.1 is for munit, and recipe 'unit_scaled'"),
        (lambda: decoder(dataclasses.replace(SMALL, base_width=8), "fp32"), "base_width=8 is for mup"),
        (lambda: TransformerLayer(SMALL, 2), "block=2: the blocks are 0 to 1"),
        (lambda: decoder(block_recipes=["fp32", "fp32"]), "expected 2 of unit_scaled"),
        (lambda: decoder(block_recipes=["unit_scaled"]), "expected 2 of unit_scaled"),
        (lambda: decoder()(TOKENS[0]), r"a decoder takes tokens \[B, L\], got \[9\]"),
        (lambda: decoder()(TOKENS, caches=[]), "got 0 caches for 2 blocks: use new_caches"),
        (lambda: (model := decoder())(TOKENS, caches=model.new_caches()), "context=None: with a cache"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_of_every_style_say_whether_operations_carry_factors() -> None:
    carries = {style: recipe_of(style).is_unit_scaled for style in PARAMETRIZATIONS}
    assert carries == {"standard": False, "mup": False, "unit_scaled": True, "u_mup": True, "munit": True}
    assert recipes.parse(str(recipe_of("munit"))) == recipe_of("munit")


@pytest.mark.parametrize("recipe", ["unit_scaled", "u_mup_fp8", "munit_scaled_fp8"])
def test_gradients_of_parts_add_up_to_those_of_the_batch(recipe: str) -> None:
    """Four micro-batches: with `batch_parts` their sum is the whole batch's gradient, without it twice that."""
    torch.manual_seed(0)
    model = TransformerDecoder(TransformerConfig(17, 16, 2, 2), recipe=recipes.parse(recipe).without_casts()).double()
    tokens, targets = torch.randint(0, 17, (2, 4, 6))
    model.loss(tokens, targets).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    for parts, ratio in ((4, 1.0), (1, 2.0)):
        model.zero_grad()
        with functional.batch_parts(parts):
            for i in range(4):
                model.loss(tokens[i : i + 1], targets[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, ratio * whole[name], rtol=1e-9, atol=1e-12, msg=name)


def test_batch_parts_is_refused_below_one_and_ends_with_its_block() -> None:
    with pytest.raises(ValueError, match="parts=0: a number of 1 or more"), functional.batch_parts(0):
        pass
    layer, x = Linear(8, 8), torch.randn(4, 8)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        layer(x).sum().backward()
        return layer.weight.grad

    alone = gradient()
    with functional.batch_parts(9):
        torch.testing.assert_close(gradient(), alone / 3)
    assert torch.equal(gradient(), alone)
