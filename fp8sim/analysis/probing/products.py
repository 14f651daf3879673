"""The GEMMs that are asked for their order, Triton's, ours and torch's, and the plans that they should follow.

P10 is Triton's FP8, P11 `torch._scaled_mm`, P12 promotion with factors, P13 bfloat16, float16 and tf32 (docs/probe.md).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fp8sim.analysis.probing.calls import Call, DeviceCall
from fp8sim.analysis.probing.gemms import Subject, stand_in
from fp8sim.mma import MODELS
from fp8sim.mma.plans import PLANS, GemmPlan

_FP8 = "float8_e4m3fn"
_SMALL, _LARGE = 64, 1024
"""M and N: libraries may split K where a result has few tiles."""
_IN_FLOAT16 = PLANS["triton.sm90.imprecise0"]
"""What becomes of FP8 where a tile has fewer rows than the FP8 instructions of compute capability 9.0."""


PROBES = ("P10", "P11", "P12", "P13")


@dataclass(frozen=True)
class Row:
    """A GEMM to ask.

    Attributes:
        subject: whose `gemm` runs on the device.
        needs: "triton", "cuda" (`fp8sim._cuda`) or "torch".
        stands_in: what the simulator computes in its stead.
        every_length: whether it is asked for every K, or for the longest alone.
    """

    subject: Subject
    needs: str
    stands_in: GemmPlan
    every_length: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the simulator computes it in no time, too."""
        return self.subject.size <= _SMALL

    def on_simulator(self) -> Row:
        """The same, asked of the simulator."""
        subject = self.subject
        simulated = stand_in(self.stands_in, subject.fmt, subject.output, subject.factor_block or 128)
        named = f"stand-in for {subject.name}"
        return dataclasses.replace(
            self, subject=dataclasses.replace(subject, name=named, gemm=simulated, machine_code=tuple)
        )


def rows(architecture: str) -> list[Row]:
    """Every GEMM that a device of an architecture of `ARCHITECTURES` is asked about."""
    found: list[Row] = []
    if architecture == "sm90":
        found += [*_triton_fp8(), *_promoted()]
    if architecture in ("sm80", "sm89", "sm90"):
        found += _triton_wide(architecture)
    if instruction := instruction_of(architecture, "e4m3"):
        found += _scaled_mm(instruction)
    if instruction := instruction_of(architecture, "bf16"):
        found += _torch_mm(instruction)
    return found


def instruction_of(architecture: str, name: str) -> str | None:
    """The instruction by which a library multiplies numbers of a type, None if there is none."""
    kinds = (f"{architecture}.{kind}" for kind in ("wgmma", "tcgen05", "mma"))
    return next((kind for kind in kinds if f"{kind}.{name}.{name}.f32" in MODELS), None)


# P10


def _triton_fp8() -> Iterator[Row]:
    """Triton's forms of `tl.dot` on FP8, by sizes of tiles: our own product where it offers them."""
    for block_m in (64, 128):
        for block_k in (64, 128, 256):
            tile = (block_m, 64, block_k)
            yield _predicted("P10", f"matmul, {_text(tile)}", GemmPlan("sm90.wgmma"), _matmul(tile))
            if block_k >= 128:
                plan, call = _imprecise(128, block_k), _matmul(tile, fast=False)
                yield _predicted("P10", f"matmul, promoted, {_text(tile)}", plan, call)
    for block_k in (64, 128, 256):
        for block_m in (16, 32, 64, 128):
            tile = (block_m, 64, block_k)
            base = GemmPlan("sm90.wgmma") if block_m >= 64 else _IN_FLOAT16
            if block_m < 64:
                yield _predicted("P10", f"tl.dot(acc), {_text(tile)}", base, _dot(tile))
            added = dataclasses.replace(base, flush=block_k)
            yield _predicted("P10", f"+= tl.dot, {_text(tile)}", added, _dot(tile, form="add"))
            for every in (32, 64, 128):
                if every <= block_k:
                    plan = _imprecise(every, block_k) if block_m >= 64 else base
                    name = f"tl.dot(acc, max_num_imprecise_acc={every}), {_text(tile)}"
                    yield _predicted("P10", name, plan, _dot(tile, imprecise=every))


def _imprecise(every: int, block_k: int) -> GemmPlan:
    return GemmPlan("sm90.wgmma", flush=every, block_k=block_k)


# P11


def _scaled_mm(instruction: str) -> Iterator[Row]:
    """With a factor of 1 for each operand and a float32 result, or one for each row, whose result is of 16 bits."""
    for fast, size, by_row in itertools.product((True, False), (_SMALL, _LARGE), (False, True)):
        name = f"torch._scaled_mm(use_fast_accum={fast}){', factors of rows' if by_row else ''}"
        name += f", {size} x {size}" if size != _SMALL else ""
        output = "bfloat16" if by_row else "float32"
        call = DeviceCall((_FP8, _FP8), _scaled_mm_call(fast, by_row))
        subject = Subject(name, call, instruction, output=output, size=size)
        plan = GemmPlan(instruction, flush=None if fast else 128)
        yield Row(subject, "torch", plan, every_length=True)


def _scaled_mm_call(fast: bool, by_row: bool) -> Call:
    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        of_a, of_b = (torch.ones(shape if by_row else (), device=a.device) for shape in ((len(a), 1), (1, len(b))))
        dtype = torch.bfloat16 if by_row else torch.float32
        return torch._scaled_mm(a, b.t(), of_a, of_b, out_dtype=dtype, use_fast_accum=fast)

    return call


# P12


def _promoted() -> Iterator[Row]:
    """Promotion every 128: is a product and the addition to the sum one operation, or two?"""
    fused = PLANS["deepgemm.sm90"]
    plan, tile = _imprecise(128, 128), (64, 64, 128)
    yield _predicted("P12", "fp8sim.cuda matmul, promoted", plan, _cuda_matmul(), needs="cuda")
    yield _predicted("P12", "matmul, blocks", fused, _matmul(tile), factor_block=128)
    name = "+= tl.dot * factors"
    yield _predicted("P12", name, fused, _dot(tile, form="scaled"), factor_block=128)
    apart, call = dataclasses.replace(fused, fused=False), _dot(tile, form="scaled", fused=False)
    yield _predicted("P12", f"{name}, enable_fp_fusion=False", apart, call, factor_block=128)


# P13


def _triton_wide(architecture: str) -> Iterator[Row]:
    """Triton's bfloat16, float16 and tf32: one chain, whatever the form and the tile."""
    few = GemmPlan(f"{architecture}.mma")
    many = GemmPlan("sm90.wgmma") if architecture == "sm90" else few
    for fmt in ("bfloat16", "float16"):
        yield _predicted("P13", f"matmul, {fmt}", many, _matmul(None), fmt)
        parts = dataclasses.replace(many, split_k=2, block_k=64)
        yield _predicted("P13", f"matmul, {fmt}, split_k=2", parts, _matmul((64, 64, 64), split_k=2), fmt)
    for fmt in ("bfloat16", "float16", "tf32"):
        for block_m, plan in ((16, few), (64, many)):
            tile = (block_m, 64, 32 if fmt == "tf32" else 64)
            for form, name in (("chain", "tl.dot(acc)"), ("add", "+= tl.dot")):
                yield _predicted("P13", f"{name}, {fmt}, {_text(tile)}", plan, _dot(tile, form=form), fmt)


def _torch_mm(instruction: str) -> Iterator[Row]:
    """`torch.mm`, to float32, and to the operands' format, which cannot show where sums end."""
    for size in (_SMALL, _LARGE):
        for fmt in ("bfloat16", "float16"):
            for output in ("float32", fmt):
                call = _mm_to_float32 if output == "float32" else _mm
                yield _of_torch(f"torch.mm, {fmt} to {output}, {size} x {size}", call, instruction, fmt, output, size)
        yield _of_torch(f"torch.mm, tf32, {size} x {size}", tf32_mm, instruction, "tf32", "float32", size)


def _of_torch(name: str, call: Call, instruction: str, fmt: str, output: str, size: int) -> Row:
    subject = Subject(name, DeviceCall((fmt, fmt), call), instruction, fmt, output, size=size, probe="P13")
    return Row(subject, "torch", GemmPlan(instruction), every_length=True)


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b.t())


def _mm_to_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b.t(), out_dtype=torch.float32)


def tf32_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [M, K] times b [N, K] transposed, float32, by tf32 instructions."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        return torch.mm(a, b.t())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# Calls on the device; Triton and `fp8sim._cuda` are imported when they are made


def _predicted(
    probe: str,
    name: str,
    plan: GemmPlan,
    call: Call,
    fmt: str = _FP8,
    *,
    needs: str = "triton",
    factor_block: int | None = None,
) -> Row:
    by_triton = needs == "triton"
    device = DeviceCall((fmt, fmt), call, by_triton=by_triton)
    subject = Subject(
        f"Triton {name}" if by_triton else name,
        device,
        plan.instruction,
        fmt,
        predicted=plan,
        factor_block=factor_block,
        probe=probe,
        machine_code=device.machine_code,
    )
    return Row(subject, needs, plan)


def _dot(tile: tuple[int, int, int], *, form: str = "chain", imprecise: int | None = None, fused: bool = True) -> Call:
    """`tl.dot` in a loop with nothing around it."""

    def call(a: torch.Tensor, b: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        from fp8sim.triton_kernels import probe

        pair = (factors[0], factors[1]) if factors else None
        return probe.dot(a, b, form=form, imprecise=imprecise, factors=pair, fused=fused, block=tile)

    return call


def _matmul(tile: tuple[int, int, int] | None, *, fast: bool = True, split_k: int = 1) -> Call:
    """Our product in Triton; a tile of None leaves its size to it. Sums with factors of blocks are not split."""

    def call(a: torch.Tensor, b: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        from fp8sim.triton_kernels import matmul, requirements

        config = None
        if tile is not None:
            descriptors = matmul.capability_of(a) >= requirements.HOPPER
            config = matmul.Config(*tile, num_warps=4, num_stages=2, descriptors=descriptors)
        left, right = factors or (None, None)
        return matmul.matmul(
            a, b, a_scale_inv=left, b_scale_inv=right, fast_accumulation=fast, split_k=split_k, config=config
        )

    return call


def _cuda_matmul() -> Call:
    """Our product in CUDA C++, promoted every 128."""

    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        from fp8sim.cuda import matmul

        return matmul.matmul(a, b, fast_accumulation=False)

    return call


def _text(tile: tuple[int, int, int]) -> str:
    return "x".join(map(str, tile))
