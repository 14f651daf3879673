"""What is to be done with each module of a model, decided before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from fp8sim.nn.conversion import reading
from fp8sim.nn.conversion.replacements import REPLACEMENTS, Replacement, refusal_of, replacement_of, template_of
from fp8sim.nn.conversion.report import ModuleLine
from fp8sim.nn.embedding import Embedding
from fp8sim.recipes import HIDDEN_ROLES, Recipe

Filter = Callable[[torch.nn.Module, str], bool]

LINEAR_ROLES = (*HIDDEN_ROLES, "readout")

_FILTERED = "module_filter_fn"
_OTHER_GEMMS = (_ConvNd, RNNBase, RNNCellBase, torch.nn.Bilinear, torch.jit.ScriptModule)
_TORCH_LAYERS = (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)
_ROLES_IN_TORCH_LAYERS = {"linear1": "ffn_up", "linear2": "ffn_down"}


@dataclass(frozen=True)
class Request:
    """What the caller of `convert` asks for."""

    recipe: Recipe
    accepts: Filter
    reinit: bool
    roles: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A module, its name, and the module that holds it."""

    name: str
    module: torch.nn.Module
    parent: torch.nn.Module | None

    @property
    def own_name(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Step:
    """One module's line in the report, and what is to be changed.

    Attributes:
        template: what a module of torch is to become; None: it is not replaced.
        settings: attributes to be set.
        keeps_gemms: GEMMs that are left as they were, though nobody asked for it.
    """

    line: ModuleLine
    module: torch.nn.Module
    template: torch.nn.Module | None = None
    settings: Mapping[str, object] | None = None
    keeps_gemms: bool = False


def plan(model: torch.nn.Module, request: Request) -> list[Step]:
    """A step for every place of a module in `model`.

    Raises:
        ValueError: a module of fp8sim with another parametrization.
    """
    tables = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding | Embedding)}
    made: dict[int, Step] = {}
    steps = []
    for place in _places(model):
        first = made.get(id(place.module))
        if first is not None:
            reason = f"the same module as {first.line.name or 'the model'}"
            steps.append(Step(replace(first.line, name=place.name, reason=reason), place.module))
            continue
        attention = place.own_name == "out_proj" and isinstance(place.parent, torch.nn.MultiheadAttention)
        whole = made[id(place.parent)] if attention else None
        step = made[id(place.module)] = _step(place, request, whole, tables)
        steps.append(step)
    return [_without_fused_path(step, made) for step in steps]


def _places(module: torch.nn.Module, name: str = "", above: tuple[torch.nn.Module, ...] = ()) -> Iterator[Place]:
    """Every place of every module, in the order of `named_modules`; a module inside itself has one place."""
    if any(module is holder for holder in above):
        return
    yield Place(name, module, above[-1] if above else None)
    for own_name, child in module._modules.items():
        if child is not None:
            yield from _places(child, f"{name}.{own_name}" if name else own_name, (*above, module))


def _step(place: Place, request: Request, attention: Step | None, tables: Mapping[int, str]) -> Step:
    if is_ours(place.module):
        return _again(place, request)
    if attention is not None:
        return _part_of_attention(place, request, attention)
    replacement = replacement_of(place.module)
    if replacement is None:
        return _left(place, request)
    return _replaced(place, request, replacement, tables)


def is_ours(module: torch.nn.Module) -> bool:
    """Whether `module` runs by a recipe already."""
    ours = any(base.__module__.startswith("fp8sim.nn.") for base in type(module).__mro__)
    return ours and isinstance(vars(module).get("recipe"), Recipe)


def _again(place: Place, request: Request) -> Step:
    """A module that was converted before, or is one of fp8sim.nn: it gets the recipe."""
    module, kind, recipe = place.module, type(place.module).__name__, request.recipe
    before = vars(module)["recipe"]
    if not request.accepts(module, place.name):
        return Step(ModuleLine(place.name, kind, "skipped", f"{_FILTERED}; it runs by {before.name}"), module)
    if before.parametrization != recipe.parametrization:
        raise ValueError(
            f"{place.name or 'the model'} is a {kind} of parametrization {before.parametrization!r}, and recipe "
            f"{recipe.name!r} has {recipe.parametrization!r}: convert the model of torch that it came from, or build "
            f"it with recipe={recipe.name!r}; a recipe of the same parametrization may be exchanged"
        )
    role = vars(module).get("role", "")
    if role:
        role = _stated_role(place.name, request.roles) or role
        recipe = recipe.for_role(role)
    elif kind == "Conv1d":
        recipe = recipe.for_role("hidden")
    settings = {"recipe": recipe, **({"role": role, **_start_of_role(place, role, request)} if role else {})}
    line = ModuleLine(place.name, kind, "converted", f"ran by {before.name}", role, recipe.name)
    return Step(line, module, settings=settings)


def _start_of_role(place: Place, role: str, request: Request) -> dict[str, object]:
    """Settings of a linear layer that becomes a readout or is one no longer, where these start otherwise than others.

    Raises:
        ValueError: its weight is not to be drawn anew.
    """
    before, style = vars(place.module)["role"], request.recipe.parametrization
    if style == "standard" or (role == "readout") == (before == "readout"):
        return {}
    if not request.reinit:
        raise ValueError(
            f"reinit=False: roles= makes {place.name or 'the model'} {role!r}, which was {before!r}, and under "
            f"parametrization {style!r} a readout has other weights and factors. Pass reinit=True, or leave the role"
        )
    template = vars(template_of(place.module, REPLACEMENTS[torch.nn.Linear], request.recipe, role))
    return {name: template[name] for name in ("constraint", "init_std", "multiplier")}


def _part_of_attention(place: Place, request: Request, attention: Step) -> Step:
    """The output projection, of which torch's attention reads the weight without calling it, and ours calls it."""
    kind = type(place.module).__name__
    if attention.template is None:
        reason = "its attention, which reads its weight without calling it, was skipped"
        return Step(ModuleLine(place.name, kind, "skipped", reason), place.module)
    if not request.accepts(place.module, place.name):
        return Step(ModuleLine(place.name, kind, "skipped", _FILTERED), place.module)
    template = attention.template.get_submodule(place.own_name)
    role = _stated_role(place.name, request.roles) or "attention_out"
    recipe = request.recipe.for_role(role)
    line = ModuleLine(place.name, kind, "converted", "", role, recipe.name)
    return Step(line, place.module, template, {"name": place.name, "role": role, "recipe": recipe})


def _replaced(place: Place, request: Request, replacement: Replacement, tables: Mapping[int, str]) -> Step:
    """A module of torch, or of a class derived from one, that `REPLACEMENTS` knows."""
    module, recipe, kind = place.module, request.recipe, type(place.module).__name__

    def skipped(reason: str, keeps_gemms: bool = False) -> Step:
        return Step(ModuleLine(place.name, kind, "skipped", reason), module, keeps_gemms=keeps_gemms)

    if not (replacement.has_gemms or recipe.is_unit_scaled or (request.reinit and replacement.parameters)):
        return skipped(f"no GEMM: parametrization {recipe.parametrization!r} leaves it as torch's")
    if not request.accepts(module, place.name):
        return skipped(_FILTERED)
    if refusal := refusal_of(module, replacement, recipe):
        return skipped(refusal, replacement.has_gemms)
    role = note = ""
    if isinstance(module, torch.nn.Linear):
        role, note = _role_of(place, request.roles, tables)
    template = template_of(module, replacement, recipe, role)
    line = ModuleLine(place.name, kind, "converted", note, role, vars(template)["recipe"].name)
    return Step(line, module, template, {"name": place.name} if replacement.has_gemms else None)


def _role_of(place: Place, roles: Mapping[str, str], tables: Mapping[int, str]) -> tuple[str, str]:
    """The role of a linear layer, and why it has it."""
    if stated := _stated_role(place.name, roles):
        return stated, ""
    if isinstance(place.parent, _TORCH_LAYERS) and place.own_name in _ROLES_IN_TORCH_LAYERS:
        return _ROLES_IN_TORCH_LAYERS[place.own_name], ""
    if (table := tables.get(id(place.module.weight))) is not None:
        return "readout", f"its weight is that of {table}"
    return "hidden", ""


def _stated_role(name: str, roles: Mapping[str, str]) -> str | None:
    return next((role for pattern, role in roles.items() if fnmatchcase(name, pattern)), None)


def _left(place: Place, request: Request) -> Step:
    """A module that has no replacement: one that holds others, one of a class of its own, or another of torch."""
    module, kind = place.module, type(place.module)
    calls = tuple(calls_of(module, request.recipe))
    if next(module.children(), None) is not None and not isinstance(module, torch.jit.ScriptModule):
        line = ModuleLine(place.name, kind.__name__, "container", _own_parameters(module), calls=calls)
        keeps_gemms = _multiplies_itself(module, calls, request.recipe) and request.accepts(module, place.name)
        return Step(line, module, keeps_gemms=keeps_gemms)
    has_gemms = isinstance(module, _OTHER_GEMMS) or kind.__module__.startswith("torch.ao.")
    has_gemms = has_gemms or not reading.PRODUCTS.isdisjoint(calls)
    if has_gemms and not request.accepts(module, place.name):
        return Step(ModuleLine(place.name, kind.__name__, "skipped", _FILTERED, calls=calls), module)
    reason = f"{kind.__module__}.{kind.__qualname__} has no counterpart in fp8sim.nn"
    return Step(ModuleLine(place.name, kind.__name__, "skipped", reason, calls=calls), module, keeps_gemms=has_gemms)


def _multiplies_itself(module: torch.nn.Module, calls: tuple[str, ...], recipe: Recipe) -> bool:
    """Whether the own code of a module that holds others has GEMMs that the recipe would cast.

    Those of weights, and those of attention if the recipe has a part for it. Of a product without a weight in its name
    it is a guess: that of a module with matrices of its own.
    """
    products = reading.PRODUCTS.intersection(calls)
    if recipe.attention is not None or products & reading.BY_WEIGHTS:
        return bool(products)
    has_matrices = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    return has_matrices and bool(products - reading.ATTENTION)


def _own_parameters(module: torch.nn.Module) -> str:
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return f"its own parameters {', '.join(names)} stay as they are" if names else ""


def calls_of(module: torch.nn.Module, recipe: Recipe) -> list[str]:
    """What the module's own code uses that the recipe concerns: products, and under unit scaling more."""
    concerned = reading.PRODUCTS | (reading.FACTORED if recipe.is_unit_scaled else frozenset())
    return [name for name in reading.called_by(module) if name in concerned]


def _without_fused_path(step: Step, made: Mapping[int, Step]) -> Step:
    """torch's encoder computes whole layers from their weights, in evaluation without gradients: not any more."""
    module = step.module
    settings: dict[type[torch.nn.Module], Mapping[str, object]] = {
        torch.nn.TransformerEncoder: {"use_nested_tensor": False, "enable_nested_tensor": False},
        torch.nn.TransformerEncoderLayer: {"activation_relu_or_gelu": 0},
    }
    found = next((found for base, found in settings.items() if isinstance(module, base)), None)
    if found is None or not any(_is_converted(made, part) for part in module.modules()):
        return step
    reason = "torch's fused path of inference, which would go around its layers, is off"
    reason = "; ".join(part for part in (reason, step.line.reason) if part)
    return replace(step, line=replace(step.line, reason=reason), settings=found)


def _is_converted(made: Mapping[int, Step], module: torch.nn.Module) -> bool:
    return id(module) in made and made[id(module)].line.status == "converted"
