"""Plain torch models for the tests of `fp8sim.convert`, and what GEMMs they run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fp8sim.simulate.matmul import GemmEvent, observe


class Block(torch.nn.Module):
    """x [B, L, W] -> [B, L, W], as people write it."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.attention = torch.nn.MultiheadAttention(width, 4, batch_first=True, bias=bias)
        self.mlp_norm = torch.nn.RMSNorm(width)
        self.up = torch.nn.Linear(width, 4 * width, bias=bias)
        self.act = torch.nn.GELU()
        self.down = torch.nn.Linear(4 * width, width, bias=bias)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.dropout(self.down(self.act(self.up(self.mlp_norm(x)))))


class Net(torch.nn.Module):
    """tokens [B, L] -> logits [B, L, V]; the readout's weight is the embedding's."""

    def __init__(self, bias: bool = False, width: int = 16, symbols: int = 11) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(symbols, width)
        self.blocks = torch.nn.ModuleList(Block(width, bias) for _ in range(2))
        self.norm = torch.nn.LayerNorm(width, bias=bias)
        self.head = torch.nn.Linear(width, symbols, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


GEMMS = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.in_proj", "attention.out_proj", "up", "down")]
GEMMS = [*GEMMS, "head"]
"""Layers of `Net` with GEMMs, as observers call them."""

TOKENS = torch.tensor([[0, 3, 2, 9, 9], [6, 3, 1, 10, 4]])


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    """A scalar that depends on every output."""
    torch.manual_seed(1)  # of dropout
    return torch.nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())


def gemms(run: Callable[[], object]) -> list[GemmEvent]:
    """The GEMMs by recipe of a run."""
    events: list[GemmEvent] = []
    with observe(events.append):
        run()
    return events


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    """Of all parameters."""
    return list(torch.autograd.grad(loss_of(model), list(model.parameters())))
