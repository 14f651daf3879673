"""Fused element work on a GPU against a copy of as many bytes: python -m benchmarks.gpu_fused [--elements 67108864].

Each result is first compared with its definition on a part of the data, numbers with their bound and codes bit for bit,
and a wrong one is not timed. Then the kernel, a copy that moves as many bytes, and torch's functions followed by this
package's cast are timed in turns by the device's own clock. Without a CUDA device nothing is measured, and the command
says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu_casts import COLUMNS, Call, medians
from fp8sim import backends
from fp8sim.simulate import activations, cross_entropy, rms_norm
from fp8sim.simulate.results import result_of

CHECKED_ROWS = 64
CLASSES = 131072
Numbers = list[tuple[torch.Tensor, torch.Tensor]]
Run = Callable[..., list[Any]]


@dataclass(frozen=True)
class FusedCase:
    """One kernel on matrices [rows, COLUMNS], or rows of CLASSES logits.

    Attributes:
        name, backend: which together are unique.
        op: of `BACKENDS`.
        operands: how many matrices it takes.
        run: the loaded row, the matrices and `values`, a dtype or None: results (values, codes, transposed, amax).
        numbers: the matrices on the CPU: for each result its numbers and their bound.
        separate: torch's function of the matrices, whose result the cast then reads again; None where it has none.
        bytes: that must move per element of one matrix, each of so many bytes.
        at_least: the share of the copy's speed that is expected, or None.
    """

    name: str
    backend: str
    op: str
    operands: int
    run: Run
    numbers: Callable[..., Numbers]
    separate: Callable[..., torch.Tensor] | None
    bytes: Callable[[int], float]
    at_least: float | None = None


def cases() -> Iterator[FusedCase]:
    for backend in ("triton", "triton_hardware"):
        for transpose in (False, True):
            forms: dict[str, Any] = {"fmt": "e4m3", "amax": True, "transpose": transpose}
            written = 1 + transpose
            name = ", transposed" if transpose else ""
            bar = None if transpose else 0.85
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


def wrong(case: FusedCase, tensors: list[torch.Tensor]) -> str | None:
    """What is wrong with the results on these matrices, or None."""
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
    return None


def measure(case: FusedCase, tensors: list[torch.Tensor], samples: int) -> dict[str, Any]:
    """One row of results; "wrong" replaces all figures if the result is."""
    x = tensors[0]
    row: dict[str, Any] = {"name": case.name, "backend": case.backend, "dtype": str(x.dtype), "elements": x.numel()}
    fault = wrong(case, [part[:CHECKED_ROWS] for part in tensors])
    if fault is not None:
        return row | {"wrong": fault}
    moved = int(case.bytes(x.element_size()) * x.numel())
    source, target = (torch.empty(moved // 2, dtype=torch.uint8, device=x.device) for _ in range(2))
    call, cast = (backends.row(op, case.backend).load() for op in (case.op, "encode_scaled"))
    transpose = "transposed" in case.name
    calls: dict[str, Call] = {"run": lambda: case.run(call, *tensors), "copy": lambda: target.copy_(source)}
    separate = case.separate
    if separate is not None:
        calls["separate"] = lambda: cast(separate(*tensors), "e4m3", amax=True, transpose=transpose)
    seconds = medians(calls, samples)
    share = seconds["copy"] / seconds["run"]
    return row | {
        "microseconds": seconds["run"] * 1e6,
        "bytes_per_second": moved / seconds["run"],
        "copy_ratio": share,
        "separate_ratio": None if separate is None else seconds["separate"] / seconds["run"],
        "at_least": case.at_least,
        "missed": case.at_least is not None and share < case.at_least,
    }


def measure_loss(rows: int, dtype: torch.dtype, samples: int) -> dict[str, Any]:
    """Cross-entropy of [rows, CLASSES] logits in place, against torch's forward and backward pass."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    logits = torch.randn(rows, CLASSES, device="cuda", generator=generator).to(dtype)
    target = torch.randint(0, CLASSES, (rows,), device="cuda", generator=generator)
    row: dict[str, Any] = {
        "name": "cross_entropy",
        "backend": "triton",
        "dtype": str(dtype),
        "elements": logits.numel(),
    }
    call = backends.row("cross_entropy", "triton").load()
    losses, grad = call(logits[:4], target[:4])
    part = (logits[:4].cpu(), target[:4].cpu(), None, -100, 0.0, 1.0, 0.0)
    (number, bound), (by_z, by_z_bound) = cross_entropy.cross_entropy_numbers(*part)
    rounding = by_z.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).smallest_normal
    within = ((losses.cpu().double() - number).abs() <= bound).all()
    if not bool(within and ((grad.cpu().double() - by_z).abs() <= by_z_bound + rounding).all()):
        return row | {"wrong": "losses or gradients are not within their bound"}
    source, target_bytes = (torch.empty(logits.nbytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    leaf = logits.clone().requires_grad_()

    def separate() -> None:
        leaf.grad = None
        F.cross_entropy(leaf.float(), target).backward()

    seconds = medians(
        {
            "run": lambda: call(logits, target, in_place=True),
            "copy": lambda: target_bytes.copy_(source),
            "separate": separate,
        },
        samples,
    )
    return row | {
        "microseconds": seconds["run"] * 1e6,
        "bytes_per_second": 2 * logits.nbytes / seconds["run"],
        "copy_ratio": seconds["copy"] / seconds["run"],
        "separate_ratio": seconds["separate"] / seconds["run"],
        "at_least": None,
        "missed": False,
    }


def line(row: dict[str, Any]) -> str:
    head = f"{row['name']:<30} {row['backend']:<16} {row['dtype'].removeprefix('torch.'):<9}"
    if "wrong" in row:
        return f"{head} WRONG, not timed: {row['wrong']}"
    expected = "" if row["at_least"] is None else f" (>= {row['at_least']:g}{' MISSED' if row['missed'] else ''})"
    speed = f"{row['microseconds']:>9.1f} us {row['bytes_per_second'] / 1e9:>7.0f} GB/s"
    separate = "" if row["separate_ratio"] is None else f"   torch's own x{row['separate_ratio']:.2f}"
    return f"{head}{speed}   copy {row['copy_ratio']:.2f}{expected}{separate}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the results here; - is standard output")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return 0
    generator = torch.Generator(device="cuda").manual_seed(0)
    shape = (options.elements // COLUMNS, COLUMNS)
    numbers = [torch.randn(shape, device="cuda", generator=generator) for _ in range(3)]
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        tensors = [part.to(dtype) for part in numbers]
        calls = [lambda c=case: measure(c, tensors[: c.operands], options.samples) for case in cases()]  # noqa: B023
        calls.append(lambda d=dtype: measure_loss(max(options.elements // CLASSES, 4), d, options.samples))
        for call in calls:
            rows.append(call())
            if options.json != "-":
                print(line(rows[-1]), flush=True)
    text = json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1)
    if options.json == "-":
        print(text)
    elif options.json:
        with open(options.json, "w") as file:
            file.write(text + "\n")
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
