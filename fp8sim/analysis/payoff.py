"""Will FP8 pay? The times of a linear layer in BF16 and in FP8, casts included, from the rates of a device."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch

from fp8sim.analysis.rates import Rates, measure_rates, rates_of

PAYS = 1.05
"""FP8 pays if it is at least so many times as fast, forward and backward; less is lost in what a layer does besides."""

_TILE = (128, 256)
"""Rows and columns of a tile of a product: a multiprocessor computes whole ones."""


@dataclass(frozen=True)
class Times:
    """Seconds of one pass: its products in BF16, the same in FP8, and the casts that these need."""

    bf16_gemm: float
    fp8_gemm: float
    casts: float

    def __add__(self, other: Times) -> Times:
        return Times(self.bf16_gemm + other.bf16_gemm, self.fp8_gemm + other.fp8_gemm, self.casts + other.casts)

    @property
    def fp8(self) -> float:
        """Products and casts."""
        return self.fp8_gemm + self.casts

    @property
    def speedup(self) -> float:
        """BF16's time over FP8's, casts included."""
        return self.bf16_gemm / self.fp8


@dataclass(frozen=True)
class Payoff:
    """What FP8 gains in a linear layer. Its text is a table.

    Attributes:
        size: M tokens, N outputs, K inputs.
        forward, backward: the times of each pass.
        rates: what they were computed from, with the evidence of each figure.
        pays: whether both passes together are at least `PAYS` times as fast.
        reason: the verdict in a sentence.
    """

    size: tuple[int, int, int]
    forward: Times
    backward: Times
    rates: Rates
    pays: bool
    reason: str

    def __str__(self) -> str:
        m, n, k = self.size
        verdict = "pays" if self.pays else "does not pay"
        lines = [
            f"linear layer, {m} tokens, {k} -> {n}, on {self.rates.device}: FP8 {verdict}",
            f"{'us':<20}{'BF16 GEMM':>10}{'FP8 GEMM':>10}{'casts':>10}{'FP8 sum':>10}{'speed-up':>10}",
        ]
        for name, times in (("forward", self.forward), ("forward + backward", self.forward + self.backward)):
            figures = (times.bf16_gemm, times.fp8_gemm, times.casts, times.fp8)
            lines.append(f"{name:<20}{''.join(f'{1e6 * t:>10.1f}' for t in figures)}{times.speedup:>10.2f}")
        named = {"BF16": self.rates.bf16, "FP8": self.rates.fp8}
        lines += [f"{self.reason}", "evidence:"]
        lines += [f"  {name}: {f.value / 1e12:.4g} TFLOP/s, {f.evidence}" for name, f in named.items() if f is not None]
        lines.append(f"  memory: {self.rates.memory.value / 1e12:.3g} TB/s, {self.rates.memory.evidence}")
        lines.append(f"  a launch: {1e6 * self.rates.launch.value:.3g} us, {self.rates.launch.evidence}")
        return "\n".join(lines)


def will_fp8_pay(
    M: int,
    N: int,
    K: int,
    device: str | torch.device | None = None,
    *,
    measure: bool = False,
    rates: Rates | None = None,
) -> Payoff:
    """Whether a linear layer is faster in FP8 than in BF16, casts included: forward, and forward and backward.

    Scale factors are known beforehand, as unit scaling has them: a cast is one pass over memory, and needs no amax.
    Forward casts input and weight (3 bytes per element); backward casts the gradient once in both layouts, and input
    and weight into the other layout (4 bytes per element). A product takes the time of its whole tiles at the device's
    rate, or of its bytes if that is longer; a layer of many small products takes longer than this says.

    Args:
        M: tokens. N: outputs. K: inputs.
        device: "H200", "H100", "A100" or a CUDA device; None: the current one.
        measure: measure the rates at this size on the CUDA device, instead of taking recorded ones.
        rates: your own.

    Raises:
        ValueError: a size below 1, a device without rates; `measure` and `rates` together.
        RuntimeError: nothing can be measured here.
    """
    sizes = (M, N, K)
    if not all(isinstance(size, numbers.Integral) for size in sizes) or min(sizes) < 1 or max(sizes) >= 2**63:
        raise ValueError(f"M={M!r}, N={N!r}, K={K!r}: sizes of 1 or more, in whole numbers")
    if measure and rates is not None:
        raise ValueError("measure=True and rates=: give one of them")
    found = rates or (measure_rates(M, N, K, device) if measure else rates_of(device))
    forward = Times(_product(M, N, K, 2, found), _product(M, N, K, 1, found), _casts(found, 3 * M * K, 3 * N * K))
    backward = Times(
        _product(M, K, N, 2, found) + _product(N, K, M, 2, found),
        _product(M, K, N, 1, found) + _product(N, K, M, 1, found),
        _casts(found, 4 * M * N, 4 * M * K, 4 * N * K),
    )
    both = forward + backward
    pays = found.fp8 is not None and both.speedup >= PAYS
    return Payoff((M, N, K), forward, backward, found, pays, _reason(both, found, pays))


def _product(rows: int, columns: int, inner: int, size: int, rates: Rates) -> float:
    """Seconds of a product of elements of `size` bytes, with a result of 2."""
    figure = rates.fp8 if size == 1 and rates.fp8 is not None else rates.bf16
    computing = 2.0 * rows * columns * inner / (figure.value * _filled(rows, columns, rates.processors))
    moving = (size * inner * (rows + columns) + 2.0 * rows * columns) / rates.memory.value
    return max(computing, moving) + rates.launch.value


def _filled(rows: int, columns: int, processors: int | None) -> float:
    """The share of the multiprocessors' time that a product fills; the sums of fewer tiles are split."""
    if processors is None:
        return 1.0
    tiles = math.ceil(rows / _TILE[0]) * math.ceil(columns / _TILE[1])
    if tiles > processors:
        tiles = math.ceil(tiles / processors) * processors
    return rows * columns / (tiles * _TILE[0] * _TILE[1])


def _casts(rates: Rates, *moved: int) -> float:
    return sum(moved) / rates.memory.value + len(moved) * rates.launch.value


def _reason(both: Times, rates: Rates, pays: bool) -> str:
    if rates.fp8 is None:
        return (
            f"{rates.device} has no FP8 instruction: FP8 numbers are multiplied at the rate of BF16, after the casts."
        )
    gemm, casts = both.bf16_gemm / both.fp8_gemm, both.casts / both.fp8
    share = f"FP8 products are {gemm:.2f} times as fast, and casts take {casts:.0%} of FP8's time"
    total = f"{both.speedup:.2f} times as fast in all"
    return (
        f"{share}: {total}."
        if pays
        else f"{share}: {total}, below {PAYS}. More tokens or wider layers make casts cheaper."
    )
