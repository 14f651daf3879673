"""`check_gemm` passes correct GEMMs, and names the property that a wrong one violates."""

import numpy as np
import pytest
import torch

from fp8sim import casting, interop
from fp8sim.formats import parse
from fp8sim.ops.matmul import matmul
from fp8sim.testing import check_gemm

SMALL = ((16, 16, 16), (17, 5, 33), (1, 1, 1))
MX = {"a_scale_block": (1, 32), "b_scale_block": (32, 1)}
ROWS = {"a_scale_block": (1, None), "b_scale_block": (None, 1)}


def plain(a, b):
    return a @ b


def by_rows(a, b, a_scale_inv, b_scale_inv):
    return (a @ b) * a_scale_inv * b_scale_inv


def by_mx_blocks(a, b, a_scale_inv, b_scale_inv):
    k = a.shape[1]
    return (a * a_scale_inv.repeat_interleave(32, 1)[:, :k]) @ (b * b_scale_inv.repeat_interleave(32, 0)[:k])


# What passes.


def test_float32_blas_passes_on_the_default_shapes():
    report = check_gemm(plain, a_format="e4m3")
    assert [check.name for check in report.checks] == [
        "exact sums",
        "sums that need an accumulator of up to 24 bits",
        "impulses of a",
        "impulses of b",
        "NaN in a",
        "NaN in b",
        "random data within the error bound",
        "operands transposed in memory",
    ]
    assert not report.not_checked


@pytest.mark.parametrize("pair", [("e5m2", "e4m3"), ("e2m1", "e2m1"), ("e4m3fnuz", "e2m3"), ("bf16", "fp16")])
@pytest.mark.parametrize("takes", ["numpy", "torch"])
def test_every_format_passes(pair, takes):
    check_gemm(plain, a_format=pair[0], b_format=pair[1], takes=takes, shapes=SMALL)
    check_gemm(plain, a_format="binary6p3ue", b_format="binary8p3se", takes=takes, shapes=SMALL)


@pytest.mark.parametrize("operands", ["codes", "native"])
@pytest.mark.parametrize("takes", ["numpy", "torch"])
def test_codes_and_narrow_dtypes_pass(operands, takes):
    def gemm(a, b):
        if operands == "codes":
            return casting.decode(a, "e5m2") @ casting.decode(b, "e4m3")
        return a.float() @ b.float() if takes == "torch" else a.astype(np.float32) @ b.astype(np.float32)

    check_gemm(gemm, a_format="e5m2", b_format="e4m3", operands=operands, takes=takes, shapes=SMALL)


def test_packed_float4_passes():
    def gemm(a, b):
        assert a.dtype is torch.float4_e2m1fn_x2
        x, y = (casting.decode(interop.unpack_float4(packed)[0], "e2m1") for packed in (a, b.T))
        return x @ y.T

    check_gemm(gemm, a_format="e2m1", operands="native", shapes=((16, 16, 16), (5, 3, 34)))


@pytest.mark.parametrize("output", ["bfloat16", "float16", "float64"])
def test_the_result_may_be_rounded_once_more(output):
    check_gemm(lambda a, b: (a @ b).to(getattr(torch, output)), a_format="e4m3", output=output, shapes=SMALL)


def test_its_own_matmul_passes():
    check_gemm(lambda a, b: matmul(a, b, recipe="fp32"), a_format="e4m3", b_format="e5m2", shapes=SMALL)


def test_factors_of_every_granularity_pass():
    report = check_gemm(by_rows, a_format="e4m3", shapes=SMALL, **ROWS)
    assert "single scale factors doubled" in [check.name for check in report.checks]
    check_gemm(by_mx_blocks, a_format="e4m3", shapes=((16, 16, 64), (5, 3, 70)), scale_format="e8m0", **MX)
    tensor = {"a_scale_block": (None, None), "b_scale_block": (None, None)}
    check_gemm(by_rows, a_format="e4m3", shapes=SMALL, **tensor)
    check_gemm(lambda a, b, f: (a @ b) * f, a_format="e4m3", shapes=SMALL, a_scale_block=(None, None))


def test_a_narrow_accumulator_passes_when_it_is_stated():
    def gemm(a, b):
        """Adds one product after the other in 14 bits."""
        total = np.zeros((a.shape[0], b.shape[1]))
        for k in range(a.shape[1]):
            total = casting.cast(total + a[:, k, None].astype(np.float64) * b[k], "e11m13(bias=1023,nan=ieee,infinity)")
        return total.astype(np.float32)

    def bound(a, b):
        return 2.0**-13 * a.shape[1] * (a.abs() @ b.abs())

    options = {"a_format": "e4m3", "takes": "numpy", "shapes": SMALL, "error_bound": bound}
    check_gemm(gemm, accumulator_bits=14, **options)
    with pytest.raises(AssertionError, match="sums that need an accumulator of up to 24 bits"):
        check_gemm(gemm, **options)


def test_what_is_left_out_is_reported():
    report = check_gemm(plain, a_format="e4m3", shapes=SMALL, special_values=False, strided=False)
    assert report.not_checked == ("NaN and infinities, by request", "transposed operands, by request")


# What fails, and what is said.


def without_tail(a, b):
    k = a.shape[1] // 16 * 16 or a.shape[1]
    return a[:, :k] @ b[:k]


def accumulated_in_float16(a, b):
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float16)
    for k in range(a.shape[1]):
        total = total + (a[:, k, None] * b[None, k]).half()
    return total.float()


def without_subnormals(a, b):
    return torch.where(a.abs() < 2.0**-6, 0, a) @ b


def nan_where_it_does_not_belong(a, b):
    c = a @ b
    return torch.where(c.isnan().any(), torch.full_like(c, torch.nan), c)


def contiguous_by_force(x):
    return torch.as_strided(x, x.shape, (x.shape[1], 1))


def with_bfloat16_factors(a, b, a_scale_inv, b_scale_inv):
    return by_rows(a, b, a_scale_inv.bfloat16().float(), b_scale_inv)


def swapped(a, b, a_scale_inv, b_scale_inv):
    same = a.shape[0] == b.shape[1]
    return by_rows(a, b, b_scale_inv.T, a_scale_inv.T) if same else by_rows(a, b, a_scale_inv, b_scale_inv)


def next_block(a, b, a_scale_inv, b_scale_inv):
    return by_mx_blocks(a, b, a_scale_inv.roll(1, 1), b_scale_inv)


PLANTED = {
    "the K tail dropped": (
        without_tail,
        {},
        "N=5 K=33: exact sums: .*this is the result with the last 1 of 33 products",
    ),
    "b transposed": (lambda a, b: a @ (b.T if b.shape[0] == b.shape[1] else b), {}, "exact sums.*with b transposed"),
    "a transposed": (lambda a, b: (a.T if a.shape[0] == a.shape[1] else a) @ b, {}, "exact sums.*with a transposed"),
    "result transposed": (lambda a, b: (a @ b).T, {}, "exact sums.*with the result transposed"),
    "float16 accumulation": (accumulated_in_float16, {}, "sums that need an accumulator of up to 24 bits"),
    "subnormals flushed": (without_subnormals, {}, "impulses of b at k=0..15: 14 of 256 differ"),
    "bfloat16 result": (
        lambda a, b: (a @ b).bfloat16().float(),
        {},
        "exact sums: 1 of 256 differ.*with the sum rounded to bfloat16",
    ),
    "NaN dropped": (lambda a, b: torch.nan_to_num(a) @ b, {}, r"NaN in a at k=0: 16 of 256 differ.*expected .*nan"),
    "NaN spread": (nan_where_it_does_not_belong, {}, "NaN in a at k=0: 240 of 256 differ"),
    "strides ignored": (
        lambda a, b: contiguous_by_force(a) @ contiguous_by_force(b),
        {},
        "operands transposed in memory",
    ),
    "factors swapped": (swapped, ROWS, "a_scale_inv and b_scale_inv swapped"),
    "a factor left out": (lambda a, b, s, t: (a @ b) * s, ROWS, "exact sums: .*with b_scale_inv left out"),
    "a factor divided by": (lambda a, b, s, t: (a @ b) / s * t, ROWS, "exact sums: .*with a_scale_inv divided by"),
    "the next block's factor": (next_block, MX | {"shapes": ((16, 16, 64),)}, "exact sums: .* differ"),
    "factors in bfloat16": (
        with_bfloat16_factors,
        ROWS,
        "random data within the error bound: .* lie outside, the worst",
    ),
    "wrong shape": (lambda a, b: (a @ b)[None], {}, r"got float32 \[1, 16, 16\], expected float32 \[16, 16\]"),
    "wrong dtype": (lambda a, b: (a @ b).half(), {}, r"got float16 \[16, 16\], expected float32"),
    "raises": (lambda a, b: a @ b.T.T.T, {}, "M=17 N=5 K=33: exact sums: it raised RuntimeError"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault):
    gemm, options, message = PLANTED[fault]
    if fault == "raises":
        options = {"shapes": ((17, 5, 33),)}
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_gemm(gemm, **({"a_format": "e4m3", "shapes": SMALL} | options))


def test_one_wrong_place_of_k_is_found():
    def gemm(a, b, lost):
        kept = torch.arange(a.shape[1]) != lost
        return a[:, kept] @ b[kept]

    for lost in (0, 17, 99):
        with pytest.raises(AssertionError, match="K=100: exact sums"):
            check_gemm(lambda a, b, lost=lost: gemm(a, b, lost), a_format="e4m3", shapes=((5, 3, 100),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a_format": "e8m0"}, "has no zero"),
        ({"shapes": ()}, r"expected at least one \(M, N, K\)"),
        ({"shapes": ((1, 2, 0),)}, "each 1 or more"),
        ({"accumulator_bits": 60}, "accumulator_bits=60"),
        ({"takes": "jax"}, "takes='jax'"),
        ({"operands": "bits"}, "operands='bits'"),
        ({"output": "int32"}, "output='int32'"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        check_gemm(plain, **({"a_format": "e4m3"} | options))


def test_every_number_of_a_narrow_format_is_an_operand():
    seen = [set(), set()]

    def gemm(a, b):
        for numbers, x in zip(seen, (a, b), strict=True):
            numbers.update(x.flatten().tolist())
        return a @ b

    check_gemm(gemm, a_format="e4m3", b_format="e2m1", special_values=False)
    for numbers, fmt in zip(seen, (parse("e4m3"), parse("e2m1")), strict=True):
        assert numbers == {fmt.to_float(code) for code in fmt.codes if fmt.is_finite(code)}
