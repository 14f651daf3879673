"""What the drop-in functions share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fp8sim import recipes
from fp8sim.arguments import check_integer
from fp8sim.recipes import Recipe

UNIT_SCALED = "unit_scaled"
"""The default recipe: unit scaling in high precision."""


def is_unit_scaled(recipe: str | Recipe) -> bool:
    """Whether operations carry factors under this recipe."""
    return recipes.parse(recipe).is_unit_scaled


def apply(function: type[torch.autograd.Function], *args: Any) -> torch.Tensor:
    """`function.apply(*args)`, typed."""
    result: torch.Tensor = function.apply(*args)
    return result


_parts = 1


@contextlib.contextmanager
def batch_parts(parts: int) -> Iterator[None]:
    """Inside the `with` block forward passes see one of `parts` equal parts of the batch: gradients add up to its own.

    For gradient accumulation and data parallelism: `parts` is the number of micro-batches times that of ranks. Without
    it each part scales the gradients of weights, gains and biases for its own tokens, and their sum is parts^1/2 times
    that of the whole batch. Gradients are to be summed: DDP averages them, so multiply the loss by the number of ranks.
    It reaches modules and functions, but those calls that pass `batch_tokens`. It holds for the whole process.

    Raises:
        ValueError: fewer than one part.
    """
    global _parts
    check_integer("parts", parts)
    if parts < 1:
        raise ValueError(f"parts={parts}: a number of 1 or more")
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


def count_tokens(batch_tokens: int | None, here: int) -> int:
    """`batch_tokens`, or for None those `here`, at least 1 so that an empty input has a factor, times `batch_parts`."""
    if batch_tokens is None:
        return max(1, here) * _parts
    check_integer("batch_tokens", batch_tokens, "a count of 1 or more, or None for the tokens of this call")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: a count of 1 or more, or None for the tokens of this call")
    return batch_tokens


def count_rows(input: torch.Tensor) -> int:
    """Rows of [..., W]."""
    return input.shape[:-1].numel()


def scaled_product(a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    """factor * a * b in one pass: addcmul is torch's only product with a factor."""
    return torch.addcmul(a.new_zeros(()), a, b, value=factor)
