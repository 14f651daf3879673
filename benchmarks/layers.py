"""A transformer layer, forward and backward: python -m benchmarks.layers [--threads 2].

What the factors of u-muP cost, and FP8 simulated in every hidden matmul, is compared, in turns, with a plain torch
layer of the same architecture, eager and in FP32. First, our layer without factors must give what the plain one gives.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.run import machine, save
from benchmarks.timing import Call, medians
from fp8sim import _core, recipes
from fp8sim.nn import TransformerConfig, TransformerLayer
from fp8sim.recipes import RECIPES, Recipe

BATCH, LENGTH = 8, 128
WIDTHS = (64, 256, 1024)
PLAIN = "plain torch"

FACTORS = recipes.uniform("u_mup", None, None, parametrization="u_mup")
FP8 = dataclasses.replace(RECIPES["u_mup_fp8"], name="u_mup_fp8 in every layer", high_precision=("readout",))
SUBJECTS: Mapping[str, Recipe] = MappingProxyType({"u-muP": FACTORS, "u-muP in FP8": FP8})
AT_MOST = {"u-muP": {64: 1.25, 256: 1.08, 1024: 1.05}, "u-muP in FP8": {256: 1.5, 1024: 1.2}}


class PlainLayer(torch.nn.Module):
    """Causal attention with rotary positions and SwiGLU, each after an RMSNorm without gain; [B, L, W] -> the same."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.width, self.heads = width, heads

        def linear(inputs: int, outputs: int) -> torch.nn.Linear:
            return torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)

        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.gate, self.down = linear(width, 4 * width), linear(width, 4 * width), linear(4 * width, width)
        features = width // heads
        speeds = 10000.0 ** (torch.arange(0, features, 2, dtype=dtype) / -features)
        angles = torch.arange(LENGTH, dtype=dtype)[:, None] * speeds
        self.register_buffer("cosines", angles.cos().repeat(1, 2))
        self.register_buffer("sines", torch.cat((-angles.sin(), angles.sin()), -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.rms_norm(x, (self.width,), eps=1e-5))
        normal = F.rms_norm(x, (self.width,), eps=1e-5)
        branch: torch.Tensor = self.down(F.silu(self.gate(normal)) * self.up(normal))
        return x + branch

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        turned, value = heads.split((2 * self.heads, self.heads), 2)
        query, key = self.rotate(turned.transpose(1, 2)).chunk(2, 1)
        mixed = F.scaled_dot_product_attention(query, key, value.transpose(1, 2), is_causal=True)
        output: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x * self.cosines, x.roll(x.shape[-1] // 2, -1), self.sines)


def heads_of(width: int) -> int:
    return max(2, width // 64)


def our_layer(width: int, recipe: Recipe) -> TransformerLayer:
    config = TransformerConfig(vocabulary=64, width=width, blocks=4, heads=heads_of(width), norm_gain=False)
    return TransformerLayer(config, recipe=recipe)


def weights(layer: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """By the last part of the name of the linear layer."""
    return {name.split(".")[-2]: parameter for name, parameter in layer.named_parameters()}


def check(width: int) -> None:
    """Our layer without factors gives the plain one's output and gradients to 1e-10 in float64."""
    torch.manual_seed(0)
    plain, ours = PlainLayer(width, heads_of(width), torch.float64), our_layer(width, RECIPES["fp32"]).double()
    with torch.no_grad():
        for name, weight in weights(ours).items():
            weight.copy_(weights(plain)[name])
    inputs = torch.randn(2, LENGTH, width, dtype=torch.float64)
    results = []
    for layer in (plain, ours):
        x = inputs.clone().requires_grad_()
        output = layer(x)
        found = torch.autograd.grad(output.square().sum(), (x, *weights(layer).values()))
        gradients = dict(zip(weights(layer), found[1:], strict=True))
        results.append([output, found[0], *(gradients[name] for name in sorted(gradients))])
    for theirs, our in zip(*results, strict=True):
        torch.testing.assert_close(our, theirs, rtol=1e-10, atol=1e-10)


def step(layer: torch.nn.Module, width: int) -> Call:
    """A forward and a backward pass, which leave the gradients of the weights and of the input."""
    x = torch.randn(BATCH, LENGTH, width, requires_grad=True)
    grad, inputs = torch.randn(BATCH, LENGTH, width), [x, *layer.parameters()]

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        layer(x).backward(grad)

    return run


def measure(width: int, samples: int) -> dict[str, Any]:
    """Microseconds of a step of each, and their ratios to plain torch; the key "wrong" replaces all."""
    row: dict[str, Any] = {"name": "transformer layer", "width": width, "tokens": BATCH * LENGTH}
    try:
        check(width)
    except AssertionError as error:
        return row | {"wrong": str(error)}
    layers = {PLAIN: PlainLayer(width, heads_of(width))} | {
        name: our_layer(width, recipe) for name, recipe in SUBJECTS.items()
    }
    seconds = medians({name: step(layer, width) for name, layer in layers.items()}, samples=samples)
    ratios = {name: value / seconds[PLAIN] for name, value in seconds.items()}
    at_most = {name: bars[width] for name, bars in AT_MOST.items() if width in bars}
    return row | {
        "microseconds": {name: value * 1e6 for name, value in seconds.items()},
        "ratios": ratios,
        "at_most": at_most,
        "misses": [name for name, most in at_most.items() if ratios[name] > most],
    }


def lines(row: dict[str, Any]) -> list[str]:
    head = f"{row['name']}, width {row['width']}, {row['tokens']} tokens"
    if "wrong" in row:
        return [f"{head}: WRONG, not timed: {row['wrong']}"]
    found = [head]
    for name, ratio in row["ratios"].items():
        missed = " MISSED" if name in row["misses"] else ""
        bar = f" (<= {row['at_most'][name]}{missed})" if name in row["at_most"] else ""
        found.append(f"  {name:<14} {row['microseconds'][name]:>9.0f} us  x{ratio:.2f}{bar}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--json", action="store_true", help="print the results as JSON; otherwise they are saved")
    options = parser.parse_args()
    _core.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    rows = []
    for width in options.widths:
        rows.append(measure(width, options.samples))
        if not options.json:
            print("\n".join(lines(rows[-1])), flush=True)
    wrong = any("wrong" in row for row in rows)
    if options.json:
        print(json.dumps(rows, indent=1))
    elif not wrong and tuple(options.widths) == WIDTHS:
        print(f"results: {save(rows, 'layers', machine(options.threads))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
