"""Do operations compute what they claim? What a check found, and casts by an independent route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp8sim.analysis.verdicts import Verdict
from fp8sim.compare import NOTHING, Comparison, bitwise
from fp8sim.formats import Format
from fp8sim.ops.cast import cast
from fp8sim.quantizers import Quantizer, parse
from fp8sim.rounding import Overflow, Rounding


@dataclass(frozen=True)
class Row:
    """One line of the table of operations and kernels.

    Attributes:
        name: the operation or kernel. ran_on: where.
        contract: what was asked of it.
        comparison: what was compared; nothing compared is NOT CHECKED.
        note: why it was not checked.
        kernel: the kernel's name, as options give it; empty for an operation.
    """

    name: str
    ran_on: str
    contract: str
    comparison: Comparison
    note: str = ""
    kernel: str = ""

    @property
    def detail(self) -> str:
        """Why it was not checked, or where the first difference lies."""
        return self.note or self.comparison.first

    @property
    def verdict(self) -> Verdict:
        """FAIL on any mismatch."""
        if self.comparison.compared == 0:
            return Verdict.NOT_CHECKED
        return Verdict.FAIL if self.comparison.mismatches else Verdict.PASS

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        compared, mismatches = self.comparison.compared, self.comparison.mismatches
        plain = {"name": self.name, "ran_on": self.ran_on, "contract": self.contract}
        return {**plain, "compared": compared, "mismatches": mismatches, "detail": self.detail, "verdict": self.verdict}


def independent_cast(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """x [...] on the quantizer's grid without fp8sim's arithmetic: torch's cast after a clamp, or ml_dtypes.

    Raises:
        ValueError: the quantizer's policy has no independent route.
    """
    fmt = quantizer.format
    if quantizer.scale is not None:
        raise ValueError(f"{quantizer}: no independent route applies scale factors")
    if quantizer.rounding is not Rounding.TIES_TO_EVEN:
        raise ValueError(f"{quantizer}: no independent route rounds {quantizer.rounding.name}")
    if quantizer.overflow is Overflow.SATURATE:
        x = x.clamp(-float(fmt.max), float(fmt.max))
    elif quantizer.overflow is not Overflow.INFINITY or not fmt.infinity:
        raise ValueError(f"{quantizer}: no independent route overflows as {quantizer.overflow.name}")
    return _round_trip(x.contiguous(), fmt)


def _round_trip(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """x [...] through the dtype of that name, in torch if torch can cast to it, else in ml_dtypes."""
    if hasattr(torch, str(fmt)):
        return x.to(getattr(torch, str(fmt))).to(x.dtype)
    import ml_dtypes

    array = x.numpy()
    return torch.from_numpy(array.astype(np.dtype(getattr(ml_dtypes, str(fmt)))).astype(array.dtype))


def check_casts(elements: int) -> Comparison:
    """Casts to the recipes' formats, of float32 numbers spread over all bit patterns, by the independent route."""
    x = float32_patterns(elements)
    total = NOTHING
    for fmt, overflow in (("e4m3", "SATURATE"), ("e5m2", "SATURATE"), ("fp16", "INFINITY"), ("bf16", "INFINITY")):
        quantizer = parse(f"{fmt}:TIES_TO_EVEN:{overflow}")
        total += bitwise(f"cast to {fmt}", cast(x, fmt, overflow=overflow), independent_cast(x, quantizer))
    return total


def float32_patterns(count: int) -> torch.Tensor:
    """`count` float32 numbers [count] of all kinds: both signs, subnormals, infinities, NaN.

    A quarter each: evenly spaced bit patterns, every tie among them where `count` is a power of two; their neighbours
    above and below, which only the last bit tells from a tie; and patterns scattered over all (by the odd factor of
    Knuth's multiplicative hash).
    """
    quarter = max(1, count // 4)
    even = torch.arange(quarter, dtype=torch.int64) * (2**32 // quarter)
    scattered = torch.arange(1, count - 3 * quarter + 1, dtype=torch.int64) * 2654435761
    patterns = torch.cat([even, even + 1, even - 1, scattered])[:count]
    return (patterns % 2**32 - 2**31).to(torch.int32).view(torch.float32)
