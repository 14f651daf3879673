"""The transformer in every style: its composition, its residual stream, and the scale that it starts at."""

import dataclasses
import math

import pytest
import torch
from decoders import EXACT, SMALL, TOKENS, decoder, recipe_of
from torch.nn import functional as F

from fp8sim import functional
from fp8sim.nn import Linear, TransformerConfig, TransformerLayer
from fp8sim.nn.residual import join_of
from fp8sim.nn.rotary import rotate
from fp8sim.recipes import Recipe
from fp8sim.simulate.matmul import observe
from fp8sim.unit_scaling import rules


class PlainLayer(torch.nn.Module):
    """A standard block of torch's modules, its parameters named as ours."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = torch.nn.RMSNorm(width, eps=1e-5)
        self.attention = torch.nn.ModuleDict({"qkv": plain_linear(width, 3 * width), "out": plain_linear(width, width)})
        self.mlp_norm = torch.nn.RMSNorm(width, eps=1e-5)
        sizes = {"up": (width, 4 * width), "gate": (width, 4 * width), "down": (4 * width, width)}
        self.mlp = torch.nn.ModuleDict({name: plain_linear(*size) for name, size in sizes.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attention["qkv"](self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, 10000.0), rotate(key, 10000.0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention["out"](mixed.transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        return x + self.mlp["down"](self.mlp["up"](h) * F.silu(self.mlp["gate"](h)))


class PlainDecoder(torch.nn.Module):
    """A standard decoder of torch's modules, its parameters named as ours."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocabulary, config.width)
        self.layers = torch.nn.Sequential(*(PlainLayer(config.width, config.heads) for _ in range(config.blocks)))
        self.norm = torch.nn.RMSNorm(config.width, eps=1e-5)
        self.readout = plain_linear(config.width, config.vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.readout(self.norm(self.layers(self.embedding(tokens))))

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())


def plain_linear(inputs: int, outputs: int) -> torch.nn.Linear:
    return torch.nn.Linear(inputs, outputs, bias=False)


def losses_and_gradients(*models: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    results = []
    for model in models:
        loss = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        results.append({"loss": loss.detach(), **dict(zip(names, gradients, strict=True))})
    return results


def test_the_standard_decoder_is_the_plain_one_and_their_state_dicts_load_both_ways() -> None:
    ours, theirs = decoder(recipe="fp32").double(), PlainDecoder(SMALL).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(*losses_and_gradients(ours, theirs), **EXACT)
    back = PlainDecoder(SMALL).double()
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back(TOKENS), theirs(TOKENS))


def test_at_its_base_shape_mup_is_the_standard_decoder_with_logits_over_d() -> None:
    config = dataclasses.replace(SMALL, base_width=32, base_depth=2)
    ours = decoder(config, recipe_of("mup")).double()
    standard = decoder(dataclasses.replace(SMALL, scale_power=1.0), "fp32").double()
    standard.load_state_dict(ours.state_dict())
    torch.testing.assert_close(*losses_and_gradients(ours, standard), **EXACT)


def test_away_from_its_base_shape_mup_changes_multipliers_and_initial_weights() -> None:
    config = TransformerConfig(
        200, 128, 8, 4, base_width=32, base_depth=2, init_std=0.1, alpha_embedding=5.0, alpha_output=3.0
    )
    model = decoder(config, recipe_of("mup"))
    stds = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    for name, std in stds.items():
        wide = name in ("embedding.weight", "readout.weight")
        assert std == pytest.approx(0.1 if wide else 0.05, rel=0.03), name
    assert model.embedding.multiplier == 5.0
    assert model.readout.multiplier == 3.0 / 4
    assert {layer.mlp_join.branch for layer in model.layers} == {0.5}
    bare = decoder(TransformerConfig(50, 64, 2, 4), recipe_of("mup"))
    assert bare.readout.multiplier == 1 / 64
    assert float(bare.layers[0].mlp.down.weight.detach().std()) == pytest.approx(1 / 16, rel=0.03)


def munit_layer(layer: TransformerLayer, x: torch.Tensor, tau: float) -> torch.Tensor:
    """A block of mu-nit scaling of torch's functions alone, so that its gradients are those of torch."""

    def linear(h: torch.Tensor, module: Linear) -> torch.Tensor:
        return F.linear(h, module.weight) / math.sqrt(module.in_features)

    def norm(h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, h.shape[-1:])

    def join(branch: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return math.sqrt(1 - tau) * skip + math.sqrt(tau) * branch

    heads, length = layer.attention.heads, x.shape[1]
    qkv = linear(x, layer.attention.qkv).unflatten(-1, (3, heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(rotate(query, 1e4), rotate(key, 1e4), value, is_causal=True)
    mixed = mixed * rules.attention(length, 1.0, causal=True)
    x = join(norm(linear(mixed.transpose(1, 2).flatten(2), layer.attention.out)), x)
    active = F.gelu(linear(x, layer.mlp.up)) * rules.gelu()[0]
    return join(norm(linear(active, layer.mlp.down)), x)


def test_a_block_of_munit_scaling_is_an_ordinary_function_of_its_input() -> None:
    config = dataclasses.replace(SMALL, activation="gelu", tau=0.3)
    layer = TransformerLayer(config, recipe=recipe_of("munit")).double()
    x = torch.randn(2, 7, 32, dtype=torch.float64, requires_grad=True)
    ours, plain = layer(x), munit_layer(layer, x, 0.3)
    torch.testing.assert_close(ours, plain, **EXACT)
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (ours, plain)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_every_hidden_layer_of_munit_scaling_has_one_factor_in_both_directions() -> None:
    model = decoder(recipe=recipe_of("munit"))
    factors: dict[tuple[str, str], float] = {}
    with observe(lambda event: factors.update({(event.layer, event.gemm): event.scale})):
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    hidden = [name for name, module in model.named_modules() if isinstance(module, Linear) and name != "readout"]
    assert len(hidden) == 10
    for name in hidden:
        fan_in = 128 if name.endswith("down") else 32
        assert factors[name, "output"] == factors[name, "grad_input"] == pytest.approx(fan_in**-0.5)
    assert factors["readout", "output"] == pytest.approx(1 / 32)


def test_a_block_of_u_mup_is_its_composition() -> None:
    config = dataclasses.replace(
        SMALL, alpha_attention_softmax=2.0, alpha_ffn_activation=1.5, alpha_res=0.5, alpha_res_attn_ratio=0.25
    )
    layer = TransformerLayer(config, 1, recipe=recipe_of("u_mup")).double()
    x = torch.randn(2, 7, 32, dtype=torch.float64)

    def norm(h: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(h, h.shape[-1:])

    taus = [rules.transformer_residual_tau(i, 4, alpha_res=0.5, alpha_res_attn_ratio=0.25) for i in (2, 3)]
    qkv = functional.linear(norm(x), layer.attention.qkv.weight).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(
        rotate(qkv[0], 1e4), rotate(qkv[1], 1e4), qkv[2], is_causal=True, mult=2.0
    )
    branch = functional.linear(mixed.transpose(1, 2).flatten(2), layer.attention.out.weight)
    h = functional.residual_add(branch, x, taus[0])
    up, gate = (functional.linear(norm(h), m.weight, constraint=None) for m in (layer.mlp.up, layer.mlp.gate))
    active = functional.silu_glu(up, gate, mult=1.5)
    branch = functional.linear(active, layer.mlp.down.weight, constraint=None)
    torch.testing.assert_close(layer(x), functional.residual_add(branch, h, taus[1]), **EXACT)


def shares(config: TransformerConfig, recipe: Recipe) -> tuple[float, float, float]:
    """Shares of the last sum's variance: embedding, each attention, each MLP. Branches are orthogonal unit vectors."""
    branches = 2 * config.blocks
    basis = torch.eye(branches + 1, dtype=torch.float64)
    x = basis[0]
    for index in range(branches):
        x = join_of(config, recipe, index)(lambda h, i=index: basis[i + 1], x)
    variances = x.square()
    torch.testing.assert_close(variances[1::2], variances[1].expand(config.blocks))
    torch.testing.assert_close(variances[2::2], variances[2].expand(config.blocks))
    return float(variances[0]), float(variances[1]), float(variances[2])


def test_the_shares_of_the_residual_stream_in_u_mup() -> None:
    config = dataclasses.replace(SMALL, blocks=4)
    assert shares(config, recipe_of("u_mup")) == pytest.approx((1 / 3, 1 / 12, 1 / 12))
    uneven = dataclasses.replace(config, alpha_res=0.5, alpha_res_attn_ratio=0.25)
    assert shares(uneven, recipe_of("u_mup")) == pytest.approx((0.6667, 0.0049, 0.0784), abs=1e-4)
    by_branches = dataclasses.replace(config, depth_convention="branches")
    assert shares(by_branches, recipe_of("unit_scaled")) == pytest.approx((1 / 2, 1 / 16, 1 / 16))


def test_the_residual_stream_in_the_other_styles() -> None:
    config = dataclasses.replace(SMALL, blocks=4)
    x, branch = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert join_of(config, recipe_of("standard"), 0)(lambda h: branch, x).tolist() == [1.0, 1.0]
    assert join_of(config, recipe_of("mup"), 0)(lambda h: branch, x).tolist() == [1.0, 0.5]
    by_branches = dataclasses.replace(config, depth_convention="branches")
    for base_depth, expected in ((None, 1 / 8), (1, 1 / 4)):
        join = join_of(dataclasses.replace(by_branches, base_depth=base_depth), recipe_of("mup"), 0)
        assert float(join(lambda h: branch, x)[1]) ** 2 == pytest.approx(expected)
    for index in range(8):
        x = join_of(config, recipe_of("munit"), index)(lambda h: torch.zeros(2), x)
    assert float(x[0]) ** 2 == pytest.approx(0.6**8)
    assert float(x[0]) ** 2 == pytest.approx(0.017, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("style", ["mup", "munit"])
def test_no_dtype_rounds_the_coefficients_of_the_stream(style: str, dtype: torch.dtype) -> None:
    join = join_of(dataclasses.replace(SMALL, blocks=3), recipe_of(style), 0)
    branch = torch.linspace(1, 2, 129, dtype=dtype, requires_grad=True)
    joined = join(lambda h: branch, torch.zeros_like(branch))
    exact = (branch.detach().double() * join.branch).to(dtype)
    assert torch.equal(joined, exact)
    assert not torch.equal(exact, branch.detach() * torch.tensor(join.branch, dtype=dtype)), "a rounded one shows"
    torch.autograd.backward(joined, branch.detach())
    assert torch.equal(branch.grad, exact)


@pytest.mark.parametrize("style", ["unit_scaled", "u_mup", "munit"])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_a_unit_scaled_decoder_starts_at_scale_one(style: str, activation: str) -> None:
    config = TransformerConfig(500, 64, 4, 4, activation=activation)
    model = decoder(config, recipe_of(style))
    tokens = torch.randint(0, 500, (8, 65), generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        assert float(parameter.detach().std()) == pytest.approx(1.0, rel=0.02), name
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(500), abs=0.05)
    loss.backward()
    spread = {name: float(p.grad.std()) for name, p in model.named_parameters() if p.grad is not None}
    assert spread["readout.weight"] == pytest.approx(1.0, rel=0.05)
    assert all(0.2 < std < 5 for std in spread.values()), spread


def test_the_weight_gradients_of_a_decoder_are_those_measured_with_the_unit_scaling_library() -> None:
    model = decoder(TransformerConfig(1000, 256, 4, 4, rotary_base=None))
    tokens = torch.randint(0, 1000, (4, 129), generator=torch.Generator().manual_seed(2))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    stds = {name: float(p.grad.std()) for name, p in model.named_parameters() if p.grad is not None}
    # Width 256, 4 blocks, 1000 symbols, 4 x 128 tokens; the two figures of MLPs are those of the first and last block.
    measured = {"embedding": 1.11, "layers.0.attention.qkv": 1.23, "layers.0.attention.out": 2.1, "readout": 0.99}
    measured |= {f"layers.0.mlp.{name}": std for name, std in (("up", 0.65), ("gate", 0.65), ("down", 0.68))}
    measured |= {f"layers.3.mlp.{name}": 0.52 for name in ("up", "gate", "down")}
    for name, std in measured.items():
        assert stds[f"{name}.weight"] == pytest.approx(std, rel=0.12), name
