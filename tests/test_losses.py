"""Unit-scaled losses: torch's value, and the gradient of the sum times a factor."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from unit_scaled_ops import assert_same, normal

from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional import cross_entropy, embedding, mse_loss

SHAPES = [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 2)]
"""Logits of five classes, of every rank that torch takes."""

WEIGHT = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.5], dtype=torch.float64)


def classes(shape: tuple[int, ...], ignored: bool = False) -> torch.Tensor:
    dim = 0 if len(shape) == 1 else 1
    rows = (*shape[:dim], *shape[dim + 1 :])
    labels = torch.randint(0, 5, rows, generator=torch.Generator().manual_seed(7))
    if ignored:
        labels.view(-1)[: labels.numel() // 2] = -100
    return labels


def probabilities(shape: tuple[int, ...]) -> torch.Tensor:
    return normal(*shape, seed=5).detach().softmax(0 if len(shape) == 1 else 1)


def sum_gradient_of(value: float | torch.Tensor, summed: torch.Tensor, beta: float) -> torch.Tensor:
    """`value`, with beta times the gradient of `summed`."""
    return scale_fwd(scale_bwd(summed, beta), torch.as_tensor(value).detach() / summed.detach())


@given(
    st.sampled_from(SHAPES),
    st.sampled_from(["classes", "ignored", "probabilities"]),
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
)
def test_cross_entropy_is_torchs_with_the_gradient_of_the_scaled_sum(
    shape: tuple[int, ...], kind: str, reduction: str, weighted: bool, smoothing: float
) -> None:
    target = probabilities(shape) if kind == "probabilities" else classes(shape, kind == "ignored")
    options: dict[str, Any] = {"weight": WEIGHT if weighted else None, "label_smoothing": smoothing}
    beta = rules.cross_entropy(5, smoothing)
    inner = "none" if reduction == "none" else "sum"

    def definition(x: torch.Tensor) -> torch.Tensor:
        summed = F.cross_entropy(scale_bwd(x, beta), target, reduction=inner, **options)
        if reduction == "none":
            return summed
        return sum_gradient_of(F.cross_entropy(x, target, reduction=reduction, **options), summed, 1.0)

    assert_same(lambda x: cross_entropy(x, target, reduction=reduction, **options), definition, normal(*shape))


def test_the_multiplier_is_one_of_the_forward_pass_alone() -> None:
    target, beta = classes((4, 5)), rules.cross_entropy(5)

    def definition(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scale_fwd(scale_bwd(x, beta), 3.0), target, reduction="sum")

    assert_same(lambda x: cross_entropy(x, target, mult=3, reduction="sum"), definition, normal(4, 5))
    assert_same(
        lambda x: cross_entropy(x, target, mult=3, recipe="fp32"),
        lambda x: F.cross_entropy(3 * x, target),
        normal(4, 5),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("recipe", ["unit_scaled", "fp32"])
def test_z_loss_adds_the_squared_normaliser_of_rows_that_count(reduction: str, recipe: str) -> None:
    target = classes((4, 5, 3), ignored=True)
    counts = torch.where(target == -100, 0.0, WEIGHT[target.clamp(min=0)])
    beta = rules.cross_entropy(5) if recipe == "unit_scaled" else 1.0

    def definition(x: torch.Tensor) -> torch.Tensor:
        x = scale_bwd(x, beta)
        rows = F.cross_entropy(x, target, WEIGHT, reduction="none") + 0.1 * counts * x.logsumexp(1).square()
        if reduction == "none":
            return rows
        if recipe == "fp32":
            return rows.sum() / (counts.sum() if reduction == "mean" else 1)
        return scale_fwd(rows.sum(), 1 / counts.sum() if reduction == "mean" else 1.0)

    assert_same(
        lambda x: cross_entropy(x, target, WEIGHT, z_loss=0.1, reduction=reduction, recipe=recipe),
        definition,
        normal(4, 5, 3),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    target = torch.arange(64) % 33
    loss = cross_entropy(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))
    wide = logits.detach().float().requires_grad_()
    cross_entropy(wide, target).backward()
    assert logits.grad is not None
    assert wide.grad is not None
    assert torch.equal(logits.grad, wide.grad.to(dtype)), "rounded once"
    assert mse_loss(logits, logits).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_has_unit_scale_at_uniform_logits(smoothing: float) -> None:
    for count in (2, 256, 4096):
        logits = torch.zeros(16, count, requires_grad=True)
        cross_entropy(logits, torch.arange(16) % count, label_smoothing=smoothing).backward()
        assert logits.grad is not None
        assert float(logits.grad.square().mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_loss(reduction: str) -> None:
    inner = "none" if reduction == "none" else "sum"

    def definition(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        loss = F.mse_loss(scale_bwd(a, 8**-0.5), scale_bwd(b, 8**-0.5), reduction=inner)
        return scale_fwd(loss, 1 / 15) if reduction == "mean" else loss

    assert_same(lambda a, b: mse_loss(a, b, reduction=reduction), definition, normal(3, 5), normal(3, 5, seed=1))


def test_no_row_that_counts_is_nan_as_in_torch() -> None:
    assert math.isnan(cross_entropy(torch.ones(2, 5), torch.full((2,), -100)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(torch.ones(2, 3, 4), torch.zeros(2).long()), "flatten the others"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.ones(2)), "or probabilities"),
        (lambda: cross_entropy(torch.ones(()), torch.tensor(0)), "input has no dimension"),
        (lambda: cross_entropy(torch.ones(2, 1), torch.zeros(2).long()), "classes=1"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.zeros(2).long(), reduction="max"), "use one of mean, sum, none"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.zeros(2).long(), mult=0), "mult=0"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.zeros(2).long(), label_smoothing=1.0), "label_smoothing=1.0"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
@pytest.mark.parametrize("recipe", ["fp32", "unit_scaled"])
def test_classes_of_any_integer_dtype(dtype: torch.dtype, recipe: str) -> None:
    logits, target, weight = torch.randn(4, 5), torch.tensor([1, 0, 4, 2]), torch.arange(1.0, 6)
    expected = cross_entropy(logits, target, weight, ignore_index=2, z_loss=0.1, recipe=recipe)
    found = cross_entropy(logits, target.to(dtype), weight, ignore_index=2, z_loss=0.1, recipe=recipe)
    assert torch.equal(found, expected)


def test_indices_out_of_range_are_named() -> None:
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        cross_entropy(torch.zeros(2, 5), torch.tensor([0, 5], dtype=torch.int32))
    with pytest.raises(IndexError, match="input holds an index outside of weight's rows, 0 to 4"):
        embedding(torch.tensor([0, 5]), torch.zeros(5, 3))
