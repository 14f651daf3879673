"""Loss scaling by torch's own scaler: constant, dynamic, in our loop and in anybody's."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from decoders import TOKENS, decoder

from fp8sim import optim, recipes
from fp8sim.nn import TransformerDecoder
from fp8sim.optim import AdamAtan2, grad_scaler, parameter_groups
from fp8sim.recipes import DYNAMIC_LOSS_SCALING, RECIPES, LossScaling, Recipe
from fp8sim.simulate.matmul import observe
from fp8sim.training import loop

STATIC, DYNAMIC = LossScaling(2.0**11), LossScaling(2.0**11, growth_interval=3)
RATE = loop.LEARNING_RATES["standard"]
BATCH = (TOKENS[:, :-1], TOKENS[:, 1:])


def scaled(scaling: LossScaling, name: str = "fp16") -> Recipe:
    return dataclasses.replace(RECIPES[name], name="mine", loss_scaling=scaling)


def test_a_dynamic_factor_has_the_numbers_of_torch() -> None:
    ours, theirs = grad_scaler("fp16_loss_scaled"), torch.amp.GradScaler("cpu")
    assert ours.state_dict() == theirs.state_dict()
    assert type(ours) is torch.amp.GradScaler
    assert RECIPES["fp16_loss_scaled"].loss_scaling == DYNAMIC_LOSS_SCALING


def test_every_number_of_the_policy_reaches_the_scaler() -> None:
    scaler = grad_scaler(LossScaling(8.0, growth_interval=5, growth=4.0, backoff=0.25))
    state = scaler.state_dict()
    assert {name: state[name] for name in ("scale", "growth_factor", "backoff_factor", "growth_interval")} == {
        "scale": 8.0,
        "growth_factor": 4.0,
        "backoff_factor": 0.25,
        "growth_interval": 5,
    }


@pytest.mark.parametrize("name", ["fp32", "fp16", "u_mup_fp8"])
def test_without_a_policy_the_scaler_does_nothing(name: str) -> None:
    scaler = grad_scaler(name)
    assert not scaler.is_enabled()
    loss = torch.ones(())
    assert scaler.scale(loss) is loss


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, AdamAtan2, "fused"])
@pytest.mark.parametrize("scaling", [STATIC, DYNAMIC], ids=["constant", "dynamic"])
def test_a_loop_of_ones_own(scaling: LossScaling, make: str | Callable[..., torch.optim.Optimizer]) -> None:
    """An infinite gradient skips the step and halves a dynamic factor, which doubles after three finite steps."""
    net = decoder(recipe=scaled(scaling))
    groups = parameter_groups(net, lr=1e-3, parametrization="standard")
    optimizer = torch.optim.AdamW(groups, fused=True) if isinstance(make, str) else make(groups)
    scaler = grad_scaler(net.recipe)
    factors = []
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(net.loss(*BATCH)).backward()
        weight = net.layers[1].mlp.down.weight
        if step == 1:
            weight.grad[3, 5] = math.inf
        before = [p.detach().clone() for p in net.parameters()]
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
        assert all(moved) if step != 1 else not any(moved)
        factors.append(scaler.get_scale() / 2**11)
    assert factors == ([1, 0.5, 0.5, 0.5, 1, 1] if scaling.is_dynamic else [1] * 6)


def test_clipping_after_unscaling_is_clipping_without_loss_scaling() -> None:
    """In float32, where a factor of a power of two changes no bit."""
    nets = [decoder(recipe=recipe) for recipe in ("fp32", scaled(DYNAMIC, "fp32"))]
    for net in nets:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        scaler = grad_scaler(net.recipe)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(net.loss(*BATCH)).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            assert norm > 0.1
            scaler.step(optimizer)
            scaler.update()
    for plain, ours in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(plain, ours)


def test_torchs_own_scaler_around_our_modules() -> None:
    """Gradients that float16 cannot hold reach the scaler as infinities, forward values of attention too."""
    fp16 = recipes.AttentionRecipe().changed(lambda gemm: gemm.casting(RECIPES["fp16"].output.first))  # type: ignore[arg-type]
    net = decoder(recipe=dataclasses.replace(RECIPES["fp16"], name="mine", attention=fp16))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=4)
    losses, factors = [], []
    for _ in range(40):
        optimizer.zero_grad()
        loss = net.loss(*BATCH)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        factors.append(scaler.get_scale())
    skipped = sum(after < before for before, after in itertools.pairwise([2.0**40, *factors]))
    assert skipped > 10
    assert losses[:10] == [losses[0]] * 10
    assert any(after > before for before, after in itertools.pairwise(factors))
    assert losses[-1] < losses[0] - 0.1


def run(net: TransformerDecoder, steps: int = 30) -> tuple[list[float], list[int], float]:
    skipped: list[int] = []
    scaler = loop.scaler_of(net)
    losses = list(loop.train(net, [BATCH] * steps, steps, RATE, scaler=scaler, on_skipped=skipped.append))
    return losses, skipped, scaler.get_scale()


def test_the_loop_backs_off_until_float16_holds_the_gradients_and_says_which_steps_it_skipped() -> None:
    net = decoder(recipe=scaled(LossScaling(2.0**30, growth_interval=2000)))
    losses, skipped, factor = run(net)
    assert 5 < len(skipped) < 25
    assert skipped[:5] == [0, 1, 2, 3, 4]
    assert factor == 2.0 ** (30 - len(skipped))
    assert losses[:6] == [losses[0]] * 6
    assert losses[-1] < losses[0] - 0.1


def test_the_loop_grows_a_factor() -> None:
    _, skipped, factor = run(decoder(recipe=scaled(LossScaling(4.0, growth_interval=7, growth=8.0))))
    assert skipped == []
    assert factor == 4 * 8**4


def test_a_constant_factor_that_is_too_large_skips_every_step_and_stays() -> None:
    losses, skipped, factor = run(decoder(recipe=scaled(LossScaling(2.0**40))), steps=3)
    assert skipped == [0, 1, 2]
    assert factor == 2.0**40
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scaling", [STATIC, DYNAMIC], ids=["constant", "dynamic"])
@pytest.mark.parametrize("name", ["fp32", "unit_scaled"])
def test_a_power_of_two_changes_no_bit_in_float32(name: str, scaling: LossScaling) -> None:
    """Loss scaling with unit scaling is unusual, and does what it says."""
    steps = [
        list(loop.train(decoder(recipe=recipe), [BATCH] * 8, 8, RATE))
        for recipe in (RECIPES[name], scaled(scaling, name))
    ]
    assert steps[0] == steps[1]


def test_gradients_of_float16_underflow_without_loss_scaling() -> None:
    """What loss scaling is for: the mean over a thousand tokens makes gradients small, and some of them zero."""
    tokens = torch.randint(0, 50, (16, 65), generator=torch.Generator().manual_seed(0))
    subnormal = {}
    for name in ("fp16", "fp16_loss_scaled_static", "fp16_loss_scaled"):
        grads: list[torch.Tensor] = []
        with observe(lambda event, grads=grads: grads.append(event.given[0]) if event.gemm == "grad_input" else None):
            loop.backward(decoder(recipe=name), (tokens[:, :-1], tokens[:, 1:]))
        sizes = torch.cat([grad.flatten().abs() for grad in grads])
        subnormal[name] = float(((sizes < 2.0**-14) & (sizes > 0)).float().mean())
    assert subnormal["fp16"] > 0.5
    assert subnormal["fp16_loss_scaled_static"] < 0.05
    assert subnormal["fp16_loss_scaled"] < 0.002


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": math.inf}, "factor=inf: a loss scale is a positive finite number"),
        ({"factor": 2.0**128}, "a positive finite number, of float32"),
        ({"growth_interval": 0}, "growth_interval=0: a number of steps, or None for a constant factor"),
        ({"growth": 1.0}, "growth=1.0, backoff=0.5: must be above 1, and between 0 and 1"),
        ({"backoff": 1.0}, "growth=2.0, backoff=1.0"),
    ],
)
def test_a_bad_policy_says_what_is_wrong(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossScaling(**fields)  # type: ignore[arg-type]


def test_a_policy_written_before_there_were_dynamic_ones_is_still_read() -> None:
    plain = RECIPES["fp8_loss_scaled"].to_dict()
    plain["loss_scaling"] = {"factor": 4096.0}
    assert recipes.from_dict(plain) == RECIPES["fp8_loss_scaled"]


def test_an_unknown_recipe_has_no_scaler() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'fp9'"):
        optim.grad_scaler("fp9")
