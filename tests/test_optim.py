"""Parameter groups: rates, decay and eps by parametrization, merged without changing a bit; and Adam-atan2."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fp8sim.nn import Embedding, Linear, ResidualStack
from fp8sim.optim import AdamAtan2, parameter_groups
from fp8sim.unit_scaling import mup


class Block(torch.nn.Module):
    """x [T, W] -> [T, W]: the linear layers of a transformer block, in a row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = Linear(3 * width, width, bias=True)
        self.down = Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.out(self.qkv(self.norm(x))))


class Net(torch.nn.Module):
    """tokens [T] -> logits [T, 11]."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.embedding = Embedding(11, width)
        self.blocks = ResidualStack(*(Block(width) for _ in range(blocks)))
        self.readout = Linear(width, 11, role="readout")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.readout(self.blocks(self.embedding(tokens)))


Groups = list[dict[str, Any]]


def rates(model: torch.nn.Module, groups: Groups, key: str = "lr") -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group[key] for group in groups for parameter in group["params"]}


def meta(*sizes: int) -> Net:
    with torch.device("meta"):
        return Net(*sizes)


def test_rates_of_a_model_of_width_256_and_four_blocks() -> None:
    model = meta(256)
    groups = parameter_groups(model, lr=1.0, parametrization="u_mup", weight_decay=2.0**-13)
    found = rates(model, groups)
    assert {name: found[name] for name in found if not name.startswith("blocks") or ".2." in name} == {
        "embedding.weight": 0.0625,
        "blocks.2.norm.weight": 0.5,
        "blocks.2.qkv.weight": 0.03125,
        "blocks.2.out.weight": pytest.approx(768**-0.5 / 2),
        "blocks.2.out.bias": 0.5,
        "blocks.2.down.weight": 0.03125,
        "readout.weight": 1.0,
    }
    assert {group["lr"] * group["weight_decay"] for group in groups} == {2.0**-13}


def test_equal_rates_share_a_group() -> None:
    model = meta(256)
    groups = parameter_groups(model, lr=2.0, parametrization="u_mup")
    assert [group["lr"] for group in groups] == [2.0, 1.0, 0.125, 0.0625, pytest.approx(768**-0.5)]
    assert [len(group["params"]) for group in groups] == [1, 8, 1, 8, 4]
    assert set(groups[0]) == {"params", "lr", "weight_decay"}
    (group,) = parameter_groups(model, lr=2.0, parametrization="standard", weight_decay=0.1, decay_rule="coupled")
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (2.0, 0.1, 22)


def test_weights_that_do_not_decay_have_groups_of_their_own() -> None:
    model = meta()
    groups = parameter_groups(model, lr=1.0, parametrization="standard", weight_decay=0.5, undecayed=("norm", "bias"))
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0, 8), (0.5, 14)]


def test_eps_may_differ_between_weights() -> None:
    model = meta(256)
    options = partial(parameter_groups, model, lr=1.0, parametrization="standard")
    (group,) = options(eps=1e-12)
    assert group["eps"] == 1e-12
    found = rates(model, options(eps=lambda weight: mup.gradient_scale(weight, "standard")), "eps")
    assert found["readout.weight"] == 1.0
    assert found["blocks.0.down.weight"] == found["embedding.weight"] == found["blocks.0.norm.weight"] == 1 / 16
    assert len(options(eps=lambda weight: mup.gradient_scale(weight, "standard"))) == 3


def test_mup_with_a_base_model() -> None:
    model = meta(256)
    found = rates(model, parameter_groups(model, lr=1.0, parametrization="mup", base=meta(64)))
    assert (found["blocks.0.qkv.weight"], found["blocks.0.norm.weight"], found["readout.weight"]) == (0.25, 1.0, 1.0)
    deep = rates(model, parameter_groups(model, lr=1.0, parametrization="mup", base=meta(64), base_depth=1))
    assert (deep["blocks.0.qkv.weight"], deep["blocks.0.norm.weight"], deep["readout.weight"]) == (0.125, 0.5, 1.0)
    sgd = rates(model, parameter_groups(model, lr=1.0, parametrization="mup", optimizer="sgd", base=meta(64)))
    assert (sgd["blocks.0.qkv.weight"], sgd["blocks.0.norm.weight"], sgd["readout.weight"]) == (1.0, 4.0, 4.0)


def test_at_the_base_every_rate_is_one() -> None:
    (group,) = parameter_groups(meta(), lr=1.0, parametrization="mup", base=meta())
    assert group["lr"] == 1.0


def test_rates_of_munit_with_a_base_width() -> None:
    model = meta(256)
    found = rates(model, parameter_groups(model, lr=1.0, parametrization="munit", base=meta(64)))
    assert (found["blocks.0.qkv.weight"], found["embedding.weight"], found["readout.weight"]) == (0.5, 1.0, 1.0)


def test_depth_in_branches_is_twice_that_in_blocks() -> None:
    model = meta(256)
    options = {"lr": 1.0, "parametrization": "u_mup", "depth_convention": "branches"}
    assert rates(model, parameter_groups(model, **options))["blocks.0.norm.weight"] == 8**-0.5  # type: ignore[arg-type]
    with_base = parameter_groups(model, **options | {"parametrization": "mup", "base": meta(64, 4)})  # type: ignore[arg-type]
    assert rates(model, with_base)["blocks.0.norm.weight"] == 1.0


def test_a_rule_with_options_is_a_parametrization() -> None:
    model = meta(256)
    rule = partial(mup.u_mup, embedding_width_rule=False)
    assert rates(model, parameter_groups(model, lr=1.0, parametrization=rule))["embedding.weight"] == 1.0


def test_a_bias_has_its_own_rate() -> None:
    groups = parameter_groups(ResidualStack(Linear(64, 16, bias=True)), lr=1.0, parametrization="u_mup")
    assert [(group["lr"], tuple(group["params"][0].shape)) for group in groups] == [(1.0, (16,)), (0.125, (16, 64))]


def test_a_shared_parameter_is_in_one_group() -> None:
    layers = torch.nn.Sequential(Linear(4, 4), Linear(4, 4, role="readout"))
    layers[1].weight = layers[0].weight
    assert [group["lr"] for group in parameter_groups(layers, lr=1.0, parametrization="u_mup")] == [0.5]


def trained(optimizer: torch.optim.Optimizer, model: Net) -> list[torch.Tensor]:
    batch = torch.arange(22) % 11
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), batch).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


OPTIMIZERS = {
    "foreach": partial(torch.optim.AdamW, foreach=True),
    "fused": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.5),
    "atan2": AdamAtan2,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_merged_groups_train_as_one_group_for_each_parameter_does(name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    apart = copy.deepcopy(model)
    options = {"lr": 2.0**-5, "parametrization": "u_mup", "weight_decay": 0.125, "eps": 1e-6}
    merged = parameter_groups(model, **options)  # type: ignore[arg-type]
    single = [
        group | {"params": [parameter]}
        for group in parameter_groups(apart, **options)  # type: ignore[arg-type]
        for parameter in group["params"]
    ]
    assert (len(merged), len(single)) == (5, 22)
    results = [trained(OPTIMIZERS[name](groups), net) for groups, net in ((merged, model), (single, apart))]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def decayed(rule: str, lr: float, optimizer: Callable[[Groups], torch.optim.Optimizer]) -> dict[str, float]:
    """By parameter: what ten steps with zero gradients under a scheduler leave of a weight of one."""
    model = Net()
    groups = parameter_groups(model, lr=lr, parametrization="u_mup", weight_decay=0.0625, decay_rule=rule)
    stepper = optimizer(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: 1 - step / 10)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(10):
        stepper.step()
        scheduler.step()
    return {name: float(parameter.detach().flatten()[0]) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, AdamAtan2])
@pytest.mark.parametrize("lr", [0.01, 0.5])
def test_independent_decay_follows_the_schedule_and_nothing_else(
    lr: float, optimizer: Callable[[Groups], torch.optim.Optimizer]
) -> None:
    left = math.prod(1 - 0.0625 * (1 - step / 10) for step in range(10))
    found = decayed("independent", lr, optimizer)
    assert found == pytest.approx(dict.fromkeys(found, left))


def test_coupled_decay_follows_each_rate() -> None:
    model = Net()
    found = rates(model, parameter_groups(model, lr=0.5, parametrization="u_mup"))
    left = {name: math.prod(1 - 0.0625 * rate * (1 - step / 10) for step in range(10)) for name, rate in found.items()}
    assert decayed("coupled", 0.5, torch.optim.AdamW) == pytest.approx(left)


def test_the_decay_of_the_mup_package_does_not_change_with_width() -> None:
    model = meta(256)
    groups = parameter_groups(model, lr=0.5, parametrization="mup", base=meta(64), weight_decay=0.25, decay_rule="mup")
    assert {group["lr"] * group["weight_decay"] for group in groups} == {0.125}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0: must be positive"),
        ({"lr": math.nan}, "lr=nan: must be positive"),
        ({"lr": math.inf}, "lr=inf: must be positive and finite"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: a finite number, 0 or more"),
        ({"eps": -1.0}, "eps=-1.0: a finite number, 0 or more"),
        ({"eps": lambda weight: math.nan}, "eps=nan: a finite number, 0 or more"),
        (
            {"parametrization": "sp"},
            "parametrization='sp': use one of standard, mup, u_mup, unit_scaled, munit, or a rule",
        ),
        ({"optimizer": "lion"}, "optimizer='lion': use one of adam, sgd"),
        ({"decay_rule": "none"}, "decay_rule='none': use one of independent, coupled, mup"),
        ({"depth_convention": "layers"}, "depth_convention='layers': use one of blocks, branches"),
        ({"undecayed": ("gain",)}, "undecayed='gain': use one of embedding, input"),
        ({"base": meta(8)}, "'u_mup' knows no base shapes: leave the base out"),
        (
            {"parametrization": "mup", "base": meta(8, 2)},
            "base has no parameter 'blocks.2.norm.weight': .* base_depth=",
        ),
        ({"roles": {"head": "readout"}}, r"roles=\['head'\]: no parameter has such a name"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(meta(), **{"lr": 1.0, "parametrization": "u_mup"} | options)


def steps(gradients: list[torch.Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    """A weight of one after a step of AdamAtan2 with each of these gradients."""
    weight = torch.nn.Parameter(torch.ones_like(gradients[0], dtype=dtype))
    optimizer = AdamAtan2([weight], **options)
    for gradient in gradients:
        weight.grad = gradient.to(dtype)
        optimizer.step()
    return weight.detach()


def defined(
    gradients: list[torch.Tensor], lr: float, betas: tuple[float, float], decay: float, b: float
) -> torch.Tensor:
    """The same by its formula, in float64, with torch's atan2."""
    w, m, v = (torch.full_like(gradients[0], value, dtype=torch.float64) for value in (1, 0, 0))
    for t, gradient in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * gradient.double()
        v = betas[1] * v + (1 - betas[1]) * gradient.double() ** 2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = (1 - lr * decay) * w - lr * 4 / math.pi * torch.atan2(m_hat, b * v_hat.sqrt())
    return w


@pytest.mark.parametrize("b", [1.0, 3.0])
def test_atan2_is_its_formula(b: float) -> None:
    gradients = [torch.randn(500, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    found = steps(gradients, lr=0.01, betas=(0.9, 0.95), weight_decay=0.5, b=b)
    torch.testing.assert_close(found.double(), defined(gradients, 0.01, (0.9, 0.95), 0.5, b), rtol=0, atol=5e-6)
    in_double = steps(gradients, torch.float64, lr=0.01, betas=(0.9, 0.95), weight_decay=0.5, b=b)
    torch.testing.assert_close(in_double, defined(gradients, 0.01, (0.9, 0.95), 0.5, b), rtol=0, atol=1e-13)


def test_the_first_step_of_atan2_is_one_rate_and_no_step_exceeds_two() -> None:
    gradients = [torch.tensor([1e-18, 3.0, -2e15])]
    assert steps(gradients, lr=0.25).tolist() == pytest.approx([0.75, 0.75, 1.25])
    late = [torch.tensor([1e-15]), *[torch.tensor([1e12])] * 5]
    assert 1 - float(steps(late, lr=0.25, betas=(0.0, 0.99999))) < 6 * 0.5


@given(power=st.integers(-40, 40), seed=st.integers(0, 9))
def test_atan2_does_not_see_the_scale_of_gradients(power: int, seed: int) -> None:
    gradients = [torch.randn(37, generator=torch.Generator().manual_seed(10 * seed + i)) for i in range(5)]
    scaled = [gradient * 2.0**power for gradient in gradients]
    assert torch.equal(steps(gradients, lr=0.1), steps(scaled, lr=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_atan2_of_zeros_is_zero_and_nan_stays(dtype: torch.dtype) -> None:
    found = steps([torch.tensor([0.0, -0.0, math.nan, 1.0])] * 3, dtype, lr=0.25)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2].isnan()
    assert float(found[3]) == pytest.approx(0.25, rel=0.02)


def test_atan2_of_a_square_that_underflows_is_bounded() -> None:
    smallest = torch.tensor([1e-30, -1e-30])
    assert steps([smallest], lr=0.25).tolist() == pytest.approx([0.5, 1.5])


def test_atan2_skips_parameters_without_a_gradient_and_runs_the_closure() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = AdamAtan2([used, unused], lr=0.5)

    def closure() -> torch.Tensor:
        loss = used.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert used.tolist() == pytest.approx([0.5] * 3)
    assert unused.tolist() == [1.0] * 3
    assert list(optimizer.state) == [used]


def test_atan2_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    model = Net()
    groups = partial(parameter_groups, lr=0.01, parametrization="u_mup", weight_decay=0.125)
    optimizer = AdamAtan2(groups(model), betas=(0.5, 0.75))
    trained(optimizer, model)
    resumed = copy.deepcopy(model)
    other = AdamAtan2(groups(resumed))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, theirs in zip(trained(optimizer, model), trained(other, resumed), strict=True):
        assert torch.equal(ours, theirs)


def test_atan2_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    model = Net()
    other = copy.deepcopy(model)
    optimizers = [AdamAtan2(parameter_groups(net, lr=0.01, parametrization="u_mup")) for net in (model, other)]
    optimizers[1].step = torch.compile(optimizers[1].step, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    results = [trained(optimizer, net) for optimizer, net in zip(optimizers, (model, other), strict=True)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0: must not be negative"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"betas": (0.9, 1.0)}, "each must be at least 0 and below 1"),
        ({"b": 0.0}, "b=0.0: both must be positive"),
    ],
)
def test_atan2_refuses_what_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamAtan2([torch.nn.Parameter(torch.ones(1))], **options)


def test_atan2_refuses_sparse_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="no sparse gradients"):
        AdamAtan2([weight]).step()
