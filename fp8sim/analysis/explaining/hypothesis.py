"""One way in which a kernel may have got its output from its inputs, as data and as text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fp8sim import formats, quantizers
from fp8sim.mma.plans import GemmPlan, parse
from fp8sim.rounding import Overflow, member, resolve

UNROUNDED = ("float32", "float64")
"""Outputs that are the accumulator itself."""


@dataclass(frozen=True)
class Hypothesis:
    """One way in which a kernel may have got its output from its inputs: casts, GEMM, epilogue.

    Its `str()` is "PLAN [output=FORMAT] [overflow=...] [through=FORMAT] [a=QUANTIZER] [b=QUANTIZER]
    [cast_through=FORMAT]", as `parse_hypothesis` reads it.

    Attributes:
        plan: the instruction and the order of operations, the epilogue's rounding included; a `GemmPlan` or its text.
        output: the format that sums are rounded to.
        overflow: what becomes of sums beyond it; None: infinity, but the largest number in formats of 8 bits or less.
        through: a format that sums are rounded to first, ties to even; None: none, they are rounded once.
        a: how the kernel casts a, as `fp8sim.quantizers.parse` takes it, blocks of factors along K; None: it does
            not, a is given as codes, or its numbers lie on the grid. b: the same of b.
        cast_through: a format that a and b are rounded to before their casts.

    Raises:
        ValueError: a plan, format, policy or quantizer that does not exist.
    """

    plan: GemmPlan
    output: str = "float32"
    overflow: Overflow | None = None
    through: str | None = None
    a: str | None = None
    b: str | None = None
    cast_through: str | None = None

    def __post_init__(self) -> None:
        found: dict[str, Any] = {"plan": parse(self.plan), "output": _format(self.output)}
        found |= {name: _format(fmt) for name in ("through", "cast_through") if (fmt := getattr(self, name))}
        found |= {name: str(quantizers.parse(text)) for name in ("a", "b") if (text := getattr(self, name))}
        overflow = default_overflow(found["output"]) if self.overflow is None else self.overflow
        found["overflow"] = member(Overflow, overflow, "overflow")
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if self.output not in UNROUNDED:
            resolve(formats.parse(self.output), self.plan.rounding, found["overflow"])

    @property
    def casts(self) -> tuple[str | None, str | None]:
        """The quantizers of a and b."""
        return self.a, self.b

    @property
    def limit(self) -> Overflow:
        """`overflow`, which is never None once it is here."""
        assert self.overflow is not None
        return self.overflow

    def __str__(self) -> str:
        parts = [str(self.plan)]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            usual = default_overflow(self.output) if field.name == "overflow" else field.default
            if value != usual:
                parts.append(f"{field.name}={value.name if isinstance(value, Overflow) else value}")
        return " ".join(parts)


def parse_hypothesis(text: str | Hypothesis) -> Hypothesis:
    """The hypothesis whose `str()` is `text`: a plan, and fields as "name=value" after spaces.

    Raises:
        ValueError: a field or value that does not exist; the message lists what there is.
    """
    if isinstance(text, Hypothesis):
        return text
    plan, *parts = text.split() or [""]
    known = [field.name for field in dataclasses.fields(Hypothesis)[1:]]
    fields = dict(part.partition("=")[::2] for part in parts)
    for name in fields:
        if name not in known:
            raise ValueError(f"hypothesis {text!r}: {name!r} is none of {', '.join(f'{field}=' for field in known)}")
    return Hypothesis(parse(plan), **fields)  # type: ignore[arg-type]


def default_overflow(output: str) -> Overflow:
    """Infinity for 16 bits and more; narrower formats saturate, as conversions to them do on GPUs."""
    return Overflow.INFINITY if output == "float64" or formats.parse(output).bits >= 16 else Overflow.SATURATE


def _format(name: str) -> str:
    return "float64" if name == "float64" else str(formats.parse(name))
