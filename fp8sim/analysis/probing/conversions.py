"""What a conversion makes of every bit pattern: whether it follows a rule, and which rule if not the one predicted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fp8sim import casting, formats
from fp8sim.analysis.probing.instruments import flushed
from fp8sim.analysis.probing.operands import Array, width
from fp8sim.mma import operand_dtype
from fp8sim.presets import Policy
from fp8sim.rounding import Overflow, Rounding

RANDOM_PATTERNS = 10_000_000
"""Of binary32, besides the boundaries."""

_CHUNK = 1 << 26
"""Patterns at a time, where all of binary32 are compared."""

_SAMPLE = 1 << 17
"""Patterns by which rules are told apart."""

_EXAMPLES = 4


@dataclass(frozen=True)
class Rule:
    """How numbers of one format become codes of another.

    Attributes:
        rounding, overflow: as of `fp8sim.encode`.
        signed_nan: whether NaN keeps its sign; its other bits are ones.
        through: a format that numbers are rounded to before, ties to even.
        flushes: "source" and "result", whose subnormal numbers become +0.
    """

    rounding: Rounding = Rounding.TIES_TO_EVEN
    overflow: Overflow = Overflow.SATURATE
    signed_nan: bool = False
    through: str | None = None
    flushes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts = [self.rounding.name, self.overflow.name, "NaN of its sign" if self.signed_nan else "NaN positive"]
        parts += [f"through {self.through}"] if self.through else []
        parts += [f"subnormals of the {where} flushed" for where in sorted(self.flushes)]
        return ", ".join(parts)

    def apply(self, codes: Array, source: str, target: str) -> Array:
        """The codes of `target` [n] for codes of `source` [n]. ValueError for a policy that `target` cannot represent.

        tf32 is float32 whose low bits are zero, and its zeros have no sign: a product shows them.
        """
        codes = flushed(codes, source) if "source" in self.flushes else codes
        numbers = codes.view(np.float32) if source == "float32" else casting.decode(codes, source)
        if self.through is not None:
            numbers = casting.cast(numbers, self.through, overflow=Overflow.INFINITY)
        found = self._encoded(numbers, target)
        return flushed(found, target) if "result" in self.flushes else found

    def _encoded(self, numbers: Array, target: str) -> Array:
        if target == "tf32":
            found = casting.encode(numbers, target, rounding=self.rounding, overflow=self.overflow)
            found <<= np.uint32(32 - formats.parse(target).bits)
            return np.where(found == 1 << 31, np.uint32(0), found)
        sign = 1 << (width(target) - 1)
        nan = (sign - 1, sign - 1 | (sign if self.signed_nan else 0))
        if target == "float32":
            negative = np.where(np.signbit(numbers), *np.array(nan[::-1], np.uint32))
            return np.where(np.isnan(numbers), negative, numbers.view(np.uint32))
        policy = Policy(self.rounding, self.overflow, nan)
        return casting.encode_as(numbers, "float32", formats.parse(target), policy)


@dataclass(frozen=True)
class Converter:
    """A conversion that is asked.

    Attributes:
        name: what is called.
        source, target: formats.
        convert: codes of `source` [n] -> codes of `target` [n].
        predicted: the rule that it should follow; None: nobody says.
        every: whether all 2^32 patterns of binary32 are asked for.
        probe: P14; P13 for operands of tf32.
        machine_code: its instructions, as far as they are known, after `convert` has run.
    """

    name: str
    source: str
    target: str
    convert: Callable[[Array], Array]
    predicted: Rule | None = None
    every: bool = False
    probe: str = "P14"
    machine_code: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Conversion:
    """What a conversion does.

    Attributes:
        probe, name, source, target: what was asked of what.
        predicted: the rule that it should follow; None: nobody says.
        compared: patterns of the source.
        differing: how many of them the predicted rule converts to other codes.
        rules: those that give every code: the predicted one alone if it does; otherwise those with the fewest changes.
        examples: (pattern, code, predicted code) of the first that differ, hexadecimal.
        machine_code: instructions that convert; empty where they are not known.
    """

    probe: str
    name: str
    source: str
    target: str
    predicted: str | None
    compared: int
    differing: int
    rules: tuple[str, ...]
    examples: tuple[tuple[str, str, str], ...] = ()
    machine_code: tuple[str, ...] = ()

    @property
    def surprise(self) -> str | None:
        """What is not as predicted, or cannot be simulated."""
        if self.rules and self.predicted in (None, *self.rules):
            return None
        rules = "; or ".join(self.rules) or "by no known rule"
        example = "".join(f", as {x} to {found} instead of {wanted}" for x, found, wanted in self.examples[:1])
        differ = f"{self.differing} of {self.compared} differ{example}: " if self.differing else ""
        return f"{self.name}: {differ}converted {rules}"


def examine(converter: Converter, advance: Callable[[str], None] = lambda what: None) -> Conversion:
    """Compare all patterns with the predicted rule, and look for another where it fails."""
    compared = differing = 0
    wrong: list[Array] = []
    codes: list[Array] = []
    for patterns in chunks(converter):
        advance(converter.name)
        found = converter.convert(patterns)
        if not codes:
            wrong, codes = [patterns[:_SAMPLE]], [found[:_SAMPLE]]
        compared += patterns.size
        if converter.predicted is None:
            continue
        different = np.flatnonzero(found != converter.predicted.apply(patterns, converter.source, converter.target))
        differing += different.size
        wrong.append(patterns[different[:_SAMPLE]])
        codes.append(found[different[:_SAMPLE]])
    sample, results = np.concatenate(wrong), np.concatenate(codes)
    as_predicted = converter.predicted is not None and not differing
    rules = (converter.predicted,) if as_predicted else tuple(_rules(converter, sample, results))
    return Conversion(
        converter.probe,
        converter.name,
        converter.source,
        converter.target,
        None if converter.predicted is None else str(converter.predicted),
        compared,
        differing,
        tuple(map(str, rules)),
        tuple(_examples(converter, np.concatenate(wrong[1:]), np.concatenate(codes[1:]))) if differing else (),
        converter.machine_code(),
    )


def _examples(converter: Converter, patterns: Array, found: Array) -> Iterator[tuple[str, str, str]]:
    assert converter.predicted is not None
    first, digits = patterns[:_EXAMPLES], width(converter.target) // 4
    wanted = converter.predicted.apply(first, converter.source, converter.target)
    for x, code, other in zip(first, found, wanted, strict=False):
        yield f"{x:#0{width(converter.source) // 4 + 2}x}", f"{code:#0{digits + 2}x}", f"{other:#0{digits + 2}x}"


def chunks(converter: Converter) -> Iterator[Array]:
    """All patterns of a source of 16 bits or less; of binary32 boundaries and random ones, and then maybe all."""
    bits = width(converter.source)
    if bits <= 16:
        yield np.arange(1 << bits, dtype=np.uint32).astype(operand_dtype(converter.source))
        return
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32 - 1, RANDOM_PATTERNS, np.uint32, endpoint=True)
    patterns = np.concatenate([boundaries(converter.target), random])
    # A product of 1 and an infinity or NaN says nothing of how its operands are rounded.
    yield patterns[np.isfinite(patterns.view(np.float32))] if converter.target == "tf32" else patterns
    for start in range(0, 1 << 32, _CHUNK) if converter.every else ():
        yield np.arange(_CHUNK, dtype=np.uint32) + np.uint32(start)


def total_chunks(converter: Converter) -> int:
    """How often `examine` advances."""
    return 1 + ((1 << 32) // _CHUNK if converter.every else 0)


def boundaries(target: str) -> Array:
    """binary32 patterns at every number of a format of up to 16 bits and midway between two, with both neighbours of
    each: where conversions change; and where the source's kinds of numbers begin. Of tf32, a few binades."""
    if target == "tf32":
        around = np.arange(0x3F800000, 0x3F840000, 0x400, dtype=np.uint32)
    else:
        fmt = formats.parse(target)
        codes = np.arange(1 << fmt.bits, dtype=np.uint32).astype(casting.code_dtype(fmt))
        numbers = casting.decode(codes, fmt, dtype="float64")
        numbers = np.unique(np.abs(numbers[np.isfinite(numbers)]))
        beyond = 2 * numbers[-1] - numbers[-2]
        numbers = np.append(numbers, [beyond, 2 * beyond])
        midway = (numbers[1:] + numbers[:-1]) / 2
        around = np.concatenate([numbers, midway]).astype(np.float32).view(np.uint32)
    ends = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    around = np.concatenate([around, ends.astype(np.uint32)])
    near = np.concatenate([around, around + 1, np.maximum(around, 1) - 1]) & np.uint32(0x7FFFFFFF)
    magnitudes = np.unique(near)
    return np.concatenate([magnitudes, magnitudes | np.uint32(1 << 31)])


def _rules(converter: Converter, patterns: Array, codes: Array) -> Iterator[Rule]:
    """Rules that give every code, of those with the fewest changes from what is predicted."""
    base = converter.predicted or Rule(overflow=Overflow.INFINITY)
    by_changes: dict[int, list[Rule]] = {}
    for rule in _possible_rules():
        changes = sum(getattr(rule, field.name) != getattr(base, field.name) for field in dataclasses.fields(Rule))
        by_changes.setdefault(changes, []).append(rule)
    for _, rules in sorted(by_changes.items()):
        found = [rule for rule in rules if _gives(rule, converter, patterns, codes)]
        if found:
            yield from found
            return


def _possible_rules() -> Iterator[Rule]:
    roundings = [mode for mode in Rounding if not mode.is_stochastic]
    flushes = map(frozenset, ((), ("source",), ("result",), ("source", "result")))
    for choice in itertools.product(roundings, Overflow, (False, True), (None, "float16", "bfloat16"), flushes):
        yield Rule(*choice)


def _gives(rule: Rule, converter: Converter, patterns: Array, codes: Array) -> bool:
    few = slice(0, 1 << 12)
    try:
        return all(
            np.array_equal(rule.apply(patterns[part], converter.source, converter.target), codes[part])
            for part in (few, slice(None))
        )
    except ValueError:  # a policy that the target cannot represent
        return False


# The stand-in


def stand_in(rule: Rule, source: str, target: str) -> Callable[[Array], Array]:
    """The simulator's conversion by a rule."""
    return lambda codes: rule.apply(codes, source, target)
