"""How an operation is registered with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("fp8sim", "DEF")


def register(schema: str, implementation: Callable[..., torch.Tensor], fake: Callable[..., torch.Tensor]) -> Any:
    """Define `torch.ops.fp8sim.<name>` from its schema "name(arguments) -> Tensor" and return it.

    `implementation` computes, on any device; `fake` returns an empty tensor of the result's shape, dtype and strides.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fp8sim::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fp8sim, name).default
