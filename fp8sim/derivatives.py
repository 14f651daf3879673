"""What a Function without a second derivative says to whoever asks for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's `backward` that computes without a graph, and is a RuntimeError where autograd wants one.

    torch's own `once_differentiable` raises later, when the graph is used, and in two cases never: where the gradient
    that arrives is a constant, as that of a sum, and where `torch.autograd.grad` is asked for inputs that are reached
    on another way, too. A penalty on gradients would then be without a part of its own, silently.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        # Gradients are enabled here by create_graph=True alone. Compiled code refuses second derivatives by itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            name = backward.__qualname__.split(".")[0].lstrip("_")
            raise RuntimeError(
                f"create_graph=True asks for a gradient of the gradient of {name}, which can be differentiated once: "
                f"leave it out, or compute this part with torch's own function"
            )
        with torch.no_grad():
            return backward(ctx, *grads)

    return wrapped
