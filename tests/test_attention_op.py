"""`fp8sim.scaled_dot_product_attention`: torch's attention by a plan, with gradients, on every backend."""

import dataclasses
import functools
import math

import pytest
import torch
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import fp8sim
from fp8sim import backends, mma, recipes
from fp8sim.mma.plans import GemmPlan
from fp8sim.nn import Attention
from fp8sim.ops.attention import scaled_dot_product_attention as attention
from fp8sim.recipes import RECIPES, AttentionRecipe
from fp8sim.simulate.attention import attention as simulated
from fp8sim.simulate.packed_attention import attention as packed

E4M3, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16


def operands(length=40, keys=40, *, heads=2, groups=1, width=32, features=32, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((2, heads, length, width), (2, groups, keys, width), (2, groups, keys, features))
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(params=["simulate", "triton"])
def backend(request):
    row = backends.row("attention", request.param)
    if (missing := row.missing()) is not None or (torch.cuda.is_available() and request.param == "triton"):
        pytest.skip(missing or "CPU tensors run on a GPU's kernels in no case")
    with fp8sim.use_backend(request.param):
        yield request.param


# A single probability errs by half a spacing, 2^-9 of bfloat16 and 2^-5 of E4M3; so do q, k and v, and what is
# multiplied with them in the backward pass, whose gradients are differences of such products.
ALLOWED = {"bf16": (2.0**-8, 2.0**-7), "fp16": (2.0**-11, 2.0**-10), "fa3.fp8": (2.0**-4, 2.0**-3.5)}


@pytest.mark.parametrize("plan", ALLOWED)
@pytest.mark.parametrize("is_causal", [False, True])
def test_output_and_gradients_are_torchs_up_to_the_casts(backend, plan, is_causal):
    q, k, v = operands()
    output = attention(q, k, v, is_causal=is_causal, enable_gqa=True, plan=plan, output_factor=0.5)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True) * 0.5
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    actual = torch.autograd.grad(output, (q, k, v), grad)
    exact = torch.autograd.grad(expected, (q, k, v), grad)
    forward, backward = ALLOWED[plan]
    assert output.dtype == torch.float32
    assert relative_error(output, expected) < forward
    assert all(relative_error(a, e) < backward for a, e in zip(actual, exact, strict=True))


def test_the_backward_pass_may_multiply_fp8(backend):
    tensors = operands(groups=2)
    grad = torch.randn(2, 2, 40, 32, generator=torch.Generator().manual_seed(9))
    results = []
    for fp8 in (False, True):
        output = attention(*tensors, plan="fa3.fp8", fp8_backward=fp8)
        results.append(torch.autograd.grad(output, tensors, grad))
    # E5M2 errs by up to 2^-3 of a term, and terms err independently.
    assert all(0 < relative_error(b, a) < 2.0**-3 for a, b in zip(*results, strict=True))


def test_operands_are_cast_divided_by_their_factors():
    q, k, v = operands()
    factors = {"query_scale_inv": 0.25, "key_scale_inv": 2.0, "value_scale_inv": 0.3}
    output = attention(q, k, v, enable_gqa=True, plan="fa3.fp8", **factors)
    stored = [
        fp8sim.cast(x.detach() * torch.tensor(1 / factor), "e4m3").to(E4M3)
        for x, factor in zip((q, k, v), factors.values(), strict=True)
    ]
    assert torch.equal(output, simulated(*stored, plan="fa3.fp8", **factors).output)
    assert torch.equal(output, attention(*stored, enable_gqa=True, dtype=torch.float32, **factors))


@pytest.mark.parametrize(("dtype", "plan"), [(BF16, "bf16"), (FP16, "fp16"), (E4M3, "fa3.fp8")], ids=str)
def test_without_a_plan_the_dtype_decides(dtype, plan):
    q, k, v = (x.detach().to(dtype) for x in operands(groups=2))
    output = attention(q, k, v)
    assert output.dtype == (BF16 if dtype == E4M3 else dtype)
    assert torch.equal(output, attention(q, k, v, plan=plan))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("fp8", [(0,), (1, 2), (0, 1, 2)])
def test_a_plan_of_16_bits_widens_fp8(backend, fp8, dtype):
    """A cache of keys and values in FP8, say, under queries in 16 bits: FP8 numbers are numbers of those formats."""
    tensors = [x.detach().to(E4M3).to(dtype) for x in operands(groups=2)]
    plan = {BF16: "bf16", FP16: "fp16"}[dtype]
    mixed = [x.to(torch.float8_e5m2 if i == 1 else E4M3) if i in fp8 else x for i, x in enumerate(tensors)]
    tensors = [x.to(dtype) for x in mixed]
    assert torch.equal(attention(*mixed, plan=plan, dtype=dtype), attention(*tensors, plan=plan))


@pytest.mark.parametrize("plan", [None, "bf16", "fa3.fp8"])
def test_autocast_gives_operands_its_dtype_as_torchs_own_does(plan):
    tensors = operands(groups=2)
    narrow = [x.detach().to(BF16).requires_grad_() for x in tensors]
    with torch.autocast("cpu", BF16):
        output = attention(*tensors, plan=plan)
    assert output.dtype == F.scaled_dot_product_attention(*narrow).dtype == BF16
    expected = attention(*narrow, plan=plan)
    assert torch.equal(output, expected)
    found = torch.autograd.grad(output.float().square().sum(), tensors)
    wanted = torch.autograd.grad(expected.float().square().sum(), narrow)
    assert all(torch.equal(a, b.float()) for a, b in zip(found, wanted, strict=True))
    stored = [x.detach().to(E4M3) for x in tensors]
    with torch.autocast("cpu", BF16):
        output = attention(*stored)
    assert torch.equal(output, attention(*stored))


GEMMS = dataclasses.replace(
    RECIPES["unit_scaled_fp8"], name="gemms", attention=AttentionRecipe.by_operand(query="e4m3", key="e4m3")
)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize(
    "options",
    [{}, {"plan": "bf16"}, {"root_softmax": True}, {"recipe": GEMMS}],
    ids=["torch", "plan", "roots", "gemms"],
)
def test_functional_attention_follows_autocast_eager_and_compiled(options):
    tensors = operands(groups=2)
    narrow = [x.detach().to(BF16).requires_grad_() for x in tensors]
    function = functools.partial(fp8sim.functional.scaled_dot_product_attention, is_causal=True, **options)

    def run(*operands):
        with torch.autocast("cpu", BF16):
            return function(*operands)

    expected = function(*narrow)
    gradients = torch.autograd.grad(expected.float().square().sum(), narrow)
    for called in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        output = called(*tensors)
        assert output.dtype == BF16
        assert torch.equal(output, expected)
        found = torch.autograd.grad(output.float().square().sum(), tensors)
        assert all(torch.equal(a, b.float()) for a, b in zip(found, gradients, strict=True))


@pytest.mark.parametrize("plan", ["bf16", "fa3.fp8"])
def test_meta_and_fake_tensors_have_a_shape_and_a_dtype(plan):
    shapes = (2, 4, 5, 16), (2, 2, 7, 16), (2, 2, 7, 9)
    starts = torch.tensor([0, 5]).int(), torch.tensor([0, 7]).int()

    def check(device):
        q, k, v = (torch.empty(shape, device=device, requires_grad=True) for shape in shapes)
        output = attention(q, k, v, enable_gqa=True, plan=plan, query_scale_inv=2.0, dtype=FP16)
        assert (output.shape, output.dtype, output.device.type) == ((2, 4, 5, 9), FP16, device)
        found = torch.autograd.grad(output.sum(), (q, k, v))
        assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in (q, k, v)]
        ends = {f"cu_seqlens_{n}": x.to(device) for n, x in zip("qk", starts, strict=True)}
        assert attention(q[:1], k[:1], v[:1], enable_gqa=True, plan=plan, **ends).shape == (1, 4, 5, 9)

    check("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        check("cpu")


def test_both_backends_have_the_same_bits_where_exponentials_are_exact():
    if torch.cuda.is_available():
        pytest.skip("the kernel is tested against its plan elsewhere")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-1, 2, (1, 2, 70, 8), generator=g).to(BF16) for _ in range(3))
    plan = dataclasses.replace(mma.ATTENTION_PLANS["bf16"], block=64)
    results = []
    for name in ("simulate", "triton"):
        with fp8sim.use_backend(name):
            results.append(attention(q, k, v, is_causal=True, scale=math.log(2), plan=plan))
    assert torch.equal(*results)


def test_any_leading_dimensions():
    q, k, v = (x.detach() for x in operands(groups=2, dtype=BF16))
    whole = attention(q, k, v)
    assert torch.equal(attention(q[0], k[0], v[0]), whole[0])
    assert torch.equal(attention(q[:, None], k[:, None], v[:, None]), whole[:, None])


def test_an_expanded_gradient_is_read_as_what_it_is(backend):
    tensors = operands(dtype=BF16)
    sums = torch.autograd.grad(attention(*tensors, enable_gqa=True).sum(), tensors)
    ones = torch.autograd.grad(attention(*tensors, enable_gqa=True), tensors, torch.ones(2, 2, 40, 32, dtype=BF16))
    assert all(map(torch.equal, sums, ones))


def test_transposed_operands_and_gradients(backend):
    tensors = operands(dtype=BF16)
    moved = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors]
    grad = torch.randn(2, 40, 2, 32, generator=torch.Generator().manual_seed(1)).to(BF16).transpose(1, 2)
    one, other = attention(*tensors, enable_gqa=True), attention(*moved, enable_gqa=True)
    assert torch.equal(one, other)
    pairs = zip(torch.autograd.grad(one, tensors, grad), torch.autograd.grad(other, moved, grad), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_operands_that_need_no_gradient_get_none():
    q, k, v = operands(groups=2, dtype=BF16)
    attention(q.detach(), k, v.to(E4M3).detach(), plan="fa3.fp8").sum().backward()
    assert q.grad is None
    assert k.grad is not None
    assert k.grad.dtype == BF16


def test_packed_sequences_have_the_gradients_of_each():
    q, k, v = (x.detach()[:1].requires_grad_() for x in operands(groups=2, dtype=BF16))
    starts = torch.tensor([0, 15, 40], dtype=torch.int32)
    output = attention(q, k, v, is_causal=True, cu_seqlens_q=starts, cu_seqlens_k=starts)
    parts = [attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True) for a, b in ((0, 15), (15, 40))]
    alone = torch.cat(parts, 2)
    assert torch.equal(output, alone)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(BF16)
    pairs = zip(torch.autograd.grad(output, (q, k, v), grad), torch.autograd.grad(alone, (q, k, v), grad), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_simulator_refuses_sequences_beyond_their_rows():
    q, k, v = (x.detach()[:1] for x in operands(groups=2, dtype=BF16))
    wrong = torch.tensor([0, 41], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cu_seqlens_q=\[0, 41\]: expected ascending numbers from 0 to 40"):
        packed(q, k, v, cu_seqlens_q=wrong, cu_seqlens_k=wrong)
    with pytest.raises(ValueError, match="need cu_seqlens_q and cu_seqlens_k"):
        packed(q, k, v, cu_seqlens_q=wrong)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("plan", ["bf16", mma.ATTENTION_PLANS["fa3.fp8"]], ids=str)
def test_the_compiled_function_is_one_graph_with_the_same_bits(backend, plan):
    tensors = operands()

    def run(q, k, v):
        return attention(q, k, v, is_causal=True, enable_gqa=True, plan=plan, value_scale_inv=0.5)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [
        (out, *torch.autograd.grad(out.square().sum(), tensors)) for out in (f(*tensors) for f in (run, compiled))
    ]
    assert all(map(torch.equal, *results))


def test_checkpointing_recomputes_the_same_bits(backend):
    q, k, v = operands(dtype=BF16)
    attention(q, k, v, enable_gqa=True).square().sum().backward()
    plain, q.grad = q.grad, None
    again = torch.utils.checkpoint.checkpoint(lambda x: attention(x, k, v, enable_gqa=True), q, use_reentrant=False)
    again.square().sum().backward()
    assert torch.equal(plain, q.grad)


def test_a_second_derivative_is_refused():
    q, k, v = operands(groups=2, dtype=BF16)
    with pytest.raises(RuntimeError, match="gradient of the gradient of Attention"):
        torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)


# torch cannot compare FP8 tensors, as its check for mutated arguments does.
ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize(("dtype", "checks"), [(BF16, ALL_CHECKS), (E4M3, ALL_CHECKS[1:])], ids=["bf16", "e4m3"])
def test_opcheck(dtype, checks):
    q, k, v = (x.detach().to(dtype) for x in operands(20, 30))
    tail = (0.1, True, 10, True, [1.0, 1.0, 1.0, 0.5])
    starts = torch.tensor([0, 5, 20], dtype=torch.int32), torch.tensor([0, 9, 30], dtype=torch.int32)
    forward, backward = torch.ops.fp8sim.attention.default, torch.ops.fp8sim.attention_backward.default
    torch.library.opcheck(forward, (q, k, v, None, None, "", *tail, BF16, "simulate"), test_utils=checks)
    moved = q[:1].transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(forward, (moved, k[:1], v[:1], *starts, "", *tail, BF16, "simulate"), test_utils=checks)
    output, lse = forward(q, k, v, None, None, "", *tail, BF16, "simulate")
    arguments = (torch.ones_like(output), q, k, v, output, lse, None, None, *tail, False, BF16, "simulate")
    torch.library.opcheck(backward, arguments, test_utils=checks)


@pytest.mark.parametrize("recipe", ["unit_scaled", "fp32"])
def test_unit_scaled_attention_by_a_plan(recipe):
    q, k, v = operands(groups=2)
    options = {"is_causal": True, "recipe": recipe}
    expected = fp8sim.functional.scaled_dot_product_attention(q, k, v, **options)
    output = fp8sim.functional.scaled_dot_product_attention(q, k, v, plan="bf16", **options)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    assert relative_error(output, expected) < 2.0**-8
    pairs = zip(
        torch.autograd.grad(output, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    )
    assert all(relative_error(a, e) < 2.0**-7 for a, e in pairs)


def test_a_module_computes_attention_by_the_plan_of_its_recipe():
    part = AttentionRecipe(plan="fa3.fp8")
    recipe = dataclasses.replace(RECIPES["u_mup_fp8"], name="fused", attention=part)
    assert recipes.parse(str(recipe)) == recipe
    assert recipe.attention_products is None
    assert recipe.adding("sm90.wgmma").attention == part
    assert recipe.without_casts().attention == AttentionRecipe()
    torch.manual_seed(0)
    module = Attention(64, 4, recipe=recipe)
    x = torch.randn(2, 20, 64, requires_grad=True)
    output = module(x)
    (grad,) = torch.autograd.grad(output.sum(), x)
    module.recipe = dataclasses.replace(recipe, attention=None)
    exact = module(x)
    assert 0 < relative_error(output, exact) < 2.0**-4
    assert 0 < relative_error(grad, torch.autograd.grad(exact.sum(), x)[0]) < 2.0**-3


def test_a_plan_has_no_gemms_beside_it():
    quantized = AttentionRecipe.by_operand(query="e4m3", key="e4m3")
    with pytest.raises(ValueError, match="plan='fa3.fp8' and logits, .*: a fused kernel's casts are those of its plan"):
        dataclasses.replace(quantized, plan="fa3.fp8")
    with pytest.raises(ValueError, match="attention plan 'fa5'"):
        AttentionRecipe(plan="fa5")


Q = torch.zeros(1, 4, 8, 16, dtype=BF16)
STARTS = torch.tensor([0, 8], dtype=torch.int32)


def packed_call(starts_q, starts_k):
    return attention(Q, Q, Q, cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)


ERRORS = {
    "mask": (lambda: attention(Q, Q, Q, torch.ones(8, 8, dtype=torch.bool)), ValueError, "attn_mask and dropout_p"),
    "dropout": (lambda: attention(Q, Q, Q, dropout_p=0.5), ValueError, "attn_mask and dropout_p"),
    "groups": (lambda: attention(Q, Q[:, :2], Q[:, :2]), ValueError, "4 heads and key 2: pass enable_gqa=True"),
    "shapes": (lambda: attention(Q, Q[..., :4], Q), ValueError, r"got \[\[1, 4, 8, 16\], \[1, 4, 8, 4\]"),
    "float32": (lambda: attention(*[Q.float()] * 3), TypeError, "value is float32, .* plan='bf16'"),
    "float64": (
        lambda: attention(Q.double(), Q, Q),
        TypeError,
        "query is torch.float64: expected torch.float32, .*; convert it with .to()",
    ),
    "gradient": (
        lambda: attention(Q.to(E4M3).requires_grad_(), Q, Q),
        TypeError,
        "query is torch.float8_e4m3fn and requires a gradient",
    ),
    "plan": (lambda: attention(Q, Q, Q, plan="fa5"), ValueError, "attention plan 'fa5'"),
    "no features": (lambda: attention(*[Q[..., :0]] * 3, plan="bf16"), ValueError, "D at least 1"),
    "no plan": (lambda: attention(Q, Q, Q, plan=""), ValueError, "plan='': an AttentionPlan"),
    "number": (lambda: attention(Q, Q, Q, plan=3), ValueError, "plan=3: an AttentionPlan"),
    "array": (lambda: attention(Q.float().numpy(), Q, Q), TypeError, "query is a ndarray: expected a torch tensor"),
    "device": (lambda: attention(Q, Q.to("meta"), Q), ValueError, "key is on meta and query on"),
    "window": (lambda: attention(Q, Q, Q, window=2.5), TypeError, "window=2.5 is a float: expected a whole number"),
    "dtype": (lambda: attention(Q, Q, Q, dtype=torch.int32), TypeError, "dtype=torch.int32: the output is"),
    "zero": (lambda: attention(Q, Q, Q, query_scale_inv=0.0), ValueError, "query_scale_inv=0.0: expected a positive"),
    "NaN": (
        lambda: attention(Q, Q, Q, value_scale_inv=math.nan),
        ValueError,
        "value_scale_inv=nan: expected a positive",
    ),
    "FP8": (lambda: attention(Q, Q, Q, fp8_backward=True), ValueError, "fp8_backward=True multiplies operands in FP8"),
    "scale": (lambda: attention(Q, Q, Q, scale=-1.0), ValueError, "scale=-1.0: expected a positive"),
    "infinite scale": (lambda: attention(Q, Q, Q, scale=math.inf), ValueError, "scale=inf: expected a positive finite"),
    "text": (lambda: attention(Q, Q, Q, scale="1"), TypeError, "scale is a str: expected a number"),
    "output": (
        lambda: attention(Q, Q, Q, output_factor=math.inf),
        ValueError,
        "output_factor=inf: expected a positive",
    ),
    "no output": (lambda: attention(Q, Q, Q, output_factor=0), ValueError, "output_factor=0: expected a positive"),
    "products": (
        lambda: attention(Q, Q, Q, query_scale_inv=1e30, key_scale_inv=1e30),
        ValueError,
        r"log2\(e\) \* scale \* query_scale_inv \* key_scale_inv=.*: expected a positive finite number, in float32",
    ),
    "inverse": (lambda: attention(Q, Q, Q, key_scale_inv=1e-40), ValueError, "1 / key_scale_inv=1e.40: expected"),
    "window of none": (lambda: attention(Q, Q, Q, window=0), ValueError, "window=0: expected a whole number of keys"),
    "flag": (lambda: attention(Q, Q, Q, is_causal=1), TypeError, "is_causal=1 is a int: expected True or False"),
    "width": (lambda: attention(Q[..., :0], Q[..., :0], Q), ValueError, "D at least 1"),
    "list": (lambda: packed_call([0, 8], [0, 8]), TypeError, "cu_seqlens_q is a list: expected a torch tensor"),
    "int64": (
        lambda: packed_call(STARTS.long(), STARTS),
        TypeError,
        "cu_seqlens_q is torch.int64: expected torch.int32",
    ),
    "one of two": (lambda: packed_call(STARTS, None), ValueError, "cu_seqlens_k is missing: packed sequences need"),
    "matrix": (lambda: packed_call(STARTS[None], STARTS), ValueError, r"cu_seqlens_q is \[1, 2\] on cpu: expected \[N"),
    "other lengths": (lambda: packed_call(STARTS, STARTS[[0, 0, 1]]), ValueError, r"cu_seqlens_k is \[3\] on cpu"),
    "batch": (
        lambda: attention(
            Q.expand(2, 4, 8, 16), *[Q.expand(2, 4, 8, 16)] * 2, cu_seqlens_q=STARTS, cu_seqlens_k=STARTS
        ),
        ValueError,
        r"expected query \[1, H, L, D\], got \[2, 4, 8, 16\]",
    ),
    "simulated mix": (
        lambda: simulated(Q.to(E4M3), Q, Q, plan="bf16"),
        ValueError,
        "query and key are float8_e4m3fn and bfloat16, which sm90.wgmma does not multiply",
    ),
    "simulated values": (
        lambda: simulated(Q, Q, Q, plan="fa3.fp8"),
        ValueError,
        "probabilities and value are float8_e4m3fn and bfloat16",
    ),
    "simulated dtype": (lambda: simulated(Q, Q.float(), Q, plan="bf16"), TypeError, "key is torch.float32: expected"),
    "attention part": (
        lambda: fp8sim.functional.scaled_dot_product_attention(Q, Q, Q, plan="bf16", root_softmax=True),
        ValueError,
        "plan=bf16: not with root_softmax",
    ),
}


@pytest.mark.parametrize(("length", "keys"), [(0, 3), (3, 0), (0, 0)])
def test_without_queries_or_keys(backend, length, keys):
    q, k, v = operands(length, keys, groups=2)
    output = attention(q, k, v, plan="bf16")
    assert output.shape == (2, 2, length, 32)
    assert not output.any()  # rows that see no key are 0
    gradients = torch.autograd.grad(output.sum(), (q, k, v))
    assert all(not grad.any() for grad in gradients)


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()


def test_a_backend_refuses_a_plan_that_it_cannot_follow():
    if torch.cuda.is_available():
        pytest.skip("CPU tensors run on a GPU's kernels in no case")
    plan = dataclasses.replace(mma.ATTENTION_PLANS["bf16"], logits=GemmPlan("sm80.mma"))
    assert attention(Q, Q, Q, plan=plan).shape == Q.shape
    with fp8sim.use_backend("triton"), pytest.raises(ValueError, match="logits=sm80.mma .* logits=sm90.wgmma"):
        attention(Q, Q, Q, plan=plan)
