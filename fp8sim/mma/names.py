"""From names to instructions: `sm90.wgmma.e4m3.e4m3.f32`, and short forms that operand formats complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from fp8sim import formats
from fp8sim.formats import Format
from fp8sim.mma.architectures import MODELS, OPERANDS
from fp8sim.mma.models import MmaModel

_ALIASES = {"sm72": "sm70", "sm86": "sm80", "sm87": "sm80"}
"""Architectures of the same arithmetic."""


def parse(
    name: str | MmaModel,
    a_format: str | Format | None = None,
    b_format: str | Format | None = None,
    accumulator: str | None = None,
) -> MmaModel:
    """The instruction of that name; `parse(str(model)) == model` for every row of `MODELS`.

    Args:
        name: a full name, or one without some of its last parts: the types of a and b, which `a_format` and `b_format`
            then give, and that of the accumulator (binary32, binary64 for binary64, unless `accumulator` says
            otherwise). `sm86.` stands for `sm80.`, and so on for architectures of the same arithmetic.
        a_format: the format of a, as fp8sim names it ("float8_e4m3fn", "e4m3", "float64").
        b_format: the same of b; None: that of a.
        accumulator: "float32", "float16" or "float64".

    Raises:
        ValueError: no such instruction, formats that it does not accept, or too little to tell: the message lists what
            there is.
    """
    if isinstance(name, MmaModel):
        return name
    if not isinstance(name, str):
        raise TypeError(f"name is a {type(name).__name__}: expected an instruction's name, such as sm90.wgmma")
    architecture, dot, rest = name.partition(".")
    full = _ALIASES.get(architecture, architecture) + dot + rest
    rows = [row for row in MODELS.values() if _begins(row, full)]
    if not rows:
        _refuse_name(name, full)
    wanted = [_format_name(fmt) for fmt in (a_format, b_format if b_format is not None else a_format)]
    fitting = [row for row in rows if _accepts(row, wanted, accumulator)]
    if accumulator is None and full not in MODELS:
        fitting = [row for row in fitting if row.accumulator != "float16"]
    if len(fitting) != 1:
        _refuse_formats(name, wanted, accumulator, rows, fitting)
    return fitting[0]


def is_instruction(name: str) -> bool:
    """Whether `name` is an instruction's, complete or not."""
    architecture, dot, rest = name.partition(".")
    full = _ALIASES.get(architecture, architecture) + dot + rest
    return any(_begins(row, full) for row in MODELS.values())


def _begins(row: MmaModel, name: str) -> bool:
    """Whether `name` is the row's, or its instruction and some of its types; sm90.mma does not begin sm90.mma.k8."""
    return row.name == name or (f"{name}.".startswith(f"{row.instruction}.") and f"{row.name}.".startswith(f"{name}."))


def _accepts(row: MmaModel, wanted: list[str | None], accumulator: str | None) -> bool:
    pairs = zip((row.a_format, row.b_format), wanted, strict=True)
    return all(fmt in (None, of) for of, fmt in pairs) and accumulator in (None, row.accumulator)


def _format_name(fmt: str | Format | None) -> str | None:
    if fmt is None or fmt == "float64":
        return fmt if fmt is None else "float64"
    return str(formats.parse(OPERANDS.get(fmt, fmt) if isinstance(fmt, str) else fmt))


def _refuse_name(name: str, full: str) -> NoReturn:
    instructions = list(dict.fromkeys(row.instruction for row in MODELS.values()))
    known = [known for known in instructions if f"{full}.".startswith(f"{known}.")]
    if known:
        rows = [row for row in MODELS.values() if row.instruction == known[-1]]
        raise ValueError(f"name={name!r}: {known[-1]} accepts {_types(rows)}")
    raise ValueError(f"name={name!r} is no instruction: there are {', '.join(instructions)}")


def _refuse_formats(
    name: str, wanted: list[str | None], accumulator: str | None, rows: list[MmaModel], fitting: list[MmaModel]
) -> NoReturn:
    if fitting and wanted[0] is None:
        raise ValueError(f"name={name!r} needs a_format= and b_format=: it accepts {_types(rows)}")
    got = f"a_format={wanted[0]}, b_format={wanted[1]}" + (f", accumulator={accumulator}" if accumulator else "")
    raise ValueError(f"{got}: {name} accepts {_types(rows)}")


def _types(rows: Iterable[MmaModel]) -> str:
    """The types of a, b and accumulator, as in names."""
    return ", ".join(row.name.removeprefix(f"{row.instruction}.") for row in rows)
