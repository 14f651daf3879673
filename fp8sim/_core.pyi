"""Vectorised, threaded loops in C++: conversions between floating-point arrays and codes.

Arrays are C-contiguous, aligned NumPy arrays whose items have the width of the named dtype; "bfloat16" is any dtype of
two bytes. `source` and `target` have equally many elements, and are one array or do not overlap. `conversion` is what
`fp8sim.rounding.resolve` returns. `seed`, `stream`, `offset` (64-bit patterns, as non-negative integers) and
`random_bits` (1 to 32) are read by the stochastic modes; element i takes the random integer of element i + offset.

Results depend neither on the instruction set nor on the number of threads, nor on the process's rounding mode and
flushing of subnormals. The interpreter lock is released during the loops.

Raises, everywhere:
    ValueError: an array of another width, layout or size, a read-only or overlapping target, an unknown dtype, integers
        that `resolve` cannot have returned, random_bits out of range.
    TypeError: an argument of another type, a negative or too large seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

def cast(
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    dtype: str,
    conversion: Sequence[int],
    *,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> None:
    """target[i] = the number of the format that source[i] becomes.

    `dtype` is "float16", "bfloat16", "float32" or "float64". NaN becomes the quiet NaN of its sign where the format has
    NaN; a number of the format that float16 or bfloat16 lacks is rounded to it, ties to even.
    """

def encode(
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    dtype: str,
    code_dtype: str,
    conversion: Sequence[int],
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
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    code_dtype: str,
    dtype: str,
    conversion: Sequence[int],
) -> None:
    """target[i] = the number that code source[i] stands for. Codes lie within the format; this is not checked.

    NaN codes give the quiet NaN of their sign; a number that `dtype` lacks is rounded to it, ties to even.
    """

def encode_levels(
    source: np.ndarray[Any, Any], target: np.ndarray[Any, Any], dtype: str, cuts: np.ndarray[Any, Any]
) -> None:
    """target[i] = how many of `cuts` source[i] exceeds: the code of a codebook's closest level, all of them for NaN.

    `cuts`: at most 255 ascending numbers, float64 if `dtype` is "float64", else float32; `target` is uint8.
    """

def random_integers(
    target: np.ndarray[Any, Any], *, seed: int = 0, stream: int = 0, offset: int = 0, random_bits: int = 32
) -> None:
    """target[i] = the random integer that the stochastic modes take for element i; `target` is uint32."""

def quantize(
    source: np.ndarray[Any, Any],
    codes: np.ndarray[Any, Any],
    stored: np.ndarray[Any, Any],
    code_dtype: str,
    blocks: Sequence[int],
    scale: Sequence[float],
    store: Sequence[int],
    conversion: Sequence[int],
    cuts: np.ndarray[Any, Any],
    *,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> float:
    """codes[i] = the code of source[i] times (over) the factor of its block, rounded to float32 first.

    `source` has float32 patterns, uint32; `blocks` are the matrices, rows and columns of its shape and the rows and
    columns of a block. `scale` and `store` are what `fp8sim.scaling.constants` returns. `stored` takes the factors,
    uint8 codes of `store`, or float32 patterns, uint32, where they are stored as such. `cuts`, if there are any,
    replace `conversion` as in `encode_levels`. Returns the factor of the tensor, 1 without one. `codes` is not
    `source`; `source` is not empty.
    """

def block_amax(source: np.ndarray[Any, Any], largest: np.ndarray[Any, Any], blocks: Sequence[int]) -> None:
    """largest[k] = the float32 pattern of the largest magnitude in block k; both uint32, `blocks` as for `quantize`."""

def scale_factors(
    largest: np.ndarray[Any, Any],
    stored: np.ndarray[Any, Any],
    applied: np.ndarray[Any, Any],
    scale: Sequence[float],
    store: Sequence[int],
) -> float:
    """stored[k], applied[k] = the factors of blocks whose amax has the float32 pattern largest[k]; all uint32.

    `stored` has codes or float32 patterns, `applied` patterns. Returns the factor of the tensor, 1 without one.
    """

def get_num_threads() -> int:
    """Threads that loops use, the calling one included: by default the processors that the process may run on."""

def set_num_threads(count: int) -> None:
    """Use `count` threads, 1 to 1024. ValueError if out of range."""

def isa() -> str:
    """The instruction set in use: "portable", "avx2" or "avx512".

    The best that the processor has, unless the environment variable FP8SIM_ISA names another one at first use.
    ValueError if that names none of `isas()`.
    """

def isas() -> list[str]:
    """The instruction sets that this build contains and this processor runs, slowest first."""

def set_isa(isa: str) -> None:
    """Use another instruction set, to test or to time it. ValueError if it is none of `isas()`."""

def mma_chain(
    a: np.ndarray[Any, Any],
    b: np.ndarray[Any, Any],
    c: np.ndarray[Any, Any] | None,
    d: np.ndarray[Any, Any],
    model: Sequence[int],
    a_scales: np.ndarray[Any, Any] | None = None,
    b_scales: np.ndarray[Any, Any] | None = None,
) -> None:
    """d = c + a · bᵀ by a chain of the instruction that `model` describes (`fp8sim.mma.models.core_fields`).

    a [M, K], b [N, K], c and d [M, N] hold unsigned integers as wide as the model's codes; c is None for +0, `d` for in
    place, or does not overlap it. Scale factors, uint8 [M, blocks] and [N, blocks], are given if and only if the model
    has them.
    """

def promote(
    target: np.ndarray[Any, Any],
    partial: np.ndarray[Any, Any],
    row: np.ndarray[Any, Any] | None,
    column: np.ndarray[Any, Any] | None,
    factors: int,
    addition: int,
) -> None:
    """target = [target +] partial [times factors], in float32, every operation rounded to nearest, ties to even.

    target, partial [M, N], row [M] and column [N] are float32 and contiguous; `factors`: 0 none, 1 (partial * row) *
    column, 2 partial * (row * column); `addition`: 0 none, 1 separate, 2 fused with the last multiplication.
    """
