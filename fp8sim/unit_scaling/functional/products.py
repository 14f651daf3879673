"""Functions made of GEMMs by recipe: matmul, linear, linear_readout, conv1d.

Under `torch.autocast` their operands have its dtype, as those of torch's own products do, and then the recipe's casts.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fp8sim.arguments import check_integer, check_same, check_tensor_of
from fp8sim.ops import matmul as ops
from fp8sim.ops.matmul import check_weights
from fp8sim.recipes import Recipe
from fp8sim.simulate.scale import scale_bwd
from fp8sim.torch_autocast import is_autocasting
from fp8sim.unit_scaling import rules
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, count_rows, count_tokens, is_unit_scaled


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    name: str = "",
) -> torch.Tensor:
    """a @ b by recipe, with the factors of `rules.matmul` if the recipe is unit-scaled.

    Args:
        a: [..., M, K]. b: [..., K, N].
        recipe: quantizers, accumulation and parametrization.
        constraint: ties the three factors.
        name: what observers and messages call this operation.

    Returns:
        [..., M, N].

    Raises:
        ValueError: shapes that do not fit, an unknown recipe or constraint.
    """
    scales = ops.Scales()
    if is_unit_scaled(recipe):
        ops.check_shapes(a, b)
        m, k, n = (max(1, size) for size in (a.shape[-2], a.shape[-1], b.shape[-1]))
        scales = ops.Scales(*rules.matmul(m, k, n, constraint))
    return ops.matmul(a, b, recipe=recipe, scales=scales, name=name)


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    scale_power: tuple[float, float, float] = (0.5, 0.5, 0.5),
    batch_tokens: int | None = None,
    name: str = "",
) -> torch.Tensor:
    """input @ weight^T + bias by recipe, with the factors of `rules.linear` if the recipe is unit-scaled.

    The bias is added unscaled; its gradient has the weight's factor.

    Args:
        input: [..., I]. weight: [O, I]. bias: [O] or None.
        recipe: quantizers, accumulation and parametrization.
        constraint: ties the factors of output and grad_input.
        scale_power: the exponents of I, O and the tokens in the three factors, negated.
        batch_tokens: rows of the input over the whole batch, where this call sees a part of it; None: this input's.
            The gradients of the parts are to be summed, not averaged.
        name: what observers and messages call this operation.

    Returns:
        [..., O].

    Raises:
        ValueError: shapes that do not fit, an unknown recipe or constraint, `batch_tokens` < 1.
    """
    check_weights(input, weight, bias)
    factors = _no_factors()
    if is_unit_scaled(recipe):
        tokens = count_tokens(batch_tokens, count_rows(input))
        factors = rules.linear(weight.shape[-1], weight.shape[0], tokens, constraint, scale_power)
    return _linear(input, weight, bias, factors, recipe, name)


def linear_readout(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    batch_tokens: int | None = None,
    name: str = "",
) -> torch.Tensor:
    """`linear` with the factors of `rules.readout`: the last layer of a model, from width I to O classes.

    Arguments, result and errors as for `linear`.
    """
    check_weights(input, weight, bias)
    factors = _no_factors()
    if is_unit_scaled(recipe):
        factors = rules.readout(weight.shape[-1], weight.shape[0], count_tokens(batch_tokens, count_rows(input)))
    return _linear(input, weight, bias, factors, recipe, name)


def _linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: rules.LinearScales,
    recipe: str | Recipe,
    name: str,
) -> torch.Tensor:
    return ops.linear(input, weight, _bias(bias, factors), recipe=recipe, scales=ops.Scales(*factors), name=name)


def _no_factors() -> rules.LinearScales:
    """Ones. Made anew: compilers of dynamic shapes take a global's floats for variables, and gradients of such fail."""
    return rules.LinearScales(1.0, 1.0, 1.0)


def _bias(bias: torch.Tensor | None, factors: rules.LinearScales) -> torch.Tensor | None:
    """The bias, whose gradient gets the weight's factor."""
    if bias is None or factors.grad_weight == 1.0:
        return bias
    return scale_bwd(bias, factors.grad_weight)


def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    recipe: str | Recipe = UNIT_SCALED,
    constraint: str | None = "to_output_scale",
    batch_tokens: int | None = None,
    name: str = "",
) -> torch.Tensor:
    """torch's conv1d as three GEMMs by recipe, with the factors of `rules.conv1d` if the recipe is unit-scaled.

    The operands of the GEMMs are the windows of the input [g, B * P, I / g * K] and the weight. The gradient of the
    input adds up those of its windows in the dtype of the GEMM's result. The bias is as in `linear`.

    Args:
        input: [B, I, L] or [I, L]. weight: [O, I / g, K]. bias: [O] or None.
        stride, dilation: 1 or more.
        padding: zeros on both sides, or "valid" (none) or "same" (P = L, for stride 1).
        groups: g, of the channels.
        recipe: quantizers, accumulation and parametrization.
        constraint: ties the factors of output and grad_input.
        batch_tokens: positions of the output over the whole batch, where this call sees a part of it; None: B * P.
        name: what observers and messages call this operation.

    Returns:
        [B, O, P] or [O, P], with P = (L + padding on both sides - dilation * (K - 1) - 1) // stride + 1.

    Raises:
        ValueError: shapes or options that do not fit, an unknown recipe or constraint, `batch_tokens` < 1.
    """
    _check_convolution(input, weight, bias, groups)
    if input.ndim == 2:
        batch = input[None]
        whole = conv1d(
            batch,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            recipe=recipe,
            constraint=constraint,
            batch_tokens=batch_tokens,
            name=name,
        )
        return whole[0]
    step, reach = _single("stride", stride), _single("dilation", dilation)
    windows = _windows(input, weight.shape[2], step, padding, reach)
    sequences, _, positions, _ = windows.shape
    outputs, fan_in = weight.shape[0], weight.shape[1] * weight.shape[2]

    factors = _no_factors()
    if is_unit_scaled(recipe):
        tokens = count_tokens(batch_tokens, sequences * positions)
        factors = rules.conv1d(
            input.shape[1], outputs, weight.shape[2], tokens, stride=step, groups=groups, constraint=constraint
        )
    grouped = windows.unflatten(1, (groups, weight.shape[1])).permute(1, 0, 3, 2, 4)
    columns = grouped.reshape(groups, sequences * positions, fan_in)
    kernels = weight.reshape(groups, outputs // groups, fan_in)
    product = ops.matmul(columns, kernels.mT, recipe=recipe, scales=ops.Scales(*factors), name=name)
    parts = product.reshape(groups, sequences, positions, outputs // groups).permute(1, 0, 3, 2)
    output = parts.reshape(sequences, outputs, positions)
    bias = _bias(bias, factors)
    return output if bias is None else output + bias.to(output.dtype)[:, None]


def _windows(
    input: torch.Tensor, kernel_size: int, stride: int, padding: int | tuple[int] | str, dilation: int
) -> torch.Tensor:
    """[B, I, L] -> [B, I, P, K]: the K elements that each position of the output sees."""
    reach = dilation * (kernel_size - 1)
    if padding == "same":
        if stride != 1:
            raise ValueError(f"padding='same' is for stride 1, got stride={stride}: give the padding as a number")
        sides = (reach // 2, reach - reach // 2)
    elif padding == "valid":
        sides = (0, 0)
    elif isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: use a number, 'valid' or 'same'")
    else:
        sides = (_single("padding", padding, 0),) * 2
    padded = F.pad(input, sides)
    if padded.shape[2] <= reach:
        raise ValueError(
            f"a kernel of {kernel_size} with dilation={dilation} spans {reach + 1} elements, got {padded.shape[2]} "
            f"with padding={padding!r}: pad the input, or use a smaller kernel"
        )
    return padded.unfold(2, reach + 1, stride)[..., ::dilation]


def _single(argument: str, value: int | tuple[int], least: int = 1) -> int:
    """The number in torch's `1` or `(1,)`."""
    number: int = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
    check_integer(argument, number)
    if number < least:
        raise ValueError(f"{argument}={value}: a number of {least} or more")
    return number


def _check_convolution(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> None:
    check_tensor_of("input", input)
    check_tensor_of("weight", weight)
    check_same(dtype=not is_autocasting(input.device.type), input=input, weight=weight)
    check_integer("groups", groups)
    fits = input.ndim in (2, 3) and weight.ndim == 3 and groups >= 1
    if not fits or input.shape[-2] != weight.shape[1] * groups or weight.shape[0] % groups or 0 in weight.shape:
        raise ValueError(
            f"conv1d takes input [B, I, L] or [I, L] and weight [O, I / groups, K], O and I divisible by groups, got "
            f"input {list(input.shape)}, weight {list(weight.shape)} and groups={groups}"
        )
    if bias is None:
        return
    check_tensor_of("bias", bias)
    check_same(dtype=False, input=input, bias=bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}: expected [O] = [{weight.shape[0]}], the rows of weight")
