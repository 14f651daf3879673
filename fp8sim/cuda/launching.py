"""What the launchers of the CUDA kernels share: tensors as the kernels take them, and the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

Capability = tuple[int, int]
AMPERE, ADA, HOPPER = (8, 0), (8, 9), (9, 0)


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


def capability_of(x: torch.Tensor, what: str) -> Capability:
    """The compute capability of x's device. RuntimeError before Ampere; `what` needs it."""
    capability = torch.cuda.get_device_capability(x.device)
    if capability < AMPERE:
        raise RuntimeError(
            f"{what} need compute capability 8.0 or later (Ampere), and {x.device} has "
            f"{capability[0]}.{capability[1]}: simulate on the CPU, with fp8sim.use_backend('simulate')"
        )
    return capability
