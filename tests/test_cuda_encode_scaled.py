"""Does the CUDA kernel of encode_scaled give the simulator's codes, transposed codes and amax, bit for bit?

Its source runs on a CPU (`cuda_on_host`). On a GPU, test_hardware.py asks the same of large tensors.
"""

import math

import pytest
import torch
from cuda_on_host import StandIn, build

pytest.importorskip("triton")

from triton_tensors import VIEWS, numbers, same_bits, with_specials

from fp8sim import scaling
from fp8sim.cuda.encode_scaled import encode_scaled
from fp8sim.ops.encode_scaled import ScaledCodes
from fp8sim.rounding import Rounding, resolve_names
from fp8sim.simulate.encode_scaled import encode_scaled as simulated

STOCHASTIC = {"rounding": "stochastic", "seed": 3, "stream": 9, "offset": 2**64 - 1000}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build("encode_scaled", tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def gpu(library):
    stand_in = StandIn({"encode_scaled": library}, processors=2)
    with stand_in.installed():
        yield stand_in


def check(x, fmt, scale=None, **options):
    """The kernel's three results are the simulator's."""
    actual, expected = encode_scaled(x, fmt, scale, **options), simulated(x, fmt, scale, **options)
    for name, a, e in zip(ScaledCodes._fields, actual, expected, strict=True):
        assert same_bits(a, e), f"{name} of {list(x.shape)} {x.dtype} to {fmt} times {scale}, {options}"
    assert all(a is None or a.is_contiguous() for a in actual)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_output_is_the_simulators(gpu, dtype, transpose):
    x = with_specials(20, 33).to(dtype)
    for fmt in ("e4m3", "e5m2", "e2m1", "float16", "float32"):
        check(x, fmt, transpose=transpose)
        check(x, fmt, 0.3, amax=True, transpose=transpose)
    check(x, "e4m3", torch.tensor(-7.1), fused=True, transpose=transpose)
    check(x, "e2m1", torch.tensor([[0.7]]), amax=True, transpose=transpose, **STOCHASTIC)
    check(x, "float8_e4m3fnuz", 2.0, transpose=transpose, overflow="nan", rounding="to_odd")


@pytest.mark.parametrize("scale", [1.0, 0.3, -(2.0**-140), 0.0, -0.0, math.inf, math.nan, 3.4e38, 1e300, 2.0**-149])
def test_any_factor_meets_any_number(gpu, scale):
    x = torch.cat([with_specials(40), numbers(51, spread=40)])
    for options in ({"fused": False}, {"fused": True}):
        check(x, "e4m3", scale, **options)
        check(x, "e5m2", scale, overflow="infinity", **options)
        check(x.double(), "e5m2", scale, **options)


@pytest.mark.parametrize("mode", list(Rounding), ids=lambda mode: mode.name)
def test_every_rounding_mode(gpu, mode):
    random = {"seed": 5, "offset": 77, "random_bits": 5} if mode.is_stochastic else {}
    x = with_specials(9, 17)
    for transpose in (False, True):
        check(x, "e4m3", 0.7, transpose=transpose, rounding=mode, **random)
        check(x.double(), "e3m2", transpose=transpose, rounding=mode, **random)


@pytest.mark.parametrize("shape", [(1, 1), (63, 1), (1, 63), (64, 64), (80, 160), (3, 17, 33), (2, 0, 3, 5), (0, 4)])
def test_sizes_and_tiles(gpu, shape):
    """Whole tiles and ragged ones, stored 16 codes at a time or one by one; several tiles for a block."""
    for dtype in (torch.bfloat16, torch.float32):
        x = numbers(*shape).to(dtype)
        check(x, "e4m3", 3.0, amax=True)
        check(x, "e4m3", 3.0, amax=True, transpose=True)
    check(x, "e4m3", 3.0, transpose=True, **STOCHASTIC)


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(gpu, view):
    x = VIEWS[view](numbers(6, 7, 8))
    check(x, "e4m3", 0.3, amax=True, transpose=x.ndim >= 2)


@pytest.mark.parametrize("start", range(4))
def test_nothing_outside_is_written_and_any_alignment_is_read(gpu, start):
    x = numbers(start + 130).bfloat16()
    codes = torch.full((start + 140,), 7, dtype=torch.uint8)
    expected = simulated(x[start:], "e4m3")[0]
    conversion = resolve_names("e4m3", "TIES_TO_EVEN", "SATURATE")
    gpu.encode_scaled(x[start:].data_ptr(), codes[start:].data_ptr(), (1, 1, 130), "bfloat16", "uint8", conversion)
    assert torch.equal(codes[start : start + 130], expected)
    assert (codes[:start] == 7).all()
    assert (codes[start + 130 :] == 7).all()


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.nan, 0.0, -3.5, 2.0**-149])
@pytest.mark.parametrize("transpose", [False, True])
def test_amax_is_that_of_the_scale_factors(gpu, value, transpose):
    """An element in the last tile decides; NaN of any payload is one NaN, and beats infinity."""
    x = torch.zeros(70, 70)
    x[-1, -1] = value
    if math.isnan(value):
        x.view(torch.int32)[-1, -1] |= 0x123
        x[0, 0] = math.inf
    found = encode_scaled(x, "e4m3", amax=True, transpose=transpose)[2]
    assert same_bits(found, scaling.amax(x, "tensor"))


def test_a_factor_that_had_to_be_copied_stays_until_the_launch(gpu, monkeypatch):
    """Its memory is not given to a result in between: a view of the negated kind is made a tensor of its own."""
    alive = []

    class Kept(torch.Tensor):
        def __del__(self):
            alive.clear()

    def resolve_neg(x):
        copy = torch.Tensor.add(x, 0).as_subclass(Kept)
        alive.append(copy.data_ptr())
        return copy

    launch = gpu.encode_scaled

    def encode(*arguments, **options):
        assert alive == [options["factor_address"]]
        return launch(*arguments, **options)

    scale = torch.tensor(1 - 2j).conj().imag
    assert scale.is_neg()
    monkeypatch.setattr(gpu, "encode_scaled", encode)
    monkeypatch.setattr(torch.Tensor, "resolve_neg", lambda x: resolve_neg(x) if x.is_neg() else x)
    check(torch.randn(5, 7), "e4m3", scale, amax=True, transpose=True)


X = torch.zeros(4, 4)
ERRORS = {
    "one axis": (lambda: encode_scaled(X[0], "e4m3", transpose=True), ValueError, r"x has shape \[4\]: transpose=True"),
    "scale": (
        lambda: encode_scaled(X, "e4m3", torch.ones((), dtype=torch.float64)),
        ValueError,
        "scale must be a float, or one float32 number on x's device cpu: got torch.float64",
    ),
    "dtype": (
        lambda: encode_scaled(X.int(), "e4m3"),
        TypeError,
        "x is torch.int32: expected torch.float32, .* or torch.float64",
    ),
    "policy": (lambda: encode_scaled(X, "e2m1", overflow="nan"), ValueError, "overflow=NAN needs"),
    "seed": (lambda: encode_scaled(X, "e4m3", rounding="stochastic"), ValueError, "STOCHASTIC needs random bits"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(gpu, case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_cpu_tensors_are_refused():
    with pytest.raises(ValueError, match="x is on cpu: the CUDA kernels take CUDA tensors"):
        encode_scaled(X, "e4m3")
