"""`matmul` and `linear` with all three GEMMs by recipe: registered, differentiable, on any backend."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from fp8sim import backends, quantizers, recipes
from fp8sim.arguments import check_tensor, check_tensor_of, check_text
from fp8sim.derivatives import differentiable_once
from fp8sim.ops.library import constant_result, register
from fp8sim.quantizers import Quantizer
from fp8sim.recipes import GemmStrings, Recipe
from fp8sim.simulate import matmul as simulate
from fp8sim.torch_autocast import autocast


class Scales(NamedTuple):
    """The factor on the result of each GEMM (its direction is that of a `scale_inv`: after the sum)."""

    output: float = 1.0
    grad_input: float = 1.0
    grad_weight: float = 1.0


@functools.cache
def _quantizer(text: str) -> Quantizer | None:
    return quantizers.parse(text) if text else None


def _gemm_impl(
    a: torch.Tensor,
    b: torch.Tensor,
    first: str,
    second: str,
    accumulate: str,
    dtype: torch.dtype,
    scale: float,
    layer: str,
    name: str,
    backend: str,
) -> torch.Tensor:
    gemm = backends.row("gemm", backend).load()
    pair = (_quantizer(first), _quantizer(second))
    if backend != "simulate" and pair == (None, None):  # torch's own matmul
        simulate.refuse_blas(accumulate)
    result: torch.Tensor = gemm(
        a, b, quantizers=pair, scale=scale, accumulate=accumulate, dtype=dtype, layer=layer, name=name
    )
    return result


def _gemm_fake(
    a: torch.Tensor, b: torch.Tensor, first: str, second: str, accumulate: str, dtype: torch.dtype, *rest: Any
) -> torch.Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return torch.empty((*batch, a.shape[-2], b.shape[-1]), dtype=dtype, device=a.device)


_gemm_op = register(
    "gemm(Tensor a, Tensor b, str first, str second, str accumulate, ScalarType dtype, Scalar scale, str layer, "
    "str name, str backend) -> Tensor",
    _gemm_impl,
    _gemm_fake,
)
# A Scalar, unlike a float, may be unknown while compiling: factors that depend on sizes do not fix these.


def _gemm_backward_impl(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    casts: list[str],
    accumulate: list[str],
    dtype_a: torch.dtype,
    dtype_b: torch.dtype,
    scale_a: float,
    scale_b: float,
    layer: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second, third = map(_quantizer, casts)
    result: tuple[torch.Tensor, torch.Tensor] = backends.row("gemm_backward", backend).load()(
        grad,
        a,
        b,
        quantizers=(first, second, third),
        scales=(scale_a, scale_b),
        accumulate=tuple(accumulate),
        dtypes=(dtype_a, dtype_b),
        layer=layer,
    )
    return result


def _gemm_backward_fake(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    casts: list[str],
    accumulate: list[str],
    dtype_a: torch.dtype,
    dtype_b: torch.dtype,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = [torch.broadcast_shapes(grad.shape[:-2], x.shape[:-2]) for x in (b, a)]
    return (
        torch.empty((*shapes[0], grad.shape[-2], b.shape[-2]), dtype=dtype_a, device=grad.device),
        torch.empty((*shapes[1], grad.shape[-1], a.shape[-1]), dtype=dtype_b, device=grad.device),
    )


_gemm_backward_op = register(
    "gemm_backward(Tensor grad, Tensor a, Tensor b, str[] casts, str[] accumulate, ScalarType dtype_a, "
    "ScalarType dtype_b, Scalar scale_a, Scalar scale_b, str layer, str backend) -> (Tensor, Tensor)",
    _gemm_backward_impl,
    _gemm_backward_fake,
)


def _gemm(
    name: str, a: torch.Tensor, b: torch.Tensor, gemm: GemmStrings, scale: float, layer: str, backend: str
) -> torch.Tensor:
    """One GEMM by recipe: a [..., M, K], b [..., K, N] -> [..., M, N]."""
    dtype = getattr(torch, gemm.dtype) if gemm.dtype else a.dtype
    if _is_of_torch(gemm, backend):
        return simulate.gemm(a, b, scale=scale, accumulate=gemm.accumulate, dtype=dtype, layer=layer, name=name)
    result: torch.Tensor = _gemm_op(a, b, gemm.first, gemm.second, gemm.accumulate, dtype, scale, layer, name, backend)
    return result


def _is_of_torch(gemm: GemmStrings, backend: str) -> bool:
    """Whether torch's own operations compute this GEMM, so that it needs no registered one: at small sizes, half of
    the time. Compiled code needs it nevertheless, for its observers."""
    if gemm.first or gemm.second or backend != "simulate" or gemm.accumulate not in ("native", "float32"):
        return False
    return not torch.compiler.is_compiling()


_Gradients = tuple[torch.Tensor | None, torch.Tensor | None]


def _gradients(ctx: Any, grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> _Gradients:
    """Of a [..., M, K] and of b^T [..., N, K] from that of a @ b [..., M, N]; None where it is not needed."""
    gemms, scales, rest = ctx.gemms, ctx.scales, (ctx.layer, ctx.backend)
    wanted = ctx.needs_input_grad[:2]
    if all(wanted) and _casts_once(gemms, ctx.backend):
        dtypes = [getattr(torch, gemm.dtype) if gemm.dtype else grad.dtype for gemm in gemms[1:]]
        casts = [gemms[1].first, gemms[2].second, gemms[1].second]
        accumulate = [gemm.accumulate for gemm in gemms[1:]]
        pair: _Gradients = _gemm_backward_op(grad, a, b, casts, accumulate, *dtypes, *scales[1:], *rest)
        return pair
    return (
        _gemm("grad_input", grad, b.mT, gemms[1], scales[1], *rest) if wanted[0] else None,
        _gemm("grad_weight", grad.mT, a, gemms[2], scales[2], *rest) if wanted[1] else None,
    )


def _casts_once(gemms: tuple[GemmStrings, ...], backend: str) -> bool:
    """Whether a kernel casts the gradient once for both GEMMs. The simulator casts for each, as its observers see."""
    same = gemms[1].first == gemms[2].first
    return backend != "simulate" and same and _transposes(gemms[1].first)


@constant_result
def _transposes(quantizer: str) -> bool:
    """Whether codes of a transpose are the transposed codes."""
    chosen = _quantizer(quantizer)
    if chosen is None or chosen.scale is None:
        return chosen is not None
    cut = chosen.scale.granularity
    return cut.rows == cut.columns


class _Matmul(torch.autograd.Function):
    """a [..., M, K] @ b [..., K, N]; b is the weight of the three GEMMs, transposed."""

    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        gemms: tuple[GemmStrings, ...],
        scales: Scales,
        layer: str,
        backend: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.gemms, ctx.scales, ctx.layer, ctx.backend = gemms, scales, layer, backend
        return _gemm("output", a, b, gemms[0], scales[0], layer, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grad_a, grad_b = _gradients(ctx, grad, a, b)
        if grad_a is not None:
            grad_a = grad_a.sum_to_size(a.shape).to(a.dtype)
        if grad_b is not None:
            grad_b = grad_b.mT.sum_to_size(b.shape).to(b.dtype)
        return grad_a, grad_b, None, None, None, None


class _Linear(torch.autograd.Function):
    """input [..., I] @ weight [O, I]^T: the GEMMs of `_Matmul` on all tokens, with no views for autograd to follow."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        gemms: tuple[GemmStrings, ...],
        scales: Scales,
        layer: str,
        backend: str,
    ) -> torch.Tensor:
        tokens = input.reshape(-1, input.shape[-1])
        ctx.save_for_backward(tokens, weight)
        ctx.shape, ctx.gemms, ctx.scales, ctx.layer, ctx.backend = input.shape, gemms, scales, layer, backend
        output = _gemm("output", tokens, weight.mT, gemms[0], scales[0], layer, backend)
        # Not .view(): autograd forbids to change a Function's views in place.
        result: torch.Tensor = torch.ops.aten._unsafe_view.default(output, (*input.shape[:-1], weight.shape[0]))
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        grad_input, grad_weight = _gradients(ctx, grad.reshape(-1, weight.shape[0]), tokens, weight.mT)
        if grad_input is not None:
            grad_input = grad_input.view(ctx.shape).to(tokens.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_input, grad_weight, None, None, None, None


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    recipe: str | Recipe = "fp32",
    scales: Scales | None = None,
    name: str = "",
) -> torch.Tensor:
    """a @ b with operands quantized and products added as `recipe` says, in forward and backward.

    In the recipe's terms `a` is the input, `b` the weight transposed. Under `torch.autocast` both have its dtype, as
    operands of torch's own products do, and then the recipe's casts.

    Args:
        a: [..., M, K], float32, float64, float16 or bfloat16. b: [..., K, N], of the same dtype on the same device;
            leading dimensions broadcast. A backend adds in its own precision, whatever the dtype is: float64 operands
            are cast and their result is float64, and only the simulator and products without casts add in float64.
        recipe: a recipe or its name.
        scales: the factor on each of the three results; None: 1.
        name: what observers and messages call this operation.

    Returns:
        [..., M, N], in the dtype of `a` unless the recipe names one.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown recipe.
        TypeError: no torch tensors, or of another dtype.
    """
    check_shapes(a, b)
    a, b = autocast(a, b)
    _check_alike(a=a, b=b)
    result: torch.Tensor = _Matmul.apply(a, b, *_resolved(a, recipe, scales, name))  # type: ignore[no-untyped-call]
    return result


def _resolved(a: torch.Tensor, recipe: str | Recipe, scales: Scales | None, name: str) -> tuple[Any, ...]:
    """What a Function takes after its tensors. Factors are made anew: a compiler of dynamic shapes takes the numbers of
    a global for variables, for which a Function's gradients fail."""
    check_text("name", name, "what observers call this operation")
    scales = Scales() if scales is None else scales
    recipe = recipes.parse(recipe)
    gemms = (recipe.output.as_strings, recipe.grad_input.as_strings, recipe.grad_weight.as_strings)
    return gemms, scales, name, backends.select("gemm", a.device.type)


def check_shapes(a: torch.Tensor, b: torch.Tensor) -> None:
    """TypeError or ValueError unless a [..., M, K] and b [..., K, N] are tensors that fit."""
    check_tensor("a", a)
    check_tensor("b", b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul takes a [..., M, K] and b [..., K, N], got a {list(a.shape)} and b {list(b.shape)}")
    pairs = zip(reversed(a.shape[:-2]), reversed(b.shape[:-2]), strict=False)
    if any(x != y and x != 1 and y != 1 for x, y in pairs):
        raise ValueError(f"leading dimensions of a {list(a.shape)} and b {list(b.shape)} do not broadcast: reshape one")


def _check_alike(**operands: torch.Tensor) -> None:
    """TypeError or ValueError unless two tensors have one of four dtypes, and share it and the device."""
    for argument, x in operands.items():
        check_tensor_of(argument, x)
    (first, a), (second, b) = operands.items()
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(
            f"{first} and {second} must share a dtype and a device, got {a.dtype} on {a.device} and {b.dtype} on "
            f"{b.device}: convert one with .to()"
        )


def check_weights(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """TypeError or ValueError unless input [..., I], weight [O, I] and bias [O] are tensors that fit."""
    check_tensor("input", input)
    check_tensor("weight", weight)
    if weight.ndim != 2 or input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear takes input [..., I] and weight [O, I], got input {list(input.shape)} and weight "
            f"{list(weight.shape)}"
        )
    if bias is None:
        return
    check_tensor_of("bias", bias)
    if bias.shape != weight.shape[:1] or bias.device != weight.device:
        raise ValueError(
            f"bias has shape {list(bias.shape)} on {bias.device}: expected [O] = [{weight.shape[0]}], the rows of "
            f"weight, on {weight.device}"
        )


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | Recipe = "fp32",
    scales: Scales | None = None,
    name: str = "",
) -> torch.Tensor:
    """input @ weight^T + bias, as `torch.nn.functional.linear`, with the three GEMMs by recipe; autocast as `matmul`.

    Args:
        input: [..., I]. weight: [O, I]. bias: [O], added in the dtype of the product, or None.
        recipe, scales, name: as for `matmul`.

    Returns:
        [..., O], in the dtype of `input` unless the recipe names one.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown recipe.
        TypeError: no torch tensors, or of another dtype.
    """
    check_weights(input, weight, bias)
    input, weight = autocast(input, weight)
    _check_alike(input=input, weight=weight)
    output: torch.Tensor = _Linear.apply(input, weight, *_resolved(input, recipe, scales, name))  # type: ignore[no-untyped-call]
    return output if bias is None else output + bias.to(output.dtype)
