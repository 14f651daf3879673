"""The unit-scaling library gives our factors, outputs and gradients, but for differences written down here.

Skipped where it is not installed: `pip install --no-deps unit-scaling docstring-parser einops`.
"""

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from unit_scaled_ops import assert_same, normal, results

from fp8sim import functional
from fp8sim.unit_scaling import rules

NEEDED = ("unit_scaling", "docstring_parser", "einops")

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED),
    reason="needs pip install --no-deps unit-scaling docstring-parser einops",
)

CONSTRAINTS = [None, "gmean", "hmean", "amean", "to_output_scale", "to_grad_input_scale"]
MULTS = [0.25, 1.0, 4.0]

Function = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Its functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import unit_scaling.functional
    return unit_scaling.functional


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_activations(theirs: Any, name: str, mult: float, constraint: str | None) -> None:
    options = {"mult": mult, "constraint": constraint}
    ours, its = getattr(functional, name), getattr(theirs, name)
    assert_same(lambda x: ours(x, **options), lambda x: its(x, **options), normal(40))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("mult", MULTS)
def test_softmax(theirs: Any, mult: float, constraint: str | None) -> None:
    options = {"mult": mult, "constraint": constraint}
    assert_same(
        lambda x: functional.softmax(x, 1, **options), lambda x: theirs.softmax(x, dim=1, **options), normal(4, 9, 2)
    )


@pytest.mark.parametrize("mult", MULTS)
def test_silu_glu(theirs: Any, mult: float) -> None:
    assert_same(
        lambda x, g: functional.silu_glu(x, g, mult=mult),
        lambda x, g: theirs.silu_glu(x, g, mult=mult),
        normal(40),
        normal(40, seed=1),
    )


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_linear(theirs: Any, constraint: str | None) -> None:
    """Without a bias, which theirs multiplies by the factor of the output."""
    for powers in ((0.5, 0.5, 0.5), (1.0, 0.25, 0.0)):
        assert_same(
            lambda x, w, p=powers: functional.linear(x, w, constraint=constraint, scale_power=p),
            lambda x, w, p=powers: theirs.linear(x, w, None, constraint, p),
            normal(2, 3, 7),
            normal(5, 7, seed=1),
        )


def test_linear_readout(theirs: Any) -> None:
    assert_same(
        functional.linear_readout, lambda x, w: theirs.linear_readout(x, w, None), normal(2, 3, 7), normal(5, 7, seed=1)
    )


@pytest.mark.parametrize("constraint", [None, "gmean", "to_output_scale", "to_left_grad_scale", "to_right_grad_scale"])
def test_matmul_and_add(theirs: Any, constraint: str | None) -> None:
    """Operands of the sum's shape; a broadcast one is never tied here."""
    assert_same(
        lambda a, b: functional.matmul(a, b, constraint=constraint),
        lambda a, b: theirs.matmul(a, b, constraint),
        normal(2, 3, 7),
        normal(2, 7, 5, seed=1),
    )
    assert_same(
        lambda a, b: functional.add(a, b, constraint=constraint),
        lambda a, b: theirs.add(a, b, constraint),
        normal(3, 7),
        normal(3, 7, seed=1),
    )


@pytest.mark.parametrize(("shape", "other"), [((6, 7), (7,)), ((6, 7), (6, 1)), ((4, 5), (1,))])
def test_add_of_a_broadcast_operand_untied(theirs: Any, shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert_same(
        lambda a, b: functional.add(a, b, constraint=None),
        lambda a, b: theirs.add(a, b, None),
        normal(*shape),
        normal(*other, seed=1),
    )
    assert_same(lambda a: functional.add(a, 3), lambda a: theirs.add(a, 3), normal(*shape))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (3, 2, 2, 2)])
def test_conv1d(theirs: Any, constraint: str | None, stride: int, padding: int, dilation: int, groups: int) -> None:
    options = (stride, padding, dilation, groups)
    assert_same(
        lambda x, w: functional.conv1d(x, w, None, *options, constraint=constraint),
        lambda x, w: theirs.conv1d(x, w, None, *options, constraint=constraint),
        normal(2, 4, 17),
        normal(6, 4 // groups, 3, seed=1),
    )


def test_norms_and_embedding(theirs: Any) -> None:
    x, w, b = normal(2, 3, 4, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)
    assert_same(
        lambda x, w, b: functional.layer_norm(x, (4, 5), w, b),
        lambda x, w, b: theirs.layer_norm(x, (4, 5), w, b),
        x,
        w,
        b,
    )
    ours = results(lambda x, w: functional.rms_norm(x, (4, 5), w), x, w)
    its = results(lambda x, w: theirs.rms_norm(x, (4, 5), w), x, w)
    torch.testing.assert_close(ours, its, rtol=1e-6, atol=1e-6)  # theirs takes the root in float32
    ids = torch.tensor([[0, 3, 3], [1, 0, 3]])
    assert_same(lambda w: functional.embedding(ids, w), lambda w: theirs.embedding(ids, w), normal(4, 3))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout(theirs: Any, p: float) -> None:
    def seeded(function: Function) -> Function:
        def call(x: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(0)
            return function(x, p)

        return call

    assert_same(seeded(functional.dropout), seeded(theirs.dropout), normal(40))


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_residual(theirs: Any, tau: float) -> None:
    assert_same(
        lambda x: functional.residual_apply(torch.sin, x, tau),
        lambda x: theirs.residual_apply(torch.sin, x, tau),
        normal(40),
    )
    split, its = functional.residual_split(normal(3), tau), theirs.residual_split(normal(3), tau)
    for ours, other in itertools.product(split, its):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mult", MULTS)
def test_attention(theirs: Any, mult: float, is_causal: bool) -> None:
    """For three keys and more, and values as wide as the keys: theirs divides by the width of the values."""
    for length in (3, 9):
        options = {"mult": mult, "is_causal": is_causal}
        assert_same(
            lambda q, k, v, o=options: functional.scaled_dot_product_attention(q, k, v, **o),
            lambda q, k, v, o=options: theirs.scaled_dot_product_attention(q, k, v, **o),
            *(normal(2, length, 4, seed=i) for i in range(3)),
        )


@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses(theirs: Any, mult: float, reduction: str) -> None:
    """Logits of one and two dimensions, no row ignored."""
    for shape, target in (((6, 5), torch.arange(6) % 5), ((5,), torch.tensor(2))):
        assert_same(
            lambda x, t=target: functional.cross_entropy(x, t, mult=mult, reduction=reduction),
            lambda x, t=target: theirs.cross_entropy(x, t, mult=mult, reduction=reduction),
            normal(*shape),
        )
    assert_same(
        lambda x, y: functional.mse_loss(x, y, reduction=reduction),
        lambda x, y: theirs.mse_loss(x, y, reduction=reduction),
        normal(6, 5),
        normal(6, 5, seed=1),
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_the_residual_rule_of_a_transformer(theirs: Any, alpha: float, ratio: float) -> None:
    from unit_scaling import transformer_residual_scaling_rule

    rule = transformer_residual_scaling_rule(residual_mult=alpha, residual_attn_ratio=ratio)
    for index in range(12):
        ours = rules.transformer_residual_tau(index, 12, alpha_res=alpha, alpha_res_attn_ratio=ratio)
        assert ours == pytest.approx(rule(index, 12), rel=1e-12)
