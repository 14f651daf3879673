"""GEMMs by recipe on the CUDA kernels, whose source runs on a CPU: what is cast and added, and what is refused.

The casts and the sums by themselves: test_cuda_encode_scaled.py and test_cuda_matmul.py.
"""

import pytest
import torch
from cuda_on_host import StandIn, build_all

import fp8sim
from fp8sim import backends, quantizers
from fp8sim.cuda import gemm as module
from fp8sim.cuda.gemm import gemm, gemm_backward

E4M3, E5M2, BF16 = map(quantizers.parse, ("e4m3", "e5m2", "bfloat16"))
PROMOTED = "sm90.wgmma;flush=128;block_k=128"
DTYPES = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2, BF16: torch.bfloat16}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return build_all(["wgmma", "encode_scaled"], tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def gpu(libraries):
    stand_in = StandIn(libraries)
    with stand_in.installed():
        yield stand_in


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def predicted(a, b, of_a, of_b, scale, plan="sm90.wgmma"):
    """scale * a @ b of the numbers cast; `scale` is a power of two."""
    a, b = (fp8sim.cast(x, q.format).to(DTYPES[q]) for x, q in ((a, of_a), (b, of_b)))
    return fp8sim.matmul(a, b, plan=plan) * scale


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("of", [(E4M3, E5M2), (E5M2, E4M3), (BF16, BF16)], ids=str)
def test_a_product_has_the_bits_of_casts_and_plan(gpu, of, turned):
    a, b = normal(2, 70, 150), normal(150, 36, seed=1)
    if turned:
        a, b = a.mT.contiguous().mT, b.mT.contiguous().mT
    assert torch.equal(gemm(a, b, quantizers=of, scale=0.25), predicted(a, b, *of, 0.25))


def test_a_plan_chooses_promotion(gpu):
    a, b = normal(70, 600), normal(600, 36, seed=1)
    fast, promoted = (gemm(a, b, quantizers=(E4M3, E4M3), accumulate=plan) for plan in ("sm90.wgmma", PROMOTED))
    assert torch.equal(promoted, predicted(a, b, E4M3, E4M3, 1.0, PROMOTED))
    assert not torch.equal(fast, promoted)
    with pytest.raises(ValueError, match="the CUDA kernel adds these operands and factors on .* with plan"):
        gemm(a, b, quantizers=(E4M3, E4M3), accumulate="sm90.wgmma;flush=64")


def test_the_gradient_is_cast_once_for_both_products(gpu, monkeypatch):
    grad, a, b = normal(70, 36), normal(70, 150, seed=1), normal(150, 36, seed=2)
    casts, encode = [], gpu.encode_scaled
    monkeypatch.setattr(gpu, "encode_scaled", lambda *rest, **k: (casts.append(rest), encode(*rest, **k)))
    first, second = gemm_backward(
        grad,
        a,
        b,
        quantizers=(E5M2, E4M3, E4M3),
        scales=(0.5, 0.25),
        accumulate=("native", PROMOTED),
        dtypes=(None, torch.bfloat16),
    )
    assert len(casts) == 3
    assert torch.equal(first, predicted(grad, b.mT, E5M2, E4M3, 0.5))
    expected = predicted(grad.mT, a, E5M2, E4M3, 0.25, PROMOTED)
    assert torch.equal(second, expected.bfloat16())


def test_a_gemm_without_quantizers_is_the_one_of_torch():
    a, b = normal(7, 15), normal(15, 3, seed=1)
    assert torch.equal(gemm(a, b, scale=0.5), a @ b * 0.5)


def test_what_has_no_kernel_is_an_error_that_says_what_has(gpu):
    a, b = normal(70, 150), normal(150, 36, seed=1)
    of_blocks = quantizers.parse("fp8_1x128")
    with pytest.raises(TypeError, match=r"operand a of  output is cast by .*use_backend\('triton'\)"):
        gemm(a, b, quantizers=(of_blocks, of_blocks))
    with pytest.raises(TypeError, match=r"is cast to float4_e2m1fn, and the CUDA kernel multiplies"):
        gemm(a, b, quantizers=(quantizers.parse("e2m1"), E4M3))
    with pytest.raises(TypeError, match=r"operand b of  output is torch.float32 without a quantizer, and the CUDA"):
        gemm(a, b, quantizers=(E4M3, None))


def test_the_table_has_both_rows():
    for op in ("gemm", "gemm_backward"):
        row = backends.row(op, "cuda")
        assert row.implementation == f"{module.__name__}:{op}"
        assert getattr(module, op) == getattr(module.KERNEL, op)
