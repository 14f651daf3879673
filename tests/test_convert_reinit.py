"""`fp8sim.convert` under parametrizations whose weights start anew: factors, first weights, warnings."""

import copy

import pytest
import torch
from convertible import TOKENS, Net, gemms, loss_of
from torch.nn import functional as F

import fp8sim
from fp8sim import functional as U
from fp8sim import nn
from fp8sim.optim import parameter_groups


def converted(model: torch.nn.Module, recipe: str = "unit_scaled", **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return fp8sim.convert(model, recipe=recipe, reinit=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["unit_scaled", "unit_scaled_fp8", "u_mup_fp8", "munit_scaled_fp8", "mup_fp8"])
def test_without_reinit_the_model_stays_as_it_is(recipe: str) -> None:
    model = Net()
    state, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(
        ValueError, match="start otherwise than in torch .* Pass reinit=True, which draws the weights of"
    ):
        fp8sim.convert(model, recipe=recipe)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="was not converted"):
        fp8sim.conversion_report(model)


def test_weights_start_as_the_parametrization_says() -> None:
    model = Net(bias=True, width=64, symbols=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    converted(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(1, rel=0.05), name
            assert parameter.mean().item() == pytest.approx(0, abs=0.05), name


def test_a_padding_row_that_is_shared_with_the_readout_starts_at_zero() -> None:
    model = Net()
    model.embedding.padding_idx = 3
    converted(model)
    assert not model.head.weight[3].any()
    assert model.head.weight[2].all()


def test_reinit_draws_anew_under_the_standard_parametrization_too() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(4, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    converted(model, "bf16")
    assert model[0].weight.std().item() == pytest.approx(1, rel=0.2)
    assert (model[1].weight == 1).all()
    assert 0 < model[2].weight.abs().max() <= 1 / 8
    assert 0 < model[2].bias.abs().max() <= 1 / 8


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
EXPECTED = {
    "linear": (torch.nn.Linear(8, 6), lambda m, x: U.linear(x, m.weight, m.bias)),
    "gelu": (torch.nn.GELU("tanh"), lambda m, x: U.gelu(x, "tanh")),
    "silu": (torch.nn.SiLU(inplace=True), lambda m, x: U.silu(x)),
    "relu": (torch.nn.ReLU(inplace=True), lambda m, x: U.relu(x)),
    "tanh": (torch.nn.Tanh(), lambda m, x: U.tanh(x)),
    "sigmoid": (torch.nn.Sigmoid(), lambda m, x: U.sigmoid(x)),
    "softmax": (torch.nn.Softmax(0), lambda m, x: U.softmax(x, 0)),
    "dropout": (torch.nn.Dropout(0.25), lambda m, x: U.dropout(x, 0.25)),
    "layer norm": (torch.nn.LayerNorm(8, 1e-3), lambda m, x: U.layer_norm(x, (8,), m.weight, m.bias, 1e-3)),
    "layer norm without bias": (torch.nn.LayerNorm(8, bias=False), lambda m, x: U.layer_norm(x, (8,), m.weight)),
    "rms norm": (torch.nn.RMSNorm(8), lambda m, x: U.rms_norm(x, (8,), m.weight, None)),
    "rms norm without gain": (torch.nn.RMSNorm(8, 1e-3, False), lambda m, x: U.rms_norm(x, (8,), eps=1e-3)),
    "conv1d": (
        torch.nn.Conv1d(5, 10, 3, 2, 1, 2, 5),
        lambda m, x: U.conv1d(x, m.weight, m.bias, 2, 1, 2, 5),
    ),
    "embedding": (
        torch.nn.Sequential(torch.nn.Flatten(0), torch.nn.Embedding(4, 8, 1)),
        lambda m, x: U.embedding(x, m[1].weight, 1),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_module_becomes_the_unit_scaled_function(name: str) -> None:
    model, function = EXPECTED[name]
    model = converted(model)
    x = torch.arange(4).repeat(3) if name == "embedding" else X.clone().requires_grad_()
    leaves = [*model.parameters(), *([x] if x.is_floating_point() else [])]
    results = []
    for run in (model, lambda x: function(model, x)):
        torch.manual_seed(1)
        output = run(x)
        results.append((output, *torch.autograd.grad(output, leaves, torch.ones_like(output))))
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


def test_mup_starts_and_multiplies_as_its_table_says() -> None:
    model = Net(width=64, symbols=256)
    model.head.weight = torch.nn.Parameter(torch.zeros(256, 64))
    converted(model, "mup_fp8", roles={"head": "readout"})
    assert model.blocks[0].up.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert model.blocks[0].down.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.blocks[0].attention.in_proj_weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert model.blocks[0].attention.out_proj.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert (model.head.weight.std().item(), model.head.multiplier) == (pytest.approx(1, rel=0.05), 1 / 64)
    x = torch.randn(3, 64)
    assert torch.equal(model.head(x), U.linear(x, model.head.weight, recipe=model.head.recipe) / 64)
    parameter_groups(model, lr=1.0, parametrization="mup")
    with pytest.warns(UserWarning, match="convolutions have no initial weight of muP"):
        converted(torch.nn.Sequential(torch.nn.Conv1d(2, 2, 1), torch.nn.Linear(4, 4)), "mup_fp8")


def test_roles_decide_factors_and_precision() -> None:
    model = Net()
    model.head.weight = torch.nn.Parameter(torch.zeros(11, 16))
    converted(model, "u_mup_fp8", roles={"head": "readout", "*.down": "ffn_down"})
    formats = {e.layer: str(e.quantizers[0].format) for e in gemms(lambda: model(TOKENS)) if e.quantizers[0]}
    critical = {name for name, fmt in formats.items() if fmt == "bfloat16"}
    assert critical == {"head", *(f"blocks.{i}.{part}" for i in (0, 1) for part in ("down", "attention.out_proj"))}
    x = torch.randn(3, 16)
    assert torch.equal(model.head(x), U.linear_readout(x, model.head.weight, recipe=model.head.recipe))


def notes(model: torch.nn.Module, recipe: str = "u_mup_fp8", **options: object) -> str:
    return "\n".join(fp8sim.conversion_report(converted(model, recipe, **options)).notes)


def test_the_report_says_what_the_model_itself_must_do() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    said = notes(copy.deepcopy(layers))
    assert "the recipe keeps attention_out, ffn_down, readout in high precision, and no layer has such a role" in said
    assert "no layer has the role 'readout': name the model's last layer by roles=" in said
    assert "residual sums stay as in the model's code: use fp8sim.functional.residual_split and residual_add" in said
    said = notes(copy.deepcopy(layers), roles={"1": "readout"})
    assert "keeps attention_out, ffn_down in high precision" in said
    assert "no layer has the role 'readout'" not in said
    assert "residual" not in notes(copy.deepcopy(layers), "mup_fp8")
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    assert "on the meta device have no values yet: after to_empty, call reset_parameters()" in notes(model)
    model.to_empty(device="cpu")[0].reset_parameters()
    assert model[0].weight.std().item() == pytest.approx(1, rel=0.3)


def test_what_has_no_counterpart_is_named() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8),
        torch.nn.LeakyReLU(),
        torch.nn.BatchNorm1d(8),
        torch.nn.Softmax(),
        torch.nn.Embedding(4, 8, max_norm=1.0),
        torch.nn.Embedding(4, 8, sparse=True),
        torch.nn.Embedding(4, 8, scale_grad_by_freq=True),
    )
    report = fp8sim.conversion_report(converted(model))
    assert [line.reason for line in report.skipped] == [
        "torch.nn.modules.activation.LeakyReLU has no counterpart in fp8sim.nn",
        "torch.nn.modules.batchnorm.BatchNorm1d has no counterpart in fp8sim.nn",
        "dim=None: name the dimension",
        "max_norm=1.0: embeddings by recipe have no such option",
        "sparse=True: embeddings by recipe have no such option",
        "scale_grad_by_freq=True: embeddings by recipe have no such option",
    ]


class Residual(torch.nn.Module):
    """x + f(x), with the sum written so that it carries factors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width)
        self.up, self.act, self.down = (
            torch.nn.Linear(width, 4 * width),
            torch.nn.GELU(),
            torch.nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return U.residual_apply(lambda h: self.down(self.act(self.up(self.norm(h)))), x, 0.5)


def test_a_converted_model_with_scaled_sums_has_activations_and_gradients_of_unit_scale() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(256, 128), *(Residual(128) for _ in range(3)), torch.nn.Linear(128, 256)
    )
    converted(model, "unit_scaled_fp8", roles={"4": "readout"})
    tokens = torch.randint(256, (512,))
    seen = [m.register_forward_hook(lambda m, i, o: stds.append(o.std().item())) for m in model[:4]]
    stds: list[float] = []
    U.cross_entropy(model(tokens), tokens.roll(1)).backward()
    assert seen
    assert stds == [pytest.approx(1, abs=0.1)] * 4
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.grad is not None
            assert 0.4 < parameter.grad.std() < 2.5, name
    assert F.cross_entropy(model(tokens), tokens).item() == pytest.approx(5.55, abs=0.1)


def test_a_converted_model_trains() -> None:
    model = converted(Net(), "u_mup_fp8")
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=0.1, parametrization="u_mup"))
    first = loss_of(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < first / 2
    assert isinstance(model.head, nn.Linear)


@pytest.mark.parametrize("recipe", ["mup_fp8", "unit_scaled", "munit_scaled_fp8"])
def test_a_role_that_is_named_later_is_that_of_a_model_converted_with_it(recipe: str) -> None:
    def layers() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 64))

    expected = converted(layers(), recipe, roles={"1": "readout"})
    model = converted(layers(), recipe)
    with pytest.raises(
        ValueError, match="reinit=False: roles= makes 1 'readout', which was 'hidden'.*Pass reinit=True"
    ):
        fp8sim.convert(model, recipe=recipe, roles={"1": "readout"})
    assert model[1].role == "hidden"
    converted(model, recipe, roles={"1": "readout"})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert torch.equal(model(X), expected(X))
    converted(model, recipe, roles={"1": "hidden"})
    back = converted(layers(), recipe)
    assert torch.equal(model(X), back(X))
    assert model[1].constraint == back[1].constraint
