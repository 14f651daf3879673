"""The check of the first step: every recipe passes it, and every fault planted into casts, GEMMs or layers fails it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fp8sim
from fp8sim import casting
from fp8sim.compare import Comparison
from fp8sim.formats import parse
from fp8sim.nn import Linear, TransformerConfig, TransformerDecoder, mlp
from fp8sim.ops import matmul as ops
from fp8sim.recipes import RECIPES
from fp8sim.training import loop, text
from fp8sim.training.first_step import check_first_step
from fp8sim.training.text import Sequences
from fp8sim.unit_scaling import functional, rules
from fp8sim.unit_scaling.functional import products

SEQUENCES = Sequences(text.load(), length=32, batch=4)
FP8 = ("fp8_naive", "mup_fp8", "u_mup_fp8", "munit_scaled_fp8")
UP = "layers.1.mlp.up"

Plant = Callable[[pytest.MonkeyPatch], None]


def check(recipe: str, **sizes: Any) -> Comparison:
    torch.manual_seed(0)
    config = TransformerConfig(
        **{"vocabulary": len(SEQUENCES.text.symbols), "width": 32, "blocks": 2, "heads": 2} | sizes
    )
    model = TransformerDecoder(config, recipe=recipe)
    return check_first_step(model, RECIPES[recipe], SEQUENCES.tokens, lambda: loop.backward(model, SEQUENCES[0]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_computes_what_it_says(recipe: str) -> None:
    found = check(recipe)
    assert found.mismatches == 0, found.first
    assert found.compared > 500_000


@pytest.mark.parametrize(
    "sizes", [{"activation": "gelu"}, {"key_value_heads": 1, "qk_norm": True}, {"expansion": 2.5, "norm": "layer"}]
)
def test_every_shape_of_decoder_is_known(sizes: dict[str, Any]) -> None:
    found = check("munit_scaled_fp8", **sizes)
    assert found.mismatches == 0, found.first


def _cast_toward_zero(patch: pytest.MonkeyPatch) -> None:
    original = casting.cast
    patch.setattr(casting, "cast", lambda x, fmt, **policy: original(x, fmt, **{**policy, "rounding": "TOWARD_ZERO"}))


def _cast_to_e5m2(patch: pytest.MonkeyPatch) -> None:
    original, swapped = casting.cast, {parse("e4m3"): parse("e5m2")}
    patch.setattr(casting, "cast", lambda x, fmt, **kw: original(x, swapped.get(parse(fmt), fmt), **kw))


def _change_gemm(change: Callable[..., tuple[Any, ...]], gemm: str, layer: str = UP) -> Plant:
    """`change` of (a, b, strings, scale) before one GEMM of one layer."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = ops._gemm

        def faulty(name: str, a: Any, b: Any, strings: Any, scale: float, where: str, backend: str) -> torch.Tensor:
            operands = (a, b, strings, scale)
            if (name, where) == (gemm, layer):
                operands = change(*operands)
            return original(name, *operands, where, backend)

        patch.setattr(ops, "_gemm", faulty)

    return plant


def _uncast(a: Any, b: Any, strings: Any, scale: float) -> tuple[Any, ...]:
    return a, b, strings._replace(first="", second=""), scale


def _first_uncast(a: Any, b: Any, strings: Any, scale: float) -> tuple[Any, ...]:
    return a, b, strings._replace(first=""), scale


def _twice(a: Any, b: Any, strings: Any, scale: float) -> tuple[Any, ...]:
    return fp8sim.cast(a, "bf16"), b, strings, scale


def _activation_rounds(patch: pytest.MonkeyPatch) -> None:
    original = functional.silu_glu
    patch.setattr(mlp.functional, "silu_glu", lambda *rest, **kw: fp8sim.cast(original(*rest, **kw), "bf16"))


class _Rounded(torch.autograd.Function):
    """Rounds the gradient to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.bfloat16().float()


def _gradient_rounds_before_the_layer(patch: pytest.MonkeyPatch) -> None:
    original = functional.silu_glu
    rounded = lambda up, gate, **kw: original(_Rounded.apply(up), gate, **kw)  # noqa: E731
    patch.setattr(mlp.functional, "silu_glu", rounded)


def _layer_left_out(patch: pytest.MonkeyPatch) -> None:
    original = Linear.forward

    def faulty(self: Linear, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight) if self.name == UP else original(self, input)

    patch.setattr(Linear, "forward", faulty)


def _wrong_weight(patch: pytest.MonkeyPatch) -> None:
    original, seen = products._linear, {}

    def faulty(input: Any, weight: Any, bias: Any, factors: Any, recipe: Any, name: str) -> torch.Tensor:
        seen[name] = weight
        return original(input, seen["layers.0.mlp.up"] if name == UP else weight, bias, factors, recipe, name)

    patch.setattr(products, "_linear", faulty)


def _shared_weight(patch: pytest.MonkeyPatch) -> None:
    original = TransformerDecoder.__init__

    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self.layers[1].mlp.up.weight = self.layers[0].mlp.up.weight

    patch.setattr(TransformerDecoder, "__init__", init)


FAULTS: dict[str, Plant] = {
    "toward zero": _cast_toward_zero,
    "e5m2 for e4m3": _cast_to_e5m2,
    "one GEMM unquantized": _change_gemm(_uncast, "output"),
    "one GEMM of the backward pass unquantized": _change_gemm(_uncast, "grad_weight"),
    "gradient left in float32": _change_gemm(_first_uncast, "grad_input"),
    "quantized twice in the GEMM": _change_gemm(_twice, "output"),
    "gradient quantized twice in the GEMM": _change_gemm(_twice, "grad_weight"),
    "quantized before the layer": _activation_rounds,
    "gradient quantized before the layer": _gradient_rounds_before_the_layer,
    "layer left out": _layer_left_out,
    "wrong factor": _change_gemm(lambda a, b, strings, scale: (a, b, strings, scale * 1.001), "grad_input"),
    "another layer's weight": _wrong_weight,
    "weight shared with another layer": _shared_weight,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recipe", FP8)
def test_a_planted_fault_fails(fault: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    found = check(recipe)
    assert found.mismatches > 0
    assert "expected" in found.first


def _role(wrong: str, right: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        original = Linear.__init__

        def init(self: Any, *arguments: Any, role: str = "hidden", **keywords: Any) -> None:
            original(self, *arguments, role=wrong if role == right else role, **keywords)

        patch.setattr(Linear, "__init__", init)

    return plant


def _constraint(patch: pytest.MonkeyPatch) -> None:
    original = Linear.__init__

    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **{**keywords, "constraint": "gmean"})

    patch.setattr(Linear, "__init__", init)


def _output_factor(patch: pytest.MonkeyPatch) -> None:
    original = rules.readout
    patch.setattr(rules, "readout", lambda *sizes: original(*sizes)._replace(output=sizes[0] ** -0.5))


def _no_multiplier(patch: pytest.MonkeyPatch) -> None:
    original = Linear.__init__

    def init(self: Any, *arguments: Any, multiplier: float = 1.0, **keywords: Any) -> None:
        original(self, *arguments, multiplier=1.0, **keywords)

    patch.setattr(Linear, "__init__", init)


@pytest.mark.parametrize(
    ("recipe", "plant"),
    [
        ("u_mup_fp8", _role("ffn_up", "ffn_down")),
        ("mup_fp8", _role("ffn_down", "attention_qkv")),
        ("munit_scaled_fp8", _constraint),
        ("unit_scaled_fp8", _output_factor),
        ("mup_fp8", _no_multiplier),
    ],
)
def test_a_layer_in_the_wrong_role_or_with_wrong_factors_fails(
    recipe: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert check(recipe).mismatches > 0
