"""Coefficients of residual connections, in both conventions, and how they follow from depth."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

from fp8sim.arguments import check_number


class ResidualScales(NamedTuple):
    """Coefficients of a residual connection; their squares sum to one."""

    branch: float
    skip: float


def residual(tau: float, convention: str = "ratio") -> ResidualScales:
    """Coefficients of the branch and of the skip. A larger tau favours the branch.

    Args:
        tau: what the convention says.
        convention: two papers write tau for two things. "ratio": of the branch's coefficient to the skip's;
            tau / sqrt(1 + tau^2) and 1 / sqrt(1 + tau^2) (u-muP, equation 24). "share": of the branch in the variance;
            sqrt(tau) and sqrt(1 - tau) (Blake et al. 2023, section 5.2; muS, equation 11).

    Raises:
        ValueError: an unknown convention; a tau that is negative, infinite or, as a share, above 1.
    """
    if convention not in ("ratio", "share"):
        raise ValueError(f"convention={convention!r}: use 'ratio' or 'share'")
    check_number("tau", tau)
    # Comparisons alone: math.isfinite of a variable cannot be compiled into a graph.
    if not (0 <= tau <= sys.float_info.max and (convention != "share" or tau <= 1)):
        allowed = "0 to 1" if convention == "share" else "a finite number, 0 or more"
        raise ValueError(f"tau={tau}: as a {convention} it is {allowed}")
    if convention == "share":
        return ResidualScales(math.sqrt(tau), math.sqrt(1 - tau))
    return ResidualScales(tau / math.hypot(1, tau), 1 / math.hypot(1, tau))


def residual_tau(index: int, branches: int, alpha: float = 1.0) -> float:
    """tau of branch `index` of `branches` equal ones, so that all branches together weigh alpha^2 against the input.

    alpha / sqrt(L + i * alpha^2) for i = 0 .. L - 1: the scheme of u-muP, appendix G, for branches of a single kind.
    Every branch ends with the same share of the output's variance; with alpha = 1 the input keeps one half.

    Raises:
        ValueError: an index outside 0 .. branches - 1; an alpha that is not positive and finite.
    """
    _check_index(index, branches)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be positive and finite")
    return _tau(alpha, branches, index * alpha**2)


DEPTHS = ("blocks", "branches")
"""What `transformer_residual_tau` divides by."""


def transformer_residual_tau(
    index: int,
    branches: int,
    *,
    alpha_res: float = 1.0,
    alpha_res_attn_ratio: float = 1.0,
    depth: str = "blocks",
    post_norm: bool = False,
) -> float:
    """tau, as a ratio, of branch `index` of a transformer: even ones are attention, odd ones MLPs.

    With alpha_f = alpha_res * sqrt(2 / (1 + r^2)) for MLPs and alpha_a = r * alpha_f for attention,

        tau_i = alpha_i / sqrt(depth + sum of alpha_k^2 over k < i)

    so that the embedding, all attention and all MLPs share the final variance as depth : n_a alpha_a^2 : n_f alpha_f^2,
    n being how many of each there are (u-muP, appendix G.2.2).

    Args:
        index: 0 .. branches - 1.
        branches: two per block; an even number.
        alpha_res, alpha_res_attn_ratio: of all branches against the embedding, and r, of attention against MLPs.
        depth: "blocks", as in u-muP: branches / 2, so that with every alpha 1 the embedding keeps a third.
            "branches", the default of the code that trained its largest models: it keeps a half.
        post_norm: norms at the end of each addition make the stream's variance one again, so earlier branches do not
            count: tau_i = alpha_i / sqrt(depth), in that same code.

    Raises:
        ValueError: an index outside, an odd number of branches, an unknown depth, a ratio or alpha that is not
            positive and finite.
    """
    _check_index(index, branches)
    if branches % 2:
        raise ValueError(f"branches={branches}: a transformer has two per block, attention and MLP")
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth!r}: use one of {', '.join(DEPTHS)}")
    if not (0 < alpha_res < math.inf and 0 < alpha_res_attn_ratio < math.inf):
        raise ValueError(
            f"alpha_res={alpha_res}, alpha_res_attn_ratio={alpha_res_attn_ratio}: both are positive and finite"
        )
    alpha_mlp = alpha_res * math.sqrt(2 / (1 + alpha_res_attn_ratio**2))
    alpha_attention = alpha_res_attn_ratio * alpha_mlp
    before = 0.0 if post_norm else (index + 1) // 2 * alpha_attention**2 + index // 2 * alpha_mlp**2
    alpha = alpha_mlp if index % 2 else alpha_attention
    return _tau(alpha, branches // 2 if depth == "blocks" else branches, before)


def _tau(alpha: float, depth: int, before: float) -> float:
    """alpha / sqrt(depth + before)."""
    return alpha / math.sqrt(depth + before)


def _check_index(index: int, branches: int) -> None:
    if not 0 <= index < branches:
        raise ValueError(f"index={index}: the branches are 0 to {branches - 1}")
