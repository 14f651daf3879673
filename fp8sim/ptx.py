"""PTX `cvt.rs`: stochastic rounding with the random bits that the instruction is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8sim import formats
from fp8sim.array_memory import dtype_of
from fp8sim.casting import decode, encode_as
from fp8sim.formats import Format
from fp8sim.presets import preset_policy
from fp8sim.rounding import Overflow, Rounding

_PTX_RS = {
    "float16": ((16, 0), 13),
    "bfloat16": ((16, 0), 16),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn"), ((16, 16, 0, 0), 16)),
    "float4_e2m1fn": ((24, 8, 16, 0), 8),
}
"""Of `cvt.rs`: the lowest bit, in the word of random bits, of each operand's share, and how many bits it has."""


def encode_ptx_rs(x: np.ndarray[Any, Any], fmt: str | Format, rbits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The codes of PTX `cvt.rs`, as far as the PTX ISA documents it; no hardware has confirmed it here.

    Away from zero iff the random bits, added to the discarded bits, carry: P3109's StochasticA with 13 bits (float16),
    16 bits (bfloat16, FP8, FP6) or 8 bits (FP4) of `rbits`. In FP8 and FP6 a and b share the upper half, and e and f
    the lower one; in FP4 a, b, e, f take bits 24-31, 8-15, 16-23, 0-7. What is not documented and assumed here: bits
    discarded below those are dropped, and subnormal results round at their own spacing. FP8, FP6 and FP4 saturate; an
    infinity or too large a number becomes infinity in float16 and bfloat16. NaN as in the preset "cvt.rn".

    Args:
        x: [..., k], float32: the operands in the instruction's order, (a, b) of 16-bit formats, else (a, b, e, f).
        fmt: float16, bfloat16, float8_e4m3fn, float8_e5m2, float6_e2m3fn, float6_e3m2fn, float4_e2m1fn or an alias.
        rbits: [...], uint32, the word of random bits of each instruction.

    Returns:
        [..., k], the codes in the order of `x`, dtype `code_dtype(fmt)`. In the register, a is in the highest bits.

    Raises:
        ValueError: another format, shapes that do not fit.
        TypeError: other dtypes.
    """
    fmt = formats.parse(fmt)
    if fmt.name not in _PTX_RS:
        raise ValueError(f"fmt={fmt.name!r}: cvt.rs converts to {', '.join(_PTX_RS)}")
    places, bits = _PTX_RS[fmt.name]
    dtype_of(x, "x", ("float32",))
    dtype_of(rbits, "rbits", ("uint32",))
    if x.shape != (*rbits.shape, len(places)):
        raise ValueError(f"x has shape {x.shape}: expected that of rbits and {len(places)}, {rbits.shape}")
    random = (rbits[..., np.newaxis] >> np.array(places, np.uint32)) & np.uint32((1 << bits) - 1)
    policy = preset_policy("cvt.rn" if fmt.bits == 16 else "cvt.rn.satfinite", fmt)
    down = encode_as(x, "float32", fmt, policy._replace(rounding=Rounding.TOWARD_ZERO))
    magnitude = down & (fmt.sign_bit - 1)
    below = np.minimum(magnitude, fmt.max_code - 1)
    number, low, high = (decode(code, fmt, dtype="float64") for code in (magnitude, below, below + 1))
    discarded = (np.where(np.isfinite(x), np.abs(x), 0).astype(np.float64) - number) / (high - low)
    away = np.floor(discarded * 2.0**bits) + random >= 2**bits
    may_go = magnitude <= fmt.max_code - (policy.overflow is Overflow.SATURATE)
    codes: np.ndarray[Any, Any] = down + (away & may_go).astype(down.dtype)
    return codes
