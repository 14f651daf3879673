"""Matrix products on a GPU: large sizes, the configurations chosen and offered, the real instructions."""

import functools
import itertools

import pytest
import torch
from cast_cases import (
    assert_same_bits,
)

import fp8sim
from fp8sim import backends

pytestmark = pytest.mark.gpu

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


@pytest.mark.parametrize(
    ("backend", "quantizer"),
    [
        *((name, cast) for name in ("triton", "triton_hardware") for cast in ("e5m2", "fp8_tensor_te", "fp8_128x128")),
        ("cuda", "e5m2"),
    ],
)
def test_gradients_of_a_layer_have_the_bits_of_two_products(backend, quantizer):
    """The gradient is cast once for both, in both layouts."""
    gemm, gemm_backward = (backends.row(op, backend).load() for op in ("gemm", "gemm_backward"))
    quantizers = [fp8sim.quantizers.parse(name) for name in (quantizer, "e4m3", "e4m3")]
    if quantizer != "e5m2":
        quantizers = [quantizers[0]] * 3
    grad, a, b = (torch.randn(*shape).cuda().bfloat16() for shape in ((1000, 768), (1000, 520), (520, 768)))
    options = {"scales": (0.5, 0.25), "accumulate": ("native", "native"), "dtypes": (None, None)}
    first, second = gemm_backward(grad, a, b, quantizers=tuple(quantizers), **options)
    of_grad, of_a, of_b = quantizers
    assert torch.equal(first, gemm(grad, b.mT, quantizers=(of_grad, of_b), scale=0.5))
    assert torch.equal(second, gemm(grad.mT, a, quantizers=(of_grad, of_a), scale=0.25))


def test_a_layer_on_the_cuda_kernels_has_the_bits_of_the_triton_ones(cuda):
    """On operands whose sums are exact in any order: Triton may split K. Forward and backward."""
    found = []
    shapes = ((1000, 768), (520, 768), (1000, 520))
    x, weight, grad = (torch.randint(-1, 2, shape).cuda().bfloat16() for shape in shapes)
    for name in ("cuda", "triton"):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with fp8sim.use_backend(name):
            output = fp8sim.functional.linear(*leaves, recipe="unit_scaled_fp8")
        output.backward(grad)
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
