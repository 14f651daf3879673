"""Put someone else's cast through everything that casts get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fp8sim import casting, formats
from fp8sim.formats import Format
from fp8sim.rounding import Overflow, Rounding, member
from fp8sim.testing.assertions import describe, first_index
from fp8sim.testing.diagnosis import hypotheses
from fp8sim.testing.elements import Array, Elements, decoded, elements, widened
from fp8sim.testing.points import EMPTY, LAYOUTS, LENGTHS, REVERSED, SCALAR, Layout, all_points, points
from fp8sim.testing.reports import Check, Report

_WHOLE = 1024
"""A length that vector loops and thread blocks divide."""

_DTYPES = ("float32", "float64", "float16", "bfloat16")


def check_cast(
    my_cast: Callable[[Any], Any],
    fmt: str | Format,
    *,
    rounding: Rounding | str = Rounding.TIES_TO_EVEN,
    overflow: Overflow | str = Overflow.SATURATE,
    dtype: str = "float32",
    takes: Literal["numpy", "torch"] = "numpy",
    returns: Literal["values", "codes"] = "values",
    device: str = "cpu",
    strided: bool = True,
    empty: bool = True,
    any_nan: bool = True,
    except_where: Callable[[Array], Array] | None = None,
) -> Report:
    """Compare a cast with fp8sim's, bit for bit, on every input and in every layout that casts get wrong.

    Signed zeros; every number of the format; every midpoint and its neighbours in `dtype`; neighbours of binade edges;
    magnitudes below the smallest number; the overflow threshold; infinities; NaN; random bit patterns; lengths 1 to
    130; strides, offsets, broadcasts and permutations; 0-d and empty arrays. The input must stay as it is.

    Args:
        my_cast: x [...] -> [...]. It gets arrays of `dtype`; of bfloat16, ml_dtypes' in NumPy.
        fmt: the format that it casts to, or its name.
        rounding: what it claims, a member of `Rounding` or its name; not a stochastic one.
        overflow: what it claims, a member of `Overflow` or its name.
        dtype: of the input: float32, float64, float16 or bfloat16.
        takes: what it gets, NumPy arrays or torch tensors.
        returns: "values": numbers of the format in `dtype`, NaN where the format has it. "codes": integer codes, or an
            array whose dtype is the format (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn).
        device: where tensors go, for `takes="torch"`.
        strided, empty: False leaves these layouts out, for a kernel that refuses them; the report says so.
        any_nan: any NaN is right where NaN is expected; False: only the code that `fp8sim.encode` gives.
        except_where: x [N] -> bool [N], inputs in binary64 that are not compared, for a difference that is known and
            wanted; the report counts them.

    Returns:
        What was compared.

    Raises:
        AssertionError: a property does not hold. The message names it, the first input, both results, and, if there is
            one, the policy or fault that gives exactly the results that the cast gave.
        ValueError, TypeError: an argument that makes no sense.
    """
    __tracebackhide__ = True
    form = formats.parse(fmt)
    mode, limit = member(Rounding, rounding, "rounding"), member(Overflow, overflow, "overflow")
    _check_arguments(form, mode, limit, dtype, takes, returns)
    subject = _Subject(my_cast, form, mode, limit, dtype, takes, returns, device, any_nan)
    groups = {name: _kept(x, except_where) for name, x in points(form, dtype).items()}
    pool = np.concatenate(list(groups.values()))
    checks = _check_values(subject, {name: x for name, x in groups.items() if x.size})
    strides = (*LAYOUTS, REVERSED) if takes == "numpy" else LAYOUTS
    stages = {
        "lengths 1 to 130": (LENGTHS, True),
        "a 0-d array": ((SCALAR,), True),
        "strides and offsets": (strides, strided),
        "empty arrays": (EMPTY, empty),
    }
    checks += [_check_layouts(subject, pool, name, layouts) for name, (layouts, wanted) in stages.items() if wanted]
    left_out = [f"{name}, by request" for name, (_, wanted) in stages.items() if not wanted]
    excepted = all_points(form, dtype).size - pool.size
    left_out += [f"{excepted} inputs that except_where names"] * (excepted > 0)
    return Report(subject.name, tuple(checks), tuple(left_out))


@dataclass(frozen=True)
class _Subject:
    """A cast and what it claims."""

    cast: Callable[[Any], Any]
    fmt: Format
    rounding: Rounding
    overflow: Overflow
    dtype: str
    takes: str
    returns: str
    device: str
    any_nan: bool

    @property
    def name(self) -> str:
        return f"cast of {self.dtype} to {self.fmt}, {self.rounding.name}, {self.overflow.name}"

    def run(self, what: str, layout: Layout, block: Array) -> tuple[Elements, Array]:
        """(the result for `block` in `layout`, the input); AssertionError if the result is of another kind."""
        __tracebackhide__ = True
        x, seen = layout.place(block.copy(), self.takes, self.device)
        before = seen.copy()
        try:
            with np.errstate(all="ignore"):  # NaN and overflow are what it is here for
                result = self.cast(x)
        except Exception as error:
            raise AssertionError(f"{self.name}: {what}: it raised {type(error).__name__}: {error}") from error
        found = elements(result, "the result", self.fmt if self.returns == "codes" else None)
        wanted = self.of_codes(np.zeros(0, np.uint8))
        if found.fmt != wanted.fmt or (self.returns == "values" and found.dtype != wanted.dtype):
            name = f"codes of {self.fmt}" if self.returns == "codes" else self.dtype
            raise AssertionError(f"{self.name}: {what}: got dtype {found.dtype}, expected {name}")
        if found.bits.shape != layout.shape:
            raise AssertionError(f"{self.name}: {what}: got shape {found.bits.shape}, expected {layout.shape}")
        if not np.array_equal(elements(x, "x").bits, elements(before, "x").bits):
            raise AssertionError(f"{self.name}: {what}: the cast changed its input")
        return found, before

    def of_codes(self, codes: Array) -> Elements:
        """Codes as the cast returns them."""
        if self.returns == "codes":
            return elements(codes, "codes", self.fmt)
        return elements(decoded(codes, self.fmt, self.dtype), "values")

    def expected(self, x: Array) -> Elements:
        return self.of_codes(casting.encode(x, self.fmt, rounding=self.rounding, overflow=self.overflow))

    def differs(self, a: Elements, b: Elements) -> Array:
        """[...], where two results differ."""
        wrong: Array = a.bits != b.bits
        return wrong & ~(a.nan() & b.nan()) if self.any_nan else wrong


def _kept(x: Array, except_where: Callable[[Array], Array] | None) -> Array:
    if except_where is None:
        return x
    kept: Array = x[~np.asarray(except_where(widened(x)), bool)]
    return kept


def _check_values(subject: _Subject, groups: dict[str, Array]) -> list[Check]:
    """Every group in one call each; all are run before the first difference is judged."""
    __tracebackhide__ = True
    found = {name: _run_flat(subject, name, x) for name, x in groups.items()}
    for name, x in groups.items():
        wrong = subject.differs(found[name], subject.expected(x))
        if wrong.any():
            message = _difference(subject, name, x, found[name], wrong)
            raise AssertionError(message + _diagnosis(subject, groups, found))
    return [Check(name, x.size) for name, x in groups.items()]


def _run_flat(subject: _Subject, name: str, x: Array) -> Elements:
    """The result for `x` [N], repeated to a length that no tail spoils: what fails here fails by value."""
    __tracebackhide__ = True
    length = -(-x.size // _WHOLE) * _WHOLE
    result, _ = subject.run(name, Layout(name, (length,), (1,)), np.resize(x, length))
    return result._replace(bits=result.bits[: x.size])


def _check_layouts(subject: _Subject, pool: Array, name: str, layouts: tuple[Layout, ...]) -> Check:
    __tracebackhide__ = True
    compared = 0
    for number, layout in enumerate(layouts):
        block = np.take(pool, np.arange(layout.elements) * 97 + number * 1009, mode="wrap")
        found, x = subject.run(layout.name, layout, block)
        wrong = subject.differs(found, subject.expected(x))
        if wrong.any():
            raise AssertionError(_difference(subject, layout.name, x, found, wrong))
        compared += x.size
    return Check(name, compared, len(layouts))


def _difference(subject: _Subject, what: str, x: Array, found: Elements, wrong: Array) -> str:
    index = first_index(wrong)
    shown = subject.fmt if subject.returns == "values" else None
    place = f"[{', '.join(map(str, index))}] " if index else ""
    return (
        f"{subject.name}: {what}: {int(wrong.sum())} of {wrong.size} differ, first x{place and ' at '}{place}= "
        f"{describe(elements(x, 'x'), index)}: got {describe(found, index, shown)}, "
        f"expected {describe(subject.expected(x), index, shown)}"
    )


def _diagnosis(subject: _Subject, groups: dict[str, Array], found: dict[str, Elements]) -> str:
    """A line that names the fault which gives every result that the cast gave, or every finite input's; or nothing."""
    x = np.concatenate(list(groups.values()))
    bits = np.concatenate([one.bits for one in found.values()])
    result = next(iter(found.values()))._replace(bits=bits)
    wrong = subject.differs(result, subject.expected(x))
    scopes = [("every input", np.ones(x.shape, bool)), ("every finite input", np.isfinite(widened(x)))]
    for name, encode in hypotheses(subject.fmt, subject.rounding, subject.overflow):
        with np.errstate(all="ignore"):
            unlike = subject.differs(result, subject.of_codes(encode(x)))
        for scope, where in scopes:
            if (wrong & where).any() and not (unlike & where).any():
                return f"\non {scope} the results are those of {name}"
    return ""


def _check_arguments(fmt: Format, rounding: Rounding, overflow: Overflow, dtype: str, takes: str, returns: str) -> None:
    if rounding.is_stochastic:
        raise ValueError(f"rounding={rounding.name}: use assert_stochastic_unbiased for stochastic casts")
    for argument, value, allowed in (
        ("dtype", dtype, _DTYPES),
        ("takes", takes, ("numpy", "torch")),
        ("returns", returns, ("values", "codes")),
    ):
        if value not in allowed:
            raise ValueError(f"{argument}={value!r}: use one of {', '.join(allowed)}")
    casting.policy_of(fmt, rounding, overflow)
