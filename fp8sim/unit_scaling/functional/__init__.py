"""Drop-in functions that carry the factors of unit scaling where the recipe's parametrization asks for them.

Every function has the same beats: take the factors from `fp8sim.unit_scaling.rules` (all one, under the standard
parametrization), and compute torch's function with the output multiplied by alpha and the gradients by beta. Its
definition is `scale_fwd(f(scale_bwd(x, beta)), alpha)` of `fp8sim.simulate.scale`; here the factors are folded into
passes that exist anyway and stay Python floats, whatever the tensor's dtype. There are no in-place forms.

Keywords that many share: `recipe` (its parametrization decides whether there are factors; "unit_scaled" by default),
`constraint` (ties them: `rules.CONSTRAINTS`), `mult` (a hyperparameter on the input of a nonlinear function),
`batch_tokens` (tokens of the whole batch, where this call sees a part of it; the parts' gradients are then summed).
`batch_parts` says so for all calls in a `with` block, those of modules included.
"""

from fp8sim.unit_scaling.functional.activations import (
    dropout,
    gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    silu_glu,
    tanh,
)
from fp8sim.unit_scaling.functional.attention import scaled_dot_product_attention, softmax
from fp8sim.unit_scaling.functional.common import UNIT_SCALED, batch_parts
from fp8sim.unit_scaling.functional.encoding import (
    fused_cross_entropy,
    gelu_encode,
    rms_norm_encode,
    silu_glu_encode,
)
from fp8sim.unit_scaling.functional.losses import cross_entropy, mse_loss
from fp8sim.unit_scaling.functional.products import conv1d, linear, linear_readout, matmul
from fp8sim.unit_scaling.functional.sums import add, residual_add, residual_apply, residual_split
from fp8sim.unit_scaling.functional.weights import embedding, layer_norm, rms_norm

__all__ = [
    "UNIT_SCALED",
    "add",
    "batch_parts",
    "conv1d",
    "cross_entropy",
    "dropout",
    "embedding",
    "fused_cross_entropy",
    "gelu",
    "gelu_encode",
    "layer_norm",
    "linear",
    "linear_readout",
    "matmul",
    "mse_loss",
    "relu",
    "relu_squared",
    "residual_add",
    "residual_apply",
    "residual_split",
    "rms_norm",
    "rms_norm_encode",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "silu_glu",
    "silu_glu_encode",
    "softmax",
    "tanh",
]
