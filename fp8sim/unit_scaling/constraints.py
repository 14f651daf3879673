"""How the factors of one operation are tied, and the interpolation that several rules are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fp8sim.arguments import check_size

CONSTRAINTS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "gmean": lambda *scales: math.prod(scales) ** (1 / len(scales)),
        "hmean": lambda *scales: len(scales) / sum(1 / s for s in scales),
        "amean": lambda *scales: sum(scales) / len(scales),
        "to_output_scale": lambda output, *grads: output,
        "to_grad_input_scale": lambda output, grad_input: grad_input,
        "to_left_grad_scale": lambda output, left, right: left,
        "to_right_grad_scale": lambda output, left, right: right,
    }
)
"""How an operation's factors are tied so that its gradient stays that of some function (Blake et al. 2023, section 5).

Needed wherever the operation's input is used elsewhere too (a non-cut edge); None leaves the factors apart. The one
value replaces every factor: the geometric, harmonic or arithmetic mean, or one of them. `to_grad_input_scale` ties two
factors; the last two tie three, those of `matmul` and `add`.
"""

_NUMBER = {"to_grad_input_scale": 2, "to_left_grad_scale": 3, "to_right_grad_scale": 3}


def constrain(constraint: str | None, *scales: float) -> tuple[float, ...]:
    """`scales` (output first, then gradients), tied by the constraint of that name; unchanged for None.

    Raises:
        ValueError: an unknown constraint, or one for another number of factors.
    """
    if constraint is None:
        return scales
    if not isinstance(constraint, str) or constraint not in CONSTRAINTS:
        raise ValueError(f"constraint={constraint!r}: use one of {', '.join(CONSTRAINTS)}, or None")
    number = _NUMBER.get(constraint, len(scales))
    if number != len(scales):
        raise ValueError(
            f"constraint={constraint!r} ties {number} factors, and this operation has {len(scales)}: use "
            f"'to_output_scale', a mean, or None"
        )
    return (CONSTRAINTS[constraint](*scales),) * len(scales)


def interpolate(a: float, low: float, high: float) -> float:
    """The geometric interpolation low^(1-a) * high^a between two limits (u-muP, appendix B)."""
    result: float = low ** (1 - a) * high**a
    return result


def check_counts(**counts: int) -> None:
    """TypeError or ValueError if a size or a number of terms is below 1, of which no factor follows."""
    for name, count in counts.items():
        check_size(name, count)
