"""Modules over `fp8sim.functional`, and a transformer of them.

Parameters have the names and shapes of torch's modules, so that state dicts load both ways.
"""

from fp8sim.nn.activations import GELU, Dropout, ReLU, Sigmoid, SiLU, Softmax, Tanh
from fp8sim.nn.attention import Attention, KeyValueCache
from fp8sim.nn.config import TransformerConfig
from fp8sim.nn.conversion import Conversion, ModuleLine, conversion_report, convert
from fp8sim.nn.embedding import Embedding
from fp8sim.nn.linear import Conv1d, Linear, LinearReadout
from fp8sim.nn.mlp import MLP
from fp8sim.nn.multihead import MultiheadAttention
from fp8sim.nn.norms import LayerNorm, RMSNorm
from fp8sim.nn.roles import ResidualStack
from fp8sim.nn.transformer import TransformerDecoder, TransformerLayer

__all__ = [
    "GELU",
    "MLP",
    "Attention",
    "Conv1d",
    "Conversion",
    "Dropout",
    "Embedding",
    "KeyValueCache",
    "LayerNorm",
    "Linear",
    "LinearReadout",
    "ModuleLine",
    "MultiheadAttention",
    "RMSNorm",
    "ReLU",
    "ResidualStack",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "TransformerConfig",
    "TransformerDecoder",
    "TransformerLayer",
    "conversion_report",
    "convert",
]
