"""`linear` and `matmul` by recipe on Triton kernels: gradients of any layout, one cast of the gradient, checkpointing,
compilation, determinism. In the interpreter where there is no GPU."""

import dataclasses
import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

import fp8sim
from fp8sim import backends, quantizers
from fp8sim.ops.matmul import Scales, linear, matmul
from fp8sim.recipes import GemmRecipe, Recipe
from fp8sim.triton_kernels import gemm, interpreter

DEVICE = "cpu" if interpreter.is_enabled() else "cuda"
RECIPE = "fp8_naive"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def leaves(seed=0):
    x, w = normal(3, 10, 48, seed=seed), normal(40, 48, seed=seed + 1)
    return x.requires_grad_(), w.requires_grad_()


def gradients(run, *operands):
    for operand in operands:
        operand.grad = None
    with fp8sim.use_backend("triton"):
        output = run(*operands)
    loss = output if output.ndim == 0 else output.sum()
    loss.backward()
    return [output.detach(), *(operand.grad for operand in operands)]


def assert_equal(found, expected):
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


def recipe_of(output, grad_output, accumulate="native"):
    """Quantizers of operands and of the gradient, by name."""
    kept, grad = quantizers.parse(output), quantizers.parse(grad_output)
    forward, backward = GemmRecipe(kept, kept, accumulate), GemmRecipe(grad, kept, accumulate)
    return Recipe("mine", forward, backward, backward)


GRADIENTS = {
    "expanded": lambda grad: grad[:1, :1, :1].expand(grad.shape),
    "transposed": lambda grad: grad.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "stepped": lambda grad: grad.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("layout", GRADIENTS)
@pytest.mark.parametrize("operation", ["linear", "matmul"])
def test_a_gradient_of_any_layout_is_read_as_what_it_is(operation, layout):
    x, w = leaves()
    run = (
        (lambda x, w: linear(x, w, recipe=RECIPE))
        if operation == "linear"
        else (lambda x, w: matmul(x, w.mT, recipe=RECIPE))
    )
    found = []
    for grad in (
        view := GRADIENTS[layout](normal(3, 10, 40, seed=5)),
        view.clone(memory_format=torch.contiguous_format),
    ):
        with fp8sim.use_backend("triton"):
            output = run(x, w)
        found.append(torch.autograd.grad(output, (x, w), grad))
    assert_equal(*found)


def watch_casts(monkeypatch, see):
    """Each operand that a GEMM of the backend casts is shown to `see` first."""

    def watched(kernel):
        return lambda x, *a, **k: (see(x), kernel(x, *a, **k))[1]

    casts = {name: watched(getattr(gemm.KERNEL, name)) for name in ("encode_scaled", "quantize")}
    kernel = dataclasses.replace(gemm.KERNEL, **casts)
    monkeypatch.setattr(gemm, "gemm", kernel.gemm)
    monkeypatch.setattr(gemm, "gemm_backward", kernel.gemm_backward)


CASTS = {
    ("e4m3", "e5m2"): 1,
    ("fp8_tensor_te", "fp8_tensor_te"): 1,
    ("fp8_128x128", "fp8_128x128"): 1,
    ("fp8_1x128", "fp8_1x128"): 2,
    ("fp8_row_torchao", "fp8_row_torchao"): 2,
}
"""Quantizers of operands and gradient, and how often the gradient is cast."""


@pytest.mark.parametrize(("output", "grad_output"), CASTS)
def test_the_gradient_is_cast_once_where_both_products_can_share_its_codes(output, grad_output, monkeypatch):
    x, w = normal(150, 300).requires_grad_(), normal(140, 300, seed=1).requires_grad_()
    grad, recipe = normal(150, 140, seed=2), recipe_of(output, grad_output)
    cast = []
    watch_casts(monkeypatch, lambda x: cast.append(sorted(x.shape)))
    with fp8sim.use_backend("triton"):
        linear(x, w, recipe=recipe, scales=Scales(0.5, 0.25, 2.0)).backward(grad)
    assert cast.count([140, 150]) == CASTS[output, grad_output]
    of_grad, kept = quantizers.parse(grad_output), quantizers.parse(output)
    assert torch.equal(x.grad, gemm.gemm(grad, w.detach(), quantizers=(of_grad, kept), scale=0.25))
    assert torch.equal(w.grad, gemm.gemm(grad.T, x.detach(), quantizers=(of_grad, kept), scale=2.0))


@pytest.mark.parametrize(("output", "grad_output"), CASTS)
def test_casts_by_the_instruction_give_the_same_bits(output, grad_output, monkeypatch):
    """Forward and backward; no operand is cast by integer arithmetic."""
    recipe, grad = recipe_of(output, grad_output), normal(150, 140, seed=2)
    found = []
    for name in ("triton", "triton_hardware"):
        x, w = normal(150, 300).requires_grad_(), normal(140, 300, seed=1).requires_grad_()
        with fp8sim.use_backend(name):
            result = linear(x, w, recipe=recipe)
        result.backward(grad)
        found.append([result.detach(), x.grad, w.grad])
        watch_casts(monkeypatch, lambda x: pytest.fail("cast by the backend 'triton'"))
    assert_equal(*found)
    with fp8sim.use_backend("triton_hardware"), pytest.raises(ValueError, match="use the backend 'triton'"):
        linear(x, w, recipe=recipe_of("bfloat16", "bfloat16"))


@pytest.mark.parametrize("quantizer", ["e5m2", "fp8_tensor_te", "fp8_128x128"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_pair_of_products_is_that_of_the_simulator(quantizer, batch):
    names = (quantizer, "e4m3", "e4m3") if quantizer == "e5m2" else (quantizer,) * 3
    grad, a, b = normal(*batch, 70, 130), normal(*batch, 70, 50, seed=1), normal(*batch, 50, 130, seed=2)
    options = {
        "quantizers": tuple(map(quantizers.parse, names)),
        "scales": (0.5, 0.25),
        "accumulate": ("native", "native"),
        "dtypes": (None, torch.bfloat16),
    }
    expected = backends.row("gemm_backward", "simulate").load()(grad.cpu(), a.cpu(), b.cpu(), **options)
    found = backends.row("gemm_backward", "triton").load()(grad, a, b, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2.0**-7, atol=1e-4)


def test_a_gradient_that_has_to_be_cast_twice_is_refused_by_the_pair():
    x, block = normal(4, 256), quantizers.parse("fp8_1x128")
    options = {"scales": (1.0, 1.0), "accumulate": ("native", "native"), "dtypes": (None, None)}
    with pytest.raises(ValueError, match=r"fp8_1x128 has factors of other elements for the transpose"):
        gemm.gemm_backward(x, x, x.mT, quantizers=(block, block, block), **options)
    with pytest.raises(ValueError, match="there is no quantizer that could cast it once"):
        gemm.gemm_backward(x, x, x.mT, quantizers=(None, block, block), **options)


def test_operands_of_the_weight_gradient_are_turned_while_they_are_cast(monkeypatch):
    """No copy in 16 or 32 bits beforehand: the kernel is given contiguous memory."""
    seen = []
    watch_casts(monkeypatch, lambda x: seen.append(x.is_contiguous()))
    x, w = leaves()
    with fp8sim.use_backend("triton"):
        linear(x, w, recipe=RECIPE).backward(normal(3, 10, 40))
    assert len(seen) == 5
    assert all(seen)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_the_same_bits(use_reentrant):
    def block(x, w):
        return linear(torch.tanh(linear(x, w, recipe=RECIPE)), w.mT, recipe=RECIPE).square()

    plain = gradients(block, *leaves())
    assert_equal(gradients(lambda x, w: checkpoint(block, x, w, use_reentrant=use_reentrant), *leaves()), plain)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("recipe", [RECIPE, "unit_scaled_fp8"])
def test_one_graph_is_for_all_numbers_of_tokens_with_the_same_bits(recipe):
    torch._dynamo.reset()
    run = functools.partial(fp8sim.functional.linear, recipe=recipe)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    w = normal(40, 48, seed=1).requires_grad_()
    for tokens in range(2, 13):
        x = normal(tokens, 48, seed=tokens).requires_grad_()
        assert_equal(gradients(compiled, x, w), gradients(run, x, w))


def test_opcheck_of_the_pair():
    casts = [str(quantizers.parse(name)) for name in ("e5m2", "e4m3", "e4m3")]
    rest = (["native", "native"], torch.float32, torch.bfloat16, 0.5, 0.25, "up", "triton")
    op = torch.ops.fp8sim.gemm_backward.default
    torch.library.opcheck(op, (normal(6, 5), normal(6, 8), normal(8, 5), casts, *rest))
    torch.library.opcheck(op, (normal(2, 6, 5), normal(2, 6, 8), normal(5, 8).mT, casts, *rest))


def test_a_deterministic_run_takes_kernels_whose_order_is_stated_and_refuses_blas():
    fp8sim.set_deterministic(True)
    try:
        first, again = (gradients(functools.partial(linear, recipe=RECIPE), *leaves()) for _ in range(2))
        assert_equal(first, again)
        with pytest.raises(ValueError, match="adds by BLAS, which set_deterministic"):
            gradients(functools.partial(linear, recipe="fp32"), *leaves())
    finally:
        fp8sim.set_deterministic(False)


@pytest.mark.parametrize("recipe", ["fp32", "bf16", RECIPE, "unit_scaled_fp8"])
def test_float64_has_float64_results_on_every_backend(recipe):
    """Casts round float64 once; sums of few products of small whole numbers are the same in any precision."""
    x, w = ((4 * t.detach()).round().div(4).double().requires_grad_() for t in leaves())
    run = functools.partial(linear, recipe=recipe)
    found = gradients(run, x, w)
    assert {result.dtype for result in found} == {torch.float64}
    x, w = (t.detach().cpu().requires_grad_() for t in (x, w))
    output = run(x, w)
    expected = [output, *torch.autograd.grad(output.sum(), (x, w))]
    assert_equal([t.cpu() for t in found], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_the_ops(dtype):
    x, w = leaves()
    with torch.autocast(DEVICE, dtype):
        found = gradients(functools.partial(linear, recipe=RECIPE), x, w)
    assert found[0].dtype == dtype
    assert {grad.dtype for grad in found[1:]} == {torch.float32}
    with fp8sim.use_backend("triton"):
        assert torch.equal(found[0], linear(x.to(dtype), w.to(dtype), recipe=RECIPE))
