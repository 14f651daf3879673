"""Codes as other libraries hold them: ml_dtypes and JAX arrays, torch's float8 and packed float4, DLPack.

fp8sim's own form is unsigned integers, one code per element, with the format beside them. Every function here moves
bits and converts no number. Memory is shared where both libraries can describe it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fp8sim import formats
from fp8sim.casting import code_dtype
from fp8sim.formats import FORMATS, Format

Array = np.ndarray[Any, Any]


def to_ml_dtypes(codes: Array | torch.Tensor, fmt: str | Format) -> Array:
    """Codes as an array of the ml_dtypes dtype of `fmt`; `jax.numpy.asarray` takes it from there.

    Args:
        codes: [...], uint8 (uint16 for bfloat16), NumPy or CPU tensor.
        fmt: a format that ml_dtypes has, or its name.

    Returns:
        [...], every bit kept, NaN codes and signed zeros included.

    Raises:
        ValueError: ml_dtypes has no such format, or a code lies outside it.
        TypeError: codes of another dtype.
    """
    import ml_dtypes

    fmt = formats.parse(fmt)
    name = _name_in(ml_dtypes, fmt, "ml_dtypes")
    return _code_array(codes, fmt).view(getattr(ml_dtypes, name))


def from_ml_dtypes(x: Any) -> tuple[Array, Format]:
    """The codes and the format of an ml_dtypes array, or of anything that NumPy turns into one, as a JAX array is.

    NumPy's own float16 and float32 have codes, too.

    Returns:
        (codes [...], unsigned integers of the element's width, one code each; the format).

    Raises:
        TypeError: the dtype is no format of the catalogue.
    """
    array = np.asarray(x)
    fmt = FORMATS.get(array.dtype.name)
    if fmt is None:
        raise TypeError(f"x has dtype {array.dtype}: expected a float dtype of ml_dtypes, as float8_e4m3fn")
    return array.view(f"u{array.dtype.itemsize}"), fmt


def to_torch_float8(codes: Array | torch.Tensor, fmt: str | Format) -> torch.Tensor:
    """Codes as a tensor of the torch dtype of `fmt`: float8_e4m3fn, float8_e5m2, their FNUZ twins, float8_e8m0fnu.

    Args:
        codes: [...], uint8; a NumPy array, or a tensor on any device.
        fmt: a format that torch has in 8 bits, or its name.

    Returns:
        [...], on the device of `codes`, every bit kept.

    Raises:
        ValueError: torch has no such format in 8 bits.
        TypeError: codes of another dtype.
    """
    fmt = formats.parse(fmt)
    name = _name_in(torch, fmt, "torch")
    if fmt.bits != 8:
        raise ValueError(f"fmt={fmt}: expected a format of 8 bits; decode(codes, fmt) gives {name} values")
    dtype: torch.dtype = getattr(torch, name)
    return _code_tensor(codes, fmt).view(dtype)


def from_torch_float8(x: torch.Tensor) -> tuple[torch.Tensor, Format]:
    """The codes, uint8 [...] on the device of `x`, and the format of a tensor of a float8 dtype.

    Raises:
        TypeError: `x` is no tensor of a float8 dtype.
    """
    name = str(x.dtype).removeprefix("torch.") if isinstance(x, torch.Tensor) else type(x).__name__
    if not name.startswith("float8") or name not in FORMATS:
        raise TypeError(f"x is {name}: expected a tensor of a float8 dtype; from_ml_dtypes takes NumPy arrays")
    return x.view(torch.uint8), FORMATS[name]


def pack_float4(codes: Array | torch.Tensor) -> torch.Tensor:
    """Codes of float4_e2m1fn, two to a byte, as torch's `float4_e2m1fn_x2`: the first of a pair in the low half.

    Args:
        codes: [..., N], uint8, each 0 to 15, N even.

    Returns:
        [..., N / 2], float4_e2m1fn_x2.

    Raises:
        ValueError: N is odd, `codes` is 0-d, or a code exceeds 15.
        TypeError: codes of another dtype.
    """
    fmt = FORMATS["float4_e2m1fn"]
    tensor = _code_tensor(codes, fmt)
    if tensor.ndim == 0 or tensor.shape[-1] % 2:
        raise ValueError(f"codes have shape {list(tensor.shape)}: expected an even last dimension; pad it with 0")
    pairs = tensor.reshape(*tensor.shape[:-1], tensor.shape[-1] // 2, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).view(torch.float4_e2m1fn_x2)


def unpack_float4(packed: torch.Tensor) -> tuple[torch.Tensor, Format]:
    """The codes, uint8 [..., N], and the format of `packed`, float4_e2m1fn_x2 or uint8 [..., N / 2].

    Raises:
        TypeError: another dtype.
        ValueError: `packed` is 0-d.
    """
    if not isinstance(packed, torch.Tensor) or packed.dtype not in (torch.float4_e2m1fn_x2, torch.uint8):
        name = getattr(packed, "dtype", type(packed).__name__)
        raise TypeError(f"packed is {name}: expected a tensor of dtype float4_e2m1fn_x2, or of its bytes as uint8")
    if packed.ndim == 0:
        raise ValueError("packed has no dimension: expected [..., N / 2]; use packed.reshape(1)")
    pairs = packed.view(torch.uint8)
    codes = torch.stack([pairs & 15, pairs >> 4], dim=-1)
    return codes.flatten(-2), FORMATS["float4_e2m1fn"]


def to_dlpack(codes: Array | torch.Tensor, fmt: str | Format) -> tuple[Array | torch.Tensor, str]:
    """What travels through DLPack: unsigned integers (`x.__dlpack__()` exports them) and the format's name.

    DLPack has numbers for narrow floats, but few libraries take them; integers and a name go everywhere.

    Raises:
        ValueError: a code lies outside the format.
        TypeError: codes of another dtype than `code_dtype(fmt)`.
    """
    fmt = formats.parse(fmt)
    _check(codes, fmt)
    return codes, str(fmt)


def from_dlpack(x: Any, name: str) -> tuple[Array, Format]:
    """The codes and the format of what `to_dlpack` gave, from any CPU array that has `__dlpack__`.

    Raises:
        ValueError: an unknown format, or a code outside it.
        TypeError: elements other than `code_dtype(fmt)`, or an object without `__dlpack__`.
    """
    fmt = formats.parse(name)
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"x is a {type(x).__name__}: expected an array with __dlpack__, as NumPy, torch and JAX have")
    codes = np.from_dlpack(x)
    _check(codes, fmt)
    return codes, fmt


def _name_in(library: Any, fmt: Format, label: str) -> str:
    """What `library` calls `fmt`, whatever label the format carries."""
    known = [name for name in FORMATS if hasattr(library, name)]
    for name in known:
        if FORMATS[name] == fmt:
            return name
    raise ValueError(f"fmt={fmt}: {label} {library.__version__} has {', '.join(known)}; send codes as integers instead")


def _check(codes: Array | torch.Tensor, fmt: Format) -> None:
    """TypeError or ValueError unless `codes` are codes of `fmt`."""
    name, expected = str(codes.dtype).removeprefix("torch."), code_dtype(fmt)
    if name != expected:
        raise TypeError(f"codes have dtype {name}: the codes of {fmt} are {expected}")
    largest = int(codes.max()) if 0 not in codes.shape and fmt.bits not in (8, 16, 32) else 0
    if largest >> fmt.bits:
        raise ValueError(f"codes contain {largest:#x}: the codes of {fmt} are 0 to {(1 << fmt.bits) - 1:#x}")


def _code_array(codes: Array | torch.Tensor, fmt: Format) -> Array:
    _check(codes, fmt)
    array: Array = codes.numpy() if isinstance(codes, torch.Tensor) else codes
    return array


def _code_tensor(codes: Array | torch.Tensor, fmt: Format) -> torch.Tensor:
    _check(codes, fmt)
    if isinstance(codes, torch.Tensor):
        return codes
    shareable = codes.flags.writeable and min(codes.strides, default=0) >= 0
    return torch.from_numpy(codes if shareable else codes.copy())
