"""GELU and gated SiLU cast in one pass: definitions against torch, kernels against the bound and bit for bit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from fused_work import FORMS, HARDWARE, check_result, on_device, operands, special_pairs
from triton_tensors import DEVICE, VIEWS, poisoned_outputs, same_bits

import fp8sim
from fp8sim.ops import activations as ops
from fp8sim.ops.encoded import numbers_alone
from fp8sim.simulate import activations as simulated
from fp8sim.triton_kernels import activations as kernels
from fp8sim.triton_kernels import hardware

Numbers = list[tuple[torch.Tensor, torch.Tensor]]


class Work(NamedTuple):
    """One operation: its name, how many operands it takes, its options, and its numbers with their bounds."""

    op: str
    operands: int
    options: dict[str, Any]
    numbers: Callable[..., Numbers]


FACTORS = {"mult": 1.3, "factor": 1.7}
WORK = {
    "gelu": Work("gelu", 1, {**FACTORS}, lambda x: [simulated.gelu_numbers(x, "none", 1.3, 1.7)]),
    "gelu tanh": Work(
        "gelu", 1, {**FACTORS, "approximate": "tanh"}, lambda x: [simulated.gelu_numbers(x, "tanh", 1.3, 1.7)]
    ),
    "gelu_backward": Work(
        "gelu_backward", 2, {**FACTORS}, lambda g, x: [simulated.gelu_gradients(g, x, "none", 1.3, 1.7)]
    ),
    "gelu_backward tanh": Work(
        "gelu_backward",
        2,
        {**FACTORS, "approximate": "tanh"},
        lambda g, x: [simulated.gelu_gradients(g, x, "tanh", 1.3, 1.7)],
    ),
    "silu_glu": Work("silu_glu", 2, {**FACTORS}, lambda x, g: [simulated.silu_glu_numbers(x, g, 1.3, 1.7)]),
    "silu_glu_backward": Work(
        "silu_glu_backward", 3, {**FACTORS}, lambda *all: [*simulated.silu_glu_gradients(*all, 1.3, 1.7)]
    ),
    "silu_glu_backward packed": Work("silu_glu_backward", 3, {**FACTORS, "packed": True}, lambda *all: [joined(*all)]),
}


def joined(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = simulated.silu_glu_gradients(*tensors, 1.3, 1.7)
    return torch.cat([left[0], right[0]], -1), torch.cat([left[1], right[1]], -1)


def check(work: Work, tensors: list[torch.Tensor], *, module: Any = kernels, block: Any = None, **forms: Any) -> None:
    with poisoned_outputs():
        given = {key: on_device(value) for key, value in forms.items()}
        blocks = {} if block is None else {"block": block}
        found = getattr(module, work.op)(
            *map(on_device, tensors), **work.options, values=torch.float32, **given, **blocks
        )
    found = found if isinstance(found[0], tuple) else (found,)
    pairs = work.numbers(*tensors)
    what = f"{work.op} of {list(tensors[0].shape)} {tensors[0].dtype}, block {block}"
    for i, (result, (number, bound)) in enumerate(zip(found, pairs, strict=True)):
        check_result(result, number, bound, forms, what, before=i * tensors[0].numel())


# The definitions


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_torchs(approximate: str) -> None:
    x, grad = (part.double().float().double() for part in operands(500, count=2))
    x = (4 * x).requires_grad_()
    y = F.gelu(1.5 * x, approximate=approximate) * (1.25 / 1.5)
    y.backward(grad)
    number, _ = simulated.gelu_numbers(x.detach(), approximate, 1.5, 1.25)
    gradient, _ = simulated.gelu_gradients(grad, x.detach(), approximate, 1.5, 1.25)
    # torch adds 1 to a tanh near -1: its error is absolute
    torch.testing.assert_close(number, y.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-13, atol=1e-13)


def test_silu_glu_is_torchs() -> None:
    x, gate, grad = (part.double() for part in operands(500, count=3))
    x.requires_grad_()
    gate = (4 * gate).requires_grad_()
    y = 1.25 * x * F.silu(1.5 * gate) / 1.5
    y.backward(grad)
    number, _ = simulated.silu_glu_numbers(x.detach(), gate.detach(), 1.5, 1.25)
    (of_x, _), (of_gate, _) = simulated.silu_glu_gradients(grad, x.detach(), gate.detach(), 1.5, 1.25)
    for actual, expected in ((number, y.detach()), (of_x, x.grad), (of_gate, gate.grad)):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)


def test_a_definition_rounds_once_and_encodes_what_it_rounded() -> None:
    x = operands(5, 7, count=1)[0]
    values, codes, transposed, amax = simulated.gelu(x, values=torch.float32, fmt="e4m3", amax=True, transpose=True)
    assert same_bits(values, simulated.gelu_numbers(x, "none", 1.0, 1.0)[0].float())
    assert values is not None
    assert codes is not None
    assert same_bits(codes, fp8sim.encode(values, "e4m3"))
    assert same_bits(transposed, codes.mT)
    assert same_bits(amax, values.abs().max())
    with pytest.raises(ValueError, match="approximate='erf': use 'none' or 'tanh'"):
        simulated.gelu(x, approximate="erf")


# The kernels


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("name", WORK)
def test_every_form(name: str, forms: str) -> None:
    block = None if "stochastic" in forms else (16, 32)  # random integers take most of the interpreter's time
    check(WORK[name], operands(20, 33, count=WORK[name].operands), block=block, **FORMS[forms])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WORK)
def test_numbers_of_every_size(name: str, dtype: torch.dtype) -> None:
    tensors = [part.to(dtype) for part in operands(20, 33, count=WORK[name].operands, wide=True)]
    check(WORK[name], tensors, fmt="e5m2", amax=True)


@pytest.mark.parametrize("name", WORK)
def test_special_values(name: str) -> None:
    check(WORK[name], special_pairs(WORK[name].operands), fmt="e5m2", overflow="infinity")


@pytest.mark.parametrize("shape", [(1,), (1000,), (63, 1), (3, 17, 33), (2, 0, 5), ()])
@pytest.mark.parametrize("name", WORK)
def test_sizes(name: str, shape: tuple[int, ...]) -> None:
    if "packed" in name and not shape:
        pytest.skip("a row holds both")
    tensors = operands(*shape, count=WORK[name].operands)
    block = (1, 256) if shape == (1000,) else (32, 16)
    check(WORK[name], tensors, fmt="e4m3", amax=True, block=block, transpose=len(shape) > 2)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["gelu_backward", "silu_glu", "silu_glu_backward packed"])
def test_any_strides(name: str, view: str) -> None:
    tensors = [VIEWS[view](part) for part in operands(6, 7, 8, count=WORK[name].operands)]
    if "packed" in name and tensors[0].ndim == 0:
        pytest.skip("a row holds both")
    check(WORK[name], tensors, fmt="e4m3", amax=True, transpose=tensors[0].ndim >= 2)


def test_halves_of_rows_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided rows cost no copy: nothing but the outputs is allocated."""
    pair = operands(20, 66, count=1)[0].chunk(2, -1)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    for block in ((4, 16), None):
        found = kernels.silu_glu(*map(on_device, pair), values=torch.float32, block=block)
        number, bound = simulated.silu_glu_numbers(*pair, 1.0, 1.0)
        assert ((found[0].double().cpu() - number).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_numbers_are_rounded_to_their_dtype_once(dtype: torch.dtype) -> None:
    x = on_device(operands(20, 33, count=1)[0])
    wide = kernels.gelu(x, values=torch.float32)[0]
    assert wide is not None
    assert torch.equal(kernels.gelu(x, values=dtype)[0], wide.to(dtype))


@pytest.mark.parametrize("forms", HARDWARE)
@pytest.mark.parametrize("name", WORK)
def test_hardware_conversion(name: str, forms: str) -> None:
    """The interpreter has the numbers of NVIDIA's header, so this shows indexing and factors."""
    tensors = operands(20, 33, count=WORK[name].operands, wide=True)
    check(WORK[name], tensors, module=hardware, **FORMS[forms])


def test_hardware_refuses_what_it_cannot_honour() -> None:
    x = torch.zeros(4, 4, device=DEVICE)
    for message, forms in {
        "float4_e2m1fn: the GPU converts to": {"fmt": "e2m1"},
        "rounding=TO_ODD.*use the backend 'triton'": {"fmt": "e4m3", "rounding": "to_odd"},
        "seed: TIES_TO_EVEN takes no random bits": {"fmt": "e4m3", "seed": 1},
    }.items():
        with pytest.raises(ValueError, match=message):
            hardware.gelu(x, **forms)


# The operations


def run_all(x: torch.Tensor, gate: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Every differentiable operation, summed with weights that differ by element."""
    parts = [
        ops.gelu_encode(x, "e4m3", mult=1.3, alpha=1.7, beta=0.7).decoded("e4m3"),
        ops.gelu_encode(x, "e5m2", approximate="tanh", scale=2.0, amax=True, transpose=True).decoded("e5m2", 0.5),
        ops.silu_glu_encode(x, gate, "e4m3", factor=1.7).decoded("e4m3"),
        ops.silu_glu_encode(both, None, "e4m3", mult=1.3, values=x.dtype).numbers,
    ]
    return torch.stack([part * (i + 1) for i, part in enumerate(parts)])


def reference(x: torch.Tensor, gate: torch.Tensor, both: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of `run_all`, straight through the casts, by torch in float64."""
    leaves = [part.detach().double().requires_grad_() for part in (x, gate, both)]
    x, gate, both = leaves
    factor = lambda y, alpha, beta: y * beta + (y * (alpha - beta)).detach()  # noqa: E731
    left, right = both.chunk(2, -1)
    parts = [
        factor(F.gelu(1.3 * x) / 1.3, 1.7, 0.7),
        F.gelu(x, approximate="tanh"),
        1.7 * x * F.silu(gate),
        left * F.silu(1.3 * right) / 1.3,
    ]
    torch.stack([part * (i + 1) for i, part in enumerate(parts)]).backward(weight.double())
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


GRADIENTS = {
    "contiguous": lambda y: torch.randn(y.shape, generator=torch.Generator().manual_seed(5)),
    "expanded": lambda y: torch.ones(()).expand(y.shape),
    "transposed": lambda y: torch.randn(*y.shape[:-2], *y.mT.shape[-2:]).mT,
}


@pytest.mark.parametrize("grad", GRADIENTS)
@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_gradients(backend: str, grad: str) -> None:
    leaves = [on_device(part).requires_grad_() for part in (*operands(6, 10, count=2), *operands(6, 20, count=1))]
    with fp8sim.use_backend(backend):
        y = run_all(*leaves)
    weight = GRADIENTS[grad](y)
    y.backward(on_device(weight))
    for leaf, expected in zip(leaves, reference(*leaves, on_device(weight)), strict=True):
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_and_checkpointed_gradients_have_the_same_bits(compiler: str) -> None:
    tensors = [*operands(6, 10, count=2), *operands(6, 20, count=1)]
    results = []
    functions = (
        run_all,
        torch.compile(run_all, backend=compiler, fullgraph=True),
        lambda *leaves: checkpoint(run_all, *leaves, use_reentrant=False),
    )
    with fp8sim.use_backend("triton"):
        for function in functions:
            leaves = [on_device(part).clone().requires_grad_() for part in tensors]
            y = function(*leaves)
            y.sum().backward()
            results.append([y, *(leaf.grad for leaf in leaves)])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


@pytest.mark.parametrize("backend", ["simulate", "triton", "triton_hardware"])
def test_codes_of_results_and_gradients_on_every_backend(backend: str) -> None:
    x, gate, grad = map(on_device, operands(6, 10, count=3))
    both = torch.cat([x, gate], -1)
    options: dict[str, Any] = {"amax": True, "transpose": True}
    with fp8sim.use_backend(backend):
        first = ops.gelu_encode(x, "e4m3", values=torch.float32, **options)
        found = [
            ops.gelu_backward_encode(grad, x, "e5m2", beta=0.7, **options),
            *ops.silu_glu_backward_encode(grad, x, gate, "e5m2", **options),
        ]
        (packed,) = ops.silu_glu_backward_encode(grad, both, None, "e5m2", **options)
    assert same_bits(first.codes, fp8sim.encode(first.numbers, "e4m3"))
    assert torch.equal(packed.codes, torch.cat([found[1].codes, found[2].codes], -1))
    for result in (*found, packed):
        assert result.transposed is not None
        assert torch.equal(result.transposed, result.codes.mT)
        assert result.amax is not None


def test_without_values_the_numbers_are_nan_and_take_no_memory() -> None:
    y = ops.gelu_encode(torch.zeros(50, 70, requires_grad=True), "e4m3")
    assert y.numbers.isnan().all()
    assert y.numbers.untyped_storage().nbytes() == 4
    assert (y.transposed, y.amax) == (None, None)
    assert y.numbers.requires_grad
    assert not y.codes.requires_grad


@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_fakes_are_true(backend: str) -> None:
    x, gate, grad = map(on_device, operands(2, 5, 7, count=3))
    forms = (torch.bfloat16, "e4m3:TIES_TO_EVEN:SATURATE", 0.5, None, [True, True], None, 0, 0, 32, backend)
    library = torch.ops.fp8sim
    alone = numbers_alone(torch.float32, backend)
    torch.library.opcheck(library.gelu.default, (x, "tanh", 1.0, 1.0, *forms))
    torch.library.opcheck(library.gelu_backward.default, (grad, x, "none", 1.0, 1.0, *alone))
    torch.library.opcheck(library.silu_glu.default, (x, gate, 1.0, 1.0, *forms))
    torch.library.opcheck(library.silu_glu_backward.default, (grad, x, gate, True, 1.0, 1.0, *forms))
    torch.library.opcheck(library.silu_glu_backward.default, (grad, x, gate, False, 1.0, 1.0, *alone))


X = torch.zeros(4, 4)
ERRORS = {
    "dtype": (
        lambda: ops.gelu_encode(X.double(), "e4m3"),
        TypeError,
        "x is torch.float64: expected",
    ),
    "kernel's dtype": (lambda: kernels.gelu(X.double()), TypeError, "x must be .* got torch.float64: use .float()"),
    "approximation": (lambda: ops.gelu_encode(X, "e4m3", approximate="erf"), ValueError, "approximate='erf': use"),
    "multiplier": (lambda: ops.gelu_encode(X, "e4m3", mult=0.0), ValueError, "mult=0.0: expected a positive finite"),
    "factor": (
        lambda: ops.gelu_encode(X, "e4m3", beta=1e39),
        ValueError,
        "beta=1e.39: expected a finite number",
    ),
    "scale": (lambda: ops.silu_glu_encode(X, None, "e4m3", scale=0.0), ValueError, "scale=0.0: expected a positive"),
    "scale's dtype": (
        lambda: ops.gelu_encode(X, "e4m3", scale=torch.ones(1).double()),
        ValueError,
        "scale must be a number, or one float32 number on x's device cpu in a tensor: got torch.float64",
    ),
    "flag": (lambda: ops.gelu_encode(X, "e4m3", amax=1), TypeError, "amax=1 is a int: expected True or False"),
    "values": (lambda: ops.gelu_encode(X, "e4m3", values=torch.int32), TypeError, "values=torch.int32: torch.float32"),
    "gate's shape": (
        lambda: ops.silu_glu_encode(X, X[:2], "e4m3"),
        ValueError,
        r"gate is \[2, 4\] on cpu: expected the shape and device of x",
    ),
    "gate's dtype": (lambda: ops.silu_glu_encode(X, X.half(), "e4m3"), ValueError, "x and gate must share a dtype"),
    "odd rows": (lambda: ops.silu_glu_encode(X[:, :3], None, "e4m3"), ValueError, "have an even length"),
    "gradient's shape": (
        lambda: ops.gelu_backward_encode(X[:2], X, "e4m3"),
        ValueError,
        r"grad is \[2, 4\] on cpu",
    ),
    "transpose": (lambda: ops.gelu_encode(X[0], "e4m3", transpose=True), ValueError, "transpose=True takes two axes"),
    "kernel's transpose": (
        lambda: kernels.gelu(X[0].to(DEVICE), fmt="e4m3", transpose=True),
        ValueError,
        r"x has shape \[4\]: transpose=True",
    ),
    "policy": (lambda: ops.gelu_encode(X, "e2m1", overflow="nan"), ValueError, "overflow=NAN needs"),
    "seed": (lambda: ops.gelu_encode(X, "e4m3", rounding="stochastic"), ValueError, "STOCHASTIC needs random bits"),
    "device": (lambda: kernels.gelu(X.to("meta")), RuntimeError, "x is on meta: Triton kernels"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_says_what_was_expected(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_meta_tensors_have_a_shape() -> None:
    y = ops.silu_glu_encode(torch.zeros(3, 8, device="meta"), None, "e4m3", transpose=True)
    assert y.transposed is not None
    assert (y.codes.shape, y.transposed.shape, y.numbers.shape) == ((3, 4), (4, 3), (3, 4))


def test_recipes_give_the_factors() -> None:
    """What the functions of the same name without `_encode` give, and their gradients."""
    functional = fp8sim.functional
    x, gate = (part.requires_grad_() for part in operands(6, 10, count=2))
    pairs = [
        (functional.gelu_encode(x, mult=1.5, values=x.dtype), functional.gelu(x, mult=1.5)),
        (functional.silu_glu_encode(x, gate, mult=1.5, values=x.dtype), functional.silu_glu(x, gate, mult=1.5)),
        (functional.gelu_encode(x, recipe="fp32", values=x.dtype), functional.gelu(x, recipe="fp32")),
        (
            functional.rms_norm_encode(x, gate[0], eps=1e-3, values=x.dtype),
            functional.rms_norm(x, (10,), gate[0], 1e-3),
        ),
    ]
    for encoded, expected in pairs:
        torch.testing.assert_close(encoded.numbers, expected)
        assert same_bits(encoded.codes, fp8sim.encode(encoded.numbers, "e4m3"))
        gradients = (
            torch.autograd.grad(y.square().sum(), (x, gate), allow_unused=True) for y in (encoded.numbers, expected)
        )
        for actual, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, wanted)
    logits, target = operands(6, 10, count=1)[0].requires_grad_(), torch.arange(6)
    losses = [
        f(logits, target, label_smoothing=0.1) for f in (functional.fused_cross_entropy, functional.cross_entropy)
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


@pytest.mark.parametrize("shape", [(0, 10), (6, 0), (2, 0, 3), (0, 0)])
@pytest.mark.parametrize("backend", ["simulate", "triton"])
def test_matrices_without_elements(shape: tuple[int, ...], backend: str) -> None:
    x = torch.zeros(shape, device=DEVICE if backend == "triton" else "cpu", requires_grad=True)
    with fp8sim.use_backend(backend):
        found = ops.gelu_encode(x, "e4m3", transpose=True, amax=True)
        found.numbers.sum().backward()
    assert found.codes.shape == x.shape
    assert found.transposed is not None
    assert found.transposed.shape == x.mT.shape
    assert found.amax == 0
    assert x.grad is not None
    assert x.grad.shape == x.shape
