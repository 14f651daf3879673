"""`convert`: a plain torch model under a recipe, and the errors that keep it from doing nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TypeVar

import torch

from fp8sim import recipes
from fp8sim.nn.conversion.planning import LINEAR_ROLES, Filter, Request, Step, is_ours, plan
from fp8sim.nn.conversion.replacements import become
from fp8sim.nn.conversion.report import Conversion, attach
from fp8sim.nn.embedding import Embedding
from fp8sim.recipes import HIDDEN_ROLES, Recipe

_Model = TypeVar("_Model", bound=torch.nn.Module)

NO_ROLES: Mapping[str, str] = MappingProxyType({})


def convert(
    model: _Model,
    recipe: str | Recipe,
    *,
    module_filter_fn: Filter | None = None,
    reinit: bool = False,
    roles: Mapping[str, str] = NO_ROLES,
) -> _Model:
    """Let the layers of a torch model run by `recipe`, in place; `conversion_report(model)` says what became of each.

    Under a recipe of the standard parametrization, numerics alone change: linear layers, Conv1d and MultiheadAttention
    become those of fp8sim.nn. Under another, so do embeddings, norms, activations and dropout, which then carry the
    factors of the parametrization, and weights are drawn anew. A converted module stays the same object, with its
    parameters, their names, hooks, mode, dtype and device; so optimizers, tied weights and checkpoints keep working.

    Modules of a class of its own are not replaced, even if it derives from one of torch's, and no code of the model is
    changed: sums, activations and products that it calls as functions stay as they are. The report names them as far
    as the methods of a module's class show them.

    A model that was converted, or is made of fp8sim.nn, may be converted again by a recipe of the same parametrization.

    Args:
        model: the model, or one layer of it. Convert before `fully_shard` and `torch.jit.script`.
        recipe: a recipe or its name.
        module_filter_fn: called with each module that could be converted, or that a warning would name, and its name
            as in `named_modules`; False leaves it as it is. None converts all.
        reinit: draw the weights of converted layers anew, as their `reset_parameters` says: N(0, 1) under unit scaling,
            gains one and biases zero. What was trained is lost. Needed if the parametrization is not standard.
        roles: shell patterns of names of linear layers -> one of `recipes.HIDDEN_ROLES`, or "readout". The first match
            counts. Without one, `linear1` and `linear2` of torch's transformer layers are "ffn_up" and "ffn_down", a
            layer whose weight is an embedding's is "readout", and the others are "hidden".

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no module.
        ValueError: nothing was converted; a parametrization, or a change of role under one, that needs `reinit`; a
            module of fp8sim of another parametrization; an unknown recipe or role, or a pattern that no linear layer's
            name matches. The model is then as it was.

    Warns:
        UserWarning: layers with GEMMs, or code that multiplies by weights of its own, stay as they were, and
            `module_filter_fn` did not say so.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    recipe = recipes.parse(recipe)
    _check_roles(model, roles)
    steps = plan(model, Request(recipe, module_filter_fn or (lambda module, name: True), reinit, roles))
    _check_plan(model, recipe, reinit, steps)
    for step in steps:
        _apply(step)
    if reinit:
        _draw_anew(steps)
    attach(model, Conversion(recipe.name, tuple(step.line for step in steps), tuple(_notes(recipe, reinit, steps))))
    _warn(steps)
    return model


def _check_roles(model: torch.nn.Module, roles: Mapping[str, str]) -> None:
    for pattern, role in roles.items():
        if role not in LINEAR_ROLES:
            raise ValueError(f"roles={{{pattern!r}: {role!r}}}: use one of {', '.join(LINEAR_ROLES)}")
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    unmatched = [pattern for pattern in roles if not any(fnmatchcase(name, pattern) for name in names)]
    if unmatched:
        raise ValueError(
            f"roles={unmatched}: no linear layer has such a name; the names are {', '.join(map(repr, names)) or 'none'}"
        )


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or (is_ours(module) and "role" in vars(module))


def _check_plan(model: torch.nn.Module, recipe: Recipe, reinit: bool, steps: list[Step]) -> None:
    """ValueError if the plan changes nothing, or changes what weights mean without drawing them anew."""
    converted = [step for step in steps if step.line.status == "converted"]
    if not converted:
        reasons = Counter(f"{step.line.module}: {step.line.remark or step.line.status}" for step in steps)
        found = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        raise ValueError(
            f"nothing in this {type(model).__name__} is converted to recipe {recipe.name!r}. It has {found}. Pass a "
            f"module_filter_fn that lets a layer through, or a model with layers that fp8sim.nn has"
        )
    fresh = [step for step in converted if step.template is not None]
    if fresh and recipe.parametrization != "standard" and not reinit:
        raise ValueError(
            f"reinit=False: recipe {recipe.name!r} has parametrization {recipe.parametrization!r}, under which weights "
            f"start otherwise than in torch and mean something else. Pass reinit=True, which draws the weights of "
            f"{len(fresh)} modules anew, or a recipe of parametrization 'standard', such as 'fp8_naive'"
        )


def _apply(step: Step) -> None:
    if step.template is not None and type(step.module) is not type(step.template):
        become(step.module, step.template)
    for name, value in (step.settings or {}).items():
        setattr(step.module, name, value)


def _draw_anew(steps: list[Step]) -> None:
    """Reset the parameters of converted modules.

    Parts before the whole, since attention sets some of theirs; embeddings last, so that a padding row that is shared
    ends at zero.
    """
    converted = [step.module for step in steps if step.line.status == "converted" and step.module._parameters]
    parts_first = converted[::-1]
    for module in sorted(parts_first, key=lambda module: isinstance(module, Embedding)):
        module.reset_parameters()  # type: ignore[operator]


def _notes(recipe: Recipe, reinit: bool, steps: list[Step]) -> Iterator[str]:
    roles = {step.line.role for step in steps} - {""}
    if any(step.line.calls for step in steps):
        yield "what a model's own code uses runs without the recipe: call functions of fp8sim.functional, with recipe="
    if any(not type(step.module).__module__.startswith(("torch.", "fp8sim.")) for step in steps):
        yield "of classes of their own, the methods were searched for names of functions; what these call was not read"
    kept = [role for role in recipe.high_precision if role not in (*roles, "embedding")]
    if kept and not ("hidden" in kept and roles & set(HIDDEN_ROLES)):
        yield f"the recipe keeps {', '.join(kept)} in high precision, and no layer has such a role: name it by roles="
    if recipe.parametrization != "standard" and "readout" not in roles:
        yield "no layer has the role 'readout': name the model's last layer by roles="
    if recipe.is_unit_scaled:
        yield (
            "residual sums stay as in the model's code: use fp8sim.functional.residual_split and residual_add, and "
            "fp8sim.functional.cross_entropy for the loss"
        )
    if reinit and any(p.is_meta for step in steps for p in step.module.parameters(recurse=False)):
        yield "parameters on the meta device have no values yet: after to_empty, call reset_parameters() of each module"


def _warn(steps: list[Step]) -> None:
    left = [str(step.line) for step in steps if step.keeps_gemms]
    if left:
        warnings.warn(
            f"convert left {len(left)} layers with GEMMs as they were: {'; '.join(left)}. Exclude them by "
            f"module_filter_fn to say that this is meant",
            stacklevel=3,
        )
