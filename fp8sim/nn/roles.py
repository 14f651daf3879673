"""What each parameter of a model is: its kind, its sizes and its depth, derived from the modules that hold it.

Nothing is stored on a tensor, since deepcopy, pickling, `to_empty`, meta-device initialisation, DDP and FSDP2 replace
parameters and lose what is attached to them. Modules outlive all of these, and so does what they say:

- A module states the kinds of its own parameters by a method `parametrization_roles()`, from a parameter's name to a
  kind of `mup.KINDS`, or to a `mup.Weight` where the sizes do not follow from the shape. torch's modules have the kinds
  of `TORCH_ROLES`. Note that a plain `torch.nn.Linear` is hidden there, whatever it does: name a readout in `roles`.
- A module whose attribute `residual_depth` is a number says how many residual blocks the stack has that it is, or
  is a part of; it holds for everything below it, until a module below says otherwise (None: on no residual branch).
  `ResidualStack` is a stack that does so.
- Sizes come from the parameter's shape, which for a sharded parameter (DTensor) is that of the whole.

Names are those of the model inside its wrappers: without the `_orig_mod` of torch.compile, the `module` of DDP and the
`_checkpoint_wrapped_module` of activation checkpointing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fp8sim.unit_scaling.mup import Weight, weight_of_shape

_LAYER = {"weight": "hidden", "bias": "bias"}
_NORM = {"weight": "norm", "bias": "bias"}
_ATTENTION = {f"{name}_weight": "hidden" for name in ("in_proj", "q_proj", "k_proj", "v_proj")} | {
    "in_proj_bias": "bias"
}

TORCH_ROLES: Mapping[type[torch.nn.Module], Mapping[str, str]] = MappingProxyType(
    {
        torch.nn.Linear: _LAYER,
        torch.nn.Conv1d: _LAYER,
        torch.nn.Conv2d: _LAYER,
        torch.nn.MultiheadAttention: _ATTENTION,
        torch.nn.Embedding: {"weight": "embedding"},
        torch.nn.LayerNorm: _NORM,
        torch.nn.RMSNorm: _NORM,
        torch.nn.GroupNorm: _NORM,
    }
)
"""Kinds of the parameters of torch's modules and of classes derived from them."""

_WRAPPER_CHILDREN = ("_orig_mod", "_checkpoint_wrapped_module")


class ResidualStack(torch.nn.Sequential):
    """Residual blocks, x -> block(... block(x)), whose parameters have the depth len(self).

    A slice is a part of the stack: a plain Sequential whose parameters have the depth of the whole. A stack of fewer
    blocks is `ResidualStack(*stack[:n])`.
    """

    @property
    def residual_depth(self) -> int:
        """Number of blocks."""
        return len(self)

    def __getitem__(self, idx: Any) -> Any:
        """The block of that index, or the part of that slice."""
        if not isinstance(idx, slice):
            return super().__getitem__(idx)
        part = torch.nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        part.residual_depth = self.residual_depth  # type: ignore[assignment]
        return part


def weights(
    model: torch.nn.Module, roles: Mapping[str, str | Weight] = MappingProxyType({}), untagged: str | None = None
) -> dict[str, tuple[torch.nn.Parameter, Weight]]:
    """Every parameter of `model` once, by name, with what it is; `depth` counts blocks, and no base is set.

    A parameter that several modules share is what the first of them says.

    Args:
        model: bare or wrapped.
        roles: shell patterns of names -> kind or `Weight`; overrides what modules say. The first match counts.
        untagged: kind of parameters of which nothing else says it. None refuses them.

    Raises:
        ValueError: parameters without a kind, an unknown kind, or a pattern that matches no parameter.
    """
    found: dict[str, tuple[torch.nn.Parameter, Weight]] = {}
    seen: set[torch.nn.Parameter] = set()
    unmatched, unknown = set(roles), []
    for prefix, module, depth in _walk(model):
        stated = _stated_roles(module)
        for own_name, parameter in module.named_parameters(recurse=False):
            name = _join(prefix, own_name)
            matches = [pattern for pattern in roles if fnmatchcase(name, pattern)]
            unmatched -= set(matches)
            if parameter in seen:
                continue
            seen.add(parameter)
            role = roles[matches[0]] if matches else stated.get(own_name, untagged)
            if role is None:
                unknown.append(f"{name} of {type(module).__name__}")
                continue
            weight = weight_of_shape(role, parameter.shape) if isinstance(role, str) else role
            found[name] = (parameter, weight if weight.depth is not None else replace(weight, depth=depth))
    if unknown:
        raise ValueError(
            f"nothing says what these parameters are: {', '.join(unknown)}. Define parametrization_roles() on their "
            f"module, or pass roles={{'{unknown[0].split()[0]}': 'hidden'}}, or untagged='hidden' for all of them"
        )
    if unmatched:
        raise ValueError(f"roles={sorted(unmatched)}: no parameter has such a name; the names are {', '.join(found)}")
    return found


def _walk(
    module: torch.nn.Module, prefix: str = "", depth: int | None = None
) -> Iterator[tuple[str, torch.nn.Module, int | None]]:
    """(name, module, depth) of `module` and all below it, in the order of `named_modules`."""
    depth = getattr(module, "residual_depth", depth)
    yield prefix, module, depth
    parallel = isinstance(module, DataParallel | DistributedDataParallel)
    for name, child in module.named_children():
        is_wrapped = name in _WRAPPER_CHILDREN or (parallel and name == "module")
        yield from _walk(child, prefix if is_wrapped else _join(prefix, name), depth)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _stated_roles(module: torch.nn.Module) -> Mapping[str, str | Weight]:
    """What the module says, else what its nearest ancestor in `TORCH_ROLES` has."""
    states: Callable[[], Mapping[str, str | Weight]] | None = getattr(module, "parametrization_roles", None)
    if states is not None:
        return states()
    return next((TORCH_ROLES[base] for base in type(module).__mro__ if base in TORCH_ROLES), {})
