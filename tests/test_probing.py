"""Probes on the simulator: every row is recognised as itself, and every change of one as what was changed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fp8sim import mma
from fp8sim.analysis import explaining
from fp8sim.analysis.probing import (
    Inputs,
    Interface,
    StandIn,
    gemms,
    invariances,
    measure,
    products,
    recognise,
    stream,
    streaming,
)
from fp8sim.analysis.probing.instruments import Instrument, dots
from fp8sim.analysis.probing.measuring import PROPERTIES
from fp8sim.analysis.probing.operands import Array, encoded
from fp8sim.analysis.probing.streaming import near_one, random_inputs
from fp8sim.mma import MODELS, Adder, MmaModel, Output, parse
from fp8sim.mma.models import core_fields
from fp8sim.mma.plans import GemmPlan
from fp8sim.mma.plans import parse as parse_plan

BY_ARITHMETIC: dict[tuple[int, ...], list[MmaModel]] = {}
for _row in MODELS.values():
    BY_ARITHMETIC.setdefault(tuple(core_fields(_row)), []).append(_row)
EVERY = [rows[0] for rows in BY_ARITHMETIC.values()]
"""One row of each arithmetic."""

TYPICAL = list({(row.adder, row.output, row.fraction_bits, row.terms, row.scale_format): row for row in EVERY}.values())


def same_arithmetic(model: MmaModel) -> set[str]:
    return {row.name for row in BY_ARITHMETIC[tuple(core_fields(model))]}


def check_recognised(model: MmaModel) -> None:
    found = recognise(StandIn(model))
    assert set(found.matches) == same_arithmetic(model)
    assert (found.differences, found.differing, found.changes) == ({}, 0, ())


@pytest.mark.parametrize("model", TYPICAL, ids=str)
def test_a_row_is_recognised_as_itself(model: MmaModel) -> None:
    check_recognised(model)


@pytest.mark.full
@pytest.mark.parametrize("model", EVERY, ids=str)
def test_every_row_is_recognised_as_itself(model: MmaModel) -> None:
    check_recognised(model)


@pytest.mark.parametrize("model", [row for row in TYPICAL if row.adder is Adder.TRUNCATED], ids=str)
def test_what_is_measured_is_what_the_row_says(model: MmaModel) -> None:
    found = measure(StandIn(model))
    assert list(found) == list(PROPERTIES)
    assert found["c_fraction_bits"] == model.fraction_bits
    assert found["result_bits"] == model.output.kept_bits
    assert found["rounding"] == ("ties to even" if model.output.to_nearest else "toward zero")
    assert found["fraction_bits"] in (model.fraction_bits, None)
    assert found["products_per_step"] in (model.terms, None)
    assert found["zero_exponent"] in (model.zero_exponent, None)
    assert {found[f"subnormal_{name}"] for name in ("a", "b", "c", "result")} <= {"kept", None}
    if model.a_format in ("float16", "bfloat16", "tf32", "float8_e5m2"):  # products of any size
        assert None not in (found["fraction_bits"], found["products_per_step"])
        assert found["infinity_times_zero"] is not None
    if model.a_format in ("bfloat16", "tf32") or (model.a_format, model.accumulator) == ("float16", "float16"):
        assert found["zero_exponent"] == model.zero_exponent


def test_halves_of_an_emulated_instruction_are_seen() -> None:
    found = measure(StandIn(parse("sm90.mma.e4m3.e4m3.f32")))
    assert found["step_places"] == "0-1, 4-5, 8-9, 12-13, 16-17, 20-21, 24-25, 28-29"
    assert (found["products_per_step"], found["fraction_bits"], found["c_fraction_bits"]) == (16, 25, None)
    assert found["rounding"] == "ties to even"


def test_flushing_is_seen() -> None:
    found = measure(StandIn(parse("cdna2.mfma.bf16.bf16.f32")))
    assert {found[f"subnormal_{name}"] for name in ("a", "b", "c", "result")} == {"flushed"}


@pytest.mark.parametrize(
    ("rounded", "expected"),
    [
        (lambda x: np.trunc(x), "toward zero"),
        (lambda x: np.rint(x), "ties to even"),
        (lambda x: np.copysign(np.floor(abs(x) + 0.5), x), "ties away from zero"),
        (lambda x: np.floor(x), "toward negative"),
        (lambda x: np.ceil(x), "toward positive"),
        (lambda x: np.where(x == np.trunc(x), x, 2 * np.floor(x / 2) + 1), "to odd"),
    ],
)
def test_every_rounding_has_its_name(rounded: Callable[[Array], Array], expected: str) -> None:
    """Exact sums, rounded once to 24 bits in some way."""

    class Rounding:
        takes = Interface.of(parse("sm90.wgmma.bf16.bf16.f32"))
        tile = (1, 1)

        def run(self, inputs: Inputs) -> Array:
            a, b = (
                x.astype(np.uint32).__lshift__(16).view(np.float32).astype(np.float64) for x in (inputs.a, inputs.b)
            )
            exact = np.einsum("imk,ink->imn", a, b) + inputs.c.view(np.float32).astype(np.float64)
            unit = 2.0 ** (np.floor(np.log2(np.maximum(abs(exact), 1e-30))) - 23)
            d: Array = (rounded(exact / unit) * unit).astype(np.float32).view(np.uint32)
            return d

    with np.errstate(all="ignore"):
        assert measure(Rounding())["rounding"] == expected


# Mutants: a row with one field changed.


def replaced(name: str, **fields: Any) -> StandIn:
    return StandIn(dataclasses.replace(parse(name), **fields))


def toward_zero_to_binary16() -> Any:
    return SimpleNamespace(label="RZ-FP16", accumulator="float16", kept_bits=10, to_nearest=False)


MUTANTS: dict[str, tuple[StandIn, str, str]] = {
    "one more fraction bit": (replaced("sm90.wgmma.e4m3.e4m3.f32", fraction_bits=14), "fraction_bits", "14"),
    "one fraction bit less": (replaced("sm90.wgmma.bf16.bf16.f32", fraction_bits=24), "fraction_bits", "24"),
    "one less, binary16": (replaced("sm80.mma.f16.f16.f16", fraction_bits=23), "fraction_bits", "23"),
    "one less, 4 bits": (replaced("sm100.tcgen05.e2m1.e2m1.f32", fraction_bits=24), "fraction_bits", "24"),
    "one less, in groups": (
        replaced("sm100.tcgen05.mxf4nvf4.block16.ue4m3.e2m1.e2m1.f32", fraction_bits=34),
        "fraction_bits",
        "34",
    ),
    "emulated on Ampere's unit": (replaced("sm90.mma.e4m3.e4m3.f32", fraction_bits=24), "fraction_bits", "24"),
    "half the products": (replaced("sm90.wgmma.tf32.tf32.f32", terms=4), "terms", "4"),
    "twice the products": (replaced("sm80.mma.bf16.bf16.f32", terms=16), "terms", "16"),
    "to nearest": (replaced("sm90.wgmma.f16.f16.f32", output=Output.RNE_FP32), "output", "RNE-FP32"),
    "all bits of the result": (replaced("sm90.wgmma.e5m2.e5m2.f32", output=Output.RZ_FP32), "output", "RZ-FP32"),
    "binary16 toward zero": (
        replaced("sm90.wgmma.f16.f16.f16", output=toward_zero_to_binary16()),
        "output",
        "RZ-FP16",
    ),
    "zeros one binade lower": (replaced("sm90.wgmma.bf16.bf16.f32", zero_exponent=-134), "zero_exponent", "-134"),
    "zeros one binade higher": (replaced("sm80.mma.f16.f16.f16", zero_exponent=-19), "zero_exponent", "-19"),
    "a flushed": (
        StandIn(parse("sm90.wgmma.e4m3.e4m3.f32"), flushes=frozenset("a")),
        "subnormals",
        "of a flushed",
    ),
    "all flushed": (
        StandIn(parse("sm80.mma.f16.f16.f32"), flushes=frozenset("abcd")),
        "subnormals",
        "of a, b, c, d flushed",
    ),
    "d flushed": (StandIn(parse("sm80.mma.f16.f16.f16"), flushes=frozenset("d")), "subnormals", "of d flushed"),
    "steps from the end": (StandIn(parse("sm89.mma.e4m3.e4m3.f32"), descending=True), "steps", "descending"),
    "c afterwards": (
        StandIn(parse("sm90.wgmma.e4m3.e4m3.f32"), c_last=True),
        "c",
        "added afterwards, ties to even",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_change_is_named(name: str) -> None:
    instrument, field, value = MUTANTS[name]
    found = recognise(instrument)
    assert found.matches == ()
    assert found.nearest is not None
    named = {(change.field, change.found) for change in found.changes if change.row == instrument.model.name}
    assert (field, value) in named
    assert {field for field, _ in named} == {field}
    assert found.differences or found.differing


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("one fraction bit less", {"fraction_bits", "c_fraction_bits"}),
        ("half the products", {"products_per_step", "step_places", "steps"}),
        ("to nearest", {"rounding"}),
        ("all bits of the result", {"result_bits"}),
        ("zeros one binade lower", {"zero_exponent"}),
        ("a flushed", {"subnormal_a"}),
        ("steps from the end", {"steps"}),
    ],
)
def test_a_change_is_measured(name: str, properties: set[str]) -> None:
    instrument, _, _ = MUTANTS[name]
    before, after = measure(StandIn(parse(instrument.model.name))), measure(instrument)
    assert {key for key in PROPERTIES if before[key] != after[key]} >= properties


class Peculiar:
    """As a row, but with another NaN, or with the last bit of results lost."""

    def __init__(self, name: str, *, nan: int | None = None, mask: int = -1) -> None:
        self.inner, self.nan, self.mask = StandIn(parse(name)), nan, mask
        self.takes, self.tile = self.inner.takes, self.inner.tile

    def run(self, inputs: Inputs) -> Array:
        d = self.inner.run(inputs)
        numbers = d.view(self.takes.accumulator)
        if self.nan is not None:
            d[np.isnan(numbers)] = self.nan
        with np.errstate(invalid="ignore"):
            return np.where(abs(numbers) > 0.5, d & d.dtype.type(self.mask & (2 ** (8 * d.itemsize) - 1)), d)


@pytest.mark.parametrize(
    ("name", "nan", "matches"),
    [
        ("sm80.mma.f64.f64.f64", 0x7FFFFFFFFFFFFFFF, True),  # IEEE 754 leaves it open
        ("cdna3.mfma.bf16.bf16.f32", 0xFFC00001, True),
        ("sm80.mma.bf16.bf16.f32", 0x7FC00000, False),
    ],
)
def test_a_nan_counts_where_it_is_specified(name: str, nan: int, matches: bool) -> None:
    found = recognise(Peculiar(name, nan=nan))
    assert (name in found.matches) == matches
    assert found.nearest == name
    assert ("nan" in found.differences) != matches
    assert recognise(Peculiar(name, mask=~1)).matches == ()


def test_two_changes_are_no_single_one() -> None:
    found = recognise(replaced("sm90.wgmma.bf16.bf16.f32", fraction_bits=27, output=Output.RNE_FP32))
    assert (found.matches, found.changes) == ((), ())
    assert {"fraction_bits", "rounding"} <= found.differences.keys()


def test_a_device_of_tiles_is_measured_as_single_sums_are() -> None:
    model = parse("sm89.mma.e5m2.e4m3.f32")
    assert measure(StandIn(model, tile=(16, 8))) == measure(StandIn(model))


def test_single_sums_of_a_tile_are_in_order() -> None:
    model = parse("sm90.wgmma.bf16.bf16.f32")
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**14, (21, 16), np.uint16) for _ in "ab")
    c = rng.standard_normal(21).astype(np.float32)
    wanted = [mma.chain(x[None], y[None], z.reshape(1, 1), model=model).item() for x, y, z in zip(a, b, c, strict=True)]
    found = dots(StandIn(model, tile=(16, 8)), a, b, c.view(np.uint32))
    assert found.view(np.float32).tolist() == wanted


# Invariances


class Careless:
    """As another, but the first row of a tile gets one more than it should; or every one of a chain does."""

    def __init__(self, inner: StandIn, fault: str) -> None:
        self.inner, self.fault = inner, fault
        self.takes, self.tile = inner.takes, inner.tile

    def run(self, inputs: Inputs) -> Array:
        d = self.inner.run(inputs)
        if self.fault == "row":
            d[:, 0] += 1
        if self.fault == "chain" and inputs.a.shape[-1] > self.takes.k:
            d += 1
        return d


@pytest.mark.parametrize("model", ["sm90.wgmma.e4m3.e4m3.f32", "sm120.mma.mxf8f6f4.e5m2.e4m3.f32"])
def test_invariances_hold_and_are_noticed_where_they_do_not(model: str) -> None:
    good = StandIn(parse(model), tile=(16, 8))
    assert [invariances.chained(good, 512).differing, invariances.rows_and_columns(good, 512).differing] == [0, 0]
    assert invariances.chained(Careless(good, "chain"), 512).differing > 100
    assert invariances.rows_and_columns(Careless(good, "row"), 512).differing >= 32
    ignores = SimpleNamespace(run=lambda x: good.run(dataclasses.replace(x, c=np.zeros_like(x.c))))
    assert invariances.ignoring_c(good, ignores, 512).differing == 0  # type: ignore[arg-type]
    assert invariances.ignoring_c(good, good, 512).differing > 50
    negates = SimpleNamespace(run=lambda x: good.run(dataclasses.replace(x, a=x.a ^ np.uint8(128))))
    assert invariances.negated(good, negates, 512).differing == 0  # type: ignore[arg-type]
    assert invariances.negated(good, good, 512).differing > 50
    assert invariances.same(good, good, "", 512).differing == 0


# Random bits


def test_random_bits_are_those_of_the_seed_and_of_every_kind() -> None:
    takes = Interface.of(parse("sm90.wgmma.e5m2.e4m3.f16"))
    draws = [random_inputs(takes, (64, 8), 256, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert np.array_equal(draws[0].a, draws[1].a)
    assert not np.array_equal(draws[0].a, draws[2].a)
    assert len(np.unique(draws[0].a)) == len(np.unique(draws[0].b)) == 256
    kinds = [set(np.unique(draws[0].a[part] >> 2 & 31)) for part in (slice(10, 100), slice(150, None))]
    assert kinds[0] == set(range(31))  # any exponent of a finite number
    assert kinds[1] - {0} == set(range(11, 19))  # near 1
    near = near_one(np.arange(256, dtype=np.uint8), "float8_e4m3fn")
    assert set((near >> 3) & 15) - {0} <= set(range(3, 11))
    assert (near[0], near[128]) == (0, 128)


@pytest.mark.parametrize("name", ["sm90.wgmma.bf16.bf16.f32", "sm90.mma.f16.f16.f16", "sm90.mma.f64.f64.f64"])
def test_random_bits_agree(name: str) -> None:
    model = parse(name)
    tally = stream(StandIn(model, tile=(16, 8)), model, 1000)
    assert (tally.compared, tally.differing, tally.cases) == (1024, 0, ())


def test_every_output_of_every_batch_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each batch and its last are wrong, and no batch has the bits of another."""
    model, seen = parse("sm90.wgmma.bf16.bf16.f32"), []

    class WrongAtBothEnds(StandIn):
        def run(self, inputs: Inputs) -> Array:
            d = super().run(inputs)
            d.reshape(-1)[[0, -1]] ^= 1
            seen.append(inputs.a.tobytes())
            return d

    monkeypatch.setattr(streaming, "BATCH", 1024)
    tally = stream(WrongAtBothEnds(model, tile=(16, 8)), model, 5000)
    assert (tally.compared, tally.differing) == (40 * 128, 10)
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sm90.wgmma.bf16.bf16.f32", {"fraction_bits": 24}),
        ("sm90.wgmma.f16.f16.f16", {"output": toward_zero_to_binary16()}),
    ],
)
def test_a_difference_becomes_a_case(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    advances: list[str] = []
    instrument = StandIn(dataclasses.replace(parse(name), **fields), tile=(64, 8))
    tally = stream(instrument, parse(name), 1 << 20, folder=tmp_path, advance=advances.append)
    assert tally.differing > 100
    assert advances == [name] * 2
    assert len(tally.cases) == len(list(tmp_path.glob("*.npz"))) == 8
    case = explaining.load_case(tally.cases[0])
    assert case.shape == (1, 1, 16)
    explanation = case.explain()
    assert explanation.verdict == "none"
    assert [str(members.first.plan) for members in explanation.rejected] == [str(parse_plan(name))]


# The order of a GEMM


@pytest.mark.parametrize("fast", [False, True])
def test_torch_is_asked_for_a_times_b_transposed_and_for_the_accumulation(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_mm, told = torch._scaled_mm, []

    def recorded(*operands: torch.Tensor, **options: Any) -> torch.Tensor:
        told.append(options["use_fast_accum"])
        return scaled_mm(*operands, **options)

    monkeypatch.setattr(torch, "_scaled_mm", recorded)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (16, 32)).astype(np.float64) for _ in "ab")
    codes = [encoded(x, "float8_e4m3fn") for x in (a, b)]
    name = f"torch._scaled_mm(use_fast_accum={fast})"
    by_name = {row.subject.name: row.subject.gemm for row in products.rows("sm90")}
    assert np.array_equal(by_name[name](*codes), a @ b.T)
    assert np.array_equal(by_name[f"{name}, factors of rows"](*codes), encoded(a @ b.T, "bfloat16"))
    assert told == [fast, fast]


@pytest.mark.parametrize(
    ("plan", "period", "boundaries"),
    [
        ("sm90.wgmma", None, 0),
        ("sm90.wgmma;flush=128", 128, 3),
        ("sm90.wgmma;flush=64", 64, 7),
        ("sm90.wgmma;split_k=4;merge=tree", 128, 3),
        ("sm90.wgmma;flush=128;split_k=3", None, 4),
    ],
)
def test_the_order_of_a_gemm(plan: str, period: int | None, boundaries: int) -> None:
    wanted = parse_plan(plan)
    order = gemms.order_of(gemms.Subject(plan, gemms.stand_in(wanted), "sm90.wgmma"), 512)
    assert (order.period, len(order.boundaries)) == (period, boundaries)
    segments = [chain for part in wanted.segments(512, 32) for chain in part]
    assert list(order.boundaries) == [start for start, _ in segments if start]
    assert len(order.plans) == 1


def test_an_unknown_order_has_no_plan() -> None:
    chain = gemms.stand_in(GemmPlan("sm90.wgmma"))
    backwards = gemms.Subject("backwards", lambda a, b: chain(a[:, ::-1].copy(), b[:, ::-1].copy()), "sm90.wgmma")
    order = gemms.order_of(backwards, 256)
    assert order.plans == ()
    assert order.surprise is not None
    assert order.surprise.startswith("backwards, K = 256: no plan gives its bits; the nearest is ")


def test_an_instrument_is_any_object_of_that_kind() -> None:
    instrument: Instrument = Careless(StandIn(parse("sm90.wgmma.e4m3.e4m3.f32")), "row")
    assert recognise(instrument).matches == ()
