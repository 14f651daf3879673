"""Device functions of the backward pass of fused attention: sums of rows, the pass over queries, the pass over keys.

Tensors are [B, heads, rows, features] with contiguous features; packed sequences are those of one batch, found through
tables. Names, of a tile: s = q k^T, p the probabilities, t = g v^T with g the gradient of the output as it is
multiplied, d the gradient of the logits. A tile of keys is the left operand in the pass over queries, so that
probabilities stay in registers on their way from one product to the next.

Arguments that are tuples, and what the kernels share:

    strides   of a tensor's batches, heads and rows: elements, with a pointer; rows, with a descriptor, through which
              Hopper's copy engine loads tiles, where a fourth number is the columns from one head to the next
    sizes     L, S, D, E, and how many heads there are of what a program computes
    table     of packed sequences: the sequence of each program of a head, the first program of that sequence, and where
              the sequences of queries and of keys start [N + 1]; each None where a batch is a sequence
    factors   float32, of s for base-2 logits, of t, and of the sums
    scales    of the gradients of output and logits before their casts to FP8, powers of two, and their
              inverses; or None
"""

import triton
import triton.language as tl


@triton.jit
def row_sums_kernel(
    grad_ptr,
    output_ptr,
    sums_ptr,
    cast_ptr,
    scales_ptr,
    grad_strides,
    output_strides,
    L,
    H,
    E,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """sums[b, h, i] = sum_e g[b, h, i, e] * output[b, h, i, e], where g is the gradient of the output.

    cast_ptr: [B, H, L, E] contiguous, E5M2, where the gradient times scales[0] goes; it is then the one that is summed.
    None: the gradient is multiplied as it is.
    """
    blocks = tl.cdiv(L, ROWS)
    index, batch, head = _place(tl.program_id(0) // blocks, H)
    first = tl.program_id(0) % blocks * ROWS
    grad_ptr, row, column = _head(grad_ptr, batch, head, grad_strides, 0, False)
    grad = _tile(grad_ptr, row, column, first, L, E, ROWS, BLOCK_E, False)
    output_ptr, row, column = _head(output_ptr, batch, head, output_strides, 0, False)
    output = _tile(output_ptr, row, column, first, L, E, ROWS, BLOCK_E, False)
    if cast_ptr is not None:
        grad = (grad.to(tl.float32) * tl.load(scales_ptr)).to(tl.float8e5)
        _store(cast_ptr, grad, index * L, first, L, E, ROWS, BLOCK_E)
    sums = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    if cast_ptr is not None:
        sums *= tl.load(scales_ptr + 2)
    rows = first + tl.arange(0, ROWS)
    tl.store(sums_ptr + index * L + rows, sums, mask=rows < L)


@triton.jit
def over_queries_kernel(
    query,
    key,
    value,
    grad,
    lse_ptr,
    sums_ptr,
    grad_key_ptr,
    grad_value_ptr,
    scales_ptr,
    strides,
    sizes,
    table,
    factors,
    blocks,
    window,
    CAUSAL: tl.constexpr,
    LOWER_RIGHT: tl.constexpr,
    SHARED: tl.constexpr,
    LOADS: tl.constexpr,
    P_OFFSET: tl.constexpr,
    FP8: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of a block of KEYS keys and values, added over the SHARED heads of queries that read them, and in each
    over blocks of QUERIES queries, both in ascending order.

    Args:
        query, key, value, grad: pointers, or descriptors if LOADS. lse_ptr, sums_ptr: [B, H, L] float32.
        grad_key_ptr: [B, G, S, D]. grad_value_ptr: [B, G, S, E]. Both contiguous.
        blocks: programs for each head of keys. window: keys that a query sees, or None.
        P_OFFSET: added to the exponents of the probabilities that are multiplied.
        FP8: products of FP8 numbers, added block by block.
    """
    L, S, D, E, G = sizes
    index, batch, group = _place(tl.program_id(0) // blocks, G)
    block, sequence = _block(tl.program_id(0) % blocks, table)
    if block < 0:
        return
    q_start, L_here = _sequence(sequence, table[2], L)
    k_start, S_here = _sequence(sequence, table[3], S)
    first = block * KEYS
    key, row, column = _head(key, batch, group, strides[1], k_start, LOADS)
    k = _tile(key, row, column, first, S_here, D, KEYS, BLOCK_D, LOADS)
    value, row, column = _head(value, batch, group, strides[2], k_start, LOADS)
    v = _tile(value, row, column, first, S_here, E, KEYS, BLOCK_E, LOADS)

    keys = first + tl.arange(0, KEYS)
    shift = S_here - L_here if LOWER_RIGHT else 0
    begin, end = _rows_that_see(first, shift, KEYS, L_here, S_here, window, CAUSAL, QUERIES)
    t_factor, sum_factor = _factors(factors[1], scales_ptr, P_OFFSET)
    grad_k = tl.zeros((KEYS, BLOCK_D), tl.float32)
    grad_v = tl.zeros((KEYS, BLOCK_E), tl.float32)
    # One loop over heads and blocks: in a nested one, ptxas makes the tensor cores wait for each product.
    per_head = (end - begin) // QUERIES
    # The gradients of the logits are computed while the product for those of values is under way, if it comes last.
    # FP8 through pointers is not loaded ahead then.
    LATE: tl.constexpr = LOADS or not FP8
    for step in range(per_head * SHARED):
        head, first_row = group * SHARED + step // per_head, begin + step % per_head * QUERIES
        x, row, column = _head(query, batch, head, strides[0], q_start, LOADS)
        q = _tile(x, row, column, first_row, L_here, D, QUERIES, BLOCK_D, LOADS)
        rows = first_row + tl.arange(0, QUERIES)
        at = ((batch * G * SHARED + head) * L + q_start).to(tl.int32)
        # Rows that do not exist get the probabilities of those that see nothing: zero.
        lse = _of_rows(lse_ptr + at, rows, L_here, float("inf"), LOADS)
        p = tl.exp2(tl.fma(tl.dot(k, q.T), factors[0], (P_OFFSET - lse)[None, :]))
        if CAUSAL:
            p = tl.where(_seen(rows[None, :] + shift, keys[:, None], window), p, 0.0)
        x, row, column = _head(grad, batch, head, strides[3], q_start, LOADS)
        g = _tile(x, row, column, first_row, L_here, E, QUERIES, BLOCK_E, LOADS)
        if not LATE:
            grad_v = _plus_product(grad_v, p, g, tl.float8e4nv, FP8)
        sums = _of_rows(sums_ptr + at, rows, L_here, 0.0, LOADS)
        t = tl.dot(v, g.T)
        if LATE:
            grad_v = _plus_product(grad_v, p, g, tl.float8e4nv, FP8)
        d = p * tl.fma(t, t_factor, -(sums * sum_factor)[None, :])
        grad_k = _plus_product(grad_k, d, q, tl.float8e5, FP8)

    grad_k *= _undone(factors[2], scales_ptr, 1, 0)
    grad_v *= _undone(factors[3], scales_ptr, 0, P_OFFSET)
    _store(grad_key_ptr, grad_k, index * S + k_start, first, S_here, D, KEYS, BLOCK_D)
    _store(grad_value_ptr, grad_v, index * S + k_start, first, S_here, E, KEYS, BLOCK_E)


@triton.jit
def over_keys_kernel(
    query,
    key,
    value,
    grad,
    lse_ptr,
    sums_ptr,
    grad_query_ptr,
    scales_ptr,
    strides,
    sizes,
    table,
    factors,
    blocks,
    window,
    CAUSAL: tl.constexpr,
    LOWER_RIGHT: tl.constexpr,
    SHARED: tl.constexpr,
    LOADS: tl.constexpr,
    FP8: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of a block of QUERIES queries, added over blocks of KEYS keys in ascending order; arguments as above.

    grad_query_ptr: [B, H, L, D], contiguous. blocks: programs for each head of queries.
    """
    L, S, D, E, H = sizes
    index, batch, head = _place(tl.program_id(0) // blocks, H)
    # The last blocks see most keys under a causal mask: they start first.
    block, sequence = _block(blocks - 1 - tl.program_id(0) % blocks, table)
    if block < 0:
        return
    q_start, L_here = _sequence(sequence, table[2], L)
    k_start, S_here = _sequence(sequence, table[3], S)
    first = block * QUERIES
    query, row, column = _head(query, batch, head, strides[0], q_start, LOADS)
    q = _tile(query, row, column, first, L_here, D, QUERIES, BLOCK_D, LOADS)
    grad, row, column = _head(grad, batch, head, strides[3], q_start, LOADS)
    g = _tile(grad, row, column, first, L_here, E, QUERIES, BLOCK_E, LOADS)
    rows = first + tl.arange(0, QUERIES)
    at = index * L + q_start
    lse = _of_rows(lse_ptr + at, rows, L_here, float("inf"), LOADS)
    t_factor, sum_factor = _factors(factors[1], scales_ptr, 0)
    sums = _of_rows(sums_ptr + at, rows, L_here, 0.0, LOADS) * sum_factor

    shift = S_here - L_here if LOWER_RIGHT else 0
    begin, full, full_end, end = _keys_seen(first, shift, QUERIES, L_here, S_here, window, CAUSAL, KEYS)
    k = _head(key, batch, head // SHARED, strides[1], k_start, LOADS)
    v = _head(value, batch, head // SHARED, strides[2], k_start, LOADS)
    grad_q = tl.zeros((QUERIES, BLOCK_D), tl.float32)
    # Only blocks at a boundary need a mask; but with loads by pointers, ptxas serializes the products of several loops.
    if LOADS:
        if window is not None:
            grad_q = _add_keys(
                grad_q, q, g, k, v, lse, sums, S_here, D, E, factors[0], t_factor, window, first + shift, begin, full,
                True, CAUSAL, LOADS, FP8, KEYS, QUERIES, BLOCK_D, BLOCK_E,
            )  # fmt: skip
        grad_q = _add_keys(
            grad_q, q, g, k, v, lse, sums, S_here, D, E, factors[0], t_factor, window, first + shift, full, full_end,
            False, CAUSAL, LOADS, FP8, KEYS, QUERIES, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    else:
        full_end = begin
    grad_q = _add_keys(
        grad_q, q, g, k, v, lse, sums, S_here, D, E, factors[0], t_factor, window, first + shift, full_end, end,
        True, CAUSAL, LOADS, FP8, KEYS, QUERIES, BLOCK_D, BLOCK_E,
    )  # fmt: skip

    grad_q *= _undone(factors[2], scales_ptr, 1, 0)
    _store(grad_query_ptr, grad_q, index * L + q_start, first, L_here, D, QUERIES, BLOCK_D)


@triton.jit
def _add_keys(
    grad_q,
    q,
    g,
    key,
    value,
    lse,
    sums,
    S,
    D,
    E,
    base2,
    t_factor,
    window,
    first_place,
    low,
    high,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOADS: tl.constexpr,
    FP8: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The gradients of a block of queries after keys low .. high - 1."""
    for first in range(low, high, KEYS):
        k = _tile(key[0], key[1], key[2], first, S, D, KEYS, BLOCK_D, LOADS)
        p = tl.exp2(tl.fma(tl.dot(q, k.T), base2, -lse[:, None]))
        if MASKED:
            keys = first + tl.arange(0, KEYS)
            seen = (keys < S)[None, :]
            if CAUSAL:
                rows = first_place + tl.arange(0, QUERIES)
                seen &= _seen(rows[:, None], keys[None, :], window)
            p = tl.where(seen, p, 0.0)
        v = _tile(value[0], value[1], value[2], first, S, E, KEYS, BLOCK_E, LOADS)
        d = p * tl.fma(tl.dot(g, v.T), t_factor, -sums[:, None])
        grad_q = _plus_product(grad_q, d, k, tl.float8e5, FP8)
    return grad_q


@triton.jit
def _plus_product(total, left, right, TYPE: tl.constexpr, FP8: tl.constexpr):
    """total + left right; FP8, to which `left` is cast then, is added up by itself first."""
    if FP8:
        return total + tl.dot(left.to(TYPE), right)
    else:
        return tl.dot(left.to(right.dtype), right, total)


@triton.jit
def _place(program, heads):
    """A program's head among those of all batches, its batch, and its head in it."""
    index = program.to(tl.int64)
    return index, index // heads, index % heads


@triton.jit
def _block(program, table):
    """Which block of its sequence a program computes, negative if none, and the sequence."""
    if table[0] is None:
        return program, 0
    else:
        return program - tl.load(table[1] + program), tl.load(table[0] + program)


@triton.jit
def _sequence(sequence, starts_ptr, length):
    """The first row of a sequence and how many it has."""
    if starts_ptr is None:
        return 0, length
    else:
        start = tl.load(starts_ptr + sequence)
        return start, tl.load(starts_ptr + sequence + 1) - start


@triton.jit
def _head(x, batch, head, strides, start, LOADS: tl.constexpr):
    """The rows of one head from row `start` on: a pointer and the stride of rows; or a descriptor, row and column."""
    if LOADS:
        row = batch * strides[0] + head * strides[1] + start
        return x, row.to(tl.int32), (head * strides[3]).to(tl.int32)
    else:
        return x + batch * strides[0] + head * strides[1] + tl.cast(start, tl.int64) * strides[2], strides[2], 0


@triton.jit
def _tile(
    x,
    row,
    column,
    first,
    count,
    width,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    LOADS: tl.constexpr,
):
    """Rows [ROWS, WIDTH] of a head from `first` on, zeros outside of its `count` rows and `width` features.

    With LOADS the tile lies within the head.
    """
    if LOADS:
        return x.load([row + first, column])
    else:
        rows, features = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        # Places within a tile fit into 32 bits, which take half the registers.
        at = tl.arange(0, ROWS)[:, None] * row + features[None, :]
        return tl.load(
            x + tl.cast(first, tl.int64) * row + at,
            mask=(rows < count)[:, None] & (features < width)[None, :],
            other=0.0,
        )


@triton.jit
def _of_rows(x_ptr, rows, count, other, ALL: tl.constexpr):
    """A number of each row, `other` of those that do not exist, unless ALL do."""
    if ALL:
        return tl.load(x_ptr + rows)
    else:
        return tl.load(x_ptr + rows, mask=rows < count, other=other)


@triton.jit
def _seen(row, key, window):
    """Whether queries at places `row` see keys: those up to their own place, `window` of them if there is one."""
    if window is None:
        return key <= row
    else:
        return (key <= row) & (key > row - window)


@triton.jit
def _rows_that_see(first, shift, KEYS: tl.constexpr, L, S, window, CAUSAL: tl.constexpr, QUERIES: tl.constexpr):
    """Where the blocks of queries begin and end that see one of the keys first .. first + KEYS - 1; query i stands at
    place i + shift."""
    begin, end = 0, tl.cdiv(L, QUERIES) * QUERIES
    if CAUSAL:
        begin = tl.minimum(tl.maximum(first - shift, 0) // QUERIES * QUERIES, end)
        if window is not None:
            last = tl.minimum(first + KEYS, S) - 1
            end = tl.minimum(end, tl.cdiv(tl.maximum(last - shift + window, 0), QUERIES) * QUERIES)
            end = tl.maximum(begin, end)
    return begin, end


@triton.jit
def _keys_seen(first, shift, QUERIES: tl.constexpr, L, S, window, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """Of blocks of keys: where those begin that one of the queries first .. first + QUERIES - 1 sees, where those that
    all of them see begin and end, and the end."""
    begin, full, full_end, end = 0, 0, S // KEYS * KEYS, S
    if CAUSAL:
        lowest, highest = first + shift, tl.minimum(first + QUERIES, L) - 1 + shift
        end = tl.minimum(S, tl.maximum(highest + 1, 0))
        full_end = tl.minimum(full_end, tl.maximum(lowest + 1, 0) // KEYS * KEYS)
        if window is not None:
            begin = tl.maximum(lowest - window + 1, 0) // KEYS * KEYS
            full = tl.cdiv(tl.maximum(highest - window + 1, 0), KEYS) * KEYS
    full = tl.minimum(full, end)
    return begin, full, tl.maximum(tl.minimum(full_end, end), full), end


@triton.jit
def _factors(value_factor, scales_ptr, P_OFFSET: tl.constexpr):
    """What t and the row sums are multiplied with: all factors but that of the values are powers of two."""
    t_factor = tl.full([], value_factor, tl.float32)
    sum_factor = tl.full([], 2.0**-P_OFFSET, tl.float32)
    if scales_ptr is not None:
        sum_factor *= tl.load(scales_ptr + 1)
        t_factor *= sum_factor * tl.load(scales_ptr + 2)
    return t_factor, sum_factor


@triton.jit
def _undone(factor, scales_ptr, WHICH: tl.constexpr, P_OFFSET: tl.constexpr):
    """The factor of a gradient, without those of its operands."""
    result = tl.full([], factor, tl.float32)
    if scales_ptr is not None:
        result *= 2.0**-P_OFFSET * tl.load(scales_ptr + 2 + WHICH)
    return result


@triton.jit
def _store(out_ptr, tile, start, first, count, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Write the rows of a tile that exist; `start` is the row of `out` that stands for row 0."""
    rows, features = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = (start + rows.to(tl.int64))[:, None] * width + features[None, :]
    inside = (rows < count)[:, None] & (features < width)[None, :]
    tl.store(out_ptr + at, tile.to(out_ptr.dtype.element_ty), mask=inside)
