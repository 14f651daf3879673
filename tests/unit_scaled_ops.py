"""The unit-scaled functions as data: each with its definition from torch's function and the rules, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from fp8sim import functional
from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules

Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Op:
    """`ours` and its definition, on inputs of `shapes`; `is_tied`: every gradient has the factor of the output."""

    ours: Function
    definition: Function
    shapes: tuple[tuple[int, ...], ...]
    is_tied: bool = True


def define(f: Function, alpha: float, *betas: float) -> Function:
    """`scale_fwd(f(scale_bwd(x, beta)), alpha)`."""
    return lambda *inputs: scale_fwd(f(*(scale_bwd(x, b) for x, b in zip(inputs, betas, strict=True))), alpha)


def _one_input(
    f: Function, definition: Function, factors: tuple[float, float], shape: Any, tied: bool, **kw: Any
) -> Op:
    return Op(lambda x: f(x, **kw), define(definition, *factors), (shape,), tied)


def operations(m: int, n: int, mult: float, constraint: str | None) -> dict[str, Op]:
    """Every function without randomness, on inputs of about m x n elements."""
    tied, both = constraint is not None, {"mult": mult, "constraint": constraint}
    one, shape = {"constraint": constraint}, (m, n)
    tokens = max(1, m)
    linear = rules.linear(n, 5, tokens, constraint)
    conv = rules.conv1d(4, 6, 3, tokens * ((n + 1) // 2), stride=2, groups=2, constraint=constraint)
    matmul, glu = rules.matmul(tokens, n, 5, constraint), rules.silu_glu(mult)
    add = rules.add(1, 1, constraint, is_shift=m * n == 1)
    row = rules.add(1, tokens, constraint, is_shift=n == 1)
    attention = rules.attention(n, mult * 4**-0.5)
    readout = rules.readout(n, 5, tokens)
    gain = rules.norm_weight(tokens)
    activations = {
        "gelu": _one_input(
            functional.gelu, lambda x: F.gelu(x * mult) / mult, rules.gelu(mult, constraint), shape, tied, **both
        ),
        "silu": _one_input(
            functional.silu, lambda x: x * torch.sigmoid(x * mult), rules.silu(mult, constraint), shape, tied, **both
        ),
        "relu": _one_input(functional.relu, F.relu, rules.relu(constraint), shape, tied, **one),
        "relu_squared": _one_input(
            functional.relu_squared, lambda x: F.relu(x) ** 2, rules.relu_squared(constraint), shape, tied, **one
        ),
        "tanh": _one_input(functional.tanh, torch.tanh, rules.tanh(constraint), shape, tied, **one),
        "sigmoid": _one_input(functional.sigmoid, torch.sigmoid, rules.sigmoid(constraint), shape, tied, **one),
        "softmax": _one_input(
            functional.softmax,
            lambda x: torch.softmax(x * mult, 0),
            rules.softmax(m, mult, constraint),
            shape,
            tied,
            dim=0,
            **both,
        ),
    }
    return {
        **activations,
        "silu_glu": Op(
            lambda x, g: functional.silu_glu(x, g, mult=mult),
            define(lambda x, g: x * g * torch.sigmoid(g * mult), glu, glu, glu),
            (shape, shape),
        ),
        "matmul": Op(lambda a, b: functional.matmul(a, b, **one), define(torch.matmul, *matmul), (shape, (n, 5)), tied),
        "linear": Op(
            lambda x, w, b: functional.linear(x, w, b, **one),
            lambda x, w, b: define(F.linear, *linear)(x, w) + scale_bwd(b, linear.grad_weight),
            (shape, (5, n), (5,)),
            False,
        ),
        "linear_readout": Op(functional.linear_readout, define(F.linear, *readout), (shape, (5, n)), False),
        "conv1d": Op(
            lambda x, w, b: functional.conv1d(x, w, b, 2, 1, groups=2, **one),
            lambda x, w, b: (
                define(lambda x, w: F.conv1d(x, w, None, 2, 1, groups=2), *conv)(x, w)
                + scale_bwd(b, conv.grad_weight)[:, None]
            ),
            ((m, 4, n), (6, 2, 3), (6,)),
            False,
        ),
        "attention": Op(
            lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, mult=mult),
            define(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=mult / 4),
                *[attention] * 4,
            ),
            ((2, m, 4), (2, n, 4), (2, n, 3)),
        ),
        "layer_norm": Op(
            lambda x, w, b: functional.layer_norm(x, (n,), w, b),
            define(lambda x, w, b: F.layer_norm(x, (n,), w, b), 1.0, 1.0, gain, gain),
            (shape, (n,), (n,)),
            m == 1,
        ),
        "rms_norm": Op(
            lambda x, w: functional.rms_norm(x, (n,), w),
            define(lambda x, w: F.rms_norm(x, (n,), w, 1e-5), 1.0, 1.0, gain),
            (shape, (n,)),
            m == 1,
        ),
        "add": Op(lambda a, b: functional.add(a, b, **one), define(torch.add, *add), (shape, shape), tied),
        "add of a row": Op(lambda a, b: functional.add(a, b, **one), define(torch.add, *row), (shape, (n,)), False),
        "residual": Op(
            lambda x: functional.residual_apply(torch.sin, x, 1.5 * mult),
            lambda x: (1.5 * mult * torch.sin(x) + x) / (1 + (1.5 * mult) ** 2) ** 0.5,
            (shape,),
        ),
        "mse_loss": Op(
            functional.mse_loss,
            define(lambda a, b: F.mse_loss(a, b, reduction="sum"), 1 / (tokens * n), 8**-0.5, 8**-0.5),
            (shape, shape),
            False,
        ),
    }


NAMES = sorted(operations(3, 4, 1.0, None))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def inputs_of(op: Op, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(op.shapes)]


def results(function: Function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output, then the gradient of every input for a fixed output gradient."""
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    output = function(*copies)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(x.grad for x in copies if x.grad is not None)]


def assert_same(function: Function, definition: Function, *inputs: torch.Tensor) -> None:
    """Output and all gradients agree to 1e-12 in float64."""
    ours, theirs = results(function, *inputs), results(definition, *inputs)
    assert len(ours) == len(theirs) == 1 + sum(x.requires_grad for x in inputs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == its.dtype == torch.float64
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
