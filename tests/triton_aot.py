"""Compile what the launchers of `fp8sim.triton_kernels` would launch, for GPUs that are not here, and read the result.

Runs in a process of its own (`compile_all`), because kernels of a test process run in the interpreter. Launchers are
called with CPU tensors of any content; their launches are compiled with the arguments they pass, and not run.

`python tests/triton_aot.py --record` compiles everything and writes down what it takes of a chip, for
`test_triton_aot.py` to say what changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from fp8sim import quantizers
from fp8sim.triton_kernels import (
    activations,
    attention,
    attention_backward,
    attention_configs,
    attention_values,
    cast,
    cross_entropy,
    encode_scaled,
    hardware,
    launching,
    matmul,
    matmul_configs,
    quantize,
    results,
    rms_norm,
    tuning,
)

CASES: dict[str, tuple[int, Callable[[], object]]] = {}
"""What to compile: name -> (compute capability, a call of a launcher)."""


def compile_all(names: list[str], cache: Path) -> dict[str, dict[str, Any]]:
    """For each case: its opcodes and how often they occur, registers, stack bytes, shared memory, and its PTX.

    A kernel that fails to compile gives {"error": ...}.
    """
    command = [sys.executable, "-m", "triton_aot", *names]
    variables = environment() | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"compiling kernels failed:\n{done.stderr[-4000:]}")
    reports: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return reports


def environment() -> dict[str, str]:
    """Of a process that compiles: it finds this module, and interprets nothing."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": str(Path(__file__).parent)}


def define_cases() -> None:
    e4m3, e5m2, bf16, fp16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
    x32, x16, x64 = (torch.zeros(4096, dtype=dtype) for dtype in (torch.float32, bf16, torch.float64))
    stochastic: dict[str, Any] = {"rounding": "stochastic", "seed": 1}
    casts: dict[str, Callable[[], object]] = {
        "cast float32 to e4m3": lambda: cast.cast(x32, "e4m3"),
        "cast bfloat16 to e4m3": lambda: cast.cast(x16, "e4m3"),
        "cast float64 to e4m3": lambda: cast.cast(x64, "e4m3"),
        "cast float32 to bfloat16": lambda: cast.cast(x32, "bf16", overflow="infinity"),
        "encode bfloat16 to e5m2": lambda: cast.encode(x16, "e5m2"),
        "encode float32 to e2m1, stochastic": lambda: cast.encode(x32, "e2m1", **stochastic),
        "encode float32 to e8m0, upward": lambda: cast.encode(x32, "e8m0", rounding="toward_positive"),
        "decode e4m3 to bfloat16": lambda: cast.decode(x32.to(torch.uint8), "e4m3", dtype=bf16),
    }
    for capability, (name, call) in itertools.product((80, 90), casts.items()):
        CASES[f"sm_{capability} {name}"] = capability, call
    for capability, (name, call) in itertools.product((80, 90), fused_casts(bf16).items()):
        CASES[f"sm_{capability} {name}"] = capability, call
    for capability, (name, call) in itertools.product((80, 90), tuned_casts(bf16).items()):
        CASES[f"sm_{capability} {name}"] = capability, call
    fast = {"amax": True, "transpose": True}
    CASES["sm_90 hardware encode_scaled"] = 90, partial(hardware.encode_scaled, matrix(bf16), "e4m3", 0.5, **fast)
    CASES["sm_90 hardware quantize fp8_1x128"] = (
        90,
        partial(hardware.quantize, matrix(bf16), quantizers.parse("fp8_1x128")),
    )
    for capability, (name, call) in itertools.product((80, 90), element_work(activations, rms_norm).items()):
        CASES[f"sm_{capability} element {name}"] = capability, call
    for name, call in element_work(hardware, hardware).items():
        CASES[f"sm_90 hardware element {name}"] = 90, call
    for capability, (name, call) in itertools.product((80, 90), losses().items()):
        CASES[f"sm_{capability} loss {name}"] = capability, call
    for capability, (a, b) in itertools.product((80, 90), [(e4m3, e4m3), (e5m2, e4m3), (bf16, bf16), (fp16, fp16)]):
        define_matmuls(capability, a, b)
    for capability, dtype in itertools.product((80, 90), (e4m3, e5m2, bf16, fp16)):
        define_attentions(capability, dtype)
    values = torch.zeros(1, 8, 4096, 128, dtype=e4m3)
    CASES["sm_90 values transposed e4m3"] = 90, partial(attention_values.transposed_values, values)
    for capability, dtype, width in itertools.product((80, 90), (bf16, fp16, e4m3), (64, 128, 256)):
        define_backwards(capability, dtype, width)
    CASES["sm_90 matmul e4m3 x e4m3, exact"] = 90, lambda: exact_product_kernel[(1,)](x16.view(e4m3), x32)


def matrix(dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(1024, 1024, dtype=dtype)


def fused_casts(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each kernel of `encode_scaled` and `quantize` as it is launched for a matrix of `dtype`."""
    x, scale = matrix(dtype), torch.ones(())
    cases: dict[str, Callable[[], object]] = {
        "encode_scaled e4m3": partial(encode_scaled.encode_scaled, x, "e4m3", scale, amax=True),
        "encode_scaled e4m3, transposed": partial(
            encode_scaled.encode_scaled, x, "e4m3", scale, amax=True, transpose=True
        ),
        "encode_scaled e4m3, fused": partial(encode_scaled.encode_scaled, x, "e4m3", scale, fused=True),
        "amax": partial(largest, x),
    }
    for name in ("mxfp8", "nvfp4_te", "nvfp4", "fp8_1x128", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te"):
        cases[f"quantize {name}"] = partial(quantize.quantize, x, quantizers.parse(name))
    return cases


def tuned_casts(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each other configuration that is offered for kernels of `encode_scaled` and `quantize`."""
    x, cases = matrix(dtype), {}
    for transpose, name in ((False, "encode_scaled e4m3"), (True, "encode_scaled e4m3, transposed")):
        call = partial(encode_scaled.encode_scaled, x, "e4m3", torch.ones(()), amax=True, transpose=transpose)
        for config in encode_scaled.offered(transpose)[1:]:
            cases[f"{name}, {config.block} w{config.num_warps}"] = partial(launch_with, config, call)
    for name in ("mxfp8", "nvfp4_te", "fp8_1x128", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te"):
        chosen = quantizers.parse(name)
        assert chosen.scale is not None
        for tile in quantize.offered(chosen.scale.granularity.blocks(tuple(x.shape)))[1:]:
            call = partial(quantize.quantize, x, chosen)
            cases[f"quantize {name}, tile {tile}"] = partial(launch_with, tile, call)
    return cases


def launch_with(choice: object, call: Callable[[], object]) -> None:
    """The call, with this configuration chosen wherever one is."""
    before, tuning.pick = tuning.pick, lambda *arguments: choice
    try:
        call()
    finally:
        tuning.pick = before


def element_work(activation: Any, norm: Any) -> dict[str, Callable[[], object]]:
    """Fused element work on matrices of bfloat16, to E4M3 with amax, in one layout and in both."""
    x, wide = torch.zeros(1024, 4096, dtype=torch.bfloat16), torch.zeros(256, 16384, dtype=torch.bfloat16)
    gain, inverse = torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(1024)
    cases: dict[str, Callable[[], object]] = {
        "rms_norm, wide": partial(norm.rms_norm, wide, None, fmt="e4m3", amax=True),
        "rms_norm_backward, wide": partial(norm.rms_norm_backward, wide, wide, wide[0], inverse[:256], fmt="e5m2"),
        "rms_norm_backward, numbers": partial(norm.rms_norm_backward, x, x, gain, inverse, values=torch.bfloat16),
        "rms_norm, longest": partial(norm.rms_norm, torch.zeros(4, 40000, dtype=torch.bfloat16), None, fmt="e4m3"),
        "gelu, numbers": partial(activation.gelu, x, values=torch.bfloat16),
        "silu_glu_backward, numbers": partial(activation.silu_glu_backward, x, x, x, values=torch.bfloat16),
        "silu_glu, halves": partial(activation.silu_glu, *torch.chunk(x, 2, -1), fmt="e4m3", amax=True),
        "silu_glu_backward, packed": partial(
            activation.silu_glu_backward, x[:, :2048], *torch.chunk(x, 2, -1), packed=True, fmt="e5m2"
        ),
    }
    for layout, both in (("", {}), (", transposed", {"transpose": True})):
        forward: dict[str, Any] = {"fmt": "e4m3", "amax": True, **both}
        backward: dict[str, Any] = {"fmt": "e5m2", "amax": True, **both}
        cases |= {
            f"gelu{layout}": partial(activation.gelu, x, **forward),
            f"gelu tanh{layout}": partial(activation.gelu, x, approximate="tanh", **forward),
            f"gelu_backward{layout}": partial(activation.gelu_backward, x, x, **backward),
            f"gelu_backward tanh{layout}": partial(activation.gelu_backward, x, x, approximate="tanh", **backward),
            f"silu_glu{layout}": partial(activation.silu_glu, x, x, **forward),
            f"silu_glu_backward{layout}": partial(activation.silu_glu_backward, x, x, x, **backward),
            f"rms_norm{layout}": partial(norm.rms_norm, x, gain, **forward),
            f"rms_norm_backward{layout}": partial(norm.rms_norm_backward, x, x, gain, inverse, **backward),
        }
    return cases


def losses() -> dict[str, Callable[[], object]]:
    logits, target = torch.zeros(4, 32768, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)
    smooth: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-4, "weight": torch.ones(32768)}
    return {
        "cross_entropy": partial(cross_entropy.cross_entropy, logits, target, in_place=True),
        "cross_entropy, smoothed": partial(cross_entropy.cross_entropy, logits, target, **smooth),
        "scale_rows": partial(cross_entropy.scale_rows, logits, torch.ones(4)),
    }


def largest(x: torch.Tensor) -> torch.Tensor:
    whole = (1, 1, x.numel(), 1, x.numel())
    return quantize._largest(
        launching.raw_bits(x), quantize._Cut.of(whole, None), {"SOURCE": None, "WIDE_SOURCE": None}
    )


def define_matmuls(capability: int, a: torch.dtype, b: torch.dtype) -> None:
    """A product of large matrices with each option, and of each configuration that it may be launched with."""
    name, large = f"sm_{capability} matmul {short(a)} x {short(b)}", partial(multiply, 4096, 8192, 4096, a, b)
    cases: dict[str, Callable[[], object]] = {
        "": partial(large, out_dtype=torch.bfloat16),
        ", ragged": partial(multiply, 1000, 1, 999, a, b, scale=0.5, split_k=1),
        ", split": partial(multiply, 128, 128, 8192, a, b),
        ", merge": partial(multiply, 128, 128, 8192, a, b),
        ", batch": partial(multiply, 2000, 2000, 4096, a, b, batch=(3,)),
        ", rows": partial(large, factors=(1, None)),
    }
    fp8 = {
        ", promoted": {"fast_accumulation": False},
        ", blocks": {"factors": (1, 128)},
        ", to e4m3": {"out_dtype": torch.float8_e4m3fn, "amax": torch.zeros(())},
    }
    options: dict[str, dict[str, Any]] = {"": {}, ", rows": {"factors": (1, None)}, **(fp8 if a.itemsize == 1 else {})}
    for what, chosen in options.items():
        cases[what] = cases.get(what) or partial(large, **chosen)
        for config, out_dtype in offered_products(a.itemsize, capability, what):
            tile = f"{config.block_m}x{config.block_n}x{config.block_k} w{config.num_warps} s{config.num_stages}"
            cases[f"{what}, {tile}"] = partial(large, config=config, **({"out_dtype": out_dtype} | chosen))
    CASES.update({f"{name}{case}": (capability, call) for case, call in cases.items()})


def offered_products(element_size: int, capability: int, what: str) -> Iterator[tuple[Any, torch.dtype]]:
    """Each configuration offered for products with an option, and the result whose way out takes most of the chip."""
    kind = matmul_configs.Kind(
        element_size, divmod(capability, 10), what == ", promoted", what == ", to e4m3", what == ", blocks"
    )
    for_all = matmul_configs.offered(kind)
    yield from ((config, torch.float32) for config in for_all)
    for config in matmul_configs.offered(dataclasses.replace(kind, out_size=2)):
        if config not in for_all:
            yield config, torch.bfloat16


def multiply(
    m: int,
    n: int,
    k: int,
    a: torch.dtype,
    b: torch.dtype,
    *,
    batch: tuple[int, ...] = (),
    factors: tuple[int | None, int | None] | None = None,
    **options: Any,
) -> torch.Tensor:
    """A product of empty operands. `factors`: how many rows of a and of b share a factor of a block; None: one row has
    one factor."""
    if factors is not None:
        pairs = zip((m, n), factors, strict=True)
        shapes = [(-(-rows // shared), -(-k // 128)) if None not in factors else (rows,) for rows, shared in pairs]
        options |= {"a_scale_inv": torch.ones(shapes[0]), "b_scale_inv": torch.ones(shapes[1])}
    return matmul.matmul(torch.empty(*batch, m, k, dtype=a), torch.empty(*batch, n, k, dtype=b), **options)


def define_attentions(capability: int, dtype: torch.dtype) -> None:
    """Attention of each width, of each configuration that it may be launched with, and with each option."""
    name = f"sm_{capability} attention {short(dtype)}"
    cases: dict[str, Callable[[], object]] = {}
    for width in (64, 128, 256):
        cases[f" {width}"] = partial(attend, width, dtype)
        if dtype in (torch.float8_e5m2, torch.float16):
            continue
        kind = attention_configs.Kind(dtype.itemsize, divmod(capability, 10), width)
        for config in attention_configs.configs(kind):
            what = f"{', transposed' * config.transposes}{', overlapping' * config.overlaps}"
            tile = f"{config.block_m}x{config.block_n} w{config.num_warps} s{config.num_stages}{what}"
            cases[f" {width}, {tile}"] = partial(attend, width, dtype, config=config)
            cases[f" {width}, {tile}, causal"] = partial(attend, width, dtype, config=config, is_causal=True)
    cases[" 128, causal"] = partial(attend, 128, dtype, is_causal=True)
    cases[" 128, window"] = partial(attend, 128, dtype, window=4096, lower_right=True)
    cases[" 128, packed"] = partial(attend, 128, dtype, is_causal=True, packed=True)
    cases[" 80, ragged"] = partial(attend, 80, dtype, keys=999)
    CASES.update({f"{name}{case}": (capability, call) for case, call in cases.items()})


def attend(
    width: int,
    dtype: torch.dtype,
    *,
    keys: int = 4096,
    packed: bool = False,
    config: attention.Config | None = None,
    **options: Any,
) -> object:
    """Attention of empty operands, by the plan of a configuration."""
    query = torch.empty(1, 8, 4096, width, dtype=dtype)
    key, value = (torch.empty(1, 2, keys, width, dtype=dtype) for _ in range(2))
    if packed:
        starts = torch.arange(0, 4097, 512, dtype=torch.int32)
        options |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
    if config is not None:
        capability = matmul.capability_of(query)
        plan = attention.plan_of((dtype,) * 3, capability, width)
        options |= {"config": config, "plan": dataclasses.replace(plan, block=config.block_n)}
    return attention.attention(query, key, value, **options)


def define_backwards(capability: int, dtype: torch.dtype, width: int) -> None:
    """The passes of an attention's backward: over queries and over keys, for whole tiles and for all sizes, plain and
    with each mask. FP8 is multiplied on sm_90, and bfloat16 elsewhere."""
    if dtype.itemsize == 1 and capability < 90:
        return
    cases: dict[str, dict[str, Any]] = {
        "": {"is_causal": True},
        ", everything seen": {},
        ", shared": {"is_causal": True, "groups": 2},
        ", window": {"window": 256, "lower_right": True},
        ", ragged": {"is_causal": True, "length": 4001},
        ", ragged, window": {"window": 256, "length": 4001},
        ", packed": {"is_causal": True, "starts": torch.tensor([0, 4096], dtype=torch.int32)},
    }
    for config in attention_backward.configs(width, divmod(capability, 10), fp8=dtype.itemsize == 1)[1:-1]:
        tiles = (f"{tile.rows}x{tile.step} w{tile.num_warps}" for tile in (config.over_queries, config.over_keys))
        cases[f", {' and '.join(tiles)}"] = {"is_causal": True, "config": config}
    for (case, chosen), which in itertools.product(cases.items(), ("queries", "keys")):
        name = f"sm_{capability} attention backward over {which} {short(dtype)} {width}{case}"
        CASES[name] = capability, partial(differentiate, dtype, width, **chosen)


def differentiate(
    dtype: torch.dtype,
    width: int,
    *,
    length: int = 4096,
    groups: int = 8,
    starts: torch.Tensor | None = None,
    **options: Any,
) -> object:
    """The backward pass of an attention of empty operands, as it is launched on a device."""
    q, k, v = (torch.empty(1, heads, length, width, dtype=dtype) for heads in (8, groups, groups))
    grad, lse = torch.empty(1, 8, length, width, dtype=torch.bfloat16), torch.empty(1, 8, length)
    if dtype.itemsize == 1:
        options |= {"fp8": True, "grad_output_scale": 1.0, "grad_logits_scale": 1.0}
    return attention_backward.attention_backward(
        grad, q, k, v, grad, lse, cu_seqlens_q=starts, cu_seqlens_k=starts, **options
    )


@triton.jit
def exact_product_kernel(x_ptr, out_ptr):
    """What not to do: asked to add exactly, Triton 3.6 leaves the FP8 instructions."""
    index = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    x = tl.load(x_ptr + index)
    tl.store(out_ptr + index, tl.dot(x, x.T, max_num_imprecise_acc=0))


def short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.").removeprefix("float8_").removesuffix("fn")


class AbsentGpu:
    """Stands in for Triton's driver: the compiler asks it only what to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def launches_compiled() -> Iterator[list[Any]]:
    """Inside, launches of Triton kernels are compiled and appended to the list instead of run."""
    from triton.runtime.jit import JITFunction

    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    JITFunction.run = compile_only
    for module in (attention, attention_backward, cast, encode_scaled, hardware, matmul, quantize, results):
        module.require_device = lambda argument, x: None
    yield compiled
    JITFunction.run = run


def pretended_capability(capability: int, x: torch.Tensor) -> tuple[int, int]:
    return divmod(capability, 10)


def report(kernel: Any) -> dict[str, Any]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code = run_tool(tools / "nvdisasm", "-c", file.name)
        usage = run_tool(tools / "cuobjdump", "-res-usage", file.name)
    opcodes = OPCODE.findall(code)
    [registers], [stack] = re.findall(r"REG:(\d+)", usage), re.findall(r"STACK:(\d+)", usage)
    return {
        "opcodes": Counter(opcodes),
        "loops": list(loops_of_products(code)),
        "registers": int(registers),
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "ptx": kernel.asm["ptx"],
    }


OPCODE = re.compile(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
BRANCH = re.compile(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?BRA.*?`\((\.L\w+)\)", re.MULTILINE)


def loops_of_products(code: str) -> Iterator[list[str]]:
    """The opcodes, in order, of each loop that has instructions of a tensor core; there are no loops in loops.

    A branch backwards over the end of the program is one from cold code, which ptxas puts there.
    """
    labels = {found[1]: found.start() for found in LABEL.finditer(code)}
    for branch in BRANCH.finditer(code):
        body = OPCODE.findall(code[labels[branch[1]] : branch.end()])
        if "EXIT" not in body and any(opcode.split(".")[0].endswith("MMA") for opcode in body):
            yield body


def which_launch(name: str) -> int:
    """Which of a call's launches a case is about: the last, but for products, element work and passes over queries."""
    if "backward over queries" in name:
        return -2
    return 0 if ("matmul" in name and not name.endswith("merge")) or "element" in name else -1


def run_tool(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


RECORD = Path(__file__).parent / "golden" / "triton_code.json"
"""Registers per thread and bytes of shared memory of each kernel."""


def record(reports: dict[str, dict[str, Any]]) -> None:
    """Write down what kernels take; those that fail to compile are left out."""
    taken = {name: [r["registers"], r["shared"]] for name, r in sorted(reports.items()) if "error" not in r}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures)}" for name, figures in taken.items())
    content = f'{{\n "triton": "{triton.__version__}",\n "registers, shared": {{\n{rows}\n }}\n}}\n'
    RECORD.write_text(content, encoding="utf-8")


def main(names: list[str]) -> dict[str, dict[str, Any]]:
    """The reports of these cases, or of all."""
    from triton.runtime import driver

    define_cases()
    reports: dict[str, dict[str, Any]] = {}
    with launches_compiled() as compiled:
        for name in names or CASES:
            capability, call = CASES[name]
            driver.set_active(AbsentGpu(capability))
            matmul.capability_of = partial(pretended_capability, capability)
            attention_backward.capability_of = matmul.capability_of
            matmul._processors = lambda x: 132
            compiled.clear()
            try:
                call()
                reports[name] = report(compiled[which_launch(name)])
            except Exception as error:
                reports[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return reports


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record(main([]))
    else:
        print(json.dumps(main(sys.argv[1:])))
