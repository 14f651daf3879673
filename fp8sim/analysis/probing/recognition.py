"""Which row of `fp8sim.mma.MODELS` an instrument is; if it is none, which one is nearest and what differs.

A row is matched if every measured property is its own and every output of the battery is equal, bit for bit. Otherwise
rows are changed by one field at a time, and the changes that reproduce all of it are named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from fp8sim.analysis.probing.battery import Batch, batches, differences, has_one_nan
from fp8sim.analysis.probing.instruments import Instrument, Interface, StandIn
from fp8sim.analysis.probing.measuring import Measurements, Value, measure
from fp8sim.analysis.probing.operands import Array
from fp8sim.mma import MODELS, Adder, MmaModel, Output
from fp8sim.mma.models import core_fields


@dataclass(frozen=True)
class Change:
    """One field of a row, changed."""

    row: str
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.row} with {self.field} {self.found} instead of {self.expected}"


@dataclass(frozen=True)
class Recognition:
    """What an instrument is.

    Attributes:
        name: the instrument's.
        measured: its properties (`measuring.PROPERTIES`).
        matches: the rows that it equals; several where generations share an arithmetic.
        nearest: the first that a single change makes equal; else the one of which the fewest outputs differ, and of
            these the fewest properties; None without a row that takes the same operands.
        differences: property -> (measured, that of `nearest`).
        changes: single changes of rows that give every property and output.
        compared, differing: outputs of the battery, and how many `nearest` computes otherwise.
    """

    name: str
    measured: Measurements
    matches: tuple[str, ...]
    nearest: str | None
    differences: dict[str, tuple[Value, Value]]
    changes: tuple[Change, ...]
    compared: int
    differing: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "matches": list(self.matches),
            "differences": {name: list(values) for name, values in self.differences.items()},
            "changes": [dataclasses.asdict(change) for change in self.changes],
        }


@dataclass(frozen=True, eq=False)
class _Observed:
    """All that an instrument showed."""

    takes: Interface
    measured: Measurements
    battery: tuple[Batch, ...]
    outputs: tuple[Array, ...]

    @property
    def compared(self) -> int:
        return sum(len(d) for d in self.outputs)

    def differing(self, candidate: StandIn) -> int:
        return sum(self._wrong(candidate))

    def reproduced_by(self, candidate: StandIn) -> bool:
        return not any(self._wrong(candidate)) and not self.unlike(candidate)

    def unlike(self, candidate: StandIn) -> dict[str, tuple[Value, Value]]:
        """The properties in which the candidate differs."""
        theirs, model = measure(candidate), candidate.model
        mine = {name: _comparable(value, model) for name, value in self.measured.items()}
        return {
            name: (self.measured[name], value)
            for name, value in theirs.items()
            if mine[name] != _comparable(value, model)
        }

    def _wrong(self, candidate: StandIn) -> Iterator[int]:
        for batch, found in zip(self.battery, self.outputs, strict=True):
            yield int(differences(found, batch.run(candidate), candidate.model).sum())


def recognise(instrument: Instrument) -> Recognition:
    """Measure an instrument, and find the rows that it is."""
    takes = instrument.takes
    battery = tuple(batches(takes))
    observed = _Observed(takes, measure(instrument), battery, tuple(batch.run(instrument) for batch in battery))
    trials = []
    for models in _candidates(takes):
        candidate = StandIn(models[0])
        trials.append((observed.unlike(candidate), observed.differing(candidate), models))
    trials.sort(key=lambda trial: (trial[1], len(trial[0])))
    matches = tuple(model.name for unlike, wrong, models in trials if not unlike and not wrong for model in models)
    changes = () if matches else tuple(_changes(observed, [models[0] for _, _, models in trials]))
    if changes:
        trials.sort(key=lambda trial: trial[2][0].name != changes[0].row)
    unlike, wrong, nearest = trials[0] if trials else ({}, 0, [])
    return Recognition(
        takes.name,
        observed.measured,
        matches,
        nearest[0].name if nearest else None,
        unlike,
        changes,
        observed.compared,
        wrong,
    )


def _candidates(takes: Interface) -> list[list[MmaModel]]:
    """The rows that take the same operands, those of one arithmetic together, one of the instrument's name first."""
    groups: dict[tuple[int, ...], list[MmaModel]] = {}
    for model in sorted(MODELS.values(), key=lambda model: model.name != takes.name):
        if takes.fits(model):
            groups.setdefault(tuple(core_fields(model)), []).append(model)
    return list(groups.values())


def _comparable(value: Value, model: MmaModel) -> Value:
    """A property without the NaN's payload, where the row does not specify it."""
    if has_one_nan(model) or not isinstance(value, str):
        return value
    infinity = {"float32": 0x7F800000, "float64": 0x7FF0000000000000}.get(model.accumulator, 0x7C00)
    return " ".join(
        "NaN" if _is_hexadecimal(word) and _magnitude(word, model) > infinity else word for word in value.split(" ")
    )


def _is_hexadecimal(word: str) -> bool:
    return len(word) >= 4 and all(letter in "0123456789abcdef" for letter in word)


def _magnitude(word: str, model: MmaModel) -> int:
    return int(word, 16) & ((1 << (int(model.accumulator.removeprefix("float")) - 1)) - 1)


# Single changes


def _changes(observed: _Observed, models: list[MmaModel]) -> Iterator[Change]:
    for model in models:
        for change, candidate in _variants(model):
            if observed.reproduced_by(candidate):
                yield change


def _variants(model: MmaModel) -> Iterator[tuple[Change, StandIn]]:
    """Every change of one field that is worth a try."""
    for field, values in _fields(model).items():
        before = getattr(model, field)
        for value in values:
            if value != before:
                changed = dataclasses.replace(model, **{field: value})
                yield Change(model.name, field, _text(before), _text(value)), StandIn(changed)
    for names in ("a", "b", "ab", "c", "d", "abcd"):
        yield (
            Change(model.name, "subnormals", "kept", f"of {', '.join(names)} flushed"),
            StandIn(model, flushes=frozenset(names)),
        )
    if model.terms < model.k:
        yield Change(model.name, "steps", "ascending", "descending"), StandIn(model, descending=True)
    yield (
        Change(model.name, "c", "a term of the first step", "added afterwards, ties to even"),
        StandIn(model, c_last=True),
    )


def _fields(model: MmaModel) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"output": _outputs(model)}
    if model.fraction_bits is not None:
        near = range(max(1, model.fraction_bits - 4), min(35, model.fraction_bits + 4) + 1)
        found["fraction_bits"] = sorted({*near, 10, 13, 22, 23, 24, 25})
    if model.zero_exponent is not None:
        found["zero_exponent"] = [model.zero_exponent + step for step in (-1, 1, -2, 2, -3, 3)]
    if model.adder in (Adder.TRUNCATED, Adder.EXACT, Adder.ROUNDED):
        found["terms"] = [terms for terms in range(1, model.k + 1) if model.k % terms == 0]
    return found


@dataclass(frozen=True)
class _Rounding:
    """An output's rounding that no row has; where a row's is read, it is read in its stead."""

    label: str
    accumulator: str
    kept_bits: int
    to_nearest: bool


def _outputs(model: MmaModel) -> list[Output]:
    """Roundings to the same accumulator."""
    known = [output for output in Output if output.accumulator == model.accumulator]
    full = max(output.kept_bits for output in known)
    toward_zero = (
        []
        if any(not output.to_nearest for output in known)
        else [
            cast(Output, _Rounding(f"RZ-FP{model.accumulator.removeprefix('float')}", model.accumulator, full, False))
        ]
    )
    return [*known, *toward_zero]


def _text(value: Any) -> str:
    return str(getattr(value, "label", value))
