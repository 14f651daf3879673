"""The table of backends: how one is chosen, and what an unavailable one says."""

import importlib.util
from typing import Any

import pytest
import torch

import fp8sim
from fp8sim import backends
from fp8sim.backends import BACKENDS


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Triton, without `fp8sim._cuda` and without a GPU."""
    original = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name in ("triton", "fp8sim._cuda") else original(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(backends, "_cuda_device_missing", lambda: "no CUDA device")


@pytest.mark.parametrize("row", BACKENDS, ids=lambda row: f"{row.op}-{row.name}")
def test_every_row_loads_or_says_why_not(row: backends.Backend) -> None:
    if row.missing() is None:
        assert callable(row.load())
    else:
        with pytest.raises(RuntimeError, match=f"{row.op} cannot run on '{row.name}': .*Available: simulate"):
            row.load()
    assert row.contract in ("bitwise", "exact-sum", "bound")
    assert row.converts in ("integer arithmetic", "hardware conversion")


@pytest.mark.usefixtures("nothing_installed")
def test_without_triton_and_nvcc_the_simulator_works_and_the_rest_says_what_to_install() -> None:
    assert fp8sim.cast(torch.tensor([0.3]), "e4m3").item() == 0.3125
    with fp8sim.use_backend("triton"), pytest.raises(RuntimeError, match=r"Triton is not installed \(pip install"):
        fp8sim.cast(torch.tensor([0.3]), "e4m3")
    assert "FP8SIM_CUDA=1" in str(backends.row("cast", "cuda").missing())


def test_one_row_per_operation_and_backend() -> None:
    keys = [(row.op, row.name) for row in BACKENDS]
    assert len(keys) == len(set(keys))


def test_cpu_tensors_are_simulated_and_cuda_tensors_run_triton_unless_told_otherwise() -> None:
    assert backends.select("cast", "cpu") == "simulate"
    assert backends.select("cast", "cuda") == "triton"
    with fp8sim.use_backend("triton"):
        assert backends.select("cast", "cpu") == "triton"
    assert backends.select("cast", "cpu") == "simulate"


def test_meta_tensors_pass_through_with_their_shape_and_dtype() -> None:
    x = torch.empty(3, 5, device="meta")
    assert fp8sim.cast(x, "e4m3").shape == x.shape
    assert fp8sim.encode(x, "e4m3").dtype == torch.uint8
    assert fp8sim.functional.linear(x, torch.empty(7, 5, device="meta"), recipe="fp8_naive").shape == (3, 7)


def test_a_backend_that_takes_no_such_tensors_is_an_error() -> None:
    message = "cast on backend 'simulate' takes tensors on cpu, got one on cuda: move it, or choose another backend"
    with fp8sim.use_backend("simulate"), pytest.raises(ValueError, match=message):
        backends.select("cast", "cuda")


def test_the_backend_of_the_forward_pass_is_that_of_the_backward_pass() -> None:
    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    output = fp8sim.functional.linear(x, w, recipe="unit_scaled_fp8")
    with fp8sim.use_backend("cuda"):
        output.sum().backward()
    assert x.grad is not None
