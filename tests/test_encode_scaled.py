"""Encode with a factor, amax and a transposed copy: the definition in exact rationals, the kernels bit for bit."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from triton_tensors import DEVICE, SPECIALS, VIEWS, numbers, poisoned_outputs, same_bits, with_specials

import fp8sim
from fp8sim import formats, scaling
from fp8sim.ops.encode_scaled import ScaledCodes, encode_scaled
from fp8sim.rounding import Overflow, Rounding
from fp8sim.simulate.encode_scaled import encode_scaled as simulated
from fp8sim.triton_kernels import encode_scaled as kernels
from fp8sim.triton_kernels import hardware
from tests import oracle, scale_oracle

STOCHASTIC = {"rounding": "stochastic", "seed": -3, "stream": 9, "offset": 2**64 - 1000}
FACTORS = [1.0, 0.3, -(2.0**-140), 0.0, -0.0, math.inf, math.nan, 3.4e38, 1e300, 2.0**-149]


def check(x: torch.Tensor, fmt: str, scale: Any = None, *, kernel: Any = kernels.encode_scaled, **options: Any) -> None:
    """The kernel's three results are the simulator's."""
    expected = simulated(x, fmt, scale, **{k: v for k, v in options.items() if k != "block"})
    given = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    with poisoned_outputs():
        actual = kernel(x.to(DEVICE), fmt, given, **options)
    for name, a, e in zip(ScaledCodes._fields, actual, expected, strict=True):
        assert same_bits(a, e), f"{name} of {list(x.shape)} {x.dtype} to {fmt} times {scale}, {options}"
    assert all(a is None or a.is_contiguous() for a in actual)


# The definition


def code_of_product(x: float, scale: float, fmt: formats.Format, fused: bool) -> int:
    """In exact rationals."""
    magnitude = scale_oracle.times(scale_oracle.number(x), scale_oracle.number(scale))
    if not fused:
        magnitude = scale_oracle.rounded(magnitude)
    made_nan = magnitude != magnitude and not math.isnan(x)
    negative = math.copysign(1, x) < 0 if math.isnan(x) else math.copysign(1, x) * math.copysign(1, scale) < 0
    if isinstance(magnitude, Fraction):
        magnitude = float(oracle.round_magnitude(magnitude, negative, fmt, Rounding.TIES_TO_EVEN))
    signed = -magnitude if negative and not made_nan else magnitude
    return oracle.encode(signed, fmt, Rounding.TIES_TO_EVEN, Overflow.SATURATE)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", FACTORS)
def test_the_simulator_is_the_definition(scale: float, fused: bool) -> None:
    x = torch.cat([SPECIALS, numbers(40)])
    with np.errstate(over="ignore"):
        factor = float(np.float32(scale))
    for name in ("e4m3", "e5m2", "e2m1"):
        codes, _, _ = simulated(x, name, scale, fused=fused)
        expected = [code_of_product(v, factor, formats.parse(name), fused) for v in x.tolist()]
        # -NaN of Python's floats is a NaN with its sign bit
        assert codes.tolist() == expected, name


def test_a_product_near_a_tie_is_rounded_twice_or_once() -> None:
    """Products that float32 rounds onto the ties of E4M3."""
    fmt, scale = formats.parse("e4m3"), float(np.float32(0.3))
    ties = [float(fmt.value(code) + fmt.value(code + 1)) / 2 for code in range(fmt.max_code)]
    x = torch.tensor([tie / scale for tie in ties])
    for fused in (False, True):
        expected = [code_of_product(v, scale, fmt, fused) for v in x.tolist()]
        assert simulated(x, "e4m3", scale, fused=fused)[0].tolist() == expected
        check(x, "e4m3", scale, fused=fused)
    assert (simulated(x, "e4m3", scale)[0] != simulated(x, "e4m3", scale, fused=True)[0]).sum() > 10


def test_without_a_factor_float64_is_rounded_once() -> None:
    x = torch.tensor([1 + 2.0**-4 + 2.0**-40], dtype=torch.float64)
    assert simulated(x, "e4m3")[0].item() == 0x39
    assert simulated(x, "e4m3", 1.0)[0].item() == 0x38


# The kernels


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_output_is_the_simulators(dtype: torch.dtype, transpose: bool) -> None:
    x = with_specials(20, 33).to(dtype)
    for fmt in ("e4m3", "e5m2", "e2m1", "float16"):
        check(x, fmt, transpose=transpose)
        check(x, fmt, 0.3, amax=True, transpose=transpose)
    check(x, "e4m3", torch.tensor(-7.1), fused=True, transpose=transpose)
    check(x, "e2m1", torch.tensor([[0.7]]), amax=True, transpose=transpose, **STOCHASTIC)
    check(x, "float8_e4m3fnuz", 2.0, transpose=transpose, overflow="nan", rounding="to_odd")


@pytest.mark.parametrize("scale", FACTORS)
def test_any_factor_meets_any_number(scale: float) -> None:
    x = torch.cat([SPECIALS, numbers(51, spread=40)])
    for fused in (False, True):
        check(x, "e4m3", scale, fused=fused)
        check(x, "e5m2", scale, fused=fused, overflow="infinity")


@pytest.mark.parametrize(("shape", "block"), [((1,), 64), ((63,), 64), ((1000,), 64), ((4, 250), 1024)])
def test_sizes_and_blocks(shape: tuple[int, ...], block: int) -> None:
    x = numbers(*shape)
    check(x, "e4m3", 3.0, amax=True, block=block)
    check(x, "e4m3", 3.0, amax=True, block=block, **STOCHASTIC)


@pytest.mark.parametrize("shape", [(1, 1), (63, 1), (1, 63), (40, 50), (3, 17, 33), (2, 0, 3, 5), (0, 4)])
def test_transposed_sizes_and_tiles(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    check(x, "e4m3", 3.0, amax=True, transpose=True, block=16)
    check(x, "e4m3", 3.0, transpose=True, **STOCHASTIC)


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str) -> None:
    x = VIEWS[view](numbers(6, 7, 8))
    check(x, "e4m3", 0.3, amax=True, transpose=x.ndim >= 2, block=64 if x.ndim < 2 else 16)


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(0, 20), min_size=2, max_size=3),
    fmt=st.sampled_from(["e4m3", "e5m2", "e2m1", "e3m2", "e8m0", "e4m3fnuz", "bfloat16"]),
    mode=st.sampled_from(list(Rounding)),
    scale=st.none() | st.floats(width=32),
    fused=st.booleans(),
    transpose=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_policy(
    shape: list[int], fmt: str, mode: Rounding, scale: float | None, fused: bool, transpose: bool, seed: int
) -> None:
    random = {"seed": seed, "offset": seed, "random_bits": 5} if mode.is_stochastic else {}
    x = with_specials(*shape, seed=seed)
    check(x, fmt, scale, fused=fused, transpose=transpose, amax=True, rounding=mode, **random)


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.nan, 0.0, -3.5, 2.0**-149])
@pytest.mark.parametrize("transpose", [False, True])
def test_amax_is_that_of_the_scale_factors(value: float, transpose: bool) -> None:
    """An element in the last tile decides; NaN of any payload is one NaN, and beats infinity."""
    x = torch.zeros(40, 40)
    x[-1, -1] = value
    if math.isnan(value):
        x.view(torch.int32)[-1, -1] |= 0x123
        x[0, 0] = math.inf
    block = 16 if transpose else 64
    found = kernels.encode_scaled(x.to(DEVICE), "e4m3", amax=True, transpose=transpose, block=block)[2]
    assert same_bits(found, scaling.amax(x, "tensor"))


def test_a_shard_has_the_bits_of_the_whole() -> None:
    x, policy = numbers(7, 100), {"rounding": "stochastic", "seed": 5, "stream": 3}
    whole = kernels.encode_scaled(x.to(DEVICE), "e4m3", 0.7, offset=77, **policy)[0]
    part = kernels.encode_scaled(x[3:].to(DEVICE), "e4m3", 0.7, offset=77 + 300, transpose=True, **policy)
    assert same_bits(part[0], whole[3:])
    assert same_bits(part[1], whole[3:].mT)


# Hardware conversion: the interpreter has the numbers of NVIDIA's header, so this shows indexing, factors and signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", ["e4m3", "e5m2"])
def test_hardware_conversion_has_the_bits_of_the_simulator(fmt: str, dtype: torch.dtype) -> None:
    x = with_specials(20, 33).to(dtype)
    check(x, fmt, kernel=hardware.encode_scaled, amax=True)
    check(x, fmt, 0.3, kernel=hardware.encode_scaled, transpose=True)
    check(x, fmt, torch.tensor(-7.1), kernel=hardware.encode_scaled, amax=True, transpose=True)
    assert same_bits(hardware.encode(x.to(DEVICE), fmt), fp8sim.encode(x, fmt))


X = torch.zeros(4, 4, device=DEVICE)
REFUSED = {
    "format": (lambda: hardware.encode(X, "e2m1"), "float4_e2m1fn: the GPU converts to float8_e4m3fn and"),
    "rounding": (lambda: hardware.encode(X, "e4m3", rounding="to_odd"), "rounding=TO_ODD.*use the backend 'triton'"),
    "overflow": (
        lambda: hardware.encode(X, "e5m2", overflow="infinity"),
        "overflow=INFINITY: the GPU's conversion has",
    ),
    "fused": (lambda: hardware.encode_scaled(X, "e4m3", 2.0, fused=True), "fused=True rounds a product once"),
    "float64": (lambda: hardware.encode(X.double(), "e4m3"), "x is float64, which the GPU would round twice"),
    "seed": (lambda: hardware.encode(X, "e4m3", seed=1), "seed: TIES_TO_EVEN takes no random bits"),
    "transpose": (lambda: hardware.encode_scaled(X[0], "e4m3", transpose=True), r"x has shape \[4\]: transpose=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hardware_refuses_what_it_cannot_honour(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        is_cuda, device, dtype = True, torch.device("cuda"), torch.float32

    monkeypatch.setattr(hardware, "require_device", lambda argument, x: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(RuntimeError, match=r"needs compute capability 9.0 or later .* has 8.9: use the backend"):
        hardware._require_capability(Tensor())  # type: ignore[arg-type]


# The operation


@pytest.mark.parametrize("backend", ["simulate", "triton", "triton_hardware"])
def test_the_operation_runs_on_every_backend(backend: str) -> None:
    x = with_specials(20, 33)
    expected = simulated(x, "e4m3", 0.5, amax=True, transpose=True)
    with fp8sim.use_backend(backend):
        actual = encode_scaled(x.requires_grad_(), "e4m3", 0.5, amax=True, transpose=True)
        alone = encode_scaled(x, "e4m3", torch.tensor(0.5))
    assert all(map(same_bits, actual, expected))
    assert same_bits(alone.codes, expected[0])
    assert (alone.transposed, alone.amax) == (None, None)
    assert not actual.codes.requires_grad


def test_the_operation_compiles_and_takes_a_seed() -> None:
    def step(x: torch.Tensor, scale: torch.Tensor, seed: torch.Tensor) -> Any:
        first = encode_scaled(x, "e4m3", scale, amax=True, transpose=True)
        return first, encode_scaled(x, "e5m2", 3.0, rounding="stochastic", seed=seed, offset=5).codes

    x, scale, seed = numbers(5, 70), torch.tensor(0.3), torch.tensor(7)
    first, second = torch.compile(step, backend="eager", fullgraph=True)(x, scale, seed)
    assert all(map(same_bits, first, simulated(x, "e4m3", scale, amax=True, transpose=True)))
    assert same_bits(second, simulated(x, "e5m2", 3.0, rounding="stochastic", seed=7, offset=5)[0])


def test_the_operation_has_a_true_fake() -> None:
    x, scale = numbers(2, 5, 7), torch.tensor(0.3)
    for options in ([False, False, False], [True, True, True]):
        arguments = (x, "e4m3:TIES_TO_EVEN:SATURATE", None, scale, options, None, 0, 0, 32, "simulate")
        torch.library.opcheck(torch.ops.fp8sim.encode_scaled.default, arguments)
    meta = encode_scaled(x.to("meta"), "e4m3", transpose=True)
    assert (meta.codes.shape, meta.transposed.shape) == (x.shape, x.mT.shape)  # type: ignore[union-attr]


ERRORS = {
    "one axis": (lambda: encode_scaled(X[0], "e4m3", transpose=True), ValueError, r"x has shape \[4\]: transpose=True"),
    "kernel, one axis": (
        lambda: kernels.encode_scaled(X[0], "e4m3", transpose=True),
        ValueError,
        r"x has shape \[4\]: transpose=True takes two axes",
    ),
    "simulated, one axis": (lambda: simulated(X[0].cpu(), "e4m3", transpose=True), ValueError, "takes two axes"),
    "scale's dtype": (
        lambda: kernels.encode_scaled(X, "e4m3", torch.ones((), dtype=torch.float64)),
        ValueError,
        "scale must be a float, or one float32 number on x's device .*: got torch.float64",
    ),
    "scale's shape": (lambda: simulated(X.cpu(), "e4m3", torch.ones(2)), ValueError, r"scale must .* \[2\] on cpu"),
    "zero": (lambda: encode_scaled(X, "e4m3", 0.0), ValueError, "scale=0.0: expected a positive finite number"),
    "underflow": (lambda: encode_scaled(X, "e4m3", 1e-46), ValueError, "scale=1e-46: expected .* in float32, too"),
    "overflow": (lambda: encode_scaled(X, "e4m3", 3.5e38), ValueError, "scale=3.5e.38: expected .* in float32, too"),
    "negative": (lambda: encode_scaled(X, "e4m3", -1.0), ValueError, "scale=-1.0: expected a positive finite number"),
    "text": (lambda: encode_scaled(X, "e4m3", "1"), TypeError, "scale is a str: expected a number"),
    "integers": (
        lambda: encode_scaled(X.int().to("meta"), "e4m3"),
        TypeError,
        "x is torch.int32: expected torch.float32",
    ),
    "block": (lambda: kernels.encode_scaled(X, "e4m3", block=100), ValueError, "block=100: expected a power of two"),
    "tile": (
        lambda: kernels.encode_scaled(X, "e4m3", transpose=True, block=1024),
        ValueError,
        "block=1024: expected a power of two from 16 to 256",
    ),
    "dtype": (lambda: kernels.encode_scaled(X.int(), "e4m3"), TypeError, "x must be a torch tensor of float64"),
    "policy": (lambda: encode_scaled(X, "e2m1", overflow="nan"), ValueError, "overflow=NAN needs"),
    "seed": (lambda: encode_scaled(X, "e4m3", rounding="stochastic"), ValueError, "STOCHASTIC needs random bits"),
    "device": (lambda: kernels.encode_scaled(X.to("meta"), "e4m3"), RuntimeError, "x is on meta: Triton kernels"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
