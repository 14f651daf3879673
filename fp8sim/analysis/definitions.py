"""Are unit-scaled operations what they are defined as? Every value and gradient in float64, by an independent route.

Each case writes the definition down anew: torch's function, its output times alpha, each gradient times its beta, with
the factors worked out here from the published formulas, not taken from `fp8sim.unit_scaling.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


# gelu: weight 1 / (1 + 1/(4 m^2)) between 2 and 1 / std(relu) for alpha, 2 and 1 / rms(relu') for beta.
_GELU_ALPHA = 2**0.2 * (2 / (1 - 1 / torch.pi)) ** 0.4
_GELU_QUARTER_ALPHA = 2**0.8 * (2 / (1 - 1 / torch.pi)) ** 0.1
_GELU_QUARTER_BETA = 2**0.8 * 2**0.1

_LABELS = torch.tensor([3, 0, 4, 4, 1, 2])
_IDS = torch.tensor([[0, 2, 2], [1, 0, 2]])
_TAU = 0.5


def _residual(x: torch.Tensor) -> torch.Tensor:
    branch, skip = functional.residual_split(x, _TAU)
    return functional.residual_add(torch.sin(branch), skip, _TAU)


CASES = {
    "linear": _Case(functional.linear, F.linear, ((6, 16), (9, 16), (9,)), 1 / 4, (1 / 4, 6**-0.5, 6**-0.5)),
    "linear untied": _Case(
        lambda x, w: functional.linear(x, w, constraint=None), F.linear, ((6, 16), (9, 16)), 1 / 4, (1 / 3, 6**-0.5)
    ),
    "linear_readout": _Case(functional.linear_readout, F.linear, ((6, 16), (9, 16)), 1 / 16, (1 / 3, 6**-0.5)),
    "matmul": _Case(functional.matmul, torch.matmul, ((5, 16), (16, 7)), 1 / 4, (1 / 4, 1 / 4)),
    "gelu": _Case(functional.gelu, F.gelu, ((50,),), _GELU_ALPHA, (_GELU_ALPHA,)),
    "gelu mult=1/4 untied": _Case(
        lambda x: functional.gelu(x, 0.25, constraint=None),
        lambda x: F.gelu(x / 4) * 4,
        ((50,),),
        _GELU_QUARTER_ALPHA,
        (_GELU_QUARTER_BETA,),
    ),
    "embedding": _Case(
        lambda w: functional.embedding(_IDS, w), lambda w: F.embedding(_IDS, w), ((4, 3),), 1.0, ((4 / 6) ** 0.5,)
    ),
    "rms_norm": _Case(
        functional.rms_norm, lambda x, gain: F.rms_norm(x, (7,), gain, 1e-5), ((6, 7), (7,)), 1.0, (1.0, 6**-0.5)
    ),
    "residual": _Case(_residual, lambda x: (_TAU * torch.sin(x) + x) / (1 + _TAU**2) ** 0.5, ((30,),), 1.0, (1.0,)),
    "cross_entropy": _Case(
        lambda x: functional.cross_entropy(x, _LABELS),
        lambda x: F.cross_entropy(x, _LABELS, reduction="sum"),
        ((6, 5),),
        1 / 6,
        (5 / 2,),
    ),
}
"""The operations, by name. A linear layer's bias is added after alpha, so it enters the definition divided by it."""


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
    bias_is_third = len(inputs) == 3
    scaled = [*inputs[:2], inputs[2] / case.alpha] if bias_is_third else inputs
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
