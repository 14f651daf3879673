"""Single modules: state dicts of torch's modules load both ways and give torch's outputs; initial weights; roles."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from fp8sim import nn, recipes
from fp8sim.nn import roles
from fp8sim.recipes import RECIPES
from fp8sim.unit_scaling import rules

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS = torch.tensor([[0, 3, 2], [6, 3, 1]])

PAIRS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], torch.nn.Module], torch.Tensor]] = {
    "linear": (lambda: nn.Linear(12, 8, recipe="fp32"), lambda: torch.nn.Linear(12, 8, bias=False), normal(2, 3, 12)),
    "linear with a bias": (
        lambda: nn.Linear(12, 8, True, recipe="fp32"),
        lambda: torch.nn.Linear(12, 8),
        normal(12),
    ),
    "readout": (
        lambda: nn.LinearReadout(12, 8, True, recipe="fp32"),
        lambda: torch.nn.Linear(12, 8),
        normal(2, 3, 12),
    ),
    "embedding": (lambda: nn.Embedding(7, 4, recipe="fp32"), lambda: torch.nn.Embedding(7, 4), TOKENS),
    "embedding with padding": (
        lambda: nn.Embedding(7, 4, 3, recipe="fp32"),
        lambda: torch.nn.Embedding(7, 4, 3),
        TOKENS,
    ),
    "rms norm": (lambda: nn.RMSNorm(6, recipe="fp32"), lambda: torch.nn.RMSNorm(6, eps=1e-5), normal(5, 6)),
    "rms norm without gain": (
        lambda: nn.RMSNorm((5, 6), 1e-3, False, recipe="fp32"),
        lambda: torch.nn.RMSNorm((5, 6), 1e-3, False),
        normal(2, 5, 6),
    ),
    "layer norm": (lambda: nn.LayerNorm(6, recipe="fp32"), lambda: torch.nn.LayerNorm(6), normal(5, 6)),
    "layer norm without bias": (
        lambda: nn.LayerNorm(6, 1e-2, bias=False, recipe="fp32"),
        lambda: torch.nn.LayerNorm(6, 1e-2, bias=False),
        normal(5, 6),
    ),
    "conv1d": (
        lambda: nn.Conv1d(6, 4, 3, 2, 1, 2, 2, True, recipe="fp32"),
        lambda: torch.nn.Conv1d(6, 4, 3, 2, 1, 2, 2, True),
        normal(2, 6, 11),
    ),
    "conv1d same": (
        lambda: nn.Conv1d(6, 4, 3, padding="same", recipe="fp32"),
        lambda: torch.nn.Conv1d(6, 4, 3, padding="same", bias=False),
        normal(6, 11),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_state_dict_of_torch_loads_both_ways_and_gives_its_outputs(name: str) -> None:
    make_ours, make_theirs, x = PAIRS[name]
    torch.manual_seed(0)
    ours, theirs = make_ours().double(), make_theirs().double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module in (ours, theirs):
        output = module(x)
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(output.square().sum(), parameters) if parameters else ()
        results.append((output, *gradients))
    torch.testing.assert_close(*results, **EXACT)

    back = make_theirs().double()
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back(x), theirs(x))


@pytest.mark.parametrize("name", PAIRS)
def test_standard_parameters_start_as_torch_draws_them(name: str) -> None:
    started = []
    for make in PAIRS[name][:2]:
        torch.manual_seed(0)
        started.append(make().state_dict())
    assert started[0].keys() == started[1].keys()
    torch.testing.assert_close(*started)


def test_unit_scaled_parameters_start_at_unit_scale() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(64, 256, True),
        nn.LinearReadout(64, 256, True),
        nn.Conv1d(64, 128, 3, bias=True),
        nn.Embedding(200, 64),
    ]
    for layer in layers:
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx(1.0, rel=0.02)
        bias = getattr(layer, "bias", None)
        assert bias is None or not bias.any()


def test_a_given_initial_scale_is_that_of_the_weight() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 256, True, recipe="fp32", init_std=0.02)
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_a_multiplier_is_on_output_and_gradients() -> None:
    plain, scaled = nn.LinearReadout(6, 4, recipe="fp32"), nn.LinearReadout(6, 4, recipe="fp32", multiplier=0.25)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(3, 6, requires_grad=True)
    results = [(layer(x), *torch.autograd.grad(layer(x).sum(), [x, layer.weight])) for layer in (plain, scaled)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a * 0.25, b)
    embedding = nn.Embedding(5, 4, recipe="fp32", multiplier=3.0)
    assert torch.equal(embedding(TOKENS % 5), embedding.weight[TOKENS % 5] * 3)


@pytest.mark.parametrize("recipe", ["unit_scaled", "fp32"])
def test_a_norm_has_parameters_unless_unit_scaled_or_told(recipe: str) -> None:
    by_default = recipe == "fp32"
    assert bool(list(nn.RMSNorm(8, recipe=recipe).parameters())) is by_default
    assert bool(list(nn.LayerNorm(8, recipe=recipe).parameters())) is by_default
    assert not list(nn.RMSNorm(recipe=recipe).parameters()), "without a shape there is no gain"
    gained = nn.LayerNorm(8, elementwise_affine=True, recipe=recipe)
    assert {name: p.tolist() for name, p in gained.named_parameters()} == {"weight": [1.0] * 8, "bias": [0.0] * 8}


def test_the_gradients_of_a_unit_scaled_norm_carry_the_factor_of_its_rows() -> None:
    x = normal(50, 8)
    ours = nn.LayerNorm(8, elementwise_affine=True).double()
    theirs = torch.nn.LayerNorm(8, dtype=torch.float64)
    gradients = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (ours, theirs)]
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its * rules.norm_weight(50), **EXACT)


def test_the_padding_row_starts_at_zero_and_stays_there() -> None:
    embedding = nn.Embedding(7, 4, padding_idx=-1)
    assert not embedding.weight[6].any()
    embedding(torch.tensor([6, 6, 2])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.any(1).tolist() == [False, False, True, False, False, False, False]


def test_activations_are_the_functions_of_their_name() -> None:
    x = normal(100)
    torch.testing.assert_close(nn.GELU(2.0, recipe="fp32")(x), F.gelu(2 * x) / 2, **EXACT)
    torch.testing.assert_close(nn.GELU(approximate="tanh", recipe="fp32")(x), F.gelu(x, approximate="tanh"), **EXACT)
    torch.testing.assert_close(nn.SiLU(2.0, recipe="fp32")(x), x * torch.sigmoid(2 * x), **EXACT)
    torch.testing.assert_close(nn.SiLU()(x), F.silu(x) * rules.silu()[0], **EXACT)


@pytest.mark.parametrize(("module", "rule"), [(nn.GELU, rules.gelu), (nn.SiLU, rules.silu)])
@pytest.mark.parametrize("constraint", [None, "to_output_scale"])
def test_the_constraint_of_an_activation_ties_its_factors(
    module: Callable[..., torch.nn.Module], rule: Callable[..., tuple[float, float]], constraint: str | None
) -> None:
    x = normal(100).requires_grad_()
    ours, plain = (
        torch.autograd.grad(m(x).sum(), x)[0] for m in (module(constraint=constraint), module(recipe="fp32"))
    )
    torch.testing.assert_close(ours, plain * rule(1.0, constraint)[1], **EXACT)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_an_mlp_is_its_composition(activation: str) -> None:
    torch.manual_seed(0)
    mlp = nn.MLP(12, 2.5, activation=activation, mult=1.5, bias=True, recipe="fp32").double()
    assert mlp.up.weight.shape == (30, 12)
    x = normal(2, 3, 12)
    up, gate = mlp.up(x), None if mlp.gate is None else F.linear(x, mlp.gate.weight, mlp.gate.bias)
    inner = F.gelu(1.5 * up) / 1.5 if gate is None else up * gate * torch.sigmoid(1.5 * gate)
    torch.testing.assert_close(mlp(x), F.linear(inner, mlp.down.weight, mlp.down.bias), **EXACT)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_the_untied_factors_of_an_mlp_leave_its_input_gradient_that_of_a_function(activation: str) -> None:
    torch.manual_seed(0)
    mlp = nn.MLP(12, 3, activation=activation).double()
    x = normal(5, 12).requires_grad_()
    up, down = rules.linear(12, 36, 5, None), rules.linear(36, 12, 5, None)
    raised = F.linear(x, mlp.up.weight) * up.output
    if mlp.gate is None:
        inner = F.gelu(raised) * rules.gelu()[0]
    else:
        inner = raised * F.silu(F.linear(x, mlp.gate.weight) * up.output) * rules.silu_glu()
    plain = F.linear(inner, mlp.down.weight) * down.output
    torch.testing.assert_close(mlp(x), plain, **EXACT)
    direction = normal(5, 12, seed=1)
    ours, theirs = (torch.autograd.grad(y, x, direction)[0] for y in (mlp(x), plain))
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("recipe", ["unit_scaled_fp8", "fp8_naive"])
def test_copies_and_pickles_give_the_same_bits(recipe: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(nn.Linear(8, 8, True, recipe=recipe), nn.GELU(recipe=recipe), nn.MLP(8, recipe=recipe))
    x = torch.randn(3, 8)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        assert other[0].recipe == net[0].recipe


@pytest.mark.parametrize("recipe", ["unit_scaled", "fp32"])
def test_modules_made_on_the_meta_device_start_as_any(recipe: str) -> None:
    def modules() -> torch.nn.ModuleList:
        return torch.nn.ModuleList(
            [
                nn.Linear(8, 4, True, recipe=recipe),
                nn.LinearReadout(8, 4, recipe=recipe),
                nn.Conv1d(4, 4, 3, bias=True, recipe=recipe),
                nn.Embedding(9, 4, 2, recipe=recipe),
                nn.RMSNorm(4, elementwise_affine=True, recipe=recipe),
                nn.LayerNorm(4, elementwise_affine=True, recipe=recipe),
            ]
        )

    with torch.device("meta"):
        late = modules()
    assert all(p.is_meta for p in late.parameters())
    late.to_empty(device="cpu")
    early = modules()
    for group in (early, late):
        torch.manual_seed(1)
        for module in group:
            module.reset_parameters()
    for ours, theirs in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_parameters_are() -> None:
    net = torch.nn.ModuleDict(
        {
            "qkv": nn.Linear(8, 24, True, role="attention_qkv"),
            "readout": nn.LinearReadout(8, 5, True),
            "conv": nn.Conv1d(4, 6, 3, groups=2, bias=True),
            "embedding": nn.Embedding(9, 4),
            "norm": nn.LayerNorm(4, elementwise_affine=True),
        }
    )
    kinds = {name: (weight.kind, weight.fan_in) for name, (_, weight) in roles.weights(net).items()}
    assert kinds == {
        "qkv.weight": ("hidden", 8),
        "qkv.bias": ("bias", 24),
        "readout.weight": ("readout", 8),
        "readout.bias": ("bias", 5),
        "conv.weight": ("hidden", 6),
        "conv.bias": ("bias", 6),
        "embedding.weight": ("embedding", 9),
        "norm.weight": ("norm", 4),
        "norm.bias": ("bias", 4),
    }


@pytest.mark.parametrize("role", recipes.HIDDEN_ROLES)
def test_a_linear_layer_follows_the_policy_of_its_role(role: str) -> None:
    kept = recipes.from_dict({**RECIPES["fp8_naive"].to_dict(), "high_precision": [role]})
    assert nn.Linear(4, 4, recipe=kept, role=role).recipe.output.first is None
    assert (nn.Linear(4, 4, recipe=kept).recipe.output.first is None) is (role == "hidden")
    assert (nn.Conv1d(4, 4, 3, recipe=kept).recipe.output.first is None) is (role == "hidden")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(4, 4, role="head"), "role='head': use one of hidden, attention_qkv"),
        (lambda: nn.Linear(4, 4, role="embedding"), "role='embedding': use one of"),
        (lambda: nn.Linear(4, 4, recipe="fp9"), "unknown recipe 'fp9'"),
        (lambda: nn.Linear(4, 4, constraint="mean"), "constraint='mean': use one of"),
        (lambda: nn.Linear(0, 4, recipe="fp32"), "in_features=0: must be at least 1"),
        (lambda: nn.LinearReadout(4, -1), "out_features=-1: must be at least 1"),
        (lambda: nn.Conv1d(4, 4, 0), "kernel_size=0: must be at least 1"),
        (lambda: nn.Conv1d(4, 6, 3, groups=4), "groups=4 must divide both in_channels=4 and out_channels=6"),
        (lambda: nn.Conv1d(4, 6, 3, constraint="mean"), "constraint='mean'"),
        (lambda: nn.Embedding(4, 6, 4), "padding_idx=4: the rows are -4 to 3"),
        (lambda: nn.LayerNorm(elementwise_affine=True), "needs a normalized_shape"),
        (lambda: nn.RMSNorm(4, -1e-5), "eps=-1e-05: must not be negative"),
        (lambda: nn.MLP(4, activation="relu"), "activation='relu': use one of swiglu, gelu"),
        (lambda: nn.MLP(4, 0.1), "expansion=0.1 of width=4 leaves no feature"),
        (lambda: nn.Linear(4, 4)(torch.zeros(2, 5)), r"linear takes input \[..., I\]"),
        (lambda: nn.Conv1d(4, 4, 3)(torch.zeros(2, 5, 9)), "conv1d takes input"),
        (lambda: nn.GELU(-1.0)(torch.zeros(2)), "mult=-1.0: expected a positive finite number"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
