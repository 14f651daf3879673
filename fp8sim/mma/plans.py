"""How a kernel strings instructions together to a GEMM: `GemmPlan` as data, and the plans of known libraries.

To add a library's plan, add one entry to `PLANS`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from fp8sim import formats
from fp8sim.arguments import check_text
from fp8sim.mma.names import is_instruction
from fp8sim.rounding import Rounding

_Member = TypeVar("_Member", bound=enum.Enum)


class Place(enum.Enum):
    """Where factors outside of the instruction meet the sum."""

    EPILOGUE = "epilogue"
    """Once, on the finished sum."""
    FLUSH = "flush"
    """On every partial sum as it is flushed; the only place for factors that differ along K."""


class Product(enum.Enum):
    """In which order a sum p meets the factors of its row and its column; every product is rounded to float32."""

    SUCCESSIVE = "successive"
    """(p * row) * column."""
    FIRST = "first"
    """p * (row * column)."""


class Merge(enum.Enum):
    """The order in which the partial results of a split K are added, in float32, ties to even."""

    ASCENDING = "ascending"
    """((p0 + p1) + p2) + ..."""
    DESCENDING = "descending"
    """The last split first."""
    TREE = "tree"
    """Neighbours first: (p0 + p1) + (p2 + p3), and so on; an odd one out waits."""


@dataclass(frozen=True)
class GemmPlan:
    """The order of a GEMM's operations, apart from the arithmetic of its instruction.

    K is cut into `split_k` parts, each of them into tiles of `block_k`. Within a part, instructions form a chain in
    increasing k. With `flush`, the chain's result is added to a float32 accumulator and the chain starts again from
    zero: after each instruction that completes `flush` products since the last time, and at the end of each tile.
    Parts are merged, factors applied, and the result is rounded once to the output's format.

    Attributes:
        instruction: as `fp8sim.mma.parse` takes it, complete or not: the operands' formats complete it.
        widen: a format that operands are converted to before they are multiplied; their numbers must fit it exactly.
        flush: products between additions to the float32 accumulator; None for one unbroken chain. Rounded up to whole
            instructions.
        block_k: length of a tile, where its end matters: with `flush`, or to align the parts of a split K.
        split_k: parts of K, each as many tiles (or instructions) long as the others, but for the last.
        merge: the order in which parts are added.
        factors: where factors meet the sum.
        product: in which order.
        fused: whether a multiplication and the addition that follows it at a flush are one FMA (compilers contract
            them by default).
        rounding: to the output's format.

    Raises:
        ValueError: lengths that are not positive, factors at flushes that never happen, widening to no format.
    """

    instruction: str
    widen: str | None = None
    flush: int | None = None
    block_k: int | None = None
    split_k: int = 1
    merge: Merge = Merge.ASCENDING
    factors: Place = Place.EPILOGUE
    product: Product = Product.SUCCESSIVE
    fused: bool = True
    rounding: Rounding = Rounding.TIES_TO_EVEN

    def __post_init__(self) -> None:
        for name in ("flush", "block_k", "split_k"):
            length = getattr(self, name)
            if length is not None and length < 1:
                raise ValueError(f"{name}={length}: must be positive")
        if self.factors is Place.FLUSH and self.flush is None:
            raise ValueError("factors=flush needs flush=N, the products between two flushes")
        if self.rounding.is_stochastic:
            raise ValueError(f"rounding={self.rounding.name}: an epilogue takes no random bits here")
        if self.widen is not None:
            object.__setattr__(self, "widen", str(formats.parse(self.widen)))

    def __str__(self) -> str:
        name = _names().get(self)
        if name is not None:
            return name
        parts = [self.instruction]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={_text(value)}")
        return ";".join(parts)

    def segments(self, k: int, instruction_k: int) -> list[list[tuple[int, int]]]:
        """The chains, as ranges of k, of each part of a sum of `k` products by instructions of `instruction_k`."""
        unit = self.block_k or instruction_k
        tiles = -(-k // unit)
        length = max(1, -(-tiles // self.split_k)) * unit
        parts = [(start, min(k, start + length)) for start in range(0, k, length)] or [(0, 0)]
        return [self._chains(start, stop, instruction_k) for start, stop in parts]

    def _chains(self, start: int, stop: int, instruction_k: int) -> list[tuple[int, int]]:
        if self.flush is None:
            return [(start, stop)]
        step = -(-self.flush // instruction_k) * instruction_k
        tile = self.block_k or max(1, stop - start)
        return [
            (at, min(at + step, end))
            for begin in range(start, stop, tile)
            for end in (min(begin + tile, stop),)
            for at in range(begin, end, step)
        ]


def _text(value: object) -> str:
    if isinstance(value, Rounding):
        return value.name
    return str(value.value if isinstance(value, enum.Enum) else value)


def parse(text: str | GemmPlan) -> GemmPlan:
    """The plan that a name of `PLANS`, an instruction or "INSTRUCTION;field=value;..." stands for.

    Raises:
        ValueError: a field or value that does not exist; the message lists what there is.
    """
    if isinstance(text, GemmPlan):
        return text
    check_text("plan", text, "a GemmPlan, an instruction or the text of a plan")
    if text in PLANS:
        return PLANS[text]
    instruction, *parts = text.split(";")
    if not is_instruction(instruction):
        raise ValueError(
            f"plan {text!r}: {instruction!r} is no instruction ('fp8sim mma' lists them), and the named plans are "
            f"{', '.join(PLANS)}"
        )
    fields: dict[str, object] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in _READERS or not equals:
            raise ValueError(f"plan {text!r}: {part!r} is none of {', '.join(f'{known}=' for known in _READERS)}")
        fields[name] = _READERS[name](name, value)
    return GemmPlan(instruction, **fields)  # type: ignore[arg-type]


def _length(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{name}={value}: expected a positive integer")
    return int(value)


def _flag(name: str, value: str) -> bool:
    return _choice({"True": True, "False": False}, name, value)


def _member_of(kind: type[_Member]) -> Callable[[str, str], _Member]:
    by_text = {_text(member): member for member in kind}
    return functools.partial(_choice, by_text)


_Value = TypeVar("_Value")


def _choice(choices: Mapping[str, _Value], name: str, value: str) -> _Value:
    if value not in choices:
        raise ValueError(f"{name}={value}: use one of {', '.join(choices)}")
    return choices[value]


_READERS: Mapping[str, Callable[[str, str], object]] = MappingProxyType(
    {
        "widen": lambda name, value: value,
        "flush": _length,
        "block_k": _length,
        "split_k": _length,
        "merge": _member_of(Merge),
        "factors": _member_of(Place),
        "product": _member_of(Product),
        "fused": _flag,
        "rounding": _member_of(Rounding),
    }
)


def _triton() -> dict[str, GemmPlan]:
    """`tl.dot` of FP8 on Hopper and Ampere (Triton 3.6: WGMMA.cpp, semantic.py, Combine.cpp, compiler.py).

    `acc = tl.dot(a, b, acc)` is one chain. `max_num_imprecise_acc=N` flushes after every N products and at the end of
    each BLOCK_K; N <= 32 after every instruction. 0 gives no FP8 instruction at all: operands become float16. So they
    do on sm_80, which has none. `acc += tl.dot(a, b)` adds once per BLOCK_K.
    """
    plans = {"triton.sm90": GemmPlan("sm90.wgmma"), "triton.sm90.imprecise0": GemmPlan("sm90.mma", widen="float16")}
    for every in (32, 64, 128):
        plans[f"triton.sm90.imprecise{every}"] = GemmPlan("sm90.wgmma", flush=every, block_k=128)
    for block in (32, 64, 128, 256):
        plans[f"triton.sm90.add{block}"] = GemmPlan("sm90.wgmma", flush=block)
    plans["triton.sm80"] = GemmPlan("sm80.mma", widen="float16")
    return plans


def _cutlass() -> dict[str, GemmPlan]:
    """FP8 on Hopper (cutlass/gemm/collective/fp8_accumulation.hpp): one chain with fast accumulation, else promoted to
    float32 every four instructions; the block-wise collective multiplies the factors in at the same time."""
    slow = GemmPlan("sm90.wgmma", flush=128)
    return {
        "cutlass.sm90.fast": GemmPlan("sm90.wgmma"),
        "cutlass.sm90.slow": slow,
        "cutlass.sm90.blockwise": dataclasses.replace(slow, factors=Place.FLUSH),
    }


PLANS: Mapping[str, GemmPlan] = MappingProxyType(
    {
        **_triton(),
        **_cutlass(),
        # DeepGEMM's 1d2d kernel on Hopper: four instructions, then final = fma(sa * sb, sum, final).
        "deepgemm.sm90": GemmPlan("sm90.wgmma", flush=128, factors=Place.FLUSH, product=Product.FIRST),
    }
)
"""The named plans. Several names may stand for one plan; its `str()` is the first, or the instruction's if that is all
there is to say."""


@functools.cache
def _names() -> dict[GemmPlan, str]:
    names: dict[GemmPlan, str] = {}
    for name, plan in PLANS.items():
        bare = plan == GemmPlan(plan.instruction)  # one chain and no more: its instruction says so best
        names.setdefault(plan, plan.instruction if bare else name)
    return names
