"""What only a GPU can show of casts. Tests of `test_hardware*.py` are marked `gpu`: without one they are deselected."""

import numpy as np
import pytest
import torch
from boundaries import FLOATS
from cast_cases import (
    CASES,
    OFFSET,
    SEED,
    STREAM,
    assert_same_bits,
    codes_of,
    default_conversion,
    inputs,
    policies,
)
from hardware_bits import bits_of_both, nothing_waits

import fp8sim
from fp8sim import backends, casting
from fp8sim.formats import parse
from fp8sim.quantizers import QUANTIZERS
from fp8sim.rounding import Overflow, Rounding, resolve
from fp8sim.simulate.encode_scaled import encode_scaled as simulated

pytestmark = pytest.mark.gpu

E4M3, E5M2 = parse("e4m3"), parse("e5m2")
RANDOM = {"seed": SEED, "stream": STREAM, "offset": OFFSET, "random_bits": 32}


def run(op, source, target_dtype, dtypes, conversion, **random):
    """Call `op` of fp8sim._cuda on an array; the result comes back as one."""
    on_device = torch.from_numpy(source.view(np.uint8)).cuda()
    target = torch.empty(source.size * np.dtype(target_dtype).itemsize, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    op(on_device.data_ptr(), target.data_ptr(), source.size, *dtypes, conversion, stream, **random)
    return target.cpu().numpy().view(target_dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_cast_and_encode_are_those_of_core(cuda, fmt, dtype):
    x, code_dtype = inputs(fmt, dtype), casting.code_dtype(fmt)
    for mode, overflow, random in policies(fmt):
        conversion, what = resolve(fmt, mode, overflow), f"{mode.name} {overflow.name}"
        codes = fp8sim.encode(x, fmt, rounding=mode, overflow=overflow, **random)
        values = fp8sim.cast(x, fmt, rounding=mode, overflow=overflow, **random)
        assert_same_bits(run(cuda.encode, x, code_dtype, [dtype, code_dtype], conversion, **random), codes, what)
        assert_same_bits(run(cuda.cast, x, x.dtype, [dtype], conversion, **random), values, what)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_decode_is_that_of_core(cuda, fmt, dtype):
    code_dtype = casting.code_dtype(fmt)
    codes = np.array(codes_of(fmt), code_dtype)
    actual = run(cuda.decode, codes, FLOATS[dtype], [code_dtype, dtype], default_conversion(fmt))
    assert_same_bits(actual, fp8sim.decode(codes, fmt, dtype=FLOATS[dtype]), dtype)


@pytest.mark.sanitized
@pytest.mark.parametrize("rounding", [Rounding.TIES_TO_EVEN, Rounding.STOCHASTIC])
@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1025, 1 << 20])
def test_every_tail_and_alignment(cuda, size, start, rounding):
    """Nothing outside [start, start + size) is written."""
    x = torch.randn(start + size + 8, generator=torch.Generator().manual_seed(size)).cuda()
    target = torch.full(x.shape, 77.0, device="cuda")
    random = RANDOM if rounding.is_stochastic else {}
    conversion = resolve(E5M2, rounding, Overflow.SATURATE)
    addresses = x[start:].data_ptr(), target[start:].data_ptr()
    cuda.cast(*addresses, size, "float32", conversion, torch.cuda.current_stream().cuda_stream, **random)
    expected = torch.full(x.shape, 77.0)
    expected[start : start + size] = fp8sim.cast(x[start : start + size].cpu(), E5M2, rounding=rounding, **random)
    assert_same_bits(target.cpu().numpy(), expected.numpy(), f"{size} elements from {start}")


@pytest.mark.sanitized
def test_in_place(cuda):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    expected, on_device = fp8sim.cast(x, E4M3), x.cuda()
    cuda.cast(on_device.data_ptr(), on_device.data_ptr(), 1000, "float32", default_conversion(E4M3))
    torch.cuda.synchronize()
    assert_same_bits(on_device.cpu().numpy(), expected.numpy(), "in place")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("fmt", ["e4m3", "e2m1", "float16"])
def test_the_public_casts_are_those_of_the_simulator(fmt):
    """Any strides, a result that is given, another stream."""
    base = 40 * torch.randn(70, 90, generator=torch.Generator().manual_seed(2))
    on_device, stream = base.cuda(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for x, there in ((base.T, on_device.T), (base[1:60:3], on_device[1:60:3])):
        expected = fp8sim.cast(x, fmt)
        with torch.cuda.stream(stream), fp8sim.use_backend("cuda"):
            found = fp8sim.cast(there, fmt), fp8sim.decode(fp8sim.encode(there, fmt), fmt)
            out = torch.empty(x.shape, device="cuda")
            assert fp8sim.cast(there, fmt, out=out) is out
        assert all(torch.equal(y.cpu(), expected) for y in (*found, out))


def test_more_than_2_to_31_elements(cuda):
    """The last elements of a tensor that 32-bit indices cannot reach, and their random bits."""
    size = 2**31 + 1027
    source = torch.full((size,), 1.3, dtype=torch.float16, device="cuda")
    target = torch.zeros(size, dtype=torch.uint8, device="cuda")
    conversion = resolve(E4M3, Rounding.STOCHASTIC, Overflow.SATURATE)
    cuda.encode(source.data_ptr(), target.data_ptr(), size, "float16", "uint8", conversion, 0, **RANDOM)
    torch.cuda.synchronize()
    last = RANDOM | {"offset": (OFFSET + size - 4096) % 2**64}
    expected = fp8sim.encode(source[-4096:].cpu().numpy(), E4M3, rounding=Rounding.STOCHASTIC, **last)
    assert_same_bits(target[-4096:].cpu().numpy(), expected, "the last 4096 elements")


def test_host_memory_is_refused(cuda):
    host, device = torch.zeros(4), torch.zeros(4, device="cuda")
    with pytest.raises(ValueError, match="source is not memory of a CUDA device"):
        cuda.cast(host.data_ptr(), device.data_ptr(), 4, "float32", default_conversion(E4M3))
    with pytest.raises(ValueError, match="target is not memory of a CUDA device"):
        cuda.cast(device.data_ptr(), host.data_ptr(), 4, "float32", default_conversion(E4M3))


# The Triton casts: `test_triton_cast`, `test_encode_scaled` and `test_triton_quantize` run on the device, too, where
# there is one. Here is what the interpreter cannot prove, or takes too long for.

CONVERTED = [E4M3, E5M2]


@pytest.fixture(scope="module")
def hardware():
    pytest.importorskip("triton")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("hardware conversion needs compute capability 9.0")
    from fp8sim.triton_kernels import hardware

    return hardware


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("fmt", CONVERTED, ids=str)
def test_hardware_converts_every_16_bit_number_as_core(hardware, fmt, dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    assert torch.equal(hardware.encode(x.cuda(), fmt).cpu(), fp8sim.encode(x, fmt))


@pytest.mark.parametrize("fmt", CONVERTED, ids=str)
def test_hardware_converts_float32_as_core(hardware, fmt):
    """2^24 patterns evenly spread, all exponents and signs; and every boundary between codes with its neighbours."""
    spread = (torch.arange(1 << 24, dtype=torch.int64) * 256 + 77).to(torch.int32).view(torch.float32)
    near = torch.from_numpy(inputs(fmt, "float32").copy())
    for x in (spread, near):
        assert torch.equal(hardware.encode(x.cuda(), fmt).cpu(), fp8sim.encode(x, fmt))
        codes, transposed, amax = hardware.encode_scaled(x.cuda()[None], fmt, 0.3, amax=True, transpose=True)
        expected = simulated(x[None], fmt, 0.3, amax=True, transpose=True)
        assert torch.equal(codes.cpu(), expected[0])
        assert torch.equal(transposed.cpu(), expected[1])
        assert amax.isnan() == expected[2].isnan()


ROWS = [row for row in backends.BACKENDS if row.op in ("encode_scaled", "quantize") and row.name != "simulate"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.op}-{row.name}")
def test_large_tensors_have_the_bits_of_the_simulator(row, dtype):
    """Many programs at once: races between them, and layouts inside one, show here alone."""
    x = torch.randn(2, 1000, 4104, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 5, 7], x[1, 999, 4103] = torch.inf, torch.nan
    implementation = row.load()
    if row.op == "encode_scaled":
        for options in ({}, {"transpose": True}):
            actual = implementation(x.cuda(), "e4m3", 0.3, amax=True, **options)
            expected = simulated(x, "e4m3", 0.3, amax=True, **options)
            assert all(
                (a is None and e is None) or torch.equal(*bits_of_both(a, e))
                for a, e in zip(actual, expected, strict=True)
            )
        return
    for name in QUANTIZERS:
        fmt = QUANTIZERS[name].format
        if name == "nf4" or (row.converts == "hardware conversion" and fmt not in CONVERTED):
            continue
        actual, expected = implementation(x.cuda(), QUANTIZERS[name]).cpu(), QUANTIZERS[name].quantize(x)
        assert torch.equal(actual.codes, expected.codes), name
        assert torch.equal(*bits_of_both(actual.scales, expected.scales)), name


def test_nothing_waits_for_the_device():
    """A factor on the device, amax and factors of blocks stay there."""
    kernels = pytest.importorskip("fp8sim.triton_kernels.encode_scaled")
    quantize = pytest.importorskip("fp8sim.triton_kernels.quantize")
    x, scale = torch.randn(64, 4096, device="cuda"), torch.tensor(0.3, device="cuda")

    def run():
        kernels.encode_scaled(x, "e4m3", scale, amax=True, transpose=True)
        for name in ("mxfp8_e4m3", "nvfp4", "fp8_tensor_te"):
            quantize.quantize(x, QUANTIZERS[name])

    run()  # compiles
    with nothing_waits():
        run()


@pytest.mark.parametrize("transpose", [False, True])
def test_encode_scaled_of_more_elements_than_32_bits_can_count(transpose):
    kernels = pytest.importorskip("fp8sim.triton_kernels.encode_scaled")
    x = torch.full((1 << 16, (1 << 15) + 8), 1.3, dtype=torch.float16, device="cuda")
    x[-1, -1] = 7.0
    codes, transposed, amax = kernels.encode_scaled(x, "e4m3", 1.0, amax=True, transpose=transpose)
    last = fp8sim.encode(torch.tensor([1.3, 7.0]), "e4m3")
    assert codes[-1, -2:].tolist() == last.tolist()
    assert transposed is None or transposed[-1, -2:].tolist() == last.tolist()
    assert amax.item() == 7.0
