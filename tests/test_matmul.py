"""The three GEMMs: what they multiply, their gradients, and torch's own checks of registered operations."""

import dataclasses
import itertools

import pytest
import torch

import fp8sim
from fp8sim import mma, recipes
from fp8sim.analysis.arithmetic import independent_cast
from fp8sim.analysis.kernels import exact_sum_operands
from fp8sim.ops import matmul as ops
from fp8sim.ops.matmul import Scales, linear, matmul
from fp8sim.recipes import GEMM_OPERANDS, RECIPES, GemmStrings, Recipe
from fp8sim.simulate import matmul as simulate
from fp8sim.simulate.matmul import GemmEvent, observe


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_operand_is_cast_once_as_the_recipe_says_and_the_product_is_that_of_the_casts(recipe: str) -> None:
    x, w, grad = normal(13, 21), normal(17, 21, seed=1), normal(13, 17, seed=2).detach()
    scales = Scales(0.5, 0.25, 2.0)
    output = linear(x, w, recipe=recipe, scales=scales)
    output.backward(grad)
    operands = {"input": x.detach(), "weight": w.detach(), "grad_output": grad}
    expected = {}
    for gemm, names in GEMM_OPERANDS.items():
        quantizers = (RECIPES[recipe].gemm(gemm).first, RECIPES[recipe].gemm(gemm).second)
        expected[gemm] = [
            operands[name] if q is None else independent_cast(operands[name], q)
            for name, q in zip(names, quantizers, strict=True)
        ]
    pairs = {
        "output": (output.detach(), expected["output"][0], expected["output"][1].mT, 0.5),
        "grad_input": (x.grad, expected["grad_input"][0], expected["grad_input"][1], 0.25),
        "grad_weight": (w.grad, expected["grad_weight"][0].mT, expected["grad_weight"][1], 2.0),
    }
    for actual, a, b, scale in pairs.values():
        assert actual is not None
        error = (actual.double() - a.double() @ b.double() * scale).abs()
        assert bool((error <= mma.float32_error_bound(a, b, scale=scale)).all())


@pytest.mark.parametrize("accumulate", recipes.ACCUMULATIONS)
def test_exact_sums_are_exact_in_any_order(accumulate: str) -> None:
    a, b = exact_sum_operands(33, 29, 65, torch.Generator().manual_seed(0))
    result = simulate.gemm(a, b, accumulate=accumulate, scale=0.5)
    assert torch.equal(result, (a.double() @ b.double() * 0.5).float())


def test_the_sequential_sum_is_that_of_a_loop() -> None:
    a, b = normal(2, 3, 40).detach(), normal(40, 2, seed=1).detach()
    result = simulate.gemm(a, b, accumulate="float32.sequential")
    for i, m, n in itertools.product(range(2), range(3), range(2)):
        total = torch.zeros(())
        for k in range(40):
            total = total + a[i, m, k] * b[k, n]
        assert result[i, m, n] == total


def test_a_deterministic_run_refuses_blas_on_a_kernel_backend_too() -> None:
    fp8sim.set_deterministic(True)
    try:
        with fp8sim.use_backend("triton"), pytest.raises(ValueError, match="adds by BLAS, which set_deterministic"):
            matmul(torch.ones(2, 2), torch.ones(2, 2), recipe="fp32")
    finally:
        fp8sim.set_deterministic(False)


def test_a_deterministic_run_refuses_blas() -> None:
    a, b = normal(3, 4).detach(), normal(4, 5, seed=1).detach()
    fp8sim.set_deterministic(True)
    try:
        assert torch.equal(simulate.gemm(a, b, accumulate="float32.sequential"), simulate._sequential(a, b))
        with pytest.raises(ValueError, match="adds by BLAS, which set_deterministic"):
            simulate.gemm(a, b)
    finally:
        fp8sim.set_deterministic(False)


@pytest.mark.parametrize("scale", [2.0**-5, 2.0**64, 2.0**65, 2.0**-200, 1 / 3, 1.0, 0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_factor_multiplies_the_finished_sum(scale: float, dtype: torch.dtype) -> None:
    """Bit for bit, whether BLAS applies it or a pass over the sums."""
    a, b = normal(33, 65).detach().to(dtype), normal(29, 65, seed=1).detach().to(dtype).mT
    assert torch.equal(simulate.gemm(a, b, scale=scale), a @ b * scale)
    a, b = (x.to(dtype) for x in exact_sum_operands(33, 29, 65, torch.Generator().manual_seed(0)))
    assert torch.equal(simulate.gemm(a, b, scale=scale), (a.double() @ b.double()).to(dtype) * scale)


@pytest.mark.parametrize("scale", [0.5, 0.3])
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_torchs_products_have_the_bits_of_the_registered_operation(scale: float, dtype: str) -> None:
    gemm, a, b = GemmStrings("", "", "native", dtype), normal(6, 8).detach(), normal(5, 8, seed=1).detach().mT
    given: list[GemmEvent] = []
    registered = torch.ops.fp8sim.gemm.default
    with observe(given.append):
        direct = ops._gemm("output", a, b, gemm, scale, "up", "simulate")
        named = (getattr(torch, dtype or "float32"), scale, "up", "output", "simulate")
        assert torch.equal(direct, registered(a, b, "", "", "native", *named))
    assert torch.equal(direct, ops._gemm("output", a, b, gemm, scale, "up", "simulate"))
    assert [(e.layer, e.gemm, e.scale, e.quantizers) for e in given] == [("up", "output", scale, (None, None))] * 2
    assert all(torch.equal(e.result, direct) and torch.equal(e.used[0], a) for e in given)


def test_a_linear_layer_takes_tokens_of_any_strides_and_its_result_may_be_changed_in_place() -> None:
    x, w = normal(4, 3, 2, 8), normal(5, 8, seed=1)
    moved = linear(x.transpose(0, 2), w)
    moved.mul_(2.0)
    moved.sum().backward()
    found = [moved.detach(), x.grad, w.grad]
    x.grad = w.grad = None
    expected = torch.nn.functional.linear(x.transpose(0, 2), w) * 2.0
    expected.sum().backward()
    for ours, theirs in zip(found, (expected.detach(), x.grad, w.grad), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_operands_get_no_gradient_and_need_no_gemm() -> None:
    x, w = normal(3, 6, 8), normal(5, 8, seed=1)
    events: list[GemmEvent] = []
    with observe(events.append):
        linear(x, w.detach()).sum().backward()
        linear(x.detach(), w).sum().backward()
    assert [e.gemm for e in events] == ["output", "grad_input", "output", "grad_weight"]
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(("shape_a", "shape_b"), [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((1, 3, 4), (6, 4, 5))])
def test_gradients_of_broadcast_products(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in (shape_a, shape_b))
    assert torch.autograd.gradcheck(lambda a, b: matmul(a, b), (a, b))


def test_an_expanded_gradient_is_read_as_what_it_is() -> None:
    x, w = normal(6, 8), normal(5, 8, seed=1)
    linear(x, w, recipe="fp8_naive").sum().backward()
    expanded = x.grad
    x.grad = None
    linear(x, w, recipe="fp8_naive").backward(torch.ones(6, 5))
    assert expanded is not None
    assert x.grad is not None
    assert torch.equal(expanded, x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_keep_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    x, w = (t.detach().to(dtype).requires_grad_() for t in (normal(6, 8), normal(5, 8, seed=1)))
    output = linear(x, w, recipe="fp8_naive")
    output.sum().backward()
    assert x.grad is not None
    assert output.dtype == x.grad.dtype == dtype
    casts = [independent_cast(t.detach().float(), RECIPES["fp8_naive"].output.first) for t in (x, w)]  # type: ignore[arg-type]
    torch.testing.assert_close(output.float(), (casts[0] @ casts[1].mT).to(dtype).float())


def test_observers_see_every_gemm_of_their_block_and_none_outside() -> None:
    events: list[GemmEvent] = []
    x, w = normal(6, 8), normal(5, 8, seed=1)
    with observe(events.append):
        linear(x, w, recipe="fp8_naive", name="up").sum().backward()
    linear(x, w)
    assert [(e.layer, e.gemm) for e in events] == [("up", gemm) for gemm in GEMM_OPERANDS]
    assert torch.equal(events[0].given[0], x.detach())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("recipe", ["fp32", "fp8_naive", dataclasses.replace(RECIPES["bf16"], name="mine")])
def test_the_compiled_function_is_one_graph_with_the_same_bits(recipe: str | Recipe) -> None:
    x, w = normal(6, 8), normal(5, 8, seed=1)

    def step(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = linear(x, w, recipe=recipe, scales=Scales(0.5, 0.5, 0.5))
        return output, *torch.autograd.grad(output.sum(), (x, w))

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    output = compiled(x, w, recipe=recipe, scales=Scales(0.5, 0.5, 0.5))
    results = (output, *torch.autograd.grad(output.sum(), (x, w)))
    for ours, theirs in zip(results, step(x, w), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
def test_numbers_of_rows_may_vary_without_factors() -> None:
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager", dynamic=True)
    w = normal(5, 8, seed=1)
    for rows in range(2, 13):
        x = normal(rows, 8, seed=rows)
        ours, theirs = (torch.autograd.grad(run(x, w, recipe="fp8_naive").sum(), (x, w)) for run in (compiled, linear))
        assert all(map(torch.equal, ours, theirs))


def test_autocast_gives_products_its_dtype_as_torchs_own() -> None:
    x, w = normal(6, 8), normal(5, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        results = linear(x, w), matmul(x, w.mT), linear(x.double(), w.double())
    assert [result.dtype for result in results] == [torch.bfloat16, torch.bfloat16, torch.float64]
    assert torch.equal(results[0], linear(x.bfloat16(), w.bfloat16()))
    results[0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["fp32", "fp8_naive", "unit_scaled_fp8"])
def test_autocast_does_not_reach_into_a_product(name: str) -> None:
    """The sum is scaled in float32 and rounded once, forward and backward, whoever leaves autocast on."""
    x, w = normal(7, 9), normal(5, 9, seed=1)
    scales = Scales(0.3, 0.7, 1.1)
    narrow = [t.detach().bfloat16().requires_grad_() for t in (x, w)]
    expected = linear(*narrow, recipe=name, scales=scales)
    gradients = torch.autograd.grad(expected.sum(), narrow)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(x, w, recipe=name, scales=scales)
        of_found = torch.autograd.grad(found.sum(), (x, w))
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b.float()) for a, b in zip(of_found, gradients, strict=True))


@pytest.mark.parametrize("bad", [torch.float8_e4m3fn, torch.int32, torch.complex64])
def test_another_dtype_is_refused_by_name(bad: torch.dtype) -> None:
    x, w = (t.detach().to(bad) for t in (normal(6, 8), normal(5, 8)))
    with pytest.raises(TypeError, match=f"input is {bad}: expected torch.float32, .* convert it with .to"):
        linear(x, w)
    with pytest.raises(TypeError, match=f"a is {bad}: expected torch.float32"):
        matmul(x, w.mT)


def test_a_second_derivative_is_refused() -> None:
    x, w = normal(6, 8), normal(5, 8, seed=1)
    with pytest.raises(RuntimeError, match="gradient of the gradient of Linear"):
        torch.autograd.grad(linear(x, w, recipe="fp8_naive").square().sum(), x, create_graph=True)


def test_opcheck() -> None:
    e4m3 = "float8_e4m3fn:TIES_TO_EVEN:SATURATE"
    tail = ("native", torch.float32, 0.5, "", "output", "simulate")
    gemm = torch.ops.fp8sim.gemm.default
    torch.library.opcheck(gemm, (torch.randn(6, 8), torch.randn(8, 5), e4m3, "", *tail))
    torch.library.opcheck(gemm, (torch.randn(2, 6, 8), torch.randn(5, 8).mT, "", e4m3, *tail))
    torch.library.opcheck(gemm, (torch.randn(6, 2, 8).transpose(0, 1), torch.randn(2, 5, 8).mT, e4m3, e4m3, *tail))


def test_checkpointing_recomputes_the_same_bits() -> None:
    x, w = normal(6, 8), normal(5, 8, seed=1)
    linear(x, w, recipe="fp8_naive").square().sum().backward()
    plain, x.grad = x.grad, None
    again = torch.utils.checkpoint.checkpoint(lambda x: linear(x, w, recipe="fp8_naive"), x, use_reentrant=False)
    again.square().sum().backward()
    assert plain is not None
    assert x.grad is not None
    assert torch.equal(plain, x.grad)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 2, 4, 5)])
def test_leading_dimensions_that_do_not_broadcast_are_an_error(shape):
    with pytest.raises(ValueError, match="leading dimensions of a .* do not broadcast"):
        matmul(torch.ones(shape), torch.ones(4, 5, 6), recipe="fp8_naive")


@pytest.mark.parametrize("shape", [(), (1,), (4,), (5, 1)])
def test_a_bias_of_another_shape_is_an_error_and_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"bias has shape .*: expected \[O\] = \[5\]"):
        linear(torch.randn(3, 4), torch.randn(5, 4), torch.randn(shape))
