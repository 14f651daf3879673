"""Unit-scaled attention: masks, shared heads, lengths, decoding, and the square root of softmax."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from unit_scaled_ops import assert_same, normal, results

from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional import scaled_dot_product_attention

Function = Callable[..., torch.Tensor]

lengths = st.integers(1, 9)


def qkv(heads: int, length: int, keys: int, groups: int | None = None) -> list[torch.Tensor]:
    """[2, heads, length, 4], [2, groups, keys, 4] and [2, groups, keys, 3]."""
    groups = groups or heads
    return [
        normal(2, heads, length, 4),
        normal(2, groups, keys, 4, seed=1),
        normal(2, groups, keys, 3, seed=2),
    ]


def expected(factor: float, scale: float, **options: Any) -> Function:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale, **options) * factor


@given(lengths, lengths, st.booleans())
def test_any_lengths_with_and_without_a_causal_mask(length: int, keys: int, is_causal: bool) -> None:
    factor = rules.attention(keys, 4**-0.5, causal=is_causal)
    assert_same(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=is_causal),
        expected(factor, 1 / 4, is_causal=is_causal),
        *qkv(3, length, keys),
    )


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (1, 3, 5, 7)])
def test_masks(kind: str, shape: tuple[int, ...]) -> None:
    """A mask gets the rule of full attention, unless it is said to be causal."""
    values = normal(*shape, seed=3).detach()
    mask = values > -0.5 if kind == "bool" else values
    for causal in (None, True):
        factor = rules.attention(7, 4**-0.5, causal=bool(causal))
        assert_same(
            lambda q, k, v, causal=causal: scaled_dot_product_attention(q, k, v, mask, factor_causal=causal),
            expected(factor, 1 / 4, attn_mask=mask),
            *qkv(3, 5, 7),
        )


@pytest.mark.parametrize("root_softmax", [False, True])
def test_shared_heads_are_those_repeated(root_softmax: bool) -> None:
    q, k, v = qkv(6, 5, 7, groups=2)

    def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        return scaled_dot_product_attention(q, k, v, root_softmax=root_softmax)

    def shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True, root_softmax=root_softmax)

    assert_same(shared, repeated, q, k, v)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1 / 4),
        ({"mult": 3.0}, 3 / 4),
        ({"scale_power": 0.5}, 1 / 2),
        ({"scale_power": 0.5, "mult": 3.0}, 3 / 2),
        ({"scale": 0.3}, 0.3),
        ({"scale": 0.3, "mult": 2.0}, 0.6),
        ({"recipe": "fp32"}, 1 / 2),
        ({"recipe": "fp32", "scale_power": 1.0}, 1 / 4),
    ],
)
def test_logits_by_1_over_d_or_its_root_or_as_told(options: dict[str, Any], scale: float) -> None:
    factor = 1.0 if "recipe" in options else rules.attention(7, scale * 2)
    assert_same(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, **options), expected(factor, scale), *qkv(3, 5, 7)
    )


def test_one_token_at_a_time_gives_the_outputs_of_the_whole_sequence() -> None:
    """The factor is that of the training length, whatever the cache holds."""
    q, k, v = qkv(3, 6, 6)
    whole = scaled_dot_product_attention(q, k, v, is_causal=True)
    for i in range(6):
        step = scaled_dot_product_attention(
            q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], factor_length=6, factor_causal=True
        )
        torch.testing.assert_close(step, whole[:, :, i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("is_causal", [False, True])
def test_short_sequences_keep_scale(length: int, is_causal: bool) -> None:
    """One key: the output is v. Under a causal mask ln S is too small for S = 2 to 8 keys, and outputs up to 1.3."""
    q, k, v = (torch.randn(4000, length, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    output = scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    if length == 1:
        torch.testing.assert_close(output, v)
    predicted = math.sqrt(sum(1 / n for n in range(1, length + 1)) / max(1, math.log(length))) if is_causal else 1
    assert float(output.std()) == pytest.approx(predicted, rel=0.05)
    assert predicted < 1.3


def naive_root(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The square roots of the probabilities, as written, on unmasked keys only."""
    exponentials = (q @ k.mT / 2).exp() * mask
    return torch.where(mask, exponentials / exponentials.sum(-1, keepdim=True), 1.0).sqrt() * mask @ v


@pytest.mark.parametrize("kind", ["full", "causal", "bool", "float"])
def test_root_softmax(kind: str) -> None:
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv(3, 5, 7))
    seen = {"full": torch.ones(5, 7).bool(), "causal": torch.ones(5, 7).tril().bool()}.get(
        kind, torch.arange(35).view(5, 7) % 3 < 2
    )
    masks = {"bool": seen, "float": torch.zeros(5, 7).double().masked_fill(~seen, -math.inf)}
    options: dict[str, Any] = {"attn_mask": masks.get(kind), "is_causal": kind == "causal"}
    ours = lambda q, k, v: scaled_dot_product_attention(  # noqa: E731
        q, k, v, scale_power=0.5, root_softmax=True, **options
    )
    assert_same(ours, lambda q, k, v: naive_root(q, k, v, seen), q, k, v)
    assert torch.autograd.gradcheck(ours, tuple(x[:1, :1].detach().requires_grad_() for x in (q, k, v)))


def test_root_softmax_keeps_the_variance_of_values_at_every_position() -> None:
    """Plain softmax averages it away: e / n - (e - 1) / n^2 after n keys (muS, section 3.1)."""
    q, k, v = (torch.randn(64, 256, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    root = scaled_dot_product_attention(q, k, v, is_causal=True, scale_power=0.5, root_softmax=True)
    plain = scaled_dot_product_attention(q, k, v, is_causal=True, recipe="fp32")
    assert float(root[:, 0].std()) == pytest.approx(1, rel=0.05)
    assert float(root[:, -1].std()) == pytest.approx(1, rel=0.05)
    assert float(plain[:, -1].std()) == pytest.approx(math.sqrt(math.e / 256), rel=0.1)


@pytest.mark.parametrize("root_softmax", [False, True])
def test_a_row_that_sees_no_key_is_zero_and_has_finite_gradients(root_softmax: bool) -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    output, *gradients = results(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, root_softmax=root_softmax), *qkv(3, 2, 3)
    )
    assert output[..., 1, :].count_nonzero() == 0
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("root_softmax", [False, True])
def test_dropout_keeps_scale(root_softmax: bool) -> None:
    q, k, v = (torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    torch.manual_seed(0)
    kept = scaled_dot_product_attention(q, k, v, None, 0.5, root_softmax=root_softmax)
    assert float(kept.std()) == pytest.approx(1, rel=0.05)
    dropped = scaled_dot_product_attention(q, k, v, None, 1.0, root_softmax=root_softmax)
    assert dropped.count_nonzero() == 0


X = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaled_dot_product_attention(X, X, X, torch.ones(3, 3), is_causal=True), "pass one; a causal mask"),
        (lambda: scaled_dot_product_attention(X, X[..., :2], X), r"query \[..., L, D\], .* got \[\[2, 3, 4\]"),
        (lambda: scaled_dot_product_attention(X, X, X[:, :2]), r"value \[..., S, E\], got"),
        (lambda: scaled_dot_product_attention(X[0], X[0], X[0], enable_gqa=True), r"got \[\[3, 4\]"),
        (lambda: scaled_dot_product_attention(X[:1], X, X, enable_gqa=True), "which divide the query's"),
        (lambda: scaled_dot_product_attention(X, X, X, mult=0), "mult=0: expected a positive finite number"),
        (lambda: scaled_dot_product_attention(X, X, X, dropout_p=2), "p=2: a probability"),
        (lambda: scaled_dot_product_attention(X, X, X, factor_length=0), "factor_length=0: a number of keys"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
