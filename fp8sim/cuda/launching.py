"""What the launchers of the CUDA kernels share: tensors as the kernels take them, and the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def name_of(dtype: torch.dtype) -> str:
    """As the kernels name it."""
    return str(dtype).removeprefix("torch.")


def require_cuda(x: torch.Tensor, argument: str = "the tensor") -> None:
    """ValueError unless x is on a CUDA device."""
    if x.device.type != "cuda":
        raise ValueError(f"{argument} is on {x.device}: the CUDA kernels take CUDA tensors; use .cuda()")


def dense(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels take it: contiguous, on a CUDA device."""
    require_cuda(x)
    return x.detach().resolve_neg().contiguous()


@contextlib.contextmanager
def current_stream(x: torch.Tensor) -> Iterator[int]:
    """The current stream of x's device, which is the current device inside."""
    with torch.cuda.device(x.device):
        yield torch.cuda.current_stream().cuda_stream
