"""What `fp8sim.matmul` takes as an operand, as the codes and factors that a GEMM computes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8sim import array_memory, casting, formats
from fp8sim.formats import FORMATS, Format
from fp8sim.mma.gemm import Operand
from fp8sim.mma.models import MmaModel, operand_dtype
from fp8sim.quantizers import QuantizedTensor

Array = NDArray[Any]

_VALUES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Operands:
    """The matrices of one argument, rows along M or N, k contiguous: as `fp8sim.mma.gemm.Operand`, with leading axes.

    Attributes:
        argument: "a" or "b", for messages.
        codes: [..., R, K]. format: their format's full name.
        scale_inv: [..., R, B] float32, or None. block: the length of a block along K.
        scales: [..., R, ceil(K / scale_columns)] uint8, codes of `scale_format`, where an instruction can apply them.
    """

    argument: str
    codes: Array
    format: str
    scale_inv: Array | None = None
    block: int | None = None
    scales: Array | None = None
    scale_format: str | None = None
    scale_columns: int | None = None
    tensor_scale: float = 1.0

    def at(self, index: tuple[int, ...], batch: tuple[int, ...], model: MmaModel) -> Operand:
        """The matrix at one place of the broadcast batch, as `model` takes it."""

        def matrix(x: Array) -> Array:
            found: Array = np.broadcast_to(x, (*batch, *x.shape[-2:]))[index]
            return found

        codes = matrix(self.codes)
        if model.scale_block is None:
            factors = None if self.scale_inv is None else matrix(self.scale_inv)
            return Operand(codes, self.format, factors, self.block)
        self._check_scales(model)
        assert self.scales is not None
        factors = None
        if self.tensor_scale != 1.0:
            factors = np.full((len(codes), 1), self.tensor_scale, np.float32)
        return Operand(codes, self.format, factors, None, matrix(self.scales))

    def _check_scales(self, model: MmaModel) -> None:
        wanted = str(formats.parse(model.scale_format or "e8m0"))
        if (self.scale_format, self.scale_columns) != (wanted, model.scale_block):
            got = f"{self.scale_format} for {self.scale_columns}" if self.scale_format else "none"
            raise ValueError(
                f"{self.argument}: {model} takes a {wanted} scale factor for {model.scale_block} elements along K, "
                f"got {got}: quantize it so, as fp8sim.quantize(x, 'mxfp8') or 'nvfp4' does"
            )


def operands(x: Any, argument: str, fmt: str | Format | None, scale_inv: Any) -> Operands:
    """x as `fp8sim.ops.tensor_core.matmul` describes `a` and `b`; a matrix b [..., K, N] is turned to [..., N, K].

    Raises:
        ValueError, TypeError: as `fp8sim.matmul`.
    """
    if isinstance(x, QuantizedTensor):
        if scale_inv is not None or (fmt is not None and formats.parse(fmt) != x.quantizer.format):
            raise ValueError(f"{argument} is a QuantizedTensor, which has its format and factors: give no others")
        return _quantized(x, argument)
    codes, name = _codes(x, argument, fmt)
    if codes.ndim < 2:
        raise ValueError(f"{argument} has shape {list(codes.shape)}: expected two axes or more")
    if scale_inv is not None:
        scale_inv = _float32(scale_inv, f"{argument}_scale_inv")
    if argument == "b":
        codes = codes.swapaxes(-1, -2)
        scale_inv = scale_inv if scale_inv is None or scale_inv.ndim < 2 else scale_inv.swapaxes(-1, -2)
    if scale_inv is None:
        return Operands(argument, codes, name)
    factors, block = _factors(scale_inv, argument, codes.shape)
    return Operands(argument, codes, name, factors, block)


def _factors(scale_inv: Array, argument: str, shape: tuple[int, ...]) -> tuple[Array, int | None]:
    """[..., R, B] and the length of a block along K, from one factor, one for each row, or blocks of rows and k."""
    rows, k = shape[-2:]
    if scale_inv.size == 1:
        return np.full((rows, 1), scale_inv.reshape(()), np.float32), None
    if scale_inv.ndim == 1:
        if len(scale_inv) != rows:
            axis = "N" if argument == "b" else "M"
            raise ValueError(f"{argument}_scale_inv has {len(scale_inv)} factors: expected one, or {axis} = {rows}")
        return scale_inv[:, None], None
    row_block = _block(scale_inv.shape[-2], rows, argument, shape)
    block = _block(scale_inv.shape[-1], k, argument, shape)
    return scale_inv[..., np.arange(rows) // row_block, :], block


def _block(count: int, length: int, argument: str, shape: tuple[int, ...]) -> int:
    """The size of blocks of which `count` cover an axis: all of it, 1, or a power of two."""
    if count == 1:
        return max(1, length)
    sizes: list[int] = [2**i for i in range(length.bit_length()) if -(-length // 2**i) == count]
    if not sizes:
        order = "[B, N] or [N]" if argument == "b" else "[M, B] or [M]"
        raise ValueError(
            f"{argument}_scale_inv has {count} blocks for {length} elements of an axis of {list(shape)}: expected one "
            f"factor, {order}, with one for each element, or for blocks of a power of two"
        )
    return max(sizes)


def _float32(x: Any, argument: str) -> Array:
    """x rounded to float32, subnormal numbers too, whatever the process does with them."""
    array = np.asarray(x)
    if array.dtype == np.float32:
        return array
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument} holds {array.dtype.name}: expected numbers of 64 bits or fewer")
    return casting.encode(array.astype(np.float64), "float32", overflow="INFINITY").view(np.float32)


def _quantized(x: QuantizedTensor, argument: str) -> Operands:
    codes, name = np.asarray(x.codes), str(x.quantizer.format)
    spec = x.quantizer.scale
    if spec is None:
        return Operands(argument, codes, name)
    if codes.ndim < 2:
        raise ValueError(f"{argument} has shape {list(codes.shape)}: expected two axes or more")
    rows, k = codes.shape[-2:]
    granularity = spec.granularity
    inverse = _float32(x.scale_inv(), f"{argument}_scale_inv")
    if granularity.is_whole_tensor:
        return Operands(argument, codes, name, np.full((rows, 1), inverse, np.float32), None)
    row_of = np.arange(rows) // (granularity.rows or max(1, rows))
    scales = None
    if spec.store.bits == 8:
        scales = np.asarray(x.scales)[..., row_of, :]
    return Operands(
        argument,
        codes,
        name,
        inverse[..., row_of, :],
        granularity.columns or max(1, k),
        scales,
        str(spec.store),
        granularity.columns,
        1.0 if x.tensor_scale is None else float(np.asarray(x.tensor_scale)),
    )


def _codes(x: Any, argument: str, fmt: str | Format | None) -> tuple[Array, str]:
    """The codes of an array or tensor and their format's name."""
    if not isinstance(x, np.ndarray | torch.Tensor):
        raise TypeError(f"{argument} is a {type(x).__name__}: expected a QuantizedTensor, a NumPy array or a tensor")
    wanted = "float64" if fmt == "float64" else None if fmt is None else str(formats.parse(fmt, f"{argument}_format"))
    dtype = array_memory.dtype_name(x.dtype)
    if dtype in _VALUES:
        return _values(x, argument, dtype, wanted)
    if dtype in FORMATS:
        if wanted not in (None, dtype):
            raise ValueError(f"{argument}_format={wanted}, but {argument} has dtype {dtype}: leave it out")
        unsigned = x.view(torch.uint8) if isinstance(x, torch.Tensor) else x.view(f"u{x.dtype.itemsize}")
        return array_memory.memory_of(unsigned, argument), dtype
    if wanted is None:
        raise ValueError(f"{argument} has dtype {dtype}: say what its codes mean with {argument}_format=")
    if dtype != operand_dtype(wanted):
        raise TypeError(f"{argument} has dtype {dtype}: codes of {wanted} are {operand_dtype(wanted)}")
    return array_memory.memory_of(x, argument), wanted


def _values(x: Any, argument: str, dtype: str, wanted: str | None) -> tuple[Array, str]:
    """Codes of numbers that lie on the grid of the format."""
    if wanted is None and dtype == "float32":
        raise ValueError(f"{argument} is float32: say on which grid its numbers lie with {argument}_format=, as 'e4m3'")
    name = wanted or dtype
    memory = array_memory.memory_of(x, argument)
    if name == dtype or (name == "tf32" and dtype == "float32"):
        return memory.view(operand_dtype(name)), name
    fmt = formats.parse(name)
    _check_grid(x, casting.cast(x, fmt), argument, name)
    return np.asarray(casting.encode(x, fmt)), name


def _check_grid(given: Any, kept: Any, argument: str, name: str) -> None:
    off = ~((given == kept) | (given != given))
    if bool(off.any()):
        index = tuple(int(i[0]) for i in np.nonzero(np.asarray(off)))
        raise ValueError(
            f"{argument}{list(index)} is {float(given[index])!r}, not a number of {name}: cast it first, with "
            f"fp8sim.cast({argument}, {name!r})"
        )
