"""`fp8sim.cuda.cast` and its kernel, whose source runs on a CPU here (`cuda_on_host.casts`).

That their arithmetic is the simulator's in every mode is in test_cuda.py, and what needs a device in test_hardware.py.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cuda_on_host import SCHEDULES, casts

import fp8sim
from fp8sim.cuda import launching
from fp8sim.cuda.cast import cast, decode, encode

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
STOCHASTIC: dict[str, Any] = {"rounding": "stochastic", "seed": 3, "stream": 9, "offset": 2**64 - 1000}


@pytest.fixture(scope="session")
def function(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return casts.build(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def gpu(function: Any) -> Iterator[casts.StandIn]:
    stand_in = casts.StandIn(function)
    with stand_in.installed():
        yield stand_in


def numbers(*shape: int) -> torch.Tensor:
    return 40 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", [{}, {"rounding": "toward_zero", "overflow": "nan"}, STOCHASTIC], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", ["e4m3", "float16", "float32", "binary8p4se"])
def test_every_bit_is_the_simulators(fmt: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    x = numbers(7, 33).to(dtype)
    assert same(cast(x, fmt, **options), fp8sim.cast(x, fmt, **options))
    codes = encode(x, fmt, **options)
    assert same(codes, fp8sim.encode(x, fmt, **options))
    assert same(decode(codes, fmt, dtype=dtype), fp8sim.decode(codes, fmt, dtype=dtype))


@pytest.mark.parametrize("rounding", ["ties_to_even", "stochastic"])
@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023, 1024, 4099])
def test_every_tail_and_alignment(gpu: casts.StandIn, size: int, start: int, rounding: str) -> None:
    """Packs and single elements; nothing is written outside."""
    random = STOCHASTIC if rounding == "stochastic" else {}
    gpu.schedule = SCHEDULES[(size + start) % len(SCHEDULES)]
    x = numbers(start + size + 8).float()
    out = torch.full(x.shape, 77.0)
    within = slice(start, start + size)
    assert cast(x[within], "e5m2", out=out[within], **random).data_ptr() == out[within].data_ptr()
    expected = torch.full(x.shape, 77.0)
    expected[within] = fp8sim.cast(x[within], "e5m2", **random)
    assert same(out, expected)
    assert same(encode(x[within], "e5m2", **random), fp8sim.encode(x[within], "e5m2", **random))
    codes = torch.arange(start + size).byte()[start:]
    assert same(decode(codes, "e4m3"), fp8sim.decode(codes, "e4m3"))


@pytest.mark.usefixtures("gpu")
def test_any_strides_are_read_and_results_are_contiguous() -> None:
    base = numbers(6, 10).float()
    for x in (base.T, base[::2, 1::3], base[0].expand(4, 10), base[:0], base[0, 0], torch.imag(base.cfloat().conj())):
        for result in (cast(x, "e4m3"), encode(x, "e4m3")):
            assert result.is_contiguous()
        assert same(cast(x, "e4m3"), fp8sim.cast(x, "e4m3").contiguous())
        assert same(decode(encode(x, "e4m3"), "e4m3"), fp8sim.cast(x, "e4m3").contiguous())


@pytest.mark.usefixtures("gpu")
def test_out_is_written_returned_and_known_to_have_changed() -> None:
    x = numbers(4, 5).float()
    expected, out = fp8sim.cast(x, "e5m2"), torch.empty(4, 5)
    assert cast(x, "e5m2", out=out) is out
    assert torch.equal(out, expected)
    version = x._version
    cast(x, "e5m2", out=x)
    assert torch.equal(x, expected)
    assert x._version > version


X = torch.zeros(4, 4)
ERRORS = {
    "list": (
        lambda: cast([1.0], "e4m3"),
        TypeError,
        "x is a list: expected a torch tensor",
    ),
    "array": (lambda: encode(np.zeros(3, np.float32), "e4m3"), TypeError, "x is a ndarray: expected a torch tensor"),
    "nothing": (
        lambda: decode(None, "e4m3"),
        TypeError,
        "codes is a N.*: expected a torch tensor",
    ),
    "integers": (lambda: cast(X.int(), "e4m3"), TypeError, "x is torch.int32: expected torch.float32, "),
    "signed codes": (
        lambda: decode(X.to(torch.int8), "e4m3"),
        TypeError,
        "codes is torch.int8: expected torch.uint8, ",
    ),
    "decoded to codes": (
        lambda: decode(X.byte(), "e4m3", dtype=torch.int8),
        TypeError,
        "dtype must be one of float32, float16",
    ),
    "codes of another format": (lambda: decode(X.byte() + 77, "e2m1"), ValueError, "codes contain 0x4d: the codes of"),
    "format": (lambda: cast(X, "e9m9"), ValueError, "e9m9"),
    "codebook": (lambda: cast(X, "nf4"), ValueError, "is a codebook, which no kernel takes"),
    "policy": (lambda: cast(X, "e2m1", overflow="nan"), ValueError, "overflow=NAN needs"),
    "seed": (lambda: encode(X, "e4m3", rounding="stochastic"), ValueError, "STOCHASTIC needs random bits"),
    "out of a kind": (lambda: cast(X, "e4m3", out=[]), TypeError, "out is a list: expected a torch tensor"),
    "out's dtype": (lambda: cast(X, "e4m3", out=X.half()), TypeError, "out is torch.float16: expected torch.float32"),
    "out's shape": (lambda: cast(X, "e4m3", out=X[0]), ValueError, r"out must be contiguous and .* \[4, 4\] cpu, got"),
    "out's device": (lambda: cast(X, "e4m3", out=X.to("meta")), ValueError, r"out must be .* for \[4, 4\] meta"),
    "out's strides": (lambda: cast(X, "e4m3", out=X.T), ValueError, r"out must be .* got strides \[1, 4\]"),
}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(("call", "argument"), [(cast, "x"), (encode, "x"), (decode, "codes")])
def test_cpu_tensors_are_refused(call: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is on cpu: the CUDA kernels take CUDA tensors; use .cuda()"):
        call(X.byte() if argument == "codes" else X, "e4m3")


def test_without_the_extension_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fp8sim, "_cuda", raising=False)
    monkeypatch.setitem(sys.modules, "fp8sim._cuda", None)
    with pytest.raises(RuntimeError, match=r"built without nvcc.* \(FP8SIM_CUDA=1 pip install \.\)"):
        launching.require_built()
