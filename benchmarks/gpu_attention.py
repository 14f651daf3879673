"""Attention on a GPU, forward and backward, against torch's: `python -m benchmarks.gpu_run --suite attention`.

The last queries of the first and last head are first compared with what the simulator predicts from the plan that the
launch follows, on the very operands; gradients with those of the definition in float64, on shorter sequences. The peers
of FP8 are torch's kernels on the same numbers in bfloat16.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import gpu_peers
from benchmarks.gpu_bars import ATTENTION_BACKWARD, BF16_ATTENTION, CUDA_ATTENTION, FP8_ATTENTION, Bar
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Call, Device
from fp8sim import backends
from fp8sim.mma.attention import AttentionPlan
from fp8sim.simulate.attention import attention as simulated

E4M3, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16
Tensors = tuple[torch.Tensor, ...]

TOKENS, HIDDEN = 16384, 2048
TINY_TOKENS, TINY_HIDDEN = 80, 128
CHECKED = 16
"""Queries of a head that are predicted."""

CHECKED_LENGTH = 512
"""Tokens of the sequences on which gradients are compared."""

ALLOWED, ALLOWED_GRADIENT = 2.0**-7, 2.0**-5
"""Norm of the difference of a right result, over the norm. Forward, probabilities next to a tie differ from the plan's;
backward, everything is rounded to bfloat16."""


@dataclass(frozen=True)
class Attention:
    """Self-attention of all tokens in one sequence.

    Attributes:
        backend: whose kernel runs.
        dtype: of query, key and value.
        width: features of a head.
        is_causal: as for torch.
        backward: whether the gradients are timed, instead of the output.
    """

    backend: str
    dtype: torch.dtype
    width: int
    is_causal: bool
    backward: bool = False

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").removeprefix("float8_")
        what = "backward" if self.backward else "forward"
        return f"{what}, {dtype}, head {self.width}{', causal' if self.is_causal else ''}, {self.backend}"

    @property
    def bar(self) -> Bar | None:
        if self.width != 128:
            return None
        if self.backward:
            return ATTENTION_BACKWARD if self.dtype == BF16 else None
        if self.backend == "cuda":
            return CUDA_ATTENTION if self.dtype == FP16 else None
        return FP8_ATTENTION if self.dtype == E4M3 else BF16_ATTENTION

    def forward(self, *operands: torch.Tensor, **options: Any) -> Tensors:
        """Output and log2 of the denominators."""
        call = backends.row("attention", self.backend).load()
        found: Tensors = call(*operands, is_causal=self.is_causal, **options)
        return found

    def gradients(self, grad: torch.Tensor, operands: Tensors, output: torch.Tensor, lse: torch.Tensor) -> Tensors:
        call = backends.row("attention_backward", self.backend).load()
        found: Tensors = call(grad, *operands, output, lse, is_causal=self.is_causal)
        return found

    def plan(self, device: Device) -> AttentionPlan:
        """The plan that a launch follows."""
        plan: AttentionPlan
        if self.backend == "cuda":
            from fp8sim.cuda import attention as cuda_kernels

            plan = cuda_kernels.plan_of(self.dtype, device.capability, self.width)
        else:
            from fp8sim.triton_kernels import attention as triton_kernels

            plan = triton_kernels.plan_of((self.dtype,) * 3, device.capability, self.width)
        return plan


def attentions(device: Device) -> Iterator[Attention]:
    names = [row.name for row in backends.rows("attention") if row.name != "simulate"]
    dtypes = {"triton": (BF16, E4M3), "cuda": (FP16, BF16, E4M3)}
    for name, width, is_causal in itertools.product(names, device.size((64, 128, 256), (64,)), (False, True)):
        for dtype in dtypes[name]:
            yield Attention(name, dtype, width, is_causal)
    for width, is_causal in itertools.product(device.size((64, 128, 256), (64,)), (False, True)):
        yield Attention("triton", BF16, width, is_causal, backward=True)


def operands(attention: Attention, device: Device, length: int, seed: int) -> Tensors:
    hidden = device.size(HIDDEN, TINY_HIDDEN)
    shape = (1, hidden // attention.width, length, attention.width)
    return tuple(device.numbers(shape, attention.dtype, 3 * seed + i) for i in range(3))


def wrong(attention: Attention, device: Device, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """How far the output is from what the plan predicts; empty if it is not."""
    heads = [0, q.shape[1] - 1]
    output = attention.forward(q, k, v, dtype=torch.float32)[0]
    actual = output[:, heads, -CHECKED:].cpu()
    query, key, value = (_heads(x, heads) for x in (q[:, :, -CHECKED:], k, v))
    plan = attention.plan(device)
    expected = simulated(query, key, value, plan=plan, is_causal=attention.is_causal, lower_right=True).output
    off = float((actual - expected).norm() / expected.norm())
    return "" if off <= ALLOWED else f"the output differs from what {plan} predicts by {off:.2g} of its norm"


def _heads(x: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """Some heads of x, whose dtype may be one that torch cannot index."""
    return torch.stack([x[:, head].cpu().view(torch.uint8) for head in heads], 1).view(x.dtype)


def wrong_gradients(attention: Attention, device: Device) -> str:
    """How far gradients are from those of the definition; empty if they are not."""
    length = device.size(CHECKED_LENGTH, TINY_TOKENS)
    q, k, v = operands(attention, device, length, seed=0)
    grad = torch.ones_like(q) - q
    found = attention.gradients(grad, (q, k, v), *attention.forward(q, k, v))
    exact = [x.double().cpu().requires_grad_() for x in (q, k, v)]
    output = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=attention.is_causal)
    expected = torch.autograd.grad(output, exact, grad.double().cpu())
    off = [float((a.double().cpu() - e).norm() / e.norm()) for a, e in zip(found, expected, strict=True)]
    return "" if max(off) <= ALLOWED_GRADIENT else f"gradients differ from the definition's by {off} of their norms"


def work(attention: Attention, device: Device) -> Work:
    op = "attention_backward" if attention.backward else "attention"
    if missing := backends.row(op, attention.backend).missing():
        raise Absent(missing)
    length = device.size(TOKENS, TINY_TOKENS)
    hidden = device.size(HIDDEN, TINY_HIDDEN)
    size = length * hidden * attention.dtype.itemsize
    inputs = [operands(attention, device, length, seed) for seed in range(device.sets(3 * size))]
    products = 4 * length * length * hidden * (0.5 if attention.is_causal else 1.0)
    make = _backward_work if attention.backward else _forward_work
    return make(attention, device, inputs, size, int(products))


def _forward_work(attention: Attention, device: Device, inputs: list[Tensors], size: int, products: int) -> Work:
    narrow = BF16 if attention.dtype == E4M3 else attention.dtype

    def peer(sdpa: Any) -> Call:
        wide = [tuple(x.to(narrow) for x in tensors) for tensors in inputs]
        return lambda turn: sdpa(*wide[turn % len(wide)], is_causal=attention.is_causal)

    return Work(
        run=lambda turn: attention.forward(*inputs[turn % len(inputs)], dtype=narrow),
        wrong=lambda: wrong(attention, device, *inputs[0]),
        bytes=3 * size + size // attention.dtype.itemsize * narrow.itemsize,
        flops=products,
        operands={E4M3: "FP8", BF16: "BF16", FP16: "FP16"}[attention.dtype],
        peers={name: peer(sdpa) for name, sdpa in gpu_peers.attentions(device).items()},
    )


def _backward_work(attention: Attention, device: Device, inputs: list[Tensors], size: int, products: int) -> Work:
    grad = device.numbers(tuple(inputs[0][0].shape), attention.dtype, -1)
    results = [attention.forward(*tensors) for tensors in inputs]

    def run(turn: int) -> Tensors:
        turn %= len(inputs)
        return attention.gradients(grad, inputs[turn], *results[turn])

    def peer(sdpa: Any) -> Call:
        @functools.cache
        def graph(turn: int) -> tuple[torch.Tensor, Tensors]:
            leaves = tuple(x.detach().requires_grad_() for x in inputs[turn])
            return sdpa(*leaves, is_causal=attention.is_causal), leaves

        def backward(turn: int) -> object:
            output, leaves = graph(turn % len(inputs))
            return torch.autograd.grad(output, leaves, grad, retain_graph=True)

        return backward

    return Work(
        run=run,
        wrong=lambda: wrong_gradients(attention, device),
        bytes=8 * size,
        flops=products * 5 // 2,
        operands="BF16",
        peers={name: peer(sdpa) for name, sdpa in gpu_peers.attentions(device).items()},
    )


def cases(device: Device) -> Iterator[Case]:
    for attention in attentions(device):
        if attention.dtype == E4M3 and device.capability < (8, 9):
            continue  # multiplied in float16 there, which is no faster
        yield Case(attention.name, functools.partial(work, attention), attention.bar)
