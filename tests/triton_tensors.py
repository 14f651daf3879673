"""What the tests of the Triton casts share: where kernels run, guarded outputs, tensors with special values."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fp8sim.triton_kernels import interpreter

DEVICE = "cpu" if interpreter.is_enabled() else "cuda"
GUARD = 64

SPECIALS = torch.tensor(
    [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 2.0**-149, -(2.0**-149), 1e-40, 3.4e38, -3.4e38, 1.0, 448.0],
)


def numbers(*shape: int, seed: int = 0, spread: int = 8) -> torch.Tensor:
    """float32 of many magnitudes, ties of coarse formats among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))
    ties = rng.integers(-24, 25, shape) / 4 * np.exp2(rng.integers(-2, 3, shape))
    return torch.from_numpy(np.where(rng.random(shape) < 0.3, ties, x).astype(np.float32))


def with_specials(*shape: int, seed: int = 0) -> torch.Tensor:
    """As `numbers`, of wider range: special values spread evenly, and then an eighth of zeros."""
    x = numbers(*shape, seed=seed, spread=20)
    elements = x.view(-1)
    step = max(len(elements) // len(SPECIALS), 1)
    elements[::step] = SPECIALS.repeat(len(elements) // len(SPECIALS) + 1)[: len(elements[::step])]
    elements[len(elements) // 2 : len(elements) * 5 // 8] = 0.0
    return x


def same_bits(actual: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    """Whether two tensors have one shape, dtype and content, NaN and signs of zero included."""
    if actual is None or expected is None:
        return actual is expected
    pair = [x.detach().cpu().contiguous().flatten() for x in (actual, expected)]
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    return torch.equal(*(x.view(torch.int32) if x.dtype == torch.float32 else x for x in pair))


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Inside, `torch.empty` gives memory full of 0xA5 between guards; AssertionError if a guard has been written."""
    stock, made = torch.empty, []

    def empty(*shape: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        dtype = dtype or torch.get_default_dtype()
        count = size.numel() * dtype.itemsize
        memory = torch.full((count + 2 * GUARD,), 0xA5, dtype=torch.uint8, device=device)
        made.append((memory, count))
        return memory[GUARD : GUARD + count].view(dtype).reshape(size)

    torch.empty = empty  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty = stock
    assert made, "no output was allocated"
    for memory, count in made:
        guards = torch.cat([memory[:GUARD], memory[GUARD + count :]])
        assert bool((guards == 0xA5).all()), "written outside the output"


VIEWS = {
    "0-d": lambda x: x[0, 0, 0],
    "empty": lambda x: x[:0],
    "transposed": lambda x: x.permute(2, 0, 1),
    "stepped": lambda x: x[::2, 1:, ::3],
    "expanded": lambda x: x[:, :1].expand(-1, 9, -1),
    "shifted": lambda x: x.flatten()[1:43].reshape(6, 7),
    "negated": lambda x: torch.complex(x, -x).conj().imag,
}
"""Views of a tensor [6, 7, 8]."""
