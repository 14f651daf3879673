"""Unit-scaled functions are `scale_fwd(f(scale_bwd(x, beta)), alpha)` of torch's functions, in float64 to rounding."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from unit_scaled_ops import NAMES, Function, assert_same, inputs_of, normal, operations, results

from fp8sim import functional
from fp8sim.simulate.scale import scale_bwd, scale_fwd
from fp8sim.unit_scaling import rules

LAYOUTS: dict[str, Function] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "every second element": lambda x: torch.stack([x, x], -1)[..., 0],
    "offset": lambda x: F.pad(x, (1, 0))[..., 1:] if x.ndim else x,
}

small = st.integers(1, 7)
mults = st.sampled_from([0.25, 1.0, 3.0])
constraints = st.sampled_from([None, "to_output_scale", "gmean", "hmean", "amean"])


@pytest.mark.parametrize("name", NAMES)
@given(small, small, mults, constraints, st.sampled_from(sorted(LAYOUTS)))
def test_every_function_is_its_definition(
    name: str, m: int, n: int, mult: float, constraint: str | None, layout: str
) -> None:
    op, arrange = operations(m, n, mult, constraint)[name], LAYOUTS[layout]

    def arranged(function: Function) -> Function:
        return lambda *inputs: arrange(function(*(arrange(x) for x in inputs)))

    assert_same(arranged(op.ours), arranged(op.definition), *inputs_of(op))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mse_loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_dtype_rounds_a_factor(name: str, dtype: torch.dtype) -> None:
    """Half of the results lie on each side of those in float64: 3^-1/2 as a bfloat16 is 0.0013 too large."""
    op = operations(171, 53, 2.0, None)[name]  # a multiplier that rounds no product
    inputs = inputs_of(op, dtype)
    for actual, exact in zip(results(op.ours, *inputs), results(op.ours, *(x.double() for x in inputs)), strict=True):
        assert actual.dtype == dtype
        assert abs(float((actual.double() / exact).nanmedian()) - 1) < 2e-4 + 2**-6 * exact.numel() ** -0.5


def test_a_factor_rounded_to_bfloat16_would_be_seen() -> None:
    assert abs(float(torch.tensor(3**-0.5, dtype=torch.bfloat16)) * 3**0.5 - 1) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_tied_function_has_its_own_gradient(name: str) -> None:
    """`gradcheck` fails exactly where a gradient has a factor that the output lacks."""
    op = operations(3, 4, 0.5, "to_output_scale")[name]
    assert torch.autograd.gradcheck(op.ours, inputs_of(op), raise_exception=False) == op.is_tied


UNTIED = ["gelu", "silu", "relu", "relu_squared", "tanh", "sigmoid", "softmax", "matmul", "add"]


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_function_has_not(name: str) -> None:
    op = operations(3, 4, 0.5, None)[name]
    assert not torch.autograd.gradcheck(op.ours, inputs_of(op), raise_exception=False)


def test_the_primitives() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = scale_bwd(scale_fwd(x, 3.0), 5.0)
    y.backward(torch.tensor([1.0, 10.0]))
    assert y.tolist() == [3.0, -6.0]
    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 50.0]


def test_gelu_by_tanh() -> None:
    alpha, beta = rules.gelu(1.0, None)
    assert_same(
        lambda x: functional.gelu(x, "tanh", constraint=None),
        lambda x: scale_fwd(F.gelu(scale_bwd(x, beta), approximate="tanh"), alpha),
        normal(50),
    )


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_keeps_the_elements_that_torch_keeps(p: float) -> None:
    def seeded(function: Function) -> Function:
        def call(x: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(0)
            return function(x)

        return call

    factor = (1 - p) ** 0.5
    ours = seeded(lambda x: functional.dropout(x, p))
    assert_same(ours, seeded(lambda x: scale_fwd(F.dropout(scale_bwd(x, factor), p), factor)), normal(50, 7))
    x = normal(5)
    assert functional.dropout(x, p, training=False) is x


def test_linear_by_other_powers() -> None:
    x, w = normal(16, 4), normal(64, 4, seed=1)
    ours = results(lambda x, w: functional.linear(x, w, constraint=None, scale_power=(1, 0, 0.25)), x, w)
    torchs = results(F.linear, x, w)
    for mine, its, factor in zip(ours, torchs, (1 / 4, 1, 1 / 2), strict=True):
        torch.testing.assert_close(mine, its * factor)


def test_matmul_of_batches_that_broadcast() -> None:
    def definition(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale_fwd(torch.matmul(scale_bwd(a, 20**-0.5), scale_bwd(b, 12**-0.5)), 8**-0.5)

    def ours(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.matmul(a, b, constraint=None)

    assert_same(ours, definition, normal(3, 12, 8), normal(8, 20, seed=1))
    assert_same(ours, definition, normal(12, 8), normal(3, 8, 20, seed=1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (3,), "padding": (2,), "dilation": (2,)},
        {"padding": "same", "dilation": 3},
        {"padding": "valid", "groups": 4},
        {"stride": 4, "padding": 1, "groups": 2},
    ],
)
@pytest.mark.parametrize("kernel_size", [1, 4])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_conv1d(options: dict[str, object], kernel_size: int) -> None:
    """Every stride, padding, dilation and group is torch's; batched or not."""
    groups = int(options.get("groups", 1))  # type: ignore[call-overload]
    x, w = normal(2, 4, 17), normal(8, 4 // groups, kernel_size, seed=1)
    ours = lambda x, w: functional.conv1d(x, w, constraint=None, **options)  # type: ignore[arg-type]  # noqa: E731
    stride = options.get("stride", 1)
    step = stride[0] if isinstance(stride, tuple) else stride
    positions = F.conv1d(x, w, **options).shape[2]  # type: ignore[arg-type]
    scales = rules.conv1d(4, 8, kernel_size, 2 * positions, stride=step, groups=groups, constraint=None)  # type: ignore[arg-type]

    def definition(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = F.conv1d(scale_bwd(x, scales.grad_input), scale_bwd(w, scales.grad_weight), **options)  # type: ignore[arg-type]
        return scale_fwd(y, scales.output)

    assert_same(ours, definition, x, w)
    torch.testing.assert_close(ours(x, w)[1], ours(x[1], w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding(sparse: bool) -> None:
    ids, w = torch.tensor([[0, 2, 2], [1, 0, 2]]), normal(4, 3)

    def definition(w: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, scale_bwd(w, (4 / 6) ** 0.5), padding_idx=1)

    ours = results(lambda w: functional.embedding(ids, w, 1, sparse=sparse), w)
    for mine, its in zip(ours, results(definition, w), strict=True):
        torch.testing.assert_close(mine.to_dense(), its)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (1,)])
@pytest.mark.parametrize("eps", [1e-5, 3.0, 0.0, None])
@pytest.mark.parametrize("has_gain", [False, True])
def test_rms_norm(shape: tuple[int, ...], eps: float | None, has_gain: bool) -> None:
    x, gains = normal(5, *shape), [normal(*shape, seed=1)] if has_gain else []

    def ours(x: torch.Tensor, *gains: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, shape, *gains, eps=eps)

    def definition(x: torch.Tensor, *gains: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, shape, *(scale_bwd(gain, rules.norm_weight(5)) for gain in gains), eps=eps)

    assert_same(ours, definition, x, *gains)
    assert_same(lambda x, *gains: ours(x.mT, *gains), lambda x, *gains: definition(x.mT, *gains), x.mT, *gains)
    narrow = [t.detach().bfloat16() for t in (x, *gains)]
    assert torch.equal(ours(*narrow), F.rms_norm(narrow[0], shape, *narrow[1:], eps=eps))


def test_rms_norm_of_zeros_and_of_shapes_that_do_not_fit() -> None:
    assert_same(lambda x: functional.rms_norm(0 * x, (7,)), lambda x: F.rms_norm(0 * x, (7,), eps=1e-5), normal(2, 7))
    for shape in ((6,), (2, 7), ()):
        with pytest.raises((TypeError, ValueError), match="normalized_shape=.*expected the"):
            functional.rms_norm(torch.ones(3, 7), shape)
    with pytest.raises(ValueError, match=r"weight has shape \[6\]: expected normalized_shape, \[7\]"):
        functional.rms_norm(torch.ones(3, 7), (7,), torch.ones(6))


def test_rms_norm_in_float32_is_as_exact_as_torchs() -> None:
    x = normal(64, 1000, dtype=torch.float32)

    def worst(function: Function) -> list[float]:
        exact = results(lambda x: F.rms_norm(x, (1000,), eps=1e-5), x.double())
        return [
            float((mine - its).abs().max() / its.abs().max())
            for mine, its in zip(results(function, x), exact, strict=True)
        ]

    assert max(worst(lambda x: functional.rms_norm(x, (1000,)))) < 2.5e-7
    assert max(worst(lambda x: F.rms_norm(x, (1000,), eps=1e-5))) < 2.5e-7


@pytest.mark.parametrize("convention", ["ratio", "share"])
def test_residual_delays_the_branch_coefficients_to_the_ends_of_the_branch(convention: str) -> None:
    tau = 0.5
    branch_scale, skip_scale = rules.residual(tau, convention)
    gradients = []

    def ours(x: torch.Tensor) -> torch.Tensor:
        branch, skip = functional.residual_split(x, tau, convention=convention)
        branch.register_hook(gradients.append)
        return functional.residual_add(torch.sin(branch), skip, tau, convention=convention)

    def definition(x: torch.Tensor) -> torch.Tensor:
        return branch_scale * torch.sin(x) + skip_scale * x

    assert_same(ours, definition, normal(9))
    grad = results(lambda x: x, normal(9))[1]
    torch.testing.assert_close(gradients[0], torch.cos(normal(9)).detach() * grad)
    assert_same(lambda x: functional.residual_apply(torch.sin, x, tau, convention=convention), definition, normal(9))


def test_add_of_numbers_and_of_one_element() -> None:
    x, one = normal(4, 5), normal(1, seed=1)
    assert_same(lambda x: functional.add(x, 2), lambda x: x + 2, x)
    assert_same(lambda x: functional.add(2.5, x), lambda x: x + 2.5, x)
    assert_same(functional.add, lambda x, one: x + scale_bwd(one, 20**-0.5), x, one)
    assert_same(lambda x, one: functional.add(one, x), lambda x, one: x + scale_bwd(one, 20**-0.5), x, one)
    assert_same(functional.add, torch.add, one, one)


def test_add_of_two_dtypes_gives_each_its_own_gradient() -> None:
    x, y = normal(4, 5, dtype=torch.float32), normal(4, 5, seed=1, dtype=torch.bfloat16)
    output, *gradients = results(functional.add, x, y)
    assert [t.dtype for t in (output, *gradients)] == [torch.float32, torch.float32, torch.bfloat16]
    branch = results(functional.residual_add, y, x)
    assert [t.dtype for t in branch] == [torch.float32, torch.bfloat16, torch.float32]


WHOLE_BATCH: dict[str, tuple[Function, tuple[tuple[int, ...], ...], int]] = {
    "linear": (functional.linear, ((8, 4), (5, 4), (5,)), 8),
    "linear_readout": (functional.linear_readout, ((8, 4), (5, 4), (5,)), 8),
    "conv1d": (functional.conv1d, ((8, 4, 6), (5, 4, 2), (5,)), 40),
    "embedding": (lambda x, w, **kw: functional.embedding(x.detach().long() % 3, w, **kw), ((8, 2), (3, 4)), 16),
    "layer_norm": (lambda x, w, b, **kw: functional.layer_norm(x, (4,), w, b, **kw), ((8, 3, 4), (4,), (4,)), 24),
    "rms_norm": (lambda x, w, **kw: functional.rms_norm(x, (4,), w, **kw), ((8, 3, 4), (4,)), 24),
    "add": (functional.add, ((8, 4), (4,)), 8),
}
"""Functions of a batch [8, ...] and parameters, and the tokens in it."""


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(name: str) -> None:
    """As under data parallelism and gradient accumulation; with the tokens of each part they would be larger."""
    function, (batch, *shapes), tokens = WHOLE_BATCH[name]
    x, parameters = normal(*batch).detach(), [normal(*shape, seed=1 + i) for i, shape in enumerate(shapes)]

    def gradients(*parts: torch.Tensor, **options: int) -> tuple[torch.Tensor, ...]:
        total = sum((function(part, *parameters, **options).sin().sum() for part in parts), torch.zeros(()))
        return torch.autograd.grad(total, parameters)

    for whole, parts, apart in zip(
        gradients(x), gradients(x[:2], x[2:], batch_tokens=tokens), gradients(x[:2], x[2:]), strict=True
    ):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
        assert float((apart - whole).norm()) > 0.2 * float(whole.norm())


def test_under_the_standard_parametrization_every_function_is_that_of_torch() -> None:
    x, w = normal(6, 24), normal(40, 24, seed=1)
    assert_same(lambda x, w: functional.linear(x, w, recipe="fp32"), F.linear, x, w)
    assert_same(lambda x, w: functional.linear_readout(x, w, recipe="fp32"), F.linear, x, w)
    assert_same(lambda x, w: functional.matmul(x, w.mT, recipe="fp32"), lambda x, w: x @ w.mT, x, w)
    for name in ("gelu", "silu", "relu", "tanh", "sigmoid"):
        ours, torchs = getattr(functional, name), getattr(F, name, None) or getattr(torch, name)
        assert_same(lambda x, ours=ours: ours(x, recipe="fp32"), torchs, x)
    assert_same(lambda x: functional.gelu(x, mult=2, recipe="fp32"), lambda x: F.gelu(2 * x) / 2, x)
    assert_same(lambda x: functional.relu_squared(x, recipe="fp32"), lambda x: F.relu(x) ** 2, x)
    assert_same(lambda x: functional.silu_glu(x, x, recipe="fp32"), lambda x: x * F.silu(x), x)
    assert_same(lambda x: functional.softmax(x, -1, recipe="fp32"), lambda x: F.softmax(x, -1), x)
    assert_same(lambda x: functional.dropout(x, 0.0, recipe="fp32"), lambda x: x, x)
    assert_same(lambda x: functional.rms_norm(x, (24,), recipe="fp32"), lambda x: F.rms_norm(x, (24,), eps=1e-5), x)
    assert_same(lambda x: functional.layer_norm(x, (24,), recipe="fp32"), lambda x: F.layer_norm(x, (24,)), x)
    assert_same(lambda x: functional.add(x, x, recipe="fp32"), lambda x: x + x, x)
    assert_same(lambda x: functional.residual_apply(torch.sin, x, recipe="fp32"), lambda x: torch.sin(x) + x, x)
    signal, kernel = normal(2, 4, 9), normal(6, 4, 3, seed=1)
    assert_same(lambda x, w: functional.conv1d(x, w, recipe="fp32"), F.conv1d, signal, kernel)
    qkv = normal(3, 5, 8)
    attention = functional.scaled_dot_product_attention
    assert_same(lambda x: attention(x, x, x, recipe="fp32"), lambda x: F.scaled_dot_product_attention(x, x, x), qkv)
    target = torch.arange(6)
    assert_same(lambda x: functional.cross_entropy(x, target, recipe="fp32"), lambda x: F.cross_entropy(x, target), x)
    assert_same(lambda x, y: functional.mse_loss(x, y, recipe="fp32"), F.mse_loss, x, normal(6, 24, seed=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.linear(torch.ones(2, 3), torch.ones(4, 5)), r"input \[2, 3\] and weight \[4, 5\]"),
        (lambda: functional.linear(torch.ones(2, 3), torch.ones(4, 3), batch_tokens=0), "batch_tokens=0: a count of 1"),
        (lambda: functional.matmul(torch.ones(2, 3), torch.ones(4, 5)), r"got a \[2, 3\] and b \[4, 5\]"),
        (lambda: functional.matmul(torch.ones(3), torch.ones(3)), r"a \[..., M, K\]"),
        (lambda: functional.matmul(torch.ones(2, 3), torch.ones(3, 2).double()), "convert one with .to()"),
        (lambda: functional.gelu(torch.ones(2), recipe="fp7"), "unknown recipe 'fp7'"),
        (lambda: functional.gelu(torch.ones(2), "erf"), "approximate='erf': use 'none' or 'tanh'"),
        (lambda: functional.silu(torch.ones(2), mult=-1), "mult=-1: expected a positive finite number"),
        (lambda: functional.silu_glu(torch.ones(2), torch.ones(3)), r"share shape and dtype, got \[2\]"),
        (lambda: functional.dropout(torch.ones(2), 2), "p=2: a probability"),
        (lambda: functional.add(1, 2), "at least one tensor, got input=1 and other=2"),
        (lambda: functional.add(torch.ones(2), torch.ones(2), batch_tokens=4), "one broadcast operand"),
        (lambda: functional.residual_add(torch.ones(2), torch.ones(1, 2)), r"share a shape, got \[2\] and \[1, 2\]"),
        (lambda: functional.embedding(torch.zeros(1).long(), torch.ones(2, 3), max_norm=1.0), "max_norm=1.0"),
        (lambda: functional.conv1d(torch.ones(3, 9), torch.ones(4, 5, 2)), r"weight \[4, 5, 2\] and groups=1"),
        (lambda: functional.conv1d(torch.ones(3, 9), torch.ones(4, 3, 2), stride=0), "stride=0: a number of 1"),
        (
            lambda: functional.conv1d(torch.ones(3, 9), torch.ones(4, 3, 2), padding="all"),
            "padding='all': use a number",
        ),
        (
            lambda: functional.conv1d(torch.ones(3, 9), torch.ones(4, 3, 2), None, 2, "same"),
            "padding='same' is for stride 1",
        ),
        (lambda: functional.conv1d(torch.ones(3, 2), torch.ones(4, 3, 3)), "a kernel of 3 .* pad the input"),
        (lambda: functional.mse_loss(torch.ones(2), torch.ones(3)), "share a shape"),
        (
            lambda: functional.mse_loss(torch.ones(2), torch.ones(2), reduction="max"),
            "reduction='max': use one of mean",
        ),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mse_loss"])
def test_an_empty_batch_gives_what_torch_gives_and_zero_gradients(name: str) -> None:
    op = operations(0, 4, 1.0, None)[name]
    found, expected = results(op.ours, *inputs_of(op)), results(op.definition, *inputs_of(op))
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert all(t.count_nonzero() == 0 for t in found)
