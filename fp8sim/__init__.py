"""Low-precision training simulated bit for bit: number formats, scaling rules, and the kernels they predict.

>>> import torch, fp8sim
>>> fp8sim.cast(torch.tensor([0.3, 300.0, 1e6]), "e4m3")
tensor([  0.3125, 288.0000, 448.0000])
"""

from importlib.metadata import version as _version

from fp8sim.analysis.coordinates import coord_check
from fp8sim.analysis.explaining import explain
from fp8sim.analysis.payoff import will_fp8_pay
from fp8sim.backends import use_backend
from fp8sim.formats import Codebook, Format, Nan, fixed_point
from fp8sim.nn.conversion import conversion_report, convert
from fp8sim.ops.attention import scaled_dot_product_attention
from fp8sim.ops.cast import cast, decode, encode
from fp8sim.ops.quantize import quantize
from fp8sim.ops.tensor_core import matmul
from fp8sim.quantizers import QuantizedTensor, Quantizer
from fp8sim.recipes import Recipe
from fp8sim.rounding import Overflow, Rounding
from fp8sim.simulate.matmul import set_deterministic
from fp8sim.unit_scaling import functional

__version__ = _version("fp8sim")

__all__ = [
    "Codebook",
    "Format",
    "Nan",
    "Overflow",
    "QuantizedTensor",
    "Quantizer",
    "Recipe",
    "Rounding",
    "__version__",
    "cast",
    "conversion_report",
    "convert",
    "coord_check",
    "decode",
    "encode",
    "explain",
    "fixed_point",
    "functional",
    "matmul",
    "quantize",
    "scaled_dot_product_attention",
    "set_deterministic",
    "use_backend",
    "will_fp8_pay",
]
