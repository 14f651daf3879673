"""Does the Triton attention follow its plan?

In the interpreter `tl.dot` is replaced by the model of the instruction that the plan names. Logits are integers in
base 2, of which every exponential is exact, so that the probabilities that the kernel casts, its output and its
logarithms must have the bits of `fp8sim.simulate.attention`. On a GPU the same tests are those of the plan and of the
model at once.
"""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from triton_tensors import DEVICE, poisoned_outputs, same_bits

pytest.importorskip("triton")

from fp8sim import casting, mma
from fp8sim.mma.attention import AttentionPlan, Denominator
from fp8sim.mma.chains import chain
from fp8sim.rounding import Overflow
from fp8sim.simulate.attention import attention as simulated
from fp8sim.triton_kernels import attention as kernels
from fp8sim.triton_kernels import interpreter, matmul
from fp8sim.triton_kernels.attention import attention, plan_of

INTERPRETED = interpreter.is_enabled()
E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
CAPABILITIES = [(9, 0), (8, 9), (8, 0)] if INTERPRETED else [torch.cuda.get_device_capability()]
TRITON_NAMES = {"fp8e4nv": E4M3, "fp8e5": E5M2, "fp16": FP16, "bf16": BF16}
LN2 = math.log(2)


@contextlib.contextmanager
def tensor_core(capability):
    """In the interpreter: `tl.dot` computed by the instruction's model; gives the left operands of all products."""
    seen = []
    if not INTERPRETED:
        yield seen
        return

    def dot(a, b, c, imprecise):
        assert not imprecise
        seen.append(a.values.copy())
        types = [TRITON_NAMES[x.dtype] for x in (a, b)]
        model = mma.resolve(matmul.plan_of(types[0], capability), *map(name, types))
        left, right = codes(a.values, types[0]), codes(b.values.T, types[1])
        return chain(left, right, np.ascontiguousarray(c), model=model)

    before, matmul.capability_of = matmul.capability_of, lambda x: capability
    try:
        with interpreter.use_dot(dot):
            yield seen
    finally:
        matmul.capability_of = before


def name(dtype):
    return str(dtype).removeprefix("torch.")


def codes(values, dtype):
    x = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return x.view(torch.uint8 if dtype.itemsize == 1 else torch.uint16).numpy()


def integers(*shape, seed=0, largest=1, dtype=BF16):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=g).to(dtype)


def operands(length, keys, dtype, *, width=6, features=6, heads=4, groups=2, batch=2, seed=0):
    """q k^T are integers from -width to width; values are small integers."""
    q = integers(batch, heads, length, width, seed=seed, dtype=dtype)
    k = integers(batch, groups, keys, width, seed=seed + 1, dtype=dtype)
    return q, k, integers(batch, groups, keys, features, seed=seed + 2, largest=4, dtype=dtype)


def run(q, k, v, capability=CAPABILITIES[0], **options):
    """The kernel's results on the CPU, and the left operands of its products."""
    sent = {n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    with tensor_core(capability) as products:
        output, lse = attention(*(x.to(DEVICE) for x in (q, k, v)), **{"dtype": torch.float32, **sent})
    return output.cpu(), lse.cpu(), products


def assert_same_lse(actual, expected):
    """Within what a logarithm may err, and bit for bit where it is exact."""
    whole = expected.isinf() | (expected == expected.round())
    assert torch.equal(actual[whole], expected[whole])
    torch.testing.assert_close(actual, expected, rtol=2.0**-22, atol=2.0**-22)


KNOBS = {
    "default": {},
    "no offset": {"p_offset": 0.0},
    "lags": {"p_offset": 4.0, "rescale_above": 4.0},
    "clamps": {"p_offset": 8.0, "rescale_above": 4.0},
    "after": {"p_offset": 0.0, "denominator": Denominator.AFTER},
    "e5m2": {"p_format": "e5m2", "p_offset": 3.0},
    "ascending": {"descending": False, "reciprocal": False},
    "descending": {"descending": True, "reciprocal": True},
}
MASKS = {
    "all": {},
    "causal": {"is_causal": True},
    "lower right": {"is_causal": True, "lower_right": True},
    "window": {"window": 40},
    "window, lower right": {"window": 150, "lower_right": True},
}


def cases():
    for index, (capability, dtype) in enumerate((c, d) for c in CAPABILITIES for d in (E4M3, E5M2, BF16, FP16)):
        for turn, (knob, mask) in enumerate(pairs_of_options()):
            fp8_only = knob in ("no offset", "clamps", "after", "e5m2")
            if (dtype.itemsize == 2 and fp8_only) or (capability != (9, 0) and (index + turn) % 3):
                continue
            yield pytest.param(capability, dtype, knob, mask, id=f"{capability}-{name(dtype)}-{knob}-{mask}")


def pairs_of_options():
    """Every knob and every mask, each knob with several masks."""
    masks = list(MASKS)
    for index, knob in enumerate(KNOBS):
        yield knob, masks[index % len(masks)]
    yield from (("default", mask) for mask in masks[1:])


@pytest.mark.parametrize(("capability", "dtype", "knob", "mask"), list(cases()))
def test_every_bit_is_what_the_plan_predicts(capability, dtype, knob, mask):
    q, k, v = operands(90, 200, dtype)
    plan = dataclasses.replace(plan_of((dtype,) * 3, capability, 6), **KNOBS[knob])
    options = {"scale": LN2, "value_scale_inv": 0.3, "output_factor": 1.7, **MASKS[mask]}
    output, lse, products = run(q, k, v, capability, plan=plan, **options)
    expected = simulated(q, k, v, plan=plan, **options)
    if INTERPRETED:
        assert_same_probabilities(weights(products, plan), expected.p_codes, plan, seen_blocks(90, 200, plan, mask))
    assert same_bits(output, expected.output)
    assert_same_lse(lse, expected.lse)


def seen_blocks(length, keys, plan, mask):
    """The first keys of the blocks of which some query sees a key, in the plan's order."""
    i, j = torch.arange(length)[:, None], torch.arange(keys)[None]
    options = MASKS[mask]
    position = i + (keys - length) * options.get("lower_right", False)
    seen = (j <= position) | (mask == "all")
    seen = seen & (j > position - options.get("window", keys + length))
    starts = [start for start in range(0, keys, plan.block) if bool(seen[:, start : start + plan.block].any())]
    return starts[::-1] if plan.descending else starts


def weights(products, plan):
    """The left operands that are probabilities; the others are queries, of fewer features than a block has keys."""
    return [matrix for matrix in products if matrix.shape[1] == plan.block]


def assert_same_probabilities(actual, expected_codes, plan, starts):
    """`actual`: the left operands of p v, head by head, block by block; the rest of a tile is zero or not looked at."""
    *_, length, keys = expected_codes.shape
    expected = casting.decode(expected_codes, plan.p_format).view(-1, length, keys).numpy()
    assert len(actual) == len(expected) * len(starts)
    for index, matrix in enumerate(actual):
        start = starts[index % len(starts)]
        columns = expected[index // len(starts)][:, start : start + plan.block]
        np.testing.assert_array_equal(matrix[:length, : columns.shape[1]], columns)


@pytest.mark.skipif(not INTERPRETED, reason="needs every capability")
def test_plans_differ_in_their_bits():
    """The test above can fail: every knob has bits of its own, in probabilities, sums or outputs."""
    q, k, v = operands(90, 200, E4M3)
    base = plan_of((E4M3,) * 3, (9, 0), 6)
    results = {knob: simulated(q, k, v, plan=dataclasses.replace(base, **KNOBS[knob]), scale=LN2) for knob in KNOBS}
    for knob in KNOBS:
        if knob not in ("default", "descending"):
            one, other = results[knob], results["default"]
            assert not (torch.equal(one.output, other.output) and torch.equal(one.p_codes, other.p_codes)), knob


def random_operands(length, keys, dtype, *, width=64, features=48, heads=2, groups=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((1, heads, length, width), (1, groups, keys, width), (1, groups, keys, features))
    return [torch.randn(shape, generator=g).to(dtype) for shape in shapes]


def definition(q, k, v, *, is_causal=False, scale=None):
    """softmax(scale q k^T) |v| and v in float64, and the base-2 logarithm of the denominators."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    p = logits.softmax(-1)
    return p @ v, p @ v.abs(), v.abs().amax(-2, keepdim=True), logits.logsumexp(-1) / LN2


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [E4M3, E5M2, BF16, FP16], ids=name)
def test_random_data_within_the_rounding_of_probabilities(dtype, is_causal):
    q, k, v = random_operands(130, 200, dtype)
    output, lse, _ = run(q, k, v, is_causal=is_causal)
    exact, bound, largest, logarithm = definition(q, k, v, is_causal=is_causal)
    # Half a spacing of each probability, or of the smallest number relative to the offset of 2^8; logits, sums and
    # Hopper's FP8 accumulator, which truncates to 13 bits in each of 200 / 32 additions, err by less than 2^-9.
    mantissa, smallest = {E4M3: (3, 2.0**-18), BF16: (7, 0.0), FP16: (10, 2.0**-25), E5M2: (3, 2.0**-18)}[dtype]
    allowed = bound * (2.0 ** -(mantissa + 1) + 2.0**-9) + 200 * smallest * largest
    assert bool(((output - exact).abs() <= allowed).all())
    torch.testing.assert_close(lse.double(), logarithm, rtol=0, atol=2.0**-9)


@pytest.mark.parametrize("dtype", [E4M3, FP16], ids=name)
def test_random_probabilities_are_the_simulators_but_for_a_code_where_exponentials_err(dtype):
    if not INTERPRETED:
        pytest.skip("probabilities are seen in the interpreter alone")
    q, k, v = random_operands(100, 200, dtype)
    plan = plan_of((dtype,) * 3, (9, 0), 64)
    _, _, products = run(q, k, v, plan=plan)
    expected = casting.decode(simulated(q, k, v, plan=plan).p_codes[0], plan.p_format).numpy()
    starts = [128, 0] if plan.descending else [0, 128]
    differing = 0
    for index, matrix in enumerate(weights(products, plan)):
        start = starts[index % 2]
        columns = expected[index // 2][:, start : start + 128]
        actual = matrix[:100, : columns.shape[1]]
        np.testing.assert_allclose(actual, columns, rtol=2.0**-3 if dtype == E4M3 else 2.0**-10, atol=2.0**-9)
        differing += int((actual != columns).sum())
    assert differing < 0.002 * 2 * 100 * 200


@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
@pytest.mark.parametrize("is_causal", [False, True])
def test_sums_that_every_order_of_additions_gives_alike(dtype, is_causal):
    """Equal logits: p = 1, and outputs are whole sums divided by counts."""
    length = keys = 300
    q, k, v = operands(length, keys, dtype)
    output, lse, _ = run(torch.zeros_like(q), k, v, is_causal=is_causal, plan=exact_division(dtype))
    counts = torch.arange(1.0, keys + 1) if is_causal else torch.full((length,), float(keys))
    sums = v.float().cumsum(2) if is_causal else v.float().sum(2, keepdim=True).expand(-1, -1, length, -1)
    assert torch.equal(output, (sums / counts[:, None]).repeat_interleave(2, 1))
    torch.testing.assert_close(lse, counts.log2().expand_as(lse), rtol=2.0**-22, atol=0)


def exact_division(dtype):
    plan = plan_of((dtype,) * 3, CAPABILITIES[0], 6)
    return dataclasses.replace(plan, reciprocal=False)


@pytest.mark.parametrize(
    ("window", "dtype"), [(None, E4M3), (1, BF16), (2, E4M3), (127, BF16), (128, E4M3), (129, BF16), (130, BF16)]
)
def test_masks_at_the_edges_of_blocks(dtype, window):
    """Three queries that stand at the last keys: blocks that need no mask begin and end where the arithmetic says."""
    for keys in (126, 127, 128, 129, 130, 131, 255, 256, 257, 258, 259):
        q, k, v = operands(3, keys, dtype, heads=1, groups=1, batch=1, seed=keys)
        options = {"is_causal": True, "window": window, "lower_right": True, "plan": exact_division(dtype)}
        output, _, _ = run(torch.zeros_like(q), k, v, **options)
        position, key = torch.arange(3)[:, None] + keys - 3, torch.arange(keys)[None]
        seen = ((key <= position) & (key > position - (window or keys))).float()
        assert torch.equal(output[0, 0], seen @ v[0, 0].float() / seen.sum(1, keepdim=True)), keys


POSITIONS = [0, 1, 63, 64, 127, 128, 191, 255, 256, 299]


@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
@pytest.mark.parametrize("lower_right", [False, True])
def test_impulses_reach_their_rows_alone(dtype, lower_right):
    """One value for each position, in a feature of its own: seen from its query on."""
    length, keys = 270, 300
    q, k = torch.zeros(1, 1, length, 16).to(dtype), torch.zeros(1, 1, keys, 16).to(dtype)
    v = torch.zeros(1, 1, keys, len(POSITIONS))
    for feature, position in enumerate(POSITIONS):
        v[0, 0, position, feature] = 1.0
    options = {"is_causal": True, "lower_right": lower_right, "plan": exact_division(dtype)}
    output, _, _ = run(q, k, v.to(dtype), **options)
    stands = torch.arange(length) + (keys - length if lower_right else 0)
    seen = stands[:, None] >= torch.tensor(POSITIONS)[None]
    assert torch.equal(output[0, 0], seen / (stands[:, None] + 1.0))


@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
def test_an_impulse_of_a_key_is_found_at_every_position(dtype):
    """Head h sees position h stand out by 2^10, with a value of its own: it is all that is left of the output."""
    heads, keys = len(POSITIONS), 300
    q = torch.ones(1, heads, 3, 16).to(dtype)
    k, v = torch.zeros(1, heads, keys, 16), torch.zeros(1, heads, keys, 1)
    for head, position in enumerate(POSITIONS):
        k[0, head, position, position % 16] = 10.0
        v[0, head, position] = head + 1.0
    output, _, _ = run(q, k.to(dtype), v.to(dtype), scale=LN2, plan=exact_division(dtype))
    expected = (torch.arange(heads) + 1.0) * 2.0**10 / (2.0**10 + keys - 1)
    torch.testing.assert_close(output[0, :, :, 0], expected[:, None].expand(-1, 3), rtol=2.0**-20, atol=0)


SIZES = [(1, 1), (1, 63), (63, 1), (1, 1000), (300, 63), (63, 1000)]


@pytest.mark.parametrize(("length", "keys"), SIZES)
@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
def test_odd_sizes_write_their_outputs_and_nothing_else(dtype, length, keys):
    q, k, v = operands(length, keys, dtype, width=7, features=5, heads=2, batch=1)
    plan = plan_of((dtype,) * 3, CAPABILITIES[0], 7)
    with poisoned_outputs():
        output, lse, _ = run(q, k, v, scale=LN2, plan=plan, is_causal=True, lower_right=True)
    expected = simulated(q, k, v, scale=LN2, plan=plan, is_causal=True, lower_right=True)
    assert same_bits(output, expected.output)
    assert_same_lse(lse, expected.lse)


@pytest.mark.parametrize("width", [1, 16, 80, 128, 256])
@pytest.mark.parametrize("dtype", [E4M3, FP16], ids=name)
def test_heads_of_any_width(dtype, width):
    q, k, v = operands(20, 150, dtype, width=width, features=257 - width, heads=2, batch=1)
    q[..., 12:] = 0  # logits stay small integers
    plan = plan_of((dtype,) * 3, CAPABILITIES[0], max(width, 257 - width))
    output, _, _ = run(q, k, v, scale=LN2, plan=plan)
    assert same_bits(output, simulated(q, k, v, scale=LN2, plan=plan).output)


@pytest.mark.parametrize("capability", CAPABILITIES[::2], ids=str)
def test_operands_of_mixed_fp8(capability):
    q, k, v = operands(20, 70, E4M3)
    mixed = q, k.float().to(E5M2), v.float().to(E5M2)
    plan = plan_of((E4M3, E5M2, E5M2), capability, 6)
    output, _, _ = run(*mixed, capability, scale=LN2, plan=plan)
    assert same_bits(output, simulated(*mixed, scale=LN2, plan=plan).output)


LAYOUTS = {
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "features outside": lambda x: x.mT.contiguous().mT,
    "unaligned": lambda x: padded(x, 3)[..., 3:],
    "stepped": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
}


def padded(x, columns):
    return torch.cat([x[..., :columns], x], -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
@pytest.mark.parametrize("capability", CAPABILITIES[::2], ids=str)
def test_strides_change_nothing(capability, dtype, layout):
    q, k, v = operands(40, 150, BF16, width=16, features=32)
    expected, _, _ = run(*(x.to(dtype) for x in (q, k, v)), capability, scale=LN2)
    views = [LAYOUTS[layout](x).to(dtype) for x in (q, k, v)]
    actual, _, _ = run(*views, capability, scale=LN2)
    assert same_bits(actual, expected)


def test_keys_that_are_expanded():
    q, k, v = operands(40, 150, BF16, width=16, features=16, batch=1)
    shared = [x[:, :1].expand(3, 4, -1, -1) for x in (k, v)]
    actual, _, _ = run(q.expand(3, -1, -1, -1), *shared, scale=LN2)
    expected, _, _ = run(q, k[:, :1], v[:, :1], scale=LN2)
    assert same_bits(actual, expected.expand(3, -1, -1, -1))


PACKED = [([0, 5, 5, 70, 71, 200], [0, 130, 131, 140, 300, 301]), ([3, 40, 90], [0, 0, 100])]


@pytest.mark.parametrize("capability", CAPABILITIES[::2], ids=str)
@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=name)
@pytest.mark.parametrize(("q_starts", "k_starts"), PACKED, ids=["many", "without keys"])
def test_packed_sequences_are_each_its_own(capability, dtype, q_starts, k_starts):
    """NaN between the sequences, and in the values of one, stays where it is."""
    q, k, v = operands(210, 310, dtype, batch=1)
    v[:, :, k_starts[-1] :], k[:, :, k_starts[-1] :] = math.nan, math.nan
    if len(q_starts) == 6:
        v[:, :, 135] = math.nan
    plan = plan_of((dtype,) * 3, capability, 6)
    options = {"is_causal": True, "lower_right": True, "scale": LN2, "plan": plan}
    starts = {
        name: torch.tensor(at, dtype=torch.int32)
        for name, at in (("cu_seqlens_q", q_starts), ("cu_seqlens_k", k_starts))
    }
    output, lse, _ = run(q, k, v, capability, **options, **starts)
    covered = torch.zeros(210, dtype=torch.bool)
    for a, b, c, d in zip(q_starts, q_starts[1:], k_starts, k_starts[1:], strict=False):
        covered[a:b] = True
        if a == b or c == d:
            continue
        expected = simulated(q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], **options)
        assert same_nan(output[:, :, a:b], expected.output)
        assert_same_lse(lse[:, :, a:b], expected.lse)
    assert not output[:, :, ~covered].any()
    assert bool(lse[:, :, ~covered].isposinf().all())


def same_nan(actual, expected):
    return same_bits(actual.nan_to_num(77.0), expected.nan_to_num(77.0))


@pytest.mark.parametrize("starts", [[0, 900, 40], [-5, 20, 90], [50, 10, 30]])
def test_wrong_starts_stay_inside_the_operands(starts):
    q, k, v = operands(90, 90, BF16, batch=1)
    starts = torch.tensor(starts, dtype=torch.int32)
    with poisoned_outputs():
        output, _, _ = run(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts)
    assert bool(output.isfinite().all())


def test_rows_that_see_no_key():
    q, k, v = operands(10, 4, BF16)
    output, lse, _ = run(q, k, v, is_causal=True, lower_right=True)  # the first six stand before the first key
    assert not output[:, :, :6].any()
    assert bool(lse[:, :, :6].isposinf().all())
    assert bool(lse[:, :, 6:].isfinite().all())
    empty = [x[:, :, :0] for x in (k, v)]
    output, lse, _ = run(q, *empty)
    assert not output.any()
    assert bool(lse.isposinf().all())
    assert run(q[:, :, :0], k, v)[0].shape == (2, 4, 0, 6)


@pytest.mark.parametrize("dtype", [E5M2, FP16], ids=name)
def test_nan_and_infinities_stay_in_their_rows(dtype):
    q, k, v = operands(20, 40, dtype)
    q[0, 0, 3] = math.nan
    q[0, 0, 5, 0] = math.inf
    plan = plan_of((dtype,) * 3, CAPABILITIES[0], 6)
    options = {"scale": LN2, "plan": plan, "is_causal": True}
    output, lse, _ = run(q, k, v, **options)
    expected = simulated(q, k, v, **options)
    assert bool(expected.output[0, 0, 3].isnan().all())
    assert same_nan(output, expected.output)
    assert torch.equal(lse.isnan(), expected.lse.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_output_is_rounded_once(dtype):
    q, k, v = operands(30, 70, E4M3)
    exact, _, _ = run(q, k, v, scale=LN2)
    assert torch.equal(run(q, k, v, scale=LN2, dtype=dtype)[0], exact.to(dtype))
    default = run(q, k, v, scale=LN2, dtype=None)[0]
    assert default.dtype == torch.bfloat16


def test_factors_of_query_and_key_multiply_the_scale():
    q, k, v = operands(30, 70, E4M3)
    one = run(q, k, v, scale=6 * LN2)
    other = run(q, k, v, scale=LN2, query_scale_inv=2.0, key_scale_inv=3.0)
    assert all(map(same_bits, one[:2], other[:2]))


# Plans


@pytest.mark.parametrize(("dtype", "named"), [(E4M3, "fa3.fp8"), (BF16, "bf16"), (FP16, "fp16")], ids=str)
def test_hopper_follows_named_plans(dtype, named):
    assert str(plan_of((dtype,) * 3, (9, 0), 128)) == named
    assert plan_of((dtype,) * 3, (9, 0), 128, named) == mma.ATTENTION_PLANS[named]
    full = {BF16: "sm90.wgmma.m64n8k16.f32.bf16.bf16"}.get(dtype)
    if full:
        plan = dataclasses.replace(mma.ATTENTION_PLANS[named], logits=mma.parse_plan("sm90.wgmma"))
        assert plan_of((dtype,) * 3, (9, 0), 128, plan) == plan


REFUSED = {
    "block": (E4M3, (9, 0), {"block": 96}, r"block=96 on .* it has block=64 or 128; it follows 'fa3.fp8'"),
    "format": (BF16, (9, 0), {"p_format": "e4m3"}, "p_format=float8_e4m3fn .* it has p_format=bfloat16"),
    "overflow": (
        E4M3,
        (9, 0),
        {"p_offset": 9.0, "p_overflow": Overflow.NAN},
        "p_overflow=NAN .* p_overflow=SATURATE where a probability can exceed",
    ),
    "instruction": (E4M3, (8, 0), {}, "logits=sm90.wgmma, mixed=sm90.wgmma .* logits=triton.sm80"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_plans_that_the_kernel_does_not_follow_are_refused(case):
    dtype, capability, change, message = REFUSED[case]
    base = AttentionPlan(block=64, p_offset=8.0) if capability == (8, 0) else plan_of((dtype,) * 3, (9, 0), 128)
    with pytest.raises(ValueError, match=message):
        plan_of((dtype,) * 3, capability, 128, dataclasses.replace(base, **change))


def test_an_overflow_policy_that_no_probability_needs_is_followed():
    plan = dataclasses.replace(plan_of((E4M3,) * 3, (9, 0), 128), p_overflow=Overflow.NAN)
    assert plan_of((E4M3,) * 3, (9, 0), 128, plan) == plan


Q = torch.zeros(1, 4, 8, 16, dtype=BF16, device=DEVICE)
ERRORS = {
    "dtype": (lambda: attention(Q.float(), Q, Q), TypeError, "query must be a tensor of .* got torch.float32"),
    "mixed": (lambda: attention(Q, Q, Q.half()), TypeError, "must all be FP8, or of one dtype"),
    "shape": (lambda: attention(Q, Q[..., :8], Q), ValueError, "G dividing H, got"),
    "rank": (lambda: attention(Q[0], Q[0], Q[0]), ValueError, r"expected query \[B, H, L, D\]"),
    "groups": (lambda: attention(Q, Q[:, :3], Q[:, :3]), ValueError, "G dividing H"),
    "width": (
        lambda: attention(*[torch.zeros(1, 1, 2, 257, dtype=BF16, device=DEVICE)] * 3),
        ValueError,
        "heads have 1 to 256 features",
    ),
    "window": (lambda: attention(Q, Q, Q, window=0), ValueError, "window=0: a number of keys"),
    "scale": (lambda: attention(Q, Q, Q, scale=math.nan), ValueError, "scale=nan: must be positive"),
    "output": (lambda: attention(Q, Q, Q, dtype=E4M3), TypeError, "dtype must be float32"),
    "one starts": (lambda: attention(Q, Q, Q, cu_seqlens_q=Q), ValueError, "need cu_seqlens_q, cu_seqlens_k"),
    "starts": (
        lambda: attention(Q, Q, Q, cu_seqlens_q=Q, cu_seqlens_k=Q),
        ValueError,
        r"cu_seqlens_q must be \[N \+ 1\] int32",
    ),
    "config": (
        lambda: attention(Q, Q, Q, config=kernels.Config(64, 32)),
        ValueError,
        "config.block_n=32: the plan's block is",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()


def test_an_old_device_is_refused(monkeypatch):
    monkeypatch.setattr(matmul, "capability_of", lambda x: (7, 5))
    with pytest.raises(RuntimeError, match="attention needs compute capability 8.0 .* has 7.5"):
        attention(Q, Q, Q)
