"""Device functions of the backward pass of fused attention: sums of rows, the pass over queries, the pass over keys.

Tensors are [B, heads, rows, features] with contiguous features and any other strides; packed sequences are those of one
batch, found through tables. Names, of a tile: s = q k^T, p the probabilities, t = g v^T with g the gradient of the
output as it is multiplied, d the gradient of the logits. A tile of keys is the left operand in the pass over queries,
so that probabilities stay in registers on their way from one product to the next.
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
    grad_batch,
    grad_head,
    grad_row,
    output_batch,
    output_head,
    output_row,
    L,
    H,
    E,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """sums[b, h, i] = sum_e g[b, h, i, e] * output[b, h, i, e], where g is the gradient of the output.

    cast_ptr: [B, H, L, E] contiguous, E5M2, where the gradient times scales[0] goes; it is then the one that is summed.
    None: the gradient is multiplied as it is.
    """
    blocks = tl.cdiv(L, BLOCK)
    index, batch, head = _place(tl.program_id(0) // blocks, H)
    rows = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    features = tl.arange(0, BLOCK_E)
    inside = (rows < L)[:, None] & (features < E)[None, :]
    at = rows.to(tl.int64)[:, None]
    grad = tl.load(
        grad_ptr + batch * grad_batch + head * grad_head + at * grad_row + features[None, :], mask=inside, other=0.0
    )
    output = tl.load(
        output_ptr + batch * output_batch + head * output_head + at * output_row + features[None, :],
        mask=inside,
        other=0.0,
    )
    if cast_ptr is not None:
        grad = (grad.to(tl.float32) * tl.load(scales_ptr)).to(tl.float8e5)
        tl.store(cast_ptr + (index * L + at) * E + features[None, :], grad, mask=inside)
    sums = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    if cast_ptr is not None:
        sums *= tl.load(scales_ptr + 2)
    tl.store(sums_ptr + index * L + rows, sums, mask=rows < L)


@triton.jit
def over_queries_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_ptr,
    lse_ptr,
    sums_ptr,
    grad_key_ptr,
    grad_value_ptr,
    scales_ptr,
    sequence_ptr,
    first_block_ptr,
    starts_q_ptr,
    starts_k_ptr,
    blocks,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    grad_batch,
    grad_head,
    grad_row,
    L,
    S,
    G,
    D,
    E,
    base2,
    value_factor,
    grad_key_factor,
    grad_value_factor,
    window,
    CAUSAL: tl.constexpr,
    SHARED: tl.constexpr,
    Q_KIND: tl.constexpr,
    K_KIND: tl.constexpr,
    V_KIND: tl.constexpr,
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
        lse_ptr, sums_ptr: [B, H, L] float32.
        grad_key_ptr: [B, G, S, D]. grad_value_ptr: [B, G, S, E]. Both contiguous.
        scales_ptr: factors of the gradients of output and logits before their casts, powers of two, and their inverses;
            with FP8.
        sequence_ptr, first_block_ptr: which packed sequence each program works on, and the program of its first block;
            None: each batch is one sequence. starts_q_ptr, starts_k_ptr: [N + 1], where sequences start.
        blocks: programs for each head of keys.
        Q_KIND, K_KIND, V_KIND: None: multiplied as they are in memory; otherwise how FP8 is widened to bfloat16.
        P_OFFSET: added to the exponents of the probabilities that are multiplied.
        FP8: products of FP8 numbers, added block by block.
    """
    index, batch, group = _place(tl.program_id(0) // blocks, G)
    block, sequence = _block(tl.program_id(0) % blocks, sequence_ptr, first_block_ptr)
    if block < 0:
        return
    q_start, L_here = _sequence(sequence, starts_q_ptr, L)
    k_start, S_here = _sequence(sequence, starts_k_ptr, S)
    first = block * KEYS
    keys = first + tl.arange(0, KEYS)
    k_at, v_at = batch * key_batch + group * key_head, batch * value_batch + group * value_head
    k = _rows(key_ptr + k_at, k_start, keys, key_row, S_here, D, BLOCK_D, K_KIND)
    v = _rows(value_ptr + v_at, k_start, keys, value_row, S_here, E, BLOCK_E, V_KIND)

    begin, full, full_end, end = _rows_that_see(first, KEYS, L_here, S_here, window, CAUSAL, QUERIES)
    grad_k = tl.zeros((KEYS, BLOCK_D), tl.float32)
    grad_v = tl.zeros((KEYS, BLOCK_E), tl.float32)
    t_factor, sum_factor = _factors(value_factor, scales_ptr, P_OFFSET)
    for shared in range(SHARED):
        head = group * SHARED + shared
        q_base = query_ptr + batch * query_batch + head * query_head
        g_base = grad_ptr + batch * grad_batch + head * grad_head
        of_rows = (batch * G * SHARED + head) * L + q_start
        for part in tl.static_range(3):
            MASKED: tl.constexpr = part != 1
            low, high = begin, full
            if part == 1:
                low, high = full, full_end
            if part == 2:
                low, high = full_end, end
            if part == 1 or CAUSAL:
                for start in range(low, high, QUERIES):
                    rows = start + tl.arange(0, QUERIES)
                    q = _rows(q_base, q_start, rows, query_row, L_here, D, BLOCK_D, Q_KIND)
                    lse = tl.load(lse_ptr + of_rows + rows, mask=rows < L_here, other=float("inf"))
                    s = tl.dot(k, q.T)
                    p = tl.exp2(tl.fma(s, base2, (P_OFFSET - lse)[None, :]))
                    if MASKED:
                        p = tl.where(_seen(rows[None, :], keys[:, None], window), p, 0.0)
                    g = _rows(g_base, q_start, rows, grad_row, L_here, E, BLOCK_E, None)
                    if FP8:
                        grad_v += tl.dot(p.to(tl.float8e4nv), g)
                    else:
                        grad_v = tl.dot(p.to(g.dtype), g, grad_v)
                    sums = tl.load(sums_ptr + of_rows + rows, mask=rows < L_here, other=0.0)
                    t = tl.dot(v, g.T)
                    d = p * tl.fma(t, t_factor, -(sums * sum_factor)[None, :])
                    if FP8:
                        grad_k += tl.dot(d.to(tl.float8e5), q)
                    else:
                        grad_k = tl.dot(d.to(q.dtype), q, grad_k)

    grad_k *= _undone(grad_key_factor, scales_ptr, 1, 0)
    grad_v *= _undone(grad_value_factor, scales_ptr, 0, P_OFFSET)
    at = index * S + k_start
    _store(grad_key_ptr, grad_k, at, keys, S_here, D, BLOCK_D)
    _store(grad_value_ptr, grad_v, at, keys, S_here, E, BLOCK_E)


@triton.jit
def over_keys_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_ptr,
    lse_ptr,
    sums_ptr,
    grad_query_ptr,
    scales_ptr,
    sequence_ptr,
    first_block_ptr,
    starts_q_ptr,
    starts_k_ptr,
    blocks,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    grad_batch,
    grad_head,
    grad_row,
    L,
    S,
    H,
    D,
    E,
    base2,
    value_factor,
    grad_query_factor,
    window,
    CAUSAL: tl.constexpr,
    SHARED: tl.constexpr,
    Q_KIND: tl.constexpr,
    K_KIND: tl.constexpr,
    V_KIND: tl.constexpr,
    FP8: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of a block of QUERIES queries, added over blocks of KEYS keys in ascending order; arguments as above.

    grad_query_ptr: [B, H, L, D], contiguous.
    """
    index, batch, head = _place(tl.program_id(0) // blocks, H)
    # The last blocks see most keys under a causal mask: they start first.
    block, sequence = _block(blocks - 1 - tl.program_id(0) % blocks, sequence_ptr, first_block_ptr)
    if block < 0:
        return
    q_start, L_here = _sequence(sequence, starts_q_ptr, L)
    k_start, S_here = _sequence(sequence, starts_k_ptr, S)
    first = block * QUERIES
    rows = first + tl.arange(0, QUERIES)
    q_base = query_ptr + batch * query_batch + head * query_head
    q = _rows(q_base, q_start, rows, query_row, L_here, D, BLOCK_D, Q_KIND)
    g = _rows(grad_ptr + batch * grad_batch + head * grad_head, q_start, rows, grad_row, L_here, E, BLOCK_E, None)
    of_rows = index * L + q_start + rows
    lse = tl.load(lse_ptr + of_rows, mask=rows < L_here, other=float("inf"))
    t_factor, sum_factor = _factors(value_factor, scales_ptr, 0)
    sums = tl.load(sums_ptr + of_rows, mask=rows < L_here, other=0.0) * sum_factor

    begin, full, full_end, end = _keys_seen(first, QUERIES, L_here, S_here, window, CAUSAL, KEYS)
    group = head // SHARED
    k_base = key_ptr + batch * key_batch + group * key_head
    v_base = value_ptr + batch * value_batch + group * value_head
    grad_q = tl.zeros((QUERIES, BLOCK_D), tl.float32)
    for part in tl.static_range(3):
        MASKED: tl.constexpr = part != 1
        low, high = begin, full
        if part == 1:
            low, high = full, full_end
        if part == 2:
            low, high = full_end, end
        if part != 0 or window is not None:
            for start in range(low, high, KEYS):
                keys = start + tl.arange(0, KEYS)
                k = _rows(k_base, k_start, keys, key_row, S_here, D, BLOCK_D, K_KIND)
                s = tl.dot(q, k.T)
                p = tl.exp2(tl.fma(s, base2, -lse[:, None]))
                if MASKED:
                    seen = (keys < S_here)[None, :]
                    if CAUSAL:
                        seen &= _seen(rows[:, None], keys[None, :], window)
                    p = tl.where(seen, p, 0.0)
                v = _rows(v_base, k_start, keys, value_row, S_here, E, BLOCK_E, V_KIND)
                t = tl.dot(g, v.T)
                d = p * tl.fma(t, t_factor, -sums[:, None])
                if FP8:
                    grad_q += tl.dot(d.to(tl.float8e5), k)
                else:
                    grad_q = tl.dot(d.to(k.dtype), k, grad_q)

    grad_q *= _undone(grad_query_factor, scales_ptr, 1, 0)
    _store(grad_query_ptr, grad_q, index * L + q_start, rows, L_here, D, BLOCK_D)


@triton.jit
def _place(program, heads):
    """A program's head among those of all batches, its batch, and its head in it."""
    index = program.to(tl.int64)
    return index, index // heads, index % heads


@triton.jit
def _block(program, sequence_ptr, first_block_ptr):
    """Which block of its sequence a program computes, negative if none, and the sequence."""
    if sequence_ptr is None:
        return program, 0
    else:
        sequence = tl.load(sequence_ptr + program)
        return program - tl.load(first_block_ptr + program), sequence


@triton.jit
def _sequence(sequence, starts_ptr, length):
    """The first row of a sequence and how many it has."""
    if starts_ptr is None:
        return 0, length
    else:
        start = tl.load(starts_ptr + sequence)
        return start, tl.load(starts_ptr + sequence + 1) - start


@triton.jit
def _rows(base_ptr, start, rows, stride, count, width, BLOCK_WIDTH: tl.constexpr, KIND: tl.constexpr):
    """Rows [R, BLOCK_WIDTH] of a sequence that starts at row `start`, zeros outside of its `count` rows."""
    features = tl.arange(0, BLOCK_WIDTH)
    at = (start + rows).to(tl.int64)[:, None] * stride + features[None, :]
    inside = (rows < count)[:, None] & (features < width)[None, :]
    return _widened(tl.load(base_ptr + at, mask=inside, other=0.0), KIND)


@triton.jit
def _widened(tile, KIND: tl.constexpr):
    """FP8 numbers as bfloat16, which holds them: codes, uint8, of E4M3 or E5M2; or numbers that the GPU converts."""
    if KIND is None:
        return tile
    elif KIND == "convert":
        return tile.to(tl.bfloat16)
    else:
        MANTISSA: tl.constexpr = 3 if KIND == "e4m3" else 2
        BIAS: tl.constexpr = 7 if KIND == "e4m3" else 15
        LARGEST: tl.constexpr = 0x7E if KIND == "e4m3" else 0x7B
        wide = tile.to(tl.uint32)
        magnitude = wide & 0x7F
        power: tl.constexpr = 2.0 ** (127 - BIAS)
        number = (magnitude << (23 - MANTISSA)).to(tl.float32, bitcast=True) * power
        special = 0x7FC00000
        if KIND == "e5m2":
            special = tl.where(magnitude == 0x7C, 0x7F800000, 0x7FC00000)
        pattern = tl.where(magnitude > LARGEST, special, number.to(tl.uint32, bitcast=True)) | (wide & 0x80) << 24
        return pattern.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _seen(row, key, window):
    """Whether queries see keys: those up to their own place, `window` of them if there is one."""
    if window is None:
        return key <= row
    else:
        return (key <= row) & (key > row - window)


@triton.jit
def _rows_that_see(first, KEYS: tl.constexpr, L, S, window, CAUSAL: tl.constexpr, QUERIES: tl.constexpr):
    """Of blocks of queries: where those begin that see one of the keys first .. first + KEYS - 1, where those that see
    all of them begin and end, and the end."""
    end = tl.cdiv(L, QUERIES) * QUERIES
    begin, full, full_end = 0, 0, end
    if CAUSAL:
        last = tl.minimum(first + KEYS, S) - 1
        begin = first // QUERIES * QUERIES
        full = tl.cdiv(last, QUERIES) * QUERIES
        if window is not None:
            full_end = (first + window) // QUERIES * QUERIES
            end = tl.minimum(end, tl.cdiv(last + window, QUERIES) * QUERIES)
    full = tl.minimum(full, end)
    return begin, full, tl.maximum(tl.minimum(full_end, end), full), end


@triton.jit
def _keys_seen(first, QUERIES: tl.constexpr, L, S, window, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """Of blocks of keys, likewise: those that one of the queries first .. first + QUERIES - 1 sees, or all of them."""
    begin, full, full_end, end = 0, 0, S // KEYS * KEYS, S
    if CAUSAL:
        last = tl.minimum(first + QUERIES, L) - 1
        end = tl.minimum(S, last + 1)
        full_end = tl.minimum(full_end, (first + 1) // KEYS * KEYS)
        if window is not None:
            begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
            full = tl.cdiv(tl.maximum(last - window + 1, 0), KEYS) * KEYS
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
def _store(out_ptr, tile, start, rows, count, width, BLOCK_WIDTH: tl.constexpr):
    features = tl.arange(0, BLOCK_WIDTH)
    at = (start + rows.to(tl.int64))[:, None] * width + features[None, :]
    inside = (rows < count)[:, None] & (features < width)[None, :]
    tl.store(out_ptr + at, tile.to(out_ptr.dtype.element_ty), mask=inside)
