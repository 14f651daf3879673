"""Which random bits a conversion draws: a seed, a place in its streams, and how many bits for each element.

The streams themselves are those of `csrc/core/random.hpp`.
"""

from __future__ import annotations

import hashlib
import operator
from typing import Any

from fp8sim.rounding import Rounding

DEFAULTS = {"stream": 0, "offset": 0, "random_bits": 32}
"""What an argument is that was not given."""


def random_keywords(
    mode: Rounding, seed: int | None = None, stream: int = 0, offset: int = 0, random_bits: int = 32
) -> dict[str, int]:
    """The keywords of `_core` that say which random bits to use; none for a mode that is not stochastic.

    Raises:
        ValueError: a seed that is missing or unused, anything else without a seed, a number out of range.
        TypeError: no integer.
    """
    check(mode, seed, stream, offset, random_bits)
    if seed is None:
        return {}
    words = {"seed": seed, "stream": stream, "offset": offset}
    return {name: word64(name, value) for name, value in words.items()} | {"random_bits": operator.index(random_bits)}


def check(mode: Rounding, seed: Any, stream: int, offset: int, random_bits: int) -> None:
    """ValueError or TypeError, as `random_keywords` raises them, but for the value of the seed."""
    given = {"stream": stream, "offset": offset, "random_bits": integer("random_bits", random_bits)}
    if not 1 <= given["random_bits"] <= 32:
        raise ValueError(f"random_bits={random_bits!r}: expected 1 to 32")
    if mode.is_stochastic and seed is None:
        raise ValueError(f"rounding={mode.name} needs random bits: pass seed=, an integer of 64 bits")
    for name, value in given.items():
        if seed is None and value != DEFAULTS[name]:
            raise ValueError(
                f"{name}={value!r}: there is no seed, so no random bits are drawn; drop {name}, or pass seed= "
                f"and a stochastic rounding mode"
            )
    if not mode.is_stochastic and seed is not None:
        raise ValueError(f"seed={seed!r}: rounding={mode.name} takes no random bits; drop the seed or use STOCHASTIC")


def integer(argument: str, value: Any) -> int:
    """`value` as a Python integer. TypeError names `argument` if it is none."""
    try:
        return operator.index(value)
    except TypeError as error:
        kind = type(value).__name__
        raise TypeError(
            f"{argument}={value!r} is a {kind}: expected an integer, as int({argument}) makes one"
        ) from error


def word64(argument: str, value: int) -> int:
    """`value` as an unsigned integer of 64 bits; negative ones stand for their two's complement."""
    word = integer(argument, value)
    if not -(2**63) <= word < 2**64:
        raise ValueError(f"{argument}={value!r}: expected an integer of 64 bits")
    return word % 2**64


def signed64(argument: str, value: int) -> int:
    """The 64-bit pattern of `value` as a signed integer."""
    return (word64(argument, value) + 2**63) % 2**64 - 2**63


def stream_id(name: str, gemm: str, operand: str, step: int) -> int:
    """The stream of random numbers of one operand at one step: 64 bits.

    The first 8 bytes, little-endian, of BLAKE2b over the UTF-8 string "name|gemm|operand|step" with a decimal step.
    ValueError if a part contains "|", which would let two operands share a stream.
    """
    parts = [name, gemm, operand, str(integer("step", step))]
    for part in parts:
        if "|" in part:
            raise ValueError(f'{part!r} contains "|", which separates the parts of a stream: rename it')
    return int.from_bytes(hashlib.blake2b("|".join(parts).encode()).digest()[:8], "little")
