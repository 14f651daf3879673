"""What fused element work makes of its numbers: the definition is that of two passes, one after the other."""

from __future__ import annotations

from typing import Any

import torch

from fp8sim.formats import Format
from fp8sim.simulate.encode_scaled import encode_scaled

Result = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""Numbers [..., R, C], codes [..., R, C], transposed codes [..., C, R], amax [] in float32; None if not asked for."""


def result_of(
    number: torch.Tensor, values: torch.dtype | None = None, fmt: str | Format | None = None, **options: Any
) -> Result:
    """The forms of numbers, which are rounded to float32 first.

    Args:
        number: [..., R, C], float64. NaN of any sign and payload is the positive quiet NaN.
        values: the dtype in which to give them, or None.
        fmt: the format of codes, or None for none.
        options: of `encode_scaled`: scale, amax, transpose, rounding, overflow and random bits.
    """
    rounded = number.float()
    rounded = rounded.masked_fill(rounded.isnan(), torch.nan)
    given = None if values is None else rounded.to(values, copy=True).contiguous()
    if fmt is None:
        return given, None, None, None
    return given, *encode_scaled(rounded, fmt, **options)
