"""Functions that cast in the same pass, for kernels that take codes; and cross-entropy that makes its gradient at once.

The registered operations are those of `fp8sim.ops`, on the backend of the tensors' device; here they get the factors of
the recipe's parametrization.
"""

from __future__ import annotations

from typing import Any

import torch

from fp8sim.arguments import FLOATS, check_like, check_same, check_tensor, check_tensor_of
from fp8sim.formats import Format
from fp8sim.ops import activations, cross_entropy, rms_norm
from fp8sim.ops.encoded import Encoded
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, count_rows, count_tokens, is_unit_scaled


def gelu_encode(
    input: torch.Tensor,
    fmt: str | Format = "e4m3",
    *,
    approximate: str = "none",
    mult: float = 1.0,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    **cast: Any,
) -> Encoded:
    """`gelu` of this package, as codes of `fmt` in one pass over memory.

    Args:
        input, approximate, mult, recipe, constraint: as for `gelu`; float32, float16 or bfloat16.
        cast: `values` and keywords of `fp8sim.ops.encode_scaled.encode_scaled`, as for
            `fp8sim.ops.activations.gelu_encode`.

    Returns:
        Codes, and `numbers`, which carry the gradient.

    Raises:
        TypeError, ValueError: as for `gelu` and `fp8sim.ops.activations.gelu_encode`.
    """
    check_tensor_of("input", input, FLOATS)
    alpha, beta = rules.gelu(mult, constraint) if is_unit_scaled(recipe) else (1.0, 1.0)
    options: dict[str, Any] = {"approximate": approximate, "mult": mult, "alpha": alpha, "beta": beta}
    return activations.gelu_encode(input, fmt, **options, **cast)


def silu_glu_encode(
    input: torch.Tensor,
    gate: torch.Tensor | None,
    fmt: str | Format = "e4m3",
    *,
    mult: float = 1.0,
    recipe: str | Recipe = UNIT_SCALED,
    **cast: Any,
) -> Encoded:
    """`silu_glu` of this package, as codes of `fmt` in one pass over memory.

    Args:
        input, gate: as for `silu_glu`; without `gate`, input [..., 2 C] has it in the right half of every row.
        mult, recipe: as for `silu_glu`. cast: as for `gelu_encode`.

    Returns, Raises: as for `gelu_encode`.
    """
    check_tensor_of("input", input, FLOATS)
    if gate is not None:
        check_tensor_of("gate", gate, FLOATS)
        check_like("gate", gate, "input", input)
        check_same(input=input, gate=gate)
    factor = rules.silu_glu(mult) if is_unit_scaled(recipe) else 1.0
    return activations.silu_glu_encode(input, gate, fmt, mult=mult, factor=factor, **cast)


def rms_norm_encode(
    input: torch.Tensor,
    weight: torch.Tensor | None = None,
    fmt: str | Format = "e4m3",
    *,
    eps: float = 1e-5,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
    **cast: Any,
) -> Encoded:
    """`rms_norm` of this package over the last axis, as codes of `fmt` in one pass over memory.

    Args:
        input, weight, eps, recipe, batch_tokens: as for `rms_norm`. cast: as for `gelu_encode`.

    Returns, Raises: as for `gelu_encode`; `batch_tokens` < 1.
    """
    check_tensor_of("input", input, FLOATS)
    if weight is not None:
        check_tensor_of("weight", weight, FLOATS)
        check_same(dtype=False, input=input, weight=weight)
        if weight.shape != input.shape[-1:]:
            raise ValueError(f"weight has shape {list(weight.shape)}: expected {list(input.shape[-1:])}, input's last")
    unit_scaled = weight is not None and is_unit_scaled(recipe)
    factor = rules.norm_weight(count_tokens(batch_tokens, count_rows(input))) if unit_scaled else 1.0
    return rms_norm.rms_norm_encode(input, weight, fmt, eps=eps, gain_factor=factor, **cast)


def fused_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    in_place: bool = False,
    recipe: str | Recipe = UNIT_SCALED,
    **options: Any,
) -> torch.Tensor:
    """`cross_entropy` of this package for classes along the last axis: gradient and loss come from one kernel.

    Args:
        input: logits [..., V]. target: [...], classes. weight, label_smoothing, recipe: as for `cross_entropy`.
        in_place: whether the gradient takes the memory of the logits, which are lost.
        options: ignore_index, reduction, mult and z_loss, as for `cross_entropy`.

    Returns:
        [], or [...] for "none"; float32. It can be differentiated once.

    Raises:
        TypeError, ValueError, RuntimeError: as for `fp8sim.ops.cross_entropy.cross_entropy`; fewer than two classes
            under a unit-scaled recipe.
    """
    check_tensor_of("input", input, FLOATS)
    if input.ndim == 0:
        raise ValueError("input has no dimension: fused_cross_entropy takes logits [..., V]")
    check_tensor("target", target)
    if weight is not None:
        check_tensor_of("weight", weight, FLOATS)
    check_same(dtype=False, input=input, target=target, weight=weight)
    beta = rules.cross_entropy(input.shape[-1], label_smoothing) if is_unit_scaled(recipe) else None
    options |= {"label_smoothing": label_smoothing, "in_place": in_place, "beta": beta}
    return cross_entropy.cross_entropy(input, target, weight, **options)
