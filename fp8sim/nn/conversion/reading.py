"""Which functions a module's own code calls that no replacement of modules can reach, read from its byte code."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

_CONVOLUTIONS = frozenset(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))

ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
"""Functions of torch that multiply what a model computes, and no weight of the caller."""

BY_WEIGHTS = frozenset(("linear", "bilinear")) | _CONVOLUTIONS
"""Functions of torch that multiply by a weight."""

PRODUCTS = ATTENTION | BY_WEIGHTS | {"matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "einsum", "@"}
"""Functions of torch that multiply matrices: what a recipe's casts are for."""

_LAYERS = frozenset(("dropout", "embedding", "layer_norm", "rms_norm", "cross_entropy", "mse_loss", "nll_loss"))

FACTORED = _LAYERS | {"gelu", "silu", "relu", "tanh", "sigmoid", "softmax", "log_softmax", "+"}
"""Further functions that carry factors under unit scaling."""

_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_NAMESPACES = ("LOAD_GLOBAL", "LOAD_DEREF")


def called_by(module: torch.nn.Module) -> list[str]:
    """Names of `PRODUCTS` and `FACTORED` in the methods of `module`'s class, sorted.

    Methods of classes that torch defines are not read, except that of `module` itself; nor are functions that methods
    call. A submodule that is called `linear` is no function: attributes of modules count only if tensors have such a
    method and they are not those of `self`.
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
    concerned = PRODUCTS | FACTORED
    root: Any = None  # the instruction before a chain of attributes
    before: Any = None
    for instruction in dis.get_instructions(code):
        is_attribute = instruction.opname in _ATTRIBUTES
        if instruction.opname == "BINARY_OP":
            sign = instruction.argrepr.removesuffix("=")
            if sign in concerned:
                yield sign
        elif is_attribute or instruction.opname == "LOAD_GLOBAL":
            name = str(instruction.argval)
            if name in concerned and (not is_attribute or _is_function(name, root, before)):
                yield name
        root, before = root if is_attribute else instruction, instruction
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_function(name: str, root: dis.Instruction | None, before: dis.Instruction | None) -> bool:
    """Whether the attribute `name` of what `before` loads is a function of torch or a method of a tensor."""
    if root is None or before is None or _last(before) == "self":
        return False
    is_namespace = root.opname in _NAMESPACES and _last(root) != "self"
    return is_namespace or hasattr(torch.Tensor, name)


def _last(instruction: dis.Instruction) -> Any:
    """The name that an instruction loads; the second of those that load two."""
    return instruction.argval[-1] if isinstance(instruction.argval, tuple) else instruction.argval
