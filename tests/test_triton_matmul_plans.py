"""Does the Triton matrix product string instructions together as its plan says?

In the interpreter `tl.dot` is replaced by a model of the tensor core's instruction, so that every bit of a result must
be what `fp8sim.matmul` computes from `plan_of`. On a GPU the instruction is the real one: the same tests are then those
of the plan and of the model at once.
"""

import contextlib
import functools
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import fp8sim
from fp8sim import mma
from fp8sim.mma.chains import chain
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels import matmul as kernels
from fp8sim.triton_kernels.matmul import Config, matmul, plan_of

INTERPRETED = interpreter.is_enabled()
DEVICE = "cpu" if INTERPRETED else "cuda"
E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
CAPABILITIES = [(9, 0), (8, 9), (8, 0)] if INTERPRETED else [torch.cuda.get_device_capability()]
PAIRS = [(E4M3, E4M3), (E5M2, E4M3), (BF16, BF16), (FP16, FP16)]
TRITON_NAMES = {"fp8e4nv": E4M3, "fp8e5": E5M2, "fp16": FP16, "bf16": BF16}
OPTIONS = {
    "fast": {},
    "promoted": {"fast_accumulation": False},
    "split": {"split_k": 3},
    "rows": {"factors": "rows"},
    "row of a": {"factors": "a"},
    "tensor": {"factors": "tensor"},
    "blocks": {"factors": "blocks"},
    "blocks of b": {"factors": "b blocks"},
}


def random_operand(rows, k, dtype, seed):
    """Numbers of all magnitudes, zeros, subnormals and, for 16-bit types, infinities."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=g) * 2.0 ** torch.randint(-9, 5, (rows, k), generator=g)
    x[torch.rand(rows, k, generator=g) < 0.1] = 0
    return x.to(dtype)


def factors(rows, shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + rows)) + 0.3


def make_factors(kind, m, n, k):
    """Factors as `matmul` takes them, [rows ...] of a and of b."""
    blocks = -(-k // 128)
    return {
        None: (None, None),
        "rows": (factors(m, (m,), 1), factors(n, (n,), 2)),
        "a": (factors(m, (m,), 1), None),
        "tensor": (torch.tensor(0.3), 1.7),
        "blocks": (factors(m, (m, blocks), 1), factors(n, (-(-n // 128), blocks), 2)),
        "b blocks": (None, factors(n, (n, blocks), 2)),
    }[kind]


@contextlib.contextmanager
def tensor_core(capability):
    """In the interpreter: `tl.dot` computed by the model of the instruction that the plan names."""
    if not INTERPRETED:
        yield
        return

    def dot(a, b, c, imprecise):
        types = [TRITON_NAMES[x.dtype] for x in (a, b)]
        plan = plan_of(types[0], capability)
        model = functools.partial(chain, model=mma.resolve(plan, *map(name, types)))
        left, right = codes(a.values, types[0]), codes(b.values.T, types[1])
        if not imprecise:
            return model(left, right, np.ascontiguousarray(c))
        assert imprecise == 128
        for start in range(0, left.shape[1], imprecise):
            c = c + model(left[:, start : start + imprecise], right[:, start : start + imprecise])
        return c

    before, kernels.capability_of = kernels.capability_of, lambda x: capability
    try:
        with interpreter.use_dot(dot):
            yield
    finally:
        kernels.capability_of = before


def name(dtype):
    return str(dtype).removeprefix("torch.")


def codes(values, dtype):
    x = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return x.view(torch.uint8 if dtype.itemsize == 1 else torch.uint16).numpy()


def predicted(a, b, plan, a_factor=None, b_factor=None):
    """The bits that `fp8sim.matmul` predicts; factors of b stand transposed there."""
    if isinstance(b_factor, torch.Tensor) and b_factor.ndim == 2:
        b_factor = b_factor.T.contiguous()
    return fp8sim.matmul(a, b.T, a_scale_inv=a_factor, b_scale_inv=b_factor, plan=plan)


def cases():
    for capability, (a, b), option in itertools.product(CAPABILITIES, PAIRS, OPTIONS):
        if a.itemsize == 1 or option not in ("promoted", "blocks", "blocks of b"):
            yield pytest.param(capability, a, b, option, id=f"{capability}-{name(a)}-{name(b)}-{option}")


@pytest.mark.parametrize(("capability", "a_dtype", "b_dtype", "option"), list(cases()))
def test_every_bit_is_what_the_plan_predicts(capability, a_dtype, b_dtype, option):
    m, n, k = 70, 130, 650
    a, b = random_operand(m, k, a_dtype, 0), random_operand(n, k, b_dtype, 1)
    options = dict(OPTIONS[option])
    kind = options.pop("factors", None)
    a_factor, b_factor = make_factors(kind, m, n, k)
    blocks = kind is not None and "blocks" in kind
    config = Config(64, 64, 128, num_warps=4, descriptors=capability == (9, 0))
    plan = plan_of(a_dtype, capability, blocks=blocks, block_k=config.block_k, **options)
    with tensor_core(capability):
        sent = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in (a, b, a_factor, b_factor)]
        actual = matmul(*sent[:2], a_scale_inv=sent[2], b_scale_inv=sent[3], config=config, **options).cpu()
    expected = predicted(a, b, plan, a_factor, b_factor)
    differ = actual.view(torch.int32) != expected.view(torch.int32)
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} differ from {plan}"


@pytest.mark.skipif(not INTERPRETED, reason="needs every capability")
def test_plans_differ_in_their_bits():
    """The test above can fail: each option has a plan of its own, which predicts other bits."""
    a, b = random_operand(70, 650, E4M3, 0), random_operand(130, 650, E4M3, 1)
    plans = [plan_of(E4M3, capability) for capability in CAPABILITIES]
    plans += [plan_of(E4M3, (9, 0), fast_accumulation=False), plan_of(E4M3, (9, 0), split_k=3, block_k=128)]
    results = [predicted(a, b, plan) for plan in plans]
    for one, other in itertools.combinations(range(len(plans)), 2):
        if {one, other} != {1, 2}:  # Ada and Ampere add alike where no sum leaves float32's grid
            assert not torch.equal(results[one], results[other]), f"{plans[one]} and {plans[other]}"


def test_an_unknown_device_has_no_plan():
    with pytest.raises(ValueError, match=r"compute capability 10.0: .* is for 8.0 to 9.0"):
        plan_of(E4M3, (10, 0))


@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS)
@pytest.mark.parametrize("output", ["float32", "bfloat16", "e4m3"])
def test_fp8sim_matmul_on_triton(a_dtype, b_dtype, output):
    """The public function, on operands of their own dtype and on codes, by the plan of the device."""
    a, b = random_operand(20, 300, a_dtype, 0), random_operand(30, 300, b_dtype, 1)
    row, block = factors(20, (20,), 1), factors(30, (3, 30), 2)
    for capability, options in itertools.product(CAPABILITIES, ({}, {"a_scale_inv": row}, {"b_scale_inv": block})):
        if b_dtype.itemsize == 2 and "b_scale_inv" in options:
            continue
        plan = plan_of(a_dtype, capability, blocks="b_scale_inv" in options)
        sent = {name: factor.to(DEVICE) for name, factor in options.items()}
        with tensor_core(capability), fp8sim.use_backend("triton"):
            actual = fp8sim.matmul(a.to(DEVICE), b.T.to(DEVICE), plan=plan, output=output, **sent).cpu()
        expected = fp8sim.matmul(a, b.T, plan=plan, output=output, **options)
        assert actual.dtype == expected.dtype
        assert torch.equal(
            actual.nan_to_num(7) if actual.is_floating_point() else actual,
            expected.nan_to_num(7) if expected.is_floating_point() else expected,
        )


def test_a_plan_that_the_device_does_not_follow_is_refused():
    a = torch.ones(16, 32).to(E4M3).to(DEVICE)
    with tensor_core(CAPABILITIES[0]), fp8sim.use_backend("triton"):
        with pytest.raises(ValueError, match="plan='deepgemm.sm90': the Triton kernel adds .* with plan 'sm"):
            fp8sim.matmul(a, a.T, plan="deepgemm.sm90")
        with pytest.raises(ValueError, match="c: Triton's products start at zero"):
            fp8sim.matmul(a, a.T, torch.zeros(16, 16))
        with pytest.raises(TypeError, match="a is torch.float32: the Triton kernel multiplies float8_e4m3fn"):
            fp8sim.matmul(a.float(), a.T)
