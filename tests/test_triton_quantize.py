"""Block quantization by the Triton kernels against `Quantizer.quantize`, bit for bit, factors included."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from triton_tensors import DEVICE, SPECIALS, VIEWS, numbers, poisoned_outputs, same_bits, with_specials

import fp8sim
from fp8sim import formats, quantizers, scaling
from fp8sim.granularity import Granularity
from fp8sim.quantizers import QUANTIZERS, QuantizedTensor, Quantizer
from fp8sim.rounding import Overflow, Rounding
from fp8sim.scaling import E8M0, FLOAT32, Order, ScaleRule, ScaleSpec
from fp8sim.triton_kernels import hardware
from fp8sim.triton_kernels import quantize as kernels

NAMES = [name for name in QUANTIZERS if name != "nf4"]
SEVERAL_PASSES = ["mxfp8", "nvfp4", "nvfp4_te_16x16", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te", "fp8_1x128"]


def check(
    x: torch.Tensor,
    quantizer: str | Quantizer,
    *,
    kernel: Any = kernels.quantize,
    tile: int | None = None,
    **random: Any,
) -> None:
    parsed = quantizers.parse(quantizer)
    expected = parsed.quantize(x, **random)
    with poisoned_outputs():
        actual = kernel(x.to(DEVICE), parsed, tile=tile, **random)
    for part in ("codes", "scales", "tensor_scale"):
        a, e = getattr(actual, part), getattr(expected, part)
        assert same_bits(a, e), f"{part} of {list(x.shape)} {x.dtype} by {parsed}, tile={tile} {random}"
    assert (actual.quantizer, actual.dtype) == (expected.quantizer, expected.dtype)


def special_rows() -> torch.Tensor:
    """Rows of 70, one with each special value at its end, one with all of them, one of zeros, one of the smallest."""
    x = numbers(len(SPECIALS) + 4, 70, spread=20)
    x[: len(SPECIALS), -1] = SPECIALS
    x[len(SPECIALS), : len(SPECIALS)] = SPECIALS
    x[-3], x[-2] = 0.0, 2.0**-149
    return x


@pytest.mark.parametrize("name", NAMES)
def test_named_quantizers_have_the_bits_of_the_simulator(name: str) -> None:
    check(special_rows(), name)
    check(numbers(3, 130), name)


@pytest.mark.parametrize("name", SEVERAL_PASSES)
def test_blocks_that_do_not_fit_a_program_take_another_pass(name: str) -> None:
    check(numbers(20, 50), name, tile=128)
    check(special_rows()[:, -17:], name, tile=64)
    check(numbers(3, 9), name, tile=16)


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4_te", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te"])
def test_sizes(name: str) -> None:
    for shape in [(1, 1), (63, 1), (1, 63), (1, 1000), (2, 3, 65), (4, 128), (1, 0), (0, 7), (2, 0, 3)]:
        check(numbers(*shape), name)


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str) -> None:
    x = VIEWS[view](numbers(6, 7, 8))
    for name in ("fp8_tensor_te",) if x.ndim < 2 else ("mxfp4", "fp8_128x128", "nvfp4"):
        check(x, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = special_rows().to(dtype)
    for name in ("mxfp8_e5m2_rceil", "nvfp4", "fp8_128x128_divide", "e4m3"):
        check(x, name)
    check(x, "fp8_tensor_te", tile=64)


def specs() -> st.SearchStrategy[ScaleSpec]:
    block = st.builds(Granularity, st.none() | st.integers(1, 5), st.none() | st.integers(1, 40))
    mx = st.sampled_from([rule for rule in ScaleRule if rule.is_mx])
    one = st.sampled_from([ScaleRule.AMAX, ScaleRule.POWER_OF_TWO_AMAX])
    two = st.sampled_from([order for order in Order if order.has_two_levels])
    store = st.sampled_from([formats.parse(name) for name in ("e4m3", "e5m2", "e2m1")])
    flags = {"propagate": st.booleans(), "fused": st.booleans()}
    return st.one_of(
        st.builds(
            ScaleSpec, block, mx, st.just(Order.DIVIDE), st.just(E8M0), st.just(0.0), st.just(True), st.booleans()
        ),
        st.builds(
            ScaleSpec,
            block,
            one,
            st.sampled_from([Order.MULTIPLY, Order.DIVIDE]),
            st.just(FLOAT32),
            st.sampled_from([0.0, 1e-12, 3.0, 1e-45, 1e30]),
            **flags,
        ),
        st.builds(
            ScaleSpec,
            block.filter(lambda granularity: not granularity.is_whole_tensor),
            st.just(ScaleRule.AMAX),
            two,
            store,
            **flags,
        ),
    )


@settings(max_examples=30)
@given(
    spec=specs(),
    fmt=st.sampled_from(["e4m3", "e5m2", "e2m1", "e3m2", "e2m3", "int8_mx", "e4m3fnuz", "binary8p3se", "float16"]),
    mode=st.sampled_from(list(Rounding)),
    overflow=st.sampled_from(list(Overflow)),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=2),
    columns=st.integers(0, 70),
    tile=st.sampled_from([None, 16, 64, 1024]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_definition(
    spec: ScaleSpec,
    fmt: str,
    mode: Rounding,
    overflow: Overflow,
    shape: list[int],
    columns: int,
    tile: int | None,
    seed: int,
) -> None:
    element = formats.parse(fmt)
    if element.nan_code is None:
        overflow = Overflow.SATURATE
    random = {"seed": seed, "stream": seed, "offset": 2**64 - 50, "random_bits": 9} if mode.is_stochastic else {}
    check(with_specials(*shape, columns, seed=seed), Quantizer(element, mode, overflow, spec), tile=tile, **random)


def test_a_shard_has_the_bits_of_the_whole() -> None:
    quantizer = dataclasses.replace(QUANTIZERS["mxfp4"], rounding=Rounding.STOCHASTIC)
    x, policy = numbers(7, 64), {"seed": 5, "stream": 3}
    whole = kernels.quantize(x.to(DEVICE), quantizer, offset=77, **policy)
    part = kernels.quantize(x[3:].to(DEVICE), quantizer, offset=77 + 3 * 64, **policy)
    assert same_bits(part.codes, whole.codes[3:])


@pytest.mark.parametrize("value", [1e-44, 1.0, math.inf, math.nan])
def test_one_element_changes_the_codes_of_its_block_alone(value: float) -> None:
    x = numbers(6, 100).to(DEVICE)
    before = kernels.quantize(x, QUANTIZERS["fp8_1x128"])
    for index in [(0, 0), (3, 99), (5, 50)]:
        y = x.clone()
        y[index] = value if value != 1.0 else 1e6
        after = kernels.quantize(y, QUANTIZERS["fp8_1x128"])
        others = torch.arange(6, device=DEVICE) != index[0]
        assert same_bits(after.codes[others], before.codes[others])
        assert same_bits(after.scales[others], before.scales[others])


# Hardware conversion


@pytest.mark.parametrize("name", ["e4m3", *(name for name in NAMES if name.startswith(("mxfp8", "fp8")))])
def test_hardware_conversion_has_the_bits_of_the_simulator(name: str) -> None:
    check(special_rows(), name, kernel=hardware.quantize)


X = torch.zeros(4, 32, device=DEVICE)


def replaced(name: str, **changes: Any) -> Quantizer:
    quantizer = QUANTIZERS[name]
    assert quantizer.scale is not None
    return dataclasses.replace(quantizer, scale=dataclasses.replace(quantizer.scale, **changes))


ERRORS = {
    "a codebook": (lambda: kernels.quantize(X, QUANTIZERS["nf4"]), ValueError, "is a codebook, which no kernel takes"),
    "too few axes": (
        lambda: kernels.quantize(X[0], QUANTIZERS["fp8_128x128"]),
        ValueError,
        r"x has shape \[32\]: granularity 128x128 takes 2 axes",
    ),
    "integers": (lambda: kernels.quantize(X.int(), QUANTIZERS["mxfp8_e4m3"]), TypeError, "x must be a torch tensor of"),
    "a list": (lambda: kernels.quantize([1.0], QUANTIZERS["mxfp8_e4m3"]), TypeError, "got list"),  # type: ignore[arg-type]
    "device": (
        lambda: kernels.quantize(X.to("meta"), QUANTIZERS["mxfp8_e4m3"]),
        RuntimeError,
        "x is on meta: Triton kern",
    ),
    "a seed": (lambda: kernels.quantize(X, QUANTIZERS["mxfp8_e4m3"], seed=1), ValueError, "takes no random bits"),
    "tile": (
        lambda: kernels.quantize(X, QUANTIZERS["mxfp8_e4m3"], tile=8),
        ValueError,
        "tile=8: expected a power of two",
    ),
    "hardware's format": (lambda: hardware.quantize(X, QUANTIZERS["nvfp4"]), ValueError, "float4_e2m1fn: the GPU conv"),
    "hardware's product": (
        lambda: hardware.quantize(X, replaced("fp8_tensor_te", fused=True)),
        ValueError,
        "fused=True rounds a product once",
    ),
    "hardware's float64": (
        lambda: hardware.quantize(X.double(), quantizers.parse("e4m3")),
        ValueError,
        "x is float64, which the GPU would round twice",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


# The operation


@pytest.mark.parametrize("backend", ["simulate", "triton", "triton_hardware"])
def test_the_operation_runs_on_every_backend(backend: str) -> None:
    x = special_rows()
    expected = quantizers.parse("mxfp8").quantize(x)
    with fp8sim.use_backend(backend):
        actual = fp8sim.quantize(x.requires_grad_(), "mxfp8")
    assert same_bits(actual.codes, expected.codes)
    assert same_bits(actual.scales, expected.scales)
    assert same_bits(actual.cpu().dequantize(), expected.dequantize())


@pytest.mark.parametrize("name", ["e4m3", "mxfp8", "nvfp4", "fp8_tensor_te"])
def test_the_operation_has_a_true_fake(name: str) -> None:
    torch.library.opcheck(torch.ops.fp8sim.quantize.default, (numbers(3, 40), name, None, 0, 0, 32, "simulate"))
    meta = fp8sim.quantize(torch.empty(3, 40, device="meta"), name)
    assert isinstance(meta, QuantizedTensor)
    assert meta.codes.shape == (3, 40)


def test_the_operation_takes_a_seed_in_a_tensor() -> None:
    x = numbers(3, 40)
    for backend in ("simulate", "triton"):
        with fp8sim.use_backend(backend):
            actual = fp8sim.quantize(x, "e2m1:STOCHASTIC", seed=torch.tensor(-7), stream=2**63 + 5, offset=2**64 - 9)
        expected = fp8sim.quantize(x.numpy(), "e2m1:STOCHASTIC", seed=-7, stream=2**63 + 5, offset=2**64 - 9)
        assert np.array_equal(actual.codes, expected.codes)


def test_block_amax_is_that_of_the_simulator() -> None:
    x = special_rows()
    found = kernels._largest(
        kernels.raw_bits(x.to(DEVICE)), kernels._Cut.of((1, *x.shape, 3, 7), 16), {"SOURCE": None, "WIDE_SOURCE": None}
    )
    expected = scaling.amax(x, "3x7")
    assert same_bits(found.cpu().view(torch.float32).reshape(expected.shape), expected)
