"""`fp8sim.casting`: every layout of memory, dtype and kind of array, and every misuse."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from boundaries import FLOATS, bits_of, boundaries

import fp8sim
from fp8sim import _core, casting
from fp8sim.formats import parse
from fp8sim.rounding import resolve_names

Array = np.ndarray[Any, Any]


def sample(dtype: str = "float32", shape: tuple[int, ...] = (6, 10, 8)) -> Array:
    count = int(np.prod(shape))
    points = boundaries(parse("e4m3"), dtype)
    return np.resize(points[:: max(1, points.size // max(count, 1))], count).reshape(shape)


def to_torch(x: Array) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def torch_bits(x: torch.Tensor) -> Array:
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return bits_of(x.view(words[x.dtype.itemsize]).numpy())


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T,
    "every other": lambda x: x[::2, 1::3, ::-1],
    "reversed": lambda x: x[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "broadcast": lambda x: np.broadcast_to(x[:1], (5, *x.shape[1:])),
    "one element": lambda x: x[0, 0, 0:1],
    "0-d": lambda x: x[0, 0, 0, ...],
    "empty": lambda x: x[:0],
    "empty inside": lambda x: x[:, :0],
    "another byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "misaligned": lambda x: np.frombuffer(b"\1" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(layout: str, dtype: str) -> None:
    if layout == "another byte order" and dtype == "bfloat16":
        pytest.skip("ml_dtypes has one byte order")
    x = LAYOUTS[layout](sample(dtype))
    before = x.copy()
    plain = np.array(x.astype(FLOATS[dtype]), order="C", copy=True)
    for fmt in ("e4m3", "bf16"):
        numbers, codes = casting.cast(x, fmt), casting.encode(x, fmt)
        assert numbers.dtype == plain.dtype
        assert numbers.shape == codes.shape == x.shape
        assert numbers.flags.c_contiguous
        flat = plain.reshape(-1)
        np.testing.assert_array_equal(bits_of(numbers).reshape(-1), bits_of(casting.cast(flat, fmt)))
        np.testing.assert_array_equal(codes.reshape(-1), casting.encode(flat, fmt))
        strided_codes = LAYOUTS["every other"](codes) if codes.ndim == 3 else codes
        np.testing.assert_array_equal(
            bits_of(casting.decode(strided_codes, fmt)), bits_of(casting.decode(strided_codes.copy(), fmt))
        )
    assert x.tobytes() == before.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_give_what_arrays_give(dtype: str) -> None:
    x = sample(dtype)
    for tensor in (
        to_torch(x),
        to_torch(x).transpose(0, 2),
        to_torch(x)[::2, 3],
        to_torch(x)[0, 0, 0],
        to_torch(x)[:0],
    ):
        array = bits_of(x) if tensor.shape == x.shape else torch_bits(tensor.contiguous())
        array = array.reshape(tensor.shape).view(FLOATS[dtype])
        if tensor.shape == x.shape[::-1]:
            array = x.T
        numbers = casting.cast(tensor, "e5m2", overflow="INFINITY")
        assert isinstance(numbers, torch.Tensor)
        assert numbers.dtype == tensor.dtype
        assert numbers.is_contiguous()
        np.testing.assert_array_equal(torch_bits(numbers), bits_of(casting.cast(array, "e5m2", overflow="INFINITY")))
        codes = casting.encode(tensor, "e5m2")
        assert codes.dtype == torch.uint8
        np.testing.assert_array_equal(codes.numpy(), casting.encode(array, "e5m2"))
        for target in ("float32", torch.float64, torch.bfloat16, np.float16, ml_dtypes.bfloat16):
            decoded = casting.decode(codes, "e5m2", dtype=target)
            assert isinstance(decoded, torch.Tensor)
            witness = casting.decode(codes.numpy(), "e5m2", dtype=target)
            np.testing.assert_array_equal(torch_bits(decoded), bits_of(witness))


@pytest.mark.parametrize(
    ("fmt", "dtype"), [("e2m1", "uint8"), ("e8m0", "uint8"), ("bf16", "uint16"), ("binary9p3se", "uint16")]
)
def test_codes_have_the_narrowest_dtype(fmt: str, dtype: str) -> None:
    assert casting.code_dtype(parse(fmt)) == dtype
    assert casting.encode(np.ones(3), fmt).dtype == dtype
    assert casting.encode(torch.ones(3), fmt).dtype == getattr(torch, dtype)


def test_wide_codes_are_uint32() -> None:
    x = sample()
    np.testing.assert_array_equal(casting.encode(x, "float32", overflow="INFINITY")[x == x], bits_of(x)[x == x])
    assert casting.encode(torch.from_numpy(x), "tf32").dtype == torch.uint32


# out=


def test_out_may_be_x_itself() -> None:
    for make in (np.copy, torch.tensor):
        x = make(sample())
        expected = casting.cast(x, "e4m3")
        assert casting.cast(x, "e4m3", out=x) is x
        np.testing.assert_array_equal(np.asarray(x), np.asarray(expected))


@pytest.mark.parametrize("fmt", ["e4m3", "bf16", "e8m0", "binary16p12se"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_casting_in_place_gives_the_same_at_every_size(fmt: str, dtype: str) -> None:
    points = boundaries(parse("e4m3"), dtype)
    for count in (1, 15, 63, 64, 1023, 1024, 1025, 2600):
        x = np.resize(points, count)
        expected = casting.cast(x, fmt, rounding="STOCHASTIC", seed=3)
        casting.cast(x, fmt, rounding="STOCHASTIC", seed=3, out=x)
        np.testing.assert_array_equal(bits_of(x), bits_of(expected))


def test_out_may_have_any_strides() -> None:
    x = sample()
    for store in (np.empty((8, 10, 6), np.float32).T, np.empty((12, 10, 8), np.float32)[::2], x.copy()[:, :, ::-1]):
        assert casting.cast(x, "e4m3", out=store) is store
        np.testing.assert_array_equal(store, casting.cast(x, "e4m3"))
    interleaved = np.empty((6, 10, 16), np.float32)
    interleaved[..., ::2] = x
    casting.cast(interleaved[..., ::2], "e4m3", out=interleaved[..., 1::2])
    np.testing.assert_array_equal(interleaved[..., 1::2], casting.cast(x, "e4m3"))
    reversed_in_place = x.copy()[::-1, :, ::2]
    expected = casting.cast(reversed_in_place, "e4m3")
    casting.cast(reversed_in_place, "e4m3", out=reversed_in_place)
    np.testing.assert_array_equal(reversed_in_place, expected)


def test_writing_to_a_tensor_is_seen_by_autograd() -> None:
    weight = torch.ones(3, requires_grad=True)
    saved = weight * 2
    loss = (saved**2).sum()
    casting.cast(saved, "e4m3", out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def refused_outs(x: Array) -> dict[str, tuple[Any, type[Exception]]]:
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    expanded = np.lib.stride_tricks.as_strided(np.empty(8, np.float32), x.shape, (0, 0, 4))
    return {
        "shape": (np.empty(3, np.float32), ValueError),
        "dtype": (np.empty(x.shape, np.float64), TypeError),
        "of the kind of x": (torch.empty(x.shape), TypeError),
        "read-only": (frozen, ValueError),
        "share memory": (expanded, ValueError),
        "overlaps x": (x[::-1], ValueError),
    }


@pytest.mark.parametrize("reason", refused_outs(sample()))
def test_an_out_that_does_not_fit_is_refused(reason: str) -> None:
    x = sample()
    before = x.copy()
    out, error = refused_outs(x)[reason]
    with pytest.raises(error, match=reason):
        casting.cast(x, "e4m3", out=out)
    np.testing.assert_array_equal(x, before)


def test_a_shifted_out_is_refused() -> None:
    for memory in (np.zeros(100, np.float32), torch.zeros(100)):
        with pytest.raises(ValueError, match="out overlaps x"):
            casting.cast(memory[:-1], "e4m3", out=memory[1:])


# Misuse.

X = np.ones(4, np.float32)
CODES = np.ones(4, np.uint8)
MISUSES = {
    "x has dtype int64: expected float32": (TypeError, lambda: casting.cast(np.arange(3), "e4m3")),
    "x has dtype complex64": (TypeError, lambda: casting.encode(torch.ones(3, dtype=torch.complex64), "e4m3")),
    "x has dtype float8_e5m2": (TypeError, lambda: casting.encode(torch.ones(3).to(torch.float8_e5m2), "e4m3")),
    "x is a list: expected a NumPy array": (TypeError, lambda: casting.cast([1.0], "e4m3")),
    "x is a float: .*np.asarray makes one": (TypeError, lambda: casting.cast(1.0, "e4m3")),
    "x has dtype int64": (TypeError, lambda: casting.cast(np.int64(1), "e4m3")),
    "fmt=None is a NoneType: expected a Format": (TypeError, lambda: casting.cast(X, None)),
    r"x is a masked array.*x.filled\(...\)": (TypeError, lambda: casting.cast(np.ma.masked_array(X), "e4m3")),
    "x is a masked array, and": (TypeError, lambda: casting.encode(np.ma.masked_array(X), "nf4")),
    "codes is a masked array": (TypeError, lambda: casting.decode(np.ma.masked_array(CODES), "e4m3")),
    "out is a masked array": (TypeError, lambda: casting.cast(X, "e4m3", out=np.ma.masked_array(X.copy()))),
    "x is on meta: fp8sim.casting takes CPU tensors": (
        ValueError,
        lambda: casting.cast(torch.ones(3, device="meta"), "e4m3"),
    ),
    "x has layout torch.sparse_coo": (TypeError, lambda: casting.cast(torch.ones(3).to_sparse(), "e4m3")),
    "unknown format 'e4m4'": (ValueError, lambda: casting.cast(X, "e4m4")),
    "rounding='nearest': use one of": (ValueError, lambda: casting.cast(X, "e4m3", rounding="nearest")),
    "overflow='wrap': use one of": (ValueError, lambda: casting.cast(X, "e4m3", overflow="wrap")),
    "overflow=NAN needs": (ValueError, lambda: casting.cast(X, "e2m1", overflow="NAN")),
    "rounding=STOCHASTIC needs random bits: pass seed=": (
        ValueError,
        lambda: casting.cast(X, "e4m3", rounding="STOCHASTIC"),
    ),
    "seed=0: rounding=TIES_TO_EVEN takes no random bits": (ValueError, lambda: casting.cast(X, "e4m3", seed=0)),
    "random_bits=33: expected 1 to 32": (
        ValueError,
        lambda: casting.cast(X, "e4m3", rounding="STOCHASTIC", seed=0, random_bits=33),
    ),
    "stream=18446744073709551616: expected": (
        ValueError,
        lambda: casting.cast(X, "e4m3", rounding="STOCHASTIC", seed=0, stream=2**64),
    ),
    "codes has dtype int8": (TypeError, lambda: casting.decode(np.ones(3, np.int8), "e4m3")),
    "codes contain 0x10: the codes of float4_e2m1fn are 0 to 0xf": (
        ValueError,
        lambda: casting.decode(np.array([1, 16], np.uint8), "e2m1"),
    ),
    "dtype='int8': use one of": (TypeError, lambda: casting.decode(np.ones(3, np.uint8), "e4m3", dtype="int8")),
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_a_clear_error(message: str) -> None:
    error, call = MISUSES[message]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_scalar_gives_a_scalar(dtype: str) -> None:
    x = FLOATS[dtype](1.6)
    for fmt in ("e4m3", "nf4"):
        array = np.asarray(x)
        for function in (casting.cast, fp8sim.cast):
            assert isinstance(function(x, fmt), FLOATS[dtype])
            assert function(x, fmt) == casting.cast(array, fmt)
        for function in (casting.encode, fp8sim.encode):
            code = function(x, fmt)
            assert isinstance(code, np.uint8)
            assert code == casting.encode(array, fmt)
        assert isinstance(fp8sim.decode(code, fmt, dtype=FLOATS[dtype]), FLOATS[dtype])
    for quantizer in ("e4m3", "fp8_tensor_te"):
        quantized, expected = (fp8sim.quantize(given, quantizer) for given in (x, np.asarray(x)))
        assert quantized.codes.shape == ()
        assert quantized.dequantize() == expected.dequantize()


def test_seeds_are_patterns_of_64_bits() -> None:
    options = {"rounding": "STOCHASTIC", "random_bits": 9}
    x = sample()
    assert np.array_equal(
        casting.encode(x, "e4m3", seed=-1, stream=-2, **options),
        casting.encode(x, "e4m3", seed=2**64 - 1, stream=2**64 - 2, **options),
    )
    assert np.array_equal(
        casting.encode(x, "e4m3", seed=torch.tensor(7), **options), casting.encode(x, "e4m3", seed=7, **options)
    )


# The bindings check for themselves: whatever they are given, they touch no other memory.

GOOD = list(resolve_names("e4m3", "TIES_TO_EVEN", "SATURATE"))


def binding_misuses() -> dict[str, Any]:
    x, y = np.ones(64, np.float32), np.ones(64, np.float32)
    frozen = y.copy()
    frozen.flags.writeable = False
    misaligned = np.zeros(257, np.uint8)[1:].view(np.float32)
    return {
        "target has 63 elements": lambda: _core.cast(x, y[1:], "float32", GOOD),
        "target has items of 8 bytes": lambda: _core.cast(x, y.astype(np.float64), "float32", GOOD),
        "source has items of 4 bytes": lambda: _core.cast(x, y, "float16", GOOD),
        "target holds Python objects": lambda: _core.cast(x.astype(np.float64), y.astype(object), "float64", GOOD),
        "source is not C-contiguous": lambda: _core.cast(x[::2], y[:32].copy(), "float32", GOOD),
        "source is not aligned": lambda: _core.cast(misaligned, y, "float32", GOOD),
        "target is read-only": lambda: _core.cast(x, frozen, "float32", GOOD),
        "source and target overlap": lambda: _core.cast(x[1:], x[:-1], "float32", GOOD),
        "dtype='int32': use one of": lambda: _core.cast(x, y, "int32", GOOD),
        "code_dtype='int8': use one of": lambda: _core.encode(x, y, "float32", "int8", GOOD),
        "random_bits=0": lambda: _core.cast(x, y, "float32", GOOD, random_bits=0),
        "conversion: expected what": lambda: _core.cast(x, y, "float32", [77, *GOOD[1:]]),
        "count=0: expected 1 to 1024": lambda: _core.set_num_threads(0),
        "isa='sse9': this build on this processor has portable": lambda: _core.set_isa("sse9"),
    }


@pytest.mark.parametrize("message", binding_misuses())
def test_the_bindings_refuse(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binding_misuses()[message]()


def test_the_bindings_refuse_other_types() -> None:
    x = np.ones(4, np.float32)
    for arguments in ((x, x, "float32", GOOD[:-1]), (x, [1.0], "float32", GOOD), (x, x, 3, GOOD)):
        with pytest.raises(TypeError):
            _core.cast(*arguments)
    with pytest.raises(TypeError):
        _core.cast(x, x, "float32", GOOD, seed=-1)


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "e2m1", "bf16", "fp16", "e8m0", "binary8p3sf", "tf32", "e4m3fnuz"])
def test_casting_is_idempotent_and_odd(fmt: str) -> None:
    for dtype, mode in itertools.product(FLOATS, ("TIES_TO_EVEN", "TO_ODD", "TOWARD_ZERO")):
        x = boundaries(parse("e4m3"), dtype)
        once = casting.cast(x, fmt, rounding=mode)
        np.testing.assert_array_equal(bits_of(casting.cast(once, fmt, rounding=mode)), bits_of(once))
        if parse(fmt).signed:
            negated = -casting.cast(-x, fmt, rounding=mode)
            np.testing.assert_array_equal(negated[x == x], once[x == x])
