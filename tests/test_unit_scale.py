"""Standard deviations of outputs and gradients, for unit-normal inputs and output gradients, under each constraint."""

from collections.abc import Callable

import pytest
import torch

from fp8sim import functional
from fp8sim.analysis import unit_scale
from fp8sim.unit_scaling import rules

Function = Callable[..., torch.Tensor]


def stds(function: Function, *shapes: tuple[int, ...]) -> list[float]:
    """Of the output, then of every gradient."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    output = function(*inputs)
    gradients = torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator))
    return [float(t.detach().std()) for t in (output, *gradients)]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_cases_of_validate_hold_for_other_seeds(seed: int) -> None:
    assert unit_scale.check_unit_scale(seed).first == ""


ACTIVATIONS = [
    # function, mult, (output, gradient) tied to the output's factor, and untied
    ("gelu", 0.25, (1.00, 1.03), (1.00, 1.00)),
    ("gelu", 1.0, (1.04, 1.19), (1.04, 1.02)),
    ("gelu", 4.0, (1.01, 1.23), (1.01, 1.01)),
    ("silu", 0.25, (0.98, 1.00), (0.99, 1.01)),
    ("silu", 1.0, (0.99, 1.09), (0.99, 1.04)),
    ("silu", 4.0, (1.02, 1.22), (1.02, 1.02)),
]
"""What the published rules give, as measured with the reference implementation."""


@pytest.mark.parametrize(("name", "mult", "tied", "untied"), ACTIVATIONS)
def test_activations(name: str, mult: float, tied: tuple[float, float], untied: tuple[float, float]) -> None:
    function, shape = getattr(functional, name), (1024, 256)
    assert stds(lambda x: function(x, mult=mult), shape) == pytest.approx(tied, abs=0.015)
    assert stds(lambda x: function(x, mult=mult, constraint=None), shape) == pytest.approx(untied, abs=0.015)


@pytest.mark.parametrize("name", ["relu", "relu_squared", "tanh", "sigmoid"])
def test_activations_with_integrated_factors_are_exact(name: str) -> None:
    function = getattr(functional, name)
    alpha, beta = getattr(rules, name)(None)
    assert stds(lambda x: function(x, constraint=None), (1024, 1024)) == pytest.approx([1, 1], abs=0.006)
    assert stds(function, (1024, 1024)) == pytest.approx([1, alpha / beta], rel=0.006)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (None, (1, 1, 1)),
        ("to_output_scale", (1, 2, 1)),
        ("to_grad_input_scale", (0.5, 1, 1)),
        ("gmean", (0.707, 1.416, 1)),
        ("hmean", (0.667, 1.333, 1)),
        ("amean", (0.75, 1.502, 1)),
    ],
)
def test_linear_256_to_1024(constraint: str | None, expected: tuple[float, ...]) -> None:
    measured = stds(lambda x, w: functional.linear(x, w, constraint=constraint), (512, 256), (1024, 256))
    assert measured == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (None, (1, 1, 1)),
        ("to_output_scale", (1, 0.5, 0.707)),
        ("to_left_grad_scale", (2, 1, 1.414)),
        ("to_right_grad_scale", (1.414, 0.707, 1)),
    ],
)
def test_matmul_256_512_128(constraint: str | None, expected: tuple[float, ...]) -> None:
    measured = stds(lambda a, b: functional.matmul(a, b, constraint=constraint), (256, 512), (512, 128))
    assert measured == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (3, 1), (2, 4)])
def test_conv1d(stride: int, groups: int) -> None:
    measured = stds(
        lambda x, w: functional.conv1d(x, w, None, stride, groups=groups, constraint=None),
        (16, 64, 300),
        (128, 64 // groups, 3),
    )
    assert measured == pytest.approx([1, 1, 1], rel=0.03)


@pytest.mark.parametrize(("length", "mult", "untied"), [(64, 1, (0.81, 0.97)), (1024, 1, (0.65, 0.82))])
def test_softmax(length: int, mult: float, untied: tuple[float, float]) -> None:
    measured = stds(lambda x: functional.softmax(x, 0, mult=mult, constraint=None), (length, 2048))
    assert measured == pytest.approx(untied, rel=0.02)


def test_weak_softmax_has_mean_one_and_little_spread() -> None:
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    y = functional.softmax(x, 0, mult=0.25, constraint=None)
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
    assert float(y.std()) == pytest.approx(0.24, abs=0.01)


@pytest.mark.parametrize("recipe", ["unit_scaled", "unit_scaled_fp8"])
def test_fp8_operands_keep_the_scale(recipe: str) -> None:
    linear = stds(lambda x, w: functional.linear(x, w, recipe=recipe, constraint=None), (256, 256), (256, 256))
    conv = stds(lambda x, w: functional.conv1d(x, w, recipe=recipe, constraint=None), (8, 32, 200), (64, 32, 3))
    assert linear + conv == pytest.approx([1] * 6, rel=0.03)
