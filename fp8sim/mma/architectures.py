"""The instructions of each GPU generation: `ARCHITECTURES` as data, and from it every row of `MODELS`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fp8sim.mma.evidence import CAPTURED, evidence_of
from fp8sim.mma.models import Adder, MmaModel, Output, operand_dtype

OPERANDS: Mapping[str, str] = MappingProxyType(
    {
        "f64": "float64",
        "f32": "float32",
        "tf32": "tf32",
        "xf32": "tf32",
        "f16": "float16",
        "bf16": "bfloat16",
        "e4m3": "float8_e4m3fn",
        "e5m2": "float8_e5m2",
        "e3m2": "float6_e3m2fn",
        "e2m3": "float6_e2m3fn",
        "e2m1": "float4_e2m1fn",
        "fp8": "float8_e4m3fnuz",
        "bf8": "float8_e5m2fnuz",
    }
)
"""Operand types as vendors write them, and their formats."""

Pairs = tuple[tuple[str, str], ...]


def _same(*names: str) -> Pairs:
    return tuple((name, name) for name in names)


def _all_of(*names: str) -> Pairs:
    return tuple(itertools.product(names, names))


_FP8 = _all_of("e4m3", "e5m2")
_F8F6F4 = _all_of("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_E2M1 = _same("e2m1")
_F32, _BOTH = ("f32",), ("f32", "f16")


@dataclass(frozen=True)
class Instruction:
    """Instructions that differ in nothing but their formats.

    Attributes:
        name: without the architecture: "mma"; a variant says how it differs, as "mma.k8" or "mma.mxf4".
        k: products of one instruction.
        pairs: the types of a and b.
        accumulators: the types of c and d.
        adder: how it adds.
        fraction_bits: where it differs from the architecture's.
        terms: products of one step, where the architecture's step size does not give it.
        scale_format, scale_block: as in `MmaModel`.
        evidence: what is known of it beyond captured outputs: "reference" or "inferred".
    """

    name: str
    k: int
    pairs: Pairs
    accumulators: tuple[str, ...] = _F32
    adder: Adder = Adder.TRUNCATED
    fraction_bits: int | None = None
    terms: int | None = None
    scale_format: str | None = None
    scale_block: int | None = None
    evidence: str = "reference"


@dataclass(frozen=True)
class Architecture:
    """A generation of GPUs.

    Attributes:
        name: as in the compiler's targets.
        gpus: which have it.
        fraction_bits: F of its truncating adders: 23 and as many extra bits as the generation has.
        step_bytes: bytes of a that one step takes.
        instructions: what it multiplies.
    """

    name: str
    gpus: str
    fraction_bits: int
    step_bytes: int
    instructions: tuple[Instruction, ...]


def _half_precision(k: int = 16, *, short: bool = True) -> tuple[Instruction, ...]:
    """binary16, bfloat16 and TF32 as from Ampere on: the full k, and shorter forms."""
    return (
        Instruction("mma", k, _same("f16"), _BOTH),
        Instruction("mma", k, _same("bf16")),
        Instruction("mma", k // 2, _same("tf32")),
        Instruction("mma.k8", k // 2, _same("f16"), _BOTH),
        Instruction("mma.k8", k // 2, _same("bf16")),
        Instruction("mma.k4", k // 4, _same("tf32")),
    )


def _double(k: int) -> Instruction:
    return Instruction("mma", k, _same("f64"), ("f64",), Adder.SEQUENTIAL)


_EMULATED_FP8 = (
    Instruction("mma", 32, _FP8, _BOTH, Adder.EMULATED, evidence="inferred"),
    Instruction("mma.k16", 16, _FP8, _BOTH, Adder.EMULATED, evidence="inferred"),
)


def _block_scaled(prefix: str) -> tuple[Instruction, ...]:
    grouped = {"adder": Adder.GROUPED, "fraction_bits": 35}
    return (
        Instruction(f"{prefix}.mxf8f6f4", 32, _F8F6F4, _F32, Adder.BLOCK_SCALED, scale_format="e8m0", scale_block=32),
        *(
            Instruction(f"{prefix}.{kind}", 64, _E2M1, _F32, **grouped, scale_format=scale, scale_block=block)  # type: ignore[arg-type]
            for kind, scale, block in (
                ("mxf4", "e8m0", 32),
                ("mxf4nvf4.block32.ue8m0", "e8m0", 32),
                ("mxf4nvf4.block16.ue8m0", "e8m0", 16),
                ("mxf4nvf4.block16.ue4m3", "e4m3", 16),
            )
        ),
    )


def _mfma(pairs: Pairs, k: int, terms: int, adder: Adder, name: str = "mfma", to: str = "f32") -> Instruction:
    return Instruction(name, k, pairs, (to,), adder, terms=terms)


_ARCHITECTURES = (
    Architecture("sm70", "Volta: V100", 23, 8, (Instruction("mma", 4, _same("f16"), _BOTH),)),
    Architecture(
        "sm75",
        "Turing: T4, RTX 20",
        24,
        16,
        (
            Instruction("mma", 8, _same("f16"), _BOTH),
            Instruction("mma.k4", 4, _same("f16"), _BOTH, fraction_bits=23, terms=4),  # Volta's, kept
        ),
    ),
    Architecture("sm80", "Ampere: A100, A2, RTX 30", 24, 16, (*_half_precision(), _double(4))),
    Architecture(
        "sm89",
        "Ada: L40S, RTX 40",
        24,
        16,
        (
            *_half_precision(),
            _double(4),
            Instruction("mma", 32, _FP8, _BOTH, fraction_bits=13),
            Instruction("mma.k16", 16, _FP8, _BOTH, fraction_bits=13),
        ),
    ),
    Architecture(
        "sm90",
        "Hopper: H100, H200",
        25,
        32,
        (
            *_half_precision(),
            _double(16),
            *_EMULATED_FP8,
            Instruction("wgmma", 16, _same("f16"), _BOTH),
            Instruction("wgmma", 16, _same("bf16")),
            Instruction("wgmma", 8, _same("tf32")),
            Instruction("wgmma", 32, _FP8, _BOTH, fraction_bits=13),
        ),
    ),
    Architecture(
        "sm100",
        "Blackwell: B200",
        25,
        32,
        (
            *_half_precision(),
            _double(4),
            *_EMULATED_FP8,
            Instruction("tcgen05", 16, _same("f16"), _BOTH),
            Instruction("tcgen05", 16, _same("bf16")),
            Instruction("tcgen05", 8, _same("tf32")),
            Instruction("tcgen05", 32, _F8F6F4, _BOTH),
            *_block_scaled("tcgen05"),
        ),
    ),
    Architecture(
        "sm120",
        "Blackwell: RTX 50, RTX PRO 6000",
        25,
        32,
        (
            *_half_precision(),
            _double(4),
            Instruction("mma", 32, _F8F6F4, _BOTH),
            Instruction("mma.k16", 16, _FP8, _BOTH),
            *_block_scaled("mma"),
        ),
    ),
    Architecture(
        "cdna1",
        "AMD CDNA1: MI100",
        24,
        8,
        (
            _mfma(_same("f32"), 4, 1, Adder.SEQUENTIAL),
            _mfma(_same("f16"), 16, 4, Adder.EXACT),
            _mfma(_same("bf16"), 8, 2, Adder.EXACT),
        ),
    ),
    Architecture(
        "cdna2",
        "AMD CDNA2: MI200",
        24,
        8,
        (
            _mfma(_same("f64"), 4, 1, Adder.SEQUENTIAL, to="f64"),
            _mfma(_same("f32"), 4, 1, Adder.SEQUENTIAL),
            _mfma(_same("f16"), 16, 4, Adder.FLUSHING),
            _mfma(_same("bf16"), 8, 2, Adder.FLUSHING),
            _mfma(_same("bf16"), 16, 4, Adder.FLUSHING, "mfma.1k"),
        ),
    ),
    Architecture(
        "cdna3",
        "AMD CDNA3: MI300",
        24,
        16,
        (
            _mfma(_same("f64"), 4, 1, Adder.SEQUENTIAL, to="f64"),
            _mfma(_same("f32"), 4, 1, Adder.SEQUENTIAL),
            _mfma(_same("xf32"), 8, 4, Adder.ROUNDED),
            _mfma(_same("f16", "bf16"), 16, 8, Adder.ROUNDED),
            _mfma(_all_of("fp8", "bf8"), 32, 16, Adder.EVEN_ODD),
        ),
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({row.name: row for row in _ARCHITECTURES})
"""Every generation, by name."""

_CUTTING = {Adder.TRUNCATED, Adder.EMULATED, Adder.BLOCK_SCALED, Adder.GROUPED}
_ZERO_EXPONENT_OF_GROUPS = -139
_SOURCES = {
    Adder.TRUNCATED: "arXiv 2511.10909 (MMA-Sim 2.1.1), arXiv 2512.07004",
    Adder.EMULATED: "machine code of nvcc 13.0 (tests/test_emulated_fp8.py); CUTLASS issue 1986",
    Adder.SEQUENTIAL: "arXiv 2511.10909 (MMA-Sim 2.1.1); IEEE 754-2019, 5.4.1",
}
_MMA_SIM = "arXiv 2511.10909 (MMA-Sim 2.1.1)"


def _rows(architecture: Architecture) -> Iterator[MmaModel]:
    for instruction in architecture.instructions:
        for (a, b), accumulator in itertools.product(instruction.pairs, instruction.accumulators):
            yield _row(architecture, instruction, a, b, accumulator)


def _row(architecture: Architecture, instruction: Instruction, a: str, b: str, accumulator: str) -> MmaModel:
    adder, name = instruction.adder, f"{architecture.name}.{instruction.name}"
    fraction_bits = None
    if adder in _CUTTING | {Adder.ROUNDED, Adder.EVEN_ODD}:
        fraction_bits = instruction.fraction_bits or architecture.fraction_bits
    return MmaModel(
        name=f"{name}.{a}.{b}.{accumulator}",
        instruction=name,
        a_format=OPERANDS[a],
        b_format=OPERANDS[b],
        adder=adder,
        k=instruction.k,
        terms=_terms(architecture, instruction, OPERANDS[a]),
        fraction_bits=fraction_bits,
        zero_exponent=_zero_exponent(architecture, instruction, accumulator) if adder in _CUTTING else None,
        output=_output(adder, accumulator, fraction_bits),
        scale_format=instruction.scale_format,
        scale_block=instruction.scale_block,
        source=_SOURCES.get(adder, _MMA_SIM),
    )


def _terms(architecture: Architecture, instruction: Instruction, a_format: str) -> int:
    """Products of one step. An emulated instruction and one that adds groups are a single step; an FMA is one."""
    if instruction.adder in (Adder.EMULATED, Adder.GROUPED):
        return instruction.k
    if instruction.adder is Adder.SEQUENTIAL:
        return 1
    item_bytes = int(operand_dtype(a_format).removeprefix("uint")) // 8
    return instruction.terms or min(instruction.k, architecture.step_bytes // item_bytes)


def _zero_exponent(architecture: Architecture, instruction: Instruction, accumulator: str) -> int:
    """It follows the F of the architecture's binary16 adder, also where an FP8 one keeps fewer bits."""
    if instruction.adder is Adder.GROUPED:
        return _ZERO_EXPONENT_OF_GROUPS
    fraction_bits = architecture.fraction_bits
    if instruction.pairs == _same("f16"):
        fraction_bits = instruction.fraction_bits or fraction_bits
    return (4 if accumulator == "f16" else -108) - fraction_bits


def _output(adder: Adder, accumulator: str, fraction_bits: int | None) -> Output:
    if accumulator == "f64":
        return Output.RNE_FP64
    if accumulator == "f16":
        return Output.RNE_FP16
    if adder not in _CUTTING:
        return Output.RNE_FP32
    return Output.RZ_E8M13 if fraction_bits == 13 else Output.RZ_FP32


def _with_evidence(rows: list[MmaModel]) -> Iterator[MmaModel]:
    units = {_unit(row): row.name for row in rows if row.name in CAPTURED}
    others = {
        f"{architecture.name}.{instruction.name}.{instruction.adder.name}": instruction.evidence
        for architecture in _ARCHITECTURES
        for instruction in architecture.instructions
    }
    for row in rows:
        evidence = evidence_of(row.name, units.get(_unit(row)), others[f"{row.instruction}.{row.adder.name}"])
        yield MmaModel(**{**row.__dict__, "evidence": MappingProxyType(evidence)})


def _unit(row: MmaModel) -> tuple[object, ...]:
    """What makes two instructions' steps the same."""
    family = ".".join(row.instruction.split(".")[:2])
    return family, row.a_format, row.b_format, row.output, row.adder, row.terms, row.fraction_bits


MODELS: Mapping[str, MmaModel] = MappingProxyType(
    {row.name: row for row in _with_evidence([row for arch in _ARCHITECTURES for row in _rows(arch)])}
)
"""Every instruction, by name."""
