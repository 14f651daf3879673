"""The benchmarks run, and refuse to time what is wrong."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import cases, layers, mma, optim, peers, run, scaling, timing
from benchmarks.cases import REGISTRY, Policy
from fp8sim import _core

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


def test_medians_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0

    def takes(name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += seconds(order.count(name))
            order.append(name)

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {"a": takes("a", lambda _: 0.25), "b": takes("b", lambda count: 100.0 if count == 3 else float(count))}
    assert timing.medians(calls, samples=3, least=1) == {"a": 0.25, "b": 2.0}
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 4


def test_scaling_is_measured_beside_arithmetic() -> None:
    threads = _core.get_num_threads()
    try:
        rows = scaling.gains(threads=2, size=SIZE, samples=1)
    finally:
        _core.set_num_threads(threads)
    assert [row["name"] for row in rows] == list(scaling.CASES)
    assert all(row[gain] > 0 for row in rows for gain in ("gain", "arithmetic_gain", "copy_gain"))


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


def test_a_step_in_merged_groups_is_checked_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = optim.measure(samples=1, tensors=8)
    assert (row["groups"], row["ratios"]["foreach, one group"]) == (3, 1.0)
    assert json.loads(json.dumps(row)) == row
    monkeypatch.setitem(optim.AT_MOST, "foreach, merged groups", 0.0)
    assert "(<= 0.0 MISSED)" in "\n".join(optim.lines(optim.measure(samples=1, tensors=8)))
    monkeypatch.setattr(optim, "merged", optim.together)
    row = optim.measure(samples=1, tensors=8)
    assert row["wrong"] == "merged groups do not step as single groups do"
    assert "microseconds" not in row
    assert "WRONG, not timed" in optim.lines(row)[0]


def test_a_layer_is_checked_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.AT_MOST, "u-muP", {16: 0.0})
    row = layers.measure(16, samples=1)
    assert (list(row["ratios"]), row["ratios"]["plain torch"]) == (["plain torch", "u-muP", "u-muP in FP8"], 1.0)
    assert json.loads(json.dumps(row))["misses"] == ["u-muP"]
    assert "(<= 0.0 MISSED)" in "\n".join(layers.lines(row))
    monkeypatch.setattr(layers.PlainLayer, "rotate", lambda self, x: x)
    row = layers.measure(16, samples=1)
    assert "Tensor-likes are not close" in row["wrong"]
    assert "microseconds" not in row
    assert "WRONG, not timed" in layers.lines(row)[0]
