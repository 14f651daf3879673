"""Instructions as data: what an instruction multiplies, how it adds, what it returns.

An `MmaModel` is a row; `fp8sim.mma.architectures` makes all rows, and csrc/core/mma.hpp computes any of them. The
notation is that of Khattak and Mikaitis (arXiv 2512.07004) and of MMA-Sim (arXiv 2511.10909).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from fp8sim import formats
from fp8sim.formats import Format, Nan
from fp8sim.mma.evidence import Evidence


class Adder(enum.Enum):
    """How the products of one step and the accumulator c are added.

    In all of them a product keeps the exponents of its factors, e = e_a + e_b, and is not renormalised; a subnormal
    factor has the exponent of its format's smallest normal number.
    """

    TRUNCATED = 0
    """T-FDPA (NVIDIA). Terms are the `terms` products and c. A term that is zero has the exponent `zero_exponent`. Each
    term's magnitude is cut to a multiple of 2^(e_max - fraction_bits), e_max being the largest exponent; the cut terms
    are added exactly, and the sum is rounded once. A zero result is +0, a NaN has all bits but the sign set."""
    EMULATED = 1
    """FP8 `mma.sync` where no unit has it: the products of k mod 4 in {0, 1}, then those of {2, 3}, go through the
    binary16 unit, TRUNCATED sums of 16 that start at 0; then c is added by an ordinary addition, ties to even."""
    BLOCK_SCALED = 2
    """ST-FDPA (Blackwell, MXFP8/6/4): TRUNCATED, the exponents of both scale factors added to those of the products."""
    GROUPED = 3
    """GST-FDPA (Blackwell, 4 bits): the products of each 16 are added exactly; that sum times both scale factors'
    significands is a term whose exponent is the sum of the scale factors' exponents. Terms and c as in TRUNCATED; a
    term has the exponent `zero_exponent` if its 16 products are all zero, or a scale factor is."""
    SEQUENTIAL = 4
    """Fused multiply-add in increasing k, ties to even, as in IEEE 754."""
    EXACT = 5
    """E-FDPA (CDNA1): the exact sum of products and c, rounded once, ties to even."""
    FLUSHING = 6
    """CDNA2: subnormal inputs become +0 (so does c, once per instruction); products, a tree of sums over the step and
    the sum with c are each rounded to binary32, ties to even, and a subnormal result becomes zero of its sign."""
    ROUNDED = 7
    """TR-FDPA (CDNA3): the products as in TRUNCATED, but without c. At the larger of that sum's exponent and c's, the
    sum is floored to 32 fraction bits, c to `fraction_bits`; their sum is floored to 31 and rounded to nearest, ties to
    even. A product that binary32 lacks for its size is infinite."""
    EVEN_ODD = 8
    """GTR-FDPA (CDNA3, 8 bits): as ROUNDED, but the products of even and of odd k are two sums, the one of the smaller
    exponent floored at the other's, and c is 0 if more than 25 binades below the largest exponent."""


class Output(enum.Enum):
    """The rounding of a step's sum: (name, accumulator, fraction bits kept, whether to nearest with ties to even).

    Toward zero, a result too large for the accumulator is infinity all the same.
    """

    RZ_FP32 = ("RZ-FP32", "float32", 23, False)
    RZ_E8M13 = ("RZ-E8M13", "float32", 13, False)
    RNE_FP16 = ("RNE-FP16", "float16", 10, True)
    RNE_FP32 = ("RNE-FP32", "float32", 23, True)
    RNE_FP64 = ("RNE-FP64", "float64", 52, True)

    def __init__(self, label: str, accumulator: str, kept_bits: int, to_nearest: bool) -> None:
        self.label = label
        self.accumulator = accumulator
        self.kept_bits = kept_bits
        self.to_nearest = to_nearest


@dataclass(frozen=True)
class MmaModel:
    """The arithmetic of one instruction.

    Attributes:
        name: as `sm90.wgmma.e4m3.e4m3.f32`: architecture, instruction, formats of a, b and the accumulator.
        instruction: the name without the formats, as `sm90.wgmma`.
        a_format, b_format: a name that `fp8sim.formats.parse` knows, or "float64". See `operand_dtype` for tf32.
        adder: how it adds.
        k: products of one instruction.
        terms: L, products of one step; an instruction is k / L steps in increasing k, each step's result being the
            next one's c.
        fraction_bits: F, kept below the largest exponent of a step; None where the adder cuts nothing.
        zero_exponent: the exponent of a term that is zero; None where the adder has no such rule.
        output: the rounding of each step's sum; it names the accumulator's format.
        scale_format: of the scale factors, "float8_e8m0fnu" or "float8_e4m3fn" (its sign bit is ignored); None: none.
        scale_block: how many products along k share a scale factor.
        source: where the arithmetic is described.
        evidence: what confirms it, by category (`fp8sim.mma.evidence.CATEGORIES`); no part of comparison.
    """

    name: str
    instruction: str
    a_format: str
    b_format: str
    adder: Adder
    k: int
    terms: int
    fraction_bits: int | None
    zero_exponent: int | None
    output: Output
    scale_format: str | None = None
    scale_block: int | None = None
    source: str = field(default="", compare=False)
    evidence: Mapping[str, Evidence] = field(default_factory=dict, compare=False, repr=False)

    @property
    def accumulator(self) -> str:
        """The format of c and d, a NumPy dtype: "float32", "float16" or "float64"."""
        return self.output.accumulator

    def __str__(self) -> str:
        return self.name


def operand_dtype(fmt: str) -> str:
    """The dtype of an operand's codes: "uint8", "uint16", "uint32" or "uint64".

    A tf32 operand is the 32-bit register, a binary32 number whose 13 low bits the instruction ignores.
    """
    if fmt == "float64":
        return "uint64"
    bits = 32 if fmt == "tf32" else formats.parse(fmt).bits
    return "uint8" if bits <= 8 else "uint16" if bits <= 16 else "uint32"


_NAN_CODES = {Nan.IEEE: 0, Nan.ALL_ONES: 1, Nan.NEGATIVE_ZERO: 2, Nan.NONE: 3}
_BINARY64 = (11, 52, 1023, 0, 1, 1, _NAN_CODES[Nan.IEEE])
_TF32_DROPPED = 13


def core_fields(model: MmaModel) -> list[int]:
    """A model as csrc/core/mma.hpp takes it: the fields of its struct `MmaModel`, in order."""
    output = model.output
    scale = formats.parse(model.scale_format) if model.scale_format else formats.parse("e8m0")
    return [
        model.adder.value,
        model.k,
        model.terms,
        model.fraction_bits or 1,
        model.zero_exponent or 0,
        output.kept_bits,
        int(output.to_nearest),
        model.scale_block or 0,
        *_format_fields(model.a_format),
        *_format_fields(model.b_format),
        *_format_fields(output.accumulator),
        *_scale_fields(scale),
    ]


def _format_fields(name: str) -> tuple[int, ...]:
    if name == "float64":
        return _BINARY64
    fmt = formats.parse(name)
    dropped = _TF32_DROPPED if name == "tf32" else 0
    return (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, dropped, fmt.signed, fmt.zero, _NAN_CODES[fmt.nan])


def _scale_fields(fmt: Format) -> tuple[int, ...]:
    """A scale factor has no sign: the bit above its magnitude is ignored."""
    return (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, 0, 0, fmt.zero, _NAN_CODES[fmt.nan])
