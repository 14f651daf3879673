"""The memory behind NumPy arrays and CPU tensors: found, checked, and made for results."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor; if torch was never imported, it cannot be."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def dtype_name(dtype: Any) -> str:
    """The name that NumPy, ml_dtypes and torch share."""
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    name: str = np.dtype(dtype).name
    return name


def as_array(x: Any) -> Any:
    """A NumPy scalar as the 0-d array that it is; everything else as it is. TypeError for a masked array."""
    _refuse_masked(x, "x")
    return np.asarray(x) if isinstance(x, np.generic) else x


def takes_scalars(function: _Function) -> _Function:
    """Let a function of an array take a NumPy scalar, too, and give one back."""

    @functools.wraps(function)
    def wrapped(x: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(x, np.generic):
            result = function(np.asarray(x), *arguments, **keywords)
            return result if result is keywords.get("out") else result[()]
        return function(x, *arguments, **keywords)

    return wrapped  # type: ignore[return-value]


def _refuse_masked(x: object, argument: str) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{argument} is a masked array, and its mask would be lost: pass {argument}.filled(...), or "
            f"{argument}.data, and put the mask on the result"
        )


def dtype_of(x: Any, argument: str, allowed: tuple[str, ...]) -> str:
    """The name of the dtype of `x`, which is one of `allowed`."""
    if not isinstance(x, np.ndarray) and not is_tensor(x):
        kind = type(x).__name__
        raise TypeError(f"{argument} is a {kind}: expected a NumPy array (np.asarray makes one) or a torch tensor")
    _refuse_masked(x, argument)
    name = dtype_name(x.dtype)
    if name not in allowed:
        raise TypeError(f"{argument} has dtype {name}: expected {', '.join(allowed)}; convert it first")
    return name


def memory_of(x: Any, argument: str) -> np.ndarray[Any, Any]:
    """The memory of an array or tensor as a NumPy array of the same shape and strides; bfloat16 as uint16."""
    _refuse_masked(x, argument)
    if isinstance(x, np.ndarray):
        return x.view(np.uint16) if x.dtype.name == "bfloat16" else x.view(np.ndarray)
    return _tensor_memory(x, argument)


def _tensor_memory(x: torch.Tensor, argument: str) -> np.ndarray[Any, Any]:
    if x.device.type != "cpu":
        raise ValueError(
            f"{argument} is on {x.device}: fp8sim.casting takes CPU tensors; call fp8sim.cast, or {argument}.cpu()"
        )
    if str(x.layout) != "torch.strided":
        raise TypeError(f"{argument} has layout {x.layout}: expected torch.strided; use {argument}.to_dense()")
    x = x.detach() if argument == "out" else x.detach().resolve_neg()
    torch = sys.modules["torch"]
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    memory: np.ndarray[Any, Any] = x.numpy() if argument == "out" else readable(x)
    return memory


def readable(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """The memory of a strided CPU tensor, to read from.

    After `Tensor.numpy` a storage can never be resized again, which FSDP2 does with parameters; DLPack leaves it alone.
    """
    memory: np.ndarray[Any, Any] = np.from_dlpack(x.detach().resolve_neg())
    return memory


def empty_like(like: _Array, dtype: str) -> _Array:
    """A new array of the kind and shape of `like`."""
    if not isinstance(like, np.ndarray):
        torch = sys.modules["torch"]
        return torch.empty(like.shape, dtype=getattr(torch, dtype))  # type: ignore[no-any-return]
    if dtype == "bfloat16":
        import ml_dtypes

        return np.empty(like.shape, ml_dtypes.bfloat16)
    return np.empty(like.shape, dtype)


def compact(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`x` as the loops take it: C-contiguous, aligned, in native byte order; a copy only if it is not."""
    if x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative:
        return x
    return x.astype(x.dtype.newbyteorder("="), order="C")


# What may be written to.


def check_out(x: Any, out: Any, source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> None:
    if is_tensor(x) != is_tensor(out):
        raise TypeError(f"out is a {type(out).__name__} and x a {type(x).__name__}: pass an out of the kind of x")
    if out.dtype != x.dtype:
        raise TypeError(f"out has dtype {out.dtype}: expected that of x, {x.dtype}")
    if target.shape != source.shape:
        raise ValueError(f"out has shape {target.shape}: expected that of x, {source.shape}")
    if not target.flags.writeable:
        raise ValueError("out is read-only: pass a writeable array")
    if _overlaps_itself(target):
        raise ValueError("out has elements that share memory (a broadcast or expanded array): pass a copy of it")
    if not _is_same(source, target) and may_overlap(source, target):
        raise ValueError("out overlaps x without being x: pass x itself, or memory of its own")


def _steps(x: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """(stride, length) of every dimension in which `x` moves."""
    return [(stride, length) for stride, length in zip(x.strides, x.shape, strict=True) if length > 1]


def _is_same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.ctypes.data == b.ctypes.data and _steps(a) == _steps(b)


def _overlaps_itself(x: np.ndarray[Any, Any]) -> bool:
    """Whether two elements may share memory: each dimension must step over all that the smaller steps cover."""
    if x.size == 0:
        return False
    covered = x.itemsize
    for stride, length in sorted((abs(stride), length) for stride, length in _steps(x)):
        if stride < covered:
            return True
        covered += stride * (length - 1)
    return False


def may_overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays share memory; True where that is hard to find out."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # the stubs know two values of it
    except np.exceptions.TooHardError:
        return True


def mark_as_changed(out: Any) -> None:
    """Tell autograd that a tensor was written to, so that a graph which needs the old values says so."""
    if is_tensor(out):
        sys.modules["torch"].autograd.graph.increment_version(out)
