"""How a GEMM adds products: the arithmetic of tensor cores bit for bit, and how far a result may lie from the sum.

`parse` finds an instruction's `MmaModel`, `chain` computes matrix products with it.
"""

from fp8sim.mma.architectures import ARCHITECTURES, MODELS, Architecture, Instruction
from fp8sim.mma.attention import ATTENTION_PLANS, AttentionPlan
from fp8sim.mma.attention import parse as parse_attention_plan
from fp8sim.mma.attention_backward import ATTENTION_BACKWARD_PLANS, AttentionBackwardPlan
from fp8sim.mma.attention_backward import parse as parse_attention_backward_plan
from fp8sim.mma.bounds import error_bound, float32_error_bound
from fp8sim.mma.chains import chain
from fp8sim.mma.evidence import CAPTURED, CATEGORIES, OUTPUTS_PER_CAPTURE, Capture, Evidence
from fp8sim.mma.gemm import check_widening, resolve
from fp8sim.mma.models import Adder, MmaModel, Output, operand_dtype
from fp8sim.mma.names import parse
from fp8sim.mma.plans import PLANS, GemmPlan
from fp8sim.mma.plans import parse as parse_plan

__all__ = [
    "ARCHITECTURES",
    "ATTENTION_BACKWARD_PLANS",
    "ATTENTION_PLANS",
    "CAPTURED",
    "CATEGORIES",
    "MODELS",
    "OUTPUTS_PER_CAPTURE",
    "PLANS",
    "Adder",
    "Architecture",
    "AttentionBackwardPlan",
    "AttentionPlan",
    "Capture",
    "Evidence",
    "GemmPlan",
    "Instruction",
    "MmaModel",
    "Output",
    "chain",
    "check_widening",
    "error_bound",
    "float32_error_bound",
    "operand_dtype",
    "parse",
    "parse_attention_backward_plan",
    "parse_attention_plan",
    "parse_plan",
    "resolve",
]
