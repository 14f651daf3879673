"""Attention: its composition, rotary positions, grouped heads, the cache, and what it refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from fp8sim.nn import Attention, KeyValueCache, rotary
from fp8sim.nn.rotary import rotate
from fp8sim.unit_scaling import rules

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(width: int = 32, heads: int = 4, **options: object) -> Attention:
    torch.manual_seed(0)
    return Attention(width, heads, **options).double().eval()  # type: ignore[arg-type]


def by_complex_numbers(x: torch.Tensor, base: float, first: int) -> torch.Tensor:
    """`rotate` by its definition: pairs are complex numbers, multiplied by e^(i p base^(-2j/D))."""
    length, width = x.shape[-2:]
    pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :])
    turned = torch.empty_like(pairs)
    for p in range(length):
        for j in range(width // 2):
            angle = torch.tensor((first + p) * base ** (-2 * j / width), dtype=torch.float64)
            turned[..., p, j] = pairs[..., p, j] * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def test_rotary_positions_are_a_product_of_complex_numbers() -> None:
    x = normal(2, 3, 5, 8)
    torch.testing.assert_close(rotate(x, 100.0, 7), by_complex_numbers(x, 100.0, 7), **EXACT)


def test_rotary_positions_matter_by_their_distance_alone() -> None:
    query, key = normal(1, 16), normal(1, 16, seed=1)

    def product(i: int, j: int) -> torch.Tensor:
        return (rotate(query, 10000.0, i) * rotate(key, 10000.0, j)).sum()

    torch.testing.assert_close(product(5, 2), product(905, 902), rtol=1e-11, atol=1e-11)
    assert not torch.isclose(product(5, 2), product(5, 3))
    torch.testing.assert_close(rotate(query, 10000.0, 77).norm(), query.norm(), **EXACT)


def test_rotary_positions_keep_the_dtype_and_are_computed_in_float32() -> None:
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    half = rotate(x.bfloat16(), 10000.0)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate(x.bfloat16().float(), 10000.0).bfloat16())


def test_what_rotary_positions_keep_serves_every_later_call() -> None:
    """Whether the first call was in inference mode, of fake tensors, or compiled."""
    x, kept_table = normal(6, 8), rotary._kept_table
    expected = by_complex_numbers(x, 50.0, 0)
    kept_table.cache_clear()
    with FakeTensorMode() as mode:
        rotate(mode.from_tensor(x), 50.0)
    compiled = torch.compile(lambda x: rotate(x, 50.0), fullgraph=True, backend="eager")(x)
    assert kept_table.cache_info().currsize == 0
    with torch.inference_mode():
        rotate(x, 50.0)
    leaf = x.clone().requires_grad_()
    rotated = rotate(leaf, 50.0)
    rotated.backward(rotated.detach())
    assert kept_table.cache_info().hits == 1
    torch.testing.assert_close(rotated.detach(), expected, **EXACT)
    torch.testing.assert_close(leaf.grad, x, **EXACT)  # a rotation, undone
    assert torch.equal(compiled, rotated)


def heads_of(module: Attention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [B, heads, L, D] before norm and rotation, by slices of the weight."""
    sizes = [module.heads * module.head_width, *(module.groups * module.head_width,) * 2]
    parts = zip(module.qkv.weight.split(sizes), (module.heads, module.groups, module.groups), strict=True)
    return tuple(F.linear(x, w).unflatten(-1, (n, -1)).transpose(1, 2) for w, n in parts)


@pytest.mark.parametrize("key_value_heads", [None, 2, 1])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_attention_is_its_composition(key_value_heads: int | None, is_causal: bool, root: bool) -> None:
    options = {"key_value_heads": key_value_heads, "is_causal": is_causal, "root_softmax": root}
    module = attention(**options, mult=1.5, recipe="fp32")
    x = normal(2, 6, 32)
    query, key, value = heads_of(module, x)
    query, key = (by_complex_numbers(y, 10000.0, 0) for y in (query, key))
    key, value = (y.repeat_interleave(4 // module.groups, 1) for y in (key, value))
    logits = query @ key.mT * 1.5 / math.sqrt(8)
    if is_causal:
        logits = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    probabilities = logits.softmax(-1)
    mixed = ((probabilities.sqrt() if root else probabilities) @ value).transpose(1, 2).reshape(2, 6, 32)
    torch.testing.assert_close(module(x), F.linear(mixed, module.out.weight), **EXACT)


def test_unit_scaled_attention_has_the_factors_of_its_parts() -> None:
    module, plain = attention(), attention(scale_power=1.0, recipe="fp32")
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        plain.qkv.weight *= 32**-0.5
        plain.out.weight *= 32**-0.5 * rules.attention(6, 8**-0.5, causal=True)
    x = normal(2, 6, 32)
    torch.testing.assert_close(module(x), plain(x), **EXACT)


def test_grouped_heads_equal_repeated_ones() -> None:
    grouped, full = attention(key_value_heads=2), attention()
    query, key, value = grouped.qkv.weight.detach().split([32, 16, 16])
    repeated = [w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for w in (key, value)]
    full.load_state_dict({"qkv.weight": torch.cat([query, *repeated]), "out.weight": grouped.out.weight})
    x = normal(2, 6, 32)
    torch.testing.assert_close(grouped(x), full(x), **EXACT)


@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 1, 3], [9]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_value_heads": 2, "qk_norm": True},
        {"root_softmax": True, "scale_power": 0.5, "rotary_base": None},
        {"recipe": "fp32", "context": None},
    ],
    ids=["unit-scaled", "grouped and normalised", "root softmax", "standard"],
)
def test_decoding_with_a_cache_equals_the_whole_sequence(options: dict[str, object], chunks: list[int]) -> None:
    module = attention(**({"context": 12} | options))
    x, cache = normal(2, 9, 32), KeyValueCache()
    whole = module(x)
    parts = [module(part, cache=cache) for part in x.split(chunks, 1)]
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)


def test_decoding_with_fp8_equals_the_whole_sequence() -> None:
    torch.manual_seed(0)
    module = Attention(32, 4, context=8, recipe="unit_scaled_fp8")
    x, cache = torch.randn(2, 8, 32), KeyValueCache()
    parts = [module(part, cache=cache) for part in x.split(1, 1)]
    whole = module(x)
    # The cast of an attention output that differs in its last float32 bit may go to the neighbour in E4M3.
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=0.02)


def test_the_context_sets_the_factor_for_every_length() -> None:
    x = normal(1, 5, 32)
    ratio = attention(context=64)(x) / attention(context=5)(x)
    expected = rules.attention(64, 8**-0.5, causal=True) / rules.attention(5, 8**-0.5, causal=True)
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected))
    assert torch.equal(attention(context=5)(x), attention()(x))


def test_a_mask_takes_the_place_of_the_causal_one() -> None:
    module, x = attention(), normal(2, 6, 32)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(module(x, seen), module(x), **EXACT)
    window = seen & ~seen.tril(-2)
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(module(moved, window)[:, 2:], module(x, window)[:, 2:])
    assert not torch.equal(module(moved)[:, 2:], module(x)[:, 2:])


def test_causal_attention_sees_no_later_token() -> None:
    module, x = attention(), normal(2, 6, 32)
    later = x.clone()
    later[:, 4:] += 1
    assert torch.equal(module(later)[:, :4], module(x)[:, :4])


def test_normalised_queries_and_keys_ignore_the_scale_of_their_weights() -> None:
    module, x = attention(qk_norm=True), normal(2, 6, 32)
    before = module(x)
    with torch.no_grad():
        module.qkv.weight[:64] *= 50
    torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-5)


def test_the_norms_of_queries_and_keys_are_shared_by_heads() -> None:
    norms = dict(attention(qk_norm=True, recipe="fp32").named_parameters())
    assert norms["query_norm.weight"].shape == norms["key_norm.weight"].shape == (8,)
    bare = attention(qk_norm=True, norm_gain=False, recipe="fp32")
    assert bare.query_norm is not None
    assert {name for name, _ in bare.named_parameters()} == {"qkv.weight", "out.weight"}


def test_dropout_counts_in_training_alone() -> None:
    module, x = attention(dropout=0.5), normal(2, 6, 32)
    assert torch.equal(module(x), attention()(x))
    module.train()
    assert not torch.equal(module(x), module(x))


def reused(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Attention of x with the cache of another sequence."""
    module, cache = attention(context=6).float(), KeyValueCache()
    module(normal(1, 6, 32).float(), cache=cache)
    return module.to(dtype)(x.to(dtype), cache=cache)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention(32, 5), "heads=5 must divide width=32"),
        (lambda: attention(key_value_heads=3), "key_value_heads=3 must divide heads=4"),
        (lambda: attention(12, 4), "heads=4 of width=12 have 3 features each: rotary positions need an even number"),
        (lambda: attention()(normal(6, 32)), r"attention takes x \[B, L, 32\], got \[6, 32\]"),
        (lambda: attention()(normal(1, 6, 30)), r"got \[1, 6, 30\]"),
        (lambda: attention()(normal(1, 6, 32), cache=KeyValueCache()), "context=None: with a cache"),
        (
            lambda: attention(is_causal=False, context=6)(normal(1, 6, 32), cache=KeyValueCache()),
            "a cache is for causal attention",
        ),
        (
            lambda: attention(context=6)(normal(1, 6, 32), torch.ones(6, 6).bool(), cache=KeyValueCache()),
            "a cache is for causal attention without an attn_mask",
        ),
        (lambda: attention(rotary_base=0.0), "rotary_base=0.0: must be above 0, such as 10000, or None"),
        (
            lambda: reused(normal(2, 1, 32), torch.float32),
            "cache holds B, G, D = 1, 4, 8 of torch.float32 on cpu, got 2",
        ),
        (lambda: reused(normal(1, 1, 32), torch.bfloat16), "of torch.float32 on cpu, got 1, 4, 8 of torch.bfloat16"),
        (lambda: rotate(normal(2, 5), 100.0), "x has 5 features per head"),
        (lambda: rotate(normal(2, 6), 0.0), "base=0.0: must be above 0"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
