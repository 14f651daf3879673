"""A step of AdamW on 200 small tensors, in groups by parametrization: python -m benchmarks.optim [--threads 2].

What groups cost is compared, in turns, with torch's foreach AdamW with all tensors in one group. A group for each
tensor is what merging avoids. First, a merged step must leave the bits that single groups leave.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from typing import Any

import torch

from benchmarks.run import machine, save
from benchmarks.timing import medians
from fp8sim import _core
from fp8sim.nn import Embedding, Linear, ResidualStack
from fp8sim.optim import AdamAtan2, parameter_groups

TENSORS, WIDTH = 200, 64
AT_MOST = {"foreach, merged groups": 1.15}
LR, DECAY = 2.0**-10, 2.0**-13


def model(tensors: int = TENSORS) -> torch.nn.Module:
    """Of `tensors` weights of 64 x 64: an embedding, hidden ones, and a readout; with gradients."""
    torch.manual_seed(0)
    hidden = ResidualStack(*(Linear(WIDTH, WIDTH) for _ in range(tensors - 2)))
    net = torch.nn.Sequential(Embedding(WIDTH, WIDTH), hidden, Linear(WIDTH, WIDTH, role="readout"))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


def merged(net: torch.nn.Module) -> list[dict[str, Any]]:
    return parameter_groups(net, lr=LR, weight_decay=DECAY, parametrization="u_mup")


def single(net: torch.nn.Module) -> list[dict[str, Any]]:
    """A group for each tensor, from u-muP's table: 64^-1/2, and depth^-1/2 for hidden weights."""
    rates = {"0.weight": WIDTH**-0.5, "2.weight": 1.0}
    depth = len(list(net.parameters())) - 2
    groups = []
    for name, parameter in net.named_parameters():
        lr = LR * rates.get(name, WIDTH**-0.5 * depth**-0.5)
        groups.append({"params": [parameter], "lr": lr, "weight_decay": DECAY / lr})
    return groups


def together(net: torch.nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(net.parameters()), "lr": LR, "weight_decay": DECAY / LR}]


def foreach(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, foreach=True)


def fused(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


def check(net: torch.nn.Module) -> None:
    """A step in merged groups leaves what a step in single groups leaves, bit for bit."""
    nets = [copy.deepcopy(net) for _ in range(2)]
    for copied, grouping in zip(nets, (merged, single), strict=True):
        for parameter, original in zip(copied.parameters(), net.parameters(), strict=True):
            parameter.grad = original.grad
        foreach(grouping(copied)).step()
    for ours, theirs in zip(*(copied.parameters() for copied in nets), strict=True):
        if not torch.equal(ours, theirs):
            raise AssertionError("merged groups do not step as single groups do")


def measure(samples: int, tensors: int = TENSORS) -> dict[str, Any]:
    """Microseconds of a step of each, and their ratios to the foreach AdamW; the key "wrong" replaces all."""
    row: dict[str, Any] = {"name": "optimizer step", "tensors": tensors, "elements": tensors * WIDTH**2}
    net = model(tensors)
    try:
        check(net)
    except AssertionError as error:
        return row | {"wrong": str(error)}
    steps = {
        "foreach, one group": foreach(together(net)),
        "foreach, merged groups": foreach(merged(net)),
        "foreach, group per tensor": foreach(single(net)),
        "fused, one group": fused(together(net)),
        "fused, merged groups": fused(merged(net)),
        "Adam-atan2, merged groups": AdamAtan2(merged(net)),
    }
    seconds = medians({name: optimizer.step for name, optimizer in steps.items()}, samples=samples)
    ratios = {name: value / seconds["foreach, one group"] for name, value in seconds.items()}
    return row | {
        "groups": len(merged(net)),
        "microseconds": {name: value * 1e6 for name, value in seconds.items()},
        "ratios": ratios,
        "at_most": AT_MOST,
        "misses": [name for name, most in AT_MOST.items() if ratios[name] > most],
    }


def lines(row: dict[str, Any]) -> list[str]:
    if "wrong" in row:
        return [f"{row['name']}: WRONG, not timed: {row['wrong']}"]
    found = [f"{row['name']}, {row['tensors']} tensors of {WIDTH} x {WIDTH}, {row['groups']} groups when merged"]
    for name, ratio in row["ratios"].items():
        bar = (
            f" (<= {row['at_most'][name]}{' MISSED' if name in row['misses'] else ''})"
            if name in row["at_most"]
            else ""
        )
        found.append(f"  {name:<28} {row['microseconds'][name]:>9.0f} us  x{ratio:.2f}{bar}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="print the result as JSON; otherwise it is saved")
    options = parser.parse_args()
    _core.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    row = measure(options.samples)
    if options.json:
        print(json.dumps(row, indent=1))
    else:
        print("\n".join(lines(row)))
        if "wrong" not in row:
            print(f"results: {save([row], 'optim', machine(options.threads))}")
    return 1 if "wrong" in row else 0


if __name__ == "__main__":
    sys.exit(main())
