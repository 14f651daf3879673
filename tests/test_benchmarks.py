"""The benchmarks run, and refuse to time what is wrong; loops that lose their vectors are noticed."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import cases, mma, peers, run, scaling, timing
from benchmarks.cases import REGISTRY, Policy
from fp8sim import _core, casting
from fp8sim.formats import parse

SIZE = 4096


@pytest.mark.parametrize("name", REGISTRY)
def test_every_case_is_right(name: str) -> None:
    work = REGISTRY[name].build(SIZE)
    work.run()
    work.check()
    work.floor()
    for peer in work.peers.values():
        peer()


def test_a_row_has_every_figure() -> None:
    row = run.measure(REGISTRY["encode e4m3:TIES_TO_EVEN:SATURATE"], SIZE, samples=1)
    assert set(row["ratios"]) == {"floor", "torch", "ml_dtypes"}
    assert row["elements_per_second"] == pytest.approx(SIZE / row["microseconds"] * 1e6)
    assert row["bytes_per_second"] == pytest.approx(5 * row["elements_per_second"])
    assert json.loads(json.dumps(row)) == row
    text = run.line(row)
    assert text.startswith("encode e4m3:TIES_TO_EVEN:SATURATE")
    assert all(part in text for part in ("us", "G/s", "GB/s", "floor", "torch x", "ml_dtypes x"))


def test_a_missed_expectation_is_named() -> None:
    case = REGISTRY["cast e4m3:TIES_TO_EVEN:SATURATE"]
    impossible = cases.Case(case.name, case.suite, case.build, {SIZE: {"floor": 1e9}})
    row = run.measure(impossible, SIZE, samples=1)
    assert row["misses"] == ["floor"]
    assert "(>= 1e+09 MISSED)" in run.line(row)


def test_a_peer_that_is_not_installed_is_named() -> None:
    case = REGISTRY["cast e4m3:TIES_TO_EVEN:SATURATE"]
    absent = cases.Case(case.name, case.suite, case.build, {SIZE: {"elsewhere": 2.0}})
    row = run.measure(absent, SIZE, samples=1)
    assert (row["misses"], row["not_measured"]) == ([], ["elsewhere"])
    assert "elsewhere not measured: it is not installed" in run.line(row)


@pytest.mark.parametrize("part", ["codes", "stored"])
@pytest.mark.parametrize("name", cases.QUANTIZERS)
def test_the_judges_notice_one_wrong_code_or_factor(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, judged = cases.quantize_work(name, SIZE), peers.check_quantized

    def spoiled(x: Any, found: cases.Quantized, quantizer: Any) -> None:
        array = getattr(found, part).reshape(-1)
        array[0] ^= 1
        judged(x, found, quantizer)

    work.run()
    work.check()
    monkeypatch.setattr(peers, "check_quantized", spoiled)
    with pytest.raises(AssertionError):
        work.check()


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversion = Policy("e5m2:TIES_TO_EVEN:SATURATE").conversion
    monkeypatch.setattr(Policy, "conversion", property(lambda self: conversion))
    monkeypatch.setattr("sys.argv", ["run", "--filter", "cast e4m3:TIES_TO_EVEN", "--sizes", str(SIZE), "--json", "-"])
    assert run.main() == 1
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert "wrong, first" in row["wrong"]
    assert "microseconds" not in row


@pytest.mark.parametrize("kind", ["cast", "encode", "decode"])
def test_the_judges_notice_one_wrong_element(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = cases.WORKS[kind](Policy("e4m3:TIES_TO_EVEN:SATURATE"), SIZE)
    work.run()
    target = work.check.__closure__
    assert target is not None
    results = [cell.cell_contents for cell in target if isinstance(cell.cell_contents, np.ndarray)]
    result = results[1] if kind != "encode" else next(a for a in results if a.dtype == np.uint8)
    result[77] = 3
    with pytest.raises(AssertionError):
        work.check()


def test_medians_are_taken_in_turns() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        "a": lambda: order.append("a"),
        "b": lambda: (order.append("b"), time.sleep(0.002)),
    }
    found = timing.medians(calls, samples=3, least=0.001)
    assert found["a"] < 0.002 <= found["b"]
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 4


# Vectors.

LOOPS = [
    ("e4m3", "TIES_TO_EVEN", "SATURATE"),
    ("e5m2", "TIES_TO_EVEN", "INFINITY"),
    ("e4m3fnuz", "TIES_TO_EVEN", "SATURATE"),
    ("e4m3fnuz", "TIES_TO_EVEN", "NAN"),
    ("fp16", "TO_ODD", "SATURATE"),
    ("e4m3", "TOWARD_POSITIVE", "SATURATE"),
    ("e4m3", "STOCHASTIC", "SATURATE"),
    ("e4m3", "STOCHASTIC_B", "SATURATE"),
    ("bf16", "TIES_TO_EVEN", "SATURATE"),
    ("bf16", "STOCHASTIC", "SATURATE"),
    ("e8m0", "TOWARD_POSITIVE", "SATURATE"),
    ("binary16p2se", "TIES_TO_AWAY", "SATURATE"),
]


def cpu_seconds(call: Callable[[], Any]) -> float:
    """The least processor time of one call among several."""
    times = []
    for _ in range(7):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.usefixtures("any_isa")
@pytest.mark.skipif(_core.isas() == ["portable"], reason="this processor has no wider vectors to compare with")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loop", LOOPS, ids="-".join)
def test_every_loop_uses_the_vectors_of_its_instruction_set(loop: tuple[str, str, str], dtype: str) -> None:
    """A loop that falls back to one element at a time is as slow as the narrowest vectors, or slower."""
    fmt, mode, overflow = loop
    conversion = list(casting._conversion(*loop))
    x = cases.numbers_for(2**16, parse(fmt)).astype(dtype)
    y, codes = np.empty_like(x), np.empty(x.shape, casting.code_dtype(parse(fmt)))
    seconds: dict[str, dict[str, float]] = {}
    for isa in _core.isas():
        _core.set_isa(isa)
        seconds[isa] = {
            "cast": cpu_seconds(lambda: _core.cast(x, y, dtype, conversion, seed=1)),
            "encode": cpu_seconds(lambda: _core.encode(x, codes, dtype, codes.dtype.name, conversion, seed=1)),
        }
    for isa, operation in itertools.product(_core.isas()[1:], ("cast", "encode")):
        ratio = seconds["portable"][operation] / seconds[isa][operation]
        assert ratio > 1.4, f"{operation} {fmt} {mode} {overflow} {dtype}: {isa} is only {ratio:.2f} times portable"


def test_scaling_is_measured_beside_arithmetic() -> None:
    threads = _core.get_num_threads()
    try:
        rows = scaling.gains(threads=2, size=SIZE, samples=1)
    finally:
        _core.set_num_threads(threads)
    assert [row["name"] for row in rows] == list(scaling.CASES)
    assert all(row["gain"] > 0 and row["arithmetic_gain"] > 0 for row in rows)


@pytest.mark.usefixtures("any_isa")
def test_matrix_products_are_checked_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = mma.measure(mma.Case(mma.HOPPER, 64, 30, special=0.1), samples=1)
    assert row["gflops"] > 0
    assert "GFLOP/s (>= " in mma.line(row)
    monkeypatch.setattr(mma.np, "array_equal", lambda *_: False)
    row = mma.measure(mma.Case(mma.HOPPER, 64), samples=1)
    assert "WRONG, not timed" in mma.line(row)
    assert "gflops" not in row


def test_the_gain_of_a_second_thread_is_measured_beside_arithmetic() -> None:
    threads = _core.get_num_threads()
    try:
        row = mma.thread_gain(samples=1)
    finally:
        _core.set_num_threads(threads)
    assert row["share"] == pytest.approx(row["gain"] / row["arithmetic_gain"])
