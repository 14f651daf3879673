"""The catalogue of formats as a table, and every code of one format."""

from __future__ import annotations

import itertools
import math
from typing import Any

from fp8sim.formats import ALIASES, FORMATS, Codebook, Format

LARGEST_LISTED = 16
"""Formats of more bits have too many codes to list."""


def describe(fmt: Format) -> dict[str, Any]:
    """What defines a format and what follows from it; numbers as floats, codes as integers."""
    return {
        "name": str(fmt),
        "kind": _KINDS[type(fmt), fmt.twos_complement],
        "aliases": [alias for alias, name in ALIASES.items() if name == str(fmt)],
        "bits": fmt.bits,
        "signed": fmt.signed,
        "exponent_bits": fmt.exponent_bits,
        "mantissa_bits": fmt.mantissa_bits,
        "bias": fmt.bias,
        "emin": fmt.emin,
        "emax": fmt.emax,
        "max": fmt.to_float(fmt.max_code),
        "max_code": fmt.max_code,
        "smallest_normal_exponent": fmt.emin,
        "smallest": float(fmt.smallest),
        "infinity_code": fmt.inf_code,
        "nan": fmt.nan.value,
        "nan_code": fmt.nan_code,
        "negative_zero": fmt.has_negative_zero,
        "lowest_code": fmt.lowest_code,
    }


_KINDS = {(Format, False): "float", (Format, True): "fixed point", (Codebook, False): "codebook"}


def codes(fmt: Format) -> list[dict[str, Any]]:
    """Every code with what it stands for: "value" is a float, or None for infinities and NaN, which "kind" tells.

    Raises:
        ValueError: more than 16 bits.
    """
    if fmt.bits > LARGEST_LISTED:
        raise ValueError(f"{fmt} has 2^{fmt.bits} codes: codes are listed up to {LARGEST_LISTED} bits")
    return [_code(fmt, code) for code in fmt.codes]


def _code(fmt: Format, code: int) -> dict[str, Any]:
    value, kind = fmt.to_float(code), _kind(fmt, code)
    return {"code": code, "kind": kind, "value": value if fmt.is_finite(code) else None}


def _kind(fmt: Format, code: int) -> str:
    if fmt.is_nan(code):
        return "nan"
    if fmt.is_infinite(code):
        return "-infinity" if code & fmt.sign_bit else "infinity"
    magnitude = abs(fmt.value(code))
    if magnitude == 0:
        return "-zero" if code & fmt.sign_bit else "zero"
    if fmt.twos_complement or isinstance(fmt, Codebook):
        return "number"
    return "normal" if magnitude >= fmt.smallest_normal else "subnormal"


def table() -> str:
    """The catalogue, a line each."""
    names = f"{'name':<22} {'short':<12} {'s/e/m':<7} {'bias':>5} {'largest':>12} {'smallest':>9}  {'infinity':<8} NaN"
    return "\n".join([names, *(_line(describe(fmt)) for fmt in FORMATS.values()), *_FORMULAS])


_FORMULAS = (
    "binary{K}p{P}{s|u}{e|f}: every P3109 format, K = 3..16, by formula, e.g. binary8p4se",
    "fixed{K}(fraction={F}[,symmetric]): integers of K bits in two's complement times 2^-F; codebook(...): any levels",
)


def _line(row: dict[str, Any]) -> str:
    smallest = math.frexp(row["smallest"])
    power = f"2^{smallest[1] - 1}" if smallest[0] == 0.5 else f"{row['smallest']:.4g}"
    shape, bias = f"{int(row['signed'])}/{row['exponent_bits']}/{row['mantissa_bits']}", str(row["bias"])
    if row["kind"] != "float":
        shape, bias = f"{row['bits']} bits", ""
    infinity = "-" if row["infinity_code"] is None else f"{row['infinity_code']:#x}"
    nan = f"- ({row['kind']})" if row["kind"] != "float" else "-"
    nan = nan if row["nan_code"] is None else f"{row['nan_code']:#x} ({row['nan']})"
    head = f"{row['name']:<22} {', '.join(row['aliases']):<12} {shape:<7} {bias:>5}"
    return f"{head} {row['max']:>12.7g} {power:>9}  {infinity:<8} {nan}"


def listing(fmt: Format) -> str:
    """Every code of one format, a line each: hexadecimal, binary by field, kind, value."""
    digits = (fmt.bits + 3) // 4
    lines = [_line(describe(fmt))]
    for row in codes(fmt):
        fields = _fields(fmt, row["code"])
        value = "" if row["value"] is None else f"{row['value']:.10g}"
        lines.append(f"{row['code']:#0{digits + 2}x}  {fields}  {row['kind']:<10} {value}")
    return "\n".join(lines)


def _fields(fmt: Format, code: int) -> str:
    """The code in binary, with a dot between the sign, exponent and fraction of a float."""
    text = f"{code:0{fmt.bits}b}"
    if fmt.twos_complement or isinstance(fmt, Codebook):
        return text
    cuts = [0, int(fmt.signed), fmt.bits - fmt.mantissa_bits, fmt.bits]
    return ".".join(part for a, b in itertools.pairwise(cuts) if (part := text[a:b]))
