"""RMS norm cast in one pass: the definition against torch, kernels against the bound and bit for bit."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from fused_work import FORMS, HARDWARE, check_numbers, check_result, on_device, operands
from triton_tensors import DEVICE, SPECIALS, VIEWS, poisoned_outputs, same_bits

import fp8sim
from fp8sim.ops import rms_norm as ops
from fp8sim.ops.encoded import numbers_alone
from fp8sim.simulate import rms_norm as simulated
from fp8sim.triton_kernels import hardware
from fp8sim.triton_kernels import rms_norm as kernels

EPS = 1e-3


def check(
    x: torch.Tensor,
    gain: torch.Tensor | None,
    grad: torch.Tensor,
    *,
    module: Any = kernels,
    block: Any = None,
    **forms: Any,
) -> None:
    """Both passes; the backward one from the kernel's own roots."""
    given = {key: on_device(value) for key, value in forms.items()} | ({} if block is None else {"block": block})
    options = {"values": torch.float32, **given}
    what = f"{list(x.shape)} {x.dtype}, gain {None if gain is None else gain.dtype}, block {block}"
    with poisoned_outputs():
        found, inverse = module.rms_norm(on_device(x), on_device(gain), eps=EPS, **options)
        back, of_gain = module.rms_norm_backward(
            on_device(grad), on_device(x), on_device(gain), inverse, factor=1.7, **options
        )
    number, bound, root = simulated.rms_norm_numbers(x, gain, EPS)
    check_result(found, number, bound, forms, f"rms_norm of {what}")
    check_numbers(inverse, root, root * (x.shape[-1] + 9) * 2.0**-24, f"roots of {what}")
    (number, bound), (sums, sums_bound) = simulated.rms_norm_gradients(grad, x, gain, inverse.cpu(), 1.7)
    check_result(back, number, bound, forms, f"rms_norm_backward of {what}")
    if gain is None:
        assert of_gain is None
    else:
        assert of_gain.dtype == gain.dtype
        rounding = sums.abs() * torch.finfo(gain.dtype).eps
        check_numbers(of_gain.float(), sums, sums_bound + rounding, f"gain's gradient of {what}")


def rows(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, gain and gradient; the rows of x have other sizes, and in some eps decides."""
    x, grad = operands(*shape, count=2, seed=seed)
    sizes = torch.exp2(torch.arange(x[..., :1].numel()) % 17 - 10).view(x[..., :1].shape)
    gain = operands(shape[-1], count=1, seed=seed + 7)[0]
    return x * sizes, gain, grad


def test_the_definition_is_torchs() -> None:
    x, gain, grad = (part.double() for part in rows(4, 5, 70))
    x.requires_grad_()
    gain.requires_grad_()
    y = F.rms_norm(x, (70,), gain, EPS)
    y.backward(grad)
    number, _, root = simulated.rms_norm_numbers(x.detach(), gain.detach(), EPS)
    gradients = simulated.rms_norm_gradients(grad, x.detach(), gain.detach(), root, 1.0)
    # the sum of squares and eps are rounded to float32
    torch.testing.assert_close(number, y.detach(), rtol=2e-7, atol=0)
    torch.testing.assert_close(gradients[0][0], x.grad, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(gradients[1][0], gain.grad, rtol=1e-6, atol=1e-5)


BLOCKS = [None, (4, 64), (8, 16), (16, 32)]
"""What one program holds: everything, a few whole rows, and pieces of rows."""


@pytest.mark.parametrize("forms", FORMS)
def test_every_form(forms: str) -> None:
    for block in (None,) if "stochastic" in forms else ((4, 64), (16, 32)):
        check(*rows(20, 50), block=block, **FORMS[forms])


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_and_blocks(dtype: torch.dtype, block: Any) -> None:
    x, gain, grad = rows(20, 50)
    check(x.to(dtype), gain.to(dtype), grad.to(dtype), block=block, fmt="e5m2", amax=True)
    check(x.to(dtype), gain, grad, block=block, fmt="e4m3", transpose=True)


@pytest.mark.parametrize("shape", [(1,), (63,), (1000,), (63, 1), (1, 63), (3, 17, 33), (2, 0, 5)])
def test_sizes(shape: tuple[int, ...]) -> None:
    x, gain, grad = rows(*shape)
    check(x, gain, grad, fmt="e4m3", amax=True, transpose=len(shape) > 1)
    check(x, None, grad, fmt="e4m3", block=(4, 32))


def test_many_rows_are_shared_among_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes several blocks of rows, the last one fewer."""
    monkeypatch.setattr(kernels, "_PROGRAMS", 3)
    check(*rows(61, 30), block=(4, 32), fmt="e4m3", amax=True)


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "0-d"])
def test_any_strides(view: str) -> None:
    x, grad = (VIEWS[view](part) for part in operands(6, 7, 8, count=2))
    gain = operands(2 * x.shape[-1], count=1)[0][::2]
    check(x, gain, grad, fmt="e4m3", amax=True, transpose=True)


def test_special_values() -> None:
    """One of them in a row of ordinary numbers; rows of zeros, of subnormals, and whose squares overflow."""
    x, gain, grad = rows(len(SPECIALS) + 3, 40)
    x[: len(SPECIALS), 17] = SPECIALS
    x[-3], x[-2], x[-1] = 0.0, 1e-40, 1e19
    for block in BLOCKS:
        check(x, gain, grad.zero_().add_(1.0), block=block, fmt="e5m2", overflow="infinity", amax=True)


def test_zeros_in_the_last_block_do_not_enter_amax() -> None:
    """Rows and columns that fill up a block are no elements, whatever their root would be."""
    x = torch.full((3, 5), 2.0, device=DEVICE)
    for transpose in (False, True):
        result, _ = kernels.rms_norm(x, None, eps=2.0**-126, fmt="e4m3", amax=True, transpose=transpose)
        assert result[3] is not None
        assert result[3].item() == pytest.approx(1.0)


def test_the_gains_gradient_has_the_same_bits_every_time() -> None:
    x, gain, grad = map(on_device, rows(300, 70))
    _, inverse = kernels.rms_norm(x, gain, fmt="e4m3")
    first, second = (kernels.rms_norm_backward(grad, x, gain, inverse, block=(4, 128))[1] for _ in range(2))
    assert same_bits(first, second)


@pytest.mark.parametrize("forms", HARDWARE)
def test_hardware_conversion(forms: str) -> None:
    """The interpreter has the numbers of NVIDIA's header, so this shows indexing and factors."""
    check(*rows(20, 50), module=hardware, **FORMS[forms])


# The operation


def normalise(x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    first = ops.rms_norm_encode(x, gain, "e4m3", eps=EPS, gain_factor=0.25, amax=True, transpose=True)
    second = ops.rms_norm_encode(x, None, "e5m2", eps=EPS, values=x.dtype)
    return ((first.decoded("e4m3") + 2 * second.numbers) * weight).sum()


@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_gradients(backend: str) -> None:
    x, gain, weight = map(on_device, rows(4, 6, 40))
    x.requires_grad_()
    gain.requires_grad_()
    with fp8sim.use_backend(backend):
        normalise(x, gain, weight).backward()
    wide, gain64 = (part.detach().double().requires_grad_() for part in (x, gain))
    y = F.rms_norm(wide, (40,), gain64, EPS) + 2 * F.rms_norm(wide, (40,), None, EPS)
    y.backward(weight.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gain.grad.double(), gain64.grad / 4, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient() -> None:
    x, gain, _ = map(on_device, rows(6, 40))
    results = []
    for grad in (torch.ones((), device=DEVICE).expand(6, 40), torch.ones(6, 40, device=DEVICE)):
        leaf = x.clone().requires_grad_()
        with fp8sim.use_backend("triton"):
            ops.rms_norm_encode(leaf, gain, "e4m3").numbers.backward(grad)
        results.append(leaf.grad)
    assert same_bits(*results)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_and_checkpointed_gradients_have_the_same_bits(compiler: str) -> None:
    tensors, results = rows(6, 40), []
    functions = (
        normalise,
        torch.compile(normalise, backend=compiler, fullgraph=True),
        lambda *leaves: checkpoint(normalise, *leaves, use_reentrant=False),
    )
    with fp8sim.use_backend("triton"):
        for function in functions:
            leaves = [on_device(part).clone().requires_grad_() for part in tensors]
            y = function(*leaves)
            y.backward()
            results.append([y, *(leaf.grad for leaf in leaves)])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


@pytest.mark.parametrize("backend", ["simulate", "triton", "triton_hardware"])
def test_codes_of_results_and_gradients_on_every_backend(backend: str) -> None:
    x, gain, grad = map(on_device, rows(6, 40))
    with fp8sim.use_backend(backend):
        first = ops.rms_norm_encode(x, gain, "e4m3", eps=EPS, values=torch.float32)
        inverse = simulated.rms_norm_numbers(x.cpu(), None, EPS)[2].float().to(DEVICE)
        codes, of_gain = ops.rms_norm_backward_encode(grad, x, gain, inverse, "e5m2", transpose=True, amax=True)
    assert same_bits(first.codes, fp8sim.encode(first.numbers, "e4m3"))
    assert codes.transposed is not None
    assert torch.equal(codes.transposed, codes.codes.mT)
    assert of_gain is not None
    assert of_gain.shape == gain.shape


@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_fakes_are_true(backend: str) -> None:
    x, gain, grad = map(on_device, rows(2, 5, 7))
    forms = (torch.bfloat16, "e4m3:TIES_TO_EVEN:SATURATE", 0.5, None, [True, True], None, 0, 0, 32, backend)
    inverse = torch.ones(2, 5, device=DEVICE)
    for last, given in ((forms, gain), (numbers_alone(torch.float32, backend), None)):
        torch.library.opcheck(torch.ops.fp8sim.rms_norm.default, (x, given, EPS, *last))
        torch.library.opcheck(torch.ops.fp8sim.rms_norm_backward.default, (grad, x, given, inverse, 1.0, *last))


X = torch.zeros(4, 4)
ERRORS = {
    "dtype": (
        lambda: ops.rms_norm_encode(X.int(), None, "e4m3"),
        TypeError,
        "x is torch.int32: expected torch.float32",
    ),
    "gain": (lambda: ops.rms_norm_encode(X, X[0, :3], "e4m3"), ValueError, r"gain must be \[4\] .* got \[3\]"),
    "infinite": (
        lambda: ops.rms_norm_encode(X, None, "e4m3", eps=float("inf")),
        ValueError,
        "eps=inf: expected a finite",
    ),
    "text": (lambda: ops.rms_norm_encode(X, None, "e4m3", eps="1"), TypeError, "eps is a str: expected a number"),
    "gain's factor": (
        lambda: ops.rms_norm_encode(X, None, "e4m3", gain_factor=float("nan")),
        ValueError,
        "gain_factor=nan: expected a finite number",
    ),
    "gain's dtype": (
        lambda: ops.rms_norm_encode(X, X[0].double(), "e4m3"),
        TypeError,
        "gain is torch.float64: expected",
    ),
    "no axis": (lambda: ops.rms_norm_encode(X[0, 0], None, "e4m3"), ValueError, "x has no axis"),
    "eps": (lambda: ops.rms_norm_encode(X, None, "e4m3", eps=0.0), ValueError, "eps=0.0: expected at least 2"),
    "roots": (
        lambda: ops.rms_norm_backward_encode(X, X, None, X, "e4m3"),
        ValueError,
        r"inverse must be float32 \[4\] on cpu, one number per row",
    ),
    "gradient": (
        lambda: ops.rms_norm_backward_encode(X[:2], X, None, X[0], "e4m3"),
        ValueError,
        r"grad is \[2, 4\] on cpu: expected the",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
