"""The Triton backward pass of attention: every bit by its plan, random data against the definition, masks and layouts.

In the interpreter `tl.dot` is replaced by a model of the tensor core's instruction, so that where exponentials and the
sums of rows are exact every bit must be that of `fp8sim.simulate.attention_backward`. On a GPU the instruction is the
real one.
"""

import contextlib
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from attention_gradients import LN2, bounds, exact_inputs, gradients, random_inputs, visible
from triton_tensors import poisoned_outputs, same_bits

pytest.importorskip("triton")

from fp8sim import mma
from fp8sim.mma.attention_backward import backward_scales
from fp8sim.mma.chains import chain
from fp8sim.simulate.attention_backward import attention_backward as simulated
from fp8sim.triton_kernels import attention_backward as kernels
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.attention_backward import Config, Tile, attention_backward, plan_of

INTERPRETED = interpreter.is_enabled()
DEVICE = "cpu" if INTERPRETED else "cuda"
E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16
CAPABILITIES = [(9, 0), (8, 0)] if INTERPRETED else [torch.cuda.get_device_capability()]
TRITON_NAMES = {"fp8e4nv": E4M3, "fp8e5": E5M2, "fp16": FP16, "bf16": BF16}
SMALL = Config(Tile(64, 64), Tile(64, 64), descriptors=True)


@contextlib.contextmanager
def tensor_core(capability):
    """In the interpreter: a device of this capability, whose instruction computes `tl.dot`."""
    if not INTERPRETED:
        yield
        return

    def dot(a, b, c, imprecise):
        assert not imprecise
        types = [TRITON_NAMES[x.dtype] for x in (a, b)]
        model = mma.resolve(kernels.matmul.plan_of(types[0], capability), *map(name, types))
        return chain(codes(a.values, types[0]), codes(b.values.T, types[1]), np.ascontiguousarray(c), model=model)

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


def starts(*lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def on_device(*tensors, **options):
    sent = [x.to(DEVICE) for x in tensors]
    options = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    return [x.cpu() for x in attention_backward(*sent, **options)]


SCALES = {"fp8": True, "grad_output_scale": 4.0, "grad_logits_scale": 2.0**3}
OPTIONS = {
    "": {},
    "causal": {"is_causal": True},
    "causal, lower right": {"is_causal": True, "lower_right": True},
    "window": {"window": 70},
    "window, lower right": {"window": 30, "lower_right": True},
    "factors": {
        "query_scale_inv": 0.5,
        "key_scale_inv": 2.0,
        "value_scale_inv": 0.3,
        "output_factor": 1.7,
        "grad_factors": (0.7, 1.1, 1.3),
    },
    "packed": {"is_causal": True, "cu_seqlens_q": starts(50, 0, 49, 1), "cu_seqlens_k": starts(60, 10, 59, 1)},
}
SHAPES = {
    "ragged": {},
    "whole tiles": {"batch": 2, "length": 128, "keys": 192},
    "shared": {"heads": 6, "groups": 2, "length": 70, "keys": 70},
    "narrow": {"width": 40, "features": 72, "length": 70, "keys": 130},
}
TYPES = {
    "bf16": (BF16, BF16, BF16),
    "fp16": (FP16, FP16, FP16),
    "e4m3": (E4M3, E4M3, E4M3),
    "e5m2 e4m3 e5m2": (E5M2, E4M3, E5M2),
}


def cases():
    for capability, (types, dtypes), fp8 in itertools.product(CAPABILITIES, TYPES.items(), (False, True)):
        if fp8 and (capability != (9, 0) or dtypes[0].itemsize == 2):
            continue
        chosen = [("ragged", option) for option in OPTIONS]
        chosen += [(shape, "causal") for shape in SHAPES if shape != "ragged"]
        if types not in ("bf16", "e4m3") or capability != (9, 0):
            chosen = [("ragged", "window"), ("shared", "factors"), ("whole tiles", "causal")]
        for shape, option in chosen:
            label = f"{capability}-{types}{' fp8' if fp8 else ''}-{shape}-{option}"
            yield pytest.param(capability, dtypes, fp8, shape, option, id=label)


@pytest.mark.parametrize(("capability", "dtypes", "fp8", "shape", "option"), list(cases()))
def test_every_bit_is_what_the_plan_predicts(capability, dtypes, fp8, shape, option):
    inputs = exact_inputs(dtypes, **SHAPES[shape])
    options = OPTIONS[option] | {"scale": LN2, "dtype": torch.float32} | (SCALES if fp8 else {})
    config = SMALL if capability == (9, 0) else dataclasses.replace(SMALL, descriptors=False)
    plan = plan_of(dtypes[0], capability, fp8=fp8, config=config)
    with tensor_core(capability):
        actual = on_device(*inputs, config=config, **options)
    expected = simulated(*inputs, plan=plan, **options)
    for which, a, e in zip(("query", "key", "value"), actual, expected, strict=True):
        differ = int((a.view(torch.int32) != e.view(torch.int32)).sum())
        assert not differ, f"{differ} of {a.numel()} bits of the gradient of {which} differ from {plan}"
        assert float(e.abs().max()) > 0


# Against the definition


def assert_within_bounds(inputs, parts, fp8=False, config=SMALL, **mask):
    scale = inputs[1].shape[-1] ** -0.5
    actual = on_device(*inputs, fp8=fp8, dtype=torch.float32, config=config, **mask)
    kind = "fp8" if fp8 else "fp16" if inputs[1].dtype == FP16 else "bf16"
    logits_scale = float(backward_scales(inputs[0], inputs[3], 1.0)[1])
    pairs = zip(actual, gradients(parts, scale), bounds(parts, scale, kind, logits_scale), strict=True)
    for which, (a, e, bound) in zip(("query", "key", "value"), pairs, strict=True):
        share = float(((a - e).abs() / bound.clamp(min=1e-30)).max())
        assert share <= 1, f"the gradient of {which} is {share:.3g} times its bound away"


FP8_HERE = [False, True] if (9, 0) in CAPABILITIES else [False]


@pytest.mark.parametrize(
    ("dtype", "fp8"), [(BF16, False), (FP16, False), (E4M3, False), *((E5M2, fp8) for fp8 in FP8_HERE[1:])]
)
@pytest.mark.parametrize("mask", [{}, {"is_causal": True}, {"window": 40}], ids=str)
def test_random_data_within_the_bound(dtype, fp8, mask):
    inputs, parts = random_inputs(dtype, 100, 140, heads=4, groups=2, **mask)
    assert_within_bounds(inputs, parts, fp8, **mask)


@pytest.mark.parametrize(
    ("length", "keys", "width", "features"), [(1, 1, 64, 64), (63, 1, 1, 200), (1, 1000, 64, 64), (65, 63, 80, 33)]
)
def test_odd_sizes(length, keys, width, features):
    """With the tiles of the default configuration."""
    inputs, parts = random_inputs(E4M3, length, keys, width, features, heads=1)
    for fp8 in FP8_HERE:
        assert_within_bounds(inputs, parts, fp8, config=None)


@pytest.mark.parametrize("fp8", FP8_HERE)
def test_impulses(fp8):
    """Rows with a single feature of the output's gradient, each with its own: that feature of the gradients of values
    is the row's probabilities. And values with a single feature: rows with that feature get the gradients of one key.
    At the first and last row and both sides of a tile's edge."""
    _, q, k, _, _, lse = exact_inputs((E4M3,) * 3, length=130, keys=140)
    p = torch.exp2(q.float() @ k.float().mT - lse[..., None])
    grad, value = torch.zeros(1, 2, 130, 64), torch.zeros(1, 1, 140, 64)
    options = {"scale": LN2, "dtype": torch.float32, "config": SMALL, **(SCALES if fp8 else {"fp8": False})}

    rows = (0, 63, 64, 127, 128, 129)
    for feature, row in enumerate(rows):
        grad[0, 1, row, feature] = 2.0
    gradient = on_device(grad, q, k, value.to(E4M3), torch.zeros_like(grad), lse, **options)[2]
    expected = torch.zeros_like(value)
    expected[0, 0, :, : len(rows)] = 2 * p[0, 1, rows].T
    assert torch.equal(gradient, kept(expected, fp8))

    keys = (0, 63, 64, 127, 128, 139)
    for feature, key in enumerate(keys):
        value[0, 0, key, feature] = 1.0
    features = torch.arange(130) % len(keys)
    grad = torch.nn.functional.one_hot(features, 64).float().expand(1, 2, -1, -1)
    gradient = on_device(grad, q, k, value.to(E4M3), torch.zeros_like(grad), lse, **options)[0]
    seen = torch.tensor(keys)[features]
    expected = LN2 * p[:, :, torch.arange(130), seen, None] * k[:, :, seen].float()
    torch.testing.assert_close(gradient, expected, rtol=2.0**-23, atol=2.0**-20 if fp8 else 0)


def kept(p, fp8):
    """What the cast of probabilities times 2^8 to E4M3 leaves of powers of two, times two."""
    return (p * 128).to(E4M3).float() / 128 if fp8 else p


def test_packed_sequences_are_those_by_themselves():
    lengths, counts = (50, 70, 1, 64), (64, 30, 90, 128)
    sizes = zip(lengths, counts, strict=True)
    single = [exact_inputs((BF16,) * 3, length=n, keys=m, seed=i) for i, (n, m) in enumerate(sizes)]
    packed = [torch.cat(parts, 2) for parts in zip(*single, strict=True)]
    options = {"scale": LN2, "is_causal": True, "config": SMALL}
    together = on_device(*packed, cu_seqlens_q=starts(*lengths), cu_seqlens_k=starts(*counts), **options)
    alone = [torch.cat(parts, 2) for parts in zip(*(on_device(*x, **options) for x in single), strict=True)]
    assert all(map(same_bits, together, alone))


def test_rows_of_no_sequence_get_zeros():
    inputs = exact_inputs((BF16,) * 3, length=130, keys=130)
    for x in on_device(*inputs, cu_seqlens_q=starts(60), cu_seqlens_k=starts(60), config=SMALL):
        assert bool((x[:, :, 60:] == 0).all())
        assert bool((x[:, :, :60] != 0).any())


# Layouts and special values

LAYOUTS = {
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "features outside": lambda x: x.mT.contiguous().mT,
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "shifted": lambda x: torch.nn.functional.pad(x.float(), (3, 5)).to(x.dtype)[..., 3:-5],
}


@pytest.mark.parametrize("rows", [128, 90], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, rows):
    inputs = exact_inputs((BF16,) * 3, batch=2, length=rows, keys=rows)
    view = LAYOUTS[layout]
    viewed = [view(x) for x in inputs[:5]]
    assert not all(x.is_contiguous() for x in viewed)
    options = {"scale": LN2, "is_causal": True, "config": SMALL}
    assert all(map(same_bits, on_device(*viewed, inputs[5], **options), on_device(*inputs, **options)))


def test_an_expanded_gradient():
    """As `output.sum().backward()` passes it: one element for all."""
    inputs = exact_inputs((BF16,) * 3, length=20, keys=20)
    one = torch.ones((), dtype=BF16)
    for grad in (one.expand(1, 2, 20, 64), torch.ones(20, 64, dtype=BF16).expand(1, 2, 20, 64)):
        expected = on_device(grad.contiguous(), *inputs[1:], config=SMALL)
        assert all(map(same_bits, on_device(grad, *inputs[1:], config=SMALL), expected))


@pytest.mark.parametrize("fp8", FP8_HERE)
def test_nothing_is_written_outside_and_everything_inside(fp8):
    inputs = exact_inputs((E4M3,) * 3, heads=4, groups=2, length=70, keys=90, width=40, features=48)
    expected = on_device(*inputs, fp8=fp8, config=SMALL)
    with poisoned_outputs():
        actual = on_device(*inputs, fp8=fp8, config=SMALL)
    assert all(map(same_bits, actual, expected))


def test_rows_that_see_no_key_and_keys_that_no_row_sees_get_zeros():
    grad, q, k, v, output, lse = exact_inputs((BF16,) * 3, length=130, keys=100)
    seen = visible(130, 100, is_causal=True, lower_right=True).any(1)
    assert int((~seen).sum()) == 30
    lse[..., ~seen] = math.inf
    query, *_ = on_device(grad, q, k, v, output, lse, is_causal=True, lower_right=True, config=SMALL)
    assert bool((query[:, :, ~seen] == 0).all())
    assert bool((query[:, :, 31:] != 0).any(-1).all())
    *_, key, value = on_device(*exact_inputs((BF16,) * 3, length=30, keys=100), is_causal=True, config=SMALL)
    assert not key[:, :, 30:].any()
    assert not value[:, :, 30:].any()
    for x in on_device(grad, q, k[:, :, :0], v[:, :, :0], output, torch.full_like(lse, math.inf)):
        assert not x.any()


def test_keys_that_do_not_exist_have_no_probabilities():
    """Their logits would be zero, above all others here, and 2^(0 - lse) infinite."""
    grad, q, k, v, output, lse = exact_inputs((BF16,) * 3, length=70, keys=70)
    q[..., 0], k[..., 0], lse[...] = 12, -12, -140
    inputs = grad, q, k, v, output, lse
    for a, e in zip(on_device(*inputs, scale=LN2, config=SMALL), simulated(*inputs, scale=LN2), strict=True):
        assert bool(a.isfinite().all())
        assert torch.equal(a, e)


def test_nan_stays_in_its_row_and_the_blocks_that_it_sees():
    grad, q, k, v, output, lse = exact_inputs((BF16,) * 3, length=130, keys=130)
    grad[0, 1, 70, 3] = math.nan
    query, key, value = on_device(grad, q, k, v, output, lse, is_causal=True, config=SMALL)
    assert bool(query[0, 1, 70].isnan().all())
    assert int(query.isnan().any(-1).sum()) == 1
    for x in (key, value):  # to the end of the block: zero times NaN is NaN
        assert torch.equal(x.isnan().any(-1)[0, 0], torch.arange(130) < 128)


@pytest.mark.skipif(not FP8_HERE[1:], reason="needs FP8 instructions")
def test_scales_that_are_found():
    """They follow the gradient, so that its size changes no bit but exponents; what is not finite stays so."""
    grad, *others = exact_inputs((E4M3,) * 3, length=70, keys=70)
    options = {"fp8": True, "scale": LN2, "dtype": torch.float32}
    small, large = (on_device(grad * 2.0**power, *others, **options) for power in (-60, 30))
    assert all(same_bits(x * 2.0**90, y) for x, y in zip(small, large, strict=True))
    grad[0, 0, 3, 3] = math.inf
    for x in on_device(grad, *others, **options):
        assert bool(x.isnan().all())
    scales = backward_scales(torch.zeros(1, 2), torch.zeros(1, 2).to(E4M3), 1.0)
    assert scales.tolist() == [1, 1, 1, 1]


ERRORS = {
    "fp8 of bf16": (ValueError, "fp8=True multiplies .* as they are stored", {"fp8": True}, {}),
    "scale without fp8": (ValueError, "pass fp8=True", {"grad_output_scale": 2.0}, {}),
    "no power of two": (
        ValueError,
        "grad_logits_scale=3.0: expected a power",
        {"grad_logits_scale": 3.0, "fp8": 1},
        {},
    ),
    "scale": (ValueError, "scale=0.0: must be positive", {"scale": 0.0}, {}),
    "window": (ValueError, "window=0", {"window": 0}, {}),
    "one start": (ValueError, "cu_seqlens_q and cu_seqlens_k go together", {"cu_seqlens_q": starts(3)}, {}),
    "dtype": (TypeError, "dtype must be float32", {"dtype": torch.float64}, {}),
    "float32 query": (TypeError, "query must be a tensor of float8", {}, {1: torch.zeros(1, 2, 9, 64)}),
    "mixed": (TypeError, "query is torch.bfloat16 and key torch.float16", {}, {2: torch.zeros(1, 1, 9, 64).half()}),
    "heads": (ValueError, "G dividing H", {}, {2: torch.zeros(1, 3, 9, 64).to(BF16)}),
    "lse": (ValueError, r"lse has shape \[1, 2, 8\]: expected \[1, 2, 9\]", {}, {5: torch.zeros(1, 2, 8)}),
    "lse dtype": (TypeError, "lse must be float32", {}, {5: torch.zeros(1, 2, 9).double()}),
    "output": (ValueError, "output has shape", {}, {4: torch.zeros(1, 2, 9, 63)}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    kind, message, options, replaced = ERRORS[case]
    dtypes = (E4M3,) * 3 if case == "no power of two" else (BF16,) * 3
    inputs = list(exact_inputs(dtypes, length=9, keys=9))
    for index, x in replaced.items():
        inputs[index] = x
    with pytest.raises(kind, match=message):
        on_device(*inputs, **options)


@pytest.mark.skipif(not INTERPRETED, reason="needs other devices")
def test_what_a_device_cannot_do():
    inputs = exact_inputs((E4M3,) * 3, length=9, keys=9)
    with tensor_core((7, 5)), pytest.raises(RuntimeError, match=r"compute capability 8\.0 or later .* has 7\.5"):
        attention_backward(*inputs)
    with tensor_core((8, 0)), pytest.raises(RuntimeError, match=r"fp8=True needs compute capability 9\.0"):
        attention_backward(*inputs, fp8=True)
    with pytest.raises(ValueError, match="is for 8.0 to 9.0"):
        plan_of(BF16, (10, 0))
