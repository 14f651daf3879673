"""The backward pass of attention on a GPU: `python -m benchmarks.gpu_run --suite attention_backward`.

Before a case is timed, the gradients of the last queries and of the last keys and values of two heads are compared with
what the simulator computes by the plan that the launch states. Of peers, the backward pass alone is timed. Peers of FP8
are torch's backward pass of the same numbers in bfloat16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_peers
from benchmarks.gpu_bars import ATTENTION_BACKWARD, Bar
from benchmarks.gpu_rows import Case, Work
from benchmarks.gpu_timing import Call, Device, reason
from fp8sim.mma.attention_backward import backward_scales
from fp8sim.simulate.attention_backward import attention_backward as simulated
from fp8sim.triton_kernels import attention_backward as kernels

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16

CHECKED = 16
"""Queries, keys and values of a head whose gradients are compared."""

ALLOWED = 2.0**-6
"""Relative difference of a right gradient from the simulated one: casts of numbers next to a tie may differ."""


@dataclass(frozen=True)
class BackwardCase:
    """Self-attention of one sequence.

    Attributes:
        dtype: of query, key and value. fp8: whether FP8 is multiplied, and not bfloat16.
        width: features of a head.
        bar: what is expected, if anything is.
        length: tokens. hidden: features of all heads.
    """

    dtype: torch.dtype
    fp8: bool
    width: int
    is_causal: bool
    bar: Bar | None = None
    length: int = 16384
    hidden: int = 2048

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").removeprefix("float8_")
        products = " multiplied as FP8" if self.fp8 else ""
        return f"{dtype}{products} head {self.width}{' causal' if self.is_causal else ''}"

    @property
    def heads(self) -> int:
        return self.hidden // self.width

    @property
    def operations(self) -> float:
        """Of the five products, on pairs that are seen; those that a second pass repeats do not count."""
        return 10 * self.heads * self.length**2 * self.width * (0.5 if self.is_causal else 1.0)


class Inputs(NamedTuple):
    """As `kernels.attention_backward` takes them."""

    grad_output: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    lse: torch.Tensor


def backwards(device: Device) -> Iterator[BackwardCase]:
    sizes = device.size({}, {"length": 64, "hidden": 256})
    for dtype, fp8 in ((BF16, False), (E4M3, False), (E4M3, True)):
        if fp8 and device.capability < (9, 0):
            continue
        for width in (64, 128, 256):
            for is_causal in (False, True):
                bar = ATTENTION_BACKWARD if (dtype, width) == (BF16, 128) else None
                yield BackwardCase(dtype, fp8, width, is_causal, bar, **sizes)


def operands(case: BackwardCase, device: Device, seed: int) -> Inputs:
    """Random operands, and their output and sums by torch, one head at a time."""
    shape = (1, case.heads, case.length, case.width)
    q, k, v = (device.numbers(shape, case.dtype, 4 * seed + i) for i in range(3))
    grad = device.numbers(shape, BF16, 4 * seed + 3)
    output, lse = torch.empty(shape, dtype=BF16, device=device.kind), torch.empty(shape[:3], device=device.kind)
    for head in range(shape[1]):
        one_q, one_k, one_v = (x[0, head].to(BF16) for x in (q, k, v))
        logits = torch.matmul(one_q, one_k.T).float() * case.width**-0.5
        if case.is_causal:
            logits.masked_fill_(torch.ones_like(logits, dtype=torch.bool).triu_(1), -math.inf)
        lse[0, head] = torch.logsumexp(logits, -1)
        output[0, head] = torch.matmul(torch.softmax(logits, -1).to(BF16), one_v)
    return Inputs(grad, q, k, v, output, lse * math.log2(math.e))


def wrong(case: BackwardCase, device: Device, inputs: Inputs) -> str:
    """How far the gradients that are compared are from the simulator's; empty if not too far."""
    options: dict[str, Any] = {"fp8": case.fp8, "is_causal": case.is_causal, "dtype": torch.float32}
    if case.fp8:  # those of all rows, where the simulator sees a few
        found = backward_scales(inputs.grad_output, inputs.value, 1.0).tolist()
        options |= {"grad_output_scale": found[0], "grad_logits_scale": found[1]}
    actual = kernels.attention_backward(*inputs, **options)
    plan = kernels.plan_of(case.dtype, device.capability, fp8=case.fp8)
    heads, last = [0, inputs.query.shape[1] - 1], slice(-CHECKED, None)
    few = Inputs(*(x[:, heads].cpu() for x in inputs))
    tails = {name: x[:, :, last] for name, x in few._asdict().items()}
    # The last queries see all keys. Of causal queries, the last ones alone see the last keys.
    per_query = few._replace(**{name: tails[name] for name in ("grad_output", "query", "output", "lse")})
    per_key = Inputs(**tails) if case.is_causal else few._replace(key=tails["key"], value=tails["value"])
    expected = simulated(*per_query, plan=plan, lower_right=True, **options)[:1]
    expected += simulated(*per_key, plan=plan, **options)[1:]
    pairs = [(a[:, heads, last].cpu(), e) for a, e in zip(actual, expected, strict=True)]
    off = max(float((a - e).norm() / e.norm()) for a, e in pairs)
    return "" if off <= ALLOWED else f"a gradient differs from what the plan predicts by {off:.2g} of its norm"


def peers(case: BackwardCase, device: Device, sets: Sequence[Inputs]) -> gpu_peers.Peers:
    """torch's backward pass of these numbers in bfloat16, by each of its kernels that takes them."""
    present: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, attention in gpu_peers.attentions(device).items():
        try:
            present[name] = _backward_of([_graph(case, attention, inputs) for inputs in sets])
        except RuntimeError as error:
            absent[name] = reason(error)
    return gpu_peers.Peers(present, absent)


Graph = tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]
"""An output, what it was computed from, and its gradient."""


def _graph(case: BackwardCase, attention: Callable[..., torch.Tensor], inputs: Inputs) -> Graph:
    wide = [x.detach().to(BF16, copy=True).requires_grad_() for x in (inputs.query, inputs.key, inputs.value)]
    return attention(*wide, is_causal=case.is_causal), wide, inputs.grad_output


def _backward_of(graphs: Sequence[Graph]) -> Call:
    def run(turn: int) -> object:
        output, wide, grad = graphs[turn % len(graphs)]
        return torch.autograd.grad(output, wide, grad, retain_graph=True)

    return run


def work(case: BackwardCase, device: Device) -> Work:
    elements = case.length * case.heads * case.width
    size = elements * (3 * case.dtype.itemsize + 4)
    sets = [operands(case, device, seed) for seed in range(device.sets(size))]
    theirs = peers(case, device, sets)
    return Work(
        run=lambda turn: kernels.attention_backward(*sets[turn % len(sets)], fp8=case.fp8, is_causal=case.is_causal),
        wrong=lambda: wrong(case, device, sets[0]),
        bytes=size + 3 * 2 * elements,
        flops=int(case.operations),
        operands="FP8" if case.fp8 else "BF16",
        peers=theirs.present,
        absent=theirs.absent,
    )


def cases(device: Device) -> Iterator[Case]:
    for case in backwards(device):
        yield Case(case.name, functools.partial(work, case), case.bar)
