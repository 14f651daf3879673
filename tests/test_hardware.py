"""What only a GPU can show; every test here is marked `gpu` and deselected where there is none."""

import pytest
import torch
from cast_cases import (
    DTYPES,
    FORMAT_NAMES,
    OFFSET,
    SEED,
    STREAM,
    assert_same_bits,
    boundary_values,
    conversion_of,
    policies,
    random_arguments,
    sampled_codes,
)

import fp8sim
from fp8sim.formats import parse
from fp8sim.rounding import Overflow, Rounding

pytestmark = pytest.mark.gpu

E4M3 = conversion_of("e4m3", Rounding.TIES_TO_EVEN, Overflow.SATURATE)


@pytest.fixture(scope="module")
def cuda():
    return pytest.importorskip("fp8sim._cuda", reason="fp8sim was built without nvcc")


def run(op, source, target_dtype, dtypes, conversion, **random):
    """Call `op` of fp8sim._cuda on a CPU tensor; the result comes back to the CPU."""
    on_device = source.cuda()
    target = torch.empty(source.shape, dtype=target_dtype, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    op(on_device.data_ptr(), target.data_ptr(), source.numel(), *dtypes, conversion, stream, **random)
    return target.cpu()


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_cast_and_encode_are_those_of_core(cuda, name, dtype):
    fmt, x = parse(name), boundary_values(name, dtype)
    for rounding, overflow in policies(fmt):
        conversion, random = conversion_of(name, rounding, overflow), random_arguments(rounding, 7 + rounding)
        policy = {"rounding": rounding, "overflow": overflow, **random}
        codes, values = fp8sim.encode(x, fmt, **policy), fp8sim.cast(x, fmt, **policy)
        actual = run(cuda.encode, x, codes.dtype, [dtype, name_of(codes.dtype)], conversion, **random)
        assert_same_bits(actual, codes, f"encode {rounding.name} {overflow.name}")
        actual = run(cuda.cast, x, x.dtype, [dtype], conversion, **random)
        assert_same_bits(actual, values, f"cast {rounding.name} {overflow.name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_decode_is_that_of_core(cuda, name, dtype):
    fmt = parse(name)
    code_dtype = fp8sim.encode(torch.zeros(1), fmt).dtype
    codes = torch.tensor(sampled_codes(fmt), dtype=torch.int64).to(code_dtype)
    conversion = conversion_of(name, Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    actual = run(cuda.decode, codes, DTYPES[dtype], [name_of(code_dtype), dtype], conversion)
    assert_same_bits(actual, fp8sim.decode(codes, fmt, dtype=DTYPES[dtype]), f"decode to {dtype}")


@pytest.mark.parametrize("rounding", [Rounding.TIES_TO_EVEN, Rounding.STOCHASTIC])
@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1025, 1 << 20])
def test_every_tail_and_alignment(cuda, size, start, rounding):
    """Nothing outside [start, start + size) is written."""
    x = torch.randn(start + size + 8, generator=torch.Generator().manual_seed(size)).cuda()
    target = torch.full(x.shape, 77.0, device="cuda")
    random = random_arguments(rounding, 16)
    conversion = conversion_of("e5m2", rounding, Overflow.SATURATE)
    addresses = x[start:].data_ptr(), target[start:].data_ptr()
    cuda.cast(*addresses, size, "float32", conversion, torch.cuda.current_stream().cuda_stream, **random)
    expected = torch.full(x.shape, 77.0)
    expected[start : start + size] = fp8sim.cast(x[start : start + size].cpu(), "e5m2", rounding=rounding, **random)
    assert_same_bits(target.cpu(), expected, f"{size} elements from {start}")


def test_in_place(cuda):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    expected, on_device = fp8sim.cast(x, "e4m3"), x.cuda()
    cuda.cast(on_device.data_ptr(), on_device.data_ptr(), 1000, "float32", E4M3)
    torch.cuda.synchronize()
    assert_same_bits(on_device.cpu(), expected, "in place")


def test_more_than_2_to_31_elements(cuda):
    """The last elements of a tensor that 32-bit indices cannot reach, and their random bits."""
    size = 2**31 + 1027
    source = torch.full((size,), 1.3, dtype=torch.float16, device="cuda")
    target = torch.zeros(size, dtype=torch.uint8, device="cuda")
    random = {"seed": SEED, "stream": STREAM, "offset": OFFSET, "random_bits": 32}
    conversion = conversion_of("e4m3", Rounding.STOCHASTIC, Overflow.SATURATE)
    cuda.encode(source.data_ptr(), target.data_ptr(), size, "float16", "uint8", conversion, 0, **random)
    torch.cuda.synchronize()
    random["offset"] = (OFFSET + size - 4096) % 2**64
    expected = fp8sim.encode(source[-4096:].cpu(), "e4m3", rounding=Rounding.STOCHASTIC, **random)
    assert_same_bits(target[-4096:].cpu(), expected, "the last 4096 elements")


def test_host_memory_is_refused(cuda):
    host, device = torch.zeros(4), torch.zeros(4, device="cuda")
    with pytest.raises(ValueError, match="source is not memory of a CUDA device"):
        cuda.cast(host.data_ptr(), device.data_ptr(), 4, "float32", E4M3)
    with pytest.raises(ValueError, match="target is not memory of a CUDA device"):
        cuda.cast(device.data_ptr(), host.data_ptr(), 4, "float32", E4M3)
