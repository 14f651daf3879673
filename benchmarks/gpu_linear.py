"""A linear layer's forward and backward pass in FP8, casts included: `python -m benchmarks.gpu_run --suite linear`.

`fp8sim.functional.linear` by the recipe `unit_scaled_fp8` on bfloat16 tensors, against `torch.nn.Linear` in bfloat16
and other libraries' FP8 layers. First, with operands whose sums are exact in any order, the output and both gradients
of the first tokens must be the simulator's, bit for bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from benchmarks import gpu_peers
from benchmarks.gpu_bars import LINEAR
from benchmarks.gpu_peers import Step
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Call, Device
from fp8sim import backends, functional
from fp8sim.backends import use_backend

TOKENS = 16384
SIZES = ((4096, 14336), (8192, 8192))
TINY_TOKENS, TINY = 64, ((64, 128), (128, 128))
CHECKED_TOKENS = 128

RECIPE = "unit_scaled_fp8"


def step(weight: torch.Tensor) -> Step:
    def run(x: torch.Tensor, gradient: torch.Tensor) -> None:
        x.grad = weight.grad = None
        functional.linear(x, weight, recipe=RECIPE).backward(gradient)

    return run


def exact_numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """-1, 0 and 1 in bfloat16: every order of additions gives the same sum of products."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).to(torch.bfloat16)


def results(tensors: tuple[torch.Tensor, ...], backend: str) -> list[torch.Tensor]:
    """Output and gradients of x [T, I] and weight [O, I] for a gradient [T, O], on the CPU."""
    x, weight, gradient = tensors
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with use_backend(backend):
        output = functional.linear(x, weight, recipe=RECIPE)
        found = torch.autograd.grad(output, (x, weight), gradient)
    return [tensor.detach().cpu() for tensor in (output, *found)]


def wrong(inputs: int, outputs: int, backend: str, device: Device) -> str:
    """Which results differ from the simulator's; empty if none does."""
    tokens = device.size(CHECKED_TOKENS, TINY_TOKENS)
    shapes = ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    tensors = tuple(exact_numbers(shape, seed) for seed, shape in enumerate(shapes))
    actual = results(tuple(tensor.to(device.kind) for tensor in tensors), backend)
    expected = results(tensors, "simulate")
    names = ("output", "grad_input", "grad_weight")
    differing = [name for name, a, e in zip(names, actual, expected, strict=True) if not torch.equal(a, e)]
    return f"{', '.join(differing)} not the simulator's" if differing else ""


def work(inputs: int, outputs: int, backend: str, device: Device) -> Work:
    if missing := backends.row("gemm", backend).missing():
        raise Absent(missing)
    tokens = device.size(TOKENS, TINY_TOKENS)
    weight = device.numbers((outputs, inputs), torch.bfloat16, 0).requires_grad_()
    sizes = tokens * inputs, outputs * inputs, tokens * outputs

    def one_set(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = device.numbers((tokens, inputs), torch.bfloat16, 2 * seed + 1).requires_grad_()
        return x, device.numbers((tokens, outputs), torch.bfloat16, 2 * seed + 2)

    sets = [one_set(seed) for seed in range(device.sets(2 * sum(sizes)))]

    def on_sets(step: Step) -> Call:
        return lambda turn: step(*sets[turn % len(sets)])

    def run(turn: int) -> None:
        with use_backend(backend):
            ours(*sets[turn % len(sets)])

    ours, peers = step(weight), gpu_peers.linear_steps(weight.detach(), device)
    return Work(
        run=run,
        wrong=lambda: wrong(inputs, outputs, backend, device),
        bytes=2 * (3 * sizes[0] + 3 * sizes[1] + 2 * sizes[2]),  # x and weight are read by both passes
        flops=6 * tokens * inputs * outputs,
        operands="FP8",
        peers={name: on_sets(step) for name, step in peers.present.items()},
        absent=peers.absent,
    )


def cases(device: Device) -> Iterator[Case]:
    tokens = device.size(TOKENS, TINY_TOKENS)
    names = [row.name for row in backends.rows("gemm") if row.name != "simulate"]
    for backend, (inputs, outputs) in itertools.product(names, device.size(SIZES, TINY)):
        yield Case(
            f"linear forward and backward, {tokens} tokens, {inputs} to {outputs}, {backend}",
            functools.partial(work, inputs, outputs, backend),
            LINEAR,
        )
