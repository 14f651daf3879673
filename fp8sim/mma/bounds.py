"""How a GEMM adds products, and how far its result may lie from the exact sum."""

from __future__ import annotations

import torch


def error_bound(a: torch.Tensor, b: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """Largest possible error of `scale * a @ b` added in float32 in any order, per element.

    Any order of n = K - 1 float32 additions errs by at most gamma_n * sum |a_k * b_k|, gamma_n = n*u / (1 - n*u) with
    u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, equation 4.4), the product and the scale
    add one rounding each. For K up to 2^21 the whole stays below K * 2^-22 * sum |a_k * b_k|, which also leaves room
    for adders that truncate instead of rounding (2u each).

    Args:
        a: [..., M, K], the operands as they enter the products.
        b: [..., K, N].
        scale: the factor on the sum.

    Returns:
        [..., M, N], float64.
    """
    k = a.shape[-1]
    return torch.matmul(a.double().abs(), b.double().abs()) * (k * 2.0**-22 * abs(scale))
