"""The tables of muP, u-muP and mu-nit scaling, and the symmetry that relates them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8sim.optim import AdamAtan2
from fp8sim.unit_scaling import mup
from fp8sim.unit_scaling.mup import Abc, Weight

WIDTH, DEPTH, VOCABULARY = 256, 4, 1000
WEIGHTS = {
    "embedding": Weight("embedding", VOCABULARY, WIDTH),
    "input": Weight("input", 64, WIDTH),
    "qkv": Weight("hidden", WIDTH, 3 * WIDTH, depth=DEPTH),
    "up": Weight("hidden", WIDTH, 4 * WIDTH, depth=DEPTH),
    "down": Weight("hidden", 4 * WIDTH, WIDTH, depth=DEPTH),
    "unbranched": Weight("hidden", WIDTH, WIDTH),
    "readout": Weight("readout", WIDTH, VOCABULARY),
    "norm": Weight("norm", WIDTH, WIDTH, depth=DEPTH),
    "bias": Weight("bias", WIDTH, WIDTH),
}


def rates(rule: Callable[..., Abc], optimizer: str = "adam", **base: int) -> dict[str, float]:
    weights = {name: Weight(**{**vars(weight), **base}) for name, weight in WEIGHTS.items()}
    return {name: rule(weight, optimizer).learning_rate for name, weight in weights.items()}


U_MUP_RATES = {
    "embedding": 1 / 16,
    "input": 1.0,
    "qkv": 1 / 32,
    "up": 1 / 32,
    "down": 1 / 64,
    "unbranched": 1 / 16,
    "readout": 1.0,
    "norm": 1 / 2,
    "bias": 1.0,
}


def test_rates_of_u_mup() -> None:
    assert rates(mup.u_mup) == U_MUP_RATES
    assert rates(mup.u_mup, "sgd") == U_MUP_RATES
    assert rates(partial(mup.u_mup, embedding_width_rule=False)) == U_MUP_RATES | {"embedding": 1.0}


def test_rates_of_u_mup_under_sgd_with_a_tied_readout() -> None:
    tied = partial(mup.u_mup, readout_constraint="to_output_scale")
    assert rates(tied) == U_MUP_RATES, "Adam does not see the scale of gradients"
    assert rates(tied, "sgd") == {
        "embedding": 16.0,
        "input": 256.0,
        "qkv": 8.0,
        "up": 8.0,
        "down": 16.0,
        "unbranched": 16.0,
        "readout": 1.0,
        "norm": 128.0,
        "bias": 256.0,
    }


def test_rates_of_mup_without_a_base() -> None:
    assert rates(mup.mup) == {
        "embedding": 1.0,
        "input": 1.0,
        "qkv": 1 / 512,
        "up": 1 / 512,
        "down": 1 / 2048,
        "unbranched": 1 / 256,
        "readout": 1.0,
        "norm": 1 / 2,
        "bias": 1.0,
    }
    assert rates(mup.mup, "sgd") == {
        "embedding": 256.0,
        "input": 256.0,
        "qkv": 3.0,
        "up": 4.0,
        "down": 1 / 4,
        "unbranched": 1.0,
        "readout": 256.0,
        "norm": 256.0,
        "bias": 256.0,
    }


def test_factors_of_mup_at_four_times_the_base() -> None:
    base = {"base_fan_in": 64, "base_fan_out": 64, "base_depth": 1}
    assert mup.mup(Weight("hidden", 256, 256, depth=4, **base)) == (1.0, 0.5, 1 / 8)
    assert mup.mup(Weight("hidden", 256, 256, depth=4, **base), "sgd") == (1.0, 0.5, 1.0)
    assert mup.mup(Weight("readout", 256, 10, base_fan_in=64, base_fan_out=10)) == (0.25, 1.0, 1.0)
    assert mup.mup(Weight("readout", 256, 10, base_fan_in=64, base_fan_out=10), "sgd") == (0.25, 1.0, 4.0)
    assert mup.mup(Weight("embedding", 10, 256, base_fan_in=10, base_fan_out=64), "sgd").learning_rate == 4.0
    assert mup.mup(Weight("bias", 256, 256, **base), "sgd") == (1.0, 0.0, 4.0)


def test_at_its_base_mup_is_the_model_itself() -> None:
    for weight in WEIGHTS.values():
        at_base = Weight(
            weight.kind, weight.fan_in, weight.fan_out, weight.depth, weight.fan_in, weight.fan_out, weight.depth or 1
        )
        for optimizer in mup.OPTIMIZERS:
            factors = mup.mup(at_base, optimizer)
            assert (factors.multiplier, factors.learning_rate) == (1.0, 1.0)


def test_the_swept_parameters_of_mup_act_where_they_belong() -> None:
    swept = partial(mup.mup, init_std=2.0, alpha_embedding=3.0, alpha_output=5.0, embedding_rate=7.0)
    assert swept(Weight("embedding", 10, 16)) == (3.0, 2.0, 7.0)
    assert swept(Weight("hidden", 16, 16)) == (1.0, 0.5, 1 / 16)
    assert swept(Weight("readout", 16, 10)) == (5 / 16, 2.0, 1.0)
    assert swept(Weight("norm", 16, 16)) == (1.0, 0.0, 1.0)


def test_factors_of_u_mup_and_munit_are_unit_scaled() -> None:
    for rule in (mup.u_mup, mup.munit):
        found = {name: rule(weight)[:2] for name, weight in WEIGHTS.items()}
        assert found == {
            "embedding": (1.0, 1.0),
            "input": (1 / 8, 1.0),
            "qkv": (1 / 16, 1.0),
            "up": (1 / 16, 1.0),
            "down": (1 / 32, 1.0),
            "unbranched": (1 / 16, 1.0),
            "readout": (1 / 256, 1.0),
            "norm": (1.0, 0.0),
            "bias": (1.0, 0.0),
        }


def test_rates_of_munit() -> None:
    ones = dict.fromkeys(WEIGHTS, 1.0)
    hidden = {"qkv": 1 / 16, "up": 1 / 16, "down": 1 / 32, "unbranched": 1 / 16}
    assert rates(mup.munit) == ones | hidden
    assert rates(mup.munit, base_fan_in=64) == ones | {name: 8 * rate for name, rate in hidden.items()}


def test_the_standard_parametrization_leaves_rates_alone() -> None:
    assert set(rates(mup.standard).values()) == set(rates(mup.standard, "sgd").values()) == {1.0}
    stds = {name: mup.standard(weight).std for name, weight in WEIGHTS.items()}
    assert stds["embedding"] == 1.0
    assert (stds["qkv"], stds["readout"], stds["norm"]) == (1 / 16, 1 / 16, 0.0)


@pytest.mark.parametrize("optimizer", mup.OPTIMIZERS)
@given(fan_in=st.integers(1, 4096), fan_out=st.integers(1, 4096))
def test_hidden_weights_of_munit_are_those_of_mup_rescaled(optimizer: str, fan_in: int, fan_out: int) -> None:
    weight = Weight("hidden", fan_in, fan_out)
    shifted = mup.rescaled(mup.mup(weight, optimizer), fan_in**-0.5, optimizer)
    assert mup.munit(weight, optimizer) == pytest.approx(shifted, rel=1e-12)


def test_u_mup_with_a_tied_readout_is_mup_rescaled_under_sgd() -> None:
    # Its gradients are those of munit's graph, whose hidden weights carry A, over A: a further factor fan_in^-1/2.
    for fan in (16, 256):
        tied = mup.u_mup(Weight("hidden", fan, fan), "sgd", readout_constraint="to_output_scale")
        ordinary = mup.munit(Weight("hidden", fan, fan), "sgd")
        assert tied.learning_rate == pytest.approx(ordinary.learning_rate * tied.multiplier)


def train(abcs: list[Abc], optimizer: str, thetas: list[float]) -> list[torch.Tensor]:
    """Effective weights after some steps of a net of three layers, of which each has its factors."""
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(16, 4, generator=generator)
    weights = [(torch.randn(4, 4, generator=generator) * abc.std).requires_grad_() for abc in abcs]
    groups: list[dict[str, Any]] = [
        {"params": [weight], "lr": 2.0**-6 * abc.learning_rate} for weight, abc in zip(weights, abcs, strict=True)
    ]
    for group, theta in zip(groups, thetas, strict=True):
        if optimizer == "adamw":
            group |= {"eps": 2.0**-20 * theta, "weight_decay": 2.0**-10 / group["lr"]}
    classes = {"adamw": torch.optim.AdamW, "atan2": AdamAtan2, "sgd": torch.optim.SGD}
    stepper = classes[optimizer](groups)
    for _ in range(6):
        stepper.zero_grad()
        x = data
        for weight, abc in zip(weights, abcs, strict=True):
            x = torch.tanh(x @ (abc.multiplier * weight))
        x.square().sum().backward()
        stepper.step()
    return [(abc.multiplier * weight).detach() for weight, abc in zip(weights, abcs, strict=True)]


@pytest.mark.parametrize("optimizer", ["adamw", "atan2", "sgd"])
@settings(max_examples=15)
@given(powers=st.lists(st.integers(-6, 6), min_size=3, max_size=3))
def test_rescaled_parametrizations_train_identically(optimizer: str, powers: list[int]) -> None:
    abcs, thetas = [Abc(0.5, 1.0, 1.0), Abc(1.0, 0.5, 2.0), Abc(2.0, 1.0, 0.5)], [2.0**power for power in powers]
    family = "sgd" if optimizer == "sgd" else "adam"
    shifted = [mup.rescaled(abc, theta, family) for abc, theta in zip(abcs, thetas, strict=True)]
    plain = train(abcs, optimizer, [1.0] * 3)
    for ours, theirs in zip(train(shifted, optimizer, thetas), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_depth_is_counted_in_blocks_or_branches() -> None:
    assert (mup.depth_of(6), mup.depth_of(6, "branches")) == (6, 12)
    assert mup.branch_multiplier(16) == 0.25
    assert mup.branch_multiplier(16, base_depth=4) == 0.5


def test_weight_decay_by_rule() -> None:
    hidden, gain = Weight("hidden", 256, 256, base_fan_in=64), Weight("norm", 256, 256, base_fan_in=64)
    assert mup.weight_decay(hidden, 2.0**-13, 0.25) == 2.0**-11
    assert mup.weight_decay(hidden, 0.1, 0.25, "coupled") == 0.1
    assert mup.weight_decay(hidden, 0.1, 0.25, "mup") == 0.4
    assert mup.weight_decay(gain, 0.1, 0.25, "mup") == 0.1
    assert mup.weight_decay(hidden, 0.0, 0.25) == 0.0


def gradient_rms(parametrization: str, width: int) -> dict[str, float]:
    """Gradients of a linear net x -> embedding, hidden, readout, for a random direction of its output."""
    rule, classes = mup.PARAMETRIZATIONS[parametrization], 32
    described = {
        "embedding": Weight("embedding", classes, width),
        "hidden": Weight("hidden", width, width),
        "readout": Weight("readout", width, classes),
    }
    generator, x = torch.Generator().manual_seed(0), torch.eye(classes)
    weights = {}
    for name, weight in described.items():
        factors = rule(weight)
        weights[name] = (torch.randn(weight.fan_in, weight.fan_out, generator=generator) * factors.std).requires_grad_()
        x = factors.multiplier * (x @ weights[name])
    (x * torch.randn(x.shape, generator=generator)).sum().backward()
    return {name: float(weight.grad.square().mean().sqrt()) for name, weight in weights.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("parametrization", ["standard", "mup", "munit"])
def test_gradients_shrink_with_width_as_their_scale_says(parametrization: str) -> None:
    narrow, wide = gradient_rms(parametrization, 64), gradient_rms(parametrization, 1024)
    for kind, fans in {"embedding": (32, 1024), "hidden": (1024, 1024), "readout": (1024, 32)}.items():
        weight = Weight(kind, *fans, base_fan_in=min(64, fans[0]), base_fan_out=min(64, fans[1]))
        assert wide[kind] / narrow[kind] == pytest.approx(mup.gradient_scale(weight, parametrization), rel=0.15)


def test_unit_scaled_gradients_do_not_shrink() -> None:
    assert {mup.gradient_scale(weight, "u_mup") for weight in WEIGHTS.values()} == {1.0}


@pytest.mark.parametrize(
    ("kind", "shape", "fans"),
    [
        ("hidden", (128, 32), (32, 128)),
        ("embedding", (1000, 32), (1000, 32)),
        ("hidden", (64, 8, 3), (24, 64)),
        ("hidden", (64, 8, 3, 3), (72, 64)),
        ("norm", (32,), (32, 32)),
        ("bias", (), (1, 1)),
    ],
)
def test_sizes_follow_from_the_shape(kind: str, shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    weight = mup.weight_of_shape(kind, shape)
    assert (weight.fan_in, weight.fan_out) == fans


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Weight("conv", 4, 4), "kind='conv': use one of embedding, input"),
        (lambda: Weight("hidden", 0, 4), "fan_in=0: must be at least 1"),
        (lambda: Weight("hidden", 4, 4, depth=0), "depth=0: must be at least 1"),
        (lambda: mup.u_mup(WEIGHTS["up"], "lion"), "optimizer='lion': use one of adam, sgd"),
        (lambda: mup.u_mup(WEIGHTS["up"], readout_constraint="gmean"), "readout_constraint='gmean'"),
        (lambda: mup.u_mup(Weight("hidden", 4, 4, base_fan_in=2)), "'u_mup' knows no base shapes"),
        (lambda: mup.standard(Weight("hidden", 4, 4, base_depth=2)), "'standard' knows no base shapes"),
        (lambda: mup.rescaled(Abc(1, 1, 1), 0.0), "theta=0.0: must be positive"),
        (lambda: mup.depth_of(4, "layers"), "depth_convention='layers': use one of blocks, branches"),
        (lambda: mup.weight_decay(WEIGHTS["up"], 0.1, 1.0, "none"), "decay_rule='none'"),
        (lambda: mup.weight_decay(WEIGHTS["up"], 0.1, 0.0), "learning_rate=0.0: must be positive"),
        (lambda: mup.branch_multiplier(0), "depth=0: must be at least 1"),
        (lambda: mup.gradient_scale(WEIGHTS["up"], "sp"), "parametrization='sp'"),
    ],
)
def test_what_is_unknown_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
