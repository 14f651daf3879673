"""Parameter groups with the learning-rate factors of u-muP, for torch's own optimizers."""

from __future__ import annotations

from typing import Any

import torch


def parameter_groups(model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Groups of `model`'s parameters with equal learning rates: `learning_rate` times each parameter's factor.

    A module states the factor of its parameter `name` as `learning_rate_factor(name)` (the modules of `fp8sim.nn` do);
    parameters of others have factor one. Parameters of equal factor share a group, so that torch's fused and foreach
    optimizers stay fast. A parameter shared by modules takes the factor of the first.

    Args:
        model: any module.
        learning_rate: eta, the rate at factor one.

    Returns:
        [{"params": [...], "lr": ...}, ...], for any optimizer of `torch.optim`, by descending rate.

    Raises:
        ValueError: a learning rate that is not positive.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: must be positive")
    groups: dict[float, list[torch.nn.Parameter]] = {}
    seen: set[torch.nn.Parameter] = set()
    for module in model.modules():
        factor = getattr(module, "learning_rate_factor", lambda name: 1.0)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                groups.setdefault(factor(name), []).append(parameter)
    return [{"params": groups[factor], "lr": learning_rate * factor} for factor in sorted(groups, reverse=True)]
