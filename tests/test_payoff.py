"""Will FP8 pay: times against the formulas in words, verdicts, evidence, devices that are not known."""

import dataclasses

import pytest
import torch

import fp8sim
from fp8sim.analysis import payoff, rates
from fp8sim.analysis.rates import RATES, Figure, Rates

SIMPLE = Rates(
    "S1", Figure(1e12, "measured"), Figure(2e12, "measured"), Figure(1e12, "measured"), Figure(0.0, "none"), None
)
"""Twice as fast in FP8; memory as fast as one BF16 operation per byte."""


def test_times_are_those_of_the_products_and_the_bytes_of_the_casts() -> None:
    m, n, k = 4096, 2048, 1024
    found = fp8sim.will_fp8_pay(m, n, k, rates=SIMPLE)
    product = 2 * m * n * k / 1e12
    forward, backward = 3 * (m * k + n * k) / 1e12, 4 * (m * n + m * k + n * k) / 1e12
    assert dataclasses.astuple(found.forward) == pytest.approx((product, product / 2, forward))
    assert dataclasses.astuple(found.backward) == pytest.approx((2 * product, product, backward))
    both = found.forward + found.backward
    assert both.speedup == pytest.approx(3 * product / (1.5 * product + forward + backward))
    assert found.pays
    assert "2.00 times as fast, and casts take 0% of FP8's time" in found.reason


def test_every_kernel_is_launched_once() -> None:
    """Forward: a product and two casts; backward: two products and three casts."""
    slow = dataclasses.replace(SIMPLE, launch=Figure(1.0, "assumed"))
    found = fp8sim.will_fp8_pay(1, 1, 1, rates=slow)
    assert dataclasses.astuple(found.forward) == pytest.approx((1.0, 1.0, 2.0))
    assert dataclasses.astuple(found.backward) == pytest.approx((2.0, 2.0, 3.0))
    assert not found.pays


def test_a_product_takes_whole_rounds_of_tiles_or_the_time_of_its_bytes() -> None:
    assert payoff._filled(128, 256, None) == 1.0
    assert payoff._filled(1024, 2048, 64) == 1.0
    assert payoff._filled(1024, 2049, 64) == pytest.approx(1024 * 2049 / (2 * 1024 * 2048))
    assert payoff._filled(64, 256, 132) == 0.5, "one tile, half of it empty, its sum split over the processors"
    bytes_of_weight = 2 * 4096 * 4097 + 2 * 4096
    found = fp8sim.will_fp8_pay(1, 4096, 4096, rates=dataclasses.replace(SIMPLE, bf16=Figure(1e15, "")))
    assert found.forward.bf16_gemm == pytest.approx(bytes_of_weight / 1e12)


def test_large_layers_pay_on_hopper_and_small_ones_do_not() -> None:
    for device in ("H100", "H200"):
        assert fp8sim.will_fp8_pay(16384, 14336, 4096, device).pays
        small = fp8sim.will_fp8_pay(512, 512, 512, device)
        assert not small.pays
        assert "More tokens or wider layers" in small.reason


def test_without_fp8_instructions_nothing_pays() -> None:
    found = fp8sim.will_fp8_pay(16384, 14336, 4096, "NVIDIA A100-SXM4-80GB")
    assert not found.pays
    assert found.forward.fp8_gemm <= found.forward.bf16_gemm
    assert "A100 has no FP8 instruction" in found.reason


@pytest.mark.parametrize("device", RATES)
def test_every_figure_is_printed_with_its_evidence(device: str) -> None:
    text = str(fp8sim.will_fp8_pay(4096, 4096, 4096, device))
    known = RATES[device]
    for figure in (known.bf16, known.fp8, known.memory, known.launch):
        if figure is not None:
            assert figure.evidence in text
            assert figure.evidence.split()[0].strip(":,") in ("measured", "published", "assumed")
    assert all(word in text for word in ("forward + backward", "casts", "speed-up", device))


def test_unknown_devices_and_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match=r"device='B200': no rates are known; .* H200, H100, A100.* measure=True"):
        fp8sim.will_fp8_pay(1, 1, 1, "B200")
    with pytest.raises(ValueError, match=r"device='NVIDIA H100 PCIe': no rates are known"):
        fp8sim.will_fp8_pay(1, 1, 1, "NVIDIA H100 PCIe")
    with pytest.raises(ValueError, match="M=1, N=0, K=1: sizes of 1 or more"):
        fp8sim.will_fp8_pay(1, 0, 1, "H100")
    with pytest.raises(ValueError, match="M=10.5, N=1, K=1: sizes of 1 or more, in whole numbers"):
        fp8sim.will_fp8_pay(10.5, 1, 1, "H100")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="device='H100': kernels are measured on a CUDA device"):
        fp8sim.will_fp8_pay(1, 1, 1, "H100", measure=True)
    with pytest.raises(ValueError, match="measure=True and rates=: give one"):
        fp8sim.will_fp8_pay(1, 1, 1, measure=True, rates=SIMPLE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_there_is_no_current_device() -> None:
    with pytest.raises(ValueError, match="device=None: there is no CUDA device here: name one of H200"):
        fp8sim.will_fp8_pay(1, 1, 1)


def test_a_device_goes_by_the_name_that_its_driver_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    for device in (None, "cuda", "cuda:1", torch.device("cuda", 0)):
        assert rates.rates_of(device) == RATES["H100"]


def test_rates_are_measured_at_the_size_that_is_asked_about() -> None:
    """With a clock that says how long the BF16 product, the FP8 product and the cast take."""
    pytest.importorskip("triton")

    def clock(calls: object) -> list[float]:
        assert all(isinstance(call(), torch.Tensor | tuple) for call in calls)  # type: ignore[attr-defined]
        return [4.0, 2.0, 1.0]

    found = rates.measure_rates(48, 32, 64, "cpu", clock)
    assert found.fp8 is not None
    assert (found.bf16.value, found.fp8.value) == (2 * 48 * 32 * 64 / 4, 2 * 48 * 32 * 64 / 2)
    assert found.memory.value == 3 * 48 * 64
    assert fp8sim.will_fp8_pay(48, 32, 64, rates=found).forward.bf16_gemm == pytest.approx(4.0)
    with pytest.raises(RuntimeError, match="kernels are measured on a CUDA device"):
        rates.measure_rates(48, 32, 64, "cpu")
