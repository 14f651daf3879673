"""Attention on a GPU, forward, against the best of torch's: `python -m benchmarks.gpu_run --suite attention`.

Before a case is timed, the last queries of its first and last head are compared with what the simulator predicts from
the plan that the launch follows, on the very operands. Peers of FP8 are torch's attention of the same numbers in
bfloat16.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks import gpu_peers
from benchmarks.gpu_bars import BF16_ATTENTION, CUDA_ATTENTION, FP8_ATTENTION, Bar
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Call, Device
from fp8sim import backends
from fp8sim.cuda import attention as cuda_kernels
from fp8sim.mma.attention import AttentionPlan
from fp8sim.simulate.attention import attention as simulated
from fp8sim.triton_kernels import attention as kernels

E4M3, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16

TOKENS, HIDDEN, SHORT = 16384, 2048, 4096
TINY_TOKENS, TINY_HIDDEN, TINY_SHORT = 64, 256, 32
CHECKED = 16
"""Queries of a head that are predicted."""

ALLOWED = 2.0**-7
"""Relative difference of a right output from its prediction, which differs in probabilities next to a tie."""


@dataclass(frozen=True)
class AttentionCase:
    """Self-attention of `tokens` tokens of `hidden` features.

    Attributes:
        dtype: of query, key and value.
        width: features of a head. length: tokens of a sequence.
        is_causal: as for torch.
        bar: what is expected, if anything is.
        backend: whose kernel runs.
    """

    dtype: torch.dtype
    width: int
    length: int
    is_causal: bool
    bar: Bar | None = None
    tokens: int = TOKENS
    hidden: int = HIDDEN
    backend: str = "triton"

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").removeprefix("float8_")
        what = f"{dtype} head {self.width} length {self.length}{' causal' if self.is_causal else ''}"
        return what if self.backend == "triton" else f"{what}, {self.backend}"

    @property
    def operations(self) -> float:
        """Of both products, on pairs that are seen."""
        return 4 * self.tokens * self.length * self.hidden * (0.5 if self.is_causal else 1.0)


def attentions(device: Device) -> Iterator[AttentionCase]:
    bars = {(BF16, 128): BF16_ATTENTION, (E4M3, 128): FP8_ATTENTION}
    tokens, short = device.size((TOKENS, SHORT), (TINY_TOKENS, TINY_SHORT))
    hidden = device.size(HIDDEN, TINY_HIDDEN)
    for dtype in (BF16, E4M3):
        if dtype is E4M3 and device.capability < (8, 9):
            continue  # there FP8 is multiplied as float16: torch's own is the faster way
        for width in (64, 128, 256):
            for is_causal in (False, True):
                yield AttentionCase(dtype, width, tokens, is_causal, bars.get((dtype, width)), tokens, hidden)
        yield AttentionCase(dtype, 128, short, False, None, tokens, hidden)
    for dtype, is_causal in itertools.product((FP16, E4M3), (False, True)):
        if dtype is not E4M3 or device.capability >= (8, 9):
            bar = CUDA_ATTENTION if dtype is FP16 else None
            yield AttentionCase(dtype, 128, tokens, is_causal, bar, tokens, hidden, "cuda")


def operands(case: AttentionCase, device: Device, seed: int) -> list[torch.Tensor]:
    shape = (case.tokens // case.length, case.hidden // case.width, case.length, case.width)
    return [device.numbers(shape, case.dtype, 3 * seed + i) for i in range(3)]


def wrong(case: AttentionCase, device: Device, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """How far the kernel's last queries of two heads are from the simulator's; empty if not too far."""
    heads = [0, q.shape[1] - 1]
    plan = _plan(case, device)
    output = _attention(case)(q, k, v, is_causal=case.is_causal, dtype=torch.float32)[0]
    actual = output[-1:, heads, -CHECKED:].cpu()
    query, key, value = q[-1:, heads, -CHECKED:].cpu(), k[-1:, heads].cpu(), v[-1:, heads].cpu()
    expected = simulated(query, key, value, plan=plan, is_causal=case.is_causal, lower_right=True).output
    off = float((actual - expected).norm() / expected.norm())
    return "" if off <= ALLOWED else f"the output differs from what the plan predicts by {off:.2g} of its norm"


def _attention(case: AttentionCase) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return kernels.attention if case.backend == "triton" else cuda_kernels.attention


def _plan(case: AttentionCase, device: Device) -> AttentionPlan:
    if case.backend == "cuda":
        return cuda_kernels.plan_of(case.dtype, device.capability, case.width)
    return kernels.plan_of((case.dtype,) * 3, device.capability, case.width)


def work(case: AttentionCase, device: Device) -> Work:
    if missing := backends.row("attention", case.backend).missing():
        raise Absent(missing)
    size = 3 * case.tokens * case.hidden * case.dtype.itemsize
    sets = [operands(case, device, seed) for seed in range(device.sets(size))]
    peers_dtype = BF16 if case.dtype is E4M3 else case.dtype
    wide = sets if case.dtype is peers_dtype else [[x.to(peers_dtype) for x in one] for one in sets]

    def peer(attention: Callable[..., torch.Tensor]) -> Call:
        return lambda turn: attention(*wide[turn % len(wide)], is_causal=case.is_causal)

    return Work(
        run=lambda turn: _attention(case)(*sets[turn % len(sets)], is_causal=case.is_causal, dtype=peers_dtype),
        wrong=lambda: wrong(case, device, *sets[0]),
        bytes=size + 2 * case.tokens * case.hidden,
        flops=int(case.operations),
        operands={BF16: "BF16", FP16: "FP16", E4M3: "FP8"}[case.dtype],
        peers={name: peer(attention) for name, attention in gpu_peers.attentions(device).items()},
    )


def cases(device: Device) -> Iterator[Case]:
    for case in attentions(device):
        yield Case(case.name, functools.partial(work, case), case.bar)
