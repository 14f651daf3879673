"""Device functions of the matrix product: tiles of a sum over K, computed by persistent programs, and the merge of a
split K.

Operands are matrices [rows, K] with K contiguous, those of a batch below each other: row r of batch i is row
i * (rows per batch) + r, or row r where all batches share one matrix (0 rows per batch). An operand is a pointer, or a
tensor descriptor, through which Hopper's copy engine loads tiles.
"""

import triton
import triton.language as tl

from fp8sim.triton_kernels.rounding import encode as encode_bits

NO_FACTORS = 0
EPILOGUE_FACTORS = 1
BLOCK_FACTORS = 2
_EPILOGUE = tl.constexpr(EPILOGUE_FACTORS)
_BLOCKS = tl.constexpr(BLOCK_FACTORS)


@triton.jit
def matmul_kernel(
    a,
    b,
    out,
    amax_ptr,
    a_factor_ptr,
    b_factor_ptr,
    M,
    N,
    K,
    batches,
    a_stride,
    b_stride,
    a_rows,
    b_rows,
    a_factor_batch,
    a_factor_row,
    a_factor_k,
    b_factor_batch,
    b_factor_row,
    b_factor_k,
    scale,
    A_E5M2: tl.constexpr,
    B_E5M2: tl.constexpr,
    FACTORS: tl.constexpr,
    A_FACTOR_ROWS: tl.constexpr,
    B_FACTOR_ROWS: tl.constexpr,
    IMPRECISE: tl.constexpr,
    TO: tl.constexpr,
    SPLIT_K: tl.constexpr,
    LOADS: tl.constexpr,
    STORES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HALVES: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """out[m, n] = scale * sum_k a[m, k] * b[n, k], with factors of rows or of blocks; or the parts of a split sum.

    Args:
        a, b: pointers, or descriptors if LOADS. A_E5M2, B_E5M2: None; or, for uint8 codes that are widened to float16,
            whether they are E5M2 instead of E4M3.
        out: [batches * M, N], contiguous; a descriptor if STORES. With SPLIT_K > 1: [SPLIT_K, batches * M, N] float32,
            the bare sums over each part of K.
        amax_ptr: the pattern of the largest magnitude so far, int32; None: not wanted.
        a_factor_ptr, b_factor_ptr: float32 factors, one for each A_FACTOR_ROWS rows, and with FACTORS = BLOCK_FACTORS
            for each BLOCK_K of K; None: none. Strides may be 0.
        IMPRECISE: products between promotions of Hopper's FP8 accumulator; 0: never promoted.
        TO: the result's format as a Conversion, whose codes are stored; None: the dtype of `out`.
        HALVES: whether the left and the right half of a tile are finished one after the other.
    """
    tiles_m, tiles_n, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    tiles, per_part = tiles_m * tiles_n, tl.cdiv(tiles_k, SPLIT_K)
    for work in tl.range(tl.program_id(0), tiles * SPLIT_K * batches, PROGRAMS, flatten=LOADS):
        tile_m, tile_n = _tile(work % tiles, tiles_m, tiles_n, GROUP_M)
        part, batch = work // tiles % SPLIT_K, work // (tiles * SPLIT_K)
        first_m, first_n = tile_m * BLOCK_M, tile_n * BLOCK_N
        # Rows outside read row 0, whose results are not stored: only the tail of K needs masks.
        a_row = _inside(first_m, M, BLOCK_M)
        b_row = _inside(first_n, N, BLOCK_N)

        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for tile_k in range(part * per_part, tl.minimum((part + 1) * per_part, tiles_k)):
            start = tile_k * BLOCK_K
            if LOADS:
                a_tile = a.load([batch * a_rows + first_m, start])
                b_tile = b.load([batch * b_rows + first_n, start])
            else:
                a_tile = _load(a, batch * a_rows + a_row, a_stride, start, K, BLOCK_K)
                b_tile = _load(b, batch * b_rows + b_row, b_stride, start, K, BLOCK_K)
            if A_E5M2 is not None:
                a_tile, b_tile = _float16(a_tile, A_E5M2), _float16(b_tile, B_E5M2)
            if FACTORS == _BLOCKS:
                a_first = batch * a_factor_batch + tile_k * a_factor_k
                b_first = batch * b_factor_batch + tile_k * b_factor_k
                left = _block_factors(a_factor_ptr, a_first, first_m, M, a_factor_row, A_FACTOR_ROWS, BLOCK_M)
                right = _block_factors(b_factor_ptr, b_first, first_n, N, b_factor_row, B_FACTOR_ROWS, BLOCK_N)
                factors = left[:, None] * right[None, :]
                sums = tl.fma(tl.dot(a_tile, b_tile.T), factors, sums)
            elif IMPRECISE > 0:
                sums = tl.dot(a_tile, b_tile.T, sums, max_num_imprecise_acc=IMPRECISE)
            else:
                sums = tl.dot(a_tile, b_tile.T, sums)

        PARTS: tl.constexpr = 2 if HALVES else 1
        WIDTH: tl.constexpr = BLOCK_N // PARTS
        for half in tl.static_range(PARTS):
            # Half a tile needs half the memory on the chip for its way out, and fewer registers.
            if HALVES:
                columns = tl.permute(tl.reshape(sums, (BLOCK_M, 2, WIDTH)), (0, 2, 1))
                result = tl.split(columns)[half]
            else:
                result = sums
            left_n = first_n + half * WIDTH
            rows, columns = first_m + tl.arange(0, BLOCK_M), left_n + tl.arange(0, WIDTH)
            inside = (rows < M)[:, None] & (columns < N)[None, :]
            if SPLIT_K == 1:
                if FACTORS == _EPILOGUE:
                    a_first, b_first = batch * a_factor_batch, batch * b_factor_batch
                    if a_factor_ptr is not None:
                        result *= _row_factors(a_factor_ptr + a_first, first_m, M, a_factor_row, BLOCK_M)[:, None]
                    if b_factor_ptr is not None:
                        result *= _row_factors(b_factor_ptr + b_first, left_n, N, b_factor_row, WIDTH)[None, :]
                result *= tl.full([], scale, tl.float32)
                if amax_ptr is not None:
                    _keep_largest(amax_ptr, result, inside)
                value = _stored(result, out.dtype if STORES else out.dtype.element_ty, TO)
            else:
                value = result
            if STORES:
                out.store([first_m, left_n], value)
            else:
                place = (part * batches + batch) * M + rows.to(tl.int64)
                tl.store(out + place[:, None] * N + columns[None, :], value, mask=inside)


@triton.jit
def merge_kernel(
    parts_ptr,
    out_ptr,
    amax_ptr,
    a_factor_ptr,
    b_factor_ptr,
    size,
    M,
    N,
    a_factor_batch,
    a_factor_row,
    b_factor_batch,
    b_factor_row,
    scale,
    TO: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[i], i < size: the parts of a split sum added in their order; factors of rows, scale and rounding as above."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    result = tl.load(parts_ptr + index, mask=inside, other=0.0)
    for part in range(1, SPLIT_K):
        result += tl.load(parts_ptr + part * size + index, mask=inside, other=0.0)
    row, column = index // N, index % N
    batch = row // M
    if a_factor_ptr is not None:
        result *= tl.load(a_factor_ptr + batch * a_factor_batch + row % M * a_factor_row, mask=inside, other=0.0)
    if b_factor_ptr is not None:
        result *= tl.load(b_factor_ptr + batch * b_factor_batch + column * b_factor_row, mask=inside, other=0.0)
    result *= tl.full([], scale, tl.float32)
    if amax_ptr is not None:
        _keep_largest(amax_ptr, result, inside)
    tl.store(out_ptr + index, _stored(result, out_ptr.dtype.element_ty, TO), mask=inside)


@triton.jit
def _tile(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The tile of a program. GROUP_M rows of tiles are walked column by column, so that programs that run at the same
    time share rows of a and b in the cache; the last group may have fewer rows."""
    per_group = GROUP_M * tiles_n
    first_m = program // per_group * GROUP_M
    rows = tl.minimum(tiles_m - first_m, GROUP_M)
    within = program % per_group
    return first_m + within % rows, within // rows


@triton.jit
def _load(x_ptr, rows, stride, start, K, BLOCK_K: tl.constexpr):
    """x[rows, start : start + BLOCK_K], zeros beyond K."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride + k[None, :], mask=k[None, :] < K, other=0.0)


@triton.jit
def _float16(code, E5M2: tl.constexpr):
    """FP8 codes, uint8, as float16 numbers, exactly: E5M2 is float16's upper byte; E4M3's bias is 8 less."""
    wide = code.to(tl.uint16)
    if E5M2:
        return (wide << 8).to(tl.float16, bitcast=True)
    else:
        magnitude = wide & 0x7F
        NAN: tl.constexpr = 0x7E00
        pattern = tl.where(magnitude == 0x7F, tl.full([], NAN, tl.uint16), magnitude << 7) | ((wide & 0x80) << 8)
        return pattern.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def _inside(first, count, BLOCK: tl.constexpr):
    """The rows first .. first + BLOCK - 1, those that do not exist replaced by row 0."""
    rows = first + tl.arange(0, BLOCK)
    return tl.where(rows < count, rows, 0)


@triton.jit
def _row_factors(factor_ptr, first, count, stride, BLOCK: tl.constexpr):
    """The factors [BLOCK] of rows from `first` on."""
    return tl.load(factor_ptr + _inside(first, count, BLOCK) * stride)


@triton.jit
def _block_factors(factor_ptr, offset, first, count, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The factors [BLOCK] of rows from `first` on, ROWS of which share one, or [1] where all of them do."""
    if factor_ptr is None:
        return tl.full([1], 1.0, tl.float32)
    elif ROWS % BLOCK == 0:
        return tl.load(factor_ptr + offset + first // ROWS * stride + tl.arange(0, 1))
    else:
        return tl.load(factor_ptr + offset + _inside(first, count, BLOCK) // ROWS * stride)


@triton.jit
def _keep_largest(amax_ptr, result, inside):
    """Patterns of magnitudes are ordered as their numbers are, NaN above all."""
    magnitude = result.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(amax_ptr, tl.max(tl.where(inside, magnitude, 0).reshape(result.numel)), sem="relaxed")


@triton.jit
def _stored(result, DTYPE: tl.constexpr, TO: tl.constexpr):
    """The result in the output's dtype, or its codes in the format TO."""
    if TO is not None:
        return encode_bits(result.to(tl.uint32, bitcast=True), 0, TO, 0).to(DTYPE)
    else:
        return result.to(DTYPE)
