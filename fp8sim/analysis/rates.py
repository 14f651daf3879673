"""How fast GPUs multiply and move memory: figures with where they come from, and how to measure them here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Timer = Callable[[Sequence[Callable[[], object]]], list[float]]
"""The median seconds of each call."""


@dataclass(frozen=True)
class Figure:
    """A number and its evidence: "measured", "published" or "assumed", and where."""

    value: float
    evidence: str


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches.

    Attributes:
        device: its name.
        bf16, fp8: operations per second of large products, two for each product of elements; None: no FP8 instruction.
        memory: bytes per second, read and written.
        launch: seconds that every kernel takes beside its work.
        processors: multiprocessors, over which the tiles of a product are spread; None where the rates are those of
            the size that is asked about.
    """

    device: str
    bf16: Figure
    fp8: Figure | None
    memory: Figure
    launch: Figure
    processors: int | None


_LAUNCH = Figure(4e-6, "assumed, not measured")
_H100_FP8 = "published for the H100: cuBLASLt at 8192x8192x4096, Triton's pull request 5461"

RATES = {
    "H200": Rates(
        "H200",
        Figure(783e12, "measured on one H200: torch at 8192^3 on random data, 769 to 798 TFLOP/s"),
        Figure(1278e12, f"{_H100_FP8}; the H200 has the same tensor cores"),
        Figure(4.3e12, "measured on one H200: a copy on the device"),
        _LAUNCH,
        132,
    ),
    "H100": Rates(
        "H100",
        Figure(795e12, "published: cuBLAS at 8192^3, the README of fast.cu"),
        Figure(1278e12, _H100_FP8),
        Figure(3.24e12, "published: a sum of 2^30 numbers, the README of fast.cu"),
        _LAUNCH,
        132,
    ),
    "A100": Rates(
        "A100",
        Figure(312e12, "published peak, NVIDIA's data sheet"),
        None,
        Figure(2.039e12, "published peak, NVIDIA's data sheet (80 GB, SXM)"),
        _LAUNCH,
        108,
    ),
}
"""Rates by device. FP8 rates are of fast accumulation."""

_NAMES = {
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA A100-SXM4-80GB": "A100",
}
"""What drivers call these devices; others of the family have other clocks."""


def rates_of(device: str | torch.device | None) -> Rates:
    """The rates of a device.

    Args:
        device: a name ("H100", "NVIDIA H100 80GB HBM3"), a CUDA device, or None for the current one.

    Raises:
        ValueError: a device without figures, or none at all; the message says how to measure them.
    """
    name = _name(device)
    known = RATES.get(_NAMES.get(name, name).removeprefix("NVIDIA "))
    if known is None:
        raise ValueError(
            f"device={name!r}: no rates are known; they are for {', '.join(RATES)}. On a machine that has it, call "
            f"will_fp8_pay(M, N, K, 'cuda', measure=True), or give your own as rates="
        )
    return known


def _name(device: str | torch.device | None) -> str:
    is_cuda = device is None or str(device).split(":")[0] == "cuda"
    if not is_cuda:
        return str(device)
    if not torch.cuda.is_available():
        raise ValueError(
            f"device={device}: there is no CUDA device here: name one of {', '.join(RATES)}, or give rates="
        )
    return torch.cuda.get_device_name(None if device is None else torch.device(device))


def measure_rates(
    m: int, n: int, k: int, device: str | torch.device | None = None, timer: Timer | None = None
) -> Rates:
    """What a device reaches at one size: torch's BF16 product, fp8sim's FP8 product, and its cast to E4M3.

    Args:
        m, n, k: sizes of the product [M, K] @ [N, K]^T.
        device: a CUDA device; None: the current one.
        timer: replaces the device's clock.

    Raises:
        RuntimeError: no kernel runs here; the message says what is missing.
    """
    from fp8sim import backends

    if timer is None and device is not None and str(device).split(":")[0] != "cuda":
        raise RuntimeError(f"device={str(device)!r}: kernels are measured on a CUDA device here, 'cuda' or None")
    backends.row("gemm", "triton").load()
    from fp8sim.triton_kernels import matmul, tuning
    from fp8sim.triton_kernels.encode_scaled import encode_scaled

    where = torch.device("cuda" if device is None else device)
    a, b = (torch.randn(rows, k, device=where).to(torch.bfloat16) for rows in (m, n))
    capability = matmul.capability_of(a)
    left, right = (encode_scaled(x, "e4m3")[0].view(torch.float8_e4m3fn) for x in (a, b))
    bf16, fp8, cast = (timer or tuning.device_seconds)(
        [
            lambda: torch.matmul(a, b.T),
            lambda: matmul.matmul(left, right, out_dtype=torch.bfloat16),
            lambda: encode_scaled(a, "e4m3"),
        ]
    )
    here = f"measured here at {m}x{n}x{k}"
    operations = 2.0 * m * n * k
    return Rates(
        tuning.device_name(where),
        Figure(operations / bf16, f"{here}: torch"),
        Figure(operations / fp8, f"{here}: fp8sim's kernel") if capability >= (8, 9) else None,
        Figure(3.0 * m * k / cast, f"{here}: fp8sim's cast"),
        Figure(0.0, "part of the times measured"),
        None,
    )
