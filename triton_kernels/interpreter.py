"""Triton kernels on a CPU: Triton's interpreter, corrected.

Triton 3.6's interpreter runs a kernel's programs one after another on NumPy arrays. It converts to FP8 and bfloat16
wrongly, computes with the bit patterns of bfloat16, and fails on loop bounds under NumPy 2.4. `enable` replaces those
parts. Conversions come from the boundaries in `boundaries.json`, read off NVIDIA's header, never from fp8sim, which
the interpreter is a witness for.

What a run here proves: integer arithmetic, indexing, masks, factors. What it cannot: layouts, shared memory, races, and
the order of additions inside a tensor core, unless `use_dot` is given a model of it.

The corrections replace private names of Triton; `interpreter_checks.self_test` notices when one has changed its
meaning.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fp8sim.triton_kernels import boundaries

Array = NDArray[Any]

_enabled = False


def is_enabled() -> bool:
    """Whether kernels of this process run in the corrected interpreter."""
    return _enabled


def enable() -> None:
    """Run the Triton kernels of this process in the corrected interpreter, on CPU tensors; there is no way back.

    Call it before importing kernels of your own: `@triton.jit` decides when it decorates. Kernels of Triton and of
    fp8sim that are already imported are switched over. Subprocesses are not affected. A second call does nothing.

    Raises:
        ImportError: Triton is not installed.
        RuntimeError: this version of Triton lacks something that the corrections replace.
    """
    global _enabled
    if _enabled:
        return
    with _environment("TRITON_INTERPRET", "1"):
        interpreter = _module("triton.runtime.interpreter")
    _require_private_names(interpreter)
    _interpret_from_now_on()
    _correct(interpreter)
    _switch_imported_kernels(interpreter)
    _enabled = True


class Operand(NamedTuple):
    """A matrix given to `tl.dot`."""

    values: NDArray[np.float32]
    dtype: str
    """Its type's Triton name: fp8e4nv, fp8e5, fp16, bf16 or fp32."""


Dot = Callable[[Operand, Operand, NDArray[np.float32], int], NDArray[np.float32]]
"""a [..., M, K], b [..., K, N], accumulator c [..., M, N], all float32, and `max_num_imprecise_acc`, 0 where the kernel
leaves it to Triton -> the new accumulator."""


def float32_dot(a: Operand, b: Operand, c: NDArray[np.float32], imprecise: int) -> NDArray[np.float32]:
    """c + a b in float32, in the order of NumPy's BLAS. Products of FP8, FP16 and bfloat16 numbers are exact."""
    result: NDArray[np.float32] = a.values @ b.values + c
    return result


_dot: Dot = float32_dot


@contextlib.contextmanager
def use_dot(model: Dot) -> Iterator[None]:
    """Let `model` instead of `float32_dot` compute every `tl.dot` with a float32 accumulator in the `with` block."""
    global _dot
    before, _dot = _dot, model
    try:
        yield
    finally:
        _dot = before


# Switching over


def _module(name: str) -> Any:
    """A module of Triton, whose private names carry no types; imported at first use, because Triton is optional."""
    return importlib.import_module(name)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _interpret_from_now_on() -> None:
    """Set Triton's switch for this process alone; by itself Triton sets the variable too, which children inherit."""
    knobs = _module("triton.knobs")
    before, knobs.propagate_env = knobs.propagate_env, False
    knobs.runtime.interpret = True
    knobs.propagate_env = before


_REPLACED = ("_convert_float", "_patch_lang", "_patch_lang_tensor", "_get_np_dtype", "_LangPatchScope", "TensorHandle")
_REPLACED_METHODS = {
    "InterpreterBuilder": ("cast_impl", "binary_op", "create_dot", "create_fma", "create_clampf"),
    "GridExecutor": ("__call__",),
    "InterpretedFunction": ("run",),
    "InterpreterOptions": ("__init__",),
}


def _require_private_names(interpreter: Any) -> None:
    missing = [name for name in (*_REPLACED, *_REPLACED_METHODS) if not hasattr(interpreter, name)]
    for owner, methods in _REPLACED_METHODS.items():
        missing += [f"{owner}.{name}" for name in methods if not hasattr(getattr(interpreter, owner, object), name)]
    if missing:
        version = sys.modules["triton"].__version__
        raise RuntimeError(
            f"Triton {version} has no {', '.join(missing)} in triton.runtime.interpreter, which fp8sim corrects: "
            f"install triton==3.6.0 to run kernels on a CPU"
        )


def _switch_imported_kernels(interpreter: Any) -> None:
    """Make compiled functions of Triton's language and of fp8sim interpreted wherever a module or `tensor` has one."""
    jit = _module("triton.runtime.jit").JITFunction
    language = _module("triton.language")
    interpreted: dict[int, Any] = {}
    for module in _kernel_modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, jit):
                replacement = interpreted.setdefault(id(value), interpreter.InterpretedFunction(value.fn))
                setattr(module, name, replacement)
    for name, value in list(vars(language.tensor).items()):
        if isinstance(value, jit):
            setattr(language.tensor, name, _method(interpreted.get(id(value), value)))


def _kernel_modules() -> list[ModuleType]:
    packages = ("triton.language", __package__)
    return [module for name, module in list(sys.modules.items()) if name.startswith(packages) and module is not None]


def _method(function: Any) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


# Corrections


def _correct(interpreter: Any) -> None:
    interpreter._convert_float = _conversion(interpreter)
    _correct_builder(interpreter)
    _speed_up(interpreter)
    _correct_loop_bounds(interpreter)
    _silence_floating_point(interpreter)
    _patch_language_once(interpreter)


def _conversion(interpreter: Any) -> Callable[..., Array]:
    """Conversion between two floating-point types, by their boundaries."""
    nearest = interpreter._ir.ROUNDING_MODE.RTNE

    def convert(data: Array, source: Any, target: Any, rounding: Any) -> Array:
        if rounding not in (None, nearest):
            raise NotImplementedError(f"{source} to {target} with {rounding}: the interpreter knows only ties to even")
        if "fp64" in (source.name, target.name):
            return _convert_fp64(data, source.name, target.name)
        try:
            values = data if source.name == "fp32" else boundaries.to_float32(data, source.name)
            return values if target.name == "fp32" else boundaries.from_float32(values, target.name)
        except KeyError:
            raise NotImplementedError(f"the interpreter has no boundaries for {source} to {target}") from None

    return convert


def _convert_fp64(data: Array, source: str, target: str) -> Array:
    if target == "fp64":
        return (data if source == "fp32" else boundaries.to_float32(data, source)).astype(np.float64)
    if target in ("fp32", "fp16"):
        return data.astype(np.float32 if target == "fp32" else np.float16)
    raise NotImplementedError(f"the interpreter has no boundaries for fp64 to {target}: convert to float32 first")


def _correct_builder(interpreter: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    float32 = _module("triton.language").float32

    def values_of(operand: Any) -> Any:
        """The operand with its numbers in float32 if it is bfloat16, whose data are bit patterns."""
        if operand.dtype.scalar.name != "bf16":
            return operand
        return handle(boundaries.to_float32(operand.data, "bf16"), float32)

    stock_cast = builder.cast_impl

    def cast(self: Any, operand: Any, target: Any) -> Any:
        source, scalar = operand.dtype.scalar, target.scalar
        if source.is_floating() and scalar.is_floating():
            data = interpreter._convert_float(operand.data, source, scalar, None)
            return handle(data.view(interpreter._get_np_dtype(scalar)), scalar)
        if "bf16" in (source.name, scalar.name):
            raise NotImplementedError(f"{source} to {scalar} in the interpreter: convert to float32 in between")
        return stock_cast(self, operand, target)

    def dot(self: Any, a: Any, b: Any, c: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if not a.dtype.scalar.is_floating() or c.data.dtype != np.float32:
            return stock_dot(self, a, b, c, input_precision, max_num_imprecise_acc)
        return handle(_dot(_operand(a), _operand(b), c.data, max_num_imprecise_acc), c.dtype.scalar)

    stock_dot = builder.create_dot
    builder.cast_impl, builder.create_dot = cast, dot
    builder.binary_op = _on_values(builder.binary_op, values_of, handle)
    builder.create_fma = _on_values(_fma(handle), values_of, handle)
    builder.create_clampf = _on_values(builder.create_clampf, values_of, handle)


def _operand(matrix: Any) -> Operand:
    name = matrix.dtype.scalar.name
    return Operand(matrix.data if name == "fp32" else boundaries.to_float32(matrix.data, name), name)


def _on_values(operation: Callable[..., Any], values_of: Callable[[Any], Any], handle: Any) -> Callable[..., Any]:
    """An arithmetic operation that computes bfloat16 in float32 and rounds once (exact for + - * /, comparisons)."""

    def corrected(self: Any, first: Any, *rest: Any) -> Any:
        scalar = first.dtype.scalar
        if scalar.name != "bf16":
            return operation(self, first, *rest)
        operands = [values_of(x) if isinstance(x, handle) else x for x in (first, *rest)]
        result = operation(self, *operands)
        if result.data.dtype == np.float32:
            return handle(boundaries.from_float32(result.data, "bf16"), scalar)
        return result

    return corrected


def _fma(handle: Any) -> Callable[..., Any]:
    """x * y + z, rounded once; the stock one rounds the product, too."""

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype != np.float32:
            raise NotImplementedError(f"fma of {z.dtype} in the interpreter: convert to float32 first")
        return handle(fused_multiply_add(x.data, y.data, z.data), z.dtype.scalar)

    return fma


def fused_multiply_add(x: Array, y: Array, z: Array) -> Array:
    """x * y + z of float32 arrays, rounded once.

    The product is exact in binary64. The sum is rounded there to odd, after which a second rounding, to at least two
    bits fewer, cannot err (Boldo and Melquiond 2008, theorem 3).
    """
    product, addend = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + addend
    # Knuth's TwoSum: what the addition lost.
    rest = total - product
    lost = (product - (total - rest)) + (addend - rest)
    even = total.view(np.uint64) % np.uint64(2) == 0
    inexact = np.isfinite(total) & (lost != 0)
    odd = np.where(inexact & even, np.nextafter(total, np.copysign(np.inf, lost)), total)
    return odd.astype(np.float32)


def _correct_loop_bounds(interpreter: Any) -> None:
    """A tensor as a loop bound: Triton 3.6 calls int() on an array of one element, which NumPy 2.4 refuses."""
    stock = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _silence_floating_point(interpreter: Any) -> None:
    """Let overflow and NaN pass without NumPy's warnings, as on a GPU, and skip unused checks of integer overflow."""
    stock = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return stock(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def _patch_language_once(interpreter: Any) -> None:
    """Make Triton's language interpreted for good: the stock interpreter does it anew at every call of every function,
    a millisecond each."""
    language = _module("triton.language")
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    nothing_to_restore = interpreter._LangPatchScope()
    interpreter._patch_lang = lambda fn: nothing_to_restore


def _speed_up(interpreter: Any) -> None:
    """Move elements with NumPy's indexing: stock loads and stores take 30 to 60 ns each."""
    stock_dtype = interpreter._get_np_dtype
    known: dict[str, np.dtype[Any]] = {}

    def dtype_of(element: Any) -> np.dtype[Any]:
        element = element.element_ty if element.is_block() else element
        name = "pointer" if element.is_ptr() else element.name
        return known[name] if name in known else known.setdefault(name, stock_dtype(element))

    interpreter._get_np_dtype = dtype_of
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def truth(mask: Any) -> Array:
        """As NumPy takes a mask: a descriptor's is a bare array, and a comparison of scalars makes one of integers."""
        return np.asarray(mask.data).astype(np.bool_, copy=False)

    def load(self: Any, pointers: Any, mask: Any, other: Any, *hints: Any, **named_hints: Any) -> Any:
        element = pointers.get_element_ty()
        dtype = dtype_of(element)
        result = np.zeros(pointers.data.shape, dtype) if other is None else np.array(other.data, dtype)
        chosen = truth(mask)
        memory, index = _memory(pointers.data[chosen], dtype)
        result[chosen] = memory[index]
        return handle(result, element)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *hints: Any) -> None:
        chosen = truth(mask)
        memory, index = _memory(pointers.data[chosen], value.data.dtype)
        memory[index] = value.data[chosen]

    builder.create_masked_load, builder.create_masked_store = load, store


def _memory(addresses: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """An array over the memory from the first to the last of `addresses`, and where in it each address lies."""
    if addresses.size == 0:
        return np.empty(0, dtype), np.empty(0, np.intp)
    first, last = int(addresses.min()), int(addresses.max())
    offsets = (addresses - np.uint64(first)).astype(np.intp)
    if dtype.itemsize > 1:
        offsets //= dtype.itemsize
    size = last - first + dtype.itemsize
    memory = memoryview((ctypes.c_char * size).from_address(first))
    return np.frombuffer(memory.cast("B"), dtype), offsets
