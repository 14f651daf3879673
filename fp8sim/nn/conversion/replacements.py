"""What takes the place of each module of torch.

A module is replaced in place: it stays the object that it is, with its parameters, hooks, mode and whatever else was
set on it, and gets the class and the settings of a template that is made on the meta device. So optimizers, references
from elsewhere, and wrappers around the model keep working, and the model itself may be a single layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fp8sim.nn.activations import GELU, Dropout, ReLU, Sigmoid, SiLU, Softmax, Tanh
from fp8sim.nn.embedding import Embedding
from fp8sim.nn.linear import Conv1d, Linear
from fp8sim.nn.multihead import MultiheadAttention
from fp8sim.nn.norms import LayerNorm, RMSNorm
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import mup

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes that quantizers take."""


@dataclass(frozen=True)
class Replacement:
    """How modules of one class of torch are replaced.

    Attributes:
        template: (module, recipe, role) -> the module that stands for it, made on the meta device.
        parameters: names that the class gives its parameters.
        has_gemms: whether every recipe concerns it; else only those that have factors, or draw weights anew.
        refusal: module, recipe -> why this one cannot be replaced; "" if it can.
    """

    template: Callable[[Any, Recipe, str], torch.nn.Module]
    parameters: tuple[str, ...] = ()
    has_gemms: bool = False
    refusal: Callable[[Any, Recipe], str] = lambda module, recipe: ""


def _linear(module: torch.nn.Linear, recipe: Recipe, role: str) -> torch.nn.Module:
    kind = "readout" if role == "readout" else "hidden"
    start = _start(kind, module.in_features, recipe)
    sizes = (module.in_features, module.out_features, module.bias is not None)
    constraint = None if role == "readout" else "to_output_scale"
    return Linear(*sizes, recipe=recipe, role=role, constraint=constraint, **start)


def _start(kind: str, fan_in: int, recipe: Recipe) -> dict[str, Any]:
    """How a weight starts and what its output is multiplied by, where that is not what unit scaling or torch do."""
    if recipe.parametrization != "mup":
        return {}
    factors = mup.mup(mup.Weight(kind, fan_in, 1))  # neither factor depends on fan_out
    return {"init_std": factors.std, "multiplier": factors.multiplier}


def _conv1d(module: torch.nn.Conv1d, recipe: Recipe, role: str) -> torch.nn.Module:
    return Conv1d(
        module.in_channels,
        module.out_channels,
        module.kernel_size[0],
        module.stride[0],
        module.padding if isinstance(module.padding, str) else module.padding[0],
        module.dilation[0],
        module.groups,
        module.bias is not None,
        recipe=recipe,
    )


def _refuse_conv1d(module: torch.nn.Conv1d, recipe: Recipe) -> str:
    if module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r}: convolutions by recipe pad with zeros"
    return "convolutions have no initial weight of muP" if recipe.parametrization == "mup" else ""


def _attention(module: torch.nn.MultiheadAttention, recipe: Recipe, role: str) -> torch.nn.Module:
    return MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        module.dropout,
        module.in_proj_bias is not None,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=module.batch_first,
        recipe=recipe,
        init_std=_start("hidden", module.embed_dim, recipe).get("init_std"),
    )


def _refuse_attention(module: torch.nn.MultiheadAttention, recipe: Recipe) -> str:
    if module.bias_k is not None or module.bias_v is not None:
        return "add_bias_kv=True: attention by recipe has no bias on keys and values"
    if module.add_zero_attn:
        return "add_zero_attn=True: attention by recipe adds no zeros to keys and values"
    if type(module.out_proj) is not NonDynamicallyQuantizableLinear or _unlike(module.out_proj, _LINEAR):
        return "its out_proj was replaced or changed by another tool"
    return ""


def _embedding(module: torch.nn.Embedding, recipe: Recipe, role: str) -> torch.nn.Module:
    return Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx, recipe=recipe)


def _refuse_embedding(module: torch.nn.Embedding, recipe: Recipe) -> str:
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(module, option):
            return f"{option}={getattr(module, option)}: embeddings by recipe have no such option"
    return ""


def _layer_norm(module: torch.nn.LayerNorm, recipe: Recipe, role: str) -> torch.nn.Module:
    affine, bias = module.weight is not None, module.bias is not None
    return LayerNorm(module.normalized_shape, module.eps, affine, bias, recipe=recipe)


def _rms_norm(module: torch.nn.RMSNorm, recipe: Recipe, role: str) -> torch.nn.Module:
    return RMSNorm(module.normalized_shape, module.eps, module.weight is not None, recipe=recipe)


def _refuse_softmax(module: torch.nn.Softmax, recipe: Recipe) -> str:
    return "dim=None: name the dimension" if module.dim is None else ""


_ATTENTION_PARAMETERS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
_LINEAR = Replacement(_linear, ("weight", "bias"), has_gemms=True)

REPLACEMENTS: Mapping[type[torch.nn.Module], Replacement] = MappingProxyType(
    {
        torch.nn.Linear: _LINEAR,
        NonDynamicallyQuantizableLinear: _LINEAR,
        torch.nn.Conv1d: Replacement(_conv1d, ("weight", "bias"), True, _refuse_conv1d),
        torch.nn.MultiheadAttention: Replacement(
            _attention, (*_ATTENTION_PARAMETERS, "bias_k", "bias_v"), True, _refuse_attention
        ),
        torch.nn.Embedding: Replacement(_embedding, ("weight",), refusal=_refuse_embedding),
        torch.nn.LayerNorm: Replacement(_layer_norm, ("weight", "bias")),
        torch.nn.RMSNorm: Replacement(_rms_norm, ("weight",)),
        torch.nn.GELU: Replacement(lambda m, recipe, role: GELU(approximate=m.approximate, recipe=recipe)),
        torch.nn.SiLU: Replacement(lambda m, recipe, role: SiLU(recipe=recipe)),
        torch.nn.ReLU: Replacement(lambda m, recipe, role: ReLU(recipe=recipe)),
        torch.nn.Tanh: Replacement(lambda m, recipe, role: Tanh(recipe=recipe)),
        torch.nn.Sigmoid: Replacement(lambda m, recipe, role: Sigmoid(recipe=recipe)),
        torch.nn.Softmax: Replacement(lambda m, recipe, role: Softmax(m.dim, recipe=recipe), refusal=_refuse_softmax),
        torch.nn.Dropout: Replacement(lambda m, recipe, role: Dropout(m.p, recipe=recipe)),
    }
)
"""By exact class: what derives from one of these may compute otherwise."""


def replacement_of(module: torch.nn.Module) -> Replacement | None:
    """The entry of the nearest class of `module` that `REPLACEMENTS` has."""
    return next((REPLACEMENTS[base] for base in type(module).__mro__ if base in REPLACEMENTS), None)


def refusal_of(module: torch.nn.Module, replacement: Replacement, recipe: Recipe) -> str:
    """Why `module` cannot be replaced; "" if it can."""
    kind = type(module)
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "its sizes are not known yet: run the model once before it is converted"
    if kind not in REPLACEMENTS:
        ancestor = next(base.__name__ for base in kind.__mro__ if base in REPLACEMENTS)
        return f"a class of its own, derived from {ancestor}: it may compute otherwise"
    return _unlike(module, replacement) or replacement.refusal(module, recipe)


def _unlike(module: torch.nn.Module, replacement: Replacement) -> str:
    """In what `module` is not as its class makes it; "" if it is."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance, and would go around the recipe"
    if unknown := sorted(set(module._parameters) - set(replacement.parameters)):
        return f"it has parameters {', '.join(unknown)}: another tool changed it"
    for name in replacement.parameters:
        parameter = getattr(module, name, None)
        if parameter is not None and name not in module._parameters:
            return f"its {name} is no parameter: another tool computes it"
        if parameter is not None and type(parameter) not in (torch.nn.Parameter, DTensor):
            return f"its {name} is a {type(parameter).__name__}: another tool changed it"
        if parameter is not None and parameter.dtype not in DTYPES:
            return f"its {name} is {parameter.dtype}: recipes take float32, float64, float16 and bfloat16"
    return ""


def template_of(module: torch.nn.Module, replacement: Replacement, recipe: Recipe, role: str) -> torch.nn.Module:
    """The module that `module` is to become, on the meta device."""
    with torch.device("meta"):
        return replacement.template(module, recipe, role)


def become(module: torch.nn.Module, template: torch.nn.Module) -> None:
    """Give `module` the class and settings of `template`; parameters, submodules, hooks and mode stay."""
    generic = vars(torch.nn.Module())
    module.__class__ = type(template)
    vars(module).update({name: value for name, value in vars(template).items() if name not in generic})
    for name in template._parameters.keys() - module._parameters.keys():
        module.register_parameter(name, None)
