"""Every instruction against its definition in plain integers, on every instruction set, thread and layout."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import mma_cases
import mma_oracle
import numpy as np
import pytest
import torch
from mma_cases import CATEGORIES, Case, bits

from fp8sim import _core, mma
from fp8sim.mma import MODELS, Adder, MmaModel, parse
from fp8sim.mma.models import core_fields

Array = np.ndarray[Any, Any]


def expected(model: MmaModel, case: Case) -> Array:
    m, n = case.a.shape[0], case.b.shape[0]
    d = np.empty((m, n), model.accumulator.replace("float", "uint"))
    c = None if case.c is None else bits(case.c)
    for i, j in np.ndindex(m, n):
        scales = {name: codes[i if name == "a_scales" else j].tolist() for name, codes in case.scales.items()}
        start = 0 if c is None else int(c[i, j])
        d[i, j] = mma_oracle.chain(model, case.a[i].tolist(), case.b[j].tolist(), start, **scales)
    return d


def assert_same(found: Array, wanted: Array, what: str) -> None:
    __tracebackhide__ = True
    if not np.array_equal(found, wanted):
        first = tuple(np.argwhere(found != wanted)[0])
        count = int((found != wanted).sum())
        pytest.fail(f"{what}: {count} differ, first {first}: got {found[first]:#x}, expected {wanted[first]:#x}")


def distinct(rows: list[MmaModel]) -> list[MmaModel]:
    """One row for each arithmetic: generations share many."""
    return list({tuple(core_fields(row)): row for row in rows}.values())


DISTINCT = distinct(list(MODELS.values()))


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("adder", Adder)
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_instruction_is_its_definition(adder: Adder, category: str) -> None:
    """All types; a chain of two instructions, the second not full."""
    for model in (row for row in DISTINCT if row.adder is adder):
        case = mma_cases.case(model, category, 2, 3, model.k + max(1, model.k - 3))
        wanted = expected(model, case)
        for isa in _core.isas():
            _core.set_isa(isa)
            assert_same(case.run(model), wanted, f"{model} {category} {isa}")


@pytest.mark.full
@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("seed", range(20))
def test_many_elements_of_every_instruction(seed: int) -> None:
    for model, category in itertools.product(DISTINCT, CATEGORIES):
        case = mma_cases.case(model, category, 3, 5, 3 * model.k - 1, seed)
        wanted = expected(model, case)
        for isa in _core.isas():
            _core.set_isa(isa)
            assert_same(case.run(model), wanted, f"{model} {category} {isa}")


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("shape", [(9, 37, 131), (1, 1, 1), (5, 16, 256)], ids=str)
def test_every_instruction_set_is_the_interpreter(shape: tuple[int, int, int]) -> None:
    for model in DISTINCT:
        for category in ("uniform", "wide", "zeros", "specials", "cancellation"):
            case = mma_cases.case(model, category, *shape)
            _core.set_isa("portable")
            wanted = case.run(model)
            for isa in _core.isas()[1:]:
                _core.set_isa(isa)
                assert_same(case.run(model), wanted, f"{model} {category} {shape} {isa}")


TYPICAL = [
    parse(name)
    for name in (
        "sm90.wgmma.e4m3.e4m3.f32",
        "sm80.mma.f16.f16.f32",
        "sm90.wgmma.bf16.bf16.f32",
        "sm90.mma.e5m2.e5m2.f16",
        "sm100.tcgen05.mxf8f6f4.e4m3.e2m1.f32",
        "sm100.tcgen05.mxf4nvf4.block16.ue4m3.e2m1.e2m1.f32",
        "cdna3.mfma.fp8.bf8.f32",
    )
]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = _core.get_num_threads()
    _core.set_num_threads(2)
    yield
    _core.set_num_threads(before)


@pytest.mark.usefixtures("any_isa", "two_threads")
@pytest.mark.parametrize("model", TYPICAL, ids=str)
def test_neither_threads_nor_flushing_matter(model: MmaModel) -> None:
    """Large enough for several threads; the process flushes subnormal numbers and rounds upward."""
    case = mma_cases.case(model, "wide", 70, 61, 2 * model.k)
    _core.set_num_threads(1)
    wanted = case.run(model)
    assert torch.set_flush_denormal(True)
    try:
        for isa, threads in itertools.product(_core.isas(), (1, 2)):
            _core.set_isa(isa)
            _core.set_num_threads(threads)
            assert_same(case.run(model), wanted, f"{isa}, {threads} threads")
    finally:
        torch.set_flush_denormal(False)


def strided(x: Array) -> Array:
    """The same elements, neither contiguous nor in order of memory."""
    wide = np.zeros((x.shape[1], 2 * x.shape[0]), x.dtype)
    view = wide.T[::-2]
    view[...] = x
    return view


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("model", TYPICAL, ids=str)
def test_strides_do_not_matter(model: MmaModel) -> None:
    case = mma_cases.case(model, "normal", 6, 19, model.k + 5)
    other = Case(
        strided(case.a),
        strided(case.b),
        None if case.c is None else strided(case.c),
        {name: strided(codes) for name, codes in case.scales.items()},
    )
    for isa in _core.isas():
        _core.set_isa(isa)
        assert_same(other.run(model), case.run(model), isa)


@pytest.mark.parametrize("model", TYPICAL, ids=str)
def test_leading_dimensions_broadcast(model: MmaModel) -> None:
    case = mma_cases.case(model, "normal", 6, 5, model.k)
    a, b = np.stack([case.a, case.a[::-1]])[:, None], np.stack([case.b, case.b[::-1], case.b])
    scales = {}
    if case.scales:
        left, right = case.scales["a_scales"], case.scales["b_scales"]
        scales = {"a_scales": np.stack([left, left[::-1]])[:, None], "b_scales": np.stack([right, right[::-1], right])}
    d = bits(mma.chain(a, b, model=model, **scales))
    assert d.shape == (2, 3, 6, 5)
    plain = Case(case.a, case.b, None, case.scales).run(model)
    for i, j in np.ndindex(2, 3):
        rows, columns = (slice(None, None, -1) if flipped else slice(None) for flipped in (i == 1, j == 1))
        assert_same(d[i, j], plain[rows, columns], f"[{i}, {j}]")


def test_tensors_and_arrays_of_the_format_itself() -> None:
    model = parse("sm90.wgmma", "e4m3", "e4m3")
    case = mma_cases.case(model, "normal", 4, 8, 64)
    wanted = Case(case.a, case.b, None, {}).run(model)
    tensors = [torch.from_numpy(x).view(torch.float8_e4m3fn) for x in (case.a, case.b)]
    d = mma.chain(*tensors, model=model)
    assert isinstance(d, torch.Tensor)
    assert_same(bits(d.numpy()), wanted, "torch")
    arrays = [x.view(ml_dtypes.float8_e4m3fn) for x in (case.a, case.b)]
    assert_same(bits(mma.chain(*arrays, model=model)), wanted, "ml_dtypes")


def test_in_place_and_into_out() -> None:
    model = parse("sm80.mma", "f16")
    case = mma_cases.case(model, "normal", 5, 7, 48)
    assert case.c is not None
    wanted = case.run(model)
    d = case.c.copy()
    assert mma.chain(case.a, case.b, d, model=model, out=d) is d
    assert_same(bits(d), wanted, "c itself")
    tensor = torch.empty(5, 7)
    mma.chain(torch.from_numpy(case.a), torch.from_numpy(case.b), torch.from_numpy(case.c), model=model, out=tensor)
    assert_same(bits(tensor.numpy()), wanted, "tensor")


@pytest.mark.parametrize("shape", [(0, 3, 32), (2, 0, 32), (2, 3, 0)], ids=str)
def test_nothing_to_add(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    c = np.arange(m * n, dtype=np.float32).reshape(m, n)
    d = mma.chain(np.zeros((m, k), np.uint8), np.zeros((n, k), np.uint8), c, model="sm90.wgmma.e4m3.e4m3.f32")
    np.testing.assert_array_equal(d, c)


@pytest.mark.usefixtures("any_isa")
def test_sums_of_more_than_32_bits() -> None:
    """Sixteen products just below 4 and an accumulator as large: the sum of the cut terms has 32 bits and a sign."""
    for name, code, c in (("f16", 0x7BFF, 4.0e9), ("bf16", 0x7EFF, 1.0e38), ("e4m3", 0x7E, 2.0e5)):
        model = parse("sm100.tcgen05", name)
        codes = np.full((4, model.k), code, mma.operand_dtype(model.a_format))
        start = np.full((4, 4), c, np.float32)
        wanted = expected(model, Case(codes, codes, start, {}))
        for isa in _core.isas():
            _core.set_isa(isa)
            assert_same(bits(mma.chain(codes, codes, start, model=model)), wanted, f"{name} {isa}")


def test_truncation_of_sm90_at_14_bits() -> None:
    """1 + 2^-13 is kept, 1 + 2^-14 is not: what "14 bits" means."""
    model = parse("sm90.wgmma", "e5m2")
    b = np.zeros((1, 32), np.uint8)
    b[0, :2] = 0x3C, 0x3C
    a = np.zeros((2, 32), np.uint8)
    a[:, 0] = 0x3C
    a[:, 1] = 0x08, 0x04  # 2^-13 and 2^-14
    np.testing.assert_array_equal(mma.chain(a, b, model=model), [[1 + 2.0**-13], [1.0]])


# Errors.

A, B = np.zeros((2, 32), np.uint8), np.zeros((3, 32), np.uint8)
NAME = "sm90.wgmma.e4m3.e4m3.f32"
SCALED = "sm100.tcgen05.mxf8f6f4.e4m3.e4m3.f32"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A, B), {"model": "sm91.wgmma"}, ValueError, "no instruction: there are sm70.mma, "),
        ((A, B), {"model": "sm90.wgmma.e2m1.e2m1.f32"}, ValueError, "sm90.wgmma accepts f16.f16.f32, "),
        ((A[0], B), {}, ValueError, r"expected \[..., M, K\] and \[..., N, K\]"),
        ((A, B[:, :31]), {}, ValueError, r"a_codes \[2, 32\] and b_codes \[3, 31\]"),
        ((np.stack([A, A]), np.stack([B, B, B])), {}, ValueError, "do not broadcast"),
        ((A.astype(np.int16), B), {}, TypeError, "a_codes has dtype int16: expected uint8 or float8_e4m3fn"),
        ((A.tolist(), B), {}, TypeError, "a_codes is a list"),
        ((A, B, np.zeros((2, 3))), {}, TypeError, "c has dtype float64: expected float32"),
        ((A, B, np.zeros((3, 2), np.float32)), {}, ValueError, r"c has shape \[3, 2\]: expected \[2, 3\]"),
        ((A, B), {"a_scales": A}, ValueError, "takes no scale factors"),
        ((A, B), {"model": SCALED}, ValueError, "a_scales is missing: .* one e8m0 for 32 along K"),
        ((A, B), {"model": SCALED, "a_scales": A, "b_scales": B}, ValueError, r"expected \[..., 2, 1\]"),
        ((A, B), {"out": np.zeros((3, 2), np.float32)}, ValueError, "out has shape"),
        ((A, B), {"out": np.zeros((2, 6), np.float32)[:, ::2]}, ValueError, "not C-contiguous"),
        ((A + 64, B), {"model": "sm120.mma.e2m3.e2m3.f32"}, ValueError, "codes contain 0x40"),
        ((torch.zeros(2, 32, dtype=torch.uint8, device="meta"), B), {}, ValueError, "a_codes is on meta"),
    ],
)
def test_bad_input_is_named(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mma.chain(*arguments, **{"model": NAME, **options})


@pytest.mark.parametrize("index", range(36))
def test_the_core_takes_no_model_that_it_could_not_compute(index: int) -> None:
    """Whatever one field says, the call computes something or refuses; it never leaves its memory."""
    for model, value in itertools.product(TYPICAL, (-(2**31), -1, 0, 1, 63, 64, 2**31 - 1)):
        fields = core_fields(model)
        fields[index] = value
        case = mma_cases.case(model, "uniform", 3, 5, 70)
        d = np.empty((3, 5), model.accumulator.replace("float", "uint"))
        with contextlib.suppress(ValueError):
            _core.mma_chain(case.a, case.b, None, d, fields, *case.scales.values())


# Names.


def test_names_round_trip() -> None:
    assert len(MODELS) == len({model.name for model in MODELS.values()})
    for name, model in MODELS.items():
        assert str(model) == name
        assert parse(name) == model == parse(model)
        assert parse(model.instruction, model.a_format, model.b_format, model.accumulator) == model


def test_short_forms() -> None:
    assert str(parse("sm90.wgmma", "e4m3", "float8_e5m2")) == "sm90.wgmma.e4m3.e5m2.f32"
    assert str(parse("sm90.wgmma.e4m3", b_format="e5m2")) == "sm90.wgmma.e4m3.e5m2.f32"
    assert str(parse("sm90.wgmma.f16.f16", accumulator="float16")) == "sm90.wgmma.f16.f16.f16"
    assert str(parse("sm86.mma", "bf16")) == "sm80.mma.bf16.bf16.f32"
    assert str(parse("sm80.mma", "float64")) == "sm80.mma.f64.f64.f64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sm90.wgmma",), "needs a_format= and b_format=: it accepts f16.f16.f32"),
        (("sm90.wgmma", "e2m1"), "a_format=float4_e2m1fn, b_format=float4_e2m1fn: sm90.wgmma accepts"),
        (("sm90.wgmma", "bf16", "bf16", "float16"), "accumulator=float16: sm90.wgmma accepts"),
        (("sm90.wgmma.e4m3.e4m3.f32", "e5m2"), "accepts e4m3.e4m3.f32"),
        (("wgmma",), "is no instruction: there are sm70.mma"),
    ],
)
def test_unknown_names_and_formats(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*arguments)


def test_evidence_is_of_every_category() -> None:
    for name, model in MODELS.items():
        assert tuple(model.evidence) == mma.CATEGORIES
        assert (model.evidence["normal"].kind == "hardware") >= (name in mma.CAPTURED)
        for evidence in model.evidence.values():
            assert evidence.kind in ("hardware", "reference", "inferred")
            assert bool(evidence.devices) == (evidence.kind == "hardware") == bool(evidence.outputs)
    assert set(mma.CAPTURED) <= set(MODELS)
