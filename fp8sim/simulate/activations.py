"""GELU and gated SiLU with the factors of unit scaling: the definitions, and how far a float32 kernel may be off.

Each is x times a gate G of t = m * x (of GELU) or of t = m * g (of the gated SiLU). Numbers are computed in binary64
from operands and factors in float32, and rounded to float32 once; codes are those of the rounded numbers.

A kernel computes in float32, so its numbers have an error bound, and its codes are those of its own numbers. The bounds
count roundings, each u = 2^-24 relative, of these steps: exp2 to 4 u and a reciprocal root to 2.2 u (PTX ISA,
ex2.approx and rsqrt.approx), erf to 4 u (2 units in the last place, CUDA's libdevice). exp(-a) inherits the error of a,
times a; 1 / (1 + e) is the square of a reciprocal root, 6.4 u with both roundings. Second orders are covered by a
hundredth, results below float32's normal numbers by `_TINY`. The bound is infinite, and NaN allowed, where a product of
some of the factors overflows on its way to a number that does not, and where infinity meets a gate below 2^-100.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fp8sim.simulate.results import Result, result_of

_U = 1.01 * 2.0**-24
_TINY = 2.0**-124
_ROOT = math.sqrt(2 / math.pi)


def gelu(x: torch.Tensor, *, approximate: str = "none", mult: float = 1.0, factor: float = 1.0, **forms: Any) -> Result:
    """factor * x * G(mult * x), which is factor / mult * gelu(mult * x).

    Args:
        x: [..., R, C], floating point.
        approximate: "none": G is the normal distribution's function. "tanh": 0.5 * (1 + tanh(u(t))) with
            u(t) = (2/pi)^1/2 * (t + 0.044715 t^3).
        mult, factor: rounded to float32.
        forms: of the result, as for `result_of`.

    Returns:
        [..., R, C]. NaN for NaN and for -infinity; infinity for infinity.
    """
    return result_of(gelu_numbers(x, approximate, mult, factor)[0], **forms)


def gelu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    approximate: str = "none",
    mult: float = 1.0,
    factor: float = 1.0,
    **forms: Any,
) -> Result:
    """factor * grad * (G(t) + t * G'(t)) with t = mult * x: the gradient of x from that of `gelu`'s result.

    grad: [..., R, C]; all else as for `gelu`.
    """
    return result_of(gelu_gradients(grad, x, approximate, mult, factor)[0], **forms)


def silu_glu(x: torch.Tensor, gate: torch.Tensor, *, mult: float = 1.0, factor: float = 1.0, **forms: Any) -> Result:
    """factor * x * g * sigmoid(mult * g).

    Args:
        x, gate: [..., R, C], floating point. All else as for `gelu`.
    """
    return result_of(silu_glu_numbers(x, gate, mult, factor)[0], **forms)


def silu_glu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    packed: bool = False,
    mult: float = 1.0,
    factor: float = 1.0,
    **forms: Any,
) -> tuple[Result, ...]:
    """The gradients of x and gate: factor * grad * g * s, and factor * grad * x * (s + t * s * (1 - s)).

    s = sigmoid(t), t = mult * g. With `packed` they are one result [..., R, 2 C], that of x on the left. Otherwise the
    random integers of gate's gradient are those after x's.
    """
    (of_x, _), (of_gate, _) = silu_glu_gradients(grad, x, gate, mult, factor)
    if packed:
        return (result_of(torch.cat([of_x, of_gate], -1), **forms),)
    later = {"offset": (forms["offset"] + x.numel()) % 2**64} if "offset" in forms else {}
    return result_of(of_x, **forms), result_of(of_gate, **forms | later)


# Numbers in float64, and the bound on a float32 kernel's error at each


def gelu_numbers(x: torch.Tensor, approximate: str, mult: float, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`gelu` before it is rounded, and its bound, both [...] in float64."""
    x, mult, factor = x.double(), _float32(mult), _float32(factor)
    gate, _, gate_error, _ = _gate(mult * x, approximate)
    number = factor * x * gate
    bound = (factor * x).abs() * gate_error + number.abs() * 2 * _U + _tiny(factor, x)
    return number, _promised(bound, x, gate)


def gelu_gradients(
    grad: torch.Tensor, x: torch.Tensor, approximate: str, mult: float, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gelu_backward` before it is rounded, and its bound."""
    grad, factor = grad.double(), _float32(factor)
    return _slope(grad, factor, _float32(mult) * x.double(), approximate)


def silu_glu_numbers(
    x: torch.Tensor, gate: torch.Tensor, mult: float, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`silu_glu` before it is rounded, and its bound."""
    x, g, factor = x.double(), gate.double(), _float32(factor)
    opened, _, error, _ = _gate(_float32(mult) * g, "sigmoid")
    number = factor * (x * (g * opened))
    bound = (factor * x * g).abs() * error + number.abs() * 3 * _U + _tiny(factor, x, x * g)
    return number, _promised(bound, x, g * opened)


def silu_glu_gradients(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, mult: float, factor: float
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """`silu_glu_backward` before it is rounded, and its bounds: of x, and of gate."""
    grad, x, rounded = grad.double(), x.double(), _float32(factor)
    of_gate, error = _slope(grad * x, rounded, _float32(mult) * gate.double(), "sigmoid")
    error = error + of_gate.abs() * _U + _tiny(rounded, grad * x)
    return silu_glu_numbers(grad, gate, mult, factor), (of_gate, error)


def _slope(outer: torch.Tensor, factor: float, t: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """factor * outer * (G + t G'), and its bound: a sum and two products are rounded."""
    gate, slope, gate_error, slope_error = _gate(t, kind)
    number = factor * (outer * (gate + slope))
    bound = (factor * outer).abs() * (gate_error + slope_error) + number.abs() * 3 * _U + _tiny(factor, outer)
    return number, _promised(bound, outer, gate + slope, t)


def _promised(bound: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor, *steps: torch.Tensor) -> torch.Tensor:
    """The bound on outer * inner, but where nothing is promised."""
    unsure = outer.isinf() & (inner.abs() < 2.0**-100)
    for step in (outer, outer * inner, *steps):
        unsure = unsure | (step.isfinite() & (step.abs() > 2.0**127))
    return torch.where(unsure, torch.inf, bound)


def _gate(t: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """G(t), t * G'(t), and the bounds on a kernel's errors in them."""
    if kind == "none":
        gate = torch.special.ndtr(t)
        slope = t * torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
        # 3 u of erf's argument cost at most 1.5 u, erf itself 4 u; half of both, the sum's rounding, the factor 0.5
        return gate, slope, torch.full_like(t, 4 * _U), slope.abs() * (2.5 * t.square() + 9) * _U
    if kind == "tanh":
        argument = 2 * _ROOT * (t + 0.044715 * t**3)
        derivative = 2 * _ROOT * (t + 3 * 0.044715 * t**3)
        argument_error, derivative_error = 10, 9
    elif kind == "sigmoid":
        argument = derivative = t
        argument_error, derivative_error = 3, 1
    else:
        raise ValueError(f"approximate={kind!r}: use 'none' or 'tanh'")
    gate, rest = torch.sigmoid(argument), torch.sigmoid(-argument)
    relative = argument_error * argument.abs().clamp(max=2.0**10) + 4
    slope = torch.where(derivative.abs() < 2.0**40, gate * rest * derivative, 0 * derivative)
    gate_error = gate * (rest * relative + 6.4) * _U + _TINY
    return gate, slope, gate_error, slope.abs() * (relative + 16 + derivative_error) * _U + 2**7 * _TINY


def _float32(factor: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(factor))


def _tiny(factor: float, *steps: torch.Tensor) -> torch.Tensor:
    """What underflow costs: some of the smallest normal number, times what multiplies it later."""
    largest = torch.stack([step.abs() for step in steps]).amax(0)
    return _TINY * (1 + abs(factor)) * (1 + largest)
