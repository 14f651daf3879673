"""What the launchers of the CUDA kernels share: tensors as the kernels take them, and the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Capability = tuple[int, int]
AMPERE, ADA, HOPPER = (8, 0), (8, 9), (9, 0)


def name_of(dtype: torch.dtype) -> str:
    """As the kernels name it."""
    return str(dtype).removeprefix("torch.")


NOT_BUILT = "fp8sim was built without nvcc, so there is no fp8sim._cuda (FP8SIM_CUDA=1 pip install .)"


def require_built() -> None:
    """RuntimeError where `fp8sim._cuda` is not here, or does not load."""
    try:
        from fp8sim import _cuda  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"{NOT_BUILT}: {error}") from error


def require_dtype(argument: str, dtype: Any, dtypes: Sequence[torch.dtype]) -> None:
    """TypeError unless it is one of these."""
    if dtype not in dtypes:
        raise TypeError(f"{argument} must be one of {', '.join(map(name_of, dtypes))}, got {dtype}")


def require_cuda(argument: str, x: torch.Tensor) -> None:
    """ValueError unless x is on a CUDA device; RuntimeError without the kernels."""
    if x.device.type != "cuda":
        raise ValueError(f"{argument} is on {x.device}: the CUDA kernels take CUDA tensors; use .cuda()")
    require_built()


def float32_of(value: float) -> float:
    """The float32 number nearest to value, ties to even, overflow to infinity."""
    with np.errstate(over="ignore"):
        return float(np.float32(float(value)))


def dense(argument: str, x: torch.Tensor) -> torch.Tensor:
    """x as the kernels of casts take it: contiguous, on a CUDA device."""
    require_cuda(argument, x)
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
