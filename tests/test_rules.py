"""The factors of unit scaling against values worked out from the published formulas."""

import math
import statistics

import pytest
import unit_factors
from hypothesis import given
from hypothesis import strategies as st

from fp8sim.unit_scaling import rules

sizes = st.integers(1, 10_000)
alphas = st.floats(0.1, 10)

CAUSAL_512 = {0.25: 9.05456, 1: 8.98208, 4: 7.95795}


@pytest.mark.parametrize(
    ("mult", "alpha", "gelu_beta", "silu_beta", "softmax_alpha", "softmax_beta", "full"),
    [
        (0.25, 1.938958, 1.866066, 1.959639, 970.8314, 3842.1345, 22.61020),
        (1, 1.766783, 1.515717, 1.681793, 512.0, 512.0, 22.35445),
        (4, 1.716947, 1.421774, 1.443341, 64.0, 27.8576, 18.83435),
    ],
)
def test_golden_values(
    mult: float,
    alpha: float,
    gelu_beta: float,
    silu_beta: float,
    softmax_alpha: float,
    softmax_beta: float,
    full: float,
) -> None:
    """Softmax over 1024 elements; attention over 512 keys of 64 elements, by muP's 1/D."""
    golden = lambda *values: pytest.approx(values, rel=1e-6)  # noqa: E731
    assert rules.gelu(mult, None) == golden(alpha, gelu_beta)
    assert rules.silu(mult, None) == golden(alpha, silu_beta)
    assert rules.gelu(mult) == rules.silu(mult) == golden(alpha, alpha)
    assert rules.silu_glu(mult) == pytest.approx(silu_beta, rel=1e-6)
    assert rules.softmax(1024, mult, None) == golden(softmax_alpha, softmax_beta)
    assert rules.attention(512, mult / 8) == pytest.approx(full, rel=1e-6)
    assert rules.attention(512, mult / 8, causal=True) == pytest.approx(CAUSAL_512[mult], rel=1e-6)


@pytest.mark.parametrize(("classes", "beta"), [(256, 16.031342), (32000, 178.8882)])
def test_cross_entropy(classes: int, beta: float) -> None:
    assert rules.cross_entropy(classes) == pytest.approx(beta, rel=1e-6)
    assert rules.cross_entropy(classes, 0.2) == pytest.approx(beta / 0.8, rel=1e-6)


@pytest.mark.parametrize("name", unit_factors.ACTIVATIONS)
def test_activations_without_a_published_rule_have_the_integrals_as_factors(name: str) -> None:
    factors = unit_factors.factors(*unit_factors.ACTIVATIONS[name])
    assert getattr(rules, name)(None) == pytest.approx(factors, rel=1e-12)
    assert getattr(rules, name)() == (getattr(rules, name)(None)[0],) * 2


@given(sizes, sizes, sizes)
def test_linear(fan_in: int, fan_out: int, tokens: int) -> None:
    output, grad_input, grad_weight = rules.linear(fan_in, fan_out, tokens, constraint=None)
    assert output**2 * fan_in == pytest.approx(1)
    assert grad_input**2 * fan_out == pytest.approx(1)
    assert grad_weight**2 * tokens == pytest.approx(1)
    assert rules.linear(fan_in, fan_out, tokens) == (output, output, grad_weight)
    assert rules.linear(fan_in, fan_out, tokens, None, (1, 0.5, 0.5)) == pytest.approx(
        rules.readout(fan_in, fan_out, tokens)
    )


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


@pytest.mark.parametrize(
    ("constraint", "tied"),
    [
        (None, (1 / 32, 1 / 16, 1 / 8)),
        ("to_output_scale", (1 / 32,) * 3),
        ("to_left_grad_scale", (1 / 16,) * 3),
        ("to_right_grad_scale", (1 / 8,) * 3),
        ("gmean", (1 / 16,) * 3),
        ("hmean", (3 / 56,) * 3),
        ("amean", (7 / 96,) * 3),
    ],
)
def test_constraints_of_a_matmul_64_1024_256(constraint: str | None, tied: tuple[float, ...]) -> None:
    assert rules.matmul(64, 1024, 256, constraint) == pytest.approx(tied)


@given(st.sampled_from(sorted(rules.CONSTRAINTS)), st.tuples(*[st.floats(1e-3, 1e3)] * 3))
def test_every_constraint_ties_all_factors_to_a_value_between_them(name: str, scales: tuple[float, ...]) -> None:
    scales = scales[:2] if name == "to_grad_input_scale" else scales
    (tied,) = set(rules.constrain(name, *scales))
    assert min(scales) * (1 - 1e-9) <= tied <= max(scales) * (1 + 1e-9)
    assert rules.constrain(None, *scales) == scales


def test_conv1d() -> None:
    """A kernel of one element is a linear layer; groups and stride divide what an input reaches."""
    assert rules.conv1d(64, 128, 1, 512, constraint=None) == pytest.approx(rules.linear(64, 128, 512, None))
    scales = rules.conv1d(64, 128, 3, 512, stride=2, groups=4, constraint=None)
    assert scales == pytest.approx(((16 * 3) ** -0.5, (2 * 4 / (128 * 3)) ** 0.5, 512**-0.5))
    assert rules.conv1d(64, 128, 3, 512).grad_input == (64 * 3) ** -0.5


def test_add_never_ties_a_broadcast_operand() -> None:
    half = 0.5**0.5
    assert rules.add() == pytest.approx((half, half, half))
    assert rules.add(1, 1, None) == pytest.approx((half, 1, 1))
    assert rules.add(1, 512) == pytest.approx((half, half, 512**-0.5))
    assert rules.add(512, 1) == pytest.approx((half, 512**-0.5, half))
    assert rules.add(4, 9, "gmean") == pytest.approx((half, 1 / 2, 1 / 3))
    assert rules.add(1, 512, is_shift=True) == pytest.approx((1, 1, 512**-0.5))


def test_attention_over_few_keys() -> None:
    """One key gives its value, whatever the mask; from three keys on the causal rule is the published one."""
    for std in (0.01, 1.0, 100.0):
        assert rules.attention(1, std) == rules.attention(1, std, causal=True) == 1
    assert rules.attention(2, 1e-9, causal=True) == pytest.approx(2**0.5)
    assert rules.attention(3, 1e-9, causal=True) == pytest.approx((3 / math.log(3)) ** 0.5)
    factors = [rules.attention(n, 1.0, causal=True) for n in range(1, 100)]
    assert factors == sorted(factors)
    assert rules.attention(0, 1.0) == rules.softmax(0)[0] == 1
    assert rules.attention(512, 1.0, root_softmax=True) == 1
    assert rules.attention(512, 1.0, dropout_p=0.36) == pytest.approx(0.8 * rules.attention(512, 1.0))


def test_small_rules() -> None:
    assert rules.embedding(256, 64) == 2
    assert rules.norm_weight(16) == 0.25
    assert rules.readout(256, 64, 100) == pytest.approx((1 / 256, 1 / 8, 1 / 10))
    assert rules.dropout(0.36) == pytest.approx(0.8)
    assert rules.mse_loss() == pytest.approx(8**-0.5)
    assert [rules.interpolate(a, 2, 8) for a in (0, 0.5, 1)] == pytest.approx([2, 4, 8])


@given(st.floats(0.01, 100))
def test_residual_coefficients_keep_the_variance(tau: float) -> None:
    branch, skip = rules.residual(tau)
    assert branch**2 + skip**2 == pytest.approx(1)
    assert branch / skip == pytest.approx(tau)


@given(st.floats(0, 1))
def test_a_share_is_that_of_the_variance(tau: float) -> None:
    branch, skip = rules.residual(tau, "share")
    assert branch**2 == pytest.approx(tau)
    assert skip**2 == pytest.approx(1 - tau)
    if tau < 0.99:
        assert rules.residual(math.sqrt(tau / (1 - tau))) == pytest.approx((branch, skip))


def variance_shares(taus: list[float]) -> list[float]:
    """Of the input, then of each branch, in the variance of the last sum."""
    shares = [1.0]
    for tau in taus:
        branch, skip = rules.residual(tau)
        shares = [*(share * skip**2 for share in shares), branch**2]
    return shares


@given(st.integers(1, 64), alphas)
def test_all_branches_weigh_the_same_and_together_alpha_squared(branches: int, alpha: float) -> None:
    first, *rest = variance_shares([rules.residual_tau(i, branches, alpha) for i in range(branches)])
    assert rest == pytest.approx([first * alpha**2 / branches] * branches)


def transformer_taus(branches: int, **options: object) -> list[float]:
    return [rules.transformer_residual_tau(i, branches, **options) for i in range(branches)]  # type: ignore[arg-type]


def test_golden_taus_of_a_transformer_of_four_blocks() -> None:
    taus = transformer_taus(8)
    assert taus == pytest.approx([0.5, 0.4472, 0.4082, 0.3780, 0.3536, 0.3333, 0.3162, 0.3015], abs=5e-5)
    assert variance_shares(taus) == pytest.approx([1 / 3, *[1 / 12] * 8])
    taus = transformer_taus(8, alpha_res=0.5, alpha_res_attn_ratio=0.25)
    assert taus == pytest.approx([0.0857, 0.3417, 0.0808, 0.3223, 0.0767, 0.3059, 0.0731, 0.2917], abs=5e-5)
    assert variance_shares(taus) == pytest.approx([0.6667, *[0.0049, 0.0784] * 4], abs=5e-5)


@given(st.integers(1, 40), alphas, alphas)
def test_embedding_attention_and_mlps_share_the_variance_as_the_alphas_say(
    blocks: int, alpha_res: float, ratio: float
) -> None:
    taus = transformer_taus(2 * blocks, alpha_res=alpha_res, alpha_res_attn_ratio=ratio)
    first, *rest = variance_shares(taus)
    attention, mlp = sum(rest[::2]) / first, sum(rest[1::2]) / first
    assert attention / mlp == pytest.approx(ratio**2)
    assert attention + mlp == pytest.approx(2 * alpha_res**2)


def test_depth_in_branches_leaves_the_embedding_a_half() -> None:
    taus = transformer_taus(8, depth="branches")
    assert variance_shares(taus) == pytest.approx([1 / 2, *[1 / 16] * 8])
    assert taus == pytest.approx([rules.residual_tau(i, 8) for i in range(8)])
    assert transformer_taus(8, depth="branches", post_norm=True) == pytest.approx([8**-0.5] * 8)
    assert transformer_taus(8, post_norm=True, alpha_res_attn_ratio=3.0) == pytest.approx(
        [3 * 5**-0.5 / 2, 5**-0.5 / 2] * 4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.linear(1, 1, 1, "mean"), "constraint='mean': use one of gmean, hmean, amean"),
        (
            lambda: rules.gelu(1, "to_left_grad_scale"),
            "ties 3 factors, and this operation has 2: use 'to_output_scale'",
        ),
        (lambda: rules.matmul(1, 1, 1, "to_grad_input_scale"), "ties 2 factors, and this operation has 3"),
        (lambda: rules.silu(0), "mult=0: expected a positive finite number"),
        (lambda: rules.softmax(4, math.nan), "mult=nan: expected a positive finite number"),
        (lambda: rules.dropout(1.5), "p=1.5: a probability is 0 to 1"),
        (lambda: rules.cross_entropy(1), "classes=1: cross-entropy of an input"),
        (lambda: rules.cross_entropy(9, 1.0), "label_smoothing=1.0: at least 0 and below 1"),
        (lambda: rules.residual(-1), "tau=-1: as a ratio it is a finite number, 0 or more"),
        (lambda: rules.residual(1.5, "share"), "tau=1.5: as a share it is 0 to 1"),
        (lambda: rules.residual(1, "squared"), "convention='squared': use 'ratio' or 'share'"),
        (lambda: rules.residual_tau(4, 4), "index=4: the branches are 0 to 3"),
        (lambda: rules.transformer_residual_tau(8, 8), "index=8: the branches are 0 to 7"),
        (lambda: rules.transformer_residual_tau(0, 3), "branches=3: a transformer has two per block"),
        (lambda: rules.transformer_residual_tau(0, 2, depth="layers"), "depth='layers': use one of blocks, branches"),
        (lambda: rules.transformer_residual_tau(0, 2, alpha_res=0), "alpha_res=0.*both are positive"),
        (lambda: rules.transformer_residual_tau(0, 2, alpha_res=math.inf), "alpha_res=inf.*both are positive and fin"),
        (lambda: rules.residual(math.inf), "tau=inf: as a ratio it is a finite number"),
        (lambda: rules.residual_tau(0, 4, math.inf), "alpha=inf: must be positive and finite"),
        (lambda: rules.attention(4, 1.0, dropout_p=1.5), "dropout_p=1.5: a probability is 0 to 1"),
        (lambda: rules.linear(0, 1, 1), "in_features=0: must be at least 1"),
        (lambda: rules.linear(1, 1, 1, scale_power=(0.5, math.nan, 0.5)), "scale_power=nan: expected a finite number"),
        (lambda: rules.readout(1, 1, 0), "batch_tokens=0: must be at least 1"),
        (lambda: rules.matmul(1, 0, 1), "k=0: must be at least 1"),
        (lambda: rules.conv1d(4, 4, 3, 9, groups=0), "groups=0: must be at least 1"),
        (lambda: rules.conv1d(4, 6, 3, 9, groups=4), "groups=4: must divide in_channels=4 and out_channels=6"),
        (lambda: rules.add(0), "left_repeats=0: must be at least 1"),
        (lambda: rules.embedding(5, 0), "lookups=0: must be at least 1"),
        (lambda: rules.norm_weight(0), "rows=0: must be at least 1"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_the_integrals_are_those_of_samples() -> None:
    """The script's quadrature on what is known: moments of the normal distribution."""
    assert unit_factors.expectation(lambda x: x**4) == pytest.approx(3, rel=1e-13)
    assert unit_factors.expectation(abs) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-13)
    assert statistics.NormalDist().cdf(1) == pytest.approx(unit_factors.expectation(lambda x: x <= 1.0), rel=1e-12)
