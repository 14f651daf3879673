"""Do unit-scaled operations keep unit scale? Standard deviations on unit-normal inputs against known values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from fp8sim.compare import NOTHING, Comparison
from fp8sim.unit_scaling import functional

TOLERANCE = 0.05
"""Relative."""

Measured = dict[str, torch.Tensor]
_Case = Callable[[torch.Generator], Measured]


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, requires_grad=True)


def _grad(x: torch.Tensor) -> torch.Tensor:
    """The gradient of x, or zeros if none reached it."""
    return torch.zeros_like(x) if x.grad is None else x.grad


def _linear(g: torch.Generator) -> Measured:
    return _matrix(g, functional.linear)


def _readout(g: torch.Generator) -> Measured:
    return _matrix(g, functional.linear_readout)


def _matrix(g: torch.Generator, function: Callable[..., torch.Tensor]) -> Measured:
    """1024 -> 4096 on 512 tokens, as measured in the reference values."""
    x, w = _normal(g, 512, 1024), _normal(g, 4096, 1024)
    y = function(x, w)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_weight": _grad(w)}


def _gelu(mult: float, constraint: str | None = "to_output_scale") -> _Case:
    return lambda g: _elementwise(g, lambda x: functional.gelu(x, mult, constraint=constraint))


def _elementwise(g: torch.Generator, function: Callable[[torch.Tensor], torch.Tensor]) -> Measured:
    x = _normal(g, 1024, 512)
    y = function(x)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x)}


def _embedding(g: torch.Generator) -> Measured:
    w = _normal(g, 256, 64)
    y = functional.embedding(torch.randint(0, 256, (8192,), generator=g), w)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_weight": _grad(w)}


def _rms_norm(g: torch.Generator) -> Measured:
    x = _normal(g, 128, 8192)
    gain = torch.ones(8192, requires_grad=True)
    y = functional.rms_norm(x, gain)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_weight": _grad(gain)}


def _residual(g: torch.Generator) -> Measured:
    """tau = 1/2; the branch and its gradient are independent of the skip."""
    x, branch = _normal(g, 512, 512), _normal(g, 512, 512)
    into, skip = functional.residual_split(x, 0.5)
    y = functional.residual_add(branch, skip, 0.5)
    gradients = torch.randn(2, *x.shape, generator=g)
    torch.autograd.backward([y, into], [gradients[0], gradients[1]])
    return {"output": y, "grad_branch": _grad(branch), "grad_input": _grad(x)}


def _cross_entropy(g: torch.Generator) -> Measured:
    logits = _normal(g, 2048, 256)
    functional.cross_entropy(logits, torch.randint(0, 256, (2048,), generator=g)).backward()
    return {"grad_input": _grad(logits)}


CASES: Mapping[str, tuple[_Case, Mapping[str, float]]] = MappingProxyType(
    {
        # What the published rules give, measured with the reference implementation on the same shapes; the residual
        # connection by formula. Tied factors (to_output_scale) leave grad_input at sqrt(out / in) for linear, and
        # at 1.19 for gelu.
        "linear": (_linear, {"output": 1.0, "grad_input": 2.0, "grad_weight": 1.0}),
        "linear_readout": (_readout, {"output": 1 / 32, "grad_input": 1.0, "grad_weight": 1.0}),
        "gelu": (_gelu(1.0), {"output": 1.04, "grad_input": 1.19}),
        "gelu mult=1/4": (_gelu(0.25), {"output": 1.0, "grad_input": 1.03}),
        "gelu mult=4": (_gelu(4.0), {"output": 1.01, "grad_input": 1.23}),
        "gelu untied": (_gelu(1.0, None), {"output": 1.04, "grad_input": 1.02}),
        "embedding": (_embedding, {"output": 1.0, "grad_weight": 1.0}),
        "rms_norm": (_rms_norm, {"output": 1.0, "grad_input": 1.0, "grad_weight": 0.99}),
        "residual": (_residual, {"output": 1.0, "grad_branch": 1.0, "grad_input": 1.0}),
        "cross_entropy": (_cross_entropy, {"grad_input": 1.003}),
    }
)
"""Operation: how to run it, and the standard deviation of each result."""


def check_unit_scale(seed: int = 0) -> Comparison:
    """Compare the standard deviations of outputs and gradients of every case with the known values."""
    total = NOTHING
    for name, (case, expected) in CASES.items():
        measured = case(torch.Generator().manual_seed(seed))
        for what, std in expected.items():
            total += _check(f"{name} {what}", measured[what].detach(), std)
    return total


def _check(what: str, tensor: torch.Tensor, expected: float) -> Comparison:
    std = float(tensor.double().std())
    wrong = not math.isfinite(std) or abs(std / expected - 1) > TOLERANCE
    return Comparison(1, int(wrong), f"{what}: std is {std:.3f}, expected {expected:.3f}" if wrong else "")


OPERATIONS = len({name.split()[0] for name in CASES})
"""How many operations the cases cover."""
