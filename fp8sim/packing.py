"""Codes of fewer than eight bits in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fp8sim import scaling

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)


def pack(codes: _Array, bits: int) -> _Array:
    """Codes [..., C] of `bits` bits each as bytes [..., ceil(C * bits / 8)].

    The codes of a row follow each other in one string of bits, low bit first: code i has bits i * bits and up, and byte
    j the bits 8 j and up. So FP4 is two codes per byte, the first in the low half; FP6 four codes in three bytes. What
    remains of the last byte of a row is zero.

    Raises:
        ValueError: `bits` out of 1..8, or codes without an axis.
    """
    array = _codes(codes, bits)
    string = np.unpackbits(array[..., None], axis=-1, count=bits, bitorder="little")
    string = string.reshape(*array.shape[:-1], array.shape[-1] * bits)
    return scaling.like(np.packbits(string, axis=-1, bitorder="little"), codes)


def unpack(packed: _Array, bits: int, count: int) -> _Array:
    """The `count` codes of each row [..., count] that `pack` put into the bytes [..., ceil(count * bits / 8)].

    Raises:
        ValueError: `bits` out of 1..8, or a row of another length.
    """
    array = _codes(packed, bits)
    if array.shape[-1] != (expected := -(-count * bits // 8)):
        raise ValueError(f"packed has rows of {array.shape[-1]} bytes: {count} codes of {bits} bits take {expected}")
    string = np.unpackbits(array, axis=-1, count=count * bits, bitorder="little")
    string = string.reshape(*array.shape[:-1], count, bits)
    return scaling.like(np.packbits(string, axis=-1, bitorder="little")[..., 0], packed)


def _codes(codes: Any, bits: int) -> NDArray[np.uint8]:
    array = np.asarray(codes)
    if not 1 <= bits <= 8 or array.dtype != np.uint8 or array.ndim == 0:
        raise ValueError(f"expected uint8 [..., C] and bits 1 to 8, got {array.dtype} {list(array.shape)}, bits={bits}")
    return array
