"""The Triton cast, encode and decode against the definition in exact rationals, bit for bit.

On a GPU the kernels run there; without one, in the interpreter, which proves integer arithmetic such as this.
"""

import functools
import math

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import oracle
import triton
import triton.language as tl
from boundaries import FLOATS, assert_same_codes, policies, widened
from cast_cases import CASES, OFFSET, SEED, STREAM, assert_same_bits, codes_of, default_conversion, inputs
from cast_cases import policies as policies_with_random_bits

from fp8sim import casting
from fp8sim.formats import parse
from fp8sim.rounding import Overflow, Rounding
from fp8sim.triton_kernels import cast as kernels
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.random import _philox, random_integers

DEVICE = "cpu" if interpreter.is_enabled() else "cuda"
SHARED = {"seed": SEED, "stream": STREAM, "offset": OFFSET}


def to_device(x):
    """A tensor from an array, bfloat16 included."""
    array = x.view(np.int16) if x.dtype.name == "bfloat16" else x
    tensor = torch.from_numpy(array).to(DEVICE)
    return tensor.view(torch.bfloat16) if array is not x else tensor


def to_array(x):
    """An array from a tensor; bfloat16 as its bits."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).cpu().numpy()


def encode(x, *args, **kwargs):
    return to_array(kernels.encode(to_device(x), *args, **kwargs))


def cast(x, *args, **kwargs):
    return to_array(kernels.cast(to_device(x), *args, **kwargs)).view(x.dtype)


def decode(codes, *args, **kwargs):
    return to_array(kernels.decode(to_device(codes), *args, **kwargs))


# Every mode and policy of every format

TABULATED = [fmt for fmt in CASES if fmt.bits <= 16]
UNTABULATED = [fmt for fmt in CASES if fmt.bits > 16]
RANDOM_BITS = 7


def random_arguments(mode):
    return SHARED | {"random_bits": RANDOM_BITS} if mode.is_stochastic else {}


@functools.cache
def random_integers_of(count):
    return np.array([oracle.random_integer(SEED, STREAM, OFFSET + i, RANDOM_BITS) for i in range(count)], np.uint32)


def assert_encodes_as_defined(x, fmt, mode, overflow):
    random = random_integers_of(x.size)
    if fmt in TABULATED:
        expected = oracle.encode_array(widened(x), fmt, mode, overflow, random, RANDOM_BITS)
    else:
        pairs = zip(widened(x).tolist(), random.tolist(), strict=True)
        expected = np.array([oracle.encode(v, fmt, mode, overflow, r, RANDOM_BITS) for v, r in pairs])
    actual = encode(x, fmt, rounding=mode, overflow=overflow, **random_arguments(mode))
    assert_same_codes(actual, expected, x, f"{fmt} {mode.name} {overflow.name}")


@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_encode_is_the_definition(fmt):
    """float32 at every boundary; a sample for formats too large for a table, one rational at a time."""
    x = inputs(fmt, "float32")[:: 1 if fmt in TABULATED else 293]
    for mode in Rounding:
        for overflow in policies(fmt):
            assert_encodes_as_defined(x, fmt, mode, overflow)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("fmt", TABULATED, ids=str)
def test_encode_of_other_dtypes_is_the_definition(fmt, dtype):
    mode = Rounding.STOCHASTIC if dtype == "float64" else Rounding.TIES_TO_EVEN
    assert_encodes_as_defined(inputs(fmt, dtype), fmt, mode, Overflow.SATURATE)


@pytest.mark.parametrize("random_bits", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("mode", [mode for mode in Rounding if mode.is_stochastic], ids=lambda mode: mode.name)
def test_stochastic_modes_where_few_bits_are_discarded(mode, random_bits):
    """Fewer discarded bits than random ones, as many, and more."""
    fmt = parse("e8m20(bias=127,nan=ieee,infinity)")
    x = inputs(parse("float32"), "float32")[-300:]
    random = [oracle.random_integer(SEED, STREAM, OFFSET + i, random_bits) for i in range(x.size)]
    pairs = zip(widened(x).tolist(), random, strict=True)
    expected = np.array([oracle.encode(v, fmt, mode, Overflow.SATURATE, r, random_bits) for v, r in pairs])
    actual = encode(x, fmt, rounding=mode, random_bits=random_bits, **SHARED)
    assert_same_codes(actual, expected, x, f"{mode.name} {random_bits}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_decode_is_the_definition(fmt, dtype):
    codes = codes_of(fmt)[:: 1 if fmt.bits <= 8 else 5]
    expected = np.array([oracle.decode(code, fmt, dtype) for code in codes], oracle.DTYPES[dtype])
    actual = decode(np.array(codes, casting.code_dtype(fmt)), fmt, dtype=dtype)
    assert_same_bits(actual.view(expected.dtype), expected, f"{fmt} to {dtype}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_cast_is_decode_of_encode(fmt, dtype):
    x = inputs(fmt, dtype)
    policy = {"rounding": Rounding.STOCHASTIC, **SHARED} if dtype == "float32" else {}
    expected = decode(encode(x, fmt, **policy), fmt, dtype=dtype).view(x.dtype)
    assert_same_bits(cast(x, fmt, **policy), expected, f"{fmt} {dtype}")


@pytest.mark.full
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_every_policy_has_the_bits_of_the_core(fmt, dtype):
    x = inputs(fmt, dtype)
    for mode, overflow, random in policies_with_random_bits(fmt):
        policy = {"rounding": mode, "overflow": overflow, **random}
        what = f"{fmt} {dtype} {mode.name} {overflow.name}"
        assert_same_bits(cast(x, fmt, **policy), casting.cast(x, fmt, **policy), what)
        assert_same_bits(encode(x, fmt, **policy), casting.encode(x, fmt, **policy), what)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("fmt", [fmt for fmt in CASES if fmt.bits <= 8], ids=str)
def test_every_16_bit_number_has_the_bits_of_the_core(fmt, dtype):
    x = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[dtype])
    for mode in Rounding:
        policy = {"rounding": mode, **(SHARED if mode.is_stochastic else {})}
        assert_same_bits(cast(x, fmt, **policy), casting.cast(x, fmt, **policy), f"{fmt} {mode.name}")


# Random bits


@triton.jit
def philox_kernel(words_ptr):
    c0, c1, c2, c3, k0, k1 = [tl.load(words_ptr + i + tl.arange(0, 1)) for i in tl.static_range(6)]
    c0, c1, c2, c3 = _philox(c0, c1, c2, c3, k0, k1)
    tl.store(words_ptr + tl.arange(0, 1), c0)
    tl.store(words_ptr + 1 + tl.arange(0, 1), c1)
    tl.store(words_ptr + 2 + tl.arange(0, 1), c2)
    tl.store(words_ptr + 3 + tl.arange(0, 1), c3)


# Known answers published with the algorithm (Random123, kat_vectors): counter, key, result.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_gives_the_published_words(counter, key, expected):
    words = torch.tensor([int(word, 16) for word in f"{counter} {key}".split()]).to(torch.uint32).to(DEVICE)
    philox_kernel[(1,)](words)
    assert " ".join(f"{word:08x}" for word in words.tolist()[:4]) == expected


@triton.jit
def random_kernel(out_ptr, group, seed, stream, GROUPS: tl.constexpr, BITS: tl.constexpr):
    r = random_integers(group.to(tl.uint64), seed.to(tl.uint64), stream.to(tl.uint64), GROUPS, BITS)
    tl.store(out_ptr + tl.arange(0, GROUPS * 64), r)


@pytest.mark.parametrize("bits", [1, 7, 32])
@pytest.mark.parametrize("group", [0, 3, 2**58 - 1])
def test_random_integers_come_in_element_order(group, bits):
    out = torch.empty(256, dtype=torch.uint32, device=DEVICE)
    random_kernel[(1,)](out, group, SEED, STREAM - 2**64, GROUPS=4, BITS=bits)
    assert out.tolist() == [oracle.random_integer(SEED, STREAM, 64 * group + i, bits) for i in range(256)]


def test_a_shard_has_the_bits_of_the_whole():
    x = random_numbers(1000)
    policy = {"rounding": "stochastic", "seed": -5, "stream": STREAM}
    whole = cast(x, "e4m3", offset=2**64 - 100, **policy)
    for begin, end in ((0, 1), (1, 65), (65, 129), (129, 1000)):
        part = cast(x[begin:end], "e4m3", offset=(2**64 - 100 + begin) % 2**64, **policy)
        assert_same_bits(part, whole[begin:end], f"{begin}:{end}")
    assert not np.array_equal(whole, cast(x, "e4m3", offset=7, **policy))


# Shapes and memory


def random_numbers(*shape):
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 100, 1000, 4097])
@pytest.mark.parametrize("block", [64, 1024])
def test_only_the_elements_of_out_are_written(count, block):
    x = random_numbers(count)
    memory = torch.full((count + 128,), -7.0, device=DEVICE)
    kernels.cast(to_device(x), "e4m3", out=memory[64 : 64 + count], block=block)
    assert_same_bits(to_array(memory[64 : 64 + count]), casting.cast(x, "e4m3"), "result")
    assert set(memory[:64].tolist() + memory[64 + count :].tolist()) == {-7.0}


@pytest.mark.parametrize("block", [64, 4096, 1 << 20])
def test_bits_do_not_depend_on_the_block(block):
    x = random_numbers(1000)
    policy = {"rounding": "stochastic", "seed": SEED, "offset": 77}
    assert_same_bits(cast(x, "e5m2", block=block, **policy), casting.cast(x, "e5m2", **policy), str(block))


VIEWS = {
    "0-d": lambda x: x[0, 0, 0],
    "empty": lambda x: x[:0],
    "transposed": lambda x: x.permute(2, 0, 1),
    "stepped": lambda x: x[::2, 1:, ::3],
    "expanded": lambda x: x[:, :1].expand(-1, 9, -1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_are_read_and_written(view):
    x = VIEWS[view](to_device(random_numbers(6, 7, 8)))
    policy = {"rounding": "stochastic", "seed": SEED}
    assert torch.equal(kernels.cast(x, "e4m3", **policy).cpu(), casting.cast(x.cpu(), "e4m3", **policy))
    expected = casting.cast(x.cpu(), "e4m3")
    codes = kernels.encode(x, "e4m3")
    assert torch.equal(codes.cpu(), casting.encode(x.cpu(), "e4m3"))
    assert torch.equal(kernels.decode(codes, "e4m3").cpu(), expected)
    if view != "expanded":
        out = VIEWS[view](torch.zeros(6, 7, 8, device=DEVICE))
        assert kernels.cast(x, "e4m3", out=out) is out
        assert torch.equal(out.cpu(), expected)


def test_out_may_be_x_and_autograd_is_told():
    x = to_device(random_numbers(100))
    expected, version = casting.cast(x.cpu(), "e4m3"), x._version
    assert kernels.cast(x, "e4m3", out=x) is x
    assert torch.equal(x.cpu(), expected)
    assert x._version > version


@pytest.mark.gpu
def test_more_elements_than_32_bits_can_count():
    x = torch.full((2**31 + 5,), 1.06, dtype=torch.float16, device="cuda")
    codes = kernels.encode(x, "e4m3")
    assert codes[-5:].tolist() == [0x38] * 5
    assert int(codes.min()) == int(codes.max()) == 0x38


# Errors


def overlapping():
    memory = torch.zeros(12, device=DEVICE)
    return kernels.cast(memory[:10], "e4m3", out=memory[1:11])


X = torch.zeros(4, device=DEVICE)
ERRORS = {
    "integers": (lambda: kernels.cast(X.int(), "e4m3"), TypeError, "x must be a torch tensor of float64.*int32"),
    "a list": (lambda: kernels.cast([1.0], "e4m3"), TypeError, "x must be a torch tensor .*got list"),
    "format": (lambda: kernels.cast(X, "e9m9"), ValueError, "unknown format 'e9m9'"),
    "mode": (lambda: kernels.cast(X, "e4m3", rounding="nearest"), ValueError, "rounding='nearest': use one of TIES"),
    "policy": (lambda: kernels.cast(X, "e2m1", overflow="nan"), ValueError, "overflow=NAN needs"),
    "no seed": (lambda: kernels.cast(X, "e4m3", rounding="stochastic"), ValueError, "STOCHASTIC needs random bits"),
    "a seed": (lambda: kernels.cast(X, "e4m3", seed=1), ValueError, "TIES_TO_EVEN takes no random bits"),
    "random bits": (lambda: kernels.cast(X, "e4m3", random_bits=33), ValueError, "random_bits=33: expected 1 to 32"),
    "block": (lambda: kernels.cast(X, "e4m3", block=100), ValueError, "block=100: expected a power of two"),
    "out's shape": (lambda: kernels.cast(X, "e4m3", out=X[:3]), ValueError, "out must have x's shape"),
    "out's dtype": (lambda: kernels.cast(X, "e4m3", out=X.half()), TypeError, "out must be a tensor of x's dtype"),
    "out expanded": (lambda: kernels.cast(X, "e4m3", out=X[:1].expand(4)), ValueError, "out has elements that share"),
    "out overlapping": (overlapping, ValueError, "out overlaps x"),
    "device": (lambda: kernels.cast(X.to("meta"), "e4m3"), RuntimeError, "x is on meta: Triton kernels run on CUDA"),
    "codes": (lambda: kernels.decode(X, "e4m3"), TypeError, "codes must be a torch tensor of uint8"),
    "a code outside": (lambda: kernels.decode(X.byte() + 16, "e2m1"), ValueError, "codes contain 0x10: the codes of"),
    "dtype": (lambda: kernels.decode(X.byte(), "e4m3", dtype=torch.int8), TypeError, "dtype must be .*int8"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_wide_code_type_is_accepted_and_checked():
    assert decode(np.array([0x38, 0xB8], np.uint16), "e4m3").tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="codes contain 0x8000"):
        decode(np.array([0, 0x8000], np.uint16), "e4m3")


@pytest.mark.parametrize("mode", [-1, len(Rounding)])
def test_a_mode_without_a_case_is_refused(mode):
    conversion = default_conversion(parse("e4m3"))._replace(rounding=mode)
    with pytest.raises(Exception, match="a rounding mode that this function has no case for"):
        kernels._launch(X, X.clone(), None, conversion, 32, kernels.RandomIntegers(bits=32), None, back=True)
