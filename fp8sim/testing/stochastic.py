"""Is a stochastic cast fair? By exact counts where its random bits can be given, else by shares within 4 sigma."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from fp8sim import formats
from fp8sim.formats import Format
from fp8sim.rounding import Rounding, member
from fp8sim.testing.elements import Array, decoded, elements, like, numpy_dtype, widened
from fp8sim.testing.reports import Check, Report

_SHARES = (Fraction(1, 16), Fraction(3, 10), Fraction(1, 2), Fraction(181, 256), Fraction(15, 16))
"""Where between two numbers the inputs lie."""

_SIGMAS = 4


def assert_stochastic_unbiased(
    my_cast: Callable[[Any], Any],
    fmt: str | Format,
    *,
    dtype: str = "float32",
    samples: int = 1 << 15,
    random_bits: int | None = None,
    takes: str = "numpy",
    device: str = "cpu",
) -> Report:
    """A stochastic cast gives one of the two neighbours, each as often as its distance says, and keeps numbers.

    Tried among subnormal numbers, from subnormal to normal, at one, in the last binade and below the smallest number,
    with both signs. The count of roundings away from zero must lie within 4 sigma of `samples` times the probability.
    A fair cast fails one point in 16 000 by chance; a call tries about 60, so fix its seed.

    Args:
        my_cast: x [N] -> values [N] in the dtype of x, with new random bits for every element.
        fmt: the format or its name.
        dtype: of the input: float32, float64, float16 or bfloat16.
        samples: N, how often each point is cast.
        random_bits: how many random bits per element the cast uses, if so few that its probabilities are multiples of
            2^-random_bits, rounded as `Rounding.STOCHASTIC` says; None: the exact probability.
        takes, device: as for `check_cast`.

    Returns:
        What was compared.

    Raises:
        AssertionError: names the point, and what came out how often.
        ValueError: an unknown format.
    """
    __tracebackhide__ = True
    form = formats.parse(fmt)
    subject = f"stochastic cast of {dtype} to {form}"
    checks: dict[str, Check] = {}
    for point in _points(form, dtype):
        x = np.full(samples, point.x, numpy_dtype(dtype))
        share = point.share if random_bits is None else Fraction(round(point.share * 2**random_bits), 2**random_bits)
        away = _away(subject, point, _values(my_cast(like(x, takes, device)), subject, dtype, x.shape))
        mean, sigma = float(samples * share), math.sqrt(samples * share * (1 - share))
        if abs(away - mean) > _SIGMAS * sigma:
            raise AssertionError(
                f"{subject}: {point}: {away} of {samples} went away from zero, expected {mean:.1f} "
                f"within {_SIGMAS * sigma:.1f} (4 sigma)"
            )
        _count(checks, point, samples)
    return _report(subject, checks)


def assert_stochastic_counts(
    my_cast: Callable[[Any, Any], Any],
    fmt: str | Format,
    *,
    random_bits: int,
    rounding: Rounding | str = Rounding.STOCHASTIC,
    dtype: str = "float32",
    takes: str = "numpy",
    device: str = "cpu",
) -> Report:
    """A cast with explicit random bits goes away from zero for exactly as many of them as its mode says.

    Args:
        my_cast: (x [N], random [N]) -> values [N] in the dtype of x. `random` is int64, each 0 to 2^random_bits - 1;
            every integer comes once.
        fmt: the format or its name.
        random_bits: 1 to 16.
        rounding: a stochastic member of `Rounding` or its name, whose docstring has the formula.
        dtype, takes, device: as for `check_cast`.

    Returns:
        What was compared.

    Raises:
        AssertionError: names the point and both counts.
        ValueError: an unknown format, a mode without random bits, `random_bits` out of range.
    """
    __tracebackhide__ = True
    form, mode = formats.parse(fmt), member(Rounding, rounding, "rounding")
    if mode not in _COUNTS:
        raise ValueError(f"rounding={mode.name}: it takes no random bits; check_cast checks it")
    if not 1 <= random_bits <= 16:
        raise ValueError(f"random_bits={random_bits}: expected 1 to 16, to try all of them")
    subject = f"stochastic cast of {dtype} to {form}, {mode.name} with {random_bits} random bits"
    checks: dict[str, Check] = {}
    random = np.arange(1 << random_bits)
    for point in _points(form, dtype):
        x = np.full(random.shape, point.x, numpy_dtype(dtype))
        values = my_cast(like(x, takes, device), like(random, takes, device))
        away = _away(subject, point, _values(values, subject, dtype, x.shape))
        expected = _COUNTS[mode](point.share, random_bits) if point.share else 0
        if away != expected:
            raise AssertionError(f"{subject}: {point}: {away} of {random.size} went away from zero, not {expected}")
        _count(checks, point, random.size)
    return _report(subject, checks)


_COUNTS: dict[Rounding, Callable[[Fraction, int], int]] = {
    Rounding.STOCHASTIC: lambda share, bits: round(share * 2**bits),
    Rounding.STOCHASTIC_A: lambda share, bits: math.floor(share * 2**bits),
    Rounding.STOCHASTIC_B: lambda share, bits: (math.floor(share * 2 ** (bits + 1)) + 1) // 2,
    Rounding.STOCHASTIC_EQUAL: lambda share, bits: 1 << (bits - 1),
}
"""How many of the 2^bits random integers go away from zero (the formulas of `Rounding`, counted)."""


class _Point(NamedTuple):
    """An input: `share` of the way from `low` to `high`, neighbouring numbers of a format, in magnitude."""

    where: str
    x: float
    low: float
    high: float
    share: Fraction

    def __str__(self) -> str:
        return f"x = {self.x!r} ({self.where}, {float(self.share):.6g} of the way from {self.low!r} to {self.high!r})"


def _points(fmt: Format, dtype: str) -> Iterator[_Point]:
    for where, code in _places(fmt).items():
        low, high = fmt.value(code), fmt.value(code + 1)
        for share in (Fraction(0), *_SHARES):
            with np.errstate(all="ignore"):
                x = float(np.float64(float(low + share * (high - low))).astype(numpy_dtype(dtype)))
            if not (math.isfinite(x) and low <= Fraction(x) < high):
                continue  # the dtype has no such number
            exact = (Fraction(x) - low) / (high - low)
            yield _Point(where, x, float(low), float(high), exact)
            if fmt.signed:
                yield _Point(where, -x, float(-low), float(-high), exact)


def _places(fmt: Format) -> dict[str, int]:
    """The lower code of each interval that is tried, by what it is; the first name of a code that has two."""
    places = {"the last binade": fmt.max_code - 1, "the middle": fmt.max_code // 2, "the smallest": 0}
    if fmt.zero and fmt.mantissa_bits:
        first_normal = 1 << fmt.mantissa_bits
        places |= {"subnormal to normal": first_normal - 1, "subnormal": first_normal // 2}
    unique = {code: where for where, code in places.items() if 0 <= code < fmt.max_code}
    return {where: code for code, where in sorted(unique.items())}


def _values(result: Any, subject: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """What a cast returned, in binary64; AssertionError if it is no array of `dtype` and `shape`."""
    found = elements(result, "the result")
    if found.dtype != dtype or found.bits.shape != shape:
        got = f"{found.dtype} {list(found.bits.shape)}"
        raise AssertionError(f"{subject}: got {got}, expected values in {dtype} {list(shape)}")
    if found.fmt is None:
        values: Array = found.bits.view(np.float64)
        return values
    return widened(decoded(found.bits, found.fmt, "float64"))


def _count(checks: dict[str, Check], point: _Point, compared: int) -> None:
    """Add one point to what the report says."""
    low, high = sorted((abs(point.low), abs(point.high)))
    kind = "inexact inputs" if point.share else "numbers"
    name = f"{kind} from {low!r} to {high!r} ({point.where})"
    before = checks.get(name, Check(name, 0, 0))
    checks[name] = Check(name, before.compared + compared, before.calls + 1)


def _report(subject: str, checks: dict[str, Check]) -> Report:
    if not any(name.startswith("inexact") for name in checks):
        raise ValueError(f"{subject}: the dtype has nothing between two numbers of the format: use a wider dtype")
    return Report(subject, tuple(checks.values()))


def _away(subject: str, point: _Point, values: Array) -> int:
    """How many went away from zero; AssertionError if one is neither neighbour."""
    neither = (values != point.low) & (values != point.high)
    if neither.any():
        stray = float(values[neither][0])
        raise AssertionError(f"{subject}: {point}: {int(neither.sum())} are neither neighbour, as {stray!r}")
    away = int((values == point.high).sum())
    if point.share == 0 and away:
        raise AssertionError(f"{subject}: {point}: a number of the format must stay, {away} did not")
    return away
