"""Attention on a GPU, forward, against the best of torch's, in one run: python -m benchmarks.gpu_attention.

Before a case is timed, the last queries of its first and last head are compared with what the simulator predicts from
the plan that the launch follows, on the very operands. These are random numbers; kernel and peers are timed in turns by
the device's own clock. The peer of FP8 is torch's attention of the same numbers in bfloat16. Without a CUDA device
nothing is measured, and the command says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_casts import Call, medians
from fp8sim.simulate.attention import attention as simulated
from fp8sim.triton_kernels import attention as kernels
from fp8sim.triton_kernels.matmul import capability_of

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16

TOKENS, HIDDEN = 16384, 2048
CHECKED = 16
"""Queries of a head that are predicted."""

ALLOWED = 2.0**-7
"""Relative difference of a right output from its prediction, which differs in probabilities next to a tie."""

PEERS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@dataclass(frozen=True)
class AttentionCase:
    """Self-attention of TOKENS tokens of HIDDEN features.

    Attributes:
        dtype: of query, key and value.
        width: features of a head. length: tokens of a sequence.
        is_causal: as for torch.
        at_least: the share of the peer's speed that is expected; None: none is stated.
    """

    dtype: torch.dtype
    width: int
    length: int
    is_causal: bool
    at_least: float | None = None

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").removeprefix("float8_")
        return f"{dtype} head {self.width} length {self.length}{' causal' if self.is_causal else ''}"

    @property
    def operations(self) -> float:
        """Of both products, on pairs that are seen."""
        return 4 * TOKENS * self.length * HIDDEN * (0.5 if self.is_causal else 1.0)


def cases() -> Iterator[AttentionCase]:
    bars = {(BF16, 128): 0.75, (E4M3, 128): 1.1}
    for dtype in (BF16, E4M3):
        for width in (64, 128, 256):
            for is_causal in (False, True):
                yield AttentionCase(dtype, width, TOKENS, is_causal, bars.get((dtype, width)))
        yield AttentionCase(dtype, 128, 4096, False)


def operands(case: AttentionCase, device: str) -> list[torch.Tensor]:
    generator = torch.Generator(device=device).manual_seed(0)
    shape = (TOKENS // case.length, HIDDEN // case.width, case.length, case.width)
    return [torch.randn(shape, device=device, generator=generator).to(case.dtype) for _ in range(3)]


def difference(case: AttentionCase, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """The relative difference between the kernel's last queries of two heads and the simulator's."""
    heads = [0, q.shape[1] - 1]
    plan = kernels.plan_of((q.dtype,) * 3, capability_of(q), case.width)
    output = kernels.attention(q, k, v, is_causal=case.is_causal, dtype=torch.float32)[0]
    actual = output[-1:, heads, -CHECKED:].cpu()
    query, key, value = q[-1:, heads, -CHECKED:].cpu(), k[-1:, heads].cpu(), v[-1:, heads].cpu()
    expected = simulated(query, key, value, plan=plan, is_causal=case.is_causal, lower_right=True).output
    return float((actual - expected).norm() / expected.norm())


def peers(case: AttentionCase, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Call]:
    """torch's attention of these numbers in bfloat16 by each of its kernels that takes them."""
    wide = [x.to(BF16) for x in (q, k, v)]

    def run(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            result: torch.Tensor = scaled_dot_product_attention(*wide, is_causal=case.is_causal)
            return result

    found: dict[str, Call] = {}
    for backend in PEERS:
        try:
            run(backend)
        except RuntimeError:  # this kernel does not take the width, or is not built for the device
            continue
        found[f"sdpa {backend.name.removesuffix('_ATTENTION').lower()}"] = functools.partial(run, backend)
    return found


def measure(case: AttentionCase, samples: int) -> dict[str, Any]:
    """One row of results; "wrong" replaces all figures if the output is."""
    q, k, v = operands(case, "cuda")
    plan = kernels.plan_of((q.dtype,) * 3, capability_of(q), case.width)
    row: dict[str, Any] = {"name": case.name, "plan": str(plan)}
    off = difference(case, q, k, v)
    if not off <= ALLOWED:
        return row | {"wrong": f"the output differs from what the plan predicts by {off:.2g} of its norm"}
    calls = peers(case, q, k, v)
    calls["run"] = lambda: kernels.attention(q, k, v, is_causal=case.is_causal, dtype=BF16)
    seconds = medians(calls, samples)
    run = seconds.pop("run")
    peer = min(seconds, key=lambda name: seconds[name])
    share = seconds[peer] / run
    return row | {
        "microseconds": run * 1e6,
        "flops_per_second": case.operations / run,
        "difference": off,
        "peers": {name: time * 1e6 for name, time in seconds.items()},
        "peer": peer,
        "peer_ratio": share,
        "at_least": case.at_least,
        "missed": case.at_least is not None and share < case.at_least,
    }


def line(row: dict[str, Any]) -> str:
    if "wrong" in row:
        return f"{row['name']:<44} WRONG, not timed: {row['wrong']}"
    missed = " MISSED" if row["missed"] else ""
    bar = "" if row["at_least"] is None else f" (>= {row['at_least']:g}{missed})"
    speed = f"{row['microseconds']:>9.1f} us {row['flops_per_second'] / 1e12:>6.0f} TFLOP/s"
    return f"{row['name']:<44}{speed}   {row['peer']} {row['peer_ratio']:.2f}{bar}"


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
