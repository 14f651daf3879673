"""What is expected of the kernels on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = "floor"
FASTEST = "fastest peer"


@dataclass(frozen=True)
class Bar:
    """How fast a piece of work should be.

    Attributes:
        against: a peer's name, `FASTEST`, or `FLOOR`: the larger of the times of a copy of as many bytes and of a large
            product of torch's with as many operations.
        at_least: how many times that one's speed.
        stretch: what would be better still.
    """

    against: str
    at_least: float
    stretch: float | None = None

    def __str__(self) -> str:
        stretch = f", stretch {self.stretch:g}" if self.stretch else ""
        return f"{self.at_least:g} of {self.against}{stretch}"


CAST = Bar(FLOOR, 0.9, 0.95)
CAST_REORDERED = Bar(FLOOR, 0.8, 0.9)
"""Of casts that write a transposed copy too, or find factors of blocks."""

FUSED_CAST = Bar(FLOOR, 0.85, 0.92)
"""Of a norm or an activation and a cast in one pass."""

FP8_PRODUCT = Bar("torch._scaled_mm", 0.95, 1.0)
BF16_PRODUCT = Bar("torch.matmul", 0.9)
CUDA_PRODUCT = Bar("torch._scaled_mm", 0.9, 1.0)
CUDA_ATTENTION = Bar(FASTEST, 0.8)
"""Of the kernels in CUDA C++."""

LINEAR = Bar("BF16 nn.Linear", 1.35, 1.6)
"""Of a linear layer's forward and backward pass in FP8, casts included."""

BF16_ATTENTION = Bar(FASTEST, 0.75, 1.0)
FP8_ATTENTION = Bar(FASTEST, 1.1, 1.5)
ATTENTION_BACKWARD = Bar(FASTEST, 0.6, 0.9)
"""Peers of attention are SDPA's backends."""
