"""Which elements of a tensor share a scale factor."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Granularity:
    """Which elements share a scale factor: blocks of `rows` x `columns` over the last two axes of [..., R, C].

    None takes the whole axis; both None is the whole tensor, leading axes included. A tensor [C] is read as [1, C]. The
    last block of an axis holds what remains. Texts: "tensor", "row" (all of C), "column" (all of R), "1x32", "*x4".

    Raises:
        ValueError: a block that is not positive.
    """

    rows: int | None
    columns: int | None

    def __post_init__(self) -> None:
        for argument, size in (("rows", self.rows), ("columns", self.columns)):
            if size is not None and size < 1:
                raise ValueError(f"{argument}={size}: a block has at least one element; None takes the whole axis")

    def __str__(self) -> str:
        text = f"{self.rows or '*'}x{self.columns or '*'}"
        return next((name for name, same in _GRANULARITY_NAMES.items() if same == text), text)

    @classmethod
    def parse(cls, text: str | Granularity) -> Granularity:
        """The granularity that `text` names. ValueError if none."""
        if isinstance(text, Granularity):
            return text
        match = re.fullmatch(r"(\d+|\*)x(\d+|\*)", _GRANULARITY_NAMES.get(text, text))
        if match is None:
            raise ValueError(f"granularity={text!r}: use {', '.join(_GRANULARITY_NAMES)}, or a block as in '1x32'")
        rows, columns = (None if size == "*" else int(size) for size in match.groups())
        return cls(rows, columns)

    @property
    def is_whole_tensor(self) -> bool:
        """Whether there is one factor for all elements."""
        return self.rows is None and self.columns is None

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the factors of a tensor of `shape`: [] for the whole tensor, else [..., R / rows, C / columns],
        rounded up; [C / columns] for a tensor [C].

        Raises:
            ValueError: the tensor has too few axes.
        """
        if self.is_whole_tensor:
            return ()
        if not shape or (len(shape) == 1 and self.rows != 1):
            needed = 1 if self.rows == 1 else 2
            raise ValueError(f"x has shape {list(shape)}: granularity {self} takes {needed} axes or more; reshape it")
        *leading, r, c = self._as_matrices(shape)
        counts = (*leading, self._layout(r, self.rows)[0], self._layout(c, self.columns)[0])
        return counts[1:] if len(shape) == 1 else counts

    def split(self, x: NDArray[Any]) -> NDArray[Any]:
        """x as blocks [..., R / rows, rows, C / columns, columns], filled up with zeros; a view if nothing is added."""
        self.scale_shape(x.shape)
        x = x.reshape(self._as_matrices(x.shape))
        *leading, r, c = x.shape
        (r_blocks, rows), (c_blocks, columns) = self._layout(r, self.rows), self._layout(c, self.columns)
        if (r_blocks * rows, c_blocks * columns) != (r, c):
            padded = np.zeros((*leading, r_blocks * rows, c_blocks * columns), x.dtype)
            padded[..., :r, :c] = x
            x = padded
        return x.reshape(*leading, r_blocks, rows, c_blocks, columns)

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """(matrices, their rows and columns, rows and columns of a block within them) of a tensor of `shape`."""
        *leading, rows, columns = self._as_matrices(shape)
        block_rows, block_columns = (
            min(block or size, size) for block, size in ((self.rows, rows), (self.columns, columns))
        )
        return math.prod(leading), rows, columns, block_rows, block_columns

    def join(self, blocks: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The array of `shape` of which `split` made `blocks`."""
        *leading, r_blocks, rows, c_blocks, columns = blocks.shape
        *_, r, c = self._as_matrices(shape)
        matrices = blocks.reshape(*leading, r_blocks * rows, c_blocks * columns)
        return np.ascontiguousarray(matrices[..., :r, :c]).reshape(shape)

    def spread(self, factors: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Factors of `scale_shape(shape)` as they broadcast against the blocks of an array of `shape`."""
        if self.is_whole_tensor:
            return factors.reshape(1, 1, 1, 1)
        if len(shape) == 1:
            factors = factors[None]
        return factors[..., :, None, :, None]

    def _as_matrices(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.is_whole_tensor:
            return (1, math.prod(shape))
        return (1, *shape) if len(shape) == 1 else shape

    @staticmethod
    def _layout(length: int, block: int | None) -> tuple[int, int]:
        """(number of blocks, their size) of an axis; a block of a whole axis has a place even if the axis has none."""
        return (1, max(length, 1)) if block is None else (-(-length // block), block)


_GRANULARITY_NAMES = {"tensor": "*x*", "row": "1x*", "column": "*x1"}
