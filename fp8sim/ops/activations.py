"""GELU and gated SiLU with unit scaling's factors, cast in the same pass: registered, differentiable."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import backends
from fp8sim.arguments import FLOATS, check_float32, check_float32_factor, check_like, check_tensor_of
from fp8sim.derivatives import differentiable_once
from fp8sim.formats import Format
from fp8sim.ops.encode_scaled import ScaledCodes
from fp8sim.ops.encoded import (
    FORMS,
    RESULT,
    Encoded,
    carrier,
    encoded,
    fake_tensors,
    form_arguments,
    keywords,
    numbers_alone,
    scaled_codes,
    tensors_of,
)
from fp8sim.ops.library import register


def _gelu_impl(x: torch.Tensor, approximate: str, mult: float, factor: float, *forms: Any) -> Any:
    run = backends.row("gelu", forms[-1]).load()
    return tensors_of(x, run(x, approximate=approximate, mult=mult, factor=factor, **keywords(*forms)))


def _gelu_backward_impl(
    grad: torch.Tensor, x: torch.Tensor, approximate: str, mult: float, factor: float, *forms: Any
) -> Any:
    run = backends.row("gelu_backward", forms[-1]).load()
    return tensors_of(x, run(grad, x, approximate=approximate, mult=mult, factor=factor, **keywords(*forms)))


def _silu_glu_impl(x: torch.Tensor, gate: torch.Tensor, mult: float, factor: float, *forms: Any) -> Any:
    run = backends.row("silu_glu", forms[-1]).load()
    return tensors_of(x, run(x, gate, mult=mult, factor=factor, **keywords(*forms)))


def _silu_glu_backward_impl(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, packed: bool, mult: float, factor: float, *forms: Any
) -> Any:
    run = backends.row("silu_glu_backward", forms[-1]).load()
    found = run(grad, x, gate, packed=packed, mult=mult, factor=factor, **keywords(*forms))
    second = (None, None, None, None) if packed else found[1]
    return *tensors_of(x, found[0]), *tensors_of(x, second)


def _fake(x: torch.Tensor, forms: tuple[Any, ...], shape: Any = None) -> Any:
    return fake_tensors(x, x.shape if shape is None else shape, forms[0], forms[1], forms[4])


def _silu_glu_backward_fake(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, packed: bool, mult: float, factor: float, *forms: Any
) -> Any:
    if not packed:
        return *_fake(x, forms), *_fake(x, forms)
    nothing = fake_tensors(x, (0,), None, "", [False, False])
    return *_fake(x, forms, (*x.shape[:-1], 2 * x.shape[-1])), *nothing


_gelu_op = register(
    f"gelu(Tensor x, str approximate, float mult, float factor, {FORMS}) -> ({RESULT})",
    _gelu_impl,
    lambda x, approximate, mult, factor, *forms: _fake(x, forms),
)
_gelu_backward_op = register(
    f"gelu_backward(Tensor grad, Tensor x, str approximate, float mult, float factor, {FORMS}) -> ({RESULT})",
    _gelu_backward_impl,
    lambda grad, x, approximate, mult, factor, *forms: _fake(x, forms),
)
_silu_glu_op = register(
    f"silu_glu(Tensor x, Tensor gate, float mult, float factor, {FORMS}) -> ({RESULT})",
    _silu_glu_impl,
    lambda x, gate, mult, factor, *forms: _fake(x, forms),
)
_silu_glu_backward_op = register(
    f"silu_glu_backward(Tensor grad, Tensor x, Tensor gate, bool packed, float mult, float factor, {FORMS}) "
    f"-> ({RESULT}, {RESULT})",
    _silu_glu_backward_impl,
    _silu_glu_backward_fake,
)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, approximate: str, mult: float, alpha: float, beta: float, forms: tuple[Any, ...]
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.options, ctx.backend = (approximate, mult, beta), forms[-1]
        numbers, *rest = _gelu_op(x, approximate, mult, alpha, *forms)
        ctx.mark_non_differentiable(*rest)
        return carrier(x) if forms[0] is None else numbers, *rest

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        result = _gelu_backward_op(grad, x, *ctx.options, *numbers_alone(x.dtype, ctx.backend))
        return result[0], None, None, None, None, None


class _SiluGlu(torch.autograd.Function):
    """`gate` is None where x has both: x on the left of every row, its gate on the right."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate: torch.Tensor | None, mult: float, factor: float, forms: tuple[Any, ...]
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x, gate)
        ctx.options, ctx.backend = (mult, factor), forms[-1]
        left, right = x.chunk(2, -1) if gate is None else (x, gate)
        numbers, *rest = _silu_glu_op(left, right, mult, factor, *forms)
        ctx.mark_non_differentiable(*rest)
        return carrier(left) if forms[0] is None else numbers, *rest

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
        x, gate = ctx.saved_tensors
        pair = x.chunk(2, -1) if gate is None else (x, gate)
        forms = numbers_alone(x.dtype, ctx.backend)
        result = _silu_glu_backward_op(grad, *pair, gate is None, *ctx.options, *forms)
        return result[0], None if gate is None else result[4], None, None, None


def gelu_encode(
    x: torch.Tensor,
    fmt: str | Format,
    *,
    approximate: str = "none",
    mult: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    values: torch.dtype | None = None,
    **cast: Any,
) -> Encoded:
    """The codes of alpha * gelu(mult * x) / mult in one pass; the gradient has the factor beta instead of alpha.

    The number before the cast is float32, within the bound that `fp8sim.simulate.activations` derives of the definition
    there; codes, transposed codes and amax are those of `encode_scaled` of that number, bit for bit.

    Args:
        x: [..., R, C], float32, float16 or bfloat16, any strides.
        fmt: a format or its name.
        approximate: "none" or "tanh", as for torch.
        mult: positive, rounded to float32, as are alpha and beta, numbers of any sign.
        values: the dtype in which to give the number before the cast, too, or None.
        cast: keywords of `encode_scaled`: scale, amax, transpose, rounding, overflow, seed, stream, offset,
            random_bits.

    Returns:
        Codes, and numbers [..., R, C] that carry the gradient; infinity for infinity, NaN for NaN and -infinity.

    Raises:
        TypeError, ValueError: another dtype, an unknown approximation, a number that is not finite, and as for
            `encode_scaled`.
    """
    _check_alike(x)
    _check_gelu(approximate, mult, alpha=alpha, beta=beta)
    forms = form_arguments("gelu", x, fmt, values, **cast)
    outputs: tuple[torch.Tensor, ...] = _Gelu.apply(x, approximate, mult, alpha, beta, forms)  # type: ignore[no-untyped-call]
    return encoded(outputs, forms)


def gelu_backward_encode(
    grad: torch.Tensor,
    x: torch.Tensor,
    fmt: str | Format,
    *,
    approximate: str = "none",
    mult: float = 1.0,
    beta: float = 1.0,
    **cast: Any,
) -> ScaledCodes:
    """The codes of x's gradient in one pass, from that of `gelu_encode`'s numbers; itself without gradient.

    grad: [..., R, C], any strides. All else as for `gelu_encode`.
    """
    _check_alike(x, grad=grad)
    _check_gelu(approximate, mult, beta=beta)
    forms = form_arguments("gelu_backward", x, fmt, **cast)
    return scaled_codes(_gelu_backward_op(grad.detach(), x.detach(), approximate, mult, beta, *forms), forms)


def silu_glu_encode(
    x: torch.Tensor,
    gate: torch.Tensor | None,
    fmt: str | Format,
    *,
    mult: float = 1.0,
    factor: float = 1.0,
    values: torch.dtype | None = None,
    **cast: Any,
) -> Encoded:
    """The codes of factor * x * gate * sigmoid(mult * gate) in one pass; both gradients have the same factor.

    Args:
        x, gate: [..., R, C], of one shape and dtype, float32, float16 or bfloat16. Without `gate` x is [..., R, 2 C],
            as one product makes both: x on the left of every row, the gate on the right, and so is the gradient, with
            nothing to split or join.
        mult: positive, rounded to float32, as is factor, of any sign. All else as for `gelu_encode`.

    Returns:
        Codes, and numbers [..., R, C] that carry the gradient.

    Raises:
        TypeError, ValueError: operands that do not fit, and as for `gelu_encode`.
    """
    _check_pair(x, gate)
    _check_numbers(mult, factor=factor)
    forms = form_arguments("silu_glu", x, fmt, values, **cast)
    outputs: tuple[torch.Tensor, ...] = _SiluGlu.apply(x, gate, mult, factor, forms)  # type: ignore[no-untyped-call]
    return encoded(outputs, forms)


def silu_glu_backward_encode(
    grad: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor | None,
    fmt: str | Format,
    *,
    mult: float = 1.0,
    factor: float = 1.0,
    **cast: Any,
) -> tuple[ScaledCodes, ...]:
    """The codes of the gradients of x and gate in one pass, from that of `silu_glu_encode`'s numbers.

    Args:
        grad: [..., R, C], any strides. All else as for `silu_glu_encode`.

    Returns:
        The codes of both, or without `gate` those of the one gradient [..., R, 2 C]. Stochastic rounding of gate's
        gradient draws the random integers after those of x's.
    """
    _check_pair(x, gate)
    _check_numbers(mult, factor=factor)
    left, right = x.detach().chunk(2, -1) if gate is None else (x.detach(), gate.detach())
    _check_alike(left, grad=grad)
    forms = form_arguments("silu_glu_backward", x, fmt, **cast)
    outputs = _silu_glu_backward_op(grad.detach(), left, right, gate is None, mult, factor, *forms)
    return tuple(scaled_codes(outputs[i : i + 4], forms) for i in ((0,) if gate is None else (0, 4)))


def _check_alike(x: torch.Tensor, **others: torch.Tensor) -> None:
    """TypeError or ValueError unless x and others are tensors of float32, float16 or bfloat16 and of one shape."""
    check_tensor_of("x", x, FLOATS)
    for argument, other in others.items():
        check_tensor_of(argument, other, FLOATS)
        check_like(argument, other, "x", x)


def _check_pair(x: torch.Tensor, gate: torch.Tensor | None) -> None:
    """TypeError or ValueError unless x and gate fit, or x holds both."""
    if gate is None:
        check_tensor_of("x", x, FLOATS)
        if x.ndim == 0 or x.shape[-1] % 2:
            raise ValueError(f"x has shape {list(x.shape)}: without gate its rows hold both, and have an even length")
        return
    _check_alike(x, gate=gate)
    if gate.dtype != x.dtype:
        raise ValueError(f"x and gate must share a dtype, got {x.dtype} and {gate.dtype}: use .to()")


def _check_gelu(approximate: str, mult: float, **factors: float) -> None:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate={approximate!r}: use 'none' or 'tanh'")
    _check_numbers(mult, **factors)


def _check_numbers(mult: float, **factors: float) -> None:
    check_float32_factor("mult", mult)
    for argument, factor in factors.items():
        check_float32(argument, factor)
