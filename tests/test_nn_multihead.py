"""torch's multi-head attention by recipe: its outputs, its masks, its layouts, its state dict."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fp8sim import functional, nn
from fp8sim.simulate.matmul import GemmEvent, observe

B, L, S, E, H = 3, 7, 9, 32, 4
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(L)
PADDING = (torch.arange(S) > 4).expand(B, S)


@pytest.fixture(autouse=True)
def without_fused_kernel():
    """torch's fused kernel of inference adds in an order of its own."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.MultiheadAttention, torch.nn.Module]:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(E, H, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = nn.MultiheadAttention(E, H, recipe="fp32", **options)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


CALLS: dict[str, tuple[Callable[[Any, Any, Any], tuple[Any, ...]], dict[str, Any]]] = {
    "three inputs": (lambda q, k, v: (q, k, v), {}),
    "self": (lambda q, k, v: (q, q, q), {}),
    "keys are values": (lambda q, k, v: (q, k, k), {}),
    "causal hint": (lambda q, k, v: (q, q, q), {"attn_mask": CAUSAL, "is_causal": True}),
    "causal and padding": (
        lambda q, k, v: (q, q, q),
        {"attn_mask": CAUSAL.isinf(), "is_causal": True, "key_padding_mask": PADDING[:, :L]},
    ),
    "padding": (lambda q, k, v: (q, k, v), {"key_padding_mask": PADDING}),
    "numbers on keys": (lambda q, k, v: (q, k, v), {"key_padding_mask": normal(B, S, seed=4)}),
    "mask of each head": (lambda q, k, v: (q, k, v), {"attn_mask": normal(B * H, L, S, seed=5) > 0.5}),
    "numbers on logits": (lambda q, k, v: (q, k, v), {"attn_mask": normal(L, S, seed=6)}),
}


def inputs(call: str, batch_first: bool, dtype: torch.dtype = torch.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = [normal(length, B, E, seed=i, dtype=dtype) for i, length in enumerate((L, S, S))]
    made = [(x.transpose(0, 1).contiguous() if batch_first else x).requires_grad_() for x in made]
    choose, options = CALLS[call]
    cast = {
        name: value.to(dtype) if value is not True and value.is_floating_point() else value
        for name, value in options.items()
    }
    return choose(*made), cast


def gradients(module: torch.nn.Module, output: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, (x, *module.parameters()), normal(*output.shape, seed=7, dtype=output.dtype))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_without_casts_and_biases_every_bit_is_torchs(call: str, batch_first: bool) -> None:
    ours, theirs = pair(bias=False, batch_first=batch_first)
    given, options = inputs(call, batch_first)
    output, nothing = ours(*given, need_weights=False, **options)
    expected, _ = theirs(*given, need_weights=False, **options)
    assert nothing is None
    assert torch.equal(output, expected)
    for mine, other in zip(gradients(ours, output, given[0]), gradients(theirs, expected, given[0]), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_biases_and_weights_are_torchs_to_rounding(call: str, average: bool) -> None:
    ours, theirs = pair(torch.float64)
    given, options = inputs(call, False, torch.float64)
    results = [module(*given, average_attn_weights=average, **options) for module in (ours, theirs)]
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        *(gradients(m, r[0], given[0]) for m, r in zip((ours, theirs), results, strict=True)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_widths_of_keys_and_values_are_torchs() -> None:
    ours, theirs = pair(torch.float64, kdim=12, vdim=20)
    given = tuple(normal(n, B, w, seed=w, dtype=torch.float64).requires_grad_() for n, w in ((L, E), (S, 12), (S, 20)))
    output, expected = ours(*given)[0], theirs(*given)[0]
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_input_without_a_batch_is_torchs(batch_first: bool) -> None:
    ours, theirs = pair(torch.float64, batch_first=batch_first)
    query, key = normal(L, E, dtype=torch.float64), normal(S, E, seed=1, dtype=torch.float64)
    for average in (False, True):
        results = [
            m(query, key, key, key_padding_mask=PADDING[0], average_attn_weights=average) for m in (ours, theirs)
        ]
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_self", [False, True])
def test_without_a_batch_every_bit_is_torchs(is_self: bool) -> None:
    ours, theirs = pair(bias=False)
    query = normal(L, E).requires_grad_()
    key = query if is_self else normal(S, E, seed=1)
    output, expected = (module(query, key, key, need_weights=False)[0] for module in (ours, theirs))
    assert torch.equal(output, expected)
    for mine, other in zip(gradients(ours, output, query), gradients(theirs, expected, query), strict=True):
        assert torch.equal(mine, other)


def test_dropout_is_for_training() -> None:
    ours, theirs = pair(dropout=0.5, bias=False)
    x = normal(L, B, E)
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    torch.manual_seed(1)
    output = ours(x, x, x, need_weights=False)[0]
    torch.manual_seed(1)
    assert torch.equal(output, theirs(x, x, x, need_weights=False)[0])
    assert torch.equal(ours.eval()(x, x, x)[0], ours(x, x, x)[0])


def test_projections_run_by_recipe_and_role() -> None:
    ours = nn.MultiheadAttention(E, H, recipe="u_mup_fp8")
    ours.name, ours.out_proj.name = "attention", "attention.out_proj"
    events: list[GemmEvent] = []
    with observe(events.append):
        x = normal(L, B, E).requires_grad_()
        ours(x, x, x)[0].sum().backward()
    found = {(e.layer, e.gemm): tuple(str(q.format) for q in e.quantizers if q is not None) for e in events}
    bf16 = ("bfloat16", "bfloat16")
    e4m3, e5m2 = "float8_e4m3fn", "float8_e5m2"
    assert found == {
        ("attention.in_proj", "output"): (e4m3, e4m3),
        ("attention.in_proj", "grad_input"): (e5m2, e4m3),
        ("attention.in_proj", "grad_weight"): (e5m2, e4m3),
        **{("attention.out_proj", gemm): bf16 for gemm in ("output", "grad_input", "grad_weight")},
    }


@pytest.mark.parametrize(("recipe", "power"), [("unit_scaled", 1.0), ("munit_scaled_fp8", 0.5)])
def test_unit_scaled_attention_is_made_of_the_functions(recipe: str, power: float) -> None:
    ours = nn.MultiheadAttention(E, H, bias=False, recipe=recipe)
    x = normal(L, B, E)
    packed = functional.linear(x, ours.in_proj_weight, recipe=recipe)
    heads = [part.unflatten(-1, (H, E // H)).permute(1, 2, 0, 3) for part in packed.chunk(3, -1)]
    mixed = functional.scaled_dot_product_attention(*heads, is_causal=True, scale_power=power, recipe=recipe)
    expected = functional.linear(mixed.permute(2, 0, 1, 3).flatten(2), ours.out_proj.weight, recipe=recipe)
    output, _ = ours(x, x, x, need_weights=False, attn_mask=CAUSAL, is_causal=True)
    assert torch.equal(output, expected)
    masked, _ = ours(x, x, x, attn_mask=CAUSAL, is_causal=True, key_padding_mask=torch.zeros(B, L))
    torch.testing.assert_close(masked, expected)  # another mask: still the factor of a causal one


def test_initial_weights_follow_the_parametrization() -> None:
    torch.manual_seed(0)
    unit = nn.MultiheadAttention(256, 4, recipe="unit_scaled")
    assert unit.in_proj_weight.std().item() == pytest.approx(1, rel=0.02)
    assert unit.out_proj.weight.std().item() == pytest.approx(1, rel=0.02)
    assert not any(bias.any() for bias in (unit.in_proj_bias, unit.out_proj.bias))
    given = nn.MultiheadAttention(256, 4, kdim=128, recipe="mup_fp8", init_std=0.25)
    assert given.k_proj_weight.std().item() == pytest.approx(0.25, rel=0.02)
    plain = nn.MultiheadAttention(256, 4, recipe="fp32")
    assert plain.in_proj_weight.abs().max() <= (6 / (4 * 256)) ** 0.5  # xavier_uniform_, as torch's
    assert plain.out_proj.weight.abs().max() <= 256**-0.5


def test_what_it_does_not_take_is_refused() -> None:
    ours, _ = pair()
    x = normal(L, B, E)
    with pytest.raises(ValueError, match="is_causal=True says what attn_mask is, and there is none"):
        ours(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([normal(3, E), normal(2, E)], layout=torch.jagged)
    with pytest.raises(ValueError, match="takes no nested tensors: pad them"):
        ours(nested, nested, nested)
    with pytest.raises(ValueError, match="linear takes input"):
        ours(x[..., :5], x[..., :5], x[..., :5])
