"""Do operations compute what they claim? Checks of every operand, GEMM and factor by an independent route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch

from fp8sim import mma
from fp8sim.analysis.verdicts import Verdict
from fp8sim.compare import NOTHING, Comparison, bitwise, within
from fp8sim.formats import Format
from fp8sim.nn import Linear
from fp8sim.ops.cast import cast
from fp8sim.quantizers import Quantizer, parse
from fp8sim.recipes import ACCUMULATIONS, GEMM_OPERANDS, GemmRecipe, Recipe
from fp8sim.rounding import Overflow, Rounding
from fp8sim.simulate.matmul import GemmEvent, observe


@dataclass(frozen=True)
class Row:
    """One line of the table of operations and kernels.

    Attributes:
        name: the operation or kernel. ran_on: where.
        contract: what was asked of it.
        comparison: what was compared; nothing compared is NOT CHECKED.
        note: why it was not checked.
        kernel: the kernel's name, as options give it; empty for an operation.
    """

    name: str
    ran_on: str
    contract: str
    comparison: Comparison
    note: str = ""
    kernel: str = ""

    @property
    def detail(self) -> str:
        """Why it was not checked, or where the first difference lies."""
        return self.note or self.comparison.first

    @property
    def verdict(self) -> Verdict:
        """FAIL on any mismatch."""
        if self.comparison.compared == 0:
            return Verdict.NOT_CHECKED
        return Verdict.FAIL if self.comparison.mismatches else Verdict.PASS

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        compared, mismatches = self.comparison.compared, self.comparison.mismatches
        plain = {"name": self.name, "ran_on": self.ran_on, "contract": self.contract}
        return {**plain, "compared": compared, "mismatches": mismatches, "detail": self.detail, "verdict": self.verdict}


def independent_cast(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """x [...] on the quantizer's grid without fp8sim's arithmetic: torch's cast after a clamp, or ml_dtypes.

    Raises:
        ValueError: the quantizer's policy has no independent route.
    """
    fmt = quantizer.format
    if quantizer.scale is not None:
        raise ValueError(f"{quantizer}: no independent route applies scale factors")
    if quantizer.rounding is not Rounding.TIES_TO_EVEN:
        raise ValueError(f"{quantizer}: no independent route rounds {quantizer.rounding.name}")
    if quantizer.overflow is Overflow.SATURATE:
        x = x.clamp(-float(fmt.max), float(fmt.max))
    elif quantizer.overflow is not Overflow.INFINITY or not fmt.infinity:
        raise ValueError(f"{quantizer}: no independent route overflows as {quantizer.overflow.name}")
    return _round_trip(x.contiguous(), fmt)


def _round_trip(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """x [...] through the dtype of that name, in torch if torch can cast to it, else in ml_dtypes."""
    if hasattr(torch, str(fmt)):
        return x.to(getattr(torch, str(fmt))).to(x.dtype)
    array = x.numpy()
    return torch.from_numpy(array.astype(np.dtype(getattr(ml_dtypes, str(fmt)))).astype(array.dtype))


def check_casts(elements: int) -> Comparison:
    """Casts to the recipes' formats, of float32 numbers spread over all bit patterns, by the independent route."""
    x = float32_patterns(elements)
    total = NOTHING
    for fmt, overflow in (("e4m3", "SATURATE"), ("e5m2", "SATURATE"), ("fp16", "INFINITY"), ("bf16", "INFINITY")):
        quantizer = parse(f"{fmt}:TIES_TO_EVEN:{overflow}")
        total += bitwise(f"cast to {fmt}", cast(x, fmt, overflow=overflow), independent_cast(x, quantizer))
    return total


def float32_patterns(count: int) -> torch.Tensor:
    """`count` float32 numbers [count] of all kinds: both signs, subnormals, infinities, NaN.

    A quarter each: evenly spaced bit patterns, every tie among them where `count` is a power of two; their neighbours
    above and below, which only the last bit tells from a tie; and patterns scattered over all (by the odd factor of
    Knuth's multiplicative hash).
    """
    quarter = max(1, count // 4)
    even = torch.arange(quarter, dtype=torch.int64) * (2**32 // quarter)
    scattered = torch.arange(1, count - 3 * quarter + 1, dtype=torch.int64) * 2654435761
    patterns = torch.cat([even, even + 1, even - 1, scattered])[:count]
    return (patterns % 2**32 - 2**31).to(torch.int32).view(torch.float32)


def check_linears(model: torch.nn.Module, recipe: Recipe, run: Callable[[], Any]) -> Comparison:
    """Check the three GEMMs of every `Linear` of `model` on one forward and backward pass.

    Torch's own hooks see what enters and leaves each module; the simulated GEMMs report what they were given, what they
    multiplied and what came out. All must agree: what a GEMM multiplied is what the module was given, cast once by an
    independent route in the format that the recipe names; its result is the product of those within the bound of how
    the recipe adds, times the factor that the layer's sizes ask for; and that is what left the module.

    Args:
        model: its `Linear` modules have names.
        recipe: what the model was built with.
        run: one forward and backward pass from zero gradients.
    """
    layers = {m.name: m for m in model.modules() if isinstance(m, Linear)}
    events: list[GemmEvent] = []
    with _boundaries(layers) as seen, observe(events.append):
        run()
    for name, layer in layers.items():
        seen[name]["grad_weight"] = torch.zeros(()) if layer.weight.grad is None else layer.weight.grad
    total = _completeness(layers, events)
    for event in events:
        total += _check_gemm(event, layers[event.layer], seen[event.layer], recipe)
    return total


class _boundaries:
    """Record what enters and leaves modules, forward and backward, while the `with` block runs."""

    def __init__(self, layers: dict[str, Linear]) -> None:
        self.layers = layers
        self.seen: dict[str, dict[str, torch.Tensor]] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> dict[str, dict[str, torch.Tensor]]:
        for name, layer in self.layers.items():
            self.seen[name] = {"weight": layer.weight.detach()}
            self.handles.append(layer.register_forward_hook(self._forward(name)))
            self.handles.append(layer.register_full_backward_hook(self._backward(name)))
        return self.seen

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _forward(self, name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.seen[name].update(input=inputs[0].detach(), output=output.detach())

        return hook

    def _backward(self, name: str) -> Any:
        def hook(
            module: torch.nn.Module, grads_in: tuple[torch.Tensor, ...], grads_out: tuple[torch.Tensor, ...]
        ) -> None:
            self.seen[name].update(grad_output=grads_out[0], grad_input=grads_in[0])

        return hook


def _completeness(layers: dict[str, Linear], events: list[GemmEvent]) -> Comparison:
    """Every layer ran each of its three GEMMs exactly once, and the reference of its gradients casts nothing."""
    reference = [layer.recipe.without_casts().gemm(gemm) for layer in layers.values() for gemm in GEMM_OPERANDS]
    if any(gemm.first or gemm.second for gemm in reference):
        return Comparison(1, 1, "the reference of gradients casts operands, expected none")
    ran = sorted((e.layer, e.gemm) for e in events)
    wanted = sorted((name, gemm) for name in layers for gemm in GEMM_OPERANDS)
    if ran == wanted:
        return NOTHING
    return Comparison(1, 1, f"GEMMs that ran are {ran}, expected {wanted}")


_TRANSPOSED = {("output", 1), ("grad_weight", 0)}
"""The operands that a GEMM reads transposed (see `fp8sim.recipes`)."""


def _check_gemm(event: GemmEvent, layer: Linear, seen: dict[str, torch.Tensor], recipe: Recipe) -> Comparison:
    """One GEMM against what torch's hooks saw of its layer."""
    where = f"{recipe.name} {event.layer} {event.gemm}"
    gemm = recipe.for_role(layer.role).gemm(event.gemm)
    expected, total = [], NOTHING
    for i, operand in enumerate(GEMM_OPERANDS[event.gemm]):
        if operand not in seen:
            return Comparison(1, 1, f"{where}: no {operand} passed through the module, expected one")
        quantizer = (gemm.first, gemm.second)[i]
        given = seen[operand].reshape(-1, seen[operand].shape[-1])
        value = given if quantizer is None else independent_cast(given, quantizer)
        as_read = value.mT if (event.gemm, i) in _TRANSPOSED else value
        total += bitwise(f"{where} operand {operand}", event.used[i], as_read)
        expected.append(as_read)
    factor = expected_factors(layer, seen["input"][..., 0].numel())[event.gemm]
    exact = torch.matmul(expected[0].double(), expected[1].double()) * factor
    bound = _bound(gemm, expected[0], expected[1], factor)
    total += within(f"{where} result", event.result, exact, bound)
    left = seen[event.gemm]
    return total + bitwise(f"{where} result as the module returns it", left.reshape(event.result.shape), event.result)


def _bound(gemm: GemmRecipe, a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    """The largest error of factor * a [M, K] @ b [K, N] as `gemm` adds."""
    if gemm.accumulate in ACCUMULATIONS:
        return mma.float32_error_bound(a, b, scale=factor)
    plan = mma.parse_plan(gemm.accumulate)
    model = mma.resolve(plan, *(None if q is None else str(q.format) for q in (gemm.first, gemm.second)))
    amax_a, amax_b = a.abs().amax(1, keepdim=True), b.abs().amax(0, keepdim=True)
    rounded = 1 + 2.0**-23  # the product with the factor
    return torch.from_numpy(mma.error_bound(a.shape[1], amax_a, amax_b, model, plan)) * abs(factor) * rounded


def expected_factors(layer: Linear, tokens: int) -> dict[str, float]:
    """The factor on each GEMM, written down anew from the table of unit scaling (u-muP, table 8 and appendix B)."""
    if not layer.recipe.is_unit_scaled:
        return dict.fromkeys(GEMM_OPERANDS, 1.0)
    fan_in, fan_out = layer.in_features, layer.out_features
    factors = {"output": fan_in**-0.5, "grad_input": fan_out**-0.5, "grad_weight": tokens**-0.5}
    if layer.role == "readout":
        factors["output"] = 1 / fan_in
    elif layer.constraint == "to_output_scale":
        factors["grad_input"] = factors["output"]
    return factors
