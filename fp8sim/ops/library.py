"""How an operation is registered with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

_Result = TypeVar(
    "_Result", torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, torch.Tensor, torch.Tensor], None
)

_LIBRARY = torch.library.Library("fp8sim", "DEF")


def register(schema: str, implementation: Callable[..., _Result], fake: Callable[..., _Result]) -> Any:
    """Define `torch.ops.fp8sim.<name>` from its schema "name(arguments) -> Tensor" (or several, or ()) and return it.

    `implementation` computes, on any device; `fake` returns empty tensors of the result's shape, dtype and strides.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fp8sim::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fp8sim, name).default


def constant_result(function: _Function) -> _Function:
    """Tell the compiler to call `function` while tracing and to take its result as a constant.

    It is what `torch.compiler.assume_constant_result` does, which would import the compiler with fp8sim: two seconds
    for everyone who does not compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
