"""Parametrizations: what width and depth do to a weight's multiplier, initialisation and learning rate.

A parametrization gives each weight three factors: the effective weight is A * w, w starts as N(0, B^2), and an update
of w is C times the optimizer's (Yang & Hu 2021, "Tensor Programs IV", abc-parametrization). `standard`, `mup`, `u_mup`
and `munit` are the tables, `PARAMETRIZATIONS` names them, `rescaled` is the symmetry that relates them.

A weight that lies on a residual branch also has a depth. `branch_multiplier` is the forward factor of such a branch
(which u-muP realises through `rules.residual_tau`); the tables hold its effect on the learning rate alone.

Clipping the norm of the gradient: gradients of unit scale have a global norm of about the square root of the number of
parameters P, so a threshold of 1 clips every step. Adam bears that, but a clip that is always active no longer singles
out the gradients that it is meant to catch; a threshold of c * sqrt(P) does. (A deduction, without a source.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from fp8sim.unit_scaling.constraints import check_counts

KINDS = ("embedding", "input", "hidden", "readout", "norm", "bias")
"""What a weight can be.

embedding: a table [V, W] of which rows are looked up. input: a linear layer whose input has a fixed width. hidden: both
widths grow. readout: only the input's width grows; its output is the model's. norm: a gain, a vector. bias: a vector.
"""

OPTIMIZERS = ("adam", "sgd")
"""adam: every optimizer whose update does not depend on the gradient's scale (Adam, AdamW, Adam-atan2, Lion)."""

DEPTH_CONVENTIONS: Mapping[str, int] = MappingProxyType({"blocks": 1, "branches": 2})
"""Depth per block: one, or the number of its residual branches (attention and MLP)."""

DECAYS = ("independent", "coupled", "mup")


@dataclass(frozen=True)
class Weight:
    """What a parametrization needs to know of a weight.

    Attributes:
        kind: one of `KINDS`.
        fan_in: inputs that an output sums over: I of a linear layer, I/groups * K of a convolution, V of an embedding
            (its input is one-hot); the length of a vector.
        fan_out: O of a linear layer, the width W of an embedding, the length of a vector.
        depth: of the stack of residual blocks whose branch the weight is on (see `depth_of`); None if on none.
        base_fan_in, base_fan_out, base_depth: the same of the model whose learning rate is transferred (mup and munit).
            With 1, the default, the factors are those without a base shape.

    Raises:
        ValueError: an unknown kind, or a size below 1.
    """

    kind: str
    fan_in: int
    fan_out: int
    depth: int | None = None
    base_fan_in: int = 1
    base_fan_out: int = 1
    base_depth: int = 1

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        sizes = {name: getattr(self, name) for name in ("fan_in", "fan_out", "depth")}
        sizes |= {f"base_{name}": getattr(self, f"base_{name}") for name in sizes}
        check_counts(**{name: size for name, size in sizes.items() if size is not None})

    @property
    def in_ratio(self) -> float:
        """fan_in over that of the base."""
        return self.fan_in / self.base_fan_in

    @property
    def out_ratio(self) -> float:
        """fan_out over that of the base."""
        return self.fan_out / self.base_fan_out

    @property
    def has_base(self) -> bool:
        """Whether any base size is given."""
        return (self.base_fan_in, self.base_fan_out, self.base_depth) != (1, 1, 1)


def weight_of_shape(kind: str, shape: Sequence[int]) -> Weight:
    """The `Weight` of a tensor [O, I], [O, I/groups, K, ...], [V, W] (embedding), [N] or [], without depth and base."""
    if len(shape) < 2:
        length = math.prod(shape)
        return Weight(kind, length, length)
    rows, row = shape[0], math.prod(shape[1:])
    return Weight(kind, rows, row) if kind == "embedding" else Weight(kind, row, rows)


class Abc(NamedTuple):
    """The three factors of a weight.

    Attributes:
        multiplier: A, on the weight or on the output of its layer, in forward.
        std: B, standard deviation of the initial weight. 0 for gains and biases, which start at one and at zero.
        learning_rate: C, on the learning rate.
    """

    multiplier: float
    std: float
    learning_rate: float


class Rule(Protocol):
    """A parametrization; its options are set with `functools.partial`."""

    def __call__(self, weight: Weight, optimizer: str = "adam") -> Abc:
        """The factors of `weight` under an optimizer of that family (one of `OPTIMIZERS`)."""


def standard(weight: Weight, optimizer: str = "adam") -> Abc:
    """A = 1, B = fan_in^-1/2 (embedding: 1), C = 1 for every weight.

    torch's own linear layers start uniform in +-fan_in^-1/2, whose standard deviation is a factor 3^-1/2 smaller.

    Raises:
        ValueError: an unknown optimizer, or a weight with a base.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    _without_base("standard", weight)
    if weight.kind in ("norm", "bias"):
        return Abc(1.0, 0.0, 1.0)
    return Abc(1.0, 1.0 if weight.kind == "embedding" else weight.fan_in**-0.5, 1.0)


def mup(
    weight: Weight,
    optimizer: str = "adam",
    *,
    init_std: float = 1.0,
    alpha_embedding: float = 1.0,
    alpha_output: float = 1.0,
    embedding_rate: float = 1.0,
) -> Abc:
    """muP (Yang et al. 2022, "Tensor Programs V"; as in Blake et al. 2024, "u-muP", tables 1 and 2).

    With n = fan_in / base_fan_in, m = fan_out / base_fan_out and d = (base_depth / depth)^1/2, or 1 outside branches:

    | kind      | A               | B               | C, Adam            | C, SGD |
    |-----------|-----------------|-----------------|--------------------|--------|
    | embedding | alpha_embedding | sigma           | embedding_rate * d | m      |
    | input     | 1               | sigma * n^-1/2  | d                  | m      |
    | hidden    | 1               | sigma * n^-1/2  | d / n              | m / n  |
    | readout   | alpha_output/n  | sigma           | d                  | n      |
    | norm,bias | 1               | 0               | d                  | m      |

    SGD's rates do not change with depth; `embedding_rate` counts under either. The column of SGD is Yang et
    al.'s, with m / n for hidden weights that are not square (the rule of the mup package's MuSGD).

    Args:
        init_std: sigma, the initial standard deviation at the base width.
        alpha_embedding, alpha_output: multipliers that are swept.
        embedding_rate: learning rate of the embedding over that of the other weights.

    Raises:
        ValueError: an unknown optimizer.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    n, m = weight.in_ratio, weight.out_ratio
    adam = {"hidden": 1 / n, "embedding": embedding_rate}.get(weight.kind, 1.0) * _depth_factor(weight)
    sgd = {"hidden": m / n, "embedding": embedding_rate * m, "readout": n}.get(weight.kind, m)
    multiplier = {"embedding": alpha_embedding, "readout": alpha_output / n}.get(weight.kind, 1.0)
    width_std = init_std * n**-0.5
    std = {"embedding": init_std, "readout": init_std, "norm": 0.0, "bias": 0.0}.get(weight.kind, width_std)
    return Abc(multiplier, std, adam if optimizer == "adam" else sgd)


def u_mup(
    weight: Weight,
    optimizer: str = "adam",
    *,
    embedding_width_rule: bool = True,
    readout_constraint: str | None = None,
) -> Abc:
    """u-muP (Blake et al. 2024, table 2), for a graph with the gradient factors of `fp8sim.unit_scaling.rules`.

    With d = depth^-1/2, or 1 outside residual branches:

    | kind      | A           | B | C                          | SGD, readout tied |
    |-----------|-------------|---|----------------------------|-------------------|
    | embedding | 1           | 1 | fan_out^-1/2 * d           | C * fan_out       |
    | input     | fan_in^-1/2 | 1 | d                          | C * fan_out       |
    | hidden    | fan_in^-1/2 | 1 | fan_in^-1/2 * d            | C * fan_in        |
    | readout   | fan_in^-1   | 1 | d                          | C                 |
    | norm,bias | 1           | 0 | d                          | C * fan_out       |

    The gradient factors leave every gradient at unit scale, so that SGD takes the rates of Adam. They no longer do so
    if the gradient that leaves the readout is tied to its output's factor 1/fan_in: then all gradients below the
    readout are smaller, and SGD needs rates larger by the width (the last column; it follows from `rescaled`).

    Args:
        embedding_width_rule: the 1/sqrt(width) of the embedding. It is empirical: its authors found it better at every
            width that they tried, and unnatural in the limit, where embeddings then stand still. False: C = d.
        readout_constraint: of the model's readout: None or "to_output_scale". Only SGD's rates depend on it.

    Raises:
        ValueError: an unknown optimizer or constraint, or a weight with a base, of which u-muP knows none.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    _one_of("readout_constraint", readout_constraint, (None, "to_output_scale"))
    _without_base("u_mup", weight)
    rates = {"hidden": weight.fan_in**-0.5}
    if embedding_width_rule:
        rates["embedding"] = weight.fan_out**-0.5
    rate = rates.get(weight.kind, 1.0) * _depth_factor(weight)
    if optimizer == "sgd" and readout_constraint is not None and weight.kind != "readout":
        rate *= weight.fan_in if weight.kind == "hidden" else weight.fan_out
    return Abc(_unit_multiplier(weight), 0.0 if weight.kind in ("norm", "bias") else 1.0, rate)


def munit(weight: Weight, optimizer: str = "adam") -> Abc:
    """mu-nit scaling (Narayan et al. 2025, table 2): unit-variance weights in an ordinary, differentiable graph.

    With n = fan_in / base_fan_in and m = fan_out / base_fan_out:

    | kind      | A           | B | C, Adam | C, SGD |
    |-----------|-------------|---|---------|--------|
    | embedding | 1           | 1 | 1       | m      |
    | input     | fan_in^-1/2 | 1 | 1       | m      |
    | hidden    | fan_in^-1/2 | 1 | n^-1/2  | m      |
    | readout   | fan_in^-1   | 1 | 1       | n      |
    | norm,bias | 1           | 0 | 1       | m      |

    Depth changes no rate. The paper has no row "input" (ours is u-muP's) and no SGD: that column is muP's with
    theta = n^-1/2 on hidden weights (`rescaled`). Its weight decay is fully decoupled, unchanged by width and rate.

    Raises:
        ValueError: an unknown optimizer.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    adam = weight.in_ratio**-0.5 if weight.kind == "hidden" else 1.0
    sgd = weight.in_ratio if weight.kind == "readout" else weight.out_ratio
    std = 0.0 if weight.kind in ("norm", "bias") else 1.0
    return Abc(_unit_multiplier(weight), std, adam if optimizer == "adam" else sgd)


PARAMETRIZATIONS: Mapping[str, Rule] = MappingProxyType(
    {"standard": standard, "mup": mup, "u_mup": u_mup, "unit_scaled": u_mup, "munit": munit}
)
"""The tables by the names that recipes use; `unit_scaled` has the factors of u-muP."""


def rescaled(factors: Abc, theta: float, optimizer: str = "adam") -> Abc:
    """The abc-symmetry: (A theta, B / theta, C / theta) trains like (A, B, C), with C / theta^2 under SGD.

    The gradient is theta times what it was. Adam's updates stay equal if its eps is multiplied by theta too (or is 0).
    Weight decay that is independent of the rate is unaffected. (Yang & Hu 2021.)

    Raises:
        ValueError: theta that is not positive, or an unknown optimizer.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    if not theta > 0:
        raise ValueError(f"theta={theta}: must be positive")
    rate = factors.learning_rate / (theta if optimizer == "adam" else theta**2)
    return Abc(factors.multiplier * theta, factors.std / theta, rate)


def depth_of(blocks: int, convention: str = "blocks") -> int:
    """The depth of a stack: its blocks (the unit-scaling library's convention), or its branches, two for each block.

    Raises:
        ValueError: an unknown convention.
    """
    _one_of("depth_convention", convention, tuple(DEPTH_CONVENTIONS))
    return blocks * DEPTH_CONVENTIONS[convention]


def branch_multiplier(depth: int, base_depth: int = 1) -> float:
    """A of a residual branch: (base_depth / depth)^1/2 (depth-muP; u-muP, tables 1 and 2).

    Raises:
        ValueError: a depth below 1.
    """
    check_counts(depth=depth, base_depth=base_depth)
    return math.sqrt(base_depth / depth)


def weight_decay(weight: Weight, decay: float, learning_rate: float, rule: str = "independent") -> float:
    """The `weight_decay` to hand to AdamW, which takes learning_rate * weight_decay * w off w in each step.

    Args:
        weight: whose.
        decay: lambda.
        learning_rate: of this weight, C included, at its peak.
        rule: "independent": lambda / learning_rate, so that a step takes off lambda * w at the peak, and s * lambda * w
            where a scheduler has multiplied the rate by s (Wortsman et al. 2023; u-muP asks for it).
            "coupled": lambda, as in torch. "mup": lambda * fan_in / base_fan_in for hidden weights, whose rate is
            divided by that (MuAdam of the mup package).

    Raises:
        ValueError: an unknown rule, or a learning rate that is not positive.
    """
    _one_of("decay_rule", rule, DECAYS)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: must be positive")
    if rule == "independent":
        return decay / learning_rate
    return decay * weight.in_ratio if rule == "mup" and weight.kind == "hidden" else decay


def gradient_scale(weight: Weight, parametrization: str) -> float:
    """How a weight's gradient, and so Adam's eps, shrinks with width at initialisation (Everett et al. 2024).

    A times the scale of the gradient that reaches the weight, which is A * B of the readout. With n the width over the
    base's (fan_in of hidden and readout weights, fan_out of the others): standard n^-1/2, readout 1; mup n^-1;
    munit n^-1, hidden n^-3/2; u_mup and unit_scaled 1. The paper's exponents were not at hand: these are derived from
    the tables here.

    Raises:
        ValueError: an unknown parametrization.
    """
    _one_of("parametrization", parametrization, tuple(PARAMETRIZATIONS))
    n = weight.in_ratio if weight.kind in ("hidden", "readout") else weight.out_ratio
    if parametrization == "standard":
        return 1.0 if weight.kind == "readout" else n**-0.5
    if parametrization in ("u_mup", "unit_scaled"):
        return 1.0
    return n**-1.5 if parametrization == "munit" and weight.kind == "hidden" else 1 / n


def check_kinds(name: str, kinds: Collection[str]) -> None:
    """Raises ValueError if the argument `name` holds what is not one of `KINDS`."""
    for kind in kinds:
        _one_of(name, kind, KINDS)


def _unit_multiplier(weight: Weight) -> float:
    """A of weights that start as N(0, 1)."""
    powers = {"input": -0.5, "hidden": -0.5, "readout": -1.0}
    return math.pow(weight.fan_in, powers.get(weight.kind, 0.0))


def _depth_factor(weight: Weight) -> float:
    return 1.0 if weight.depth is None else branch_multiplier(weight.depth, weight.base_depth)


def _without_base(name: str, weight: Weight) -> None:
    if weight.has_base:
        raise ValueError(f"parametrization={name!r} knows no base shapes: leave the base out, or use 'mup' or 'munit'")


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: use one of {', '.join(map(str, allowed))}")
