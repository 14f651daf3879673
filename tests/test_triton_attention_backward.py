"""The Triton backward pass of attention: every bit by its plan, random data against the definition, masks and layouts.

In the interpreter `tl.dot` is replaced by a model of the tensor core's instruction, so that where exponentials and the
sums of rows are exact every bit must be that of `fp8sim.simulate.attention_backward`. On a GPU the instruction is the
real one.
"""

import contextlib
import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
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
LN2 = math.log(2)


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


def integers(low, high, *shape, seed):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def exact_inputs(dtypes, *, batch=1, heads=2, groups=1, length=130, keys=150, width=64, features=64, seed=0):
    """Operands whose logits in base 2 are integers, with integers for `lse`, and whose sums of rows are exact.

    Few features of query and key are not zero, so that probabilities lie between 2^-17 and 1.
    """
    q, k = (
        integers(-2, 2, batch, n, rows, width, seed=seed + i)
        for i, (n, rows) in enumerate([(heads, length), (groups, keys)])
    )
    q[..., 2:] = 0
    v = integers(-3, 3, batch, groups, keys, features, seed=seed + 2)
    grad = integers(-3, 3, batch, heads, length, features, seed=seed + 3).to(BF16)
    output = integers(-2, 2, batch, heads, length, features, seed=seed + 4).to(BF16)
    lse = integers(8, 9, batch, heads, length, seed=seed + 5)
    q, k, v = (x.to(dtype) for x, dtype in zip((q, k, v), dtypes, strict=True))
    return grad, q, k, v, output, lse


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
    "packed": {"is_causal": True, "cu_seqlens_q": starts(50, 0, 79, 1), "cu_seqlens_k": starts(60, 20, 69, 1)},
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
