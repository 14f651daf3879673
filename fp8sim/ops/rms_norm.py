"""RMS norm cast in the same pass: registered, differentiable, on any backend."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim import backends
from fp8sim.arguments import FLOATS, check_float32, check_like, check_tensor, check_tensor_of
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


def _impl(x: torch.Tensor, gain: torch.Tensor | None, eps: float, *forms: Any) -> Any:
    found, inverse = backends.row("rms_norm", forms[-1]).load()(x, gain, eps=eps, **keywords(*forms))
    return *tensors_of(x, found), inverse


def _fake(x: torch.Tensor, gain: torch.Tensor | None, eps: float, *forms: Any) -> Any:
    inverse = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return *fake_tensors(x, x.shape, forms[0], forms[1], forms[4]), inverse


def _backward_impl(
    grad: torch.Tensor, x: torch.Tensor, gain: torch.Tensor | None, inverse: torch.Tensor, factor: float, *forms: Any
) -> Any:
    run = backends.row("rms_norm_backward", forms[-1]).load()
    found, grad_gain = run(grad, x, gain, inverse, factor=factor, **keywords(*forms))
    return *tensors_of(x, found), x.new_empty(0) if grad_gain is None else grad_gain


def _backward_fake(grad: torch.Tensor, x: torch.Tensor, gain: torch.Tensor | None, *rest: Any) -> Any:
    forms = rest[2:]
    grad_gain = x.new_empty(0) if gain is None else gain.new_empty(gain.shape)
    return *fake_tensors(x, x.shape, forms[0], forms[1], forms[4]), grad_gain


_op = register(f"rms_norm(Tensor x, Tensor? gain, float eps, {FORMS}) -> ({RESULT}, Tensor)", _impl, _fake)
_backward_op = register(
    f"rms_norm_backward(Tensor grad, Tensor x, Tensor? gain, Tensor inverse, float factor, {FORMS}) "
    f"-> ({RESULT}, Tensor)",
    _backward_impl,
    _backward_fake,
)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gain: torch.Tensor | None, eps: float, gain_factor: float, forms: tuple[Any, ...]
    ) -> tuple[torch.Tensor, ...]:
        numbers, codes, transposed, amax, inverse = _op(x, gain, eps, *forms)
        ctx.save_for_backward(x, gain, inverse)
        ctx.gain_factor, ctx.backend = gain_factor, forms[-1]
        ctx.mark_non_differentiable(codes, transposed, amax)
        return carrier(x) if forms[0] is None else numbers, codes, transposed, amax

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
        x, gain, inverse = ctx.saved_tensors
        result = _backward_op(grad, x, gain, inverse, ctx.gain_factor, *numbers_alone(x.dtype, ctx.backend))
        return result[0], None if gain is None else result[4], None, None, None


def rms_norm_encode(
    x: torch.Tensor,
    gain: torch.Tensor | None,
    fmt: str | Format,
    *,
    eps: float = 1e-5,
    gain_factor: float = 1.0,
    values: torch.dtype | None = None,
    **cast: Any,
) -> Encoded:
    """The codes of x / (mean(x^2) + eps)^1/2 * gain in one pass, with the gain's gradient times gain_factor.

    The number before the cast is float32, within the bound that `fp8sim.simulate.rms_norm` derives of the definition
    there; codes, transposed codes and amax are those of `encode_scaled` of that number, bit for bit. The order in which
    the gain's gradient is summed depends on the shape alone.

    Args:
        x: [..., R, C], float32, float16 or bfloat16, any strides; rows are normalised.
        gain: [C], of these dtypes, or None for ones.
        fmt: a format or its name.
        eps: added to the mean square; at least 2^-126 and finite, rounded to float32.
        gain_factor: a number, rounded to float32.
        values, cast: as for `fp8sim.ops.activations.gelu_encode`.

    Returns:
        Codes, and numbers [..., R, C] that carry the gradient. A row with NaN is NaN; one with an infinity, or whose
        squares add up to one in float32, is zero where it is finite.

    Raises:
        TypeError, ValueError: a dtype or shape that does not fit, and as for `encode_scaled`.
    """
    _check(x, gain, gain_factor)
    check_float32("eps", eps)
    if not eps >= 2.0**-126:
        raise ValueError(f"eps={eps}: expected at least 2^-126, a normal float32 number")
    forms = form_arguments("rms_norm", x, fmt, values, **cast)
    outputs: tuple[torch.Tensor, ...] = _RmsNorm.apply(x, gain, eps, gain_factor, forms)  # type: ignore[no-untyped-call]
    return encoded(outputs, forms)


def rms_norm_backward_encode(
    grad: torch.Tensor,
    x: torch.Tensor,
    gain: torch.Tensor | None,
    inverse: torch.Tensor,
    fmt: str | Format,
    *,
    gain_factor: float = 1.0,
    **cast: Any,
) -> tuple[ScaledCodes, torch.Tensor | None]:
    """The codes of x's gradient in one pass, from that of `rms_norm_encode`'s numbers; and the gain's gradient.

    Args:
        grad: [..., R, C], any strides. inverse: [...], float32, (mean(x^2) + eps)^-1/2 of every row. All else as for
            `rms_norm_encode`.

    Returns:
        Codes; [C] in the gain's dtype, or None without a gain.
    """
    _check(x, gain, gain_factor)
    check_tensor_of("grad", grad, FLOATS)
    check_like("grad", grad, "x", x)
    check_tensor("inverse", inverse)
    if inverse.shape != x.shape[:-1] or inverse.dtype != torch.float32 or inverse.device != x.device:
        raise ValueError(
            f"inverse must be float32 {list(x.shape[:-1])} on {x.device}, one number per row, got {inverse.dtype} "
            f"{list(inverse.shape)} on {inverse.device}"
        )
    forms = form_arguments("rms_norm_backward", x, fmt, **cast)
    tensors = (part if part is None else part.detach() for part in (grad, x, gain, inverse.contiguous()))
    *outputs, grad_gain = _backward_op(*tensors, gain_factor, *forms)
    return scaled_codes(outputs, forms), None if gain is None else grad_gain


def _check(x: torch.Tensor, gain: torch.Tensor | None, gain_factor: float) -> None:
    check_tensor_of("x", x, FLOATS)
    check_float32("gain_factor", gain_factor)
    if x.ndim == 0:
        raise ValueError("x has no axis: rms_norm takes rows [..., C]")
    if gain is None:
        return
    check_tensor_of("gain", gain, FLOATS)
    if gain.shape != x.shape[-1:] or gain.device != x.device:
        raise ValueError(
            f"gain must be [{x.shape[-1]}] on x's device {x.device}, got {list(gain.shape)} on {gain.device}"
        )
