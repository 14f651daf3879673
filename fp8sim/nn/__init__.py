"""Modules over `fp8sim.functional`."""

from fp8sim.nn.modules import GELU, Embedding, Linear, RMSNorm
from fp8sim.nn.roles import ResidualStack

__all__ = ["GELU", "Embedding", "Linear", "RMSNorm", "ResidualStack"]
