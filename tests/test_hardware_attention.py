"""Attention on a GPU, forward and backward."""

import dataclasses
import itertools
import math

import pytest
import torch
from hardware_bits import bits_of_both

from fp8sim.simulate.attention import attention as simulated_attention

pytestmark = pytest.mark.gpu

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
    for config in kernels.configs(kernels.Kind(q.element_size(), capability, width)):
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
