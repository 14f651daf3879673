"""Cross-entropy with its gradient in one kernel: the definition against torch, the kernel against the bound."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from fused_work import check_numbers, on_device, operands
from triton_tensors import DEVICE, poisoned_outputs, same_bits

import fp8sim
from fp8sim.ops.cross_entropy import cross_entropy
from fp8sim.simulate import cross_entropy as simulated
from fp8sim.triton_kernels import cross_entropy as kernels

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.25},
    "z-loss, temperature": {"z_loss": 0.03125, "mult": 1.5},
    "all": {"label_smoothing": 0.25, "z_loss": 0.03125, "mult": 1.5, "ignore_index": 3},
}


def problem(*shape: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, classes with ignored ones among them, and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * operands(*shape, classes, count=1, seed=seed)[0]
    target = torch.randint(0, classes, shape, generator=generator)
    if target.numel() > 2:
        target.view(-1)[::3] = -100
    return logits, target, 0.5 + torch.rand(classes, generator=generator)


def check(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, *, block: int | None = None, **options: Any
) -> None:
    """Losses and gradients, in memory of their own and in that of the logits."""
    given = [on_device(part) for part in (logits, target, weight)]
    factor = torch.tensor(0.625)
    rest = {**options, "grad_factor": 1.25, "factor": on_device(factor), "block": block}
    with poisoned_outputs():
        losses, grad = kernels.cross_entropy(*given, **rest)
    memory = given[0].clone()
    again, placed = kernels.cross_entropy(memory, *given[1:], **rest, in_place=True)
    assert placed.data_ptr() == memory.data_ptr()
    assert same_bits(again, losses)
    assert torch.equal(placed.nan_to_num(7.0), grad.nan_to_num(7.0))
    full = {"ignore_index": -100, "label_smoothing": 0.0, "mult": 1.0, "z_loss": 0.0} | options
    (number, bound), (by_z, by_z_bound) = simulated.cross_entropy_numbers(logits, target, weight, **full)
    what = f"{list(logits.shape)} {logits.dtype}, {options}"
    check_numbers(losses, number, bound, f"losses of {what}")
    whole, eps = 1.25 * 0.625, torch.finfo(logits.dtype).eps
    smallest = torch.finfo(logits.dtype).smallest_normal * eps
    rounding = by_z.abs() * whole * eps + smallest
    check_numbers(grad.float(), by_z * whole, by_z_bound * whole + rounding, f"gradients of {what}")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_definition_is_torchs(options: str, weighted: bool) -> None:
    logits, target, weight = problem(50, classes=17)
    logits, chosen = logits.double().requires_grad_(), OPTIONS[options]
    mult, z_loss = chosen.get("mult", 1.0), chosen.get("z_loss", 0.0)
    used = weight.double() if weighted else None
    plain = {key: value for key, value in chosen.items() if key in ("label_smoothing", "ignore_index")}
    ignored = plain.get("ignore_index", -100)
    target = target.masked_fill(target == -100, ignored)
    loss = F.cross_entropy(logits * mult, target, used, reduction="none", **plain)
    counts = (target != ignored) * (used[target.clamp(0)] if used is not None else 1.0)
    loss = loss + z_loss * counts * (logits * mult).logsumexp(-1).square()
    loss.sum().backward()
    full = {"ignore_index": -100, "label_smoothing": 0.0, "mult": 1.0, "z_loss": 0.0} | chosen
    (number, _), (grad, _) = simulated.cross_entropy_numbers(logits.detach(), target, used, **full)
    torch.testing.assert_close(number, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad * mult, logits.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_losses_and_gradients(options: str, dtype: torch.dtype) -> None:
    logits, target, weight = problem(4, 5, classes=130)
    check(logits.to(dtype), target, None, block=64, **OPTIONS[options])
    check(logits.to(dtype), target.int(), weight, **OPTIONS[options])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (63, 63), (2, 1000), (3, 0, 7), (2, 70_000), (5,)])
def test_sizes(shape: tuple[int, ...]) -> None:
    check(*problem(*shape[:-1], classes=shape[-1]), block=256 if shape[-1] == 1000 else None, **OPTIONS["all"])


def test_special_logits() -> None:
    logits, target, weight = problem(8, classes=40)
    logits[1, 7], logits[2, 7], logits[4, 7] = -math.inf, math.inf, math.nan
    logits[5], logits[7] = -math.inf, 1e38
    check(logits, target, None, block=16)
    check(logits[:3], target[:3], weight, block=16, z_loss=0.03125)


def test_a_class_that_does_not_exist_gives_nan_in_its_row_alone() -> None:
    logits, target, weight = problem(5, classes=12)
    target[1], target[2] = 12, -1
    check(logits, target, weight, **OPTIONS["smoothed"])
    losses, grad = kernels.cross_entropy(on_device(logits), on_device(target))
    assert losses.isnan().tolist() == grad.isnan().all(-1).tolist() == [False, True, True, False, False]


def test_rows_with_gaps_between_them() -> None:
    """Padded rows are read, and written in place, where they lie; what lies between stays."""
    logits, target, _ = problem(6, classes=30)
    padded = torch.full((6, 40), 77.0, device=DEVICE)
    padded[:, :30] = on_device(logits)
    losses, grad = kernels.cross_entropy(padded[:, :30], on_device(target), in_place=True)
    expected = kernels.cross_entropy(on_device(logits), on_device(target))
    assert same_bits(losses, expected[0])
    assert same_bits(grad, expected[1])
    assert (padded[:, 30:] == 77.0).all()
    with pytest.raises(ValueError, match="in_place=True needs logits whose rows are evenly spaced"):
        kernels.cross_entropy(on_device(logits).T.contiguous().T, on_device(target), in_place=True)


def test_rows_are_scaled_in_place() -> None:
    x = on_device(operands(5, 70, count=1)[0]).bfloat16()
    factors = torch.tensor([1.0, 0.0, -2.5, math.inf, 0.3], device=DEVICE)
    expected = (x.float() * factors[:, None]).bfloat16()
    assert torch.equal(kernels.scale_rows(x.clone(), factors).nan_to_num(), expected.nan_to_num())
    assert torch.equal(kernels.scale_rows(x.clone(), factors[4]), (x.float() * factors[4]).bfloat16())
    assert torch.equal(simulated.scale_rows(x.cpu(), factors.cpu()).nan_to_num(), expected.cpu().nan_to_num())


# The operation


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("beta", [None, 1.75])
@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_values_and_gradients(backend: str, beta: float | None, reduction: str) -> None:
    logits, target, weight = problem(4, 5, classes=30)
    options: dict[str, Any] = {"label_smoothing": 0.25, "z_loss": 0.03125, "mult": 1.5, "reduction": reduction}
    wide = logits.double().requires_grad_()
    function = {"recipe": "fp32" if beta is None else "unit_scaled"}
    expected = fp8sim.functional.cross_entropy(wide.movedim(-1, 1), target, weight.double(), **options, **function)
    upstream = torch.linspace(0.5, 2, 20).view(4, 5) if reduction == "none" else torch.tensor(0.5)
    expected.backward(upstream.double())
    if beta is not None:  # that of the test instead of the rule's
        wide.grad *= beta / fp8sim.unit_scaling.rules.cross_entropy(30, 0.25)
    for in_place in (False, True):
        leaf = on_device(logits).clone().requires_grad_()
        with fp8sim.use_backend(backend):
            loss = cross_entropy(
                leaf * 1.0, on_device(target), on_device(weight), beta=beta, in_place=in_place, **options
            )
        loss.backward(on_device(upstream))
        torch.testing.assert_close(loss.double().cpu(), expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(leaf.grad.double().cpu(), wide.grad, rtol=1e-4, atol=1e-6)


def test_all_rows_ignored() -> None:
    leaf = torch.randn(3, 5, device=DEVICE, requires_grad=True)
    with fp8sim.use_backend("triton"):
        loss = cross_entropy(leaf, torch.full((3,), -100, device=DEVICE))
    loss.backward()
    assert loss.isnan()
    assert (leaf.grad == 0).all()


def test_a_spent_gradient_and_lost_logits_are_noticed() -> None:
    leaf = torch.randn(3, 5, device=DEVICE, requires_grad=True)
    target = torch.tensor([0, 1, 4], device=DEVICE)
    loss = cross_entropy(leaf * 1.0, target)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    logits = leaf.exp()
    loss = cross_entropy(logits, target, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # exp needs its result
        loss.backward()


def step(leaf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(leaf * 2.0, target, in_place=True) + 3 * cross_entropy(leaf, target, beta=1.5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_and_checkpointed_gradients_have_the_same_bits(compiler: str) -> None:
    logits, target, _ = map(on_device, problem(6, classes=20))
    results = []
    functions = (
        step,
        torch.compile(step, backend=compiler, fullgraph=True),
        lambda *given: torch.utils.checkpoint.checkpoint(step, *given, use_reentrant=False),
    )
    with fp8sim.use_backend("triton"):
        for function in functions:
            leaf = logits.clone().requires_grad_()
            loss = function(leaf, target)
            loss.backward()
            results.append([loss, leaf.grad])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_fakes_are_true(backend: str) -> None:
    logits, target, weight = map(on_device, problem(3, 4, classes=7))
    options = (target, weight, -100, 0.25, 1.5, 0.0, 1.0, torch.tensor(0.5, device=DEVICE), backend)
    torch.library.opcheck(torch.ops.fp8sim.cross_entropy.default, (logits, *options))
    torch.library.opcheck(torch.ops.fp8sim.cross_entropy_.default, (logits, *options))
    torch.library.opcheck(torch.ops.fp8sim.scale_rows_.default, (logits, weight[0], backend))


X, Y = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
ERRORS = {
    "dtype": (lambda: cross_entropy(X.double(), Y), TypeError, "logits is torch.float64: expected torch.float32"),
    "probabilities": (lambda: cross_entropy(X, X), TypeError, "target must hold classes .* probabilities are for"),
    "shape": (lambda: cross_entropy(X, Y[:3]), ValueError, r"logits \[..., V\] and classes \[...\]"),
    "weight": (lambda: cross_entropy(X, Y, torch.ones(4)), ValueError, r"weight must be \[5\]"),
    "reduction": (lambda: cross_entropy(X, Y, reduction="max"), ValueError, "reduction='max': use one of mean, sum"),
    "mult": (lambda: cross_entropy(X, Y, mult=0.0), ValueError, "mult=0.0: expected a positive finite"),
    "infinite": (lambda: cross_entropy(X, Y, mult=float("inf")), ValueError, "mult=inf: expected a positive finite"),
    "list": (lambda: cross_entropy(X, [0, 1, 2, 3]), TypeError, "target is a list: expected a torch tensor"),
    "ignored": (
        lambda: cross_entropy(X, Y, ignore_index=1.0),
        TypeError,
        "ignore_index=1.0 is a float: expected an in",
    ),
    "beta": (lambda: cross_entropy(X, Y, beta=float("nan")), ValueError, "beta=nan: expected a finite number"),
    "no class": (lambda: cross_entropy(X[:, :0], Y), ValueError, r"logits have shape \[4, 0\]: expected one class"),
    "z_loss": (lambda: cross_entropy(X, Y, z_loss=float("nan")), ValueError, "z_loss=nan: expected a finite"),
    "smoothing": (lambda: cross_entropy(X, Y, label_smoothing=1.5), ValueError, "label_smoothing=1.5"),
    "leaf": (
        lambda: cross_entropy(X.clone().requires_grad_(), Y, in_place=True),
        ValueError,
        "in_place=True would overwrite logits, a leaf",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
