"""`torch.autocast`: the dtype that it gives the operands of a product, and where it must not reach."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from fp8sim.arguments import FLOATS


def autocast(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The operands of a product in the dtype of `torch.autocast`, where it is enabled.

    float64 stays, as in torch, and so do codes and FP8 numbers.
    """
    device = operands[0].device.type
    if not is_autocasting(device):
        return operands
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.dtype in FLOATS else x for x in operands)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A block in which torch's operations on that type of device have the dtypes of their operands."""
    return torch.autocast(device, enabled=False) if is_autocasting(device) else contextlib.nullcontext()


def is_autocasting(device: str) -> bool:
    """Whether `torch.autocast` is enabled for tensors on that type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
