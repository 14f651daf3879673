"""The dtype that `torch.autocast` gives the operands of a product."""

from __future__ import annotations

import torch


def autocast(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both operands of a product in the dtype of `torch.autocast`, where it is enabled; float64 stays, as in torch."""
    device = a.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return a, b
    dtype = torch.get_autocast_dtype(device)
    a, b = (x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (a, b))
    return a, b
