"""`fp8sim.coord_check`: right wirings pass, planted wrong ones fail, and the module at fault is named."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from decoders import recipe_of

import fp8sim
from fp8sim.analysis.coordinates import judging, panels
from fp8sim.analysis.coordinates.measuring import default_loss
from fp8sim.analysis.coordinates.page import html
from fp8sim.analysis.coordinates.probe import Probe, rms
from fp8sim.analysis.coordinates.slopes import Slope
from fp8sim.nn import TransformerConfig, TransformerDecoder
from fp8sim.optim import parameter_groups

SYMBOLS = 24
TOKENS = torch.randint(0, SYMBOLS, (2, 9), generator=torch.Generator().manual_seed(0))
BATCH = (TOKENS[:, :-1], TOKENS[:, 1:])
RUNS = {"batch": BATCH, "widths": (64, 128, 256), "steps": 4, "seeds": 3}


class Plain(torch.nn.Module):
    """A model of torch's modules, wired for muP by hand: tokens [B, L] -> logits [B, L, V]."""

    def __init__(self, width, hidden_std=-0.5, readout_power=-1.0):
        super().__init__()
        self.embedding = torch.nn.Embedding(SYMBOLS, width)
        self.first = torch.nn.Linear(width, 2 * width, bias=False)
        self.second = torch.nn.Linear(2 * width, width)
        self.readout = torch.nn.Linear(width, SYMBOLS, bias=False)
        self.factor = width**readout_power
        with torch.no_grad():
            for linear in (self.first, self.second):
                linear.weight.normal_(std=linear.in_features**hidden_std)
            self.second.bias.zero_()
            self.readout.weight.normal_()

    def forward(self, tokens):
        return self.readout(torch.tanh(self.second(torch.relu(self.first(self.embedding(tokens)))))) * self.factor


def plain(model=Plain, rates=(), **options):
    """A factory of `Plain`; `rates` overrides the exponents with which the learning rates of parameters go."""
    exponents = {
        "embedding.weight": 0.0,
        "first.weight": -1.0,
        "second.weight": -1.0,
        "second.bias": 0.0,
        "readout.weight": 0.0,
    } | dict(rates)

    def factory(width):
        made = model(width, **options)
        return made, torch.optim.Adam(
            [
                {"params": [parameter], "lr": 0.03 * (width / 64) ** exponents[name] / (64 if "nd.w" in name else 1)}
                for name, parameter in made.named_parameters()
            ]
        )

    return factory


def decoder(style, lr=0.5, rule=None, heads=2, **sizes):
    """A factory of decoders of that style; `rule` is the one that sets the rates, if it is not the style's."""

    def factory(width):
        config = TransformerConfig(SYMBOLS, width, 1, heads if heads else width // 16, **sizes)
        model = TransformerDecoder(config, recipe=recipe_of(style))
        return model, torch.optim.AdamW(parameter_groups(model, lr=lr, parametrization=rule or style))

    return factory


def mup_with_base(width):
    """muP whose learning rate is that of width 64, where hidden weights start with the deviation 1/8 = 64^-1/2."""
    config = TransformerConfig(SYMBOLS, width, 1, 2, base_width=64, init_std=0.125)
    model, base = (
        TransformerDecoder(dataclasses.replace(config, width=w), recipe=recipe_of("mup")) for w in (width, 64)
    )
    return model, torch.optim.AdamW(parameter_groups(model, lr=1e-3, parametrization="mup", base=base))


RIGHT = {
    "torch's modules, by hand": plain(),
    "u_mup": decoder("u_mup"),
    "unit_scaled, another rate": decoder("unit_scaled", lr=0.1),
    "mup": decoder("mup", lr=0.02),
    "mup from a base": mup_with_base,
    "munit, heads of one width": decoder("munit", heads=None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_wiring_passes(name):
    check = fp8sim.coord_check(RIGHT[name], **RUNS)
    assert check.verdict == "PASS", f"{check}"
    assert check.reason == ""


QKV, LOGITS = "layers.0.attention.qkv", "layers.0.attention attention logits"
OWN = "own change"

# Finite width keeps exponents of 1/2 below it where chance alignment adds to updates: there 0.4 is expected.
WRONG = {  # the factory; the module to be named, its quantity and exponent; words of the remedy
    "one rate for all widths": (plain(rates={"first.weight": 0, "second.weight": 0}), "first", OWN, 1, "1/fan_in"),
    "a hidden rate that falls as the root": (plain(rates={"second.weight": -0.5}), "second", OWN, 0.5, "1/fan_in"),
    "a hidden rate that falls too fast": (plain(rates={"first.weight": -1.5}), "first", OWN, -0.5, "1/fan_in"),
    "an embedding's rate divided": (plain(rates={"embedding.weight": -1}), "embedding", OWN, -1, "embedding"),
    "a bias's rate divided": (plain(rates={"second.bias": -1}), "second.bias", OWN, -1, "biases"),
    "no factor on the readout": (plain(readout_power=0), "readout", "activation", 0.5, "divided by its fan_in"),
    "a root as the factor": (plain(readout_power=-0.5), "readout", OWN, 0.5, "roles="),
    "a start that is too large": (plain(hidden_std=-0.25), "second", "activation", 0.5, "fan_in^-1/2"),
    "the standard parametrization": (decoder("standard", lr=1e-3, heads=None), QKV, OWN, 1, "1/fan_in"),
    "u-muP's model, torch's rates": (decoder("u_mup", lr=0.05, rule="standard"), QKV, OWN, 0.4, "N(0, 1)"),
    "q.k divided by the root of d": (decoder("u_mup", heads=1, scale_power=0.5), LOGITS, "change", 0.4, "by d, not"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_wiring_fails_and_names_the_module(name):
    factory, module, quantity, exponent, words = WRONG[name]
    check = fp8sim.coord_check(factory, **RUNS)
    assert check.verdict == "FAIL", f"{check}"
    cause = check.causes[0]
    assert (cause.name, cause.check.quantity) == (module, quantity), f"{check}"
    assert check.reason.startswith(f"{module}: its {quantity} {'grows' if exponent > 0 else 'shrinks'} as width^")
    assert words in cause.reason
    assert cause.check.slope.value == pytest.approx(exponent, abs=0.12)


def test_one_wrong_rate_blames_no_other_module():
    check = fp8sim.coord_check(plain(rates={"second.weight": 0}), **RUNS)
    assert [finding.name for finding in check.causes] == ["second"]
    assert {finding.name: finding.verdict for finding in check.findings}["first"] == "PASS"


def test_a_module_whose_input_grows_only_follows():
    class Unbounded(Plain):
        def forward(self, tokens):
            return self.readout(torch.relu(self.second(self.first(self.embedding(tokens))))) * self.factor

    check = fp8sim.coord_check(plain(Unbounded, rates={"first.weight": 0}), **RUNS)
    second = {finding.name: finding for finding in check.findings}["second"]
    assert (second.verdict, second.check.quantity, second.is_cause) == ("FAIL", "own change", False), f"{check}"
    assert [finding.name for finding in check.causes] == ["first"]


def test_each_step_trains_on_its_batch_and_looks_are_at_the_first():
    asked = []

    def batch(step):
        asked.append(step)
        return BATCH

    fp8sim.coord_check(plain(), batch=batch, widths=(8, 16), steps=2, seeds=1)
    assert asked == [0] + [0, 0, 0, 1, 0] * 2  # of each run: look; step 1, look; step 2, look


def test_the_exponents_of_updates_and_gradients_are_those_of_the_rates():
    check = fp8sim.coord_check(plain(), **RUNS)
    assert check.slope("first.weight", "update").value == pytest.approx(-1, abs=0.02)
    assert check.slope("embedding.weight", "update").value == pytest.approx(0, abs=0.02)
    assert check.slope("readout", "activation", 0).value == pytest.approx(-0.5, abs=0.1)
    with pytest.raises(ValueError, match="no 'size' of 'first': it has activation, input, change, own change"):
        check.slope("first", "size")
    with pytest.raises(ValueError, match="no 'change' of 'third': the names are embedding, first"):
        check.slope("third", "change")


def test_an_embedding_may_be_expected_to_slow_down():
    factory = plain(rates={"embedding.weight": -0.5})
    assert "say expected={'embedding': -0.5}" in fp8sim.coord_check(factory, **RUNS).reason
    assert fp8sim.coord_check(factory, **RUNS, expected={"embed*": -0.5}).verdict == "PASS"
    with pytest.raises(ValueError, match="expected='decoder': no module with parameters has such a name"):
        fp8sim.coord_check(factory, **RUNS, expected={"decoder": -0.5})


def test_a_readout_that_starts_at_zero_is_judged_with_its_factor():
    def zeroed(**options):
        def factory(width):
            model, optimizer = plain(**options)(width)
            torch.nn.init.zeros_(model.readout.weight)
            return model, optimizer

        return factory

    check = fp8sim.coord_check(zeroed(), **RUNS)
    assert check.verdict == "PASS", f"{check}"
    assert "(model)" not in {name for name, _ in check.measured.values} | {row.name for row in check.rows()}
    check = fp8sim.coord_check(zeroed(readout_power=0), **RUNS)
    assert ("readout", OWN) in {(cause.name, cause.check.quantity) for cause in check.causes}, f"{check}"


def test_a_model_that_starts_at_zero_and_bends_its_readout_has_a_line_of_its_own():
    class Bent(Plain):
        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits + logits.abs()  # has a gradient at zero

    def factory(width):
        model, optimizer = plain(Bent)(width)
        torch.nn.init.zeros_(model.readout.weight)
        return model, optimizer

    check = fp8sim.coord_check(factory, batch=BATCH, widths=(8, 16), steps=2, seeds=1)
    assert {finding.name for finding in check.findings} >= {"readout", "(model)"}
    assert check.slope("(model)", "change").value is not None


class Attending(torch.nn.Module):
    """Attention with a bias on keys, which changes no probability, between norms; wired for muP by hand."""

    def __init__(self, width):
        super().__init__()
        self.embedding, self.norm = torch.nn.Embedding(SYMBOLS, width), torch.nn.LayerNorm(width)
        self.q, self.k, self.v = (torch.nn.Linear(width, width) for _ in range(3))
        self.readout = torch.nn.Linear(width, SYMBOLS, bias=False)
        for layer in (self.q, self.k, self.v):
            torch.nn.init.normal_(layer.weight, std=width**-0.5)
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.normal_(self.readout.weight)

    def forward(self, tokens):
        x = self.norm(self.embedding(tokens))
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=8 / q.shape[-1])
        return self.readout(mixed[:, 0]) / self.readout.in_features


def attending(rates=()):
    def factory(width):
        model = Attending(width)
        groups = parameter_groups(model, lr=0.02, parametrization="mup", roles={"readout.weight": "readout"})
        factors = {id(parameter): dict(rates).get(name, 0.0) for name, parameter in model.named_parameters()}
        split = [{"params": [p], "lr": g["lr"] * width ** factors[id(p)]} for g in groups for p in g["params"]]
        return model, torch.optim.Adam(split)

    return factory


def test_a_bias_whose_gradient_is_rounding_is_not_judged():
    check = fp8sim.coord_check(attending(), **RUNS)
    assert check.slope("k.bias", OWN).value < -0.5
    assert check.verdict == "PASS", f"{check}"
    check = fp8sim.coord_check(attending({"q.bias": -1.0}), **RUNS)
    assert [finding.name for finding in check.causes] == ["q.bias"], f"{check}"


@pytest.mark.parametrize(("parameter", "name"), [("norm.weight", "norm"), ("norm.bias", "norm.bias")])
def test_gain_and_bias_of_a_norm_are_taken_apart(parameter, name):
    check = fp8sim.coord_check(attending({parameter: -1.0}), **RUNS)
    assert [finding.name for finding in check.causes] == [name], f"{check}"


def by_sgd(optimizer):
    def factory(width):
        model = Plain(width)
        groups = parameter_groups(
            model, lr=0.05, parametrization="mup", optimizer=optimizer, roles={"readout.weight": "readout"}
        )
        return model, torch.optim.SGD(groups)

    return factory


def test_rates_of_adam_are_wrong_for_sgd():
    check = fp8sim.coord_check(by_sgd("adam"), **RUNS)
    assert check.verdict == "FAIL"
    assert "fp8sim.optim.parameter_groups with optimizer='sgd'" in check.reason
    assert fp8sim.coord_check(by_sgd("sgd"), **RUNS).verdict == "PASS"


def test_frozen_parameters_warn():
    def factory(width):
        model, optimizer = plain()(width)
        model.first.weight.requires_grad_(False)
        return model, optimizer

    check = fp8sim.coord_check(factory, **RUNS)
    assert check.verdict == "WARN"
    assert check.reason.startswith("first: its parameters do not move")


def test_the_same_seeds_give_the_same_numbers_and_leave_torch_as_it_was():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (fp8sim.coord_check(plain(), batch=BATCH, widths=(8, 16), steps=2, seeds=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.to_dict() == second.to_dict()
    assert list(first.rows()) == list(second.rows())


# what is measured


def test_own_change_is_the_part_of_a_modules_parameters():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    x = torch.randn(4, 5)
    probe = Probe(model, lambda model: model(x))
    probe.look()
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])], model[2].bias.detach().clone()
    hidden, output = model[1](model[0](x)), model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    sizes = probe.look()
    now = model[1](model[0](x))
    moved = now @ (model[2].weight - before[0][1]).T
    assert sizes["2", "own change"] == pytest.approx(rms([moved]), rel=1e-5)
    assert sizes["2.bias", "own change"] == pytest.approx(rms([model[2].bias - before[1]]), rel=1e-5)
    assert sizes["2", "change"] == pytest.approx(rms([model(x) - output]), rel=1e-5)
    assert sizes["1", "change"] == pytest.approx(rms([now - hidden]), rel=1e-5)
    assert ("1", "own change") not in sizes


def test_looking_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    probe = Probe(model, lambda model: model(torch.ones(1, 4)))
    probe.look()
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_module_that_is_never_called_belongs_to_the_one_around_it():
    class Model(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.embedding = torch.nn.Embedding(SYMBOLS, width)
            self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
            self.readout = torch.nn.Linear(width, SYMBOLS)

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.readout(self.attention(x, x, x, need_weights=False)[0])

    check = fp8sim.coord_check(
        Model, optimizer=lambda m: torch.optim.Adam(m.parameters()), batch=BATCH, widths=(8, 16), steps=1, seeds=1
    )
    shapes = check.measured.shapes["attention"][0].parameters
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= shapes.keys()
    assert "attention.out_proj" not in check.measured.shapes


def test_what_a_module_is_follows_from_its_shapes():
    check = fp8sim.coord_check(decoder("u_mup"), batch=BATCH, widths=(16, 32), steps=1, seeds=1)
    kinds = {finding.name: finding.kind for finding in check.findings}
    assert (kinds["embedding"], kinds["layers.0.mlp.down"], kinds["readout"]) == ("input", "hidden", "readout")
    assert (kinds["norm"], kinds["layers.0.attention attention logits"]) == ("function", "logits")
    assert "layers.0.mlp" not in kinds  # returns what its last layer does


def test_slopes_are_least_squares_with_errors_over_seeds():
    check = fp8sim.coord_check(plain(), batch=BATCH, widths=(8, 16, 64), steps=1, seeds=2)
    values = check.measured.values["first", "own change"][:, :, 1]
    by_seed = [np.polyfit(np.log2([8, 16, 64]), np.log2(row), 1)[0] for row in values]
    slope = check.slope("first", "own change", 1)
    assert slope.value == pytest.approx(np.mean(by_seed))
    assert slope.error == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2)
    assert check.slope("first", "own change", 0) == Slope(None, None)


LIMITS = {  # exponent, standard error, whether shrinking fails -> verdict, where 0 is allowed
    (0.2, 0.0, True): "PASS",
    (-0.2, 0.0, True): "PASS",
    (0.21, 0.0, True): "WARN",
    (0.31, 0.0, True): "FAIL",
    (-0.31, 0.0, True): "FAIL",
    (-0.31, 0.0, False): "WARN",
    (0.31, 0.06, True): "WARN",
    (0.0, 0.21, True): "WARN",
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits(case):
    exponent, error, shrinking_fails = case
    check = judging.Check("own change", None, Slope(exponent, error), 0.0, 0.0, shrinking_fails)
    assert check.verdict == LIMITS[case]


# what can be wrong

FAULTS = {
    "one width": ({"widths": (64, 64)}, r"widths=\[64, 64\]: expected two or more different"),
    "no steps": ({"steps": 0}, "steps=0: must be at least 1"),
    "no batch": ({"batch": TOKENS}, "batch: got Tensor, expected a tuple of tensors"),
    "a width that heads do not divide": ({"factory": decoder("u_mup", heads=3)}, r"factory\(8\) failed.*heads=3"),
    "no optimizer": ({"factory": Plain}, r"factory\(8\) returned Plain: expected .* together with optimizer="),
    "no model": ({"factory": lambda width: "model"}, r"factory\(8\) returned str"),
    "other modules": (
        {"factory": lambda w: (torch.nn.Sequential(*[torch.nn.Linear(1, 1)] * w), 0)},
        r"factory\(8\) returned Sequential, int",
    ),
    "a loss of many elements": ({"loss": lambda model, x, y: model(x)}, "loss: got .* expected a tensor of one"),
    "targets that do not fit": ({"batch": (TOKENS, TOKENS[0])}, "pass loss=, called as loss"),
    "not finite": ({"factory": plain(hidden_std=40.0)}, "width 8, seed 0, before training: the .* is not finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_that_says_what_helps(name):
    changes, message = FAULTS[name]
    arguments = {"factory": plain(), "batch": BATCH, "widths": (8, 16), "steps": 1, "seeds": 1} | changes
    with pytest.raises(ValueError, match=message):
        fp8sim.coord_check(**arguments)


def test_models_of_different_depth_are_refused():
    def factory(width):
        layers = [torch.nn.Linear(width, width, bias=False) for _ in range(width // 8)]
        model = torch.nn.Sequential(torch.nn.Embedding(SYMBOLS, width), *layers)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"factory\(32\) and factory\(16\) have different modules: 3, 4"):
        fp8sim.coord_check(factory, batch=BATCH, widths=(16, 32), steps=1, seeds=1, loss=lambda m, x, y: m(x).mean())


def test_default_loss_of_floats():
    model, x, y = torch.nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(default_loss(model, x, y), torch.nn.functional.mse_loss(model(x), y))


# what is shown


def test_table_page_and_data():
    check = fp8sim.coord_check(WRONG["one rate for all widths"][0], **RUNS)
    text = str(check)
    assert "widths 64, 128, 256   steps 4   seeds 3" in text
    assert "coord-check: FAIL\n  first: its own change grows" in text
    page = html(check, "a <model>")
    assert "a &lt;model&gt;" in page
    assert page.count("<polyline") == 4 * (5 + 4 + 4) + 4  # four modules at five looks, and a bias's own change
    data = json.loads(json.dumps(check.to_dict()))
    assert data["verdict"] == "FAIL"
    assert {"name": "first", "quantity": "activation", "step": 0, "width": 64} in [
        {key: row[key] for key in ("name", "quantity", "step", "width")} for row in data["rows"]
    ]


def test_a_size_that_is_zero_has_no_curve():
    check = fp8sim.coord_check(plain(), batch=BATCH, widths=(8, 16), steps=1, seeds=1)
    check.measured.values["first", "change"][:] = 0.0
    assert panels.panel(check.measured, "first", "change") is None
    assert math.isfinite(panels.panel(check.measured, "first", "activation").high)
