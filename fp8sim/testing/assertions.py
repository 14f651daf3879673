"""Two comparisons for tests: every bit, or code distance with a budget that is a count."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fp8sim import casting, formats
from fp8sim.formats import Format
from fp8sim.testing.elements import Array, Elements, codes_of, elements, infinite_codes, nan_codes, ordinals

_LONGEST_SHOWN = 8
"""Distances in a histogram before the rest is one line."""


def assert_bitwise_equal(
    actual: Any, expected: Any, fmt: str | Format | None = None, *, any_nan: bool = True, what: str = "results"
) -> None:
    """Every bit agrees: signed zeros are told apart, and so are subnormal numbers from zero.

    Args:
        actual, expected: [...], of one shape and dtype: float arrays of NumPy, ml_dtypes, torch (float8 included) or
            anything that NumPy takes; or integers, codes of `fmt` if it is given.
        fmt: the format of integer codes. For float values, the message then shows their codes in `fmt`, too.
        any_nan: any NaN equals any NaN; False compares NaN payloads and signs, too.
        what: the name of the arrays in the message.

    Raises:
        AssertionError: shapes, dtypes or bits differ. The message has the count, and of the first differing element
            the index, both codes and both values.
        TypeError, ValueError: an argument is no array that can be compared.
    """
    __tracebackhide__ = True
    given = None if fmt is None else formats.parse(fmt)
    got, wanted = elements(actual, "actual", given), elements(expected, "expected", given)
    _assert_same_kind(got, wanted, what)
    wrong = got.bits != wanted.bits
    if any_nan and wrong.any():
        wrong &= ~(got.nan() & wanted.nan())
    if not wrong.any():
        return
    index = first_index(wrong)
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} elements differ, first at {_place(index)}: "
        f"got {describe(got, index, given)}, expected {describe(wanted, index, given)}"
    )


def assert_codes_close(
    actual: Any,
    expected: Any,
    fmt: str | Format,
    *,
    max_ulp: int = 1,
    max_mismatches: int | None = 0,
    what: str = "codes",
) -> None:
    """At most `max_mismatches` elements differ, and none by more than `max_ulp` codes.

    The distance of two codes is that of their places on the number line (`Format.ordinal`): 1 between neighbours, 0
    between +0 and -0, which are not told apart here. NaN is close to NaN only, an infinity only to itself.

    Args:
        actual, expected: [...], of one shape: integer codes, or arrays whose dtype is the format.
        fmt: the format.
        max_ulp: the largest distance that any element may have.
        max_mismatches: how many elements may have a distance; None: any number. It is a count, because a share that
            passes at one size hides a fault at another.
        what: the name of the arrays in the message.

    Raises:
        AssertionError: a distance or the count is exceeded. The message has a histogram of distances and the worst
            element: its index, both codes and both values.
        TypeError, ValueError: an argument is no array of codes of `fmt`.
    """
    __tracebackhide__ = True
    got, form = codes_of(actual, fmt, "actual")
    wanted, _ = codes_of(expected, fmt, "expected")
    if got.shape != wanted.shape:
        raise AssertionError(f"{what}: got shape {got.shape}, expected {wanted.shape}")
    found = _distances(got, wanted, form)
    mismatches = int(np.count_nonzero(found.ulps)) + found.incomparable
    if mismatches == 0:
        return
    beyond = int(np.count_nonzero(found.ulps > max_ulp)) + found.incomparable
    if beyond == 0 and (max_mismatches is None or mismatches <= max_mismatches):
        return
    worst = tuple(int(axis[found.worst]) for axis in np.unravel_index(found.where, got.shape))
    budget = "any number" if max_mismatches is None else str(max_mismatches)
    a, b = (Elements(codes, form, "codes") for codes in (got, wanted))
    raise AssertionError(
        f"{what}: {mismatches} of {got.size} elements differ, {beyond} beyond max_ulp={max_ulp} "
        f"(allowed to differ: {budget})\n{_histogram(found)}\n"
        f"worst at {_place(worst)}: got {describe(a, worst, form)}, expected {describe(b, worst, form)}"
    )


class _Distances(NamedTuple):
    """Elements whose codes differ in more than the sign of zero or the payload of NaN.

    Attributes:
        where: [D], flat indices.
        ulps: [D], their distances; 0 where there is none to state.
        incomparable: how many pairs have no distance: NaN or infinity against something else.
        worst: index into `where`: the first pair without distance, else the first of the largest.
    """

    where: Array
    ulps: Array
    incomparable: int
    worst: int


def _distances(got: Array, wanted: Array, fmt: Format) -> _Distances:
    where = np.flatnonzero(got != wanted)
    a, b = got.reshape(-1)[where], wanted.reshape(-1)[where]
    nan_a, nan_b = nan_codes(a, fmt), nan_codes(b, fmt)
    special = nan_a | nan_b | infinite_codes(a, fmt) | infinite_codes(b, fmt)
    apart = special & ~(nan_a & nan_b)
    ulps = np.where(special, 0, np.abs(ordinals(a, fmt) - ordinals(b, fmt)))
    worst = int(np.argmax(apart) if apart.any() else np.argmax(ulps)) if where.size else 0
    return _Distances(where, ulps, int(apart.sum()), worst)


def _histogram(found: _Distances) -> str:
    shown = _counts(found.ulps[found.ulps > 0])
    lines = [f"  distance {distance}: {count}" for distance, count in shown[:_LONGEST_SHOWN]]
    if len(shown) > _LONGEST_SHOWN:
        rest = sum(count for _, count in shown[_LONGEST_SHOWN:])
        lines.append(f"  distance {shown[_LONGEST_SHOWN][0]} to {shown[-1][0]}: {rest}")
    if found.incomparable:
        lines.append(f"  NaN or infinity against something else: {found.incomparable}")
    return "\n".join(lines)


def _counts(ulps: Array) -> list[tuple[int, int]]:
    """(distance, how many elements have it), the smallest first."""
    if ulps.size and int(ulps.max()) < 1 << 17:  # narrow formats, without sorting
        counts = np.bincount(ulps)
        return [(int(distance), int(counts[distance])) for distance in np.flatnonzero(counts)]
    distances, counts = np.unique(ulps, return_counts=True)
    return list(zip(distances.tolist(), counts.tolist(), strict=True))


def _assert_same_kind(got: Elements, wanted: Elements, what: str) -> None:
    __tracebackhide__ = True
    if got.bits.shape != wanted.bits.shape:
        raise AssertionError(f"{what}: got shape {got.bits.shape}, expected {wanted.bits.shape}")
    if got.fmt != wanted.fmt or (got.fmt is None and got.dtype != wanted.dtype):
        raise AssertionError(f"{what}: got dtype {got.dtype}, expected {wanted.dtype}")


def first_index(wrong: Array) -> tuple[int, ...]:
    """Where the first True of `wrong` lies."""
    index = int(np.argmax(wrong))
    return tuple(int(i) for i in np.unravel_index(index, wrong.shape))


def _place(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else "the only element"


def describe(found: Elements, index: tuple[int, ...], shown: Format | None = None) -> str:
    """One element: its bits as a code, its value, and the code of a float value in the format `shown`."""
    word, value = int(found.bits[index]), found.value(index)
    if found.fmt is None and found.dtype != "float64":
        return f"{word:#x}"
    text = f"{word:#x} ({value!r})"
    if shown is None or found.fmt == shown:
        return text
    code = casting.encode(np.array([value], np.float64), shown)[0]
    on_grid = np.array_equal(casting.decode(np.array([code]), shown, dtype="float64"), [value], equal_nan=True)
    return f"{text}, {shown} code {code:#x}" if on_grid else f"{text}, no number of {shown}"
