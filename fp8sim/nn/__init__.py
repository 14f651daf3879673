"""Modules over `fp8sim.functional`."""

from fp8sim.nn.activations import GELU, SiLU
from fp8sim.nn.embedding import Embedding
from fp8sim.nn.linear import Conv1d, Linear, LinearReadout
from fp8sim.nn.norms import LayerNorm, RMSNorm
from fp8sim.nn.roles import ResidualStack

__all__ = [
    "GELU",
    "Conv1d",
    "Embedding",
    "LayerNorm",
    "Linear",
    "LinearReadout",
    "RMSNorm",
    "ResidualStack",
    "SiLU",
]
