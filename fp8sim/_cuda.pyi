"""CUDA C++ kernels, built where nvcc is found: casts in integer arithmetic, bitwise equal to `fp8sim._core`, and matrix
products on tensor cores.

Arrays arrive as addresses of contiguous memory on the current CUDA device, aligned to their elements. A call returns as
soon as the kernel is queued on the stream; the caller keeps the memory alive until the stream has passed it.

`conversion` is what `fp8sim.rounding.resolve` returns. `source` and `target` are one array or do not overlap.
`cuda_stream` is the stream's handle (`torch.cuda.current_stream().cuda_stream`); 0 is the default stream.
`seed`, `stream`, `offset` (64-bit patterns, as non-negative integers) and `random_bits` (1 to 32) are read by the
stochastic modes; element i takes the random integer of element i + offset.

Raises, everywhere:
    ValueError: a null, misaligned, overlapping or host address, memory of another device than the current one, a size
        below 0 or beyond the address space, an unknown dtype, a conversion out of range, random_bits out of range.
    TypeError: an argument of another type, a conversion without its 19 integers, a negative or too large seed.
    RuntimeError: "no CUDA device: ..." where there is none or no driver; "CUDA error: ..." for any other failure.
"""

from collections.abc import Sequence

def cast(
    source: int,
    target: int,
    size: int,
    dtype: str,
    conversion: Sequence[int],
    cuda_stream: int = 0,
    *,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> None:
    """target[i] = the number of the format that source[i] becomes; both `size` elements of `dtype`.

    `dtype` is "float16", "bfloat16", "float32" or "float64". NaN becomes the quiet NaN of its sign where the format has
    NaN; a number of the format that float16 or bfloat16 lacks is rounded to it, ties to even.
    """

def encode(
    source: int,
    target: int,
    size: int,
    dtype: str,
    code_dtype: str,
    conversion: Sequence[int],
    cuda_stream: int = 0,
    *,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> None:
    """target[i] = the code that source[i] becomes, one in each "uint8", "uint16" or "uint32" (`code_dtype`).

    `dtype` and special values as for `cast`; `code_dtype` is wide enough for the format.
    """

def decode(
    source: int,
    target: int,
    size: int,
    code_dtype: str,
    dtype: str,
    conversion: Sequence[int],
    cuda_stream: int = 0,
) -> None:
    """target[i] = the number that code source[i] stands for. Codes lie within the format; this is not checked.

    NaN codes give the quiet NaN of their sign; a number that `dtype` lacks is rounded to it, ties to even.
    """

def encode_scaled(
    x: int,
    codes: int,
    shape: Sequence[int],
    dtype: str,
    code_dtype: str,
    conversion: Sequence[int],
    cuda_stream: int = 0,
    *,
    factor: float | None = None,
    factor_address: int = 0,
    fused: bool = False,
    amax: int = 0,
    transposed: int = 0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> None:
    """codes = the codes of x times a factor, both [B, R, C] = `shape`; at most 2^40 elements.

    The factor is `factor`, the float32 number at `factor_address`, or none. The product is rounded to float32 before it
    is encoded, or with `fused` once. `amax`: address of a float32 cell of 0 or more, which is raised to the largest
    |x|; NaN if an element is. `transposed`: address of [B, C, R], which gets the codes too. 0 leaves either out.
    """

def matmul(
    a: int,
    b: int,
    out: int,
    extent: Sequence[int],
    a_dtype: str,
    b_dtype: str,
    out_dtype: str,
    a_strides: Sequence[int],
    b_strides: Sequence[int],
    cuda_stream: int = 0,
    *,
    fast_accumulation: bool = True,
    scale: float = 1.0,
    a_factors: int = 0,
    a_factor_strides: Sequence[int] = (0, 0),
    b_factors: int = 0,
    b_factor_strides: Sequence[int] = (0, 0),
) -> None:
    """out[i, m, n] = sum_k a[i, m, k] * b[i, n, k] times a's factor, b's factor and `scale`, in this order, in float32.

    `extent` is (M, N, K, B); K is at least 1. `a_dtype` and `b_dtype` are float8_e4m3fn and float8_e5m2 in any mixture,
    or both float16 or bfloat16; `out`, contiguous, is float32, float16 or bfloat16. `a_strides` are the elements from
    row to row and from matrix to matrix, multiples of 16 bytes, as addresses are; 0 is one matrix for all. Factors are
    float32, one for each row of a and of b, with strides likewise; a null address is 1. Order of additions:
    `fp8sim.cuda.matmul.plan_of`.
    """

def attention(
    query: int,
    key: int,
    value: int,
    out: int,
    lse: int,
    extent: Sequence[int],
    dtype: str,
    out_dtype: str,
    query_strides: Sequence[int],
    key_strides: Sequence[int],
    value_strides: Sequence[int],
    c: float,
    cuda_stream: int = 0,
    *,
    transposed_value: bool = False,
    causal: bool = False,
    window: int = 0,
    offset: int = 0,
    p_offset: float = 0.0,
    factor: float = 1.0,
) -> None:
    """out = softmax(c ln 2 query keyᵀ) value factor, and lse, log2 of the sums of 2^(c s), as a `plan_of` says.

    `extent` is (B, H, G, L, S, D), each at least 1, D up to 256: query [B, H, L, D], key and value [B, G, S, D] of one
    `dtype` (float8_e4m3fn, float16 or bfloat16), out [B, H, L, D] and float32 lse [B, H, L] contiguous. Strides are the
    elements from batch to batch, head to head and row to row, multiples of 16 bytes, as addresses are. On Hopper FP8
    values are [B, G, D, S] instead, which `transposed_value` says. `window` keys up to a query's own are seen, 0: all;
    query i stands at key i + `offset`.
    """

def attention_block(features: int, capability: int) -> int:
    """Keys per block of `attention`, of 1 to 256 features, on a device, 10 * major + minor: the `block` of its plan."""

def probe(
    instruction: str,
    a: int,
    b: int,
    c: int,
    d: int,
    cases: int,
    steps: int = 1,
    variant: str = "shared",
    cuda_stream: int = 0,
) -> None:
    """d = c + a · bᵀ by one tensor-core instruction, or `steps` of them after each other, on raw bits.

    a [cases, M, steps * K] and b [cases, N, steps * K] are codes with k contiguous, c and d [cases, M, N] the
    accumulator's bits; all at multiples of 8 bytes. d may be c, and overlaps nothing else. With c = 0, a null pointer,
    wgmma is told to ignore what is in its registers.

    Args:
        instruction: a name of `probe_instructions()`; the device has it, or ValueError says which device would.
        cases: up to 2^31. Each is one tile of the instruction.
        steps: 1 to 8; all in the same registers.
        variant: how a reaches wgmma: "shared" memory, "registers", or shared memory and "negated" by the instruction.
    """

def probe_instructions() -> list[tuple[str, str, int, int, int, int, bool, bool]]:
    """The instructions that `probe` knows.

    Of each: its name in PTX without .sync and .aligned; part of the kernel's name in machine code; M; N; K; the least
    compute capability, 10 * major + minor; whether later devices have it too; whether it has variants.
    """
