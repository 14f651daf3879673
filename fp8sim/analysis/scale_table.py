"""The committed sizes of a decoder's tensors, to calculate with."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8sim.analysis.model_scales import BUCKETS
from fp8sim.unit_scaling import rules

Sizes = npt.NDArray[np.float64]

TEXT, SIGNS, DISTINCT = "text", "independent signs", "distinct tokens"
"""Conditions of the tables: real text; every element that enters an attention or its projection gets a random sign; no
token occurs twice in the batch."""

U_MUP, MUNIT = "u-muP", "mu-nit scaling"


class Table:
    """The sizes of every tensor of one model: an entry of the key "tables" in the results.

    Args:
        entry: as `fp8sim.training.model_scales.table` made it.
        run: the key "run" of the same results.
    """

    def __init__(self, entry: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        self.style, self.condition = str(entry["style"]), str(entry["condition"])
        self.width, self.blocks = int(entry["width"]), int(entry["blocks"])
        self.tau = float(entry.get("tau", math.nan))
        self.length, self.head_width = int(run["length"]), int(run["head_width"])
        self.tokens = self.length * int(run["batch"])
        self.rows = {(tensor, block, direction): rest for tensor, block, direction, *rest in entry["rows"]}

    def rms(self, tensor: str, block: int | None = None, direction: str = "forward") -> Sizes:
        """Root mean squares [4] by bucket of positions; [1] of a weight's gradient."""
        return np.array(self.rows[tensor, block, direction][1], np.float64)

    def grad(self, tensor: str, block: int | None = None) -> Sizes:
        """Root mean squares of a tensor's gradient."""
        return self.rms(tensor, block, "gradient")

    def overall(self, sizes: Sizes) -> float:
        """Root mean square over all positions."""
        return float(np.sqrt(self.spread(sizes**2).mean()))

    def spread(self, values: Sizes) -> Sizes:
        """One value for each bucket -> for each position."""
        return np.repeat(values, [len(range(self.length)[start:end]) for start, end in BUCKETS.values()])

    def gathered(self, values: Sizes) -> Sizes:
        """The mean of a value for each position, by bucket."""
        return np.array([values[start:end].mean() for start, end in BUCKETS.values()])

    def shared(self, tensor: str, block: int | None = None) -> float:
        """Share of the mean square that positions have in common, beyond 1 / L that independent ones show."""
        found = float(self.rows[tensor, block, "forward"][2])
        return max(0.0, (found - 1 / self.length) / (1 - 1 / self.length))

    @property
    def seen(self) -> Sizes:
        """How many keys each position sees."""
        return np.arange(1.0, self.length + 1)

    @property
    def logit_std(self) -> float:
        """Standard deviation of attention's logits for independent unit-normal queries and keys of D features."""
        return 1.0 if self.style == MUNIT else self.head_width**-0.5

    @property
    def attention_factor(self) -> float:
        """The factor on attention's output and gradients."""
        return rules.attention(self.length, self.logit_std, causal=True)

    @functools.cached_property
    def probabilities(self) -> tuple[Sizes, Sizes]:
        """By position, of the probabilities p_j of independent normal logits, the expected values, over 4096 draws, of

        - sum p_j^2, the variance of the mean of independent unit-normal values v_j;
        - sum p_j^2 (1 - 2 p_j + sum p^2), that of sum p_j (v_j - mean) k_j for independent unit-normal k_j.
        """
        weights = np.exp(self.logit_std * np.random.default_rng(0).normal(size=(4096, self.length)))
        total, squares, cubes = (np.cumsum(weights**power, axis=1) for power in (1, 2, 3))
        square, cube = squares / total**2, cubes / total**3
        return square.mean(0), (square - 2 * cube + square**2).mean(0)

    def join(self, index: int) -> tuple[float, float]:
        """Coefficients of skip and branch, of branch `index` of the model."""
        if self.style == MUNIT:
            return math.sqrt(1 - self.tau), math.sqrt(self.tau)
        scales = rules.residual(rules.transformer_residual_tau(index, 2 * self.blocks))
        return scales.skip, scales.branch
