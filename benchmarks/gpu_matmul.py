"""Matrix products on a GPU against torch's, in one run: python -m benchmarks.gpu_matmul.

Before a product is timed, a corner of it is compared bit for bit with what `fp8sim.matmul` predicts from the plan that
the launch states. Operands are random numbers; kernel and peer are timed in turns by the device's own clock. Without a
CUDA device nothing is measured, and the command says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import fp8sim
from benchmarks.gpu_casts import Call, medians
from fp8sim.triton_kernels import matmul as kernels

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16

CORNER = 64
"""Rows and columns of a product that are predicted."""


@dataclass(frozen=True)
class MatmulCase:
    """One product a [M, K] @ b [N, K]^T with a result in bfloat16.

    Attributes:
        size: M, N, K.
        dtypes: of a and b.
        at_least: the share of the peer's speed that is expected.
        options: of `kernels.matmul`.
    """

    size: tuple[int, int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    at_least: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        types = " x ".join(str(dtype).removeprefix("torch.").removeprefix("float8_") for dtype in self.dtypes)
        return " ".join(["x".join(map(str, self.size)), types, *(f"{k}={v}" for k, v in self.options.items())])


SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 14336, 4096))


def cases() -> Iterator[MatmulCase]:
    for size in SIZES:
        yield MatmulCase(size, (E4M3, E4M3), 0.95)
        yield MatmulCase(size, (E5M2, E4M3), 0.95)
        yield MatmulCase(size, (E4M3, E4M3), 0.95, {"fast_accumulation": False})
        yield MatmulCase(size, (BF16, BF16), 0.9)


def operands(case: MatmulCase, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    m, n, k = case.size
    generator = torch.Generator(device=device).manual_seed(0)
    made = (torch.randn(rows, k, device=device, generator=generator) for rows in (m, n))
    a, b = (x.to(dtype) for x, dtype in zip(made, case.dtypes, strict=True))
    return a, b


def differing(case: MatmulCase, a: torch.Tensor, b: torch.Tensor) -> int:
    """How many bits' worth of elements in the corner are not what the plan predicts."""
    left, right = a[:CORNER].contiguous(), b[:CORNER].contiguous()
    actual = kernels.matmul(left, right, out_dtype=BF16, split_k=1, **case.options).cpu()
    plan = kernels.plan_of(a.dtype, kernels.capability_of(a), **case.options)
    expected = fp8sim.matmul(left.cpu(), right.cpu().T, plan=plan, output="bfloat16")
    return int((actual.view(torch.int16) != expected.view(torch.int16)).sum())


def peer(case: MatmulCase, a: torch.Tensor, b: torch.Tensor) -> tuple[str, Call]:
    """torch's product of the same operands."""
    if a.element_size() == 2:
        return "torch.matmul", lambda: torch.matmul(a, b.T)
    one = torch.ones((), device=a.device)
    fast = case.options.get("fast_accumulation", True)
    return "torch._scaled_mm", lambda: torch._scaled_mm(
        a, b.T, scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=fast
    )


def measure(case: MatmulCase, samples: int) -> dict[str, Any]:
    """One row of results; "wrong" replaces all figures if the corner is."""
    a, b = operands(case, "cuda")
    row: dict[str, Any] = {
        "name": case.name,
        "plan": str(kernels.plan_of(a.dtype, kernels.capability_of(a), **case.options)),
    }
    wrong = differing(case, a, b)
    if wrong:
        return row | {"wrong": f"{wrong} of {CORNER**2} are not what the plan predicts"}
    name, theirs = peer(case, a, b)
    seconds = medians({"run": lambda: kernels.matmul(a, b, out_dtype=BF16, **case.options), "peer": theirs}, samples)
    m, n, k = case.size
    share = seconds["peer"] / seconds["run"]
    return row | {
        "microseconds": seconds["run"] * 1e6,
        "flops_per_second": 2 * m * n * k / seconds["run"],
        "peer": name,
        "peer_ratio": share,
        "at_least": case.at_least,
        "missed": share < case.at_least,
    }


def line(row: dict[str, Any]) -> str:
    if "wrong" in row:
        return f"{row['name']:<64} WRONG, not timed: {row['wrong']}"
    missed = " MISSED" if row["missed"] else ""
    speed = f"{row['microseconds']:>9.1f} us {row['flops_per_second'] / 1e12:>6.0f} TFLOP/s"
    return f"{row['name']:<64}{speed}   {row['peer']} {row['peer_ratio']:.2f} (>= {row['at_least']:g}{missed})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the results here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return 0
    rows = []
    for case in cases():
        rows.append(measure(case, options.samples))
        print(line(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1
            )
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
