"""The factors of unit scaling against values worked out from the published formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8sim.unit_scaling import rules

sizes = st.integers(1, 10_000)


@pytest.mark.parametrize(
    ("mult", "alpha", "beta"), [(0.25, 1.938958, 1.866066), (1, 1.766783, 1.515717), (4, 1.716947, 1.421774)]
)
def test_gelu(mult: float, alpha: float, beta: float) -> None:
    assert rules.gelu(mult, constraint=None) == (pytest.approx(alpha, abs=1e-6), pytest.approx(beta, abs=1e-6))
    assert rules.gelu(mult) == (pytest.approx(alpha, abs=1e-6),) * 2


@pytest.mark.parametrize(("classes", "beta"), [(256, 16.031342), (32000, 178.8882)])
def test_cross_entropy(classes: int, beta: float) -> None:
    assert rules.cross_entropy(classes) == pytest.approx(beta, abs=1e-4)


def test_cross_entropy_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="classes=1"):
        rules.cross_entropy(1)


@given(sizes, sizes, sizes)
def test_linear(fan_in: int, fan_out: int, tokens: int) -> None:
    output, grad_input, grad_weight = rules.linear(fan_in, fan_out, tokens, constraint=None)
    assert output**2 * fan_in == pytest.approx(1)
    assert grad_input**2 * fan_out == pytest.approx(1)
    assert grad_weight**2 * tokens == pytest.approx(1)
    assert rules.linear(fan_in, fan_out, tokens) == (output, output, grad_weight)


@pytest.mark.parametrize(
    ("constraint", "tied"),
    [("gmean", 0.707107), ("hmean", 0.666667), ("amean", 0.75), ("to_output_scale", 1), ("to_grad_input_scale", 0.5)],
)
def test_constraints_of_a_linear_1024_to_4096(constraint: str, tied: float) -> None:
    """In units of the output's own factor, as the reference implementation measures them."""
    scales = rules.linear(1024, 4096, 512, constraint)
    assert scales.output * 32 == pytest.approx(tied, abs=1e-6)
    assert scales.grad_input == scales.output
    assert scales.grad_weight == 512**-0.5


def test_an_unknown_constraint_lists_the_names() -> None:
    with pytest.raises(ValueError, match="constraint='mean': use one of gmean, hmean, amean"):
        rules.linear(1, 1, 1, "mean")


@given(st.floats(0.01, 100))
def test_residual_coefficients_keep_the_variance(tau: float) -> None:
    branch, skip = rules.residual(tau)
    assert branch**2 + skip**2 == pytest.approx(1)
    assert branch / skip == pytest.approx(tau)


@given(st.integers(1, 64), st.floats(0.1, 10))
def test_all_branches_weigh_the_same_and_together_alpha_squared(branches: int, alpha: float) -> None:
    shares, rest = [], 1.0
    for index in reversed(range(branches)):
        scales = rules.residual(rules.residual_tau(index, branches, alpha))
        shares.append(rest * scales.branch**2)
        rest *= scales.skip**2
    assert shares == pytest.approx([rest * alpha**2 / branches] * branches)


def test_a_branch_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="index=4: the branches are 0 to 3"):
        rules.residual_tau(4, 4)


def test_adam_learning_rates_of_a_width_256_depth_4_model() -> None:
    assert rules.adam_learning_rate("embedding", 256) == 0.0625
    assert rules.adam_learning_rate("hidden", 256, depth=4) == 0.03125
    assert rules.adam_learning_rate("hidden", 1024, depth=4) == 0.015625
    assert rules.adam_learning_rate("readout", 256) == 1.0
    assert rules.adam_learning_rate("norm", 256, depth=4) == 0.5
    with pytest.raises(ValueError, match="kind='conv'"):
        rules.adam_learning_rate("conv", 256)


def test_the_limits_of_interpolation() -> None:
    assert rules.interpolate(0, 2, 8) == pytest.approx(2)
    assert rules.interpolate(1, 2, 8) == pytest.approx(8)
    assert rules.interpolate(0.5, 2, 8) == pytest.approx(4)
    assert rules.embedding(256, 64) == 2
    assert rules.norm_weight(16) == 0.25
    assert math.isclose(rules.readout(256, 64, 100).output, 1 / 256)
