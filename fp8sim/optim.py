"""Parameter groups with the factors of a parametrization, for torch's own optimizers; torch's scaler of the loss; and
Adam-atan2."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from fp8sim import recipes
from fp8sim.nn import roles as tags
from fp8sim.recipes import LossScaling, Recipe
from fp8sim.unit_scaling import mup
from fp8sim.unit_scaling.mup import Rule, Weight

NO_ROLES: Mapping[str, str | Weight] = MappingProxyType({})


def parameter_groups(
    model: torch.nn.Module,
    *,
    lr: float,
    parametrization: str | Rule,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    decay_rule: str = "independent",
    undecayed: Collection[str] = (),
    eps: float | Callable[[Weight], float] | None = None,
    base: torch.nn.Module | None = None,
    base_depth: int | None = None,
    depth_convention: str = "blocks",
    roles: Mapping[str, str | Weight] = NO_ROLES,
    untagged: str | None = None,
) -> list[dict[str, Any]]:
    """Groups of `model`'s parameters, each with its learning rate, weight decay and eps, for an optimizer of torch.

    Parameters with the same three share a group, so that torch's foreach and fused optimizers stay fast. What a
    parameter is follows from its module (`fp8sim.nn.roles`), so the model may be wrapped, sharded or on the meta
    device; a parameter shared by modules is what the first of them says.

    Schedulers that multiply rates (LambdaLR, and whatever is made of it) keep the ratios of groups and the meaning of
    the decay. Those with an absolute rate (`eta_min`, `max_lr`) do not.

    Args:
        lr: eta, the rate at factor one, at its peak.
        parametrization: a name in `mup.PARAMETRIZATIONS`, or a rule, such as `partial(mup.u_mup,
            embedding_width_rule=False)`.
        optimizer: "adam" for Adam, AdamW, `AdamAtan2`, Lion and others whose update does not depend on the gradient's
            scale; "sgd".
        weight_decay: lambda; see `mup.weight_decay`. "independent" and "mup" are meant for decay that bypasses the
            gradient (AdamW, `AdamAtan2`, SGD without momentum).
        decay_rule: "independent", "coupled" or "mup".
        undecayed: kinds of `mup.KINDS` that do not decay, such as ("norm", "bias").
        eps: of each weight, e.g. `lambda weight: 1e-8 * mup.gradient_scale(weight, "mup")`. None: the optimizer's.
        base: the model whose `lr` is transferred (mup and munit), with parameters of the same names; it may be on the
            meta device. None: the factors without a base shape.
        base_depth: depth of the base, in blocks. None: what the base's modules say, or 1 without a base.
        depth_convention: "blocks" (the unit-scaling library) or "branches", twice as many (Aleph Alpha's code).
        roles, untagged: kinds for parameters, by pattern of names, and for those of which nothing says it.

    Returns:
        [{"params": [...], "lr": ..., "weight_decay": ..., and "eps" if given}, ...] by descending rate.

    Raises:
        ValueError: `lr` not positive, `weight_decay` or `eps` negative, or one of them infinite; parameters without a
            kind, a base that lacks some of the parameters, or an unknown name of a parametrization, kind, rule or
            convention.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: must be positive and finite")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay}: a finite number, 0 or more")
    mup.check_kinds("undecayed", undecayed)
    rule = _rule(parametrization)
    base_weights = None if base is None else tags.weights(base, roles, untagged)
    groups: dict[tuple[float, float, float | None], list[torch.nn.Parameter]] = {}
    for name, (parameter, stated) in tags.weights(model, roles, untagged).items():
        weight = _with_base(name, stated, base_weights, base_depth, depth_convention)
        rate = lr * rule(weight, optimizer).learning_rate
        decay = 0.0 if weight.kind in undecayed else weight_decay
        handed = mup.weight_decay(weight, decay, rate, decay_rule)
        groups.setdefault((rate, handed, _eps(eps, weight)), []).append(parameter)
    return [_group(*key, groups[key]) for key in sorted(groups, key=lambda key: (-key[0], key[1], key[2] or 0.0))]


def _rule(parametrization: str | Rule) -> Rule:
    if not isinstance(parametrization, str):
        return parametrization
    if parametrization not in mup.PARAMETRIZATIONS:
        raise ValueError(
            f"parametrization={parametrization!r}: use one of {', '.join(mup.PARAMETRIZATIONS)}, or a rule"
        )
    return mup.PARAMETRIZATIONS[parametrization]


def _eps(eps: float | Callable[[Weight], float] | None, weight: Weight) -> float | None:
    own = eps(weight) if callable(eps) else eps
    if own is not None and not 0 <= own < math.inf:
        raise ValueError(f"eps={own}: a finite number, 0 or more")
    return own


def _with_base(
    name: str,
    weight: Weight,
    base: Mapping[str, tuple[torch.nn.Parameter, Weight]] | None,
    base_depth: int | None,
    convention: str,
) -> Weight:
    """`weight` with its depth counted by `convention`, and with the base's sizes."""
    if base is not None:
        if name not in base:
            raise ValueError(
                f"base has no parameter {name!r}: it needs the same names, so the same number of blocks; say with "
                f"base_depth= how many blocks the model has whose learning rate is transferred"
            )
        there = base[name][1]
        weight = replace(weight, base_fan_in=there.fan_in, base_fan_out=there.fan_out)
        base_depth = base_depth or there.depth
    if weight.depth is None:
        return weight
    counted = weight.base_depth if base_depth is None else mup.depth_of(base_depth, convention)
    return replace(weight, depth=mup.depth_of(weight.depth, convention), base_depth=counted)


def _group(rate: float, decay: float, eps: float | None, parameters: list[torch.nn.Parameter]) -> dict[str, Any]:
    group = {"params": parameters, "lr": rate, "weight_decay": decay}
    return group if eps is None else group | {"eps": eps}


class AdamAtan2(torch.optim.Optimizer):
    """Adam without eps: w <- (1 - lr * weight_decay) * w - lr * a * atan2(m, b * sqrt(v)).

    m and v are Adam's bias-corrected moments (Everett et al. 2024). The update does not depend on the scale
    of the gradient at all, is at most a * pi/2 per unit of `lr`, and is 0 where m and v are 0. Where v underflows to 0
    and m does not, it is that of the quotient of m and the smallest normal number. NaN in a gradient gives NaN.

    The defaults a = 4/pi and b = 1 make the update 1 where m = sqrt(v), as Adam's is; where m is much smaller, it is
    a times Adam's. They were not verified against the paper.

    Args:
        params: parameters or groups.
        lr, betas, weight_decay: as in torch.optim.AdamW; groups may have their own.
        a, b: the constants of the formula.

    Raises:
        ValueError: an argument outside its range. At a step: RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        *,
        a: float = 4 / math.pi,
        b: float = 1.0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: each must be at least 0 and below 1")
        if not (a > 0 and b > 0):
            raise ValueError(f"a={a}, b={b}: both must be positive")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "a": a, "b": b})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for alike in _by_dtype(parameters).values():
                self._update(alike, **{name: group[name] for name in ("lr", "betas", "weight_decay", "a", "b")})
        return loss

    def _update(
        self,
        parameters: list[torch.Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        a: float,
        b: float,
    ) -> None:
        """One update of parameters of one device and dtype."""
        states = [self._state_of(parameter) for parameter in parameters]
        # Everything is pointwise, so a shard is updated as a tensor of its own, past the dispatch of DTensor.
        w = [_local(parameter) for parameter in parameters]
        g = [_local(parameter.grad) for parameter in parameters]
        m, v = ([_local(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        if weight_decay != 0:
            torch._foreach_mul_(w, 1 - lr * weight_decay)
        torch._foreach_lerp_(m, g, 1 - betas[0])
        torch._foreach_mul_(v, betas[1])
        torch._foreach_addcmul_(v, g, g, 1 - betas[1])

        denominator = torch._foreach_sqrt(v)
        torch._foreach_clamp_min_(denominator, torch.finfo(v[0].dtype).tiny)  # 0/0 is 0, as in atan2
        angle = torch._foreach_div(m, denominator)
        torch._foreach_mul_(angle, _scalars(_correction(torch.stack(steps), *betas) / b))
        torch._foreach_atan_(angle)
        torch._foreach_add_(w, angle, alpha=-lr * a)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _correction(steps: torch.Tensor, beta1: float, beta2: float) -> torch.Tensor:
    """What bias correction multiplies m / sqrt(v) by, in float64."""
    steps = steps.double()
    return (1 - beta2**steps).sqrt() / (1 - beta1**steps)


def _scalars(values: torch.Tensor) -> Any:
    """The elements of values [N] as torch's foreach functions take them: numbers, but tensors while compiling."""
    return values.unbind() if torch.compiler.is_compiling() else values.tolist()


def _by_dtype(parameters: list[torch.Tensor]) -> dict[tuple[torch.device, torch.dtype], list[torch.Tensor]]:
    alike: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise RuntimeError("AdamAtan2 takes no sparse gradients: use sparse=False in the embedding")
        alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return alike


def _local(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _ConstantGradScaler(torch.amp.GradScaler):
    """torch's scaler, whose factor stays unless `update` is given one."""

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(self.get_scale() if new_scale is None else new_scale)


def grad_scaler(scaling: LossScaling | Recipe | str, device: str = "cpu") -> torch.amp.GradScaler:
    """The scaler of torch that does what a recipe says of the loss, for a training loop of one's own.

        scaler = grad_scaler("fp16_loss_scaled")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # only to clip, or to look at the gradients
        scaler.step(optimizer)  # skipped if a gradient is not finite, with a constant factor too
        scaler.update()

    Args:
        scaling: a policy, or a recipe that has one, or its name.
        device: torch device type of the gradients.

    Returns:
        A scaler; disabled, so that it does nothing, where the factor is always 1.

    Raises:
        ValueError: an unknown recipe.
    """
    policy = scaling if isinstance(scaling, LossScaling) else recipes.parse(scaling).loss_scaling
    if policy.growth_interval is None:
        return _ConstantGradScaler(device, init_scale=policy.factor, enabled=policy.factor != 1.0)
    return torch.amp.GradScaler(
        device,
        init_scale=policy.factor,
        growth_factor=policy.growth,
        backoff_factor=policy.backoff,
        growth_interval=policy.growth_interval,
    )
