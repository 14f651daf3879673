"""A case as a file: a kernel's inputs, its output and what it takes them for, in one .npz."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import array_memory, casting, quantizers
from fp8sim.analysis.explaining.hypothesis import Hypothesis
from fp8sim.analysis.explaining.problem import Indices, Problem
from fp8sim.analysis.explaining.trial import Advance
from fp8sim.analysis.explaining.verdict import Explanation, explain
from fp8sim.quantizers import QuantizedTensor

_ARRAYS = ("a", "b", "actual", "c", "a_scale_inv", "b_scale_inv", "a_scales", "b_scales")
_FACTORS = ("a_tensor_scale", "b_tensor_scale")
_TEXTS = ("a_format", "b_format", "a_quantizer", "b_quantizer", "output")
KEYS = (*_ARRAYS, *_FACTORS, *_TEXTS, "hypotheses")
"""What a file may have; `a` and `b` it must."""


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel's inputs and its output. In a file, every attribute that is not None is an array of its name.

    Attributes:
        a: [M, K]: floats, or unsigned codes of `a_format`: uint8 for FP8, uint16 for bfloat16, which NumPy does not
            store as floats.
        b: [K, N], likewise; with `b_scales` [N, K], the transpose.
        actual: [M, N], what the kernel returned: floats, or unsigned codes of `output`. None: not yet.
        c: [M, N], what it added to, in the accumulator's dtype.
        a_scale_inv, b_scale_inv: factors, as `fp8sim.matmul` takes them.
        a_quantizer, b_quantizer: with what the kernel casts; with `a_scales`, with what a was quantized before.
        a_scales, b_scales: scale factors of codes that a quantizer made, as in `QuantizedTensor`.
        a_tensor_scale, b_tensor_scale: the factor of the whole tensor, if the quantizer has one.
        a_format, b_format, output: names of formats.
        hypotheses: texts of those to try; None: the default ones.
    """

    a: Any
    b: Any
    actual: Any = None
    c: Any = None
    a_scale_inv: Any = None
    b_scale_inv: Any = None
    a_scales: Any = None
    b_scales: Any = None
    a_tensor_scale: Any = None
    b_tensor_scale: Any = None
    a_format: str | None = None
    b_format: str | None = None
    a_quantizer: str | None = None
    b_quantizer: str | None = None
    output: str | None = None
    hypotheses: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N, K."""
        problem = self.problem()
        return problem.m, problem.n, problem.k

    def problem(self) -> Problem:
        """The case as `Problem` has it. Errors as of `explain`."""
        return Problem(self.actual, *self._operands(), self.c, **self._described(), output=self.output)

    def explain(
        self, hypotheses: Sequence[str | Hypothesis] | None = None, advance: Advance | None = None
    ) -> Explanation:
        """`fp8sim.explain` of the case: of the given hypotheses, its own, or the default ones."""
        if self.actual is None:
            raise ValueError("the case has no 'actual': run the kernel on its a and b, and add what it returns")
        wanted = self.hypotheses if hypotheses is None else hypotheses
        described = self._described()
        if wanted is None:
            described |= {f"{name}_quantizer": self.cast(name) for name in "ab"}
        return explain(
            self.actual,
            *self._operands(),
            self.c,
            **described,
            output=self.output,
            hypotheses=wanted,
            advance=advance,
        )

    def cast(self, name: str) -> str | None:
        """With what the kernel casts a or b."""
        quantizer: str | None = getattr(self, f"{name}_quantizer")
        return quantizer if getattr(self, f"{name}_scales") is None else None

    def _described(self) -> dict[str, Any]:
        names = ("a_format", "b_format", "a_scale_inv", "b_scale_inv")
        return {name: getattr(self, name) for name in names}

    def _operands(self) -> tuple[Any, Any]:
        return self._operand("a"), self._operand("b")

    def _operand(self, name: str) -> Any:
        codes, scales, quantizer, tensor = (
            getattr(self, field) for field in (name, f"{name}_scales", f"{name}_quantizer", f"{name}_tensor_scale")
        )
        if scales is None:
            return codes
        if quantizer is None:
            raise ValueError(f"{name}_scales without {name}_quantizer: name what made them, as 'mxfp8'")
        return QuantizedTensor(codes, scales, quantizers.parse(quantizer), tensor_scale=tensor)

    # Cases of other numbers

    def operand_format(self, name: str) -> str:
        """The format of a's or b's codes, once they are cast."""
        return self.problem().operand(name, self.cast(name)).format

    def operand_like(self, name: str, numbers: NDArray[np.float64], rng: np.random.Generator) -> dict[str, Any]:
        """Fields of this case with other numbers [R, K] for a or b, in the same form, and factors like its own."""
        turned = numbers if name == "a" else numbers.T
        if getattr(self, f"{name}_scales") is not None:
            made = quantizers.parse(getattr(self, f"{name}_quantizer")).quantize(numbers.astype(np.float32))
            return {name: made.codes, f"{name}_scales": made.scales, f"{name}_tensor_scale": made.tensor_scale}
        given = getattr(self, name)
        fmt = getattr(self, f"{name}_format") or array_memory.dtype_name(given.dtype)
        if fmt in ("float64", "float32") or (self.cast(name) is not None and given.dtype.kind == "f"):
            return {name: np.ascontiguousarray(turned.astype(given.dtype))}
        codes = casting.encode(np.ascontiguousarray(turned), fmt, overflow="SATURATE")
        fields = {name: codes, f"{name}_format": str(fmt)}
        if getattr(self, f"{name}_scale_inv") is not None:
            fields[f"{name}_scale_inv"] = self._factors_like(name, numbers.shape, rng)
        return fields

    def _factors_like(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """Random factors for operands [R, K] in blocks of k like the case's; for each row, unless rows share one."""
        own = self.problem().operand(name, None)
        assert own.scale_inv is not None
        rows, k = shape
        shared = len(own.codes) > 1 and np.array_equal(own.scale_inv[:1], own.scale_inv[1:2])
        blocks = -(-k // own.block) if own.block is not None else 1
        found = rng.uniform(0.5, 2, (1 if shared else rows, blocks)).astype(np.float32)
        return found if name == "a" else np.ascontiguousarray(found.T)

    def cut(self, rows: Indices, columns: Indices) -> Case:
        """Some rows of a and columns of b."""
        changes: dict[str, Any] = {}
        for name, chosen in (("a", rows), ("b", columns)):
            codes, scales, factors = (getattr(self, field) for field in (name, f"{name}_scales", f"{name}_scale_inv"))
            along = 0 if name == "a" or scales is not None else 1
            changes[name] = np.ascontiguousarray(np.take(codes, chosen, along))
            if scales is not None and len(scales) == len(codes):
                changes[f"{name}_scales"] = scales[chosen]
            if factors is not None and factors.shape[along] == codes.shape[along]:
                changes[f"{name}_scale_inv"] = np.ascontiguousarray(np.take(factors, chosen, along))
        for name in ("c", "actual"):
            if getattr(self, name) is not None:
                changes[name] = np.ascontiguousarray(getattr(self, name)[np.ix_(rows, columns)])
        return dataclasses.replace(self, **changes)


def load_case(path: str | Path) -> Case:
    """The case in a file.

    Raises:
        ValueError: no such file, no .npz, a key that is missing or unknown, an array that NumPy does not store.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: not a readable .npz file of arrays without pickled objects ({error})") from error
    missing, unknown = [key for key in ("a", "b") if key not in found], [key for key in found if key not in KEYS]
    if missing or unknown:
        wrong = [f"{', '.join(keys)} {what}" for keys, what in ((missing, "missing"), (unknown, "unknown")) if keys]
        raise ValueError(f"{path}: {'; '.join(wrong)}: the keys are {', '.join(KEYS)}")
    return Case(**{key: _read(path, key, value) for key, value in found.items()})


def _read(path: str | Path, key: str, value: NDArray[Any]) -> Any:
    if key in (*_TEXTS, "hypotheses"):
        if value.dtype.kind != "U" or value.ndim != int(key == "hypotheses"):
            expected = "strings [H]" if key == "hypotheses" else "one string"
            raise ValueError(f"{path}: {key} has dtype {value.dtype}, shape {list(value.shape)}: expected {expected}")
        return tuple(map(str, value)) if value.ndim else str(value)
    if value.dtype.kind == "V":
        raise ValueError(
            f"{path}: {key} has dtype {value.dtype}: NumPy stores no bfloat16 and FP8; save the codes, as "
            f"x.view(np.uint{8 * value.dtype.itemsize}), and name their format"
        )
    return value


def save_case(case: Case, path: str | Path) -> None:
    """Write a case; `load_case` reads it."""
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    with Path(path).open("wb") as file:  # given a name, NumPy may append to it
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items() if value is not None}
        np.savez(file, **arrays)
