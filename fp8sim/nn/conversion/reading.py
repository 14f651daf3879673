"""Which functions a module's own code calls that no replacement of modules can reach, read from its byte code."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

_CONVOLUTIONS = frozenset(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))
_ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
_PRODUCTS = frozenset(("linear", "bilinear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "einsum", "@"))

PRODUCTS = _PRODUCTS | _ATTENTION | _CONVOLUTIONS
"""Functions of torch that multiply matrices: what a recipe's casts are for."""

_LAYERS = frozenset(("dropout", "embedding", "layer_norm", "rms_norm", "cross_entropy", "mse_loss", "nll_loss"))

FACTORED = _LAYERS | {"gelu", "silu", "relu", "tanh", "sigmoid", "softmax", "log_softmax", "+"}
"""Further functions that carry factors under unit scaling."""


_NAMES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL")


def called_by(module: torch.nn.Module) -> list[str]:
    """Names of `PRODUCTS` and `FACTORED` in the methods of `module`'s class, sorted.

    Methods of classes that torch defines are not read, except that of `module` itself; nor are functions that methods
    call. An attribute of `self`, such as a module called `linear`, does not count.
    """
    kind: Any = type(module)
    return list(_called_by(kind))


@functools.lru_cache(256)
def _called_by(kind: type) -> tuple[str, ...]:
    classes = [base for base in kind.__mro__ if not base.__module__.startswith("torch.")]
    found: set[str] = set()
    for base in classes or [kind]:
        for member in vars(base).values():
            if isinstance(code := getattr(_function(member), "__code__", None), CodeType):
                found.update(_names(code))
    return tuple(sorted(found))


def _function(member: Any) -> Callable[..., Any] | None:
    """The function behind a method, static method, class method or property."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return member if isinstance(member, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "BINARY_OP":
            sign = instruction.argrepr.removesuffix("=")
            if sign in PRODUCTS | FACTORED:
                yield sign
        elif instruction.opname in _NAMES and instruction.argval in PRODUCTS | FACTORED and before != "self":
            yield str(instruction.argval)
        before = instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
