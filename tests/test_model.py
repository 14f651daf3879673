"""The character model: modules, learning rates, text, training, under every recipe."""

from pathlib import Path

import pytest
import torch

from fp8sim import recipes
from fp8sim.nn import Linear
from fp8sim.optim import parameter_groups
from fp8sim.recipes import RECIPES
from fp8sim.training import loop, text
from fp8sim.training.model import CharacterMlp, ModelSize
from fp8sim.training.text import Sequences, Windows

SMALL = ModelSize(context=4, embedding=16, width=32, blocks=2)
CONTENT = "the quick brown fox jumps over the lazy dog. " * 40


def windows(seed: int = 0) -> Windows:
    return Windows(text.from_string("fox", CONTENT), window=32, context=4, batch=4, seed=seed)


def model(recipe: str) -> CharacterMlp:
    torch.manual_seed(0)
    return CharacterMlp(len(windows().text.symbols), recipe, SMALL)


def test_the_learning_rates_of_a_unit_scaled_model() -> None:
    groups = parameter_groups(model("unit_scaled_fp8"), lr=2.0, parametrization="unit_scaled")
    rates = {tuple(p.shape): group["lr"] for group in groups for p in group["params"]}
    symbols = len(windows().text.symbols)
    assert rates == {
        (symbols, 16): pytest.approx(2 / 4),
        (32, 64): pytest.approx(2 / 8),
        (128, 32): pytest.approx(2 / 32**0.5 / 2**0.5),
        (32, 128): pytest.approx(2 / 128**0.5 / 2**0.5),
        (symbols, 32): 2.0,
    }
    assert len(groups) == len({group["lr"] for group in groups}), "equal rates share a group"


def test_under_the_standard_parametrization_all_rates_are_one_group() -> None:
    (group,) = parameter_groups(model("bf16"), lr=3e-3, parametrization="standard")
    assert group["lr"] == 3e-3
    assert len(group["params"]) == len(list(model("bf16").parameters()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_lowers_the_loss_and_is_reproducible(recipe: str) -> None:
    rate = loop.LEARNING_RATES[RECIPES[recipe].parametrization]
    losses = [list(loop.train(model(recipe), windows(), 25, rate)) for _ in range(2)]
    assert losses[0] == losses[1]
    # Without a loss scale every FP8 gradient before the last layer is zero here, but the readout still learns.
    assert losses[0][-1] < losses[0][0] - 0.3


def test_the_loss_scale_is_divided_out_of_the_gradients() -> None:
    plain, scaled = model("fp8_naive"), model("fp8_loss_scaled")
    for net in (plain, scaled):
        loop.backward(net, windows()[0])
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


def test_with_recipe_keeps_the_weights_and_the_random_state() -> None:
    net = model("unit_scaled_fp8")
    state = torch.get_rng_state()
    other = net.with_recipe(recipes.parse("unit_scaled"))
    assert torch.equal(state, torch.get_rng_state())
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs


def test_layers_are_named_as_reports_name_them() -> None:
    names = [m.name for m in model("bf16").modules() if isinstance(m, Linear)]
    assert names == ["projection", "block0.up", "block0.down", "block1.up", "block1.down", "readout"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("recipe", ["unit_scaled_fp8", "fp8_naive"])
def test_the_whole_model_compiles_to_one_graph_with_the_same_bits(recipe: str) -> None:
    net, batch = model(recipe), windows()[0]
    compiled = torch.compile(net.loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for loss in (net.loss(*batch), compiled(*batch)):
        net.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_the_default_text_is_the_help_topics() -> None:
    loaded = text.load()
    assert loaded.name == "topics"
    assert len(loaded.tokens) > 300_000
    assert len(loaded.sha256) == 64


def test_windows_hold_the_characters_before_their_targets() -> None:
    batches = windows()
    contexts, targets = batches[3]
    assert contexts.shape == (128, 4)
    symbols = batches.text.symbols
    characters = [
        "".join(symbols[i] for i in [*context, target]) for context, target in zip(contexts, targets, strict=True)
    ]
    assert all(five in CONTENT for five in characters)
    assert characters[1][:4] == characters[0][1:], "consecutive targets of a window overlap"
    assert torch.equal(batches[3][1], targets)
    assert not torch.equal(batches[4][1], targets)
    assert not torch.equal(windows(seed=1)[3][1], targets)


def test_every_position_of_a_shortest_text_can_be_drawn() -> None:
    shortest = Windows(text.from_string("ab", "ab" * 8), window=12, context=4, batch=1)
    contexts, targets = shortest[0]
    assert contexts.shape == (12, 4)
    assert targets.shape == (12,)


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


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="has 4 characters, needs at least 136"):
        Windows(text.from_string("short", "abab"))


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
