"""Device functions of fused attention: one program computes a tile of queries against all keys that these see.

Queries are [B, H, L, D], keys [B, G, S, D], values [B, G, S, E], each head of keys and values serving H / G heads of
queries. An operand is a pointer, or a tensor descriptor, through which Hopper's copy engine loads tiles and puts zeros
beyond the end. Packed sequences are those of one batch entry, and `starts` says where each begins.
"""

import triton
import triton.language as tl


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    out_ptr,
    lse_ptr,
    q_starts_ptr,
    k_starts_ptr,
    sequences,
    heads,
    groups,
    L,
    S,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    window,
    base2,
    p_offset,
    rescale_above,
    factor,
    P_TYPE: tl.constexpr,
    P_TO: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    LOWER_RIGHT: tl.constexpr,
    RAGGED: tl.constexpr,
    DESCENDING: tl.constexpr,
    LAGS: tl.constexpr,
    SUMS_CAST: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    LOADS: tl.constexpr,
    V_TRANSPOSED: tl.constexpr,
    OVERLAPS: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """out = factor * o / l and lse, as `fp8sim.mma.AttentionPlan` has o and l (`total`).

    Args:
        q, k, v: pointers, or descriptors [1, 1, rows, features] if LOADS; that of v has [1, 1, BLOCK_E, BLOCK_N] if
            V_TRANSPOSED, its keys as `transposed_values` orders them. Rows lie at the strides given; features are
            contiguous.
        out_ptr, lse_ptr: [B, H, L, E] and [B, H, L], contiguous.
        q_starts_ptr, k_starts_ptr: [sequences + 1] int32, the first row of each sequence and the end; None: every batch
            entry is a sequence of L queries and S keys.
        window: how many keys a query sees at most, if WINDOWED.
        base2: what makes of q k^T an exponent of 2. rescale_above: matters if LAGS.
        P_TYPE: what probabilities are multiplied as. P_TO: their format as a Conversion, whose numbers P_TYPE holds, if
            they are rounded by float32's addition; None: they are rounded by the conversion to P_TYPE.
        LOWER_RIGHT: the last query stands at the last key. RAGGED: S need not be a multiple of BLOCK_N.
        SUMS_CAST: l adds the cast probabilities.
        OVERLAPS: multiply the probabilities of a block while those of the next are computed; needs LOADS, and batch
            entries that are sequences. HEADS_AT_ONCE: of how many heads the longest tiles start before shorter ones.
    """
    tile, batch, head = _place(tl.program_id(0), L, heads, BLOCK_M, HEADS_AT_ONCE, q_starts_ptr is None)
    q_first, k_first, rows = 0, 0, L
    if q_starts_ptr is not None:
        tile, sequence = _tile_of_sequence(q_starts_ptr, tile, sequences, L, SEQUENCES, BLOCK_M)
        if sequence >= sequences:
            return
        q_first, L = _bounds(q_starts_ptr, sequence, L)
        k_first, S = _bounds(k_starts_ptr, sequence, S)
    group = head // (heads // groups)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)

    if not LOADS:
        q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        k += batch.to(tl.int64) * k_batch + group.to(tl.int64) * k_head
        v += batch.to(tl.int64) * v_batch + group.to(tl.int64) * v_head
    place = batch, group, k_first
    query = _tile(q, (batch, head, q_first), tile * BLOCK_M, L, q_row, D, True, LOADS, BLOCK_M, BLOCK_D)

    shift = S - L if LOWER_RIGHT else 0
    position = row + shift
    first, last = tile * BLOCK_M + shift, tl.minimum(tile * BLOCK_M + BLOCK_M, L) - 1 + shift
    # Blocks of keys: from `begin` on some query sees some key, from `whole` on all see all; up to `partial`, and `end`.
    begin, whole, partial, end = 0, 0, S // BLOCK_N, tl.cdiv(S, BLOCK_N)
    if CAUSAL:
        partial = tl.minimum(tl.maximum(first + 1, 0), S) // BLOCK_N
        end = tl.cdiv(tl.minimum(tl.maximum(last + 1, 0), S), BLOCK_N)
    if WINDOWED:
        begin = tl.minimum(tl.maximum(first - window + 1, 0) // BLOCK_N, end)
        whole = tl.minimum(tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N), end)
        partial = tl.maximum(partial, whole)

    scale = tl.full([], base2, tl.float32)
    offset = tl.full([BLOCK_M], p_offset, tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    o = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    LEFT: tl.constexpr = 2 if DESCENDING else 0
    BEFORE: tl.constexpr = BLOCK_N if DESCENDING else -BLOCK_N
    if OVERLAPS:
        # One block always, which hides all its keys from queries that see none.
        block = tl.maximum(end - 1, begin) if DESCENDING else begin
        key = _tile(k, place, block * BLOCK_N, S, k_row, D, True, LOADS, BLOCK_N, BLOCK_D)
        s = tl.dot(query, key.T)
        if CAUSAL or RAGGED:
            s = tl.where(_seen(block * BLOCK_N, position, S, window, CAUSAL, WINDOWED, BLOCK_N), s, float("-inf"))
        p, shrink, m, total = _softmax(s, m, total, scale, offset, rescale_above, P_TYPE, P_TO, LAGS, SUMS_CAST)
        if DESCENDING:
            whole, partial, end = tl.minimum(whole, block), tl.minimum(partial, block), block
        else:
            begin, whole, partial = block + 1, tl.maximum(whole, block + 1), tl.maximum(partial, block + 1)
    for turn in tl.static_range(3):
        # Blocks that every query sees wholly come between the others, which need masks.
        if turn == 1:
            start, stop = whole, partial
        elif turn == LEFT:
            start, stop = begin, whole
        else:
            start, stop = partial, end
        if turn == 1 or (WINDOWED if turn == LEFT else CAUSAL or RAGGED):
            for step in tl.range(start, stop):
                block = (start + stop - 1 - step if DESCENDING else step) * BLOCK_N
                key = _tile(k, place, block, S, k_row, D, turn != 1, LOADS, BLOCK_N, BLOCK_D)
                s = tl.dot(query, key.T)
                if turn != 1:
                    s = tl.where(_seen(block, position, S, window, CAUSAL, WINDOWED, BLOCK_N), s, float("-inf"))
                if OVERLAPS:
                    value = _values(v, place, block + BEFORE, S, v_row, E, False, LOADS, V_TRANSPOSED, BLOCK_N, BLOCK_E)
                    o = tl.dot(_multiplied(p, P_TYPE, V_TRANSPOSED), value, o * shrink[:, None])
                p, shrink, m, total = _softmax(s, m, total, scale, offset, rescale_above, P_TYPE, P_TO, LAGS, SUMS_CAST)
                if not OVERLAPS:
                    value = _values(v, place, block, S, v_row, E, turn != 1, LOADS, V_TRANSPOSED, BLOCK_N, BLOCK_E)
                    if LOADS and turn != 1 and k_starts_ptr is not None:
                        value = _first_rows(value, S - block, BLOCK_N)
                    o = tl.dot(_multiplied(p, P_TYPE, V_TRANSPOSED), value, o * shrink[:, None])
    if OVERLAPS:
        block = (begin if DESCENDING else end - 1) * BLOCK_N
        value = _values(v, place, block, S, v_row, E, False, LOADS, V_TRANSPOSED, BLOCK_N, BLOCK_E)
        o = tl.dot(_multiplied(p, P_TYPE, V_TRANSPOSED), value, o * shrink[:, None])

    multiplier = tl.full([], factor, tl.float32)
    if RECIPROCAL:
        result = o * (tl.div_rn(tl.full([BLOCK_M], 1.0, tl.float32), total) * multiplier)[:, None]
    else:
        result = tl.div_rn(o, tl.broadcast_to(total[:, None], (BLOCK_M, BLOCK_E))) * multiplier
    sees_none = total == 0.0
    result = tl.where(sees_none[:, None], 0.0, result)
    lse = tl.where(sees_none, float("inf"), tl.fma(m, scale, tl.log2(total) - offset))
    place = (batch * heads + head).to(tl.int64) * rows + q_first + row
    feature = tl.arange(0, BLOCK_E)
    tl.store(lse_ptr + place, lse, mask=row < L)
    inside = (row < L)[:, None] & (feature < E)[None, :]
    tl.store(out_ptr + place[:, None] * E + feature[None, :], result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(
    s,
    m,
    total,
    scale,
    offset,
    rescale_above,
    P_TYPE: tl.constexpr,
    P_TO: tl.constexpr,
    LAGS: tl.constexpr,
    SUMS_CAST: tl.constexpr,
):
    """A block's probabilities, what the output so far is multiplied with, and the maximum and the sum that follow.

    Probabilities are as a loop carries them from one block to the next without moving bits: FP8 ones before their cast,
    others as integers, because Triton would put what it takes for loaded operands into shared memory.
    """
    followed = tl.maximum(m, tl.max(s, 1))
    if LAGS:
        keeps = scale * (followed - m) <= tl.full([], rescale_above, tl.float32)
        followed = tl.where(keeps, m, followed)
    reference = tl.where(followed == float("-inf"), 0.0, followed)  # rows that see no key yet
    shrink = tl.exp2(scale * (m - reference))
    p = tl.exp2(tl.fma(s, scale, tl.fma(reference, -scale, offset)[:, None]))
    rounded = p if P_TO is None else _on_grid(p, P_TO)
    total = tl.fma(total, shrink, tl.sum(rounded.to(P_TYPE).to(tl.float32) if SUMS_CAST else p, 1))
    if P_TYPE.primitive_bitwidth == 8:
        return rounded, shrink, followed, total
    else:
        return rounded.to(P_TYPE).to(tl.int16, bitcast=True), shrink, followed, total


@triton.jit
def _multiplied(p, P_TYPE: tl.constexpr, V_TRANSPOSED: tl.constexpr):
    """Probabilities as the left operand of a product, in the order that `transposed_values` gives keys."""
    ROWS: tl.constexpr = p.shape[0]
    KEYS: tl.constexpr = p.shape[1]
    if V_TRANSPOSED:
        p = p.reshape(ROWS, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(ROWS, KEYS)
    return p.to(P_TYPE, bitcast=P_TYPE.primitive_bitwidth == 16)


@triton.jit
def _tile(
    x,
    place,
    first,
    count,
    stride,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
    LOADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rows first .. first + ROWS - 1 of a sequence; `place` is its batch entry, head and first row."""
    if LOADS:
        return x.load([place[0], place[1], place[2] + first, 0]).reshape(ROWS, COLUMNS)
    else:
        return _rows(x, place[2], first, count, stride, WIDTH, ROWS, COLUMNS, RAGGED)


@triton.jit
def _values(
    v,
    place,
    first,
    count,
    stride,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
    LOADS: tl.constexpr,
    V_TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if V_TRANSPOSED:
        return v.load([place[0], place[1], 0, place[2] + first]).reshape(COLUMNS, ROWS).T
    else:
        return _tile(v, place, first, count, stride, WIDTH, RAGGED, LOADS, ROWS, COLUMNS)


@triton.jit
def _place(program, L, heads, BLOCK_M: tl.constexpr, HEADS_AT_ONCE: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Tile of queries, batch entry and head of a program. Tiles of a head run at the same time, so that its keys stay
    in the cache; under a causal mask the last ones see most, and start first, those of some heads before shorter ones
    of any."""
    if LAST_FIRST:
        tiles = tl.cdiv(L, BLOCK_M)
        before = program // (tiles * HEADS_AT_ONCE) * HEADS_AT_ONCE
        together = tl.minimum(tl.num_programs(0) // tiles - before, HEADS_AT_ONCE)
        place = program - before * tiles
        head = before + place % together
        return tiles - 1 - place // together, head // heads, head % heads
    else:
        tiles = tl.num_programs(0) // heads
        return program % tiles, program * 0, program // tiles


@triton.jit
def _bounds(starts_ptr, sequence, rows):
    """The first row of a sequence and how many it has, inside 0 .. rows whatever `starts` says."""
    first = tl.minimum(tl.maximum(tl.load(starts_ptr + sequence), 0), rows)
    end = tl.minimum(tl.maximum(tl.load(starts_ptr + sequence + 1), first), rows)
    return first, end - first


@triton.jit
def _tile_of_sequence(starts_ptr, tile, sequences, rows, SEQUENCES: tl.constexpr, BLOCK_M: tl.constexpr):
    """The sequence that the tile of this number belongs to when all are counted, and its number there; `sequences` for
    a number beyond the last."""
    index = tl.arange(0, SEQUENCES)
    first = tl.load(starts_ptr + index, mask=index < sequences, other=0)
    end = tl.load(starts_ptr + index + 1, mask=index < sequences, other=0)
    first = tl.minimum(tl.maximum(first, 0), rows)
    end = tl.minimum(tl.maximum(end, first), rows)
    tiles = tl.cdiv(end - first, BLOCK_M)
    sequence = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(index < sequence, tiles, 0), 0)
    return tile - before, tl.where(sequence < sequences, sequence, sequences)


@triton.jit
def _rows(
    x_ptr,
    first,
    start,
    count,
    stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Rows start .. start + ROWS - 1 of a sequence that begins at row `first`, zeros beyond WIDTH and, if RAGGED,
    beyond the end."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = column < WIDTH
    if RAGGED:
        inside = inside & (start + row < count)
    x_ptr += (first + start).to(tl.int64) * stride
    return tl.load(x_ptr + (row * stride + column), mask=inside, other=0.0)


@triton.jit
def _on_grid(p, to: tl.constexpr):
    """Numbers from 0 on, or NaN, rounded to the format: ties to even, at most its largest, NaN kept.

    The sum of p and 2^(e + 23 - M), with e the exponent in whose binade p lies, at least emin, has the spacing of the
    format with M bits of mantissa.
    """
    LEAST: tl.constexpr = (to.emin + 127) << 23
    SHIFT: tl.constexpr = 23 - to.mantissa_bits
    LARGEST: tl.constexpr = ((to.emin + 126) << 23) + (to.max_code << SHIFT)
    largest = tl.full([], LARGEST, tl.int32).to(tl.float32, bitcast=True)
    p = tl.minimum(p, largest, propagate_nan=tl.PropagateNan.ALL)
    exponent = tl.maximum(p.to(tl.int32, bitcast=True) & 0x7F800000, LEAST)
    power = (exponent + (SHIFT << 23)).to(tl.float32, bitcast=True)
    return (p + power) - power


@triton.jit
def _first_rows(x, count, ROWS: tl.constexpr):
    """x [ROWS, C] with zeros in place of the rows from `count` on: those of the next sequence may hold NaN, which a
    probability of zero does not remove."""
    INTEGER: tl.constexpr = tl.int8 if x.dtype.primitive_bitwidth == 8 else tl.int16
    kept = tl.where((tl.arange(0, ROWS) < count)[:, None], x.to(INTEGER, bitcast=True), 0)
    return kept.to(x.dtype, bitcast=True)


@triton.jit
def _seen(block, position, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N]: whether queries that stand at `position` see the keys from `block` on."""
    key = (block + tl.arange(0, BLOCK_N))[None, :]
    seen = key < S
    if CAUSAL:
        seen = seen & (key <= position[:, None])
    if WINDOWED:
        seen = seen & (key > position[:, None] - window)
    return seen
