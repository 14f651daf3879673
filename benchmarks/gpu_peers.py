"""Other implementations of what the GPU does: those that are here, and why the others are not.

A peer that cannot do the work at hand, on this GPU or at this size, says so itself when it is called, and the row of
results keeps what it said.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_timing import Device

Module = torch.nn.Module
Step = Callable[[torch.Tensor, torch.Tensor], object]
"""x [T, I], gradient of the output [T, O] -> forward and backward, which leave gradients of x and of the weight."""

TORCHAO, TRANSFORMER_ENGINE = "torchao float8", "Transformer Engine"

_LIBRARIES = {"torchao": "torchao", "transformer_engine": "transformer_engine", "flash_attn": "flash-attn"}
"""Module and distribution of each library whose version is recorded."""


class Peers(NamedTuple):
    """Peers by name, and for the absent ones why they are."""

    present: Mapping[str, Any]
    absent: Mapping[str, str]


def versions() -> dict[str, str | None]:
    """Of the libraries that are peers; None where one is not installed."""
    found: dict[str, str | None] = {}
    for module, distribution in _LIBRARIES.items():
        found[module] = None
        if importlib.util.find_spec(module):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[module] = importlib.metadata.version(distribution)
    return found


def scaled_mm(
    a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype = torch.bfloat16, fast_accumulation: bool = True
) -> torch.Tensor:
    """a [M, K] @ b [N, K]^T of FP8 matrices by torch, with factors of one."""
    one = torch.ones((), device=a.device)
    result: torch.Tensor = torch._scaled_mm(
        a, b.T, scale_a=one, scale_b=one, out_dtype=out_dtype, use_fast_accum=fast_accumulation
    )
    return result


SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


def attentions(device: Device) -> dict[str, Callable[..., torch.Tensor]]:
    """`torch.nn.functional.scaled_dot_product_attention` on each of its backends, quiet where one refuses.

    "SDPA math" materializes the weights of attention, which at 16k positions fill a GPU: it is for the stand-in alone.
    """
    names = [name for name in SDPA if device.is_stand_in or name != "SDPA math"]
    return {name: _attention_on(SDPA[name]) for name in names}


def _attention_on(backend: SDPBackend) -> Callable[..., torch.Tensor]:
    def attention(*args: Any, **options: Any) -> torch.Tensor:
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # each reason why a backend refuses is a warning before the error
            return torch.nn.functional.scaled_dot_product_attention(*args, **options)

    return attention


def linear_steps(weight: torch.Tensor, device: Device) -> Peers:
    """A forward and a backward pass of a linear layer with `weight` [O, I] in bfloat16 and in other libraries' FP8."""
    present: dict[str, Step] = {"BF16 nn.Linear": _step_of(_linear(weight))}
    absent: dict[str, str] = {}
    for name, make in ((TORCHAO, _torchao_linear), (TRANSFORMER_ENGINE, _transformer_engine_step)):
        try:
            present[name] = make(weight, device)
        except Exception as error:
            absent[name] = "not installed" if isinstance(error, ModuleNotFoundError) else f"{error}"[:200]
    return Peers(present, absent)


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    outputs, inputs = weight.shape
    layer = torch.nn.Linear(inputs, outputs, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _step_of(layer: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    parameters = list(layer.parameters()) if isinstance(layer, Module) else []

    def step(x: torch.Tensor, gradient: torch.Tensor) -> None:
        for tensor in (x, *parameters):
            tensor.grad = None
        layer(x).backward(gradient)

    return step


def _torchao_linear(weight: torch.Tensor, device: Device) -> Step:
    """Factors of tensors found anew for each, compiled, as torchao advises; emulated and not compiled on the CPU."""
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        float8 = importlib.import_module("torchao.float8")
    config = float8.Float8LinearConfig(emulate=device.is_stand_in)
    model = float8.convert_to_float8_training(torch.nn.Sequential(_linear(weight)), config=config)
    return _step_of(model if device.is_stand_in else torch.compile(model))


def _transformer_engine_step(weight: torch.Tensor, device: Device) -> Step:
    """Its layer with its default recipe for FP8."""
    engine = importlib.import_module("transformer_engine.pytorch")
    outputs, inputs = weight.shape
    layer = engine.Linear(inputs, outputs, bias=False, params_dtype=weight.dtype, device=device.kind)
    step = _step_of(layer)

    def in_fp8(x: torch.Tensor, gradient: torch.Tensor) -> None:
        with warnings.catch_warnings(), engine.fp8_autocast(enabled=True):
            warnings.simplefilter("ignore")  # newer versions have another name for fp8_autocast
            step(x, gradient)

    return in_fp8
