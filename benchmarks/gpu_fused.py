"""Fused element work on a GPU: `python -m benchmarks.gpu_run --suite fused`.

Each result is first compared with its definition on a part of the data, numbers with their bound and codes bit for bit.
The bar is a share of the speed of a copy of as many bytes; the peer is torch's function followed by our cast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu_bars import FUSED_CAST, Bar
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Device
from fp8sim import backends
from fp8sim.simulate import activations, cross_entropy, rms_norm
from fp8sim.simulate.results import result_of

SHAPE, LOGITS, TINY = (8192, 8192), (512, 131072), (4, 64)
CHECKED_ROWS = 64
SEPARATE = "torch, then a cast"
Numbers = list[tuple[torch.Tensor, torch.Tensor]]
Run = Callable[..., list[Any]]


@dataclass(frozen=True)
class FusedCase:
    """One kernel on matrices.

    Attributes:
        name, backend: which together are unique.
        op: of `BACKENDS`.
        operands: how many matrices it takes.
        run: the loaded row, the matrices and `values`, a dtype or None: results (values, codes, transposed, amax).
        numbers: the matrices on the CPU: for each result its numbers and their bound.
        separate: torch's function of the matrices, whose result the cast then reads again; None where it has none.
        bytes: that must move per element of one matrix, each of so many bytes.
        bar: what is expected, if anything is.
    """

    name: str
    backend: str
    op: str
    operands: int
    run: Run
    numbers: Callable[..., Numbers]
    separate: Callable[..., torch.Tensor] | None
    bytes: Callable[[int], float]
    bar: Bar | None = None


def fused_cases() -> Iterator[FusedCase]:
    for backend in ("triton", "triton_hardware"):
        for transpose in (False, True):
            forms: dict[str, Any] = {"fmt": "e4m3", "amax": True, "transpose": transpose}
            written = 1 + transpose
            name = ", transposed" if transpose else ""
            bar = None if transpose else FUSED_CAST
            yield FusedCase(
                f"rms_norm{name}", backend, "rms_norm", 1, _norm(forms), _norm_numbers,
                lambda x: F.rms_norm(x, (x.shape[-1],), None, 1e-5), lambda size, w=written: size + w, bar,
            )  # fmt: skip
            yield FusedCase(
                f"silu_glu{name}", backend, "silu_glu", 2, _plain(forms),
                lambda x, g: [activations.silu_glu_numbers(x, g, 1.0, 1.0)],
                lambda x, g: x * F.silu(g), lambda size, w=written: 2 * size + w, bar,
            )  # fmt: skip
            for approximate in ("none", "tanh"):
                yield FusedCase(
                    f"gelu {approximate}{name}", backend, "gelu", 1, _plain(forms | {"approximate": approximate}),
                    lambda x, a=approximate: [activations.gelu_numbers(x, a, 1.0, 1.0)],
                    lambda x, a=approximate: F.gelu(x, approximate=a), lambda size, w=written: size + w,
                )  # fmt: skip
            yield FusedCase(
                f"silu_glu_backward{name}", backend, "silu_glu_backward", 3, _pair(forms),
                lambda *all: [*activations.silu_glu_gradients(*all, 1.0, 1.0)],
                lambda grad, x, g: torch.cat([grad * F.silu(g), torch.ops.aten.silu_backward(grad * x, g)], -1),
                lambda size, w=written: 3 * size + 2 * w,
            )  # fmt: skip
            yield FusedCase(
                f"rms_norm_backward{name}", backend, "rms_norm_backward", 2, _norm_backward(forms),
                _norm_gradients, None, lambda size, w=written: 2 * size + w,
            )  # fmt: skip


def _plain(forms: dict[str, Any]) -> Run:
    return lambda call, *tensors, values=None: [call(*tensors, values=values, **forms)]


def _pair(forms: dict[str, Any]) -> Run:
    return lambda call, *tensors, values=None: [*call(*tensors, values=values, **forms)]


def _norm(forms: dict[str, Any]) -> Run:
    return lambda call, x, values=None: [call(x, None, values=values, **forms)[0]]


def _norm_backward(forms: dict[str, Any]) -> Run:
    def run(call: Callable[..., Any], grad: torch.Tensor, x: torch.Tensor, values: Any = None) -> list[Any]:
        return [call(grad, x, x[0], _roots(x.shape[0], x.device), values=values, **forms)[0]]

    return run


@functools.cache
def _roots(rows: int, device: torch.device) -> torch.Tensor:
    return torch.ones(rows, device=device)


def _norm_numbers(x: torch.Tensor) -> Numbers:
    number, bound, _ = rms_norm.rms_norm_numbers(x, None, 1e-5)
    return [(number, bound)]


def _norm_gradients(grad: torch.Tensor, x: torch.Tensor) -> Numbers:
    return [rms_norm.rms_norm_gradients(grad, x, x[0], torch.ones(x.shape[:-1]), 1.0)[0]]


def wrong(case: FusedCase, tensors: list[torch.Tensor]) -> str:
    """What is wrong with the results on these matrices, or nothing."""
    call = backends.row(case.op, case.backend).load()
    found = case.run(call, *tensors, values=torch.float32)
    alone = case.run(call, *tensors)
    for result, coded, (number, bound) in zip(found, alone, case.numbers(*(t.cpu() for t in tensors)), strict=True):
        values = result[0].cpu()
        if not bool(((values.double() - number).abs() <= bound).all()):
            return "numbers are not within their bound"
        expected = result_of(values.double(), None, "e4m3", amax=True, transpose=result[2] is not None)
        for a, b, e in zip(result[1:], coded[1:], expected[1:], strict=True):
            if e is not None and not (torch.equal(a.cpu(), e) and torch.equal(b.cpu(), e)):
                return "codes are not those of the numbers"
    return ""


def work(case: FusedCase, dtype: torch.dtype, device: Device) -> Work:
    if missing := backends.row(case.op, case.backend).missing():
        raise Absent(missing)
    rows, columns = device.size(SHAPE, TINY)
    size = rows * columns * dtype.itemsize * case.operands
    sets = [_matrices(case, (rows, columns), dtype, device, seed) for seed in range(device.sets(size))]
    call, cast = (backends.row(op, case.backend).load() for op in (case.op, "encode_scaled"))
    separate, transpose = case.separate, "transposed" in case.name

    def in_two(turn: int) -> object:
        assert separate is not None
        return cast(separate(*sets[turn % len(sets)]), "e4m3", amax=True, transpose=transpose)

    return Work(
        run=lambda turn: case.run(call, *sets[turn % len(sets)]),
        wrong=lambda: wrong(case, [part[:CHECKED_ROWS] for part in sets[0]]),
        bytes=int(case.bytes(dtype.itemsize) * rows * columns),
        peers={} if separate is None else {SEPARATE: in_two},
    )


def _matrices(
    case: FusedCase, shape: tuple[int, int], dtype: torch.dtype, device: Device, seed: int
) -> list[torch.Tensor]:
    return [device.numbers(shape, dtype, case.operands * seed + i) for i in range(case.operands)]


def wrong_loss(logits: torch.Tensor, target: torch.Tensor) -> str:
    """What is wrong with the losses and gradients of these logits, or nothing."""
    losses, grad = backends.row("cross_entropy", "triton").load()(logits, target)
    part = (logits.cpu(), target.cpu(), None, -100, 0.0, 1.0, 0.0)
    (number, bound), (by_z, by_z_bound) = cross_entropy.cross_entropy_numbers(*part)
    kind = torch.finfo(logits.dtype)
    rounding = by_z.abs() * kind.eps + kind.smallest_normal
    within = ((losses.cpu().double() - number).abs() <= bound).all()
    right = bool(within and ((grad.cpu().double() - by_z).abs() <= by_z_bound + rounding).all())
    return "" if right else "losses or gradients are not within their bound"


def loss_work(dtype: torch.dtype, device: Device) -> Work:
    """Cross-entropy of logits in place, against torch's forward and backward pass."""
    rows, classes = device.size(LOGITS, TINY)
    count = device.sets(rows * classes * dtype.itemsize)
    logits = [device.numbers((rows, classes), dtype, seed) for seed in range(count)]
    target = torch.arange(rows, device=device.kind) % classes
    leaves = [one.clone().requires_grad_() for one in logits]
    call = backends.row("cross_entropy", "triton").load()

    def separate(turn: int) -> None:
        leaf = leaves[turn % count]
        leaf.grad = None
        F.cross_entropy(leaf.float(), target).backward()

    return Work(
        run=lambda turn: call(logits[turn % count], target, in_place=True),
        wrong=lambda: wrong_loss(logits[0][:4], target[:4]),
        bytes=2 * logits[0].nbytes,
        peers={SEPARATE: separate},
    )


def cases(device: Device) -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for case in fused_cases():
            yield Case(f"{case.name}, {case.backend}, {kind}", functools.partial(work, case, dtype), case.bar)
        yield Case(f"cross_entropy, triton, {kind}", functools.partial(loss_work, dtype))
