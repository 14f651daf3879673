"""The Triton matrix product: exact where sums are, within K * 2^-22 * sum|a*b| of them on random data, and bit for bit
what `fp8sim.matmul` predicts from the plan that the launcher states.

Without a GPU it runs in the interpreter, which proves indexing, masks, factors and conversions of the result, and with
a model of the instruction in place of `tl.dot` also the order in which the kernel strings instructions together.
"""

import itertools

import pytest
import torch

pytest.importorskip("triton")

import fp8sim
from fp8sim import backends, quantizers
from fp8sim.rounding import Overflow
from fp8sim.testing import check_gemm
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels import matmul as kernels
from fp8sim.triton_kernels.matmul import Config, matmul

DEVICE = "cpu" if interpreter.is_enabled() else "cuda"
E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
PAIRS = [(E4M3, E4M3), (E5M2, E5M2), (E4M3, E5M2), (E5M2, E4M3), (BF16, BF16), (FP16, FP16)]
SMALL = Config(64, 64, 64, num_warps=4)
CONFIGS = {
    "pointers": SMALL,
    "descriptors": Config(64, 64, 64, num_warps=4, descriptors=True),
    "halves": Config(64, 128, 64, num_warps=4, descriptors=True, halves=True),
}

pairs = pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS, ids=str)


def generator(*seeds):
    return torch.Generator().manual_seed(hash(seeds) % 2**31)


def random_operands(m, n, k, a_dtype, b_dtype):
    g = generator(m, n, k)
    return torch.randn(m, k, generator=g).to(a_dtype), torch.randn(n, k, generator=g).to(b_dtype)


def exact_sum_operands(m, n, k, a_dtype, b_dtype):
    """{-1, 0, 1} times powers of two that depend on the row: every order of additions gives the same sum."""
    g = generator(m, n, k)

    def operand(rows):
        signs = torch.randint(-1, 2, (rows, k), generator=g).float()
        return signs * 2.0 ** torch.randint(-3, 4, (rows, 1), generator=g).float()

    return operand(m).to(a_dtype), operand(n).to(b_dtype)


def run(a, b, **options):
    return matmul(a.to(DEVICE), b.to(DEVICE), **options).cpu()


def exact(a, b):
    return a.double() @ b.double().T


def assert_same(actual, expected):
    """Equal values; NaN equals NaN."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape
    actual, expected = actual.double(), expected.double()
    wrong = ((actual != expected) & ~(actual.isnan() & expected.isnan())).nonzero().tolist()
    if wrong:
        m, n = wrong[0]
        pytest.fail(f"{len(wrong)} differ, first [{m}, {n}]: {actual[m, n]:.9g}, expected {expected[m, n]:.9g}")


# Sums

SIZES = [1, 63, 100]


@pairs
@pytest.mark.parametrize(("m", "n", "k"), [*itertools.permutations(SIZES), (1, 1, 1), (130, 257, 200)])
def test_exact_sums_are_exact(m, n, k, a_dtype, b_dtype):
    a, b = exact_sum_operands(m, n, k, a_dtype, b_dtype)
    assert_same(run(a, b, config=SMALL), exact(a, b))


@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("split_k", [1, 2, 100])
@pytest.mark.parametrize("out_dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 63, 1000), (63, 1000, 1), (200, 256, 208)])
def test_every_way_through_memory(m, n, k, out_dtype, split_k, way):
    if CONFIGS[way].descriptors and DEVICE != "cpu" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("tensor descriptors are for compute capability 9.0")
    a, b = exact_sum_operands(m, n, k, BF16, BF16)
    actual = run(a, b, config=CONFIGS[way], split_k=split_k, out_dtype=out_dtype)
    assert_same(actual, exact(a, b).to(out_dtype))


@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize(("a_batch", "b_batch"), [((3,), (3,)), ((3,), ()), ((), (2, 3)), ((2, 1), (3,)), ((1,), (2,))])
def test_batches_broadcast(a_batch, b_batch, way):
    a, b = exact_sum_operands(6 * 70, 6 * 40, 80, E4M3, E5M2)
    a, b = a.view(6, 70, 80)[: torch.Size(a_batch).numel()], b.view(6, 40, 80)[: torch.Size(b_batch).numel()]
    a, b = a.reshape(*a_batch, 70, 80), b.reshape(*b_batch, 40, 80)
    expected = a.double() @ b.double().mT
    assert_same(run(a, b, config=CONFIGS[way]), expected)
    a_factor, b_factor = torch.rand(*a_batch, 70), torch.rand(*b_batch, 40)
    scaled = run(a, b, a_scale_inv=a_factor.to(DEVICE), b_scale_inv=b_factor.to(DEVICE), config=CONFIGS[way])
    assert_same(scaled, expected.float() * a_factor[..., :, None] * b_factor[..., None, :])


@pairs
def test_random_sums_are_within_the_bound(a_dtype, b_dtype):
    a, b = random_operands(100, 63, 1000, a_dtype, b_dtype)
    bound = a.shape[1] * 2.0**-22 * exact(a.abs(), b.abs())
    assert bool(((run(a, b).double() - exact(a, b)).abs() <= bound).all())


@pairs
@pytest.mark.parametrize("k", [100, 128, 192])
def test_an_impulse_at_any_k_arrives(k, a_dtype, b_dtype):
    """Row i of a is non-zero at k = positions[i] alone: first, last, edges of steps, tail."""
    step = SMALL.block_k
    edges = {0, 1, step - 1, step, k // step * step - 1, k // step * step, k - 2, k - 1}
    positions = sorted(p for p in edges if 0 <= p < k)
    a = torch.zeros(len(positions), k)
    a[range(len(positions)), positions] = 2.0
    b = torch.arange(1, k + 1).remainder(13).float().expand(3, k) * torch.tensor([[1.0], [-1.0], [0.5]])
    a, b = a.to(a_dtype), b.to(b_dtype)
    assert_same(run(a, b, config=SMALL), 2.0 * b.float()[:, positions].T)


def test_every_tile_is_computed_once():
    """Tiles in groups, the last group and the last tiles incomplete: c[m, n] = m * 2^-4 * n tells its place."""
    m, n = 64 * 5 + 3, 64 * 3 + 7
    a, b = torch.zeros(m, 16), torch.zeros(n, 16)
    a[:, 0], a[:, 1], b[:, 0] = torch.arange(m).remainder(128), torch.arange(m) // 128, torch.arange(n).remainder(256)
    b[:, 1] = 128 * b[:, 0]
    a, b = a.to(BF16), b.to(BF16)
    for group in (1, 2, 8):
        assert_same(run(a, b, config=Config(64, 64, 16, group_m=group, num_warps=4)), exact(a, b))


# Result: scale, dtype, special values, memory


@pytest.mark.parametrize("out_dtype", [torch.float32, BF16, FP16])
@pytest.mark.parametrize("scale", [1.0, 0.1, 2.0**-20, 3e4, -1e-40])
def test_scale_multiplies_the_sum_and_the_result_is_rounded_once(scale, out_dtype):
    a, b = exact_sum_operands(40, 50, 70, BF16, BF16)
    expected = (exact(a, b).float() * torch.tensor(scale)).to(out_dtype)
    assert_same(run(a, b, scale=scale, out_dtype=out_dtype), expected)


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("overflow", [Overflow.SATURATE, Overflow.NAN])
@pytest.mark.parametrize("out_dtype", [E4M3, E5M2])
def test_a_result_in_fp8_is_rounded_once_and_its_largest_magnitude_kept(out_dtype, overflow, split_k):
    a, b = exact_sum_operands(40, 50, 150, BF16, BF16)
    a[3] *= 1e6
    a[5, 0] = torch.inf
    amax = torch.full((), 3.0, device=DEVICE)
    options = {"scale": 0.37, "overflow": overflow, "split_k": split_k, "config": SMALL}
    actual = run(a, b, out_dtype=out_dtype, amax=amax, **options)
    plain = run(a, b, scale=0.37)
    expected = fp8sim.encode(plain, str(out_dtype).removeprefix("torch."), overflow=overflow)
    assert torch.equal(actual.view(torch.uint8), expected)
    assert amax.isnan() == plain.isnan().any()
    finite = run(a[6:], b, out_dtype=out_dtype, amax=amax.fill_(3.0), **options)
    assert amax.item() == max(3.0, plain[6:].abs().max().item())
    assert torch.equal(finite.view(torch.uint8), expected[6:])


@pairs
@pytest.mark.parametrize("block", [(1, 128), (128, 128), (128, 1)])
def test_a_factor_changes_its_own_block_alone(block, a_dtype, b_dtype):
    """Doubling one factor doubles the share of its rows and its 128 of K, and nothing else."""
    m, n, k = 150, 140, 300
    a, b = exact_sum_operands(m, n, k, a_dtype, b_dtype)
    shapes = [(-(-rows // shared), -(-k // 128)) for rows, shared in zip((m, n), block, strict=True)]
    ones = [torch.ones(shape, device=DEVICE) for shape in shapes]
    for operand, at in ((0, (0, 0)), (0, (-1, 1)), (1, (0, 2)), (1, (-1, -1))):
        factors = [one.clone() for one in ones]
        factors[operand][at] = 2.0
        weights = [
            factor.cpu().repeat_interleave(shared, 0)[:rows].repeat_interleave(128, 1)[:, :k]
            for factor, shared, rows in zip(factors, block, (m, n), strict=True)
        ]
        actual = run(a, b, a_scale_inv=factors[0], b_scale_inv=factors[1])
        assert_same(actual, (a.double() * weights[0]) @ (b.double() * weights[1]).T)


@pairs
def test_special_values_propagate(a_dtype, b_dtype):
    a, b = exact_sum_operands(40, 50, 70, a_dtype, b_dtype)
    a, b = a.float(), b.float()
    a[3, 69], b[5, 0] = torch.nan, torch.nan
    if a_dtype is not E4M3:
        a[7, 1], a[8, 69], a[9, 2], a[9, 68] = torch.inf, -torch.inf, torch.inf, -torch.inf
    a, b = a.to(a_dtype), b.to(b_dtype)
    assert_same(run(a, b), exact(a, b))


def test_only_the_result_is_written(monkeypatch):
    """Memory around the result is poisoned and stays so."""
    memory = torch.full((1000,), -7.0, device=DEVICE)
    a, b = exact_sum_operands(5, 7, 100, BF16, BF16)
    out = memory[500 : 500 + 35].view(5, 7)
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: out)
    matmul(a.to(DEVICE), b.to(DEVICE), config=SMALL)
    assert_same(out.cpu(), exact(a, b))
    assert set(memory[:500].tolist() + memory[535:].tolist()) == {-7.0}


VIEWS = {
    "transposed": lambda x: x.T.contiguous().T,
    "rows apart": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "misaligned": lambda x: torch.cat([x[:, :1], x], 1)[:, 1:],
    "stepped": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("k", [64, 99])
def test_any_strides_are_read(view, k):
    a, b = exact_sum_operands(20, 30, k, FP16, FP16)
    a, b = VIEWS[view](a), VIEWS[view](b)
    assert_same(run(a, b), exact(a, b))
    assert_same(run(a[3:], b[5:]), exact(a[3:], b[5:]))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)])
def test_empty_operands(m, n, k):
    a, b = random_operands(m, n, k, BF16, BF16)
    assert torch.equal(run(a, b), torch.zeros(m, n))


# Errors

A = torch.zeros(4, 8, dtype=BF16, device=DEVICE)
ERRORS = {
    "float32": (lambda: matmul(A.float(), A), TypeError, "a must be a tensor of float8.*got torch.float32"),
    "a list": (lambda: matmul(A, [1.0]), TypeError, "b must be a tensor .*got list"),
    "mixed": (lambda: matmul(A, A.half()), TypeError, "a and b must have the same dtype, or both FP8"),
    "one FP8": (lambda: matmul(A, A.to(E4M3)), TypeError, "a and b must have the same dtype, or both FP8"),
    "K": (lambda: matmul(A, A[:, :7]), ValueError, r"b \[..., N, K\], got \[4, 8\] and \[4, 7\]"),
    "a vector": (lambda: matmul(A[0], A), ValueError, r"got \[8\] and \[4, 8\]"),
    "batch": (
        lambda: matmul(A.expand(2, 4, 8), A.expand(3, 4, 8)),
        ValueError,
        "leading dimensions .* do not broadcast",
    ),
    "out_dtype": (
        lambda: matmul(A, A, out_dtype=torch.int8),
        TypeError,
        "out_dtype must be one of float32, .* got torch.int8",
    ),
    "factors": (lambda: matmul(A, A, b_scale_inv=torch.ones(5)), ValueError, r"b_scale_inv has shape \[5\] and its"),
    "amax": (lambda: matmul(A, A, amax=torch.zeros(2, device=DEVICE)), ValueError, "amax must be one float32 or int32"),
    "split_k": (lambda: matmul(A, A, split_k=0), ValueError, "split_k=0: a number of 1 or more"),
    "devices": (lambda: matmul(A, A.to("meta")), ValueError, "a and b must be on one device, got .* and meta"),
    "device": (lambda: matmul(A.to("meta"), A.to("meta")), RuntimeError, "a is on meta: Triton kernels run on CUDA"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_gpu_before_ampere_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "capability_of", lambda x: (7, 5))
    with pytest.raises(RuntimeError, match=r"needs compute capability 8.0 or later .* has 7.5: simulate"):
        matmul(A, A)


@pytest.mark.parametrize("a_dtype", [E4M3, E5M2])
@pytest.mark.parametrize("b_dtype", [E4M3, E5M2])
def test_every_fp8_number_is_multiplied_without_fp8_tensor_cores(a_dtype, b_dtype, monkeypatch):
    """Ampere's way, on any device: all 256 codes of each type, widened to float16, times one."""
    monkeypatch.setattr(kernels, "capability_of", lambda x: (8, 0))
    a, one = torch.arange(256, dtype=torch.uint8).view(a_dtype)[:, None], torch.ones(1, 1).to(b_dtype)
    assert_same(run(a, one, config=SMALL), a.float())
    assert_same(run(one, a, config=SMALL), a.float().T)


@pytest.mark.parametrize("quantizer", ["fp8_tensor_te", "fp8_row_torchao", "fp8_1x128", "fp8_128x128"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_gemm_with_scale_factors_is_the_product_of_what_the_quantizers_keep(quantizer, batch):
    g = generator(7)
    chosen = quantizers.parse(quantizer)
    a, b = torch.randn(*batch, 40, 300, generator=g), torch.randn(*batch, 300, 50, generator=g)
    gemm = backends.row("gemm", "triton").load()
    actual = gemm(a.to(DEVICE), b.to(DEVICE), quantizers=(chosen, chosen), scale=0.5).cpu()
    left, right = (x.dequantize("float64") for x in (chosen.quantize(a), chosen.quantize(b.mT.contiguous())))
    expected, magnitude = left @ right.mT * 0.5, left.abs() @ right.abs().mT * 0.5
    # Two factors and the scale are roundings of their own.
    assert bool(((actual - expected).abs() <= magnitude * (300 * 2.0**-22 + 3 * 2.0**-24)).all())


def test_a_gemm_whose_factors_the_kernel_does_not_take_is_refused():
    gemm, chosen = backends.row("gemm", "triton").load(), quantizers.parse("mxfp8")
    x = torch.randn(32, 64, device=DEVICE)
    with pytest.raises(TypeError, match="mxfp8_e4m3: the Triton kernel multiplies factors of tensors, rows"):
        gemm(x, x.T, quantizers=(chosen, chosen))


@pytest.mark.parametrize(
    ("kit", "multiply"),
    [
        ({"a_format": "e4m3", "b_format": "e5m2", "shapes": [(1, 63, 100), (130, 70, 200)]}, lambda a, b: run(a, b.T)),
        (
            {"a_format": "e4m3", "a_scale_block": (1, 128), "b_scale_block": (128, 128), "shapes": [(17, 130, 200)]},
            lambda a, b, sa, sb: run(a, b.T, a_scale_inv=sa, b_scale_inv=sb.T),
        ),
        (
            {"a_format": "bf16", "a_scale_block": (1, None), "b_scale_block": (None, 1), "shapes": [(17, 30, 63)]},
            lambda a, b, sa, sb: run(a, b.T, a_scale_inv=sa[:, 0], b_scale_inv=sb[0]),
        ),
    ],
    ids=["no factors", "blocks", "rows"],
)
def test_the_kit_finds_nothing(kit, multiply):
    """Exact sums, impulses at every k, each factor doubled, special values, random data."""
    if kit["a_format"] == "bf16":
        pytest.importorskip("ml_dtypes")  # whose bfloat16 the kit works with
    check_gemm(multiply, operands="native", **kit)
