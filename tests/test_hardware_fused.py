"""Fused element work on a GPU."""

import pytest
import torch
from hardware_bits import nothing_waits

from fp8sim import backends

pytestmark = pytest.mark.gpu

# Fused element work: `test_activations`, `test_rms_norm` and `test_cross_entropy` run on the device, too.


@pytest.fixture(scope="module", params=["triton", "triton_hardware"])
def fused(request):
    pytest.importorskip("triton")
    if request.param == "triton_hardware" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("hardware conversion needs compute capability 9.0")
    return lambda op: backends.row(op, request.param).load()


@pytest.mark.parametrize("columns", [4096, 4104, 16384, 20000])
@pytest.mark.parametrize("transpose", [False, True])
def test_large_fused_results_are_within_their_bound_and_encoded_exactly(fused, transpose, columns):
    """Many programs at once, in every cut of the rows."""
    from fused_work import check_result, operands

    from fp8sim.simulate import activations, rms_norm

    x, gate, grad = (part.to(torch.bfloat16) for part in operands(300, columns, count=3))
    gain = operands(columns, count=1)[0]
    forms = {"fmt": "e4m3", "amax": True, "transpose": transpose}
    a, b, c, w = (part.cuda() for part in (x, gate, grad, gain))

    def check(result, number, bound, what):
        check_result(result, number, bound, forms, what)

    options = {"values": torch.float32, **forms}
    for approximate in ("none", "tanh"):
        found = fused("gelu")(a, approximate=approximate, **options)
        check(found, *activations.gelu_numbers(x, approximate, 1.0, 1.0), "gelu")
        found = fused("gelu_backward")(c, a, approximate=approximate, **options)
        check(found, *activations.gelu_gradients(grad, x, approximate, 1.0, 1.0), "gelu_backward")
    check(fused("silu_glu")(a, b, **options), *activations.silu_glu_numbers(x, gate, 1.0, 1.0), "silu_glu")
    pairs = activations.silu_glu_gradients(grad, x, gate, 1.0, 1.0)
    for found, pair in zip(fused("silu_glu_backward")(c, a, b, **options), pairs, strict=True):
        check(found, *pair, "silu_glu_backward")
    found, inverse = fused("rms_norm")(a, w, **options)
    check(found, *rms_norm.rms_norm_numbers(x, gain, 1e-5)[:2], "rms_norm")
    found, of_gain = fused("rms_norm_backward")(c, a, w, inverse, **options)
    pair, (sums, bound) = rms_norm.rms_norm_gradients(grad, x, gain, inverse.cpu(), 1.0)
    check(found, *pair, "rms_norm_backward")
    assert ((of_gain.double().cpu() - sums).abs() <= bound).all()
    again = fused("rms_norm_backward")(c, a, w, inverse, **options)[1]
    assert torch.equal(of_gain, again)


@pytest.mark.parametrize("classes", [32000, 131072])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cross_entropy_of_a_large_vocabulary(dtype, classes):
    """In place, where a gradient written too early would be read as a logit."""
    kernels = pytest.importorskip("fp8sim.triton_kernels.cross_entropy")
    from fused_work import check_numbers

    from fp8sim.simulate.cross_entropy import cross_entropy_numbers

    generator = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(64, classes, generator=generator)).to(dtype)
    target = torch.randint(0, classes, (64,), generator=generator)
    target[::7] = -100
    losses, grad = kernels.cross_entropy(logits.cuda(), target.cuda(), label_smoothing=0.25, in_place=True)
    (number, bound), (by_z, by_z_bound) = cross_entropy_numbers(logits, target, None, -100, 0.25, 1.0, 0.0)
    check_numbers(losses, number, bound, "losses")
    rounding = by_z.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).smallest_normal
    check_numbers(grad.float(), by_z, by_z_bound + rounding, "gradients")


def test_fused_work_waits_for_nothing():
    activations = pytest.importorskip("fp8sim.triton_kernels.activations")
    losses = pytest.importorskip("fp8sim.ops.cross_entropy")
    norms = pytest.importorskip("fp8sim.triton_kernels.rms_norm")
    x, scale = torch.randn(64, 4096, device="cuda"), torch.tensor(0.3, device="cuda")
    target = torch.zeros(64, dtype=torch.int64, device="cuda")

    def run():
        activations.silu_glu(x, x, fmt="e4m3", scale=scale, amax=True, transpose=True)
        _, inverse = norms.rms_norm(x, x[0], fmt="e4m3", scale=scale, amax=True)
        norms.rms_norm_backward(x, x, x[0], inverse, fmt="e5m2")
        leaf = x.clone().requires_grad_()
        losses.cross_entropy(leaf * 2.0, target, x[0], in_place=True).backward()

    run()  # compiles
    with nothing_waits():
        run()


@pytest.mark.parametrize("transpose", [False, True])
def test_fused_work_of_more_elements_than_32_bits_can_count(transpose):
    activations = pytest.importorskip("fp8sim.triton_kernels.activations")
    norms = pytest.importorskip("fp8sim.triton_kernels.rms_norm")
    x = torch.full((1 << 16, (1 << 15) + 8), 1.5, dtype=torch.float16, device="cuda")
    x[-1, -1] = 7.0
    _, codes, transposed, amax = activations.gelu(x, fmt="e4m3", amax=True, transpose=transpose)
    last = activations.gelu(x[-1:, -2:], fmt="e4m3", amax=True)
    assert torch.equal(codes[-1, -2:], last[1][0])
    assert transposed is None or torch.equal(transposed[-2:, -1], last[1][0])
    assert amax == last[3]
    (_, codes, transposed, _), _ = norms.rms_norm(x, None, fmt="e4m3", transpose=transpose)
    (_, expected, _, _), _ = norms.rms_norm(x[-1:], None, fmt="e4m3")
    assert torch.equal(codes[-1], expected[0])
    assert transposed is None or torch.equal(transposed[:, -1], expected[0])
