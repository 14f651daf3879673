"""Do the CUDA kernels of matrix products compute, tile by tile, what their plan says?

Their source runs on a CPU (`cuda_on_host`), on every order of events that its barriers allow: with all copies and
products as early as they may be, and as late. On a GPU, test_hardware_products.py asks the same of the real
instructions.
"""

import ctypes
import itertools

import pytest
import torch
from cuda_on_host import SCHEDULES, StandIn, build_all

import fp8sim
from fp8sim.cuda import matmul as kernels
from fp8sim.cuda import tensor_core
from fp8sim.cuda.matmul import matmul, plan_of
from fp8sim.mma import GemmPlan
from fp8sim.quantizers import QUANTIZERS

E4M3, E5M2, FP16, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16
HOPPER, AMPERE, ADA = (9, 0), (8, 0), (8, 9)
PAIRS = [*itertools.product((E4M3, E5M2), repeat=2), (FP16, FP16), (BF16, BF16)]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    return build_all(["wgmma", "mma"], tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def gpu(libraries):
    stand_in = StandIn(libraries)
    with stand_in.installed():
        yield stand_in


def operand(*shape, dtype, seed):
    """Numbers of all magnitudes, zeros and, of 16-bit types, infinities."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 2.0 ** torch.randint(-9, 5, shape, generator=g)
    x[torch.rand(shape, generator=g) < 0.1] = 0
    return x.to(dtype)


def predicted(a, b, plan, **options):
    return fp8sim.matmul(a, b.mT, plan=plan, **options)


def assert_bits(actual, expected, what=""):
    bits = [x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16) for x in (actual, expected)]
    differ = bits[0] != bits[1]
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} differ, first {differ.nonzero()[0]} {what}"


@pytest.mark.parametrize("capability", [HOPPER, AMPERE, ADA], ids=str)
@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS, ids=str)
def test_every_bit_is_what_the_plan_predicts(gpu, capability, a_dtype, b_dtype):
    """A ragged M, N and K, more steps of K than there are stages of shared memory."""
    gpu.capability = capability
    m, n, k = (70, 30, 809) if a_dtype.itemsize == 1 else (70, 30, 413)
    a, b = operand(m, k, dtype=a_dtype, seed=0), operand(n, k, dtype=b_dtype, seed=1)
    assert_bits(matmul(a, b), predicted(a, b, plan_of(a_dtype, capability)))


@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS[:4], ids=str)
def test_promotion_every_128_products(gpu, a_dtype, b_dtype):
    a, b = operand(140, 400, dtype=a_dtype, seed=0), operand(30, 400, dtype=b_dtype, seed=1)
    plan = plan_of(a_dtype, HOPPER, fast_accumulation=False)
    expected = predicted(a, b, plan)
    assert_bits(matmul(a, b, fast_accumulation=False), expected)
    assert not torch.equal(expected, predicted(a, b, plan_of(a_dtype, HOPPER)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["early", "early, backwards", "late", "late, backwards"])
@pytest.mark.parametrize("kernel", ["wide", "promoted", "narrow", "mma.sync"])
def test_no_order_of_events_changes_a_bit(gpu, schedule, kernel):
    """Several tiles for each block or pair of blocks, so that the ring of stages goes on from tile to tile."""
    gpu.schedule, gpu.capability = schedule, AMPERE if kernel == "mma.sync" else HOPPER
    gpu.processors = {"wide": 2, "promoted": 2, "narrow": 5, "mma.sync": 1}[kernel]
    m, n, k = {
        "wide": (8, 513, 300),
        "promoted": (257, 140, 300),
        "narrow": (140, 140, 500),
        "mma.sync": (8, 129, 300),
    }[kernel]
    a, b = operand(m, k, dtype=E4M3, seed=2), operand(n, k, dtype=E5M2, seed=3)
    fast = kernel != "promoted"
    expected = predicted(a, b, plan_of(E4M3, gpu.capability, fast_accumulation=fast))
    assert_bits(matmul(a, b, fast_accumulation=fast), expected)


@pytest.mark.parametrize("capability", [HOPPER, AMPERE], ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, FP16, BF16], ids=str)
@pytest.mark.parametrize("n", [32, 31])
def test_factors_and_rounding_of_the_result(gpu, capability, out_dtype, n):
    """Factors of rows, of the tensor and of unit scaling; results stored four at a time, or one by one."""
    gpu.capability = capability
    a, b = operand(40, 96, dtype=E4M3, seed=4), operand(n, 96, dtype=E4M3, seed=5)
    rows = torch.rand(40, generator=torch.Generator().manual_seed(6)) + 0.3
    output = str(out_dtype).removeprefix("torch.")
    plan = plan_of(E4M3, capability)
    expected = predicted(a, b, plan, a_scale_inv=rows, b_scale_inv=torch.tensor(1.7), output=output)
    assert_bits(matmul(a, b, a_scale_inv=rows, b_scale_inv=1.7, out_dtype=out_dtype), expected)
    columns = torch.rand(n, generator=torch.Generator().manual_seed(7)) + 0.3
    expected = predicted(a, b, plan, a_scale_inv=torch.tensor(0.3), b_scale_inv=columns) * torch.tensor(3e30)
    actual = matmul(a, b, a_scale_inv=0.3, b_scale_inv=columns, scale=3e30, out_dtype=out_dtype)
    assert_bits(actual, expected.to(out_dtype))


def test_a_number_as_a_factor_does_not_wait_for_the_device(gpu, monkeypatch):
    """A copy from the host would, and could not be captured in a CUDA graph."""
    monkeypatch.setattr(torch, "as_tensor", lambda *_, **__: pytest.fail("a copy from the host"))
    a = operand(16, 32, dtype=E4M3, seed=4)
    expected = predicted(a, a, plan_of(E4M3, HOPPER))
    assert_bits(matmul(a, a, a_scale_inv=0.5), expected * 0.5)
    assert matmul(a, a, b_scale_inv=1e300).isinf().any()


@pytest.mark.parametrize("capability", [HOPPER, AMPERE], ids=str)
def test_batches_and_strides(gpu, capability):
    """Batches that broadcast, operands with gaps, transposed ones, factors of each matrix's rows."""
    gpu.capability = capability
    plan = plan_of(FP16, capability)
    a, b = operand(2, 3, 20, 40, dtype=FP16, seed=8), operand(3, 9, 40, dtype=FP16, seed=9)
    rows = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(10)) + 0.3
    expected = predicted(a, b, plan)
    assert_bits(matmul(a, b), expected)
    assert_bits(matmul(a, b, a_scale_inv=rows), expected * rows[..., None])
    assert_bits(matmul(a[:, :1], b[:1]), predicted(a[:, :1], b[:1], plan))
    assert_bits(matmul(a.mT.contiguous().mT, b[:, :, :40]), expected)
    gap = torch.zeros(2, 3, 20, 72, dtype=FP16)
    gap[..., 8:48] = a
    assert_bits(matmul(gap[..., 8:48], b), expected)


def test_nothing_outside_of_the_result_is_written(gpu):
    a, b = operand(65, 64, dtype=BF16, seed=11), operand(67, 64, dtype=BF16, seed=12)
    expected = predicted(a, b, plan_of(BF16, HOPPER))
    for capability, start in itertools.product((HOPPER, AMPERE), range(5)):
        gpu.capability = capability
        memory = torch.full((65 * 67 + 16,), 7.0)
        out = memory[start:].data_ptr()
        gpu.matmul(
            a.data_ptr(), b.data_ptr(), out, (65, 67, 64, 1), "bfloat16", "bfloat16", "float32", (64, 0), (64, 0)
        )
        assert (memory[:start] == 7).all()
        assert (memory[start + expected.numel() :] == 7).all()
        if capability == HOPPER:
            assert_bits(memory[start : start + expected.numel()].view(65, 67), expected)


@pytest.mark.parametrize("capability", [HOPPER, AMPERE], ids=str)
@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS, ids=str)
def test_special_numbers(gpu, capability, a_dtype, b_dtype):
    """Every code of FP8, and infinities and NaN of 16-bit types, times every other."""
    gpu.capability = capability

    def column(dtype):
        if dtype.itemsize == 1:
            return torch.arange(256, dtype=torch.uint8).view(dtype)[:, None]
        specials = [0.0, -0.0, 1.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, 2.0**-14, 2.0**-24]
        return torch.tensor(specials).to(dtype)[:, None]

    a, b = column(a_dtype), column(b_dtype)
    a, b = (torch.cat([x, torch.ones_like(x, dtype=torch.float32).to(x.dtype)], dim=1) for x in (a, b))
    actual, expected = matmul(a, b), predicted(a, b, plan_of(a_dtype, capability))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert_bits(actual.nan_to_num(7), expected.nan_to_num(7))
    for dtype, nan in ((FP16, 0x7E00), (BF16, 0x7FC0)):
        bits = expected.to(dtype).view(torch.int16).masked_fill(expected.isnan(), nan)
        assert_bits(matmul(a, b, out_dtype=dtype), bits.view(dtype))


def test_nothing_to_add_or_to_compute(gpu):
    a = torch.zeros(3, 0, dtype=FP16)
    assert torch.equal(matmul(a, a), torch.zeros(3, 3))
    assert matmul(torch.zeros(0, 16, dtype=FP16), torch.zeros(5, 16, dtype=FP16)).shape == (0, 5)


def test_a_deadlock_is_found(gpu):
    """The emulation can say no: a kernel that waits for bytes that nobody sends."""
    a = operand(16, 64, dtype=BF16, seed=0)
    gpu.schedule = (1, 0)
    library = gpu.libraries["wgmma"]
    library.lose_copies(1)
    try:
        with pytest.raises(RuntimeError, match="deadlock: every thread waits"):
            matmul(a, a)
    finally:
        library.lose_copies(0)


# Orders and places


class TileOrder(ctypes.Structure):
    _fields_ = [("tiles_m", ctypes.c_int), ("tiles_n", ctypes.c_int), ("batches", ctypes.c_int)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 3, 1), (9, 5, 2), (7, 1, 3), (1, 40, 2), (33, 4, 1)])
def test_every_tile_is_computed_once(libraries, shape):
    places = []
    for index in range(shape[0] * shape[1] * shape[2]):
        place = (ctypes.c_int * 3)()
        libraries["mma"].tile_on_host(ctypes.byref(TileOrder(*shape)), ctypes.c_int64(index), place)
        places.append(tuple(place))
    tiles = itertools.product(range(shape[2]), range(shape[0]), range(shape[1]))
    assert sorted(places) == sorted(tiles)


def test_descriptor_bit_by_bit(libraries):
    """PTX ISA, matrix descriptor: address in bits 0-13, stride in 32-45, in units of 16 bytes; swizzle in 62-63."""
    describe = libraries["mma"].descriptor_on_host
    describe.restype = ctypes.c_uint64
    for address in (0, 1024, 0x2C00, 0x38000):
        described = describe(address)
        assert described & 0x3FFF == address // 16
        assert described >> 16 & 0x3FFF == 1
        assert described >> 32 & 0x3FFF == 8 * 128 // 16
        assert described >> 62 == 1
        assert described & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 3 << 62) == 0


# Plans, and what is refused


@pytest.mark.parametrize("capability", [HOPPER, (8, 0), (8, 6)], ids=str)
@pytest.mark.parametrize("dtype", [E4M3, E5M2, FP16, BF16], ids=str)
@pytest.mark.parametrize("fast", [True, False])
def test_plans_are_those_of_the_triton_kernel(capability, dtype, fast):
    triton_kernels = pytest.importorskip("fp8sim.triton_kernels.matmul")
    expected = triton_kernels.plan_of(dtype, capability, fast_accumulation=fast)
    assert plan_of(dtype, capability, fast_accumulation=fast) == expected


def test_an_unknown_device_has_no_plan():
    with pytest.raises(ValueError, match=r"compute capability 10.0: the order .* it is for 8.0 to 9.0"):
        plan_of(E4M3, (10, 0))


def test_what_has_no_kernel_has_no_plan():
    with pytest.raises(TypeError, match="dtype must be one of float8_e4m3fn, .* got torch.float32"):
        plan_of(torch.float32, (9, 0))


def test_the_public_product(gpu):
    """`fp8sim.matmul`'s arguments: codes, quantized tensors, plans, outputs."""
    a, b = operand(20, 48, dtype=E4M3, seed=1), operand(24, 48, dtype=E4M3, seed=2)
    product = tensor_core.matmul
    expected = predicted(a, b, "sm90.wgmma")
    assert_bits(product(a, b.T), expected)
    assert_bits(product(a.view(torch.uint8), b.view(torch.uint8).T, a_format="e4m3", b_format="e4m3"), expected)
    assert_bits(product(a, b.T, plan=GemmPlan("sm90.wgmma", flush=128, block_k=128)), predicted(a, b, "sm90.wgmma"))
    assert_bits(product(a, b.T, output="bfloat16"), predicted(a, b, "sm90.wgmma", output="bfloat16"))
    x, y = (QUANTIZERS["fp8_row_torchao"].quantize(torch.randn(n, 48)) for n in (20, 24))
    assert_bits(product(x, y), fp8sim.matmul(x, y, plan="sm90.wgmma"))


A = torch.ones(16, 32).to(E4M3)
REFUSED = {
    "c": (lambda: tensor_core.matmul(A, A.T, torch.zeros(16, 16)), ValueError, "c: the CUDA kernel's products start"),
    "plan": (
        lambda: tensor_core.matmul(A, A.T, plan="sm80.mma;widen=float16"),
        ValueError,
        "plan='triton.sm80': the CUDA kernel adds .* with plan 'sm90.* or 'sm90.*; simulate",
    ),
    "output": (lambda: tensor_core.matmul(A, A.T, output="e4m3"), ValueError, "output='e4m3': the CUDA kernel returns"),
    "blocks": (
        lambda: tensor_core.matmul(*(QUANTIZERS["fp8_1x128"].quantize(torch.ones(16, 256)) for _ in range(2))),
        TypeError,
        "the CUDA kernel multiplies factors of tensors and rows; call under use_backend",
    ),
    "dtype": (lambda: matmul(A.float(), A), TypeError, "a is torch.float32: expected torch.float8_e4m3fn, "),
    "no tensor": (lambda: matmul(A, 3.0), TypeError, "b is a float: expected a torch tensor"),
    "dtypes": (lambda: matmul(A, A.half()), TypeError, "a and b must have the same dtype, or both FP8"),
    "out_dtype": (
        lambda: matmul(A, A, out_dtype=E4M3),
        TypeError,
        "out_dtype must be one of float32, float16, bfloat16",
    ),
    "K": (lambda: matmul(A, A[:, :16]), ValueError, r"expected a \[..., M, K\] and b \[..., N, K\], got \[16, 32\]"),
    "devices": (lambda: matmul(A, A.to("meta")), ValueError, "a and b must be on one device, got cpu and meta"),
    "batch": (
        lambda: matmul(A.expand(2, 16, 32), A.expand(3, 16, 32)),
        ValueError,
        r"leading dimensions of a \[2, 16, 32\] and b \[3, 16, 32\] do not broadcast",
    ),
    "factors": (
        lambda: matmul(A, A, a_scale_inv=torch.ones(16, 2)),
        ValueError,
        r"a_scale_inv has shape \[16, 2\] .* expected one factor, or \[16\] for rows; .* 'triton'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_error_says_what_was_expected(gpu, case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_an_older_gpu_is_refused(gpu):
    gpu.capability = (7, 5)
    with pytest.raises(RuntimeError, match="need compute capability 8.0 .* has 7.5: simulate on the CPU"):
        matmul(A, A)


def test_cpu_tensors_are_refused():
    with pytest.raises(ValueError, match="a is on cpu: the CUDA kernels take CUDA tensors"):
        kernels.matmul(A, A)
