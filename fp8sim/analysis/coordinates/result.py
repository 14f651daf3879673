"""`coord_check`, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from fp8sim.analysis.coordinates import judging, measuring
from fp8sim.analysis.coordinates.judging import Check, Finding
from fp8sim.analysis.coordinates.listing import listing
from fp8sim.analysis.coordinates.measuring import Batches, Factory, Loss, Measurements, OptimizerFactory, Setup
from fp8sim.analysis.coordinates.slopes import Slope, mean_slope, slope_at
from fp8sim.analysis.verdicts import Verdict
from fp8sim.unit_scaling.constraints import check_counts

SCHEMA = 1
"""Of `CoordCheck.to_dict`."""


class Row(NamedTuple):
    """One size: of a module or parameter, at one step and width.

    `value` is the geometric mean over seeds of the RMS (of the value, for the loss), `spread` the standard deviation of
    its log2; both None where a seed has zero.
    """

    name: str
    quantity: str
    step: int
    width: int
    value: float | None
    spread: float | None


@dataclass(frozen=True)
class CoordCheck:
    """The sizes of everything at each width and step, the exponents with which they grow, and what that means.

    Attributes:
        measured: sizes of every run.
        expected: exponents of own changes that were asked for.
        findings: one for each module, in the order in which they are computed.
    """

    measured: Measurements
    expected: Mapping[str, float]
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The worst of all modules."""
        return judging.worst(self.findings)

    @property
    def causes(self) -> list[Finding]:
        """The modules that fail by themselves, in the order in which they are computed."""
        return [finding for finding in self.findings if finding.is_cause]

    @property
    def reason(self) -> str:
        """Why the verdict is not PASS: the first cause, and what others there are; empty on PASS."""
        return judging.reason(self.findings)

    def rows(self) -> Iterator[Row]:
        """Every size."""
        for (name, quantity), values in self.measured.values.items():
            for step in range(self.measured.steps + 1):
                for j, width in enumerate(self.measured.widths):
                    by_seed = values[:, j, step]
                    if np.isnan(by_seed).all():
                        continue
                    logs = np.log2(by_seed) if (by_seed > 0).all() else None
                    value = None if logs is None else float(2 ** logs.mean())
                    spread = None if logs is None or len(logs) < 2 else float(logs.std(ddof=1))
                    yield Row(name, quantity, step, width, value, spread)

    def slope(self, name: str, quantity: str, step: int | None = None) -> Slope:
        """The exponent of a size, at a step or on average over the steps from 1 on.

        Raises:
            ValueError: nothing of that name has that quantity.
        """
        if (name, quantity) not in self.measured.values:
            of_name = [q for n, q in self.measured.values if n == name]
            raise ValueError(
                f"no {quantity!r} of {name!r}: "
                + (f"it has {', '.join(of_name)}" if of_name else f"the names are {', '.join(self.measured.shapes)}")
            )
        measured = self.measured
        return mean_slope(measured, name, quantity) if step is None else slope_at(measured, name, quantity, step)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        measured = self.measured
        return {
            "schema": SCHEMA,
            "widths": list(measured.widths),
            "steps": measured.steps,
            "seeds": measured.seeds,
            "limits": {
                "pass": judging.EXPONENT_PASS,
                "fail": judging.EXPONENT_FAIL,
                "errors": judging.ERRORS,
                "noise": judging.NOISE,
            },
            "expected": dict(self.expected),
            "verdict": self.verdict,
            "reason": self.reason,
            "findings": [_finding_dict(finding) for finding in self.findings],
            "slopes": [
                {"name": name, "quantity": quantity, "step": step, **self.slope(name, quantity, step)._asdict()}
                for name, quantity in measured.values
                for step in (*range(measured.steps + 1), None)
            ],
            "rows": [row._asdict() for row in self.rows()],
        }

    def __str__(self) -> str:
        return listing(self.measured, self.findings)


def _finding_dict(finding: Finding) -> dict[str, Any]:
    plain = {key: getattr(finding, key) for key in ("name", "kind", "verdict", "is_cause", "reason")}
    return {**plain, "check": None if finding.check is None else _check_dict(finding.check)}


def _check_dict(check: Check) -> dict[str, Any]:
    lowest = check.lowest if math.isfinite(check.lowest) else None
    return {
        "quantity": check.quantity,
        "step": check.step,
        **check.slope._asdict(),
        "lowest": lowest,
        "highest": check.highest,
    }


def coord_check(
    factory: Factory,
    *,
    batch: Batches,
    widths: Sequence[int] = (64, 128, 256, 512),
    steps: int = 5,
    seeds: int = 3,
    optimizer: OptimizerFactory | None = None,
    loss: Loss = measuring.default_loss,
    expected: Mapping[str, float] = MappingProxyType({}),
    advance: Callable[[str], None] = lambda what: None,
) -> CoordCheck:
    """Is muP wired right? Train a model at several widths for a few steps, and see which sizes depend on the width.

    Under muP and its kin every hidden activation, and the change that each layer's own weights make to it, keeps its
    size when the model gets wider; where it does not, the learning rate found at one width fails at another (Yang et
    al. 2022, "Tensor Programs V", appendix D.1). `judging` says what is expected of which module, and `Probe` what is
    measured.

    Args:
        factory: width -> (model, optimizer), or a model if `optimizer` is given. Seeded before each call, so it must
            draw weights from torch's generator. The same modules at every width, trained by the rates that are to be
            checked.
        batch: the tensors that every step trains on, or a function from step, from 0, to such. Step 0's batch is the
            one on which activations are looked at. Few tokens show more: fewer than the smallest width.
        widths: two or more. They should differ by a factor of four or more.
        steps: of the optimizer.
        seeds: how many runs at each width, from the seeds 0, 1, ...
        optimizer: model -> optimizer.
        loss: called as loss(model, *batch); the mean over the batch. The default is `measuring.default_loss`.
        expected: shell patterns of modules' names -> exponent of their own change, where it is meant not to be 0.
        advance: called after each step of each run with what was done.

    Returns:
        The verdict with its reason, sizes and exponents; str() is the table.

    Raises:
        ValueError: fewer than two widths, a factory that fails or returns something else, modules that differ between
            widths, a size that is not finite, a loss that fits no batch, a pattern that fits no module.
    """
    ordered = tuple(sorted(set(widths)))
    if len(ordered) < 2 or ordered[0] < 1:
        raise ValueError(f"widths={list(widths)}: expected two or more different positive ones, such as 64, 128, 256")
    check_counts(steps=steps, seeds=seeds)
    batch_of: Callable[[int], measuring.Batch] = batch if callable(batch) else lambda step: batch
    first = batch_of(0)
    if not isinstance(first, tuple | list) or not all(isinstance(part, torch.Tensor) for part in first):
        raise ValueError(f"batch: got {type(first).__name__}, expected a tuple of tensors such as (inputs, targets)")
    setup = Setup(factory, optimizer, loss, batch_of, steps)
    measured = measuring.measure(setup, ordered, seeds, advance)
    return CoordCheck(measured, dict(expected), judging.judge(measured, expected))
