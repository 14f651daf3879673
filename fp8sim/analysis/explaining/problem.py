"""A kernel's output and inputs as `fp8sim.explain` takes them: codes, and the operands that each cast makes of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import array_memory, casting, formats, quantizers
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.formats import FORMATS, Format
from fp8sim.mma import gemm
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import MmaModel, operand_dtype
from fp8sim.mma.plans import GemmPlan
from fp8sim.simulate.operands import Operands, operands

Array = NDArray[Any]
Indices = NDArray[np.intp]

_FLOATS = ("float32", "float64", "float16", "bfloat16")


class Problem:
    """What went into a kernel and what came out. Arguments and errors as of `fp8sim.explain`.

    Attributes:
        m, n, k: its sizes.
        actual: [M, N], the output's codes, unsigned integers; None where only inputs are known.
        container: their format; a narrower one's numbers may lie in it.
    """

    def __init__(
        self,
        actual: Any,
        a: Any,
        b: Any,
        c: Any = None,
        *,
        a_format: str | Format | None = None,
        b_format: str | Format | None = None,
        a_scale_inv: Any = None,
        b_scale_inv: Any = None,
        output: str | None = None,
    ) -> None:
        self._given = {"a": (a, a_format, a_scale_inv), "b": (b, b_format, b_scale_inv)}
        (self.m, self.k), (of_b, self.n) = _matrix(a, "a", "[M, K]"), _matrix(b, "b", "[K, N]")
        if of_b != self.k:
            raise ValueError(f"a [M, K] = {[self.m, self.k]} and b [K, N] = {[of_b, self.n]} differ in K")
        if 0 in (self.m, self.n, self.k):
            raise ValueError(
                f"a [M, K] = {[self.m, self.k]} and b [K, N] = {[of_b, self.n]}: there is nothing to explain"
            )
        self.c = None if c is None else _of_shape(c, "c", (self.m, self.n))
        self.actual: Array | None = None
        self.container = output or "float32"
        if actual is not None:
            self.actual, self.container = _output_codes(actual, output)
        if self.actual is not None and self.actual.shape != (self.m, self.n):
            raise ValueError(f"actual has shape {list(self.actual.shape)}: expected [M, N] = {[self.m, self.n]}")
        self._operands: dict[tuple[str, str | None, str | None], Operands] = {}

    def given(self, argument: str) -> Any:
        """a or b as it was passed."""
        return self._given[argument][0]

    def operand(self, argument: str, quantizer: str | None, through: str | None = None) -> Operands:
        """a or b [R, K], cast if there is a quantizer."""
        key = (argument, quantizer, quantizer and through)
        if key not in self._operands:
            self._operands[key] = self._read(*key)
        return self._operands[key]

    def _read(self, argument: str, quantizer: str | None, through: str | None) -> Operands:
        x, fmt, scale_inv = self._given[argument]
        if quantizer is None:
            return operands(x, argument, fmt, scale_inv)
        if scale_inv is not None:
            raise ValueError(f"{argument}_scale_inv is given, and {argument} is to be cast by {quantizer}: drop one")
        rows = rows_of(x, argument)
        if through is not None:
            rows = casting.cast(rows, through, overflow="INFINITY")
        return operands(quantizers.parse(quantizer).quantize(rows), argument, None, None)

    def operands(self, hypothesis: Hypothesis) -> tuple[Operands, Operands]:
        """Both operands as the hypothesis casts them."""
        a, b = (self.operand(x, of, hypothesis.cast_through) for x, of in zip("ab", hypothesis.casts, strict=True))
        return a, b

    def model(self, hypothesis: Hypothesis) -> MmaModel:
        """The instruction. ValueError if it does not accept the operands, or c."""
        a, b = self.operands(hypothesis)
        model = _resolved(hypothesis.plan.instruction, hypothesis.plan.widen, a.format, b.format)
        if self.c is not None and self.c.dtype != model.accumulator:
            raise ValueError(f"c has dtype {self.c.dtype}: {model} adds to {model.accumulator}")
        return model

    def pair(
        self, hypothesis: Hypothesis, rows: Indices | None = None, columns: Indices | None = None
    ) -> list[Operand]:
        """The operands of some rows and columns of the output, as the instruction takes them."""
        model = self.model(hypothesis)
        wholes = (x.at((), (), model) for x in self.operands(hypothesis))
        chosen = zip(wholes, (rows, columns), strict=True)
        return [whole if part is None else _cut(whole, part) for whole, part in chosen]

    def sums(self, hypothesis: Hypothesis, rows: Indices | None = None, columns: Indices | None = None) -> Array:
        """The sums of some rows and columns before the output's rounding: float32, or float64.

        Raises:
            ValueError: the hypothesis does not fit the operands.
        """
        a, b = self.pair(hypothesis, rows, columns)
        c = self.c
        if c is not None and rows is not None and columns is not None:
            c = np.ascontiguousarray(c[np.ix_(rows, columns)])
        return gemm.multiply(a, b, c, hypothesis.plan)

    def cut(self, rows: Indices, columns: Indices) -> Array:
        """The actual codes of some rows and columns."""
        assert self.actual is not None
        part: Array = self.actual[np.ix_(rows, columns)]
        return part


@functools.cache
def _resolved(instruction: str, widen: str | None, a_format: str, b_format: str) -> MmaModel:
    return gemm.resolve(GemmPlan(instruction, widen=widen), a_format, b_format)


def _cut(x: Operand, rows: Indices) -> Operand:
    factors, scales = (None if part is None else part[rows] for part in (x.scale_inv, x.scales))
    return dataclasses.replace(x, codes=x.codes[rows], scale_inv=factors, scales=scales)


def rows_of(x: Any, argument: str) -> Array:
    """An operand with k along its rows; a float tensor as an array. TypeError if there is nothing to cast."""
    name = array_memory.dtype_name(x.dtype)
    if name not in _FLOATS:
        raise TypeError(f"{argument} has dtype {name}: a cast takes {', '.join(_FLOATS)}; pass hypotheses without one")
    if not isinstance(x, np.ndarray):
        x = x.detach().float() if name == "bfloat16" else x.detach()
        x = x.numpy()
    elif name == "bfloat16":
        x = x.astype(np.float32)
    return np.ascontiguousarray(x if argument == "a" else x.swapaxes(-1, -2))


def _matrix(x: Any, argument: str, axes: str) -> tuple[int, int]:
    """The shape of an operand; a QuantizedTensor b is that of b transposed."""
    if not hasattr(x, "shape"):
        raise TypeError(f"{argument} is a {type(x).__name__}: expected a NumPy array, a tensor or a QuantizedTensor")
    shape = tuple(x.shape)
    if len(shape) != 2:
        raise ValueError(
            f"{argument} has shape {list(shape)}: expected {axes}; explain one matrix of a batch at a time"
        )
    return (shape[1], shape[0]) if argument == "b" and hasattr(x, "quantizer") else shape


def _of_shape(c: Any, argument: str, shape: tuple[int, ...]) -> Array:
    if tuple(getattr(c, "shape", ())) != shape:
        raise ValueError(f"{argument} has shape {list(getattr(c, 'shape', ()))}: expected [M, N] = {list(shape)}")
    return array_memory.memory_of(c, argument)


def _output_codes(actual: Any, output: str | None) -> tuple[Array, str]:
    """The codes of a kernel's output and their format."""
    if not hasattr(actual, "dtype"):
        raise TypeError(f"actual is a {type(actual).__name__}: expected a NumPy array or a tensor")
    name = array_memory.dtype_name(actual.dtype)
    if name in _FLOATS:
        return array_memory.memory_of(actual, "actual").view(operand_dtype(name)), name
    if name in FORMATS:
        unsigned = actual.view(f"u{actual.dtype.itemsize}") if isinstance(actual, np.ndarray) else _bytes(actual)
        return array_memory.memory_of(unsigned, "actual"), name
    if output is None:
        raise ValueError(f"actual has dtype {name}: say what its codes mean with output=, as 'bfloat16'")
    fmt = formats.parse(output)
    if name != operand_dtype(str(fmt)):
        raise TypeError(f"actual has dtype {name}: codes of {fmt} are {operand_dtype(str(fmt))}")
    return array_memory.memory_of(actual, "actual"), str(fmt)


def _bytes(x: Any) -> Any:
    import torch

    return x.detach().view(torch.uint8)
