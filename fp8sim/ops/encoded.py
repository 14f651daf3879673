"""What the fused operations share: a result in several forms, one of them differentiable, and how it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fp8sim import backends, casting, formats
from fp8sim.arguments import FLOATS, names
from fp8sim.formats import Format
from fp8sim.ops.cast import decode, format_text, policy_text, random_arguments, random_options
from fp8sim.ops.encode_scaled import ScaledCodes, check_forms, scale_arguments
from fp8sim.rounding import Overflow, Rounding

FORMS = (
    "ScalarType? values, str policy, float? number, Tensor? scale, bool[] options, Tensor? seed, int stream, "
    "int offset, int random_bits, str backend"
)
"""The end of a fused operation's schema: the forms of its result, and where it runs."""

RESULT = "Tensor, Tensor, Tensor, Tensor"
"""Numbers, codes, transposed codes, amax; empty if not wanted."""


class Encoded(NamedTuple):
    """The result y of an operation as codes, and the way back for its gradient.

    Attributes:
        codes: [..., R, C], of scale * y; without gradient, as are the next two.
        transposed: [..., C, R], contiguous, or None.
        amax: [], the largest |y| in float32, or None.
        numbers: [..., R, C], differentiable. With `values` y itself in that dtype, before the cast. Otherwise it has no
            memory and every element is NaN: it is there for its gradient, which is that of y.
    """

    codes: torch.Tensor
    transposed: torch.Tensor | None
    amax: torch.Tensor | None
    numbers: torch.Tensor

    def decoded(self, fmt: str | Format, scale_inv: float | torch.Tensor = 1.0) -> torch.Tensor:
        """The numbers of the codes, times scale_inv, in the dtype of `numbers`, to which the gradient goes unchanged.

        Args:
            fmt: the format of the codes.
            scale_inv: 1 / scale, a number or one in a tensor, without gradient.
        """
        result: torch.Tensor = _Decoded.apply(self.numbers, self.codes, format_text(fmt), scale_inv)  # type: ignore[no-untyped-call]
        return result


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor, codes: torch.Tensor, fmt: str, scale_inv: Any) -> torch.Tensor:
        result: torch.Tensor = decode(codes, fmt, dtype=numbers.dtype) * scale_inv
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return grad, None, None, None


def form_arguments(
    op: str,
    x: torch.Tensor,
    fmt: str | Format,
    values: torch.dtype | None = None,
    *,
    scale: float | torch.Tensor | None = None,
    amax: bool = False,
    transpose: bool = False,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    seed: int | torch.Tensor | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> tuple[Any, ...]:
    """The arguments `FORMS` of the registered operation `op` on x [..., R, C]. Errors as for `encode_scaled`."""
    if values not in (None, *FLOATS):
        raise TypeError(f"values={values!r}: {names(FLOATS)}, which carry a gradient, or None")
    policy, mode = policy_text(fmt, rounding, overflow)
    check_forms(x, amax, transpose)
    number, tensor = scale_arguments(x, scale)
    random = random_arguments(mode, seed, stream, offset, random_bits)
    return values, policy, number, tensor, [amax, transpose], *random, backends.select(op, x.device.type)


def numbers_alone(dtype: torch.dtype, backend: str) -> tuple[Any, ...]:
    """The arguments `FORMS` for nothing but numbers of that dtype."""
    return dtype, "", None, None, [False, False], None, 0, 0, 32, backend


def keywords(
    values: torch.dtype | None,
    policy: str,
    number: float | None,
    scale: torch.Tensor | None,
    options: list[bool],
    seed: torch.Tensor | None,
    stream: int,
    offset: int,
    random_bits: int,
    backend: str,
) -> dict[str, Any]:
    """What an implementation takes for the arguments `FORMS`."""
    if not policy:
        return {"values": values}
    fmt, rounding, overflow = policy.split(":")
    return {
        "values": values,
        "fmt": fmt,
        "scale": number if scale is None else scale,
        "amax": options[0],
        "transpose": options[1],
        "rounding": rounding,
        "overflow": overflow,
        **random_options(seed, stream, offset, random_bits),
    }


_Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def tensors_of(x: torch.Tensor, found: Sequence[torch.Tensor | None]) -> _Four:
    """What an implementation gives, as a registered operation does: a tensor for each form."""
    dtypes = (torch.float32, torch.uint8, torch.uint8, torch.float32)
    parts = (x.new_empty(0, dtype=d) if f is None else f for f, d in zip(found, dtypes, strict=True))
    values, codes, transposed, amax = parts
    return values, codes, transposed, amax


def fake_tensors(
    x: torch.Tensor, shape: Sequence[int], values: torch.dtype | None, policy: str, options: list[bool]
) -> _Four:
    """Empty tensors as `tensors_of` gives for a result of that shape."""
    fmt = formats.parse(policy.split(":")[0]) if policy else None
    code = getattr(torch, casting.code_dtype(fmt)) if fmt is not None else torch.uint8
    amax, transpose = options
    turned = (*shape[:-2], *reversed(shape[-2:])) if transpose else (0,)
    return (
        x.new_empty(shape if values else (0,), dtype=values or torch.float32),
        x.new_empty(shape if policy else (0,), dtype=code),
        x.new_empty(turned, dtype=code if transpose else torch.uint8),
        x.new_empty(() if amax else (0,), dtype=torch.float32),
    )


def carrier(x: torch.Tensor) -> torch.Tensor:
    """A tensor of x's shape and dtype whose elements are one NaN."""
    return x.new_full((), math.nan).expand(x.shape)


def encoded(outputs: Sequence[torch.Tensor], forms: tuple[Any, ...]) -> Encoded:
    """Numbers, codes, transposed codes and amax as they were asked for."""
    numbers, codes, transposed, amax = outputs
    wants_amax, wants_transposed = forms[4]
    return Encoded(codes, transposed if wants_transposed else None, amax if wants_amax else None, numbers)


def scaled_codes(outputs: Sequence[torch.Tensor], forms: tuple[Any, ...]) -> ScaledCodes:
    """`encoded` without numbers."""
    return ScaledCodes(*encoded(outputs, forms)[:3])
