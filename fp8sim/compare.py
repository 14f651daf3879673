"""The only comparison there is: bit patterns, the first difference, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        compared: number of elements.
        mismatches: how many differ.
        first: where the first difference lies and what the two values are; empty if there is none.
    """

    compared: int
    mismatches: int
    first: str = ""

    def __add__(self, other: Comparison) -> Comparison:
        """Both comparisons as one; the first difference of the first that has one."""
        mismatches = self.mismatches + other.mismatches
        return Comparison(self.compared + other.compared, mismatches, self.first or other.first)


NOTHING = Comparison(0, 0)
"""Nothing compared."""


def bitwise(what: str, actual: torch.Tensor, expected: torch.Tensor) -> Comparison:
    """Compare bit patterns, signed zeros told apart; any NaN equals any NaN.

    Args:
        what: the name of the tensors, for the first difference.
        actual, expected: [...], of one shape and dtype; a difference of either is one mismatch.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        got, wanted = (f"{list(t.shape)} {t.dtype}" for t in (actual, expected))
        return Comparison(max(1, expected.numel()), max(1, expected.numel()), f"{what}: is {got}, expected {wanted}")
    integer = _INTEGERS[actual.element_size()]
    bits, expected_bits = actual.contiguous().view(integer), expected.contiguous().view(integer)
    if torch.equal(bits, expected_bits):  # one pass, and almost always all there is to do
        return Comparison(expected.numel(), 0)
    wrong = bits != expected_bits
    if actual.is_floating_point():
        wrong &= ~(actual.isnan() & expected.isnan())
    return _count(what, wrong, actual, expected)


def within(what: str, actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> Comparison:
    """Compare with a bound per element: |actual - expected| <= bound, NaN a mismatch. All [...], in float64."""
    wrong = ~((actual.double() - expected).abs() <= bound)
    return _count(what, wrong, actual, expected)


def _count(what: str, wrong: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> Comparison:
    mismatches = int(wrong.sum())
    if mismatches == 0:
        return Comparison(wrong.numel(), 0)
    index = int(wrong.flatten().to(torch.uint8).argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(index), wrong.shape)]
    values = " expected ".join(f"{float(t.detach().flatten()[index]):.9g}," for t in (actual, expected)).rstrip(",")
    return Comparison(wrong.numel(), mismatches, f"{what} at {at}: is {values}")
