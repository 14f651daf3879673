"""Do the CUDA kernels of attention compute what their plan says?

Their source runs on a CPU (`cuda_on_host`), on every order of events that its barriers allow. Base-2 logits are
integers throughout, where 2^x is exact, so that every bit is the simulator's. On a GPU, test_hardware_attention.py asks
the same of the real instructions.
"""

import math

import pytest
import torch
from cuda_on_host import SCHEDULES, StandIn, build_all

from fp8sim.cuda.attention import attention, plan_of
from fp8sim.simulate.attention import attention as simulated

E4M3, FP16, BF16 = torch.float8_e4m3fn, torch.float16, torch.bfloat16
HOPPER, AMPERE, ADA = (9, 0), (8, 0), (8, 9)
LN2 = math.log(2)

on_both = pytest.mark.parametrize("capability", [HOPPER, AMPERE], ids=str)
of_every_dtype = pytest.mark.parametrize("dtype", [FP16, BF16, E4M3], ids=str)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    return build_all(["attention_wgmma", "attention_mma"], tmp_path_factory.mktemp("attention_on_host"))


@pytest.fixture
def gpu(libraries):
    stand_in = StandIn(libraries)
    with stand_in.installed():
        yield stand_in


def operands(length, keys, features, dtype, *, batch=1, heads=2, groups=1, seed=0):
    """Integer logits q k from -8 to 8, so that sums of probabilities are exact in any order; any values."""
    g = torch.Generator().manual_seed(seed)

    def with_integers(*shape):
        x = torch.zeros(shape)
        for place in (0, shape[-1] - 1):
            x[..., place] = torch.randint(-2, 3, shape[:-1], generator=g).float()
        return x.to(dtype)

    value = torch.randn(batch, groups, keys, features, generator=g).to(dtype)
    return with_integers(batch, heads, length, features), with_integers(batch, groups, keys, features), value


def assert_as_planned(query, key, value, capability, **options):
    plan = plan_of(query.dtype, capability, query.shape[-1], options.pop("plan", None))
    output, lse = attention(query, key, value, plan=plan, scale=LN2, dtype=torch.float32, **options)
    expected = simulated(query, key, value, plan=plan, scale=LN2, **options)
    for name, actual, wanted in (("lse", lse, expected.lse), ("output", output, expected.output)):
        differ = (actual != wanted) & ~(actual.isnan() & wanted.isnan())
        assert not differ.any(), f"{name}: {int(differ.sum())} of {differ.numel()} differ, first {differ.nonzero()[0]}"


@on_both
@of_every_dtype
@pytest.mark.parametrize(
    ("length", "keys", "features"),
    [(63, 130, 64), (130, 200, 128), (65, 70, 256), (1, 1, 64), (1, 150, 80), (9, 70, 65)],
)
def test_every_bit_is_what_the_plan_predicts(gpu, capability, dtype, length, keys, features):
    gpu.capability = capability
    assert_as_planned(*operands(length, keys, features, dtype), capability)


@on_both
@of_every_dtype
@pytest.mark.parametrize(
    "mask",
    [
        {"is_causal": True},
        {"is_causal": True, "lower_right": True},
        {"window": 1},
        {"window": 40, "lower_right": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("length", "keys"), [(200, 140), (70, 260)])
def test_masks(gpu, capability, dtype, mask, length, keys):
    """Rows that see no key, blocks that no row sees, blocks that some rows see a part of."""
    gpu.capability = capability
    assert_as_planned(*operands(length, keys, 64, dtype, heads=1), capability, **mask)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["early", "early, backwards", "late", "late, backwards"])
@on_both
@of_every_dtype
def test_no_order_of_events_changes_a_bit(gpu, schedule, capability, dtype):
    """More blocks of keys than the ring has stages."""
    gpu.schedule, gpu.capability = schedule, capability
    assert_as_planned(*operands(3, 450, 64, dtype, heads=1), capability)


@on_both
@of_every_dtype
def test_heads_batches_and_strides(gpu, capability, dtype):
    """Groups of heads, [B, L, H, D] in memory, features that are not contiguous, rows that start between alignments,
    batches that share keys and values in memory."""
    gpu.capability = capability
    query, key, value = operands(20, 30, 64, dtype, batch=2, heads=6, groups=3)
    assert_as_planned(query, key, value, capability)
    query, key = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))
    value = value.mT.contiguous().mT
    assert_as_planned(query, key, value, capability)
    raw = torch.zeros(2, 3, 30, 67, dtype=torch.uint8 if dtype == E4M3 else torch.int16).view(dtype)
    raw[..., 1:65] = key
    assert_as_planned(query, raw[..., 1:65], value, capability)
    shared = (x[:1].view(torch.uint8 if dtype == E4M3 else torch.int16).expand(2, -1, -1, -1) for x in (key, value))
    assert_as_planned(query, *(x.view(dtype) for x in shared), capability)


@on_both
@of_every_dtype
def test_factors(gpu, capability, dtype):
    """Powers of two, so that logits stay integers; the output's factor is any number."""
    gpu.capability = capability
    factors = {"query_scale_inv": 0.5, "key_scale_inv": 2.0, "value_scale_inv": 0.3, "output_factor": 1.7}
    assert_as_planned(*operands(20, 100, 64, dtype), capability, **factors)


@on_both
def test_an_offset_of_probabilities(gpu, capability):
    gpu.capability = capability
    block = plan_of(E4M3, capability, 64)
    for offset in (0.0, 4.0):
        plan = str(block).replace("p_offset=8.0", f"p_offset={offset}")
        assert_as_planned(*operands(20, 100, 64, E4M3), capability, plan=plan)


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, FP16, BF16], ids=str)
def test_the_result_is_rounded_once(gpu, capability, dtype):
    gpu.capability = capability
    query, key, value = operands(20, 100, 64, BF16)
    exact, _ = attention(query, key, value, scale=LN2, dtype=torch.float32)
    rounded, _ = attention(query, key, value, scale=LN2, dtype=dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))


@on_both
@of_every_dtype
def test_one_key_at_a_time(gpu, capability, dtype):
    """Every key once has all the weight: first, last, at both sides of each block's edge."""
    gpu.capability = capability
    keys = 260
    key, value = torch.zeros(1, 1, keys, 64), torch.randn(1, 1, keys, 64, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([0, 1, 31, 32, 63, 64, 65, 127, 128, 129, 255, 256, 259])
    query = torch.zeros(1, 1, len(chosen), 64)
    for row, at in enumerate(chosen.tolist()):
        query[0, 0, row, row] = 16
        key[0, 0, at, row] = 8
    output, _ = attention(*(x.to(dtype) for x in (query, key, value)), scale=LN2, dtype=torch.float32)
    assert torch.equal(output[0, 0], value.to(dtype).float()[0, 0, chosen])


@on_both
@of_every_dtype
def test_nan_and_infinities_reach_the_rows_that_see_them(gpu, capability, dtype):
    """And, of values, those that see another key of the block: 0 times infinity is NaN there as in the plan."""
    gpu.capability = capability
    query, key, value = operands(20, 140, 64, dtype, heads=1)
    query[0, 0, 3, 5] = math.nan
    key[0, 0, 137, 0] = math.nan
    output, _ = attention(query, key, value, scale=LN2, is_causal=True, lower_right=True)
    reached = output[0, 0].isnan()
    assert reached[[3, 17, 18, 19]].all()
    assert not reached[[0, 1, 2, *range(4, 17)]].any()
    value[0, 0, 130, 7] = math.nan if dtype == E4M3 else math.inf
    assert_as_planned(query[:, :, 4:17], key[:, :, :137], value[:, :, :137], capability)


def test_nothing_outside_of_the_results_is_written(gpu):
    for capability in (HOPPER, AMPERE):
        gpu.capability = capability
        query, key, value = operands(33, 20, 72, FP16)
        memory, sums = torch.full((2 * 33 * 72 + 64,), 7.0), torch.full((2 * 33 + 64,), 7.0)
        strides = [x.stride()[:3] for x in (query, key, value)]
        addresses = [x.data_ptr() for x in (query, key, value, memory[32:], sums[32:])]
        gpu.attention(*addresses, (1, 2, 1, 33, 20, 72), "float16", "float32", *strides, 1.0)
        for written in (memory, sums):
            assert (written[:32] == 7).all()
            assert (written[-32:] == 7).all()
            assert (written[32:-32] != 7).all()


def test_empty_operands(gpu):
    query, key, value = operands(4, 5, 64, FP16)
    for q, k, v in (
        (query[:, :, :0], key, value),
        (query, key[:, :, :0], value[:, :, :0]),
        (query[:0], key[:0], value[:0]),
    ):
        output, lse = attention(q, k, v)
        assert output.shape == q.shape
        assert not output.any()
        assert torch.equal(lse, torch.full(q.shape[:3], math.inf))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"key": torch.zeros(1, 1, 5, 32)},
            TypeError,
            "key is .*: expected torch.float8_e4m3fn, torch.float16 or torch.bfloat16",
        ),
        ({"key": torch.zeros(1, 1, 5, 64, dtype=BF16)}, TypeError, "must have one dtype and device"),
        ({"value": torch.zeros(1, 1, 5, 32, dtype=FP16)}, ValueError, r"value \[B, G, S, D\]"),
        ({"key": torch.zeros(1, 3, 5, 64, dtype=FP16), "value": torch.zeros(1, 3, 5, 64, dtype=FP16)}, ValueError, "G"),
        ({"scale": 0.0}, ValueError, "scale=0.0: must be positive"),
        (
            {name: torch.zeros(1, 1, 5, 0, dtype=FP16) for name in ("query", "key", "value")},
            ValueError,
            "D=0: heads have 1 to 256 features in the CUDA kernel",
        ),
        (
            {name: torch.zeros(1, 1, 5, 264, dtype=FP16) for name in ("query", "key", "value")},
            ValueError,
            "D=264: heads have 1 to 256 features",
        ),
        ({"window": 0}, ValueError, "window=0: a number of keys"),
        ({"dtype": torch.float64}, TypeError, "dtype must be one of float32"),
        ({"plan": "fa3.fp8"}, ValueError, "the CUDA kernel follows 'p_format=float16"),
        ({"cu_seqlens_q": torch.zeros(2)}, ValueError, "packed sequences take the backend 'triton'"),
    ],
)
def test_what_the_kernel_cannot_do_is_an_error(gpu, change, error, message):
    query, key, value = operands(4, 5, 64, FP16)
    with pytest.raises(error, match=message):
        attention(**({"query": query, "key": key, "value": value} | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2], ids=str)
def test_what_has_no_kernel_has_no_plan(gpu, dtype):
    with pytest.raises(TypeError, match="dtype must be one of float8_e4m3fn, float16, bfloat16, got"):
        plan_of(dtype, HOPPER, 64)


def test_a_gpu_before_ampere_is_refused(gpu):
    gpu.capability = (7, 5)
    with pytest.raises(RuntimeError, match="compute capability 8.0"):
        attention(*operands(4, 5, 64, FP16))
