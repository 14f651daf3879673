"""A GEMM as its definition: quantize both operands, multiply, add, scale."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fp8sim.arguments import check_flag
from fp8sim.quantizers import Quantizer
from fp8sim.simulate import tensor_core
from fp8sim.torch_autocast import without_autocast


@dataclass(frozen=True)
class GemmEvent:
    """What one simulated GEMM was given, what it multiplied and what came out.

    Attributes:
        layer: the name that the caller gave the operation; empty if it gave none.
        gemm: "output", "grad_input" or "grad_weight".
        given: the operands [..., M, K] and [..., K, N] before quantization.
        used: the operands that entered the products.
        quantizers: what each operand was to be quantized with.
        scale: the factor on the sum.
        result: [..., M, N].
    """

    layer: str
    gemm: str
    given: tuple[torch.Tensor, torch.Tensor]
    used: tuple[torch.Tensor, torch.Tensor]
    quantizers: tuple[Quantizer | None, Quantizer | None]
    scale: float
    result: torch.Tensor


_observers: list[Callable[[GemmEvent], None]] = []


@contextlib.contextmanager
def observe(observer: Callable[[GemmEvent], None]) -> Iterator[None]:
    """Call `observer` with every GEMM simulated inside the `with` block, forward and backward."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


_deterministic = False


def set_deterministic(on: bool) -> None:
    """With `on`, refuse to add products by BLAS, whose order differs between machines and numbers of threads."""
    global _deterministic
    check_flag("on", on)
    _deterministic = on


def refuse_blas(accumulate: str) -> None:
    """ValueError for a GEMM that BLAS is about to add, after `set_deterministic(True)`."""
    if _deterministic:
        raise ValueError(
            f"accumulate={accumulate!r} adds by BLAS, which set_deterministic(True) refuses: use 'float32.sequential' "
            f"on backend 'simulate'"
        )


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    quantizers: tuple[Quantizer | None, Quantizer | None] = (None, None),
    scale: float = 1.0,
    accumulate: str = "native",
    dtype: torch.dtype | None = None,
    layer: str = "",
    name: str = "output",
) -> torch.Tensor:
    """scale * sum_k q_a(a)[m, k] * q_b(b)[k, n].

    Products and sums are float32 (float64 for float64 operands); the factor multiplies the finished sum, and the
    result is rounded once to `dtype`. BLAS is given a factor that is a power of two, for which it needs no pass: the
    same bits, as long as neither the sum nor an operand times the factor is subnormal or overflows.

    Args:
        a: [..., M, K]. b: [..., K, N]; leading dimensions broadcast.
        quantizers: of a and b; None leaves the operand as it is. Scale factors belong to blocks of a [M, K] and of
            b^T [N, K], so that 1-D blocks and rows run along K; a block of 2 x 3 of b spans 2 of N and 3 of K.
        accumulate: "native" and "float32" are BLAS; "float32.sequential" adds in the order of k; a plan adds as tensor
            cores do, operands without a quantizer being numbers of their dtype.
        dtype: of the result; None is that of `a`.
        layer, name: what `observe` calls this GEMM.

    Returns:
        [..., M, N].

    Raises:
        ValueError: an accumulation by BLAS after `set_deterministic(True)`; operands that the plan cannot multiply.
    """
    add = _ADDERS.get(accumulate, _by_plan)
    used, result = add(a, b, quantizers, accumulate, scale)
    dtype = dtype or a.dtype
    if result.dtype != dtype:
        result = result.to(dtype)
    for observer in _observers:
        observer(GemmEvent(layer, name, (a, b), used, quantizers, scale, result))
    return result


def gemm_backward(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    quantizers: tuple[Quantizer | None, Quantizer | None, Quantizer | None],
    scales: tuple[float, float],
    accumulate: tuple[str, str],
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    layer: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two GEMMs of the backward pass of a @ b: grad_input = grad @ b^T, and grad_weight = grad^T @ a.

    Args:
        grad: [..., M, N]. a: [..., M, K]. b: [..., K, N].
        quantizers: of grad in both GEMMs, of a and of b.
        scales, accumulate, dtypes: of grad_input, then of grad_weight, as for `gemm`.
        layer: what `observe` calls the layer.

    Returns:
        grad_input [..., M, K] and grad_weight [..., N, K], not summed over broadcast dimensions.

    Raises:
        ValueError: as `gemm`.
    """
    of_grad, of_a, of_b = quantizers
    pairs = {"grad_input": (grad, b.mT, of_b), "grad_weight": (grad.mT, a, of_a)}
    grad_input, grad_weight = (
        gemm(x, y, quantizers=(of_grad, of_y), scale=scale, accumulate=order, dtype=dtype, layer=layer, name=name)
        for (name, (x, y, of_y)), scale, order, dtype in zip(pairs.items(), scales, accumulate, dtypes, strict=True)
    )
    return grad_input, grad_weight


_Pair = tuple[torch.Tensor, torch.Tensor]
_Quantizers = tuple[Quantizer | None, Quantizer | None]


def _by_blas(
    a: torch.Tensor, b: torch.Tensor, quantizers: _Quantizers, accumulate: str, scale: float
) -> tuple[_Pair, torch.Tensor]:
    refuse_blas(accumulate)
    used = _used(a, b, quantizers)
    left, right = _widened(used)
    with without_autocast(left.device.type):  # which would round the sum before it is scaled
        if left.ndim == right.ndim == 2 and _is_power_of_two(scale):
            return used, torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)
        return used, _scaled(torch.matmul(left, right), scale)


def _in_sequence(
    a: torch.Tensor, b: torch.Tensor, quantizers: _Quantizers, accumulate: str, scale: float
) -> tuple[_Pair, torch.Tensor]:
    used = _used(a, b, quantizers)
    return used, _scaled(_sequential(*_widened(used)), scale)


def _by_plan(
    a: torch.Tensor, b: torch.Tensor, quantizers: _Quantizers, accumulate: str, scale: float
) -> tuple[_Pair, torch.Tensor]:
    """Codes and factors as the quantizers make them, added as the plan `accumulate` says."""
    left = a if quantizers[0] is None else quantizers[0].quantize(a)
    right = b if quantizers[1] is None else quantizers[1].quantize(b.mT)
    result: torch.Tensor = tensor_core.matmul(left, right, plan=accumulate)
    used_a = a if quantizers[0] is None else left.dequantize()
    used_b = b if quantizers[1] is None else right.dequantize().mT
    return (used_a, used_b), _scaled(result, scale)


_ADDERS = {"native": _by_blas, "float32": _by_blas, "float32.sequential": _in_sequence}


def _is_power_of_two(scale: float) -> bool:
    """Whether scale is 2^e with an e that float32 is far from the ends of, and not 0."""
    mantissa, exponent = math.frexp(scale)
    return mantissa == 0.5 and scale != 1.0 and abs(exponent) <= 64


def _scaled(total: torch.Tensor, scale: float) -> torch.Tensor:
    return total if scale == 1.0 else total.mul_(scale)


def _used(a: torch.Tensor, b: torch.Tensor, quantizers: _Quantizers) -> _Pair:
    left = a if quantizers[0] is None else _quantized(a, quantizers[0])
    return left, b if quantizers[1] is None else _quantized(b.mT, quantizers[1]).mT


def _widened(used: _Pair) -> _Pair:
    wide = torch.float64 if used[0].dtype == torch.float64 else torch.float32
    if used[0].dtype == used[1].dtype == wide:
        return used
    return used[0].to(wide), used[1].to(wide)


def _quantized(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """x [..., R, K] on the quantizer's grid; blocks of scale factors have their columns along K.

    Without scale factors a transposed view is quantized as it lies in memory, which saves a copy.
    """
    if quantizer.scale is None and not x.is_contiguous() and x.mT.is_contiguous():
        return quantizer(x.mT).mT
    return quantizer(x)


def _sequential(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum_k a[m, k] * b[k, n], each product rounded, then added, k ascending."""
    total = torch.zeros(1, dtype=a.dtype)
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., k, None, :]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return total.expand(*batch, a.shape[-2], b.shape[-1]).clone()
