"""Recipes: which quantizer each operand of each GEMM of a layer gets, and what goes with it. Data only.

A linear layer has three GEMMs, named as everywhere in fp8sim:

    output      [T, O] = input [T, I]       @ weight^T [I, O]
    grad_input  [T, I] = grad_output [T, O] @ weight   [O, I]
    grad_weight [O, I] = grad_output^T [O, T] @ input  [T, I]

To add a recipe, add one entry to `RECIPES`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fp8sim.arguments import check_text
from fp8sim.formats import parse as parse_format
from fp8sim.quantizers import Quantizer
from fp8sim.recipe_parts import (
    ACCUMULATIONS,
    ATTENTION_OPERANDS,
    ATTENTION_PRODUCTS,
    DYNAMIC_LOSS_SCALING,
    NO_LOSS_SCALING,
    UNQUANTIZED,
    AttentionRecipe,
    GemmRecipe,
    GemmStrings,
    LossScaling,
    one_of,
    parse_cast,
    refuse_random_bits,
)
from fp8sim.rounding import Overflow

__all__ = [
    "ACCUMULATIONS",
    "ATTENTION_OPERANDS",
    "DYNAMIC_LOSS_SCALING",
    "GEMM_OPERANDS",
    "HIDDEN_ROLES",
    "NO_LOSS_SCALING",
    "PARAMETRIZATIONS",
    "RECIPES",
    "ROLES",
    "UNQUANTIZED",
    "AttentionRecipe",
    "GemmRecipe",
    "GemmStrings",
    "LossScaling",
    "Recipe",
    "from_dict",
    "parse",
    "uniform",
]

GEMM_OPERANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "output": ("input", "weight"),
        "grad_input": ("grad_output", "weight"),
        "grad_weight": ("grad_output", "input"),
    }
)
"""The two operands of each GEMM, in order."""

PARAMETRIZATIONS = ("standard", "mup", "unit_scaled", "u_mup", "munit")
"""Where scale lives: in the initialisation of weights (standard, muP); in constant factors on operations (unit scaling,
u-muP and mu-nit scaling, which differ in what else they say of a model)."""

_UNIT_SCALED = ("unit_scaled", "u_mup", "munit")

HIDDEN_ROLES = ("hidden", "attention_qkv", "attention_out", "ffn_up", "ffn_down")
"""What a linear layer inside a model is; "hidden" is one that is none of the others."""

ROLES = (*HIDDEN_ROLES, "embedding", "readout")
"""What a layer is in a model; a recipe may keep some in high precision. An embedding is a lookup, not a GEMM: no recipe
casts it, whether it lists that role or not."""


@dataclass(frozen=True)
class Recipe:
    """What a low-precision training recipe says about the layers of a model.

    Attributes:
        name: a label; unnamed variants keep the label of what they came from.
        output, grad_input, grad_weight: the three GEMMs.
        parametrization: one of `PARAMETRIZATIONS`.
        loss_scaling: read by the training loop alone.
        attention: the six GEMMs of attention, which then computes its probabilities one by one, or the plan of a fused
            kernel; None: torch's fused attention, in high precision.
        high_precision: roles of layers that the GEMMs above are not for; "hidden" is all of `HIDDEN_ROLES`.
        high_precision_cast: what casts all operands of those layers, such as bfloat16; None leaves them as they are.
        expected_to_hold: whether `fp8sim validate` fails when its scaling rule does not hold; baselines say False.

    Raises:
        ValueError: an unknown parametrization, role or accumulation.
    """

    name: str
    output: GemmRecipe = UNQUANTIZED
    grad_input: GemmRecipe = UNQUANTIZED
    grad_weight: GemmRecipe = UNQUANTIZED
    parametrization: str = "standard"
    loss_scaling: LossScaling = NO_LOSS_SCALING
    attention: AttentionRecipe | None = None
    high_precision: tuple[str, ...] = ()
    high_precision_cast: Quantizer | None = None
    expected_to_hold: bool = False

    def __post_init__(self) -> None:
        one_of("parametrization", self.parametrization, PARAMETRIZATIONS)
        for role in self.high_precision:
            one_of("high_precision", role, ROLES)
        refuse_random_bits("high_precision_cast", self.high_precision_cast)
        in_products = self.attention is not None and self.attention.plan is None
        object.__setattr__(self, "products", self._products() if in_products else None)

    def _products(self) -> tuple[Recipe, ...]:
        assert self.attention is not None
        attention = self.attention
        return tuple(
            Recipe(f"{self.name} {product}", *(attention.gemm(name) for name in gemms))  # type: ignore[arg-type]
            for product, gemms in ATTENTION_PRODUCTS.items()
        )

    @property
    def attention_products(self) -> tuple[Recipe, Recipe] | None:
        """Attention's two products as recipes of their own, q being the input and k the weight, and p and v^T.

        Made once, so that compilers find finished constants. None without an attention part, or where it has a plan.
        """
        products: tuple[Recipe, Recipe] | None = self.__dict__["products"]
        return products

    @property
    def is_unit_scaled(self) -> bool:
        """Whether operations carry the constant factors of unit scaling."""
        return self.parametrization in _UNIT_SCALED

    def gemm(self, name: str) -> GemmRecipe:
        """The recipe of the GEMM `name`, one of `GEMM_OPERANDS`. ValueError for another name."""
        one_of("gemm", name, tuple(GEMM_OPERANDS))
        return {"output": self.output, "grad_input": self.grad_input, "grad_weight": self.grad_weight}[name]

    def without_casts(self) -> Recipe:
        """The same recipe with every operand unquantized, in all layers: the reference of its gradients."""
        name = f"{self.name} without casts"
        return self._changed(GemmRecipe.without_casts, name=name, high_precision_cast=None)

    def adding(self, accumulate: str) -> Recipe:
        """The same recipe with the products of two quantized operands added as `accumulate` says.

        Raises:
            ValueError: no such accumulation, or a plan that does not take the formats.
        """
        changed = self._changed(lambda gemm: gemm.adding(accumulate))
        is_fused = self.attention is not None and self.attention.plan is not None
        return dataclasses.replace(changed, attention=self.attention) if is_fused else changed

    def _changed(self, change: Callable[[GemmRecipe], GemmRecipe], **other: Any) -> Recipe:
        """The same recipe with `change` applied to each GEMM, those of attention too."""
        gemms: dict[str, Any] = {name: change(self.gemm(name)) for name in GEMM_OPERANDS}
        attention = None if self.attention is None else self.attention.changed(change)
        return dataclasses.replace(self, attention=attention, **gemms, **other)

    def keeps(self, role: str) -> bool:
        """Whether layers of that role stay in high precision. ValueError for no such role."""
        one_of("role", role, ROLES)
        return role in self.high_precision or (role in HIDDEN_ROLES and "hidden" in self.high_precision)

    def for_role(self, role: str) -> Recipe:
        """This recipe, or its high-precision form if it keeps layers of that role in high precision."""
        if not self.keeps(role):
            return self
        if self.high_precision_cast is None:
            return self.without_casts()
        cast = self.high_precision_cast
        return self._changed(lambda gemm: gemm.casting(cast), name=f"{self.name} in {cast.format}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, strings and numbers, ready for JSON or YAML; `from_dict` inverts it."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain.update({name: self.gemm(name).to_dict() for name in GEMM_OPERANDS})
        cast = self.high_precision_cast
        return {
            **plain,
            "loss_scaling": dataclasses.asdict(self.loss_scaling),
            "attention": None if self.attention is None else self.attention.to_dict(),
            "high_precision": list(self.high_precision),
            "high_precision_cast": None if cast is None else str(cast),
        }

    def __str__(self) -> str:
        if RECIPES.get(self.name) == self:
            return self.name
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` wrote. ValueError names an unknown or misplaced key."""
    fields = dict(plain)
    try:
        for name in GEMM_OPERANDS:
            fields[name] = GemmRecipe.from_dict(fields.get(name, {}))
        fields["loss_scaling"] = LossScaling(**fields.get("loss_scaling", {}))
        attention = fields.get("attention")
        fields["attention"] = None if attention is None else AttentionRecipe.from_dict(attention)
        fields["high_precision"] = tuple(fields.get("high_precision", ()))
        fields["high_precision_cast"] = parse_cast(fields.get("high_precision_cast"))
        return Recipe(**fields)
    except TypeError as error:
        raise ValueError(f"no recipe can be made of {dict(plain)!r}: {error}") from error


def parse(text: str | Recipe) -> Recipe:
    """The recipe that `text` names, or whose `str()` it is.

    Inside a function that torch compiles, pass a name or a `Recipe`: other texts are read by a parser that breaks the
    graph.

    Raises:
        ValueError: no such recipe; the message lists the names.
        TypeError: neither text nor a `Recipe`.
    """
    if isinstance(text, Recipe):
        return text
    check_text("recipe", text, "a Recipe or its name, such as 'fp32'")
    if text in RECIPES:
        return RECIPES[text]
    if text.startswith("{"):
        return from_dict(json.loads(text))
    raise ValueError(f"unknown recipe {text!r}: use one of {', '.join(RECIPES)}")


def uniform(name: str, forward: Quantizer | None, gradient: Quantizer | None, **other: Any) -> Recipe:
    """A recipe that casts every input and weight with `forward` and every grad_output with `gradient`."""
    return Recipe(
        name,
        output=GemmRecipe(forward, forward),
        grad_input=GemmRecipe(gradient, forward),
        grad_weight=GemmRecipe(gradient, forward),
        **other,
    )


_BF16 = Quantizer(parse_format("bf16"), overflow=Overflow.INFINITY)
_FP16 = Quantizer(parse_format("fp16"), overflow=Overflow.INFINITY)
_E4M3 = Quantizer(parse_format("e4m3"))
_E5M2 = Quantizer(parse_format("e5m2"))


def _critical_layers_in_bf16(name: str, **other: Any) -> Recipe:
    return uniform(
        name,
        _E4M3,
        _E5M2,
        high_precision=("attention_out", "ffn_down", "readout"),
        high_precision_cast=_BF16,
        **other,
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            uniform("fp32", None, None, expected_to_hold=True),
            uniform("bf16", _BF16, _BF16, expected_to_hold=True),
            # FP16 without loss scaling (Micikevicius et al. 2018, section 3.2, before its remedy).
            uniform("fp16", _FP16, _FP16),
            # Its remedy, and the one constant that repairs the FP16 baseline of Blake et al. 2023 (section 5). For
            # another factor: dataclasses.replace(recipe, loss_scaling=LossScaling(1024.0)).
            uniform("fp16_loss_scaled", _FP16, _FP16, loss_scaling=DYNAMIC_LOSS_SCALING),
            uniform("fp16_loss_scaled_static", _FP16, _FP16, loss_scaling=LossScaling(2.0**11)),
            # E4M3 for inputs and weights, E5M2 for gradients (Micikevicius et al. 2022), and no scale factor at all.
            uniform("fp8_naive", _E4M3, _E5M2),
            uniform("fp8_loss_scaled", _E4M3, _E5M2, loss_scaling=LossScaling(4096.0)),
            # Unit scaling (Blake et al. 2023) without and with FP8; embedding and readout stay in high precision as
            # in u-muP (Blake et al. 2024, section 4.3).
            uniform("unit_scaled", None, None, parametrization="unit_scaled", expected_to_hold=True),
            uniform(
                "unit_scaled_fp8",
                _E4M3,
                _E5M2,
                parametrization="unit_scaled",
                high_precision=("readout",),
                expected_to_hold=True,
            ),
            # u-muP (Blake et al. 2024, section 4.3): the two layers whose inputs grow in training stay in BF16, as does
            # the readout. muP with the same casts is its baseline; figure 1c casts every linear layer of both.
            _critical_layers_in_bf16("u_mup_fp8", parametrization="u_mup", expected_to_hold=True),
            _critical_layers_in_bf16("mup_fp8", parametrization="mup"),
            # mu-nit scaling (Narayan et al. 2025, section 2): every hidden layer in FP8.
            uniform(
                "munit_scaled_fp8",
                _E4M3,
                _E5M2,
                parametrization="munit",
                high_precision=("readout",),
                high_precision_cast=_BF16,
                expected_to_hold=True,
            ),
        )
    }
)
"""The named recipes."""
