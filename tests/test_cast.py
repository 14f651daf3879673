"""The public `cast`, `encode` and `decode`: registered operations, gradients, kinds of array."""

import numpy as np
import pytest
import torch

import fp8sim
from fp8sim import formats
from fp8sim.formats import Format
from fp8sim.ops import cast as ops

POLICY = "float8_e4m3fn:TIES_TO_EVEN:SATURATE"
STOCHASTIC = "float8_e4m3fn:STOCHASTIC:SATURATE"
TAKES_FORMATS = pytest.mark.skipif(
    torch.__version__ < "2.13",
    reason="before torch 2.13 the compiler passes no frozen dataclass to a constant function",
)


def test_opcheck() -> None:
    x = torch.randn(5, 3)
    for sample in (x, x.mT, x[::2], torch.randn(()), torch.randn(0, 3), x.bfloat16(), x.double()):
        torch.library.opcheck(ops._cast_op, (sample, POLICY, None, 0, 0, 0, "simulate"))
        torch.library.opcheck(ops._encode_op, (sample, POLICY, None, 0, 0, 0, "simulate"))
    torch.library.opcheck(ops._cast_op, (x, STOCHASTIC, torch.tensor(7), -1, 3, 16, "simulate"))
    codes = fp8sim.encode(x, "e4m3")
    torch.library.opcheck(ops._decode_op, (codes, "float8_e4m3fn", torch.float32, "simulate"))


def test_the_gradient_is_straight_through_or_cast_to_its_own_format() -> None:
    x = torch.randn(64, requires_grad=True)
    grad = torch.randn(64)
    fp8sim.cast(x, "e4m3").backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad)
    x.grad = None
    fp8sim.cast(x, "e4m3", grad_format="e5m2").backward(grad)
    assert torch.equal(x.grad, fp8sim.cast(grad, "e5m2"))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("policy", [{}, {"rounding": "to_odd"}, {"rounding": "stochastic", "seed": torch.tensor(3)}])
@pytest.mark.parametrize("fmt", ["e4m3", pytest.param(formats.parse("e4m3"), marks=TAKES_FORMATS, id="Format")])
def test_the_compiled_cast_is_one_graph_with_the_same_bits(fmt: str | Format, policy: dict[str, object]) -> None:
    x = torch.randn(33, 5, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        return fp8sim.cast(x * 2, fmt, **policy) + 1  # type: ignore[arg-type]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), function(x))
    gradients = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, function)]
    assert torch.equal(*gradients)


def test_numpy_arrays_and_tensors_get_the_same_codes() -> None:
    x = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    codes = fp8sim.encode(x, "e5m2")
    assert isinstance(codes, np.ndarray)
    assert codes.dtype == np.uint8
    tensor = fp8sim.encode(torch.from_numpy(x), "e5m2")
    assert tensor.dtype == torch.uint8
    assert np.array_equal(codes, tensor.numpy())
    assert np.array_equal(fp8sim.decode(codes, "e5m2"), fp8sim.cast(x, "e5m2"))
    assert fp8sim.decode(tensor, "e5m2", dtype=torch.float64).dtype == torch.float64


def test_cast_is_decode_of_encode() -> None:
    x = torch.randn(1000) * 100
    for fmt in ("e4m3", "e5m2", "e2m1", "bf16", "fp16", "tf32", "binary6p3sf"):
        assert torch.equal(fp8sim.cast(x, fmt), fp8sim.decode(fp8sim.encode(x, fmt), fmt))


def test_stochastic_streams_are_named_by_64_bit_words() -> None:
    x = torch.full((256,), 0.3)
    policy = {"rounding": "STOCHASTIC", "random_bits": 16}
    first = fp8sim.cast(x, "e4m3", seed=2**64 - 1, stream=2**63, offset=2**64 - 5, **policy)  # type: ignore[arg-type]
    again = fp8sim.cast(x.numpy(), "e4m3", seed=2**64 - 1, stream=2**63, offset=2**64 - 5, **policy)  # type: ignore[arg-type]
    other = fp8sim.cast(x, "e4m3", seed=2**64 - 1, stream=2**63 + 1, offset=2**64 - 5, **policy)  # type: ignore[arg-type]
    assert np.array_equal(first.numpy(), again)
    assert not torch.equal(first, other)
    assert set(first.tolist()) == {0.28125, 0.3125}


def test_out_receives_the_result_and_is_refused_when_a_gradient_is_needed() -> None:
    x, out = torch.randn(8), torch.empty(8)
    assert fp8sim.cast(x, "e4m3", out=out) is out
    assert torch.equal(out, fp8sim.cast(x, "e4m3"))
    expected = fp8sim.cast(x, "e4m3")
    assert fp8sim.cast(x, "e4m3", out=x) is x
    assert torch.equal(x, expected)
    with pytest.raises(ValueError, match="out= is refused when a gradient is needed"):
        fp8sim.cast(torch.randn(8, requires_grad=True), "e4m3", out=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fmt": "e9m9"}, "unknown format 'e9m9'"),
        ({"rounding": "nearest"}, "rounding='nearest'"),
        ({"overflow": "clip"}, "overflow='clip'"),
        ({"fmt": "e2m1", "overflow": "NAN"}, "has neither"),
        ({"rounding": "STOCHASTIC"}, "seed"),
        ({"seed": 1}, "seed"),
        ({"rounding": "STOCHASTIC", "seed": 2**64}, "seed=18446744073709551616: expected an integer of 64 bits"),
    ],
)
@pytest.mark.parametrize("kind", [torch.ones, np.ones])
def test_bad_arguments_are_named(arguments: dict[str, object], message: str, kind: object) -> None:
    x = kind(3, dtype=torch.float32 if kind is torch.ones else np.float32)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        fp8sim.cast(x, **{"fmt": "e4m3", **arguments})


def test_a_gradient_format_is_for_tensors() -> None:
    with pytest.raises(ValueError, match="grad_format is for torch tensors"):
        fp8sim.cast(np.ones(3, np.float32), "e4m3", grad_format="e5m2")


@pytest.mark.parametrize("dtype", ["float64", torch.float64, np.float64, np.dtype("float64")])
def test_decode_takes_a_dtype_by_any_name(dtype: object) -> None:
    for codes in (torch.tensor([0x38], dtype=torch.uint8), np.array([0x38], np.uint8)):
        assert str(fp8sim.decode(codes, "e4m3", dtype=dtype).dtype).endswith("float64")


@pytest.mark.parametrize("x", [torch.ones(3, dtype=torch.int32), np.ones(3, np.int64), torch.ones(3) * 1j, [1.0, 2.0]])
def test_what_is_no_float_array_is_a_type_error(x: object) -> None:
    with pytest.raises(TypeError):
        fp8sim.cast(x, "e4m3")  # type: ignore[type-var]
