"""Are unit-scaled operations what they are defined as? Every value and gradient in float64, by an independent route.

Each case writes the definition down anew: torch's function, its output times alpha, each gradient times its beta, with
the factors worked out here from the published formulas, not taken from `fp8sim.unit_scaling.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from fp8sim.compare import NOTHING, Comparison, within
from fp8sim.unit_scaling import functional

TOLERANCE = 1e-12
"""Relative to the largest element: both sides are a few float64 operations."""

_Function = Callable[..., torch.Tensor]


class _Case(NamedTuple):
    """An operation, torch's, the shapes of the inputs, alpha, and the beta of each input."""

    ours: _Function
    definition: _Function
    shapes: tuple[tuple[int, ...], ...]
    alpha: float
    betas: tuple[float, ...]
    has_bias: bool = False  # the last input, which is added after alpha


# gelu: weight 1 / (1 + 1/(4 m^2)) between 2 and 1 / std(relu) for alpha, 2 and 1 / rms(relu') for beta.
_RELU_ALPHA = (2 / (1 - 1 / torch.pi)) ** 0.5
_GELU_ALPHA = 2**0.2 * (2 / (1 - 1 / torch.pi)) ** 0.4
_GELU_QUARTER_ALPHA = 2**0.8 * (2 / (1 - 1 / torch.pi)) ** 0.1
_GELU_QUARTER_BETA = 2**0.8 * 2**0.1

# tanh and sigmoid: integrals over the normal density.
_TANH = 1.5925374197228312
_SIGMOID_BETA = 4.722646085937974

_LABELS = torch.tensor([3, 0, 4, 4, 1, 2])
_IDS = torch.tensor([[0, 2, 2], [1, 0, 2]])
_TAU = 0.5
_CLASS_WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.5], dtype=torch.float64)


def _seeded(function: _Function) -> _Function:
    """`function` from a fixed state of torch's generator, which is put back afterwards."""

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*inputs)

    return call


def _convolution(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.conv1d(x, w, b, stride=2, padding=1, groups=2, constraint=None)


def _attention(function: _Function, **options: Any) -> _Function:
    return lambda q, k, v: function(q, k, v, **options)


def _residual(x: torch.Tensor) -> torch.Tensor:
    branch, skip = functional.residual_split(x, _TAU)
    return functional.residual_add(torch.sin(branch), skip, _TAU)


CASES = {
    "linear": _Case(functional.linear, F.linear, ((6, 16), (9, 16), (9,)), 1 / 4, (1 / 4, 6**-0.5, 6**-0.5), True),
    "linear untied": _Case(
        lambda x, w: functional.linear(x, w, constraint=None), F.linear, ((6, 16), (9, 16)), 1 / 4, (1 / 3, 6**-0.5)
    ),
    "linear_readout": _Case(functional.linear_readout, F.linear, ((6, 16), (9, 16)), 1 / 16, (1 / 3, 6**-0.5)),
    "matmul": _Case(functional.matmul, torch.matmul, ((5, 16), (16, 7)), 1 / 4, (1 / 4, 1 / 4)),
    "gelu": _Case(functional.gelu, F.gelu, ((50,),), _GELU_ALPHA, (_GELU_ALPHA,)),
    "gelu mult=1/4 untied": _Case(
        lambda x: functional.gelu(x, mult=0.25, constraint=None),
        lambda x: F.gelu(x / 4) * 4,
        ((50,),),
        _GELU_QUARTER_ALPHA,
        (_GELU_QUARTER_BETA,),
    ),
    "embedding": _Case(
        lambda w: functional.embedding(_IDS, w), lambda w: F.embedding(_IDS, w), ((4, 3),), 1.0, ((4 / 6) ** 0.5,)
    ),
    "rms_norm": _Case(
        lambda x, gain: functional.rms_norm(x, (7,), gain),
        lambda x, gain: F.rms_norm(x, (7,), gain, 1e-5),
        ((6, 7), (7,)),
        1.0,
        (1.0, 6**-0.5),
    ),
    "conv1d untied": _Case(
        _convolution,
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1, groups=2),
        ((2, 8, 10), (6, 4, 3), (6,)),
        12**-0.5,
        (4.5**-0.5, 10**-0.5, 10**-0.5),
        True,
    ),
    "silu": _Case(functional.silu, F.silu, ((50,),), _GELU_ALPHA, (_GELU_ALPHA,)),
    "silu mult=2 untied": _Case(
        lambda x: functional.silu(x, mult=2, constraint=None),
        lambda x: x * torch.sigmoid(2 * x),
        ((50,),),
        2 ** (1 / 17) * (2 / (1 - 1 / torch.pi)) ** (8 / 17),
        (2**0.2 * 2**0.4,),
    ),
    "silu_glu": _Case(functional.silu_glu, lambda x, g: x * F.silu(g), ((50,), (50,)), 2**0.75, (2**0.75, 2**0.75)),
    "relu": _Case(functional.relu, F.relu, ((50,),), _RELU_ALPHA, (_RELU_ALPHA,)),
    "relu_squared": _Case(
        lambda x: functional.relu_squared(x, constraint=None),
        lambda x: F.relu(x) ** 2,
        ((50,),),
        0.8**0.5,
        (0.5**0.5,),
    ),
    "tanh": _Case(functional.tanh, torch.tanh, ((50,),), _TANH, (_TANH,)),
    "sigmoid": _Case(
        lambda x: functional.sigmoid(x, constraint="to_grad_input_scale"),
        torch.sigmoid,
        ((50,),),
        _SIGMOID_BETA,
        (_SIGMOID_BETA,),
    ),
    "softmax mult=2 untied": _Case(
        lambda x: functional.softmax(x, 0, mult=2, constraint=None),
        lambda x: torch.softmax(2 * x, 0),
        ((8, 5),),
        8**0.75,
        (4**0.75,),
    ),
    "attention": _Case(
        _attention(functional.scaled_dot_product_attention, mult=4),
        _attention(F.scaled_dot_product_attention),
        ((2, 6, 16), (2, 8, 16), (2, 8, 9)),
        8**0.4,
        (8**0.4,) * 3,
    ),
    "attention causal": _Case(
        _attention(functional.scaled_dot_product_attention, is_causal=True, mult=4),
        _attention(F.scaled_dot_product_attention, is_causal=True),
        ((2, 8, 16),) * 3,
        (8 / math.log(8)) ** 0.4,
        ((8 / math.log(8)) ** 0.4,) * 3,
    ),
    "dropout": _Case(
        _seeded(lambda x: functional.dropout(x, 0.36)), _seeded(lambda x: F.dropout(x, 0.36)), ((50,),), 0.8, (0.8,)
    ),
    "layer_norm": _Case(
        lambda x, gain, bias: functional.layer_norm(x, (7,), gain, bias),
        lambda x, gain, bias: F.layer_norm(x, (7,), gain, bias),
        ((6, 7), (7,), (7,)),
        1.0,
        (1.0, 6**-0.5, 6**-0.5),
    ),
    "add": _Case(functional.add, torch.add, ((6, 7), (6, 7)), 0.5**0.5, (0.5**0.5, 0.5**0.5)),
    "add of a row": _Case(functional.add, torch.add, ((6, 7), (7,)), 0.5**0.5, (0.5**0.5, 6**-0.5)),
    "residual": _Case(_residual, lambda x: (_TAU * torch.sin(x) + x) / (1 + _TAU**2) ** 0.5, ((30,),), 1.0, (1.0,)),
    "cross_entropy": _Case(
        lambda x: functional.cross_entropy(x, _LABELS),
        lambda x: F.cross_entropy(x, _LABELS, reduction="sum"),
        ((6, 5),),
        1 / 6,
        (5 / 2,),
    ),
    "cross_entropy of weighted, smoothed and ignored classes": _Case(
        lambda x: functional.cross_entropy(x, _LABELS, _CLASS_WEIGHTS, ignore_index=4, label_smoothing=0.2),
        lambda x: F.cross_entropy(x, _LABELS, _CLASS_WEIGHTS, ignore_index=4, label_smoothing=0.2, reduction="sum"),
        ((6, 5),),
        1 / 4.5,
        (5 / 2 / 0.8,),
    ),
    "mse_loss": _Case(
        functional.mse_loss,
        lambda x, y: F.mse_loss(x, y, reduction="sum"),
        ((6, 7), (6, 7)),
        1 / 42,
        (8**-0.5, 8**-0.5),
    ),
}
"""The operations, by name. A bias is added after alpha, so it enters the definition divided by it."""


def check_definitions(seed: int = 0) -> Comparison:
    """Compare the output and every gradient of every case with its definition."""
    total = NOTHING
    for name, case in CASES.items():
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in case.shapes]
        ours, expected = _results(case.ours, inputs, seed), _expected(case, inputs, seed)
        for what, actual, wanted in zip(("output", *map(str, range(9))), ours, expected, strict=False):
            label = f"{name} {what}" if what == "output" else f"{name} gradient of input {what}"
            bound = torch.full_like(wanted, TOLERANCE * float(wanted.abs().max()))
            total += within(label, actual, wanted, bound)
    return total


def _expected(case: _Case, inputs: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    scaled = [*inputs[:-1], inputs[-1] / case.alpha] if case.has_bias else inputs
    output, *gradients = _results(case.definition, scaled, seed)
    return [output * case.alpha, *(g * beta for g, beta in zip(gradients, case.betas, strict=True))]


def _results(function: _Function, inputs: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """The output, then the gradient of every input (zeros where none arrives) for a fixed output gradient."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = (
        torch.randn(output.shape, generator=generator, dtype=output.dtype) if output.ndim else torch.ones_like(output)
    )
    if output.requires_grad:
        output.backward(grad)
    return [output.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]
