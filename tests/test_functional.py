"""Unit-scaled functions are `scale_fwd(f(scale_bwd(x, beta)), alpha)` of torch's functions, in float64 to rounding."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from fp8sim import functional
from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules

Function = Callable[..., torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def results(function: Function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output, then the gradient of every input for a fixed output gradient."""
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    output = function(*copies)
    generator = torch.Generator().manual_seed(99)
    output.backward(torch.randn(output.shape, generator=generator, dtype=output.dtype))
    return [output.detach(), *(x.grad for x in copies if x.grad is not None)]


def assert_same(function: Function, definition: Function, *inputs: torch.Tensor) -> None:
    ours, theirs = results(function, *inputs), results(definition, *inputs)
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_the_primitives() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = scale_bwd(scale_fwd(x, 3.0), 5.0)
    y.backward(torch.tensor([1.0, 10.0]))
    assert y.tolist() == [3.0, -6.0]
    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 50.0]


@pytest.mark.parametrize("constraint", [None, "to_output_scale", "gmean"])
def test_linear(constraint: str | None) -> None:
    scales = rules.linear(24, 40, 6, constraint)

    def definition(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = F.linear(scale_bwd(x, scales.grad_input), scale_bwd(w, scales.grad_weight))
        return scale_fwd(product, scales.output) + scale_bwd(b, scales.grad_weight)

    def ours(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, w, b, constraint=constraint)

    assert_same(ours, definition, normal(2, 3, 24), normal(40, 24, seed=1), normal(40, seed=2))


def test_linear_counts_the_tokens_of_the_whole_batch() -> None:
    whole = results(functional.linear, normal(8, 4), normal(5, 4, seed=1))[2]
    parts = results(lambda x, w: functional.linear(x, w, batch_tokens=32), normal(8, 4), normal(5, 4, seed=1))[2]
    torch.testing.assert_close(parts * 2, whole)


def test_linear_readout() -> None:
    scales = rules.readout(24, 40, 6)

    def definition(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        product = F.linear(scale_bwd(x, scales.grad_input), scale_bwd(w, scales.grad_weight))
        return scale_fwd(product, scales.output)

    assert_same(functional.linear_readout, definition, normal(6, 24), normal(40, 24, seed=1))


def test_matmul() -> None:
    def definition(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale_fwd(torch.matmul(scale_bwd(a, 20**-0.5), scale_bwd(b, 12**-0.5)), 8**-0.5)

    def ours(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.matmul(a, b, constraint=None)

    assert_same(ours, definition, normal(3, 12, 8), normal(8, 20, seed=1))
    assert_same(ours, definition, normal(12, 8), normal(3, 8, 20, seed=1))


@pytest.mark.parametrize("mult", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("constraint", [None, "to_output_scale"])
def test_gelu(mult: float, constraint: str | None) -> None:
    alpha, beta = rules.gelu(mult, constraint)

    def definition(x: torch.Tensor) -> torch.Tensor:
        return scale_fwd(F.gelu(scale_bwd(x, beta) * mult) / mult, alpha)

    assert_same(lambda x: functional.gelu(x, mult=mult, constraint=constraint), definition, normal(50))


def test_gelu_is_the_gradient_of_a_function_exactly_when_its_factors_are_tied() -> None:
    assert torch.autograd.gradcheck(functional.gelu, normal(5))
    untied = torch.autograd.gradcheck(lambda x: functional.gelu(x, constraint=None), normal(5), raise_exception=False)
    assert not untied


def test_embedding() -> None:
    ids = torch.tensor([[0, 2, 2], [1, 0, 2]])

    def definition(w: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, scale_bwd(w, (4 / 6) ** 0.5))

    assert_same(lambda w: functional.embedding(ids, w), definition, normal(4, 3))


def test_rms_norm() -> None:
    def definition(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (7,), scale_bwd(gain, 6**-0.5), 1e-5)

    assert_same(lambda x, gain: functional.rms_norm(x, (7,), gain), definition, normal(2, 3, 7), normal(7, seed=1))


def test_residual_delays_the_branch_coefficients_to_the_ends_of_the_branch() -> None:
    tau = 0.5

    def ours(x: torch.Tensor) -> torch.Tensor:
        branch, skip = functional.residual_split(x, tau)
        return functional.residual_add(torch.sin(branch), skip, tau)

    def definition(x: torch.Tensor) -> torch.Tensor:
        return (tau * torch.sin(x) + x) / (1 + tau**2) ** 0.5

    assert_same(ours, definition, normal(9))


def test_cross_entropy_reports_the_mean_and_backpropagates_the_scaled_sum() -> None:
    target = torch.tensor([1, 0, 4, 4])
    logits = normal(4, 5)
    loss = functional.cross_entropy(logits, target)
    loss.backward()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    torch.testing.assert_close(logits.grad, gradient * 5 / 2)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(64, 33).bfloat16().requires_grad_()
    target = torch.arange(64) % 33
    loss = functional.cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))


def test_under_the_standard_parametrization_every_function_is_that_of_torch() -> None:
    x, w = normal(6, 24), normal(40, 24, seed=1)
    assert_same(lambda x, w: functional.linear(x, w, recipe="fp32"), F.linear, x, w)
    assert_same(lambda x, w: functional.linear_readout(x, w, recipe="fp32"), F.linear, x, w)
    assert_same(lambda x, w: functional.matmul(x, w.mT, recipe="fp32"), lambda x, w: x @ w.mT, x, w)
    assert_same(lambda x: functional.gelu(x, recipe="fp32"), F.gelu, x)
    assert_same(lambda x: functional.rms_norm(x, (24,), recipe="fp32"), lambda x: F.rms_norm(x, (24,), eps=1e-5), x)
    branch, skip = functional.residual_split(x, recipe="fp32")
    torch.testing.assert_close(functional.residual_add(branch, skip, recipe="fp32"), 2 * x)
    target = torch.arange(6)
    loss = lambda x: functional.cross_entropy(x, target, recipe="fp32")  # noqa: E731
    assert_same(loss, lambda x: F.cross_entropy(x, target), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.linear(torch.ones(2, 3), torch.ones(4, 5)), r"input \[2, 3\] and weight \[4, 5\]"),
        (lambda: functional.matmul(torch.ones(2, 3), torch.ones(4, 5)), r"got a \[2, 3\] and b \[4, 5\]"),
        (lambda: functional.matmul(torch.ones(3), torch.ones(3)), r"a \[..., M, K\]"),
        (lambda: functional.matmul(torch.ones(2, 3), torch.ones(3, 2).double()), "convert one with .to()"),
        (lambda: functional.gelu(torch.ones(2), recipe="fp7"), "unknown recipe 'fp7'"),
        (lambda: functional.cross_entropy(torch.ones(2, 3, 4), torch.ones(2)), "flatten the others"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("function", [functional.linear, functional.linear_readout])
def test_an_empty_batch_gives_empty_output_and_zero_gradients(function: Function) -> None:
    output, grad_input, grad_weight = results(function, normal(0, 24), normal(40, 24))
    assert output.shape == (0, 40)
    assert grad_input.shape == (0, 24)
    assert grad_weight.count_nonzero() == 0
