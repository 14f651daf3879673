"""Second derivatives: right where an operation has them, and an error wherever it has none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fp8sim
from fp8sim import functional
from fp8sim.ops import activations, cross_entropy, rms_norm
from fp8sim.ops.encoded import Encoded
from fp8sim.simulate.scale import scale_bwd, scale_fwd


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


X, Y = normal(2, 4, 6), normal(2, 4, 6, seed=1)
CLASSES = torch.tensor([1, 0, 5, 2])

ONCE: dict[str, Callable[[], Tensor]] = {
    "ScaleForward": lambda: scale_fwd(X, 2.0),
    "ScaleBackward": lambda: scale_bwd(X, 2.0),
    "Activation": lambda: functional.gelu(X),
    "SiluGlu": lambda: functional.silu_glu(X, Y),
    "Softmax": lambda: functional.softmax(X, -1) * Y.detach(),
    "RootSoftmax": lambda: functional.scaled_dot_product_attention(X, X, Y, root_softmax=True, recipe="fp32"),
    "RmsNorm": lambda: functional.rms_norm(X, (6,)),
    "Linear": lambda: functional.linear(X, Y[0]),
    "Matmul": lambda: functional.matmul(X, Y.mT),
    "Add": lambda: functional.add(X, Y),
    "Split": lambda: sum(functional.residual_split(X, 0.7), torch.zeros(())),
    "Join": lambda: functional.residual_add(X, Y, 0.7),
    "cast_gradient": lambda: fp8sim.cast(X, "e4m3", grad_format="e5m2"),
    "Attention": lambda: fp8sim.scaled_dot_product_attention(X.float(), X.float(), Y.float(), plan="bf16"),
    "Gelu": lambda: activations.gelu_encode(X.float(), "e4m3").numbers,
    "SiluGlu of codes": lambda: activations.silu_glu_encode(X.float(), None, "e4m3").numbers,
    "RmsNorm of codes": lambda: rms_norm.rms_norm_encode(X.float(), None, "e4m3").numbers,
    "CrossEntropy": lambda: cross_entropy.cross_entropy(X[0].float(), CLASSES, reduction="sum"),
}
"""Operations that are differentiated once, with the name that the error has."""


@pytest.mark.parametrize("name", ONCE)
def test_a_second_derivative_is_refused_even_of_a_sum(name: str) -> None:
    """The gradient of a sum is a constant, which does not look as if it could be differentiated."""
    with pytest.raises(RuntimeError, match=f"gradient of the gradient of {name.split()[0]}, which can be"):
        torch.autograd.grad(ONCE[name]().nansum(), X, create_graph=True)


@pytest.mark.parametrize("name", ONCE)
def test_a_first_derivative_has_no_graph(name: str) -> None:
    (grad,) = torch.autograd.grad(ONCE[name]().nansum(), X)
    assert not grad.requires_grad


TWICE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: functional.add(x, y, recipe="fp32").sin(),
    "residual": lambda x, y: functional.residual_apply(torch.sin, x, recipe="fp32") * y,
    "gelu": lambda x, y: functional.gelu(x, mult=2.0, recipe="fp32") * y,
    "softmax": lambda x, y: functional.softmax(x, -1, mult=2.0, recipe="fp32") * y,
    "layer_norm": lambda x, y: functional.layer_norm(x, (6,), y[0, 0], recipe="fp32"),
    "cross_entropy": lambda x, y: functional.cross_entropy(x[0], CLASSES, z_loss=0.1, recipe="fp32") * y,
    "mse_loss": lambda x, y: functional.mse_loss(x, y, recipe="fp32"),
}
"""Without factors these are torch's own, or made of them."""


@pytest.mark.parametrize("name", TWICE)
def test_without_factors_a_second_derivative_is_torchs(name: str) -> None:
    assert torch.autograd.gradgradcheck(TWICE[name], (X, Y), fast_mode=True)


def curvature(y: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of squares of the gradient of sin(y)."""
    (grad,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), x)[0]


def test_straight_through_a_cast_and_a_mask() -> None:
    """y = x + c of a cast and y = f x of a mask have the second derivatives of these."""
    y = fp8sim.cast(X, "e4m3")
    torch.testing.assert_close(curvature(y, X), -2 * y.cos() * y.sin())
    numbers = X.detach().float().requires_grad_()
    y = Encoded(fp8sim.encode(numbers, "e4m3"), None, None, numbers).decoded("e4m3")
    torch.testing.assert_close(curvature(y, numbers), -2 * y.cos() * y.sin())
    y = functional.dropout(X, 0.5)
    factor = y.detach() / X.detach()
    torch.testing.assert_close(curvature(y, X), -2 * factor**3 * y.cos() * y.sin())
