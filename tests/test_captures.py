"""The instructions against what real tensor cores returned, and which changes of them that would have noticed."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mma_cases
import mma_oracle
import numpy as np
import pytest
from captures import CaptureSet, capture_sets, needs_captures
from mma_cases import CATEGORIES

from fp8sim import _core, mma
from fp8sim.mma import CAPTURED, OUTPUTS_PER_CAPTURE, Adder, MmaModel, Output

PAGE = Path(__file__).resolve().parents[1] / "docs/tensor-cores.md"


@needs_captures
def test_every_output_of_every_capture_set() -> None:
    """48 sets, 96,000 outputs, no difference."""
    differences = {capture.name: capture.differences(capture.model) for capture in capture_sets()}
    assert len(differences) == 48
    assert {len(capture.d) for capture in capture_sets()} == {OUTPUTS_PER_CAPTURE}
    assert differences == dict.fromkeys(differences, 0)


@needs_captures
@pytest.mark.usefixtures("any_isa")
def test_every_instruction_set_agrees_with_the_captures() -> None:
    for isa in _core.isas():
        _core.set_isa(isa)
        for capture in capture_sets():
            assert capture.differences(capture.model, slice(0, 50)) == 0, f"{capture.name} {isa}"


@needs_captures
def test_the_evidence_is_what_the_captures_show() -> None:
    devices: dict[str, list[str]] = {}
    with_c: dict[str, list[str]] = {}
    for capture in capture_sets():
        devices.setdefault(str(capture.model), []).append(capture.gpu)
        if (capture.c != 0).all():
            with_c.setdefault(str(capture.model), []).append(capture.gpu)
        assert capture.a.shape[1] == capture.model.k
        chained = capture.model.k > capture.model.terms
        assert CAPTURED[str(capture.model)].chained == chained
    assert {name: sorted(row.devices) for name, row in CAPTURED.items()} == {k: sorted(v) for k, v in devices.items()}
    assert {name: sorted(row.nonzero_c) for name, row in CAPTURED.items() if row.nonzero_c} == {
        name: sorted(found) for name, found in with_c.items()
    }


# Mutants: one parameter changed. `None` where an instruction has nothing to change.


def _replaced(**changes: Callable[[MmaModel], Any]) -> Callable[[MmaModel], MmaModel | None]:
    def mutate(model: MmaModel) -> MmaModel | None:
        new = {name: change(model) for name, change in changes.items()}
        return None if None in new.values() else dataclasses.replace(model, **new)

    return mutate


def _other_rounding(model: MmaModel) -> Any:
    """binary16 toward zero; binary32 toward zero at all its bits, for the one that keeps 13."""
    if model.accumulator == "float16":
        return SimpleNamespace(label="RZ-FP16", accumulator="float16", kept_bits=10, to_nearest=False)
    return Output.RZ_FP32 if model.output is Output.RZ_E8M13 else Output.RNE_FP32


def _half_terms(model: MmaModel) -> int | None:
    return None if model.adder is Adder.EMULATED else model.terms // 2


def _twice_terms(model: MmaModel) -> int | None:
    return None if model.terms == model.k else model.terms * 2


MUTATIONS: dict[str, Callable[[MmaModel], MmaModel | None]] = {
    "F + 1": _replaced(fraction_bits=lambda m: m.fraction_bits + 1),
    "F - 1": _replaced(fraction_bits=lambda m: m.fraction_bits - 1),
    "L halved": _replaced(terms=_half_terms),
    "L doubled": _replaced(terms=_twice_terms),
    "rho": _replaced(output=_other_rounding),
    "e_zero + 1": _replaced(zero_exponent=lambda m: m.zero_exponent + 1),
    "e_zero - 1": _replaced(zero_exponent=lambda m: m.zero_exponent - 1),
}
ORACLE_MUTATIONS: dict[str, tuple[dict[str, Any], Callable[[MmaModel], bool]]] = {
    "c not aligned": ({"with_c": False}, lambda m: m.adder is Adder.TRUNCATED),
    "order": ({"backwards": True}, lambda m: m.k > m.terms),
}
CHUNK = 100


def kills(capture: CaptureSet, differs: Callable[[slice], bool]) -> bool:
    return any(differs(slice(start, start + CHUNK)) for start in range(0, len(capture.d), CHUNK))


def oracle_differs(capture: CaptureSet, mutation: dict[str, Any], rows: slice) -> bool:
    operands = zip(capture.a[rows].tolist(), capture.b[rows].tolist(), capture.c[rows].tolist(), strict=True)
    found = [mma_oracle.chain(capture.model, a, b, c, **mutation) for a, b, c in operands]
    return found != capture.d[rows].tolist()


def mutants(model: MmaModel) -> Iterator[str]:
    yield from (name for name, mutate in MUTATIONS.items() if mutate(model) is not None)
    yield from (name for name, (_, applies) in ORACLE_MUTATIONS.items() if applies(model))


def killed_by_captures(mutation: str, model: MmaModel) -> bool:
    sets = [capture for capture in capture_sets() if capture.model == model]
    if mutation in ORACLE_MUTATIONS:
        options, _ = ORACLE_MUTATIONS[mutation]
        if mutation == "c not aligned":
            sets = [capture for capture in sets if capture.c.any()]  # without c, nothing changes
        return any(kills(capture, functools.partial(oracle_differs, capture, options)) for capture in sets)
    mutant = MUTATIONS[mutation](model)
    assert mutant is not None
    return any(kills(capture, lambda rows, s=capture: s.differences(mutant, rows) > 0) for capture in sets)  # type: ignore[misc]


@functools.cache
def survivors() -> dict[str, list[str]]:
    """The instructions of which the captures do not notice a mutation, by mutation."""
    found: dict[str, list[str]] = {}
    for model in map(mma.parse, CAPTURED):
        for mutation in mutants(model):
            if not killed_by_captures(mutation, model):
                found.setdefault(mutation, []).append(str(model))
    return found


@needs_captures
def test_the_page_lists_what_hardware_does_not_confirm() -> None:
    text = PAGE.read_text()
    for mutation, names in survivors().items():
        listed = "all of them" if len(names) == len(CAPTURED) else ", ".join(f"`{name}`" for name in names)
        assert f"| {mutation} | {listed} |" in text
    assert [name for name in (*MUTATIONS, *ORACLE_MUTATIONS) if f"| {name} |" in text] == [
        name for name in (*MUTATIONS, *ORACLE_MUTATIONS) if name in survivors()
    ]


# What survives there is decided by the definition.


def cancelled(model: MmaModel, seed: int) -> mma_cases.Case:
    """The largest products, which cancel each other, others of any size and c: what was cut is all there is."""
    rng = np.random.default_rng([seed, *map(ord, model.name)])
    k = min(model.k, 8)
    a = mma_cases.wide(rng, model.a_format, (12, k))
    b = mma_cases.wide(rng, model.b_format, (12, k))
    a[:, 0], b[:, 0] = (mma_cases.overflow(rng, fmt, (12,)) for fmt in (model.a_format, model.b_format))
    a[:, 1], b[:, 1] = a[:, 0], b[:, 0] ^ b.dtype.type(1 << (mma_cases.width(model.b_format) - 1))
    if k == 8:
        a[:, [2, 3, 6, 7]] = 0  # an emulated instruction adds these apart
    c = rng.standard_normal((12, 12)) * 2.0 ** rng.integers(-12, 4, (12, 12))
    return mma_cases.Case(a, b, c.astype(model.accumulator), {})


def product_of(model: MmaModel, significand: int, exponent: int) -> tuple[int, int]:
    """Codes of two numbers whose product is significand * 2^exponent."""
    factor = next(u for u in range(int(significand**0.5), 0, -1) if significand % u == 0)
    half = exponent // 2
    numbers = np.array([factor * 2.0**half, significand // factor * 2.0 ** (exponent - half)])
    codes = [int(mma_cases.encoded(numbers[i : i + 1], model.a_format)[0]) for i in (0, 1)]
    assert np.prod([mma_oracle.decode(code, model.a_format).value for code in codes]) == significand * 2.0**exponent
    return codes[0], codes[1]


def beside_zero(model: MmaModel, unit: int) -> mma_cases.Case:
    """c = 0 and products whose sum reaches the next result if a last one, 2^unit, is not cut."""
    assert model.zero_exponent is not None
    if model.accumulator == "float16":
        pairs = [product_of(model, 1, -25), product_of(model, 1, unit)]
    else:
        pairs = [product_of(model, 2 ** (-149 - unit) - 1, unit), product_of(model, 1, unit)]
    a = np.zeros((1, model.k), mma.operand_dtype(model.a_format))
    b = np.zeros_like(a)
    for k, (x, y) in enumerate(pairs):
        a[0, k], b[0, k] = x, y
    return mma_cases.Case(a, b, None, {})


def zero_exponent_shows(model: MmaModel) -> bool:
    """Whether any product has a bit that is cut where the largest exponent is that of a zero, or one more."""
    assert model.zero_exponent is not None
    assert model.fraction_bits is not None
    _, m, bias, _ = mma_oracle.FORMATS[model.a_format]
    return 2 * (1 - bias - m) < model.zero_exponent + 1 - model.fraction_bits


def sensitive_cases(model: MmaModel, mutation: str) -> Iterator[mma_cases.Case]:
    if mutation.startswith("e_zero"):
        assert model.zero_exponent is not None
        assert model.fraction_bits is not None
        yield beside_zero(model, model.zero_exponent - model.fraction_bits - (mutation == "e_zero - 1"))
        return
    for seed in range(4):
        yield cancelled(model, seed)
        for category in CATEGORIES:
            yield mma_cases.case(model, category, 4, 4, 2 * model.k, seed)


def told_apart(mutation: str, model: MmaModel, case: mma_cases.Case) -> bool:
    """Whether the case has a result, by the definition, that the mutant does not have."""
    if mutation in MUTATIONS:
        mutant = MUTATIONS[mutation](model)
        assert mutant is not None
        return not np.array_equal(case.run(mutant), case.run(model))
    options, _ = ORACLE_MUTATIONS[mutation]
    right = case.run(model)
    for i in range(right.shape[0]):
        c = 0 if case.c is None else int(mma_cases.bits(case.c)[i, i])
        if mma_oracle.chain(model, case.a[i].tolist(), case.b[i].tolist(), c, **options) != int(right[i, i]):
            return True
    return False


@pytest.mark.parametrize("mutation", [*MUTATIONS, *ORACLE_MUTATIONS])
def test_every_mutant_is_killed(mutation: str) -> None:
    """The tests against the definition notice each, except a zero exponent where no product has as small a bit."""
    for model in map(mma.parse, CAPTURED):
        if mutation not in mutants(model) or (mutation.startswith("e_zero") and not zero_exponent_shows(model)):
            continue
        cases = sensitive_cases(model, mutation)
        assert any(told_apart(mutation, model, case) for case in cases), f"{mutation} of {model}"


def test_sensitive_cases_are_computed_as_defined() -> None:
    for model in map(mma.parse, CAPTURED):
        cases = [cancelled(model, 0)]
        if zero_exponent_shows(model):
            cases += [next(sensitive_cases(model, mutation)) for mutation in ("e_zero + 1", "e_zero - 1")]
        for case in cases:
            found = case.run(model)
            c = np.zeros_like(found) if case.c is None else mma_cases.bits(case.c)
            for i in range(found.shape[0]):
                row = mma_oracle.chain(model, case.a[i].tolist(), case.b[i].tolist(), int(c[i, i]))
                assert int(found[i, i]) == row, f"{model} [{i}]"
