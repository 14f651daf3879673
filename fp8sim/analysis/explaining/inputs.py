"""The smallest inputs that separate hypotheses: what to run a kernel on next."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8sim import casting, formats
from fp8sim.analysis.explaining.cases import Case
from fp8sim.analysis.explaining.hypothesis import Hypothesis, parse_hypothesis
from fp8sim.analysis.explaining.outputs import differs, rounded
from fp8sim.analysis.explaining.problem import Problem
from fp8sim.analysis.explaining.trial import EquivalenceClass, group
from fp8sim.analysis.explaining.verdict import Explanation
from fp8sim.rounding import Rounding

Doubles = NDArray[np.float64]

_POOL = (32, 8)
"""Rows of a and columns of b among which the few are chosen."""
_ROUNDS = 6


@dataclass(frozen=True)
class Design:
    """Inputs that separate hypotheses.

    Attributes:
        case: the inputs, without an output yet.
        classes: hypotheses that are one computation for this K, by proof: no input of this K separates them.
        together: pairs of `classes`, by index, that these inputs do not separate although nothing proves them equal.
    """

    case: Case
    classes: tuple[EquivalenceClass, ...]
    together: tuple[tuple[int, int], ...]

    @property
    def separates(self) -> bool:
        """Whether every pair of hypotheses is separated, or proven equal."""
        return not self.together

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the numbers."""
        return {
            "shape": list(self.case.shape),
            "classes": [list(map(str, found.hypotheses)) for found in self.classes],
            "together": [list(pair) for pair in self.together],
        }


def next_case(case: Case, explanation: Explanation, k: int | None = None) -> Design | None:
    """`design` for what an explanation of `case` leaves: one hypothesis of each class, or all of them if K is given.

    The inputs come with these hypotheses, so that explaining their output tries no others. None if there are not two.
    """
    left = [found.first for found in explanation.classes] if k is None else list(explanation.surviving)
    if len(left) < 2:
        return None
    found = design(case, left, k=k)
    wanted = tuple(str(hypothesis) for members in found.classes for hypothesis in members.hypotheses)
    return dataclasses.replace(found, case=dataclasses.replace(found.case, hypotheses=wanted))


def design(case: Case, hypotheses: Iterable[str | Hypothesis], *, k: int | None = None, seed: int = 0) -> Design:
    """The smallest inputs [M, K] and [K, N] like those of `case` that tell `hypotheses` apart.

    Hypotheses whose canonical expressions (chains over ranges of k, additions, factors, casts, roundings) are equal for
    a K are one computation there. The smallest K at which no two that differ at the case's own K are one is taken,
    first among powers of two; then the fewest rows and columns that separate all of them, chosen from numbers that
    cancel, span the formats' exponents, tie and overflow.

    Args:
        case: what the kernel takes: formats, quantizers, blocks of factors. Its numbers do not matter.
        hypotheses: which to separate.
        k: K of the inputs, where the kernel takes no other; a larger one than the case's separates more.
        seed: of the search.

    Raises:
        ValueError: no hypothesis, or none that fits the inputs.
    """
    wanted = list(dict.fromkeys(map(parse_hypothesis, hypotheses)))
    if not wanted:
        raise ValueError("hypotheses: the list is empty, there is nothing to separate")
    rng = np.random.default_rng(seed)
    best: Design | None = None
    for length in [k] if k is not None else _lengths(case, wanted, rng):
        found = _at(case, wanted, length, rng)
        if best is None or len(found.together) < len(best.together):
            best = found
        if best.separates:
            break
    assert best is not None
    return best


def _lengths(case: Case, hypotheses: Sequence[Hypothesis], rng: np.random.Generator) -> list[int]:
    """K that separate, as far as proofs say, whatever the case's own K does; ascending."""
    own = case.shape[2]
    lengths = sorted({*(2**i for i in range(own.bit_length())), own})
    classes = {length: _class_of(_pool(case, length, rng, (1, 1)), hypotheses) for length in lengths}
    return [length for length in lengths if _refines(classes[length], classes[own])]


def _class_of(case: Case, hypotheses: Sequence[Hypothesis]) -> dict[Hypothesis, int]:
    """The index of each hypothesis's class; none of those that do not fit."""
    classes = enumerate(group(case.problem(), hypotheses)[0])
    return {hypothesis: index for index, found in classes for hypothesis in found.hypotheses}


def _refines(fine: dict[Hypothesis, int], coarse: dict[Hypothesis, int]) -> bool:
    """Whether hypotheses that differ in `coarse` differ in `fine`."""
    pairs = {(index, coarse[hypothesis]) for hypothesis, index in fine.items() if hypothesis in coarse}
    return coarse.keys() <= fine.keys() and len(pairs) == len({index for index, _ in pairs})


def _at(case: Case, hypotheses: Sequence[Hypothesis], k: int, rng: np.random.Generator) -> Design:
    """The best of a few pools: the one that separates most, with the fewest elements."""
    best: tuple[tuple[int, int], Design] | None = None
    for _ in range(_ROUNDS):
        pool = _pool(case, k, rng, _POOL)
        classes, signatures = _signatures(pool.problem(), group(pool.problem(), hypotheses)[0])
        if not classes:
            raise ValueError(f"hypotheses: none fits inputs of K = {k}")
        rows, columns, together = _chosen(signatures)
        found = Design(pool.cut(rows, columns), tuple(classes), tuple(together))
        size = (len(together), len(rows) * len(columns))
        if best is None or size < best[0]:
            best = (size, found)
        if size == (0, 1):
            break
    assert best is not None
    return best[1]


def _signatures(
    problem: Problem, classes: Sequence[EquivalenceClass]
) -> tuple[list[EquivalenceClass], NDArray[np.int64]]:
    """The classes that fit, and [classes, M, N]: equal numbers where they give equal bits; any NaN is any other."""
    fitting: list[EquivalenceClass] = []
    outputs: list[NDArray[Any]] = []
    for found in classes:
        with contextlib.suppress(ValueError):  # factors that change within a chain, or an output that does not hold
            outputs.append(rounded(problem.sums(found.first), found.first, problem.container))
            fitting.append(found)
    numbers = np.zeros((len(outputs), problem.m, problem.n), np.int64)
    for i, codes in enumerate(outputs):
        numbers[i] = i
        for j in range(i):
            first = (numbers[i] == i) & ~differs(codes, outputs[j], problem.container)
            numbers[i][first] = numbers[j][first]
    return fitting, numbers


def _chosen(signatures: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp], list[tuple[int, int]]]:
    """Rows and columns whose elements separate as many pairs as all do: greedily those that separate most."""
    count = len(signatures)
    first, second = np.triu_indices(count, 1)
    apart = signatures[first] != signatures[second]  # [pairs, M, N]
    together = ~apart.any(axis=(1, 2))
    rows: list[int] = []
    columns: list[int] = []
    left = ~together
    while left.any():
        gain = apart[left].sum(axis=0).astype(float)
        gain[rows, :] += 0.25
        gain[:, columns] += 0.5
        row, column = np.unravel_index(int(gain.argmax()), gain.shape)
        rows, columns = sorted({*rows, int(row)}), sorted({*columns, int(column)})
        left &= ~apart[:, rows][:, :, columns].any(axis=(1, 2))
    pairs = [(int(i), int(j)) for i, j in zip(first[together], second[together], strict=True)]
    return np.array(rows or [0]), np.array(columns or [0]), pairs


# Pools of rows and columns: what makes orders of addition differ, and roundings, and factors


def _pool(case: Case, k: int, rng: np.random.Generator, size: tuple[int, int]) -> Case:
    """Inputs of the same kind as the case's, with other numbers."""
    problem = case.problem()
    changes: dict[str, Any] = {"actual": None, "output": case.output or problem.container, "hypotheses": None}
    for name, rows in zip("ab", size, strict=True):
        fmt, drawn = case.operand_format(name), case.cast(name) is not None
        numbers = np.stack([_numbers(fmt, k, i, rng) for i in range(rows)])
        changes |= case.operand_like(name, _between(numbers, fmt, rng) if drawn else numbers, rng)
    if case.c is not None:
        kept = casting.cast(rng.standard_normal(size).astype(np.float32), "bfloat16")
        changes["c"] = kept.astype(np.asarray(case.c).dtype)
    return dataclasses.replace(case, **changes)


def _numbers(fmt: str, k: int, index: int, rng: np.random.Generator) -> Doubles:
    """[K] numbers in the range of a format, of one of six kinds by turns."""
    low, high = (2.0**-30, 2.0**30)
    if fmt != "float64":
        found = formats.parse(fmt)
        low, high = max(low, float(found.smallest)), min(high, float(found.max))
    normal, signs = rng.standard_normal(k), rng.choice([-1.0, 1.0], k)
    kinds: tuple[Doubles, ...] = (
        signs * np.exp2(rng.uniform(np.log2(low), np.log2(high), k)),
        normal,
        signs * np.exp2(rng.integers(-3, 4, k).astype(float)) * (1 + rng.integers(0, 8, k) / 8),
        np.where(rng.random(k) < 0.05, signs * high, normal),
        np.abs(normal),
        high * np.where(rng.random(k) < 0.8, 1.0, rng.uniform(0, 2, k)),
    )
    return kinds[index % len(kinds)]


def _between(numbers: Doubles, fmt: str, rng: np.random.Generator) -> Doubles:
    """What casts to a format decide differently: numbers midway between two of its own, a little off, and too large."""
    if fmt == "float64":
        return numbers
    below = casting.cast(numbers, fmt, rounding=Rounding.TOWARD_NEGATIVE)
    above = casting.cast(numbers, fmt, rounding=Rounding.TOWARD_POSITIVE)
    midway = (below + above) / 2 * (1 + rng.choice([0.0, 2.0**-11, -(2.0**-11)], numbers.shape))
    kinds = rng.integers(0, 8, numbers.shape)
    found: Doubles = np.select([kinds < 4, kinds == 4], [midway, 2 * numbers], numbers)
    return found


def pairs_of(found: Design) -> dict[tuple[Hypothesis, Hypothesis], str]:
    """Every ordered pair of hypotheses: "separated", "equal" (proven, for this K) or "together" (neither)."""
    index = {hypothesis: i for i, members in enumerate(found.classes) for hypothesis in members.hypotheses}
    together = {*found.together, *((j, i) for i, j in found.together)}
    return {
        (x, y): "equal" if index[x] == index[y] else "together" if (index[x], index[y]) in together else "separated"
        for x, y in itertools.permutations(index, 2)
    }
