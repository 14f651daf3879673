"""How large the tensors of a decoder are, and what FP8 does to the operands of its GEMMs, in one forward and backward.

Inside a transformer positions differ: with a causal mask the first attends to itself alone, and the last averages over
all. So every figure of an activation is given by bucket of positions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fp8sim.analysis.figures import CastFigures, cast_figures, plateau
from fp8sim.formats import Format
from fp8sim.nn import TransformerDecoder, TransformerLayer
from fp8sim.recipes import GEMM_OPERANDS
from fp8sim.simulate.matmul import GemmEvent, observe

BUCKETS: Mapping[str, tuple[int, int | None]] = MappingProxyType(
    {"0": (0, 1), "1-7": (1, 8), "8-63": (8, 64), "rest": (64, None)}
)
"""Positions in a sequence, from the first to the one after the last."""

SQNR_BELOW_PLATEAU = 1.0
"""An FP8 operand's sqnr may be so many dB below its format's plateau at step 0."""

ZEROED, ZEROED_FROM_EMBEDDING = 0.005, 0.02
"""Limits of `zeroed` at step 0: of every operand, and of one that comes straight from an embedding."""

FROM_EMBEDDING = ("layers.0.attention.qkv", "input")
"""The operand that has only a norm, or nothing, between it and the embedding."""


@dataclass(frozen=True)
class TensorScale:
    """The size of one tensor of a model, or of its gradient.

    Attributes:
        tensor: its class, such as "attention output" or "weight of attention.qkv".
        block: which block it belongs to; None outside of all.
        is_gradient: whether it is the gradient of the tensor.
        std: standard deviation over all elements of the sequences at the positions of each of `BUCKETS`; one number for
            a weight. None where no sequence has such a position.
        rms: root mean square, by bucket.
        shared: share of the mean square that is the mean over the positions of a sequence: sum (mean_l x)^2 / mean_l
            sum x^2. 1 / L where the values of a feature are independent, 1 where they do not depend on position. None
            for a weight, and for all zeros.
    """

    tensor: str
    block: int | None
    is_gradient: bool
    std: tuple[float | None, ...]
    rms: tuple[float | None, ...]
    shared: float | None


@dataclass(frozen=True)
class OperandScale:
    """What FP8 does to one operand of a GEMM.

    Attributes:
        layer, operand, format: which operand.
        figures: of its cast, without the elements that are zero by construction.
        residue: how many these are: gradients of a query all of whose visible values are equal do not depend on the
            query. In exact arithmetic they are zero; what stands there is rounding residue.
        zeroed_with_residue: share of the non-zero elements, residue included, that becomes zero.
    """

    layer: str
    operand: str
    format: Format
    figures: CastFigures
    residue: int
    zeroed_with_residue: float | None

    @property
    def above_plateau(self) -> float:
        """sqnr above the plateau of the format, in dB; infinite where the cast is exact, NaN where nothing was cast."""
        if self.figures.sqnr is None:
            return math.inf if self.figures.exact else math.nan
        return self.figures.sqnr - plateau(self.format)

    def misses(self) -> list[str]:
        """The limits of step 0 that this operand does not keep, each as a sentence."""
        name, figures = f"{self.layer} {self.operand}", self.figures
        if figures.zeroed is None or figures.clipped is None:
            return [f"{name}: {figures.reason}"]
        limit = ZEROED_FROM_EMBEDDING if (self.layer, self.operand) == FROM_EMBEDDING else ZEROED
        found = []
        if not self.above_plateau >= -SQNR_BELOW_PLATEAU:
            found.append(f"{name}: sqnr {self.above_plateau:+.2f} dB from the plateau of {self.format}")
        if figures.clipped > 0 or figures.nonfinite:
            found.append(f"{name}: {figures.clipped:.2%} clipped, {figures.nonfinite} not finite")
        if figures.zeroed >= limit:
            found.append(f"{name}: {figures.zeroed:.2%} zeroed, limit {limit:.1%}")
        return found


def tensor_scales(model: TransformerDecoder, tokens: torch.Tensor, targets: torch.Tensor) -> list[TensorScale]:
    """Sizes of the tensors of one forward and backward, and of their gradients, and of the gradients of all weights.

    Args:
        tokens, targets: [B, L], as for `TransformerDecoder.loss`.
    """
    seen: dict[tuple[str, int | None], torch.Tensor] = {}
    model.zero_grad(set_to_none=True)
    with _watching(model, seen):
        model.loss(tokens, targets).backward()
    scales = []
    for (name, block), x in seen.items():
        for part, features in _parts(model, name, x.shape[-1]).items():
            for tensor, is_gradient in ((x, False), (x.grad, True)):
                assert tensor is not None
                scales.append(_scale_of(part, block, is_gradient, tensor.detach()[..., features]))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            std, rms = _size(parameter.grad)
            scales.append(TensorScale(*_weight_class(name), True, (std,), (rms,), None))
    model.zero_grad(set_to_none=True)
    return scales


def operand_scales(model: TransformerDecoder, tokens: torch.Tensor, targets: torch.Tensor) -> list[OperandScale]:
    """What FP8 does to every operand of every GEMM of one forward and backward, each operand once.

    Args:
        tokens, targets: [B, L], as for `TransformerDecoder.loss`.
    """
    found: dict[tuple[str, str, Format], OperandScale] = {}
    constant = constant_so_far(tokens)

    def record(event: GemmEvent) -> None:
        for i, operand in enumerate(GEMM_OPERANDS[event.gemm]):
            quantizer = event.quantizers[i]
            if quantizer is None or quantizer.format.bits != 8:
                continue
            key = (event.layer, operand, quantizer.format)
            if key not in found:
                is_transposed = event.gemm == "grad_weight" and operand == "grad_output"
                given, used = (x.mT if is_transposed else x for x in (event.given[i], event.used[i]))
                found[key] = _operand_scale(key, given, used, constant, _queries(model, event.layer, operand))

    model.zero_grad(set_to_none=True)
    with observe(record):
        model.loss(tokens, targets).backward()
    model.zero_grad(set_to_none=True)
    return list(found.values())


def constant_so_far(tokens: torch.Tensor) -> torch.Tensor:
    """tokens [B, L] -> [B, L] bool: whether all tokens of the sequence up to this one are the same.

    There every key that a query sees has the same value, in every block, and the gradient of the query is zero.
    """
    return (tokens == tokens[:, :1]).int().cummin(1).values.bool()


def _queries(model: TransformerDecoder, layer: str, operand: str) -> int:
    """How many columns of an operand are gradients of queries, the first ones."""
    if operand != "grad_output" or not layer.endswith("attention.qkv"):
        return 0
    return model.config.width


def _operand_scale(
    key: tuple[str, str, Format], given: torch.Tensor, used: torch.Tensor, constant: torch.Tensor, queries: int
) -> OperandScale:
    """Figures of given [T, N] cast to used [T, N], whose first `queries` columns are gradients of queries."""
    whole = cast_figures(given, used, key[2])
    if not queries:
        return OperandScale(*key, whole, 0, whole.zeroed)
    residue = torch.zeros(given.shape, dtype=torch.bool)
    residue[constant.flatten(), :queries] = True
    figures = cast_figures(given[~residue], used[~residue], key[2])
    return OperandScale(*key, figures, int(residue.sum()), whole.zeroed)


@contextlib.contextmanager
def _watching(model: TransformerDecoder, seen: dict[tuple[str, int | None], torch.Tensor]) -> Iterator[None]:
    """Collect the tensors that flow through `model`, by class and block, each keeping its gradient."""
    handles: list[Any] = []

    def keep(name: str, block: int | None) -> Callable[[torch.Tensor], None]:
        def hook(x: torch.Tensor) -> None:
            x.retain_grad()
            seen[name, block] = x

        return hook

    def output(module: torch.nn.Module, name: str, block: int | None = None) -> None:
        hook = keep(name, block)
        handles.append(module.register_forward_hook(lambda _module, _inputs, x: hook(x)))

    def input(module: torch.nn.Module, name: str, block: int | None = None) -> None:
        hook = keep(name, block)
        handles.append(module.register_forward_pre_hook(lambda _module, inputs: hook(inputs[0])))

    output(model.embedding, "embedding")
    for block, layer in enumerate(model.layers):
        assert isinstance(layer, TransformerLayer)
        output(layer.attention_norm, "attention norm", block)
        output(layer.attention.qkv, "qkv", block)
        input(layer.attention.out, "attention output", block)
        output(layer.attention.out, "attention projection", block)
        output(layer.mlp_norm, "MLP norm", block)
        output(layer.mlp.up, "up", block)
        if layer.mlp.gate is not None:
            output(layer.mlp.gate, "gate", block)
        input(layer.mlp.down, "activation", block)
        output(layer.mlp.down, "down", block)
        output(layer, "stream", block)
    output(model.norm, "last norm")
    output(model.readout, "logits")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: TransformerDecoder, name: str, features: int) -> dict[str, slice]:
    """The classes that a watched tensor is made of, each with its features."""
    if name != "qkv":
        return {name: slice(0, features)}
    width = model.config.width
    end = width + (features - width) // 2
    return {"query": slice(0, width), "key": slice(width, end), "value": slice(end, features)}


def _scale_of(name: str, block: int | None, is_gradient: bool, x: torch.Tensor) -> TensorScale:
    """The sizes of x [B, L, N]."""
    sizes = [_size(x[:, start:end]) for start, end in BUCKETS.values()]
    mean, whole = float(x.mean(1).double().square().mean()), float(x.double().square().mean())
    std, rms = zip(*sizes, strict=True)
    return TensorScale(name, block, is_gradient, std, rms, mean / whole if whole else None)


def _size(x: torch.Tensor) -> tuple[float | None, float | None]:
    """Standard deviation and root mean square of all elements; None of nothing."""
    if x.numel() == 0:
        return None, None
    wide = x.detach().double()
    return float(wide.std(correction=0)), float(wide.square().mean().sqrt())


def _weight_class(parameter: str) -> tuple[str, int | None]:
    """(class, block) of a parameter: "layers.3.mlp.up.weight" -> ("weight of mlp.up", 3)."""
    owner, _, kind = parameter.rpartition(".")
    if not owner.startswith("layers."):
        return f"{kind} of {owner}", None
    _, block, inner = owner.split(".", 2)
    return f"{kind} of {inner}", int(block)
