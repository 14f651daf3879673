"""The model that is validated: learning rates, text, training, under every recipe."""

from pathlib import Path

import pytest
import torch

from fp8sim.nn import Linear, TransformerDecoder
from fp8sim.optim import parameter_groups
from fp8sim.recipes import GEMM_OPERANDS, RECIPES
from fp8sim.training import loop, text
from fp8sim.training.model import ModelSize, build_model, without_casts
from fp8sim.training.text import Sequences

SMALL = ModelSize(width=32, blocks=2, heads=2)
CONTENT = "the quick brown fox jumps over the lazy dog. " * 40


def sequences(seed: int = 0) -> Sequences:
    return Sequences(text.from_string("fox", CONTENT), length=32, batch=4, seed=seed)


def model(recipe: str) -> TransformerDecoder:
    return build_model(RECIPES[recipe], len(sequences().text.symbols), 0, SMALL)


def test_the_learning_rates_of_a_unit_scaled_model() -> None:
    net = model("unit_scaled_fp8")
    groups = parameter_groups(net, lr=2.0, parametrization="unit_scaled")
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    wanted = {"embedding": 32**-0.5, "readout": 1.0, "down": 128**-0.5 / 2**0.5}
    for name, parameter in net.named_parameters():
        factor = wanted.get(name.split(".")[-2], 32**-0.5 / 2**0.5)
        assert rates[parameter] == pytest.approx(2 * factor), name
    assert len(groups) == len({group["lr"] for group in groups}), "equal rates share a group"


def test_under_the_standard_parametrization_all_rates_are_one_group() -> None:
    (group,) = parameter_groups(model("bf16"), lr=3e-3, parametrization="standard")
    assert group["lr"] == 3e-3
    assert len(group["params"]) == len(list(model("bf16").parameters()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_lowers_the_loss_and_is_reproducible(recipe: str) -> None:
    rate = loop.LEARNING_RATES[RECIPES[recipe].parametrization]
    losses = [list(loop.train(model(recipe), sequences(), 12, rate)) for _ in range(2)]
    assert losses[0] == losses[1]
    # Without a loss scale every FP8 gradient before the last layer is zero here, but the readout still learns.
    assert losses[0][-1] < losses[0][0] - 0.3


def test_the_loss_scale_is_divided_out_of_the_gradients() -> None:
    plain, scaled = model("fp8_naive"), model("fp8_loss_scaled")
    for net in (plain, scaled):
        loop.backward(net, sequences()[0])
        loop.unscale_gradients(net)
    gradients = [net.readout.weight.grad for net in (plain, scaled)]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.9
    assert gradients[1].norm() / gradients[0].norm() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_start_at_unit_scale_or_as_torch_draws_them(recipe: str) -> None:
    torch.manual_seed(0)
    std = float(Linear(256, 512, recipe=recipe).weight.detach().std())
    assert std == pytest.approx(1.0 if RECIPES[recipe].is_unit_scaled else (3 * 256) ** -0.5, rel=0.02)


def test_without_casts_keeps_the_weights_and_the_factors() -> None:
    net = model("u_mup_fp8")
    reference = without_casts(net)
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    assert all(linear.recipe.output.first is not None for linear in linears(net))
    assert all(linear.recipe.gemm(gemm).first is None for linear in linears(reference) for gemm in GEMM_OPERANDS)
    assert {linear.recipe.parametrization for linear in linears(reference)} == {"u_mup"}


def linears(net: TransformerDecoder) -> list[Linear]:
    return [m for m in net.modules() if isinstance(m, Linear)]


def test_building_a_model_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    weights = [model("bf16").readout.weight for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*weights)


def test_layers_are_named_as_reports_name_them() -> None:
    block = ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]
    names = [m.name for m in linears(model("bf16"))]
    assert names == [*(f"layers.{i}.{name}" for i in range(2) for name in block), "readout"]


def test_the_default_text_is_the_help_topics() -> None:
    loaded = text.load()
    assert loaded.name == "topics"
    assert len(loaded.tokens) > 300_000
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"aaaa", "has only the character 'a'"), (b"\xff\xfe", "is not UTF-8 .byte 0.")],
)
def test_a_text_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text.load(path)


def test_a_missing_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read .No such file or directory.; give --text a readable file"):
        text.load(tmp_path / "nothing")


@pytest.mark.parametrize("length", [1, 7, 19])
def test_sequences_are_cut_from_anywhere_with_targets_one_ahead(length: int) -> None:
    content = text.from_string("alphabet", "abcdefghijklmnopqrst")
    seen = set()
    for step in range(60):
        tokens, targets = Sequences(content, length=length, batch=2)[step]
        assert tokens.shape == targets.shape == (2, length)
        torch.testing.assert_close(tokens + 1, targets, rtol=0, atol=0)
        torch.testing.assert_close(tokens.diff(dim=1), torch.ones(2, length - 1, dtype=torch.int64), rtol=0, atol=0)
        seen |= set(tokens[:, 0].tolist())
    assert seen == set(range(20 - length))


def test_a_text_as_long_as_a_sequence_has_no_last_target() -> None:
    Sequences(text.from_string("short", "abab"), length=3)
    with pytest.raises(ValueError, match="has 4 characters, needs at least 5"):
        Sequences(text.from_string("short", "abab"), length=4)
