"""The simulated backward pass of attention: against autograd, against exact sums, and its plans as text."""

import math

import pytest
import torch
from attention_gradients import LN2, bounds, exact_inputs, gradients, of_groups, random_inputs, reference, visible
from hypothesis import given
from hypothesis import strategies as st

from fp8sim.mma.attention_backward import ATTENTION_BACKWARD_PLANS, AttentionBackwardPlan, backward_scales
from fp8sim.mma.attention_backward import parse as parse_plan
from fp8sim.mma.plans import GemmPlan
from fp8sim.simulate.attention import attention
from fp8sim.simulate.attention_backward import attention_backward

E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
MASKS = [{}, {"is_causal": True}, {"window": 7}, {"is_causal": True, "lower_right": True}]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_reference_is_autograd(mask):
    """Of the definition, in float64, by torch: what everything here and the kernel's tests compare with."""
    (grad, q, k, v, output, lse), parts = random_inputs(FP16, 20, 30, 8, 5, heads=4, groups=2, **mask)
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    bias = torch.zeros(20, 30, dtype=torch.float64).masked_fill(~visible(20, 30, **mask), -math.inf)
    logits = q @ k.repeat_interleave(2, 1).mT * 8**-0.5 + bias
    actual = torch.softmax(logits, -1) @ v.repeat_interleave(2, 1)
    actual.backward(grad.double())
    torch.testing.assert_close(actual.float(), output)
    torch.testing.assert_close(torch.logsumexp(logits, -1).float() / LN2, lse)
    for x, expected in zip((q, k, v), gradients(parts, 8**-0.5), strict=True):
        torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("dtype", "fp8", "kind"), [(BF16, 0, "bf16"), (FP16, 0, "fp16"), (E4M3, 0, "bf16"), (E5M2, 1, "fp8")]
)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_random_data_within_the_bound(dtype, fp8, kind, mask):
    inputs, parts = random_inputs(dtype, 40, 50, 48, 40, heads=4, groups=2, **mask)
    actual = attention_backward(*inputs, fp8=bool(fp8), dtype=torch.float32, **mask)
    scale = 48**-0.5
    limits = bounds(parts, scale, kind, float(backward_scales(inputs[0], inputs[3], 1.0)[1]))
    for a, e, bound in zip(actual, gradients(parts, scale), limits, strict=True):
        assert bool(((a - e).abs() <= bound).all())


FACTORS = {"query_scale_inv": 0.5, "key_scale_inv": 4.0, "value_scale_inv": 0.25, "output_factor": 8.0}


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("plan", ["bf16", "queries=16;keys=8;over_keys=sm80.mma,flush=8"])
def test_exact_sums_are_those_of_rationals(plan, mask):
    """Where every number on the way is exact there is one answer, whatever the order of additions."""
    _, q, k, v, _, lse = exact_inputs((BF16,) * 3, heads=4, groups=2, length=30, keys=40, width=4, features=3)
    v = v / 2
    grad = torch.randint(-1, 2, (1, 4, 30, 3), generator=torch.Generator().manual_seed(9)).float()
    output = torch.zeros_like(grad)
    actual = attention_backward(
        grad, q, k, v, output, lse, plan=plan, scale=LN2 / 2, dtype=torch.float32,
        grad_factors=(1 / LN2, 1 / LN2, 1.0), **FACTORS, **mask,
    )  # fmt: skip
    q, k, v = (x.double().repeat_interleave(n, 1) for x, n in ((q, 1), (k, 2), (v, 2)))
    p = torch.exp2(q @ k.mT - lse[..., None]).where(visible(30, 40, **mask), 0)
    d = p * (2 * grad.double() @ v.mT)
    expected = 2 * d @ k, of_groups(d.mT @ q, {"shared": 2}) / 4, 8 * of_groups(p.mT @ grad.double(), {"shared": 2})
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2.0**-22, atol=0)  # one factor with log(2) is no power of two
        assert float(e.abs().max()) > 0


def test_it_is_the_gradient_of_the_simulated_forward_pass():
    """With the output that the forward pass gives, up to what its probabilities and bfloat16 lose."""
    (grad, q, k, v, _, _), _ = random_inputs(E4M3, 33, 60, 32, 32)
    forward = attention(q, k, v, plan="fa3.fp8", is_causal=True)
    _, lse, parts = reference(grad, q, k, v, 32**-0.5, is_causal=True)
    actual = attention_backward(grad, q, k, v, forward.output, lse, is_causal=True, dtype=torch.float32)
    for a, e in zip(actual, gradients(parts, 32**-0.5), strict=True):
        assert float((a - e).norm() / e.norm()) < 0.05


plans = st.builds(
    AttentionBackwardPlan,
    p_format=st.sampled_from(["bfloat16", "float8_e4m3fn"]),
    p_offset=st.integers(-3, 9),
    queries=st.sampled_from([16, 64]),
    keys=st.sampled_from([16, 64]),
    logits=st.sampled_from([GemmPlan("sm90.wgmma"), GemmPlan("sm80.mma", widen="float16")]),
    over_keys=st.sampled_from([GemmPlan("sm90.wgmma"), GemmPlan("sm90.wgmma", flush=64)]),
)


@given(plans | st.sampled_from(list(ATTENTION_BACKWARD_PLANS.values())))
def test_text_stands_for_its_plan(plan):
    assert parse_plan(str(plan)) == plan


def test_names_of_plans():
    assert [str(plan) for plan in ATTENTION_BACKWARD_PLANS.values()] == list(ATTENTION_BACKWARD_PLANS)
    assert parse_plan("queries=32;logits=sm80.mma,widen=float16").logits.widen == "float16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp9", "'fp9' is none of p_format=, .* named plans are bf16, fp16, fp8"),
        ("queries=0", "queries=0: a number of 1 or more"),
        ("queries=many", "'queries=many' cannot be read"),
        ("p_format=fp7", "unknown format"),
        ("over_keys=sm90.wgmma,split_k=2", "are not split"),
        ("over_keys=sm90.wgmma,flush=32", "flushes every 32 within a block of keys=64: use flush=64"),
    ],
)
def test_what_is_no_plan(text, message):
    with pytest.raises(ValueError, match=message):
        parse_plan(text)
