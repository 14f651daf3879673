"""Device functions of fused attention: a block of queries against the keys that it sees (FlashAttention: Dao et al.
2022), forward and backward.

Matrices of a (sequence, head) are [length, D] with D contiguous, addressed by a pointer and the stride of a row. Logits
are kept in units of log2: c = scale * log2(e), so that exponentials are exp2.
"""

import triton
import triton.language as tl

from fp8sim.triton_kernels.matmul_kernel import _float16
from fp8sim.triton_kernels.rounding import encode as encode_bits


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    starts_q_ptr,
    starts_k_ptr,
