"""How a tensor becomes a tensor of codes: a format, a rounding mode and an overflow policy under one name.

A `Quantizer` is data; its canonical string is what operations and recipes pass around: `parse(str(q)) == q`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fp8sim import casting, formats
from fp8sim.formats import Format
from fp8sim.rounding import Overflow, Rounding, member, resolve

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Quantizer:
    """Cast every element to `format`, with no scale factor.

    Attributes:
        format: the format of the codes.
        rounding: how a number between two codes is rounded; stochastic modes are refused here, since a quantizer has
            no random bits of its own.
        overflow: what becomes of numbers above the largest and of infinities.

    Raises:
        ValueError: the format cannot represent the policy.
    """

    format: Format
    rounding: Rounding = Rounding.TIES_TO_EVEN
    overflow: Overflow = Overflow.SATURATE

    def __post_init__(self) -> None:
        if self.rounding.is_stochastic:
            raise ValueError(
                f"rounding={self.rounding.name}: a quantizer takes no random bits; use a deterministic mode"
            )
        resolve(self.format, self.rounding, self.overflow)

    def __str__(self) -> str:
        return f"{self.format}:{self.rounding.name}:{self.overflow.name}"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The values of `x` [...] on the format's grid, in the dtype of `x`; NaN stays NaN where the format has one."""
        return casting.cast(x, self.format, rounding=self.rounding, overflow=self.overflow)


@functools.cache
def parse(text: str | Quantizer) -> Quantizer:
    """The quantizer that "FORMAT", "FORMAT:ROUNDING" or "FORMAT:ROUNDING:OVERFLOW" names; the parts default as above.

    Raises:
        ValueError: a part that names nothing; the message lists what there is.
    """
    if isinstance(text, Quantizer):
        return text
    name, *policy = text.split(":")
    if len(policy) > 2:
        raise ValueError(f"quantizer {text!r}: expected FORMAT[:ROUNDING[:OVERFLOW]], got {len(policy) + 1} parts")
    rounding, overflow = [*policy, *("TIES_TO_EVEN", "SATURATE")[len(policy) :]]
    return Quantizer(
        formats.parse(name), member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    )
