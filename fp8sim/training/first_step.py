"""Does every GEMM of a decoder cast and multiply what its recipe says? One forward and backward pass, held against it.

Nothing here asks the model what it does: which layers there are, in which role and with which factors follow from its
sizes and its recipe alone (`expected_layers`), and what enters and leaves them is seen by torch's own hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from fp8sim import mma
from fp8sim.analysis.arithmetic import independent_cast
from fp8sim.compare import NOTHING, Comparison, bitwise, within
from fp8sim.nn import Linear, TransformerConfig, TransformerDecoder
from fp8sim.recipes import ACCUMULATIONS, GEMM_OPERANDS, GemmRecipe, Recipe
from fp8sim.simulate.matmul import GemmEvent, observe
from fp8sim.training.model import without_casts

_Tensors = dict[str, torch.Tensor]


class Expected(NamedTuple):
    """What a linear layer has to be.

    Attributes:
        recipe: of its three GEMMs.
        factors: on the result of each GEMM.
        multiplier: on the output, as in an ordinary differentiable graph.
    """

    recipe: Recipe
    factors: Mapping[str, float]
    multiplier: float


def expected_layers(config: TransformerConfig, recipe: Recipe, tokens: int) -> dict[str, Expected]:
    """The linear layers of a decoder by name, on a batch of `tokens` tokens; muP without a base shape."""
    width, inner = config.width, round(config.expansion * config.width)
    heads_width = width + 2 * width * (config.key_value_heads or config.heads) // config.heads
    in_block = {
        "attention.qkv": ("attention_qkv", width, heads_width),
        "attention.out": ("attention_out", width, width),
    }
    in_block |= {
        f"mlp.{name}": ("ffn_up", width, inner) for name in ("up", "gate")[: 1 + (config.activation == "swiglu")]
    }
    in_block |= {"mlp.down": ("ffn_down", inner, width)}
    layers = {f"layers.{i}.{name}": layer for i in range(config.blocks) for name, layer in in_block.items()}
    layers["readout"] = ("readout", width, config.vocabulary)
    is_mup = recipe.parametrization == "mup"
    return {
        name: Expected(
            recipe.for_role(role),
            _factors(role, fan_in, fan_out, tokens, recipe),
            1 / fan_in if is_mup and role == "readout" else 1.0,
        )
        for name, (role, fan_in, fan_out) in layers.items()
    }


def _factors(role: str, fan_in: int, fan_out: int, tokens: int, recipe: Recipe) -> dict[str, float]:
    """The factor on each GEMM, written down anew from the tables (u-muP, table 8 and appendix B; muS, section 2).

    Untied are the layers of an MLP, except under mu-nit scaling, and the readout.
    """
    if not recipe.is_unit_scaled:
        return dict.fromkeys(GEMM_OPERANDS, 1.0)
    factors = {"output": fan_in**-0.5, "grad_input": fan_out**-0.5, "grad_weight": tokens**-0.5}
    if role == "readout":
        factors["output"] = 1 / fan_in
    elif role.startswith("attention") or recipe.parametrization == "munit":
        factors["grad_input"] = factors["output"]
    return factors


def check_first_step(model: TransformerDecoder, recipe: Recipe, tokens: int, run: Callable[[], Any]) -> Comparison:
    """Check the three GEMMs of every linear layer of `model` on one forward and backward pass.

    Torch's own hooks see what enters and leaves each module; the simulated GEMMs report what they multiplied and what
    came out. All must agree: every layer ran each GEMM once; what a GEMM multiplied is what the module was given, in
    float32, cast once by an independent route in the format that the recipe names for the layer's role; its result is
    the product of those within the bound of how the recipe adds, times the factor that the layer's sizes ask for; and
    that is what left the module.

    Args:
        model: a decoder in float32; muP without a base shape, one recipe for all blocks.
        recipe: what the model was to be built with.
        tokens: of the batch.
        run: one forward and backward pass from zero gradients.
    """
    layers, events = expected_layers(model.config, recipe, tokens), list[GemmEvent]()
    total = _check_layers(model, layers)
    if total.mismatches:
        return total
    with _Boundaries(model, layers) as seen, observe(events.append):
        run()
    for name, tensors in seen.items():
        gradient = model.get_parameter(f"{name}.weight").grad
        if gradient is not None:
            tensors["grad_weight"] = gradient
        total += _check_unrounded(f"{recipe.name} {name}", tensors)
    total += _check_events(layers, events)
    for event in events:
        if event.layer in layers:
            total += _check_gemm(event, layers[event.layer], seen[event.layer], f"{recipe.name} {event.layer}")
    return total


def _check_layers(model: TransformerDecoder, layers: Mapping[str, Expected]) -> Comparison:
    """Every matrix but the embedding's is the weight of one expected layer; the gradients' reference casts nothing."""
    found = sorted(name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim > 1)
    wanted = sorted([*(f"{name}.weight" for name in layers), "embedding.weight"])
    if found != wanted or len({id(model.get_parameter(name)) for name in found}) != len(wanted):
        return Comparison(1, 1, f"weights are {found}, expected {wanted}, each its own")
    linears = [module for module in without_casts(model).modules() if isinstance(module, Linear)]
    gemms = [linear.recipe.gemm(gemm) for linear in linears for gemm in GEMM_OPERANDS]
    if any(gemm.first or gemm.second for gemm in gemms):
        return Comparison(1, 1, "the reference of gradients casts operands, expected none")
    return NOTHING


class _Boundaries:
    """Record what enters and leaves modules, forward and backward, while the `with` block runs."""

    def __init__(self, model: torch.nn.Module, layers: Mapping[str, Expected]) -> None:
        self.modules = {name: model.get_submodule(name) for name in layers}
        self.seen: dict[str, _Tensors] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> dict[str, _Tensors]:
        for name, module in self.modules.items():
            self.seen[name] = {"weight": module.get_parameter("weight").detach()}
            self.handles.append(module.register_forward_hook(self._forward(name)))
            self.handles.append(module.register_full_backward_hook(self._backward(name)))
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


def _check_unrounded(where: str, seen: Mapping[str, torch.Tensor]) -> Comparison:
    """What a module is given has not been cast before: no 16-bit format holds all of it.

    A tensor that is mostly zero, such as a gradient that underflowed, may be sums of one product and have few bits.
    """
    total = NOTHING
    for operand in ("input", "weight", "grad_output"):
        x = seen.get(operand, torch.zeros(1))
        rounded = [str(dtype) for dtype in (torch.bfloat16, torch.float16) if torch.equal(x.to(dtype).to(x.dtype), x)]
        if rounded and 2 * int(x.count_nonzero()) >= x.numel():
            total += Comparison(1, 1, f"{where}: all of {operand} are numbers of {rounded[0]}, expected {x.dtype}")
    return total


def _check_events(layers: Mapping[str, Expected], events: list[GemmEvent]) -> Comparison:
    """Every layer ran each of its three GEMMs exactly once, and no other GEMM ran."""
    ran = sorted((e.layer, e.gemm) for e in events)
    wanted = sorted((name, gemm) for name in layers for gemm in GEMM_OPERANDS)
    if ran == wanted:
        return Comparison(len(wanted), 0)
    missing, unexpected = ([" ".join(one) for one in rest] for rest in (_without(wanted, ran), _without(ran, wanted)))
    many = max(1, len(missing), len(unexpected))
    return Comparison(
        max(many, len(wanted)),
        many,
        f"GEMMs that did not run: {', '.join(missing) or 'none'}; that ran beside the expected ones: "
        f"{', '.join(unexpected) or 'none'}",
    )


def _without(some: list[tuple[str, str]], others: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """`some` less one of each of `others`."""
    rest = list(others)
    return [one for one in some if one not in rest or rest.remove(one)]  # type: ignore[func-returns-value]


_TRANSPOSED = {("output", 1), ("grad_weight", 0)}
"""The operands that a GEMM reads transposed (see `fp8sim.recipes`)."""


def _check_gemm(event: GemmEvent, layer: Expected, seen: _Tensors, where: str) -> Comparison:
    """One GEMM against what torch's hooks saw of its layer."""
    where = f"{where} {event.gemm}"
    gemm = layer.recipe.gemm(event.gemm)
    expected, total = [], NOTHING
    for i, operand in enumerate(GEMM_OPERANDS[event.gemm]):
        if operand not in seen:
            return Comparison(1, 1, f"{where}: no {operand} passed through the module, expected one")
        quantizer = (gemm.first, gemm.second)[i]
        given = seen[operand].reshape(-1, seen[operand].shape[-1])
        if operand == "grad_output" and layer.multiplier != 1.0:
            given = given * layer.multiplier
        value = given if quantizer is None else independent_cast(given, quantizer)
        as_read = value.mT if (event.gemm, i) in _TRANSPOSED else value
        total += bitwise(f"{where} operand {operand}", event.used[i], as_read)
        expected.append(as_read)
    factor = layer.factors[event.gemm]
    exact = torch.matmul(expected[0].double(), expected[1].double()) * factor
    bound = _bound(gemm, expected[0], expected[1], factor)
    total += within(f"{where} result", event.result, exact, bound)
    if event.gemm not in seen:
        return total + Comparison(1, 1, f"{where}: no {event.gemm} left the module, expected one")
    left = event.result * (layer.multiplier if event.gemm == "output" else 1.0)
    return total + bitwise(f"{where} result as the module returns it", seen[event.gemm].reshape(left.shape), left)


def _bound(gemm: GemmRecipe, a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    """The largest error of factor * a [M, K] @ b [K, N] as `gemm` adds."""
    if gemm.accumulate in ACCUMULATIONS:
        return mma.float32_error_bound(a, b, scale=factor)
    plan = mma.parse_plan(gemm.accumulate)
    model = mma.resolve(plan, *(None if q is None else str(q.format) for q in (gemm.first, gemm.second)))
    amax_a, amax_b = a.abs().amax(1, keepdim=True), b.abs().amax(0, keepdim=True)
    rounded = 1 + 2.0**-23  # the product with the factor
    return torch.from_numpy(mma.error_bound(a.shape[1], amax_a, amax_b, model, plan)) * abs(factor) * rounded
