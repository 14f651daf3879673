"""Recipes: which quantizer each operand of each GEMM of a linear layer gets, and what goes with it. Data only.

A layer has three GEMMs, named as everywhere in fp8sim:

    output      [T, O] = input [T, I]       @ weight^T [I, O]
    grad_input  [T, I] = grad_output [T, O] @ weight   [O, I]
    grad_weight [O, I] = grad_output^T [O, T] @ input  [T, I]

To add a recipe, add one entry to `RECIPES`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from fp8sim import mma, quantizers
from fp8sim.formats import parse as parse_format
from fp8sim.quantizers import Quantizer
from fp8sim.rounding import Overflow

GEMM_OPERANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "output": ("input", "weight"),
        "grad_input": ("grad_output", "weight"),
        "grad_weight": ("grad_output", "input"),
    }
)
"""The two operands of each GEMM, in order."""

ACCUMULATIONS = ("native", "float32", "float32.sequential")
"""How a GEMM adds: what the backend does; BLAS in float32; one product after the other in float32, K ascending. Or as a
plan of `fp8sim.mma.parse_plan` says: "sm90.wgmma", "deepgemm.sm90", ..."""

PARAMETRIZATIONS = ("standard", "mup", "unit_scaled", "u_mup", "munit")
"""Where scale lives: in the initialisation of weights (standard, muP); in constant factors on operations (unit scaling,
u-muP and mu-nit scaling, which differ in what else they say of a model)."""

_UNIT_SCALED = ("unit_scaled", "u_mup", "munit")

HIDDEN_ROLES = ("hidden", "attention_qkv", "attention_out", "ffn_up", "ffn_down")
"""What a linear layer inside a model is; "hidden" is one that is none of the others."""

ROLES = (*HIDDEN_ROLES, "embedding", "readout")
"""What a layer is in a model; a recipe may keep some in high precision. An embedding is a lookup, not a GEMM: no recipe
casts it, whether it lists that role or not."""


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}: use one of {', '.join(allowed)}")


def _draws_no_random_bits(argument: str, quantizer: Quantizer | None) -> None:
    if quantizer is not None and quantizer.rounding.is_stochastic:
        raise ValueError(f"{argument}={quantizer}: the GEMMs of a recipe draw no random bits; use TIES_TO_EVEN")


class GemmStrings(NamedTuple):
    """A `GemmRecipe` in canonical strings; an empty one stands for None."""

    first: str
    second: str
    accumulate: str
    dtype: str


@dataclass(frozen=True)
class GemmRecipe:
    """One GEMM: a quantizer for each operand, in the order of `GEMM_OPERANDS`, and how products are added.

    Attributes:
        first, second: quantizers; None leaves the operand as it is.
        accumulate: one of `ACCUMULATIONS`, or a plan, whose instruction takes the formats of both quantizers.
        dtype: dtype of the result; None is the dtype of the operands.
    """

    first: Quantizer | None = None
    second: Quantizer | None = None
    accumulate: str = "native"
    dtype: str | None = None

    def __post_init__(self) -> None:
        for operand, quantizer in (("first", self.first), ("second", self.second)):
            _draws_no_random_bits(operand, quantizer)
        if self.accumulate not in ACCUMULATIONS:
            self._check_plan()
        if self.dtype is not None:
            _one_of("dtype", self.dtype, ("float32", "float16", "bfloat16", "float64"))
        first, second = (str(q) if q is not None else "" for q in (self.first, self.second))
        object.__setattr__(self, "strings", GemmStrings(first, second, self.accumulate, self.dtype or ""))

    def _check_plan(self) -> None:
        pair = (self.first, self.second)
        formats = [str(quantizer.format) if quantizer is not None else None for quantizer in pair]
        try:
            mma.resolve(mma.parse_plan(self.accumulate), *formats)
        except ValueError as error:
            raise ValueError(f"accumulate={self.accumulate!r}: {error}; or use {', '.join(ACCUMULATIONS)}") from error

    @property
    def as_strings(self) -> GemmStrings:
        """This GEMM as registered operations take it; made once, so that compilers find finished constants."""
        strings: GemmStrings = self.__dict__["strings"]
        return strings

    def without_casts(self) -> GemmRecipe:
        """The same GEMM on unquantized operands, added as the backend adds."""
        return dataclasses.replace(self, first=None, second=None, accumulate="native")


@dataclass(frozen=True)
class LossScaling:
    """The factor on the loss before the backward pass, divided out of the gradients before the optimizer step."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor={self.factor}: a loss scale is a positive finite number")


@dataclass(frozen=True)
class Recipe:
    """What a low-precision training recipe says about linear layers.

    Attributes:
        name: a label; unnamed variants keep the label of what they came from.
        output, grad_input, grad_weight: the three GEMMs.
        parametrization: one of `PARAMETRIZATIONS`.
        loss_scaling: read by the training loop alone.
        high_precision: roles of layers that the GEMMs above are not for; "hidden" is all of `HIDDEN_ROLES`.
        high_precision_cast: what casts all operands of those layers, such as bfloat16; None leaves them as they are.
        expected_to_hold: whether `fp8sim validate` fails when its scaling rule does not hold; baselines say False.

    Raises:
        ValueError: an unknown parametrization, role or accumulation.
    """

    name: str
    output: GemmRecipe = GemmRecipe()
    grad_input: GemmRecipe = GemmRecipe()
    grad_weight: GemmRecipe = GemmRecipe()
    parametrization: str = "standard"
    loss_scaling: LossScaling = LossScaling()
    high_precision: tuple[str, ...] = ()
    high_precision_cast: Quantizer | None = None
    expected_to_hold: bool = False

    def __post_init__(self) -> None:
        _one_of("parametrization", self.parametrization, PARAMETRIZATIONS)
        for role in self.high_precision:
            _one_of("high_precision", role, ROLES)
        _draws_no_random_bits("high_precision_cast", self.high_precision_cast)

    @property
    def is_unit_scaled(self) -> bool:
        """Whether operations carry the constant factors of unit scaling."""
        return self.parametrization in _UNIT_SCALED

    def gemm(self, name: str) -> GemmRecipe:
        """The recipe of the GEMM `name`, one of `GEMM_OPERANDS`. ValueError for another name."""
        _one_of("gemm", name, tuple(GEMM_OPERANDS))
        return {"output": self.output, "grad_input": self.grad_input, "grad_weight": self.grad_weight}[name]

    def without_casts(self) -> Recipe:
        """The same recipe with every operand unquantized: the reference of its gradients."""
        gemms = {name: self.gemm(name).without_casts() for name in GEMM_OPERANDS}
        return dataclasses.replace(self, name=f"{self.name} without casts", **gemms)  # type: ignore[arg-type]

    def adding(self, accumulate: str) -> Recipe:
        """The same recipe with the products of two quantized operands added as `accumulate` says.

        Raises:
            ValueError: no such accumulation, or a plan that does not take the formats.
        """
        gemms = {
            name: dataclasses.replace(self.gemm(name), accumulate=accumulate)
            for name in GEMM_OPERANDS
            if self.gemm(name).first and self.gemm(name).second
        }
        return dataclasses.replace(self, **gemms)  # type: ignore[arg-type]

    def for_role(self, role: str) -> Recipe:
        """This recipe, or its high-precision form if it keeps layers of that role in high precision."""
        _one_of("role", role, ROLES)
        kept = role in self.high_precision or (role in HIDDEN_ROLES and "hidden" in self.high_precision)
        if not kept:
            return self
        if self.high_precision_cast is None:
            return self.without_casts()
        return self._casting(self.high_precision_cast)

    def _casting(self, quantizer: Quantizer) -> Recipe:
        """The same recipe with every operand cast by `quantizer`, added as the backend adds."""
        both = {"first": quantizer, "second": quantizer, "accumulate": "native"}
        gemms = {name: dataclasses.replace(self.gemm(name), **both) for name in GEMM_OPERANDS}  # type: ignore[arg-type]
        return dataclasses.replace(self, name=f"{self.name} in {quantizer.format}", **gemms)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, strings and numbers, ready for JSON or YAML; `from_dict` inverts it."""
        plain = dataclasses.asdict(self)
        for name in GEMM_OPERANDS:
            gemm = self.gemm(name)
            plain[name]["first"] = None if gemm.first is None else str(gemm.first)
            plain[name]["second"] = None if gemm.second is None else str(gemm.second)
        cast = self.high_precision_cast
        plain["high_precision_cast"] = None if cast is None else str(cast)
        return {**plain, "high_precision": list(self.high_precision)}

    def __str__(self) -> str:
        if RECIPES.get(self.name) == self:
            return self.name
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` wrote. ValueError names an unknown or misplaced key."""
    fields = dict(plain)
    try:
        for name in GEMM_OPERANDS:
            gemm = dict(fields.get(name, {}))
            for operand in ("first", "second"):
                text = gemm.get(operand)
                gemm[operand] = None if text is None else quantizers.parse(text)
            fields[name] = GemmRecipe(**gemm)
        fields["loss_scaling"] = LossScaling(**fields.get("loss_scaling", {}))
        fields["high_precision"] = tuple(fields.get("high_precision", ()))
        cast = fields.get("high_precision_cast")
        fields["high_precision_cast"] = None if cast is None else quantizers.parse(cast)
        return Recipe(**fields)
    except TypeError as error:
        raise ValueError(f"no recipe can be made of {dict(plain)!r}: {error}") from error


def parse(text: str | Recipe) -> Recipe:
    """The recipe that `text` names, or whose `str()` it is.

    Inside a function that torch compiles, pass a name or a `Recipe`: other texts are read by a parser that breaks the
    graph.

    Raises:
        ValueError: no such recipe; the message lists the names.
    """
    if isinstance(text, Recipe):
        return text
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
            # the readout. muP with the same casts is its baseline (figure 1c).
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
