"""Modules over `fp8sim.functional`."""

from fp8sim.nn.modules import GELU, Embedding, Linear, RMSNorm

__all__ = ["GELU", "Embedding", "Linear", "RMSNorm"]
