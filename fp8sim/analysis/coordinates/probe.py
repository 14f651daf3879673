"""What one forward pass looks like: the size of every module's output, and how far it has moved since step 0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

INPUT, ACTIVATION, CHANGE, OWN_CHANGE = "input", "activation", "change", "own change"
"""What is recorded of a module; see `Probe`."""

LOGITS = "attention logits"
"""Ends the name under which the products of queries and keys are recorded."""

MODEL = "(model)"
"""The name of the whole."""

PROPORTIONAL = 0.01
"""The share of a tensor that may be left over where it counts as a multiple of another; bfloat16 rounds."""


TINY = torch.finfo(torch.float64).tiny


class Shapes(NamedTuple):
    """Of a module: its first output's, and those of the parameters that it uses itself, by their names in the model."""

    output: tuple[int, ...]
    parameters: dict[str, tuple[int, ...]]


Sizes = dict[tuple[str, str], float]
"""(name of a module, quantity) -> root mean square."""

Forward = Callable[[torch.nn.Module], object]
"""Runs the model on the batch that the probe looks at."""


class Probe:
    """Looks at `model` on one batch, again and again while it is trained. The first look is what others compare with.

    A look records, over all elements of a module's outputs and all its calls in the pass:

    - input: the RMS of the first tensor of floats among the arguments, x_t, of modules with parameters.
    - activation: the RMS of the output, h_t.
    - change: the RMS of h_t - h_0.
    - own change: the RMS of what the module's own parameters do to it, f(x_t; w_t) - f(x_t; w_0) with the input x_t of
      now: the module computes its output a second time, with the parameters of the first look. It tells a wrong
      learning rate of this module from one of a module before it. Biases and gains, which may learn at another rate,
      are taken apart, under their own names.

    The products of queries and keys, times their factor, that `scaled_dot_product_attention` takes the softmax of are
    recorded too, as outputs of the module that calls it (not those of torch's own MultiheadAttention, which calls it
    out of sight). A module that returns the very tensor that one inside it has
    returned is left out; one that returns a multiple of what the last module inside it has returned, such as logits
    divided by the width, is left out too, and the factor counts as that module's. (Where both are zero at first, the
    first look at which they are not decides.) The model runs in eval mode, without gradients; its mode comes back
    afterwards, and no hook stays.

    Args:
        model: whose modules are looked at.
        forward: runs it.
    """

    def __init__(self, model: torch.nn.Module, forward: Forward) -> None:
        self._model, self._forward = model, forward
        self._first_outputs: dict[str, list[torch.Tensor]] = {}
        self._first_parameters: dict[str, dict[str, torch.Tensor]] = {}
        self._folded: set[str] = set()
        self._undecided: set[str] | None = None

    @property
    def shapes(self) -> dict[str, Shapes]:
        """Of everything that the first look saw, in the order in which it was computed."""
        found: dict[str, Shapes] = {}
        for name, outputs in self._first_outputs.items():
            parameters, output = self._first_parameters.get(name, {}), tuple(outputs[0].shape)
            found[name] = Shapes(output, {})
            for part, keys in _parts(name, parameters).items():
                found[part] = Shapes(output, {_join(name, key): tuple(parameters[key].shape) for key in keys})
        return found

    def look(self) -> Sizes:
        """The sizes of now; the first look has inputs and activations alone."""
        seen = _Pass(self._first_parameters, self._folded, self._undecided)
        with _eval_mode(self._model), torch.no_grad(), seen.watching(self._model):
            self._forward(self._model)
        self._folded, self._undecided = seen.folded, seen.undecided
        decided = {name: outputs for name, outputs in seen.outputs.items() if name not in seen.undecided}
        sizes: Sizes = {(name, ACTIVATION): rms(outputs) for name, outputs in decided.items()}
        sizes |= {(name, INPUT): rms(inputs) for name, inputs in seen.inputs.items()}
        if not self._first_outputs:
            self._first_outputs = seen.outputs
            self._first_parameters = _parameters_by_caller(self._model, seen.called)
            return sizes
        for name in seen.folded:
            self._first_outputs.pop(name, None)
        for name, outputs in decided.items():
            first = self._first_outputs.get(name, [])
            if [x.shape for x in first] != [x.shape for x in outputs]:
                raise ValueError(
                    f"factory: module {name!r} does not return the shapes of step 0, on the same batch, so that there "
                    f"is no change to measure: make the model's path independent of its weights"
                )
            sizes[name, CHANGE] = rms([now - then for now, then in zip(outputs, first, strict=True)])
        return sizes | {(name, OWN_CHANGE): rms(moved) for name, moved in seen.own_changes.items()}


def _parameters_by_caller(model: torch.nn.Module, called: Collection[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of all parameters, by the module that uses them and by their name in it.

    A module that is never called, such as the projection inside torch's MultiheadAttention, has its parameters used by
    the nearest one around it that is.
    """
    owned: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        user = name.rpartition(".")[0]
        while user not in called and user:
            user = user.rpartition(".")[0]
        owned.setdefault(user or MODEL, {})[name.removeprefix(f"{user}.")] = parameter.detach().clone()
    return owned


def _parts(name: str, parameters: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """What of a module's parameters is looked at together: those of two or more dimensions, and each other by itself.

    The module's name stands for the first part, which is the first parameter where there are none of two dimensions.
    """
    if not parameters:
        return {}
    weights = [key for key, value in parameters.items() if value.ndim >= 2] or list(parameters)[:1]
    return {name: weights} | {_join(name, key): [key] for key in parameters if key not in weights}


def _join(name: str, key: str) -> str:
    return key if name == MODEL else f"{name}.{key}"


class _Pass:
    """One forward pass under observation.

    Args:
        first_parameters: of each module, those of the first pass; empty in it.
        folded: modules that are left out, since they return a multiple of what the last one inside them does.
        undecided: those of which nothing says yet whether they do; None: any.
    """

    def __init__(
        self,
        first_parameters: Mapping[str, Mapping[str, torch.Tensor]],
        folded: Collection[str],
        undecided: Collection[str] | None,
    ) -> None:
        self.inputs: dict[str, list[torch.Tensor]] = {}
        self.outputs: dict[str, list[torch.Tensor]] = {}
        self.own_changes: dict[str, list[torch.Tensor]] = {}
        self.called: set[str] = set()
        self.folded, self.undecided = set(folded), set(undecided or ())
        self._decides_all = undecided is None
        self._first_parameters = first_parameters
        self._running: list[str] = []
        self._returned: list[torch.Tensor] = []  # kept alive, so that no other tensor gets the same identity
        self._is_repeating = False

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Hooks on all modules of `model`, and on attention, for as long as it lasts."""
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                for handle in (
                    module.register_forward_pre_hook(self._enter(name)),
                    module.register_forward_hook(self._leave(name), with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(_AttentionWatch(self._record_logits))
            yield

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: object) -> None:
            if not self._is_repeating:
                self._running.append(name)
                self.called.add(name)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            if self._is_repeating:
                return
            self._running.pop()
            result = first_float_tensor(output)
            if result is not None:
                self._record(name or MODEL, module, result, lambda old: self._repeat(module, old, args, kwargs))
            given = first_float_tensor([*args, *kwargs.values()])
            if given is not None and next(module.parameters(recurse=False), None) is not None:
                self.inputs.setdefault(name or MODEL, []).append(given)

        return hook

    def _record(
        self, name: str, module: torch.nn.Module, result: torch.Tensor, repeat: Callable[[Any], torch.Tensor]
    ) -> None:
        is_bare = next(module.parameters(recurse=False), None) is None
        if is_bare and (any(result is other for other in self._returned) or self._fold(name, result)):
            return
        self._returned.append(result)
        self.outputs.setdefault(name, []).append(result.detach().clone())
        first = self._first_parameters.get(name, {})
        for part, keys in _parts(name, first).items():
            moved = result - repeat({key: first[key] for key in keys})
            self.own_changes.setdefault(part, []).append(moved)

    def _fold(self, name: str, result: torch.Tensor) -> bool:
        """Whether `result` is a multiple of what the last module inside this one returned; it then takes its place."""
        last = next(reversed(self.outputs), "")
        is_inside = bool(last) and (name == MODEL or last.startswith(f"{name}."))
        decides = self._decides_all or name in self.undecided
        if not is_inside or not (decides or name in self.folded):
            return False
        inner = self.outputs[last][-1]
        if inner.shape != result.shape:
            return False
        if decides and not inner.any() and not result.any():
            self.undecided.add(name)
            return False
        self.undecided.discard(name)
        factor = float((inner.double() * result.double()).sum() / inner.double().square().sum().clamp_min(TINY))
        if decides and rms([result - factor * inner]) > PROPORTIONAL * rms([result]):
            return False
        self.folded.add(name)
        self._returned.append(result)
        for tensors in (self.outputs[last], *(self.own_changes[p] for p in self._parts_of(last))):
            tensors[-1] = tensors[-1] * factor
        return True

    def _parts_of(self, name: str) -> list[str]:
        return list(_parts(name, self._first_parameters.get(name, {})))

    def _repeat(
        self, module: torch.nn.Module, parameters: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: Any
    ) -> torch.Tensor:
        self._is_repeating = True
        try:
            repeated = first_float_tensor(torch.func.functional_call(module, parameters, args, kwargs))
        finally:
            self._is_repeating = False
        assert repeated is not None  # the same module has just returned one
        return repeated

    def _record_logits(self, logits: torch.Tensor) -> None:
        if not self._is_repeating:
            where = (self._running[-1] if self._running else "") or MODEL
            self.outputs.setdefault(f"{where} {LOGITS}", []).append(logits)


class _AttentionWatch(TorchFunctionMode):
    """Hands the logits of every `scaled_dot_product_attention` of torch to a function."""

    def __init__(self, record: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self._record(_logits(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _logits(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """scale * query @ key^T, before any mask."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    return query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)


def first_float_tensor(output: object) -> torch.Tensor | None:
    """`output` if it is a tensor of floats, else the first in a tuple, list or dictionary; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() and output.ndim > 0 else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := first_float_tensor(part)) is not None), None)


def rms(tensors: Sequence[torch.Tensor]) -> float:
    """Root mean square of all elements together, summed in float64; 0 for no elements."""
    norms = [float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64)) for x in tensors]
    return math.hypot(*norms) / math.sqrt(max(1, sum(x.numel() for x in tensors)))


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
