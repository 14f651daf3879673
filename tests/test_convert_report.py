"""What `fp8sim.convert` says, what it skips and refuses, and that it never silently does nothing."""

import dataclasses
import pickle
import warnings

import hypothesis
import pytest
import torch
from convertible import TOKENS, Net, gemms, loss_of
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import TwoTensor

import fp8sim
from fp8sim import nn
from fp8sim.nn import Conversion, ModuleLine

REPORT = """\
recipe fp8_naive: 1 converted, 2 skipped, 1 container
status     name     module      role    recipe     remark
container  (model)  Sequential
converted  0        Linear      hidden  fp8_naive
skipped    1        ReLU                           no GEMM: parametrization 'standard' leaves it as torch's
skipped    2        Linear                         module_filter_fn"""


def test_the_report_is_a_table_and_data() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: name != "2")
    report = fp8sim.conversion_report(model)
    assert str(report) == REPORT
    assert isinstance(report, Conversion)
    assert report.converted == (ModuleLine("0", "Linear", "converted", "", "hidden", "fp8_naive"),)
    assert [line.name for line in report.skipped] == ["1", "2"]
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(KeyError, match="no module is called '3': the names are , 0, 1, 2"):
        report["3"]


def test_without_a_conversion_there_is_no_report() -> None:
    with pytest.raises(ValueError, match="Linear was not converted: call fp8sim.convert"):
        fp8sim.conversion_report(torch.nn.Linear(4, 4))


LEAVES = (
    lambda: torch.nn.Linear(8, 8),
    lambda: torch.nn.LayerNorm(8),
    torch.nn.ReLU,
    torch.nn.Identity,
    lambda: torch.nn.MultiheadAttention(8, 2),
    lambda: torch.nn.BatchNorm1d(8),
    lambda: torch.nn.TransformerEncoderLayer(8, 2, 16),
    lambda: nn.Linear(8, 8, recipe="fp32"),
)


Holders = torch.nn.Sequential | torch.nn.ModuleList | torch.nn.TransformerEncoderLayer


@st.composite
def models(draw: st.DrawFn) -> torch.nn.Module:
    """Modules nested at random, some of them at several places."""
    known = [make() for make in draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=5))]
    for _ in range(draw(st.integers(1, 5))):
        parts = draw(st.lists(st.sampled_from(known), max_size=4))
        known.append(torch.nn.Sequential(*parts) if draw(st.booleans()) else torch.nn.ModuleList(parts))
    return torch.nn.ModuleList([*known, torch.nn.Linear(8, 8)])


@hypothesis.given(models(), st.sets(st.integers(0, 30)), st.booleans())
@hypothesis.settings(max_examples=50)
def test_every_module_has_a_line_that_is_true(model: torch.nn.Module, excluded: set[int], reinit: bool) -> None:
    before = {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
    names = list(before)
    rejected = {names[index] for index in excluded if index < len(names) - 1}
    recipe = fp8sim.recipes.parse("bf16")
    fp8sim.convert(model, recipe=recipe, module_filter_fn=lambda module, name: name not in rejected, reinit=reinit)
    report = fp8sim.conversion_report(model)
    assert [line.name for line in report.lines] == names
    for line in report.lines:
        module = model.get_submodule(line.name)
        assert line.module == before[line.name]
        assert (line.status == "converted") == (getattr(module, "recipe", None) == recipe)
        assert line.status in ("converted", "container") or line.reason
        assert line.status != "container" or isinstance(module, Holders)


def test_a_module_inside_itself_is_no_trap() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    model[0].owner = model
    assert len(fp8sim.conversion_report(fp8sim.convert(model, recipe="bf16")).lines) == 2


class Scaled(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Turned(torch.nn.Module):
    """A linear layer whose weight is [I, O], as some write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(8))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.addmm(torch.zeros(8), input, self.weight)


def with_own_forward() -> torch.nn.Module:
    layer = torch.nn.Linear(8, 8)
    layer.forward = lambda input: F.linear(input, layer.weight) * 2  # type: ignore[method-assign]
    return layer


def with_weight_norm() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(torch.nn.Linear(8, 8))


def with_a_weight(weight: torch.Tensor) -> torch.nn.Module:
    layer = torch.nn.Linear(8, 8, bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def with_a_computed_weight() -> torch.nn.Module:
    layer = torch.nn.Linear(8, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight  # type: ignore[assignment]
    return layer


LEFT = {
    "derived": (Scaled(8, 8), "a class of its own, derived from Linear: it may compute otherwise"),
    "lazy": (torch.nn.LazyLinear(8), "its sizes are not known yet: run the model once before it is converted"),
    "parametrized": (torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 8)), "derived from Linear"),
    "hook of weight norm": (with_weight_norm(), "it has parameters weight_g, weight_v: another tool changed it"),
    "pruned": (
        prune.l1_unstructured(torch.nn.Linear(8, 8), "weight", 0.5),
        "it has parameters weight_orig: another tool changed it",
    ),
    "forward of its own": (with_own_forward(), "its forward was replaced on the instance"),
    "computed weight": (with_a_computed_weight(), "its weight is no parameter: another tool computes it"),
    "complex": (with_a_weight(torch.zeros(8, 8, dtype=torch.complex64)), "its weight is torch.complex64: recipes take"),
    "tensor subclass": (with_a_weight(TwoTensor(torch.eye(8), torch.eye(8))), "its weight is a TwoTensor"),
    "turned weight": (Turned(), "test_convert_report.Turned has no counterpart in fp8sim.nn"),
    "padding": (torch.nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular"), "padding_mode='circular': convolutions"),
    "conv2d": (torch.nn.Conv2d(3, 4, 3), "torch.nn.modules.conv.Conv2d has no counterpart in fp8sim.nn"),
    "lstm": (torch.nn.LSTM(8, 8), "torch.nn.modules.rnn.LSTM has no counterpart"),
    "bilinear": (torch.nn.Bilinear(8, 8, 8), "Bilinear has no counterpart"),
    "bias_kv": (torch.nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv=True: attention by recipe has no"),
    "zero_attn": (
        torch.nn.MultiheadAttention(8, 2, add_zero_attn=True),
        "add_zero_attn=True: attention by recipe adds",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_converted_stays_whole_and_is_named(case: str) -> None:
    module, reason = LEFT[case]
    kinds = [type(part) for part in module.modules()]
    model = torch.nn.ModuleDict({"plain": torch.nn.Linear(8, 8), "left": module})
    with pytest.warns(UserWarning, match="convert left 1 layers with GEMMs as they were: skipped left") as caught:
        fp8sim.convert(model, recipe="fp8_naive")
    assert caught[0].filename == __file__
    report = fp8sim.conversion_report(model)
    assert report["left"].status == "skipped"
    assert reason in report["left"].reason
    assert reason in str(caught[0].message)
    assert [type(part) for part in module.modules()] == kinds
    assert isinstance(model["plain"], nn.Linear)
    for line in report.lines:
        assert line.status != "converted" or line.name == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fp8sim.convert(model, recipe="bf16", module_filter_fn=lambda module, name: name != "left")
    assert fp8sim.conversion_report(model)["left"].reason == "module_filter_fn"


def test_a_part_of_attention_may_stay_torchs_or_have_another_role() -> None:
    model = torch.nn.ModuleList([torch.nn.MultiheadAttention(8, 2), torch.nn.MultiheadAttention(8, 2)])
    weights = [attention.out_proj.weight.clone() for attention in model]
    fp8sim.convert(
        model,
        recipe="unit_scaled",
        module_filter_fn=lambda module, name: name != "0.out_proj",
        roles={"1.out_proj": "hidden"},
        reinit=True,
    )
    report = fp8sim.conversion_report(model)
    assert (report["0.out_proj"].reason, report["1.out_proj"].role) == ("module_filter_fn", "hidden")
    assert isinstance(model[0].out_proj, torch.nn.Linear)
    assert model[1].out_proj.role == "hidden"
    assert torch.equal(model[0].out_proj.weight, weights[0])
    assert not torch.equal(model[1].out_proj.weight, weights[1])
    x = torch.randn(3, 2, 8)
    assert [event.layer for event in gemms(lambda: model[0](x, x, x))] == ["0.in_proj"]


def test_parts_of_attention_that_was_skipped_are_skipped() -> None:
    model = torch.nn.ModuleList([torch.nn.MultiheadAttention(8, 2), torch.nn.Linear(8, 8)])
    fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: name != "0")
    line = fp8sim.conversion_report(model)["0.out_proj"]
    assert (line.status, line.reason) == (
        "skipped",
        "its attention, which reads its weight without calling it, was skipped",
    )
    assert not gemms(lambda: model[0](*[torch.randn(3, 2, 8)] * 3))


def test_a_scripted_model_is_left() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    model = torch.nn.Sequential(scripted, torch.nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="RecursiveScriptModule has no counterpart in fp8sim.nn"):
        fp8sim.convert(model, recipe="fp8_naive")
    assert fp8sim.conversion_report(model)["0"].status == "skipped"


@pytest.mark.parametrize("model", [torch.nn.Sequential(torch.nn.ReLU()), torch.nn.Sequential(), torch.nn.LayerNorm(4)])
def test_a_model_with_nothing_to_convert_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=f"nothing in this {type(model).__name__} is converted to recipe 'fp8_naive'"):
        fp8sim.convert(model, recipe="fp8_naive")


def test_a_filter_that_excludes_everything_is_refused() -> None:
    model = Net()
    with pytest.raises(
        ValueError, match="It has .*2 x MultiheadAttention: module_filter_fn; .*5 x Linear: module_filt"
    ):
        fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: False)
    assert type(model.head) is torch.nn.Linear


def test_the_filter_sees_what_could_be_converted_and_its_name() -> None:
    model, seen = Net(), []
    fp8sim.convert(model, recipe="bf16", module_filter_fn=lambda module, name: not seen.append((name, module)))
    parts = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attention", "attention.out_proj", "up", "down")]
    assert seen == [(name, model.get_submodule(name)) for name in [*parts, "head"]]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="model is a list: expected a torch.nn.Module"):
        fp8sim.convert([torch.nn.Linear(4, 4)], recipe="bf16")  # type: ignore[type-var]
    with pytest.raises(ValueError, match="unknown recipe 'fp9'"):
        fp8sim.convert(torch.nn.Linear(4, 4), recipe="fp9")


class Written(torch.nn.Module):
    """Attention as people write it, with functions that no replacement of modules reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 24)
        self.softmax = torch.nn.Softmax(-1)
        self.table = torch.nn.Parameter(torch.zeros(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.linear(x + self.table).chunk(3, -1)
        x = x + self.attend(query, key, value)
        return (lambda y: F.gelu(y))(x)

    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        softmax = F.interpolate(query[None], scale_factor=1, mode="linear")[0]
        direct = F.scaled_dot_product_attention(query, key, value)
        return direct - softmax * 0 - (query @ key.mT).softmax(-1) @ value


def test_functions_that_a_model_calls_are_named() -> None:
    with pytest.warns(UserWarning, match="left 1 layers"):  # a table, and products of what may be any tensors
        model = fp8sim.convert(Written(), recipe="fp8_naive")
    report = fp8sim.conversion_report(model)
    assert report[""].calls == ("@", "scaled_dot_product_attention")
    assert "its own parameters table stay as they are; its own code, which stays as it is, uses @, scaled" in str(
        report
    )
    assert any("call functions of fp8sim.functional, with recipe=" in note for note in report.notes)
    assert any("what these call was not read" in note for note in report.notes)
    with pytest.warns(UserWarning, match="left 1 layers"):
        unit = fp8sim.conversion_report(fp8sim.convert(Written(), recipe="unit_scaled", reinit=True))
    assert unit[""].calls == ("+", "@", "gelu", "scaled_dot_product_attention", "softmax")
    plain = fp8sim.conversion_report(fp8sim.convert(torch.nn.Sequential(torch.nn.Linear(4, 4)), recipe="bf16"))
    assert plain.notes == ()


class Experts(torch.nn.Module):
    """A router that is a layer, and experts that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.router = torch.nn.Linear(8, 3)
        self.weights = torch.nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("te,ti,eij->tj", self.router(x).softmax(-1), x, self.weights)


class TiedByHand(torch.nn.Module):
    """A readout that is a function of another layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = torch.nn.Embedding(5, 8), torch.nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(self.hidden(self.embedding(tokens)), self.embedding.weight)


class Held(torch.nn.Module):
    """Submodules at some distance that are called as functions are, and attention without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleDict({"linear": torch.nn.Linear(8, 8)})
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"linear": torch.nn.Linear(8, 8)})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block.linear(self.parts.linear(x))
        return F.scaled_dot_product_attention(x, x, self.blocks[0].linear(x))


@pytest.mark.parametrize(("make", "call"), [(Experts, "einsum"), (TiedByHand, "linear")])
def test_products_of_weights_in_a_models_own_code_are_warned_of(make: type[torch.nn.Module], call: str) -> None:
    with pytest.warns(
        UserWarning, match=rf"1 layers with GEMMs as they were: container .*{make.__name__}.* uses {call}"
    ):
        fp8sim.convert(make(), recipe="fp8_naive")
    model = fp8sim.convert(make(), recipe="fp8_naive", module_filter_fn=lambda module, name: name != "")
    assert fp8sim.conversion_report(model)[""].calls == (call,)


def test_submodules_are_no_functions_and_attention_has_no_weights() -> None:
    report = fp8sim.conversion_report(fp8sim.convert(Held(), recipe="fp8_naive"))
    assert report[""].calls == ("scaled_dot_product_attention",)
    recipe = dataclasses.replace(
        fp8sim.recipes.parse("fp8_naive"), attention=fp8sim.recipes.AttentionRecipe.by_operand(query="e4m3", key="e4m3")
    )
    with pytest.warns(UserWarning, match="uses scaled_dot_product_attention"):
        fp8sim.convert(Held(), recipe=recipe)


def encoder(**options: object) -> torch.nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)  # type: ignore[arg-type]
    return torch.nn.TransformerEncoder(layer, 2)


PADDED = torch.arange(5).expand(2, 5) > torch.tensor([[2], [4]])


@pytest.mark.parametrize("only", ["self_attn", "linear1", ""])
def test_torchs_fused_encoder_does_not_go_around_the_recipe(only: str) -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 8)
    fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: only in name)
    layers = {"self_attn": 2, "linear1": 1, "": 4}[only] * len(model.layers)
    with torch.no_grad():
        assert len(gemms(lambda: model(x))) == layers
        assert len(gemms(lambda: model(x, src_key_padding_mask=PADDED))) == layers
    report = fp8sim.conversion_report(model)
    for name in ("", "layers.0", "layers.1"):
        assert "fused path of inference, which would go around its layers, is off" in report[name].reason


def test_an_encoder_of_which_nothing_is_converted_keeps_its_fused_path() -> None:
    model = torch.nn.ModuleList([encoder(), torch.nn.Linear(8, 8)]).eval()
    fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: name == "1")
    assert model[0].use_nested_tensor
    assert model[0].layers[0].activation_relu_or_gelu == 1


def test_torchs_encoder_gives_its_outputs_without_casts() -> None:
    plain, x = encoder().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    converted = fp8sim.convert(encoder().double().eval(), recipe="fp32")
    torch.testing.assert_close(converted(x), plain(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        ours = converted(x, src_key_padding_mask=PADDED)
    theirs = plain(x, src_key_padding_mask=PADDED)
    torch.testing.assert_close(ours[~PADDED], theirs[~PADDED], rtol=1e-12, atol=1e-12)


def test_torchs_whole_transformer_runs_by_recipe() -> None:
    model = torch.nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    fp8sim.convert(model, recipe="fp8_naive")
    report = fp8sim.conversion_report(model)
    assert report["decoder.layers.0.linear1"].role == "ffn_up"
    assert report["decoder.layers.0.linear2"].role == "ffn_down"
    found = gemms(lambda: model(torch.randn(2, 5, 8), torch.randn(2, 3, 8)))
    names = [f"decoder.layers.0.{name}" for name in ("self_attn", "multihead_attn")]
    assert {f"{name}.{part}" for name in names for part in ("in_proj", "out_proj")} < {e.layer for e in found}


def test_a_recipe_may_be_exchanged() -> None:
    torch.manual_seed(0)
    model = fp8sim.convert(Net(), recipe="fp8_naive")
    assert fp8sim.convert(model, recipe="bf16") is model
    torch.manual_seed(0)
    direct = fp8sim.convert(Net(), recipe="bf16")
    assert torch.equal(loss_of(model), loss_of(direct))
    assert fp8sim.conversion_report(model)["head"].reason == "ran by fp8_naive"
    fp8sim.convert(model, recipe="fp8_naive", module_filter_fn=lambda module, name: name == "head")
    assert fp8sim.conversion_report(model)["blocks.0.up"].reason == "module_filter_fn; it runs by bf16"
    assert (model.head.recipe.name, model.blocks[0].up.recipe.name) == ("fp8_naive", "bf16")


def test_modules_of_fp8sim_take_another_recipe_of_the_same_parametrization() -> None:
    config = nn.TransformerConfig(vocabulary=11, width=16, blocks=2, heads=2)
    other = fp8sim.recipes.parse("u_mup_fp8").without_casts()
    model, expected = (nn.TransformerDecoder(config, recipe=recipe) for recipe in ("u_mup_fp8", other))
    with pytest.raises(ValueError, match="parametrization 'u_mup', and recipe 'unit_scaled_fp8' has 'unit_scaled'"):
        fp8sim.convert(model, recipe="unit_scaled_fp8", reinit=True)
    fp8sim.convert(model, recipe=other)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), expected(TOKENS))
    pairs = [[e.quantizers for e in gemms(lambda m=m: m(TOKENS))] for m in (model, expected)]  # type: ignore[misc]
    assert pairs[0] == pairs[1]


def test_roles_are_patterns_of_names() -> None:
    with pytest.raises(ValueError, match=r"roles=\{'head': 'output'\}: use one of hidden, attention_qkv"):
        fp8sim.convert(Net(), recipe="bf16", roles={"head": "output"})
    with pytest.raises(ValueError, match=r"roles=\['embedding'\]: no linear layer has such a name; the names are 'bl"):
        fp8sim.convert(Net(), recipe="bf16", roles={"embedding": "readout"})
    model = fp8sim.convert(Net(), recipe="bf16", roles={"*.0.up": "ffn_up", "*.up": "hidden", "*down": "ffn_down"})
    found = {line.name: line.role for line in fp8sim.conversion_report(model).converted if line.role}
    assert (found["blocks.0.up"], found["blocks.1.up"], found["blocks.1.down"]) == ("ffn_up", "hidden", "ffn_down")
    assert (found["head"], found["blocks.0.attention.out_proj"]) == ("readout", "attention_out")
    assert fp8sim.conversion_report(model)["head"].reason == "its weight is that of embedding"
    fp8sim.convert(model, recipe="fp8_naive", roles={"*.1.up": "ffn_up"})
    assert fp8sim.conversion_report(model)["blocks.1.up"].role == "ffn_up"
