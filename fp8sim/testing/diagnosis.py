"""Which known fault gives the results that a cast gave? Each hypothesis is a whole cast, compared bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from fp8sim import casting
from fp8sim.formats import Format
from fp8sim.rounding import Overflow, Rounding
from fp8sim.testing.elements import Array, magnitudes, widened

Encode = Callable[[Array], Array]


def hypotheses(fmt: Format, rounding: Rounding, overflow: Overflow) -> Iterator[tuple[str, Encode]]:
    """(what the cast would do, x [N] -> codes [N]) for every fault known here, policies first."""
    for mode, limit in _policies(fmt, rounding, overflow):
        changed = [f"rounding={mode.name}"] * (mode is not rounding)
        changed += [f"overflow={limit.name}"] * (limit is not overflow)
        yield " and ".join(changed), functools.partial(casting.encode, fmt=fmt, rounding=mode, overflow=limit)

    def encode(x: Array) -> Array:
        return casting.encode(x, fmt, rounding=rounding, overflow=overflow)

    for name in ("bfloat16", "float16", "float32"):
        first = functools.partial(casting.cast, fmt=name, overflow="INFINITY")
        yield f"a first rounding to {name}", functools.partial(_after, encode, first)
    yield "subnormal results that become zero", lambda x: _without_subnormals(encode(x), fmt)
    yield "subnormal inputs that become zero", lambda x: encode(_without_subnormal_inputs(x))
    yield "a sign of zero that is lost", lambda x: _without_negative_zero(encode(x), fmt)
    yield "overflow decided before rounding", lambda x: encode(_overflowed(x, fmt))


def _after(second: Encode, first: Encode, x: Array) -> Array:
    return second(first(x))


def _policies(fmt: Format, rounding: Rounding, overflow: Overflow) -> Iterator[tuple[Rounding, Overflow]]:
    """Every other policy without random bits that the format can represent, single changes first."""
    modes = [mode for mode in Rounding if not mode.is_stochastic]
    pairs = [(mode, overflow) for mode in modes] + [(rounding, limit) for limit in Overflow]
    pairs += [(mode, limit) for mode in modes for limit in Overflow if mode is not rounding and limit is not overflow]
    return (pair for pair in pairs if pair != (rounding, overflow) and _represents(fmt, *pair))


def _represents(fmt: Format, rounding: Rounding, overflow: Overflow) -> bool:
    try:
        casting.policy_of(fmt, rounding, overflow)
    except ValueError:
        return False
    return True


def _without_subnormals(codes: Array, fmt: Format) -> Array:
    magnitude = magnitudes(codes, fmt)
    subnormal = (magnitude > 0) & (magnitude < 1 << fmt.mantissa_bits) & fmt.zero
    sign = codes & codes.dtype.type(fmt.sign_bit * fmt.has_negative_zero)
    return np.where(subnormal, sign, codes)


def _without_subnormal_inputs(x: Array) -> Array:
    tiny = 2.0**-14 if x.dtype.name == "float16" else 2.0**-1022 if x.dtype.name == "float64" else 2.0**-126
    return np.where(np.abs(widened(x)) < tiny, np.copysign(x.dtype.type(0), x), x)


def _without_negative_zero(codes: Array, fmt: Format) -> Array:
    lost = fmt.has_negative_zero & (codes == fmt.sign_bit)
    return np.where(lost, codes.dtype.type(0), codes)


def _overflowed(x: Array, fmt: Format) -> Array:
    """`x` with infinities for all that exceeds the largest number."""
    infinity = np.copysign(x.dtype.type(np.inf), x)
    return np.where(np.abs(widened(x)) > float(fmt.max), infinity, x)
