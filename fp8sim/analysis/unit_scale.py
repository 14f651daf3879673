"""Do unit-scaled operations keep unit scale? Standard deviations on unit-normal inputs against known values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

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


def _activation(function: Callable[..., torch.Tensor], **options: Any) -> _Case:
    return lambda g: _elementwise(g, lambda x: function(x, **options))


def _elementwise(g: torch.Generator, function: Callable[[torch.Tensor], torch.Tensor]) -> Measured:
    x = _normal(g, 1024, 128)
    y = function(x)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x)}


def _matmul(g: torch.Generator) -> Measured:
    a, b = _normal(g, 512, 1024), _normal(g, 1024, 256)
    y = functional.matmul(a, b)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_left": _grad(a), "grad_right": _grad(b)}


def _conv1d(g: torch.Generator) -> Measured:
    """64 -> 128 channels, 3 elements wide."""
    x, w = _normal(g, 8, 64, 256), _normal(g, 128, 64, 3)
    y = functional.conv1d(x, w, padding=1)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_weight": _grad(w)}


def _silu_glu(mult: float) -> _Case:
    def case(g: torch.Generator) -> Measured:
        x, gate = _normal(g, 1024, 128), _normal(g, 1024, 128)
        y = functional.silu_glu(x, gate, mult=mult)
        y.backward(torch.randn(y.shape, generator=g))
        return {"output": y, "grad_input": _grad(x), "grad_gate": _grad(gate)}

    return case


def _dropout(g: torch.Generator) -> Measured:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 31, (), generator=g)))
        return _elementwise(g, lambda x: functional.dropout(x, 0.3))


def _add(g: torch.Generator, *shape: int) -> Measured:
    """A tensor, and one of `shape` that is broadcast to it."""
    x, other = _normal(g, 32, 8192), _normal(g, *shape)
    y = functional.add(x, other)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_other": _grad(other)}


def _attention(**options: Any) -> _Case:
    """64 queries and keys of 64 elements."""

    def case(g: torch.Generator) -> Measured:
        q, k, v = (_normal(g, 128, 64, 64) for _ in range(3))
        y = functional.scaled_dot_product_attention(q, k, v, **options)
        y.backward(torch.randn(y.shape, generator=g))
        return {"output": y, "grad_query": _grad(q), "grad_key": _grad(k), "grad_value": _grad(v)}

    return case


def _embedding(g: torch.Generator) -> Measured:
    w = _normal(g, 256, 64)
    y = functional.embedding(torch.randint(0, 256, (8192,), generator=g), w)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_weight": _grad(w)}


def _rms_norm(g: torch.Generator) -> Measured:
    x = _normal(g, 128, 8192)
    gain = torch.ones(8192, requires_grad=True)
    y = functional.rms_norm(x, (8192,), gain)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_weight": _grad(gain)}


def _layer_norm(g: torch.Generator) -> Measured:
    x = _normal(g, 128, 8192)
    gain, bias = torch.ones(8192, requires_grad=True), torch.zeros(8192, requires_grad=True)
    y = functional.layer_norm(x, (8192,), gain, bias)
    y.backward(torch.randn(y.shape, generator=g))
    return {"output": y, "grad_input": _grad(x), "grad_weight": _grad(gain), "grad_bias": _grad(bias)}


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


def _mse_loss(g: torch.Generator) -> Measured:
    x, target = _normal(g, 256, 512), _normal(g, 256, 512)
    functional.mse_loss(x, target).backward()
    return {"grad_input": _grad(x), "grad_target": _grad(target)}


CASES: Mapping[str, tuple[_Case, Mapping[str, float]]] = MappingProxyType(
    {
        # What the published rules give, measured with the reference implementation on the same shapes; the residual
        # connection by formula. Tied factors (to_output_scale) leave grad_input at sqrt(out / in) for linear, and
        # at 1.19 for gelu.
        "linear": (_linear, {"output": 1.0, "grad_input": 2.0, "grad_weight": 1.0}),
        "linear_readout": (_readout, {"output": 1 / 32, "grad_input": 1.0, "grad_weight": 1.0}),
        "gelu": (_activation(functional.gelu), {"output": 1.04, "grad_input": 1.19}),
        "gelu mult=1/4": (_activation(functional.gelu, mult=0.25), {"output": 1.0, "grad_input": 1.03}),
        "gelu mult=4": (_activation(functional.gelu, mult=4.0), {"output": 1.01, "grad_input": 1.23}),
        "gelu untied": (_activation(functional.gelu, constraint=None), {"output": 1.04, "grad_input": 1.02}),
        "silu": (_activation(functional.silu), {"output": 0.99, "grad_input": 1.09}),
        "silu untied": (_activation(functional.silu, constraint=None), {"output": 0.99, "grad_input": 1.04}),
        "silu_glu": (_silu_glu(1.0), {"output": 1.01, "grad_input": 1.0, "grad_gate": 1.04}),
        "silu_glu mult=4": (_silu_glu(4.0), {"output": 1.01, "grad_input": 1.01, "grad_gate": 1.03}),
        "relu untied": (_activation(functional.relu, constraint=None), {"output": 1.0, "grad_input": 1.0}),
        "relu_squared untied": (
            _activation(functional.relu_squared, constraint=None),
            {"output": 1.0, "grad_input": 1.0},
        ),
        "tanh untied": (_activation(functional.tanh, constraint=None), {"output": 1.0, "grad_input": 1.0}),
        "sigmoid untied": (_activation(functional.sigmoid, constraint=None), {"output": 1.0, "grad_input": 1.0}),
        "softmax": (_activation(functional.softmax, dim=0), {"output": 0.65, "grad_input": 0.82}),
        "softmax mult=4 untied": (
            _activation(functional.softmax, dim=1, mult=4.0, constraint=None),
            {"output": 1.02, "grad_input": 0.88},
        ),
        "dropout": (_dropout, {"output": 1.0, "grad_input": 1.0}),
        "matmul": (_matmul, {"output": 1.0, "grad_left": 0.5, "grad_right": 0.71}),
        "conv1d": (_conv1d, {"output": 1.0, "grad_input": 1.41, "grad_weight": 1.0}),
        "attention": (
            _attention(),
            {"output": 1.0, "grad_query": 0.124, "grad_key": 0.124, "grad_value": 1.03},
        ),
        "attention causal": (
            _attention(is_causal=True),
            {"output": 1.06, "grad_query": 0.108, "grad_key": 0.108, "grad_value": 1.08},
        ),
        "add": (lambda g: _add(g, 32, 8192), {"output": 1.0, "grad_input": 0.707, "grad_other": 0.707}),
        "add of a row": (lambda g: _add(g, 8192), {"output": 1.0, "grad_input": 0.707, "grad_other": 1.0}),
        "layer_norm": (_layer_norm, {"output": 1.0, "grad_input": 1.0, "grad_weight": 0.99, "grad_bias": 1.0}),
        "mse_loss": (_mse_loss, {"grad_input": 1.0, "grad_target": 1.0}),
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
