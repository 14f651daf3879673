"""What only a GPU can show; every test here is marked `gpu` and deselected where there is none."""

import dataclasses
import functools
import itertools
import math

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

import fp8sim
from fp8sim import backends, casting
from fp8sim.formats import parse
from fp8sim.quantizers import QUANTIZERS
from fp8sim.rounding import Overflow, Rounding, resolve
from fp8sim.simulate.attention import attention as simulated_attention
from fp8sim.simulate.encode_scaled import encode_scaled as simulated

pytestmark = pytest.mark.gpu

E4M3, E5M2 = parse("e4m3"), parse("e5m2")
RANDOM = {"seed": SEED, "stream": STREAM, "offset": OFFSET, "random_bits": 32}


@pytest.fixture(scope="module")
def cuda():
    return pytest.importorskip("fp8sim._cuda", reason="fp8sim was built without nvcc")


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


def bits_of_both(*pair):
    return [x.cpu().contiguous().view(torch.int32) if x.dtype == torch.float32 else x.cpu() for x in pair]


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
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


# The CUDA matrix products: `test_cuda_matmul` runs their source on a CPU. Here the instructions are the real ones.

_FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
PAIRS = [*itertools.product(_FP8, _FP8), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16)]


def matrix(rows, k, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, k, generator=g) * 2.0 ** torch.randint(-9, 5, (rows, k), generator=g)).to(dtype)


@pytest.mark.parametrize("size", [(70, 30, 809), (1, 1, 16), (300, 1000, 1040), (2100, 4400, 272)], ids=str)
@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS, ids=str)
def test_cuda_products_have_the_bits_of_their_plan(cuda, a_dtype, b_dtype, size):
    """Small and wide tiles, ragged and whole, fast and promoted, every dtype of the result."""
    from fp8sim.cuda.matmul import matmul, plan_of

    m, n, k = size
    a, b = matrix(m, k, a_dtype, 0), matrix(n, k, b_dtype, 1)
    for fast in (True, False):
        plan = plan_of(a_dtype, torch.cuda.get_device_capability(), fast_accumulation=fast)
        for output in ("float32", "bfloat16", "float16"):
            actual = matmul(a.cuda(), b.cuda(), fast_accumulation=fast, out_dtype=getattr(torch, output)).cpu()
            expected = fp8sim.matmul(a, b.T, plan=plan, output=output)
            bits = torch.int32 if output == "float32" else torch.int16
            differ = (actual.view(bits) != expected.view(bits)) & ~(actual.isnan() & expected.isnan())
            assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} differ from {plan}, {output}"


@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS[:4], ids=str)
def test_cuda_products_of_every_pair_of_codes(cuda, a_dtype, b_dtype):
    from fp8sim.cuda.matmul import matmul, plan_of

    a, b = (torch.arange(256, dtype=torch.uint8).view(dtype)[:, None] for dtype in (a_dtype, b_dtype))
    actual = matmul(a.cuda(), b.cuda()).cpu()
    expected = fp8sim.matmul(a, b.T, plan=plan_of(a_dtype, torch.cuda.get_device_capability()))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(7).view(torch.int32), expected.nan_to_num(7).view(torch.int32))


def test_cuda_products_with_factors_and_batches(cuda):
    """Factors of rows and of the tensor, matrices that broadcast, operands with gaps: on a stream of their own."""
    from fp8sim.cuda.matmul import plan_of

    plan = plan_of(torch.float16, torch.cuda.get_device_capability())
    a, b = matrix(6 * 130, 200, torch.float16, 2).view(2, 3, 130, 200), matrix(260, 200, torch.float16, 3)
    rows = torch.rand(2, 3, 130, generator=torch.Generator().manual_seed(4))
    expected = fp8sim.matmul(a, b.T, plan=plan) * rows[..., None] * torch.tensor(1.7)
    stream = torch.cuda.Stream()
    on_device = [x.cuda() for x in (a, b, rows)]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), fp8sim.use_backend("cuda"):
        actual = fp8sim.matmul(on_device[0], on_device[1].T, a_scale_inv=on_device[2], b_scale_inv=1.7, plan=plan)
    stream.synchronize()
    assert torch.equal(actual.cpu().view(torch.int32), expected.view(torch.int32))


# The Triton matrix product: `test_triton_matmul` and `test_triton_matmul_plans` run on the device, too. Here are sizes
# with many programs, what was chosen by default, and every configuration that a tuner may choose.

FLOAT8, FLOAT16 = (torch.float8_e4m3fn, torch.float8_e5m2), (torch.bfloat16, torch.float16)
MIXES = [*itertools.product(FLOAT8, FLOAT8), *((dtype, dtype) for dtype in FLOAT16)]
PRODUCTS = {
    "aligned": ((), 512, 768, 1024, {}),
    "ragged": ((), 300, 517, 999, {}),
    "one row": ((), 1, 130, 4100, {}),
    "batched": ((3,), 130, 72, 520, {}),
    "split by default": ((), 64, 128, 8192, {"split_k": None}),
    "split in 5": ((), 200, 136, 3000, {"split_k": 5}),
}
PRODUCT_OPTIONS = {
    "fast": ({}, None),
    "promoted": ({"fast_accumulation": False}, None),
    "tensor": ({"scale": 0.5}, "tensor"),
    "rows": ({}, "rows"),
    "blocks": ({}, "blocks"),
    "to bfloat16": ({"out_dtype": torch.bfloat16}, None),
    "to e4m3": ({"out_dtype": torch.float8_e4m3fn}, "rows"),
}


def product_operand(batch, rows, k, dtype, seed):
    """Numbers of many magnitudes, and zeros."""
    g = torch.Generator().manual_seed(seed)
    shape = (*batch, rows, k)
    x = torch.randn(shape, generator=g) * 2.0 ** torch.randint(-6, 5, shape, generator=g)
    return torch.where(torch.rand(shape, generator=g) < 0.1, 0.0, x).to(dtype)


def product_factors(kind, batch, rows, k, block_rows, seed):
    """Factors of one operand as the kernel takes them."""
    shapes = {"rows": (*batch, rows), "blocks": (*batch, -(-rows // block_rows), -(-k // 128)), "tensor": ()}
    return None if kind is None else torch.rand(shapes[kind], generator=torch.Generator().manual_seed(seed)) + 0.3


def predicted_product(a, b, factors, plan, output):
    """What `fp8sim.matmul` computes, each matrix of a batch by itself; its factors of blocks of b stand transposed."""
    if a.ndim > 2:
        parts = [[x if x is None or x.ndim == 0 else x[i] for x in factors] for i in range(len(a))]
        return torch.stack(
            [predicted_product(*pair, plan=plan, output=output) for (*pair,) in zip(a, b, parts, strict=True)]
        )
    left, right = factors
    right = right.T.contiguous() if right is not None and right.ndim == 2 else right
    return fp8sim.matmul(a, b.T, a_scale_inv=left, b_scale_inv=right, plan=plan, output=output)


def product_cases():
    for (a, b), size, option in itertools.product(MIXES, PRODUCTS, PRODUCT_OPTIONS):
        only_fp8 = option in ("promoted", "blocks") and a not in FLOAT8
        one_part = option == "blocks" and size.startswith("split")
        if not only_fp8 and not one_part:
            names = "-".join(str(dtype).removeprefix("torch.") for dtype in (a, b))
            yield pytest.param(a, b, size, option, id=f"{names}-{size}-{option}")


def check_product(kernels, device, a_dtype, b_dtype, size, option):
    batch, m, n, k, split = PRODUCTS[size]
    options, kind = PRODUCT_OPTIONS[option]
    a, b = product_operand(batch, m, k, a_dtype, 1), product_operand(batch, n, k, b_dtype, 2)
    factors = product_factors(kind, batch, m, k, 1, 3), product_factors(kind, batch, n, k, 128, 4)
    split = {"split_k": 1} | split if kind != "blocks" else {}
    sent = [None if factor is None else factor.to(device) for factor in factors]
    named = dict(zip(("a_scale_inv", "b_scale_inv"), sent, strict=True))
    actual = kernels.matmul(a.to(device), b.to(device), **named, **options, **split).cpu()
    stated = {name: value for name, value in options.items() if name != "scale"}
    plan = kernels.plan_for(a.to(device), b.to(device), blocks=kind == "blocks", **stated, **split)
    output = str(options.get("out_dtype", torch.float32)).removeprefix("torch.")
    if "scale" in options:  # it multiplies last, by a power of two
        factors = (factors[0] * options["scale"], factors[1])
    expected = predicted_product(a, b, factors, plan, output)
    assert_same_bits(raw_codes(actual), raw_codes(expected), f"{plan}")


def raw_codes(x):
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]).flatten().numpy()


@pytest.mark.parametrize(("a_dtype", "b_dtype", "size", "option"), list(product_cases()))
def test_products_have_the_bits_of_their_plan(a_dtype, b_dtype, size, option):
    kernels = pytest.importorskip("fp8sim.triton_kernels.matmul")
    check_product(kernels, "cuda", a_dtype, b_dtype, size, option)


@pytest.mark.parametrize("option", ["fast", "promoted", "rows", "blocks", "to bfloat16", "to e4m3"])
@pytest.mark.parametrize(
    "dtypes", [(torch.float8_e4m3fn,) * 2, (torch.float8_e5m2, torch.float8_e4m3fn), (torch.bfloat16,) * 2]
)
def test_every_configuration_offered_has_the_same_bits(dtypes, option):
    kernels = pytest.importorskip("fp8sim.triton_kernels.matmul")
    options, kind = PRODUCT_OPTIONS[option]
    if dtypes[0] not in FLOAT8 and option in ("promoted", "blocks"):
        pytest.skip("for FP8")
    m, n, k = 1000, 1500, 2000
    a, b = (
        product_operand((), rows, k, dtype, i).cuda()
        for i, (rows, dtype) in enumerate(zip((m, n), dtypes, strict=True))
    )
    if kind is not None:
        named = {
            "a_scale_inv": product_factors(kind, (), m, k, 1, 3),
            "b_scale_inv": product_factors(kind, (), n, k, 128, 4),
        }
        options = options | {name: factor.cuda() for name, factor in named.items()}
    run = functools.partial(kernels.matmul, a, b, split_k=1, **options)
    out_dtype, fast = options.get("out_dtype", torch.float32), options.get("fast_accumulation", True)
    fitting = kernels._fitting(a, kernels.capability_of(a), fast, kind == "blocks", out_dtype)
    first, *others = (raw_codes(run(config=config).cpu()) for config in kernels.offered(fitting))
    assert others
    for other in others:
        assert_same_bits(other, first, "another configuration")


def test_tuning_on_the_device_chooses_and_keeps(tmp_path):
    kernels = pytest.importorskip("fp8sim.triton_kernels.matmul")
    from fp8sim.triton_kernels import tuning

    a, b = (product_operand((), 1024, 1024, torch.float8_e4m3fn, i).cuda() for i in range(2))
    expected = kernels.matmul(a, b)
    with tuning.use(tmp_path, measure=True) as choices:
        assert torch.equal(kernels.matmul(a, b), expected)
    (entry,) = choices.entries.values()
    assert 0 < entry["seconds"] <= entry["default_seconds"]
    with tuning.use(tmp_path):
        assert torch.equal(kernels.matmul(a, b), expected)


@pytest.mark.parametrize("quantizer", ["e5m2", "fp8_tensor_te", "fp8_128x128"])
def test_gradients_of_a_layer_have_the_bits_of_two_products(quantizer):
    """The gradient is cast once for both, in both layouts."""
    module = pytest.importorskip("fp8sim.triton_kernels.gemm")
    quantizers = [fp8sim.quantizers.parse(name) for name in (quantizer, "e4m3", "e4m3")]
    if quantizer != "e5m2":
        quantizers = [quantizers[0]] * 3
    grad, a, b = (torch.randn(*shape).cuda().bfloat16() for shape in ((1000, 768), (1000, 520), (520, 768)))
    options = {"scales": (0.5, 0.25), "accumulate": ("native", "native"), "dtypes": (None, None)}
    first, second = module.gemm_backward(grad, a, b, quantizers=tuple(quantizers), **options)
    of_grad, of_a, of_b = quantizers
    assert torch.equal(first, module.gemm(grad, b.mT, quantizers=(of_grad, of_b), scale=0.5))
    assert torch.equal(second, module.gemm(grad.mT, a, quantizers=(of_grad, of_a), scale=0.25))


# Attention: `test_triton_attention` runs on the device, too. Here are sizes that the interpreter takes too long for,
# and every configuration.

ATTENTION_DTYPES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def attention_of_integers(length, keys, width, dtype, seed=0):
    """Operands whose logits in base 2 are small integers, for a scale of ln 2."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randint(-1, 2, (1, heads, rows, width), generator=g) for heads, rows in ((4, length), (2, keys)))
    q[..., 6:] = 0
    v = torch.randint(-4, 5, (1, 2, keys, width), generator=g)
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}, {"window": 500, "lower_right": True}], ids=str)
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
def test_attention_has_the_bits_of_its_plan(dtype, width, mask):
    kernels = pytest.importorskip("fp8sim.triton_kernels.attention")
    q, k, v = attention_of_integers(1000, 1100, width, ATTENTION_DTYPES[dtype])
    capability = torch.cuda.get_device_capability()
    for config in kernels.configs(q.element_size(), capability, width):
        plan = dataclasses.replace(kernels.plan_of((q.dtype,) * 3, capability, width), block=config.block_n)
        options = {"plan": plan, "scale": math.log(2), "value_scale_inv": 0.3, **mask}
        sent = (x.cuda() for x in (q, k, v))
        output, lse = kernels.attention(*sent, config=config, dtype=torch.float32, **options)
        expected = simulated_attention(q, k, v, **options)
        assert torch.equal(*bits_of_both(output, expected.output)), config
        torch.testing.assert_close(lse.cpu(), expected.lse, rtol=2.0**-21, atol=2.0**-21)


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}, {"window": 500, "lower_right": True}], ids=str)
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_cuda_attention_has_the_bits_of_its_plan(cuda, dtype, width, mask):
    """`test_cuda_attention` runs the source on a CPU; here the instructions are the real ones. More than one wave."""
    from fp8sim.cuda.attention import attention, plan_of

    q, k, v = attention_of_integers(3000, 1100, width, dtype)
    plan = plan_of(dtype, torch.cuda.get_device_capability(), width)
    options = {"plan": plan, "scale": math.log(2), "value_scale_inv": 0.3, **mask}
    output, lse = attention(q.cuda(), k.cuda(), v.cuda(), dtype=torch.float32, **options)
    expected = simulated_attention(q, k, v, **options)
    assert torch.equal(*bits_of_both(output, expected.output))
    torch.testing.assert_close(lse.cpu(), expected.lse, rtol=2.0**-21, atol=2.0**-21)


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
def test_packed_attention_has_the_bits_of_its_plan(dtype):
    kernels = pytest.importorskip("fp8sim.triton_kernels.attention")
    q, k, v = attention_of_integers(1000, 1000, 128, ATTENTION_DTYPES[dtype])
    bounds = [0, 1, 130, 130, 701, 1000]
    starts = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    plan = kernels.plan_of((q.dtype,) * 3, torch.cuda.get_device_capability(), 128)
    options = {"plan": plan, "scale": math.log(2), "is_causal": True}
    sent = (x.cuda() for x in (q, k, v))
    output, _ = kernels.attention(*sent, cu_seqlens_q=starts, cu_seqlens_k=starts, dtype=torch.float32, **options)
    for a, b in itertools.pairwise(bounds):
        if a < b:
            expected = simulated_attention(*(x[:, :, a:b] for x in (q, k, v)), **options)
            assert torch.equal(*bits_of_both(output[:, :, a:b], expected.output)), (a, b)


def test_powers_of_two_of_integers_are_exact():
    """What bitwise contracts of attention rest on: `ex2.approx` does not err there."""
    kernels = pytest.importorskip("fp8sim.triton_kernels.attention")
    q, k = torch.ones(1, 1, 1, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 125, 16, dtype=torch.bfloat16)
    k[0, 0, :, 0] = -torch.arange(125.0)
    v = torch.eye(125, dtype=torch.bfloat16)[None, None]
    output, _ = kernels.attention(q.cuda(), k.cuda(), v.cuda(), scale=math.log(2), dtype=torch.float32)
    assert torch.equal(output[0, 0, 0].cpu(), torch.exp2(-torch.arange(125.0)) * output[0, 0, 0, 0].cpu())


# The backward pass of attention: `test_triton_attention_backward` runs on the device, too.


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize(("dtype", "fp8"), [("bfloat16", False), ("float16", False), ("float8_e4m3fn", True)])
def test_gradients_of_attention_have_the_bits_of_their_plan(dtype, fp8, width):
    """The tiles of the default configuration, whole and ragged, many programs at once; twice, for the same bits."""
    kernels = pytest.importorskip("fp8sim.triton_kernels.attention_backward")
    from attention_gradients import LN2, exact_inputs

    from fp8sim.simulate.attention_backward import attention_backward as simulated

    capability = torch.cuda.get_device_capability()
    if fp8 and capability != (9, 0):
        pytest.skip("FP8 products need compute capability 9.0")
    plan = kernels.plan_of(getattr(torch, dtype), capability, fp8=fp8)
    options = {"scale": LN2, "is_causal": True, "dtype": torch.float32, "fp8": fp8}
    if fp8:
        options |= {"grad_output_scale": 2.0, "grad_logits_scale": 4.0}
    for rows in (512, 333):
        inputs = exact_inputs([getattr(torch, dtype)] * 3, heads=4, groups=2, length=rows, keys=rows, width=width)
        sent = [x.cuda() for x in inputs]
        first, second = (kernels.attention_backward(*sent, **options) for _ in range(2))
        for one, other, expected in zip(first, second, simulated(*inputs, plan=plan, **options), strict=True):
            assert torch.equal(*bits_of_both(one, other))
            assert torch.equal(*bits_of_both(one, expected))


# Fused element work: `test_activations`, `test_rms_norm` and `test_cross_entropy` run on the device, too.


@pytest.fixture(scope="module", params=["triton", "triton_hardware"])
def fused(request):
    pytest.importorskip("triton")
    if request.param == "triton_hardware" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("hardware conversion needs compute capability 9.0")
    return lambda op: backends.row(op, request.param).load()


@pytest.mark.parametrize("columns", [4096, 4104, 16384, 20000])
@pytest.mark.parametrize("transpose", [False, True])
def test_large_fused_results_are_within_their_bound_and_encoded_exactly(fused, transpose, columns):
    """Many programs at once, in every cut of the rows."""
    from fused_work import check_result, operands

    from fp8sim.simulate import activations, rms_norm

    x, gate, grad = (part.to(torch.bfloat16) for part in operands(300, columns, count=3))
    gain = operands(columns, count=1)[0]
    forms = {"fmt": "e4m3", "amax": True, "transpose": transpose}
    a, b, c, w = (part.cuda() for part in (x, gate, grad, gain))

    def check(result, number, bound, what):
        check_result(result, number, bound, forms, what)

    options = {"values": torch.float32, **forms}
    for approximate in ("none", "tanh"):
        found = fused("gelu")(a, approximate=approximate, **options)
        check(found, *activations.gelu_numbers(x, approximate, 1.0, 1.0), "gelu")
        found = fused("gelu_backward")(c, a, approximate=approximate, **options)
        check(found, *activations.gelu_gradients(grad, x, approximate, 1.0, 1.0), "gelu_backward")
    check(fused("silu_glu")(a, b, **options), *activations.silu_glu_numbers(x, gate, 1.0, 1.0), "silu_glu")
    pairs = activations.silu_glu_gradients(grad, x, gate, 1.0, 1.0)
    for found, pair in zip(fused("silu_glu_backward")(c, a, b, **options), pairs, strict=True):
        check(found, *pair, "silu_glu_backward")
    found, inverse = fused("rms_norm")(a, w, **options)
    check(found, *rms_norm.rms_norm_numbers(x, gain, 1e-5)[:2], "rms_norm")
    found, of_gain = fused("rms_norm_backward")(c, a, w, inverse, **options)
    pair, (sums, bound) = rms_norm.rms_norm_gradients(grad, x, gain, inverse.cpu(), 1.0)
    check(found, *pair, "rms_norm_backward")
    assert ((of_gain.double().cpu() - sums).abs() <= bound).all()
    again = fused("rms_norm_backward")(c, a, w, inverse, **options)[1]
    assert torch.equal(of_gain, again)


@pytest.mark.parametrize("classes", [32000, 131072])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cross_entropy_of_a_large_vocabulary(dtype, classes):
    """In place, where a gradient written too early would be read as a logit."""
    kernels = pytest.importorskip("fp8sim.triton_kernels.cross_entropy")
    from fused_work import check_numbers

    from fp8sim.simulate.cross_entropy import cross_entropy_numbers

    generator = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(64, classes, generator=generator)).to(dtype)
    target = torch.randint(0, classes, (64,), generator=generator)
    target[::7] = -100
    losses, grad = kernels.cross_entropy(logits.cuda(), target.cuda(), label_smoothing=0.25, in_place=True)
    (number, bound), (by_z, by_z_bound) = cross_entropy_numbers(logits, target, None, -100, 0.25, 1.0, 0.0)
    check_numbers(losses, number, bound, "losses")
    rounding = by_z.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).smallest_normal
    check_numbers(grad.float(), by_z, by_z_bound + rounding, "gradients")


def test_fused_work_waits_for_nothing():
    activations = pytest.importorskip("fp8sim.triton_kernels.activations")
    losses = pytest.importorskip("fp8sim.ops.cross_entropy")
    norms = pytest.importorskip("fp8sim.triton_kernels.rms_norm")
    x, scale = torch.randn(64, 4096, device="cuda"), torch.tensor(0.3, device="cuda")
    target = torch.zeros(64, dtype=torch.int64, device="cuda")

    def run():
        activations.silu_glu(x, x, fmt="e4m3", scale=scale, amax=True, transpose=True)
        _, inverse = norms.rms_norm(x, x[0], fmt="e4m3", scale=scale, amax=True)
        norms.rms_norm_backward(x, x, x[0], inverse, fmt="e5m2")
        leaf = x.clone().requires_grad_()
        losses.cross_entropy(leaf * 2.0, target, x[0], in_place=True).backward()

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("transpose", [False, True])
def test_fused_work_of_more_elements_than_32_bits_can_count(transpose):
    activations = pytest.importorskip("fp8sim.triton_kernels.activations")
    norms = pytest.importorskip("fp8sim.triton_kernels.rms_norm")
    x = torch.full((1 << 16, (1 << 15) + 8), 1.5, dtype=torch.float16, device="cuda")
    x[-1, -1] = 7.0
    _, codes, transposed, amax = activations.gelu(x, fmt="e4m3", amax=True, transpose=transpose)
    last = activations.gelu(x[-1:, -2:], fmt="e4m3", amax=True)
    assert torch.equal(codes[-1, -2:], last[1][0])
    assert transposed is None or torch.equal(transposed[-2:, -1], last[1][0])
    assert amax == last[3]
    (_, codes, transposed, _), _ = norms.rms_norm(x, None, fmt="e4m3", transpose=transpose)
    (_, expected, _, _), _ = norms.rms_norm(x[-1:], None, fmt="e4m3")
    assert torch.equal(codes[-1], expected[0])
    assert transposed is None or torch.equal(transposed[:, -1], expected[0])


# The probes: what the device's tensor cores compute, single instructions on raw bits.


@pytest.fixture(scope="module")
def instruments(cuda):
    from fp8sim.analysis.probing import running

    return {instrument.takes.name: instrument for instrument in running.instruments(running.Options())}


def test_every_instruction_is_its_row(instruments):
    from fp8sim.analysis.probing import recognise

    found = {name: recognise(instrument) for name, instrument in instruments.items()}
    wrong = {name: recognition for name, recognition in found.items() if name not in recognition.matches}
    assert not wrong, [(name, r.matches, r.differences, list(map(str, r.changes))) for name, r in wrong.items()]


def test_neither_variants_nor_chains_change_a_bit(instruments):
    from fp8sim.analysis.probing import running

    found = [result for instrument in instruments.values() for result in running._invariances(instrument)]
    assert [result for result in found if result.differing] == []


def test_random_bits_on_the_device(instruments, tmp_path):
    """A million outputs of each; `fp8sim probe --random 100000000` compares more."""
    from fp8sim import mma
    from fp8sim.analysis.probing import stream

    for name, instrument in instruments.items():
        outputs = 1 << (16 if instrument.takes.accumulator == "float64" else 20)
        assert stream(instrument, mma.parse(name), outputs, folder=tmp_path).differing == 0, name


def test_memory_of_the_host_is_refused_by_a_probe(cuda):
    host, on_device = torch.zeros(4096), torch.zeros(4096, device="cuda")
    addresses = (on_device.data_ptr(), host.data_ptr(), on_device[2048:].data_ptr(), on_device[3072:].data_ptr())
    with pytest.raises(ValueError, match="b is not memory of a CUDA device"):
        cuda.probe("mma.m16n8k16.f32.f16.f16.f32", *addresses, 1)
