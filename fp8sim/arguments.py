"""Checks of what callers pass: an error that names the argument, what was got and what was expected."""

from __future__ import annotations

import numbers
import sys
from typing import Any

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that fused operations compute from."""

FLOATING = (*FLOATS, torch.float64)
"""The dtypes that all other operations compute from."""

_NUMBERS = (numbers.Real, torch.SymInt, torch.SymFloat)
_LARGEST, _SMALLEST = (2 - 2.0**-23) * 2.0**127, 2.0**-149
"""Of float32; numbers from half a spacing beyond them on are rounded to infinity and to zero."""


def check_number(argument: str, value: Any, expected: str = "a number") -> None:
    """TypeError unless `value` is a real number: of Python, of NumPy, or of a compiler."""
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"{argument} is a {type(value).__name__}: expected {expected}; float({argument}) makes one")


def check_finite(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a finite number."""
    check_number(argument, value)
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"{argument}={value}: expected a finite number")


def check_positive(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a positive finite number."""
    check_number(argument, value)
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{argument}={value}: expected a positive finite number")


def check_float32(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a number that rounds to a finite one of float32."""
    check_number(argument, value)
    if not abs(value) < _LARGEST + 2.0**103:
        raise ValueError(f"{argument}={value}: expected a finite number, in float32, too")


def check_float32_factor(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a number that rounds to a positive finite one of float32."""
    check_number(argument, value)
    if not _SMALLEST / 2 < value < _LARGEST + 2.0**103:
        raise ValueError(f"{argument}={value}: expected a positive finite number, in float32, too")


def check_probability(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a number from 0 to 1."""
    check_number(argument, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{argument}={value}: a probability is 0 to 1")


def check_integer(argument: str, value: Any, expected: str = "an integer") -> None:
    """TypeError unless `value` is a whole number: of Python, of NumPy, or of a compiler, ValueError above 64 bits.

    A bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}: expected {expected}")
    if not -(2**63) <= value < 2**63:  # type: ignore[operator]
        raise ValueError(f"{argument}={value}: expected {expected}, of 64 bits")


def check_size(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a whole number of 1 or more."""
    check_integer(argument, value)
    if value < 1:
        raise ValueError(f"{argument}={value}: must be at least 1")


def check_not_negative(argument: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a finite number of 0 or more."""
    check_number(argument, value)
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{argument}={value}: must not be negative or infinite")


def check_flag(argument: str, value: Any) -> None:
    """TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}: expected True or False")


def check_tensor(argument: str, x: Any) -> None:
    """TypeError unless x is a torch tensor of plain memory."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{argument} is a {type(x).__name__}: expected a torch tensor; torch.as_tensor({argument}) makes one"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{argument} has layout {x.layout}: expected torch.strided; use {argument}.to_dense()")


def check_tensor_of(argument: str, x: Any, dtypes: tuple[torch.dtype, ...] = FLOATING) -> None:
    """TypeError unless x is a torch tensor of one of `dtypes`."""
    check_tensor(argument, x)
    if x.dtype not in dtypes:
        raise TypeError(f"{argument} is {x.dtype}: expected {names(dtypes)}; convert it with .to()")


def check_like(argument: str, x: torch.Tensor, other: str, like: torch.Tensor) -> None:
    """ValueError unless x has the shape and device of `like`, the argument `other`."""
    if x.shape != like.shape or x.device != like.device:
        raise ValueError(
            f"{argument} is {list(x.shape)} on {x.device}: expected the shape and device of {other}, "
            f"{list(like.shape)} on {like.device}"
        )


def check_text(argument: str, value: Any, expected: str) -> None:
    """TypeError unless `value` is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}: expected {expected}")


def check_same(dtype: bool = True, **tensors: torch.Tensor | None) -> None:
    """ValueError unless all tensors are on the first one's device, and of its dtype if that is asked for."""
    (first, x), *others = tensors.items()
    assert x is not None
    for name, other in others:
        if other is None:
            continue
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device} and {first} on {x.device}: move one with .to()")
        if dtype and other.dtype != x.dtype:
            raise ValueError(f"{name} is {other.dtype} and {first} {x.dtype}: convert one with .to()")


def check_broadcast(**operands: torch.Tensor) -> None:
    """ValueError unless the shapes of two tensors broadcast."""
    (first, a), (second, b) = operands.items()
    if any(x != y and 1 not in (x, y) for x, y in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"{first} {list(a.shape)} and {second} {list(b.shape)} do not broadcast: reshape one")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes in words: "torch.float32, torch.float16 or torch.bfloat16"."""
    *most, last = (str(dtype) for dtype in dtypes)
    return f"{', '.join(most)} or {last}" if most else last
