"""The benchmarks of the GPU on the stand-in: they run, time what they say, and refuse to time what is wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import (
    gpu_attention,
    gpu_attention_backward,
    gpu_bars,
    gpu_casts,
    gpu_fused,
    gpu_linear,
    gpu_matmul,
    gpu_peers,
    gpu_rows,
    gpu_run,
    gpu_timing,
)
from benchmarks.gpu_bars import FASTEST, FLOOR, Bar
from benchmarks.gpu_parts import SUITES
from benchmarks.gpu_rows import Case, Row, Work
from benchmarks.gpu_timing import Device, Spread, in_turns
from fp8sim import backends

HOPPER = Device("NVIDIA H200", "cuda", (9, 0), 50 << 20)
AMPERE = Device("NVIDIA A100-SXM4-80GB", "cuda", (8, 0), 40 << 20)
STAND_IN = Device(gpu_timing.STAND_IN, "cpu", (9, 0), 1024)
RATES = {"FP8": 1e12, "BF16": 5e11}

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, the benchmarks themselves are run")


class Clock:
    """A clock that calls move; `order` says which ran when, in which turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, list[tuple[str, int]]()
        monkeypatch.setattr(gpu_timing.time, "perf_counter", lambda: self.now)

    def takes(self, name: str, seconds: Callable[[int], float]) -> gpu_timing.Call:
        def call(turn: int) -> None:
            self.order.append((name, turn))
            self.now += seconds(turn)

        return call


# Timing


def test_times_are_taken_in_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seconds = {3: 1.0, 4: 2.0, 5: 3.0, 6: 4.0, 7: 50.0}
    calls = {
        "run": clock.takes("run", lambda turn: seconds.get(turn, 99.0)),
        "peer": clock.takes("peer", lambda _: 2.0),
    }
    taken = in_turns(STAND_IN, calls, samples=5)
    assert taken.spreads == {"run": Spread(3.0, 2.0, 4.0), "peer": Spread(2.0, 2.0, 2.0)}
    counted = clock.order[2 * gpu_timing.WARM_UP :]
    assert counted == [(name, turn) for turn in range(3, 8) for name in ("run", "peer")]


def test_a_peer_that_fails_is_left_out_and_says_why() -> None:
    def broken(turn: int) -> None:
        raise RuntimeError("needs another GPU\nand more")

    taken = in_turns(STAND_IN, {"run": lambda _: None, "peer": broken}, samples=1)
    assert (list(taken.spreads), taken.failed) == (["run"], {"peer": "RuntimeError: needs another GPU"})
    with pytest.raises(RuntimeError, match="needs another GPU"):
        in_turns(STAND_IN, {"run": broken}, samples=1)


def test_a_gpu_waits_while_the_host_launches_and_its_own_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Any) -> float:
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(f"wait {cycles}"))
    assert HOPPER.seconds(lambda turn: log.append(f"turn {turn}"), 7, wait=1e-3) == 2.5e-3
    assert log == ["wait 2000000", "record", "turn 7", "record", "synchronize"]


@pytest.mark.parametrize("size", [1 << 20, 30 << 20, 100 << 20, 1 << 30])
def test_inputs_of_all_turns_are_larger_than_the_cache(size: int) -> None:
    count = HOPPER.sets(size)
    assert 2 <= count <= gpu_timing.MOST_SETS
    assert count * size >= 4 * HOPPER.cache_bytes or count == gpu_timing.MOST_SETS


def test_a_copy_moves_all_bytes_by_turns() -> None:
    targets = [gpu_timing.copies(STAND_IN, 1000)(turn) for turn in range(6)]
    assert all(isinstance(target, torch.Tensor) and target.numel() == 500 for target in targets)
    copy = gpu_timing.copies(STAND_IN, 1000)
    assert copy(0) is copy(STAND_IN.sets(1000))
    assert copy(0) is not copy(1)


def test_numbers_are_random_and_depend_on_the_seed() -> None:
    first, again, other = (STAND_IN.numbers((64, 64), torch.bfloat16, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == [-1, 0, 1]


# Rows


def work(clock: Clock, **changes: Any) -> Work:
    made = Work(
        run=clock.takes("run", lambda _: 2e-3),
        wrong=lambda: "",
        bytes=4_000_000,
        flops=10**9,
        operands="FP8",
        peers={"slow": clock.takes("slow", lambda _: 4e-3), "fast": clock.takes("fast", lambda _: 3e-3)},
        absent={"Transformer Engine": "not installed"},
    )
    return dataclasses.replace(made, **changes)


def measured(clock: Clock, monkeypatch: pytest.MonkeyPatch, bar: Bar | None = None, **changes: Any) -> Row:
    """A row of a made-up GPU, whose copy takes half a millisecond."""
    monkeypatch.setattr(gpu_rows, "copies", lambda device, size: clock.takes("copy", lambda _: 5e-4))
    monkeypatch.setattr(Device, "is_stand_in", property(lambda self: self is STAND_IN))
    monkeypatch.setattr(Device, "synchronize", lambda self: None)
    monkeypatch.setattr(Device, "seconds", lambda self, call, turn, wait: -clock.now + (call(turn), clock.now)[1])
    return gpu_rows.measure(Case("it", lambda device: work(clock, **changes), bar), HOPPER, RATES, samples=3)


def test_a_row_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(Clock(monkeypatch), monkeypatch, Bar("slow", 2.0))
    assert row["microseconds"] == pytest.approx(2000)
    assert row["quartiles"] == pytest.approx([2000, 2000])
    assert (row["tflops"], row["gigabytes_per_second"]) == pytest.approx((0.5, 2))
    assert {name: peer["ratio"] for name, peer in row["peers"].items()} == pytest.approx({"slow": 2.0, "fast": 1.5})
    assert row["ratio"] == pytest.approx(1.5)
    assert (row["floor"]["of"], row["floor_ratio"]) == ("FP8 product", pytest.approx(0.5))
    assert row["absent_peers"] == {"Transformer Engine": "not installed"}
    assert json.loads(json.dumps(row)) == row
    assert gpu_rows.line(row).endswith(
        "2000.0 (2000.0 to 2000.0) us | 0 TFLOP/s | 2 GB/s | 1.50 x fast | 0.50 of FP8 product | 2 of slow | met"
    )


def test_the_floor_is_the_longer_of_copy_and_product(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(Clock(monkeypatch), monkeypatch, flops=10**8)
    assert (row["floor"]["of"], row["floor_ratio"]) == ("copy", pytest.approx(0.25))
    row = measured(Clock(monkeypatch), monkeypatch, operands="FP4")
    assert row["floor"]["of"] == "copy"


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (None, ""),
        (Bar(FLOOR, 0.4, 0.5), "stretch met"),
        (Bar(FLOOR, 0.4, 0.6), "met"),
        (Bar(FLOOR, 0.6), "missed"),
        (Bar(FASTEST, 1.4), "met"),
        (Bar(FASTEST, 1.6), "missed"),
        (Bar("slow", 1.9), "met"),
        (Bar("torch.compile", 1.0), "not measured"),
    ],
    ids=str,
)
def test_verdicts(bar: Bar | None, verdict: str) -> None:
    assert gpu_rows.verdict(bar, {FLOOR: 0.5, FASTEST: 1.5, "slow": 2.0}) == verdict


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    row = measured(clock, monkeypatch, wrong=lambda: "3 bits")
    assert (row["verdict"], row["wrong"], clock.order) == ("WRONG", "3 bits", [])
    assert "microseconds" not in row
    assert gpu_rows.line(row).endswith("WRONG: 3 bits")


def test_what_fails_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(turn: int) -> None:
        raise torch.OutOfMemoryError("too large")

    row = measured(Clock(monkeypatch), monkeypatch, run=run)
    assert (row["verdict"], row["failed"]) == ("FAILED", "OutOfMemoryError: too large")


def test_what_is_not_here_is_absent_and_no_failure() -> None:
    def build(device: Device) -> Work:
        raise gpu_rows.Absent("fp8sim was built without nvcc")

    row = gpu_rows.measure(Case("it", build, gpu_bars.CAST), STAND_IN, {}, samples=1)
    assert row == {
        "name": "it",
        "device": STAND_IN.name,
        "absent": "fp8sim was built without nvcc",
        "verdict": "absent",
    }
    assert gpu_rows.line(row).endswith("absent: fp8sim was built without nvcc")


def test_the_stand_in_is_not_judged() -> None:
    made = Work(run=lambda _: None, wrong=lambda: "", bytes=8)
    row = gpu_rows.measure(Case("it", lambda device: made, gpu_bars.CAST), STAND_IN, {}, samples=1)
    assert row["verdict"] == "stand-in"


# Suites


@pytest.mark.parametrize("device", [HOPPER, AMPERE, STAND_IN], ids=lambda device: device.name)
@pytest.mark.parametrize("suite", SUITES)
def test_names_are_unique(suite: str, device: Device) -> None:
    found = list(gpu_run.cases(suite, device))
    assert found
    assert len({case.name for case in found}) == len(found)


def test_a_gpu_without_fp8_has_products_in_bfloat16_alone() -> None:
    assert all("bfloat16 x bfloat16" in case.name for case in gpu_run.cases("matmul", AMPERE))


@interpreted
def test_every_case_of_the_casts_is_right_and_one_wrong_bit_is_noticed() -> None:
    found = [cast for cast in gpu_casts.casts() if backends.row(cast.op, cast.backend).missing() is None]
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    assert [gpu_casts.wrong(cast, x) for cast in found] == [""] * len(found)
    simulated = backends.row("encode_scaled", "simulate").load()
    spoiled = dataclasses.replace(found[0], run=lambda call, x: (call(x, "e4m3")[0] ^ int(call is not simulated),))
    assert gpu_casts.wrong(spoiled, x) == "the bits are not the simulator's"


@interpreted
def test_a_product_is_compared_with_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    product = next(gpu_matmul.products(STAND_IN))
    a, b = gpu_matmul.operands(product, STAND_IN, 0)
    assert gpu_matmul.wrong(product, STAND_IN, a, b) == ""
    right = gpu_matmul.Product.run

    def spoiled(self: gpu_matmul.Product, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result = right(self, a, b)
        result[-1, -1] += 1
        return result

    monkeypatch.setattr(gpu_matmul.Product, "run", spoiled)
    assert gpu_matmul.wrong(product, STAND_IN, a, b).startswith("1 of 4096 are not what sm90.wgmma")


@interpreted
def test_a_linear_layer_is_compared_with_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_linear.wrong(32, 64, "triton", STAND_IN) == ""
    right = gpu_linear.results

    def spoiled(tensors: Any, backend: str) -> list[torch.Tensor]:
        output, *gradients = right(tensors, backend)
        return [output, *(gradient * (1 + (backend == "triton")) for gradient in gradients)]

    monkeypatch.setattr(gpu_linear, "results", spoiled)
    assert gpu_linear.wrong(32, 64, "triton", STAND_IN) == "grad_input, grad_weight not the simulator's"


@interpreted
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_attention_is_compared_with_its_plan(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_causal: bool
) -> None:
    case = gpu_attention.AttentionCase(dtype, 64, 200, is_causal, tokens=400, hidden=128)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 200, 64, generator=generator).to(dtype) for _ in range(3))
    assert gpu_attention.wrong(case, STAND_IN, q, k, v) == ""
    attention = gpu_attention.kernels.attention
    monkeypatch.setattr(gpu_attention.kernels, "attention", lambda *x, **options: attention(*x, scale=0.2, **options))
    assert gpu_attention.wrong(case, STAND_IN, q, k, v).startswith("the output differs from what the plan predicts by")


@interpreted
@pytest.mark.parametrize(("fp8", "is_causal"), [(False, False), (True, True)])
def test_an_attention_backward_is_compared_with_its_plan(
    monkeypatch: pytest.MonkeyPatch, fp8: bool, is_causal: bool
) -> None:
    bench = gpu_attention_backward
    case = bench.BackwardCase(bench.E4M3, fp8, 32, is_causal, length=96, hidden=64)
    inputs = bench.operands(case, STAND_IN, 0)
    assert bench.wrong(case, STAND_IN, inputs) == ""
    kernel, factors = bench.kernels.attention_backward, {"grad_factors": (1.0, 1.05, 1.0)}
    monkeypatch.setattr(bench.kernels, "attention_backward", lambda *x, **options: kernel(*x, **factors, **options))
    assert bench.wrong(case, STAND_IN, inputs).startswith("a gradient differs from what the plan predicts by")


@interpreted
def test_fused_work_is_compared_with_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 64, generator=generator) for _ in range(3)]
    found = [case for case in gpu_fused.fused_cases() if backends.row(case.op, case.backend).missing() is None]
    assert [gpu_fused.wrong(case, tensors[: case.operands]) for case in found] == [""] * len(found)
    case = next(case for case in found if case.name == "silu_glu")
    other = dataclasses.replace(case, numbers=lambda x, g: [(n * 1.01, b) for n, b in case.numbers(x, g)])
    assert gpu_fused.wrong(other, tensors[:2]) == "numbers are not within their bound"
    other = dataclasses.replace(case, run=lambda call, *given, values=None: [call(*given, values=values, fmt="e5m2")])
    assert gpu_fused.wrong(other, tensors[:2]) == "codes are not those of the numbers"
    logits, target = torch.randn(4, 50, generator=generator), torch.tensor([0, 7, 49, 7])
    assert gpu_fused.wrong_loss(logits, target) == ""


@interpreted
@pytest.mark.parametrize(
    ("suite", "text", "peers"),
    [
        ("casts", "encode e4m3, triton, bfloat16", {"torch"}),
        ("casts", "quantize fp8_tensor_te, triton_hardware, float32", set()),
        ("matmul", "64x64x64, e4m3fn x e4m3fn, triton", {"torch._scaled_mm"}),
        ("matmul", "64x64x64, bfloat16 x bfloat16, triton", {"torch.matmul"}),
        ("linear", "128 to 128, triton", {"BF16 nn.Linear"}),
        ("attention", "bfloat16 head 256 length 64 causal", {"SDPA math", "SDPA flash"}),
        ("attention_backward", "bfloat16 head 256 causal", {"SDPA math", "SDPA flash"}),
        ("fused", "rms_norm, triton, bfloat16", {"torch, then a cast"}),
        ("fused", "cross_entropy, triton, bfloat16", {"torch, then a cast"}),
    ],
)
def test_a_suite_runs_from_end_to_end(
    suite: str, text: str, peers: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--suite", suite, "--filter", text, "--samples", "1", "--out", str(tmp_path), "--stand-in"]
    monkeypatch.setattr("sys.argv", ["gpu_run", *arguments])
    assert gpu_run.main() == 0
    file = json.loads((tmp_path / f"gpu_{suite}.json").read_text())
    assert (file["schema"], file["suite"], file["complete"]) == (2, suite, False)
    assert set(file["rates"]["products"]) == {"BF16", "FP16", "FP8"}
    assert {"torch", "triton", "torchao", "transformer_engine"} <= set(file["machine"]["versions"])
    for row in file["rows"]:
        assert row["verdict"] == "stand-in"
        assert set(row["peers"]) | set(row["absent_peers"]) >= peers
        assert row["microseconds"] > 0


@interpreted
def test_results_of_the_stand_in_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--suite", "casts", "--filter", "encode e4m3, triton, b", "--samples", "1", "--stand-in", "--out"]
    monkeypatch.setattr("sys.argv", ["gpu_run", *arguments, str(gpu_run.RESULTS / "nvidia-h200")])
    with pytest.raises(SystemExit, match="the stand-in measures nothing"):
        gpu_run.main()
    assert not (gpu_run.RESULTS / "nvidia-h200" / "gpu_casts.json").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_run, "rates", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"file: cannot write there \(File exists\); name another folder"):
        gpu_run.run("casts", STAND_IN, "", 1, tmp_path / "file")


@interpreted
def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_run"])
    assert gpu_run.main() == 0
    assert capsys.readouterr().out.startswith("no CUDA device: not measured")


def test_a_suite_that_breaks_is_a_row_and_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(suite: str, device: Device) -> Any:
        raise ImportError("no such kernel")

    monkeypatch.setattr(gpu_run, "cases", broken)
    monkeypatch.setattr(gpu_run, "rates", lambda *_: ({}, {}))
    (row,) = gpu_run.run("casts", STAND_IN, "", 1, tmp_path)
    assert (row["verdict"], row["failed"]) == ("FAILED", "ImportError: no such kernel")
    assert json.loads((tmp_path / "gpu_casts.json").read_text())["complete"] is False


# Peers


def test_every_backend_of_attention_is_a_peer_or_says_why_not() -> None:
    q = torch.randn(1, 2, 8, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    calls = {
        name: lambda _, attention=attention: attention(q, q, q, is_causal=True)
        for name, attention in gpu_peers.attentions(STAND_IN).items()
    }
    taken = in_turns(STAND_IN, {"run": lambda _: None, **calls}, samples=1)
    assert set(taken.spreads) | set(taken.failed) == {"run", *gpu_peers.SDPA}
    assert {"SDPA math", "SDPA flash"} <= set(taken.spreads)
    torch.testing.assert_close(calls["SDPA math"](0), expected)
    assert "SDPA math" not in gpu_peers.attentions(HOPPER)


def test_libraries_that_are_absent_are_named() -> None:
    versions = gpu_peers.versions()
    steps = gpu_peers.linear_steps(torch.randn(32, 16).bfloat16(), STAND_IN)
    assert set(steps.present) | set(steps.absent) == {"BF16 nn.Linear", "torchao float8", "Transformer Engine"}
    absent = {gpu_peers.TORCHAO: "torchao", gpu_peers.TRANSFORMER_ENGINE: "transformer_engine"}
    assert {name for name in absent if versions[absent[name]] is None} == set(steps.absent)
    assert all(why == "not installed" for why in steps.absent.values())


def test_peers_of_a_linear_layer_leave_gradients() -> None:
    x = torch.randn(16, 16).bfloat16().requires_grad_()
    for step in gpu_peers.linear_steps(torch.randn(32, 16).bfloat16(), STAND_IN).present.values():
        step(x, torch.ones(16, 32).bfloat16())
        assert x.grad is not None
        first = x.grad.clone()
        step(x, torch.ones(16, 32).bfloat16())
        assert torch.equal(x.grad, first)
