"""Rotary position embedding (RoPE: Su et al. 2021, "RoFormer", section 3.2)."""

from __future__ import annotations

import functools
from typing import Any

import torch


def rotate(x: torch.Tensor, base: float, first: int = 0) -> torch.Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of each position p = first, first + 1, ... by the angle p * base^(-2i/D).

    The dot product of a query and a key then depends on the distance of their positions alone. A rotation keeps scale,
    forward and backward, so it has no factor. Angles, sines and cosines are float32 (float64 for float64 inputs).

    Args:
        x: [..., L, D] of queries or keys; D is even.
        base: the slowest pair turns by about 1 / base per position.
        first: position of x[..., 0, :].

    Returns:
        [..., L, D], in the dtype of x.

    Raises:
        ValueError: an odd D, a base that is not above 0.
    """
    length, width = x.shape[-2:]
    if width % 2:
        raise ValueError(f"x has {width} features per head: rotary positions turn pairs, so use an even number")
    if not base > 0:
        raise ValueError(f"base={base}: must be above 0, such as 10000")
    dtype = torch.promote_types(x.dtype, torch.float32)
    # The compiler follows no cache, and a tensor of another kind (a fake one) has no table that may outlive it.
    kept = type(x) is torch.Tensor and not torch.compiler.is_compiling()
    own, other = (_kept_table if kept else _table)(length, width, base, first, dtype, x.device)
    wide = x.to(dtype)
    return torch.addcmul(wide * own, wide.roll(width // 2, -1), other).to(x.dtype)


def _table(
    length: int, width: int, base: float, first: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What multiplies x, and the other element of its pair, each [L, D].

    (a, b) -> (a cos - b sin, b cos + a sin): x by its own cosine, and the other of its pair by a signed sine.
    """
    positions = torch.arange(first, first + length, dtype=dtype, device=device)
    speeds = base ** (torch.arange(0, width, 2, dtype=dtype, device=device) / -width)
    angles = positions[:, None] * speeds
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


@functools.lru_cache(maxsize=8)
def _kept_table(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`_table`, also for a later call that needs gradients if this one is made in inference mode."""
    with torch.inference_mode(False):
        return _table(*arguments)
