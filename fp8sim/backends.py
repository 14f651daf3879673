"""The one table of implementations: which backends an operation has, where they run and what they promise.

To add a kernel, write it under the operation's stem and add one row to `BACKENDS`. Nothing is chosen silently: without
an explicit choice CPU tensors are simulated and CUDA tensors run the Triton kernel; a backend that cannot run is an
error that says why and what is available.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation.

    Attributes:
        op: "cast", "encode", "decode", "encode_scaled", "quantize", "matmul" (codes, with an order of additions),
            "gemm" (by recipe), "gemm_backward" (the two of a backward pass), "attention", "attention_backward", or
            fused element work: "gelu", "silu_glu" and "rms_norm" with their "_backward", "cross_entropy", "scale_rows".
        name: "simulate", "triton", "triton_hardware" or "cuda".
        target: what the code runs on, in words.
        devices: torch device types it takes.
        converts: "integer arithmetic", or "hardware conversion" where an instruction does the rounding.
        contract: "bitwise", or "exact-sum": bitwise where every order of additions gives the same sum, otherwise
            within `mma.float32_error_bound` of the exact sum; of attention, where exponentials are exact, too. Or
            "bound": numbers within the bound that the operation's definition in `fp8sim.simulate` derives, and codes
            bitwise those of the numbers.
        implementation: "module:function", imported at first use.
    """

    op: str
    name: str
    target: str
    devices: tuple[str, ...]
    converts: str
    contract: str
    implementation: str

    def load(self) -> Callable[..., Any]:
        """The implementation. RuntimeError says what is missing if it cannot run here."""
        reason = self.missing()
        if reason is not None:
            available = [row.name for row in rows(self.op) if row.missing() is None]
            raise RuntimeError(f"{self.op} cannot run on {self.name!r}: {reason}. Available: {', '.join(available)}")
        module, function = self.implementation.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded

    def missing(self) -> str | None:
        """Why this backend cannot run here, or None if it can."""
        return _MISSING[self.name]()


def _nothing() -> None:
    return None


def _triton_missing() -> str | None:
    reason: str | None = importlib.import_module("fp8sim.triton_kernels.requirements").triton_missing()
    if reason is not None:
        return reason
    if _cuda_device_missing() is None:
        return None
    interpreter = importlib.import_module("fp8sim.triton_kernels.interpreter")
    if interpreter.is_enabled():
        return None
    return f"{_cuda_device_missing()}, and the interpreter is off (fp8sim.triton_kernels.interpreter.enable())"


def _cuda_missing() -> str | None:
    if importlib.util.find_spec("fp8sim._cuda") is None:
        not_built: str = importlib.import_module("fp8sim.cuda.launching").NOT_BUILT
        return not_built
    return _cuda_device_missing()


@functools.cache
def _cuda_device_missing() -> str | None:
    torch = importlib.import_module("torch")
    return None if torch.cuda.is_available() else "no CUDA device"


_MISSING: dict[str, Callable[[], str | None]] = {
    "simulate": _nothing,
    "triton": _triton_missing,
    "triton_hardware": _triton_missing,
    "cuda": _cuda_missing,
}

_INTEGER = "integer arithmetic"
_CASTS = ("cast", "encode", "decode")
_GEMMS = ("gemm", "gemm_backward")
_FUSED = {
    "gelu": "activations",
    "gelu_backward": "activations",
    "silu_glu": "activations",
    "silu_glu_backward": "activations",
    "rms_norm": "rms_norm",
    "rms_norm_backward": "rms_norm",
}
_LOSS = ("cross_entropy", "scale_rows")
_ATTENTION = ("attention", "attention_backward")
_SIMULATED = ("C++", ("cpu",), _INTEGER)
_TRITON = ("Triton 3.6, sm_80 and later; the interpreter on a CPU", ("cuda", "cpu"), _INTEGER)
_CVT = ("Triton 3.6, cvt.rn.satfinite of sm_90 and later", ("cuda", "cpu"), "hardware conversion")
_CUDA = ("CUDA C++, sm_80 and later", ("cuda",), _INTEGER)

BACKENDS: tuple[Backend, ...] = (
    *(Backend(op, "simulate", *_SIMULATED, "bitwise", f"fp8sim.casting:{op}") for op in _CASTS),
    Backend("encode_scaled", "simulate", *_SIMULATED, "bitwise", "fp8sim.simulate.encode_scaled:encode_scaled"),
    Backend("quantize", "simulate", *_SIMULATED, "bitwise", "fp8sim.quantizers:quantize"),
    Backend("matmul", "simulate", *_SIMULATED, "bitwise", "fp8sim.simulate.tensor_core:matmul"),
    *(Backend(op, "simulate", *_SIMULATED, "exact-sum", f"fp8sim.simulate.matmul:{op}") for op in _GEMMS),
    *(Backend(op, "simulate", *_SIMULATED, "bitwise", f"fp8sim.simulate.{stem}:{op}") for op, stem in _FUSED.items()),
    *(Backend(op, "simulate", *_SIMULATED, "bitwise", f"fp8sim.simulate.cross_entropy:{op}") for op in _LOSS),
    Backend("attention", "simulate", *_SIMULATED, "bitwise", "fp8sim.simulate.packed_attention:attention"),
    Backend(
        "attention_backward",
        "simulate",
        *_SIMULATED,
        "bitwise",
        "fp8sim.simulate.attention_backward:attention_backward",
    ),
    *(Backend(op, "triton", *_TRITON, "bitwise", f"fp8sim.triton_kernels.cast:{op}") for op in _CASTS),
    Backend("encode_scaled", "triton", *_TRITON, "bitwise", "fp8sim.triton_kernels.encode_scaled:encode_scaled"),
    Backend("quantize", "triton", *_TRITON, "bitwise", "fp8sim.triton_kernels.quantize:quantize"),
    *(
        Backend(op, "triton_hardware", *_CVT, "bitwise", f"fp8sim.triton_kernels.hardware:{op}")
        for op in ("encode", "encode_scaled", "quantize")
    ),
    *(Backend(op, "triton", *_TRITON, "bound", f"fp8sim.triton_kernels.{stem}:{op}") for op, stem in _FUSED.items()),
    *(Backend(op, "triton", *_TRITON, "bound", f"fp8sim.triton_kernels.cross_entropy:{op}") for op in _LOSS),
    *(Backend(op, "triton_hardware", *_CVT, "bound", f"fp8sim.triton_kernels.hardware:{op}") for op in _FUSED),
    *(Backend(op, "triton", *_TRITON, "exact-sum", f"fp8sim.triton_kernels.{op}:{op}") for op in _ATTENTION),
    Backend("matmul", "triton", *_TRITON, "bitwise", "fp8sim.triton_kernels.tensor_core:matmul"),
    *(Backend(op, "triton", *_TRITON, "exact-sum", f"fp8sim.triton_kernels.gemm:{op}") for op in _GEMMS),
    *(Backend(op, "triton_hardware", *_CVT, "exact-sum", f"fp8sim.triton_kernels.gemm:hardware_{op}") for op in _GEMMS),
    *(Backend(op, "cuda", *_CUDA, "bitwise", f"fp8sim.cuda.cast:{op}") for op in _CASTS),
    Backend("encode_scaled", "cuda", *_CUDA, "bitwise", "fp8sim.cuda.encode_scaled:encode_scaled"),
    Backend("matmul", "cuda", *_CUDA, "bitwise", "fp8sim.cuda.tensor_core:matmul"),
    *(Backend(op, "cuda", *_CUDA, "exact-sum", f"fp8sim.cuda.gemm:{op}") for op in _GEMMS),
    Backend("attention", "cuda", *_CUDA, "exact-sum", "fp8sim.cuda.attention:attention"),
    # There is no backward kernel in CUDA C++: the gradients are those of the Triton one.
    Backend(
        "attention_backward",
        "cuda",
        *_TRITON,
        "exact-sum",
        "fp8sim.triton_kernels.attention_backward:attention_backward",
    ),
)
"""Every implementation."""


def rows(op: str) -> list[Backend]:
    """The rows of `op`. ValueError lists the operations if there is none of that name."""
    found = [row for row in BACKENDS if row.op == op]
    if not found:
        raise ValueError(f"unknown operation {op!r}: use one of {', '.join(sorted({row.op for row in BACKENDS}))}")
    return found


def row(op: str, name: str) -> Backend:
    """The row of `op` on backend `name`. ValueError lists what there is."""
    for candidate in BACKENDS:
        if candidate.op == op and candidate.name == name:
            return candidate
    raise ValueError(f"{op} has no backend {name!r}: use one of {', '.join(r.name for r in rows(op))}")


_chosen: str | None = None


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation called inside the `with` block on backend `name`: "simulate", "triton", "cuda", or
    "triton_hardware", which casts to E4M3 and E5M2 by the GPU's own conversion and refuses the rest.

    The choice is made when an operation runs forward; its backward pass keeps it. It holds for the whole process, other
    threads included. ValueError for an unknown name.
    """
    global _chosen
    if name not in _MISSING:
        raise ValueError(f"unknown backend {name!r}: use one of {', '.join(_MISSING)}")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def select(op: str, device: str) -> str:
    """The backend on which `op` runs for tensors on `device` (a torch device type).

    Raises:
        ValueError: the chosen backend has no such operation or takes no tensors on that device.
    """
    name = _chosen or ("triton" if device == "cuda" else "simulate")
    chosen = row(op, name)
    if device not in (*chosen.devices, "meta"):  # a meta tensor has a shape and nothing to compute
        raise ValueError(
            f"{op} on backend {name!r} takes tensors on {' or '.join(chosen.devices)}, got one on {device}: move it, "
            f"or choose another backend with fp8sim.use_backend"
        )
    return name
