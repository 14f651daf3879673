"""Arrays of any library as NumPy codes: what every comparison of this package works on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fp8sim import casting, formats, interop
from fp8sim.formats import FORMATS, Format, Nan

Array = np.ndarray[Any, Any]


class Elements(NamedTuple):
    """The bits of an array.

    Attributes:
        bits: [...], unsigned integers, one element each.
        fmt: the format whose codes they are; None for integers without one, and for float64.
        dtype: the name of the dtype they came in.
    """

    bits: Array
    fmt: Format | None
    dtype: str

    def value(self, index: tuple[int, ...]) -> float | int:
        """The number that one element stands for."""
        word = int(self.bits[index])
        if self.dtype == "float64":
            return float(np.uint64(word).view(np.float64))
        return word if self.fmt is None else self.fmt.to_float(word)

    def nan(self) -> Array:
        """[...], which elements are NaN."""
        if self.dtype == "float64":
            nan: Array = np.isnan(self.bits.view(np.float64))
            return nan
        return np.zeros(self.bits.shape, bool) if self.fmt is None else nan_codes(self.bits, self.fmt)


def elements(x: Any, argument: str, fmt: Format | None = None) -> Elements:
    """The bits of `x`: a float array of NumPy, ml_dtypes or torch, or integers, which are codes of `fmt` if given.

    Raises:
        TypeError: `x` is no array, or of a dtype that is neither a number format nor an unsigned integer.
        ValueError: integers that are no codes of `fmt`.
    """
    array, name = numpy_of(x, argument)
    kind, word = array.dtype.kind, f"u{array.dtype.itemsize}"
    if name in FORMATS:
        return Elements(array.view(word), FORMATS[name], name)
    if name == "float64":
        return Elements(array.view(word), None, name)
    if kind not in "iu":
        raise TypeError(f"{argument} has dtype {name}: expected a float dtype or integer codes")
    if fmt is None:
        return Elements(array, None, name)
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < 1 << fmt.bits:
        raise ValueError(
            f"{argument} contains {int(array.min())} to {int(array.max())}: the codes of {fmt} are 0 to {fmt.codes[-1]}"
        )
    return Elements(array.view(word), fmt, name)


def numpy_of(x: Any, argument: str) -> tuple[Array, str]:
    """`x` as a NumPy array, whose dtype may be a stand-in of the same width, and the name of its own dtype."""
    if isinstance(x, torch.Tensor):
        name = str(x.dtype).removeprefix("torch.")
        x = x.detach().cpu().resolve_neg()
        if name == "float4_e2m1fn_x2":
            codes, fmt = interop.unpack_float4(x)
            return codes.numpy(), fmt.name
        if name == "bfloat16" or name.startswith("float8"):
            x = x.view(torch.uint16 if name == "bfloat16" else torch.uint8)
        return x.numpy(), name
    if isinstance(x, np.ndarray | np.generic) or hasattr(x, "__array__"):
        array = np.asarray(x)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return array, array.dtype.name
    raise TypeError(f"{argument} is a {type(x).__name__}: expected an array of NumPy, torch or JAX")


def codes_of(x: Any, fmt: str | Format, argument: str) -> tuple[Array, Format]:
    """Codes of `fmt` out of integers, or out of an array whose dtype is the format.

    Raises:
        TypeError: `x` has neither; values have to be encoded first.
        ValueError: integers that are no codes of `fmt`.
    """
    fmt = formats.parse(fmt)
    found = elements(x, argument, fmt)
    if found.fmt != fmt:
        raise TypeError(f"{argument} has dtype {found.dtype}: expected codes of {fmt}; fp8sim.encode makes them")
    return found.bits, fmt


def nan_codes(codes: Array, fmt: Format) -> Array:
    """[...], whether each code is NaN."""
    if fmt.nan is Nan.NEGATIVE_ZERO:
        negative_zero: Array = codes == fmt.sign_bit
        return negative_zero
    if fmt.nan is Nan.NONE:
        return np.zeros(codes.shape, bool)
    above: Array = magnitudes(codes, fmt) > fmt.max_code + fmt.infinity
    return above


def infinite_codes(codes: Array, fmt: Format) -> Array:
    """[...], whether each code is an infinity."""
    if fmt.inf_code is None:
        return np.zeros(codes.shape, bool)
    infinite: Array = magnitudes(codes, fmt) == fmt.inf_code
    return infinite


def magnitudes(codes: Array, fmt: Format) -> Array:
    """[...], the codes without their sign, in the codes' dtype."""
    magnitude: Array = codes & codes.dtype.type(fmt.top_code)
    if fmt.twos_complement:
        sign_bit = codes.dtype.type(fmt.sign_bit)
        return np.where(codes & sign_bit, sign_bit - magnitude, magnitude)
    return magnitude


def ordinals(codes: Array, fmt: Format) -> Array:
    """[...], signed integers: `Format.ordinal` of each code; meaningless for NaN."""
    magnitude = magnitudes(codes, fmt).astype(np.int32 if fmt.bits <= 16 else np.int64)
    return np.where(codes & codes.dtype.type(fmt.sign_bit), np.negative(magnitude), magnitude)


def like(x: Array, takes: str, device: str = "cpu") -> Any:
    """`x` as "numpy", or as a "torch" tensor on `device`; torch gets its own bfloat16, strides kept where it can."""
    if takes == "numpy":
        return x
    if takes != "torch":
        raise ValueError(f"takes={takes!r}: use 'numpy' or 'torch'")
    shared = x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy()
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(shared.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(shared).to(device)


def decoded(codes: Array, fmt: Format, dtype: str) -> Array:
    """The numbers of codes as a NumPy array of `dtype`, ml_dtypes' bfloat16 included."""
    return casting.decode(codes.astype(casting.code_dtype(fmt)), fmt, dtype=dtype)


def widened(x: Array) -> Array:
    """[...], floats as binary64, exactly; signalling NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name that NumPy or ml_dtypes knows."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
