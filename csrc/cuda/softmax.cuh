// The running softmax of a tile of queries over blocks of keys, in the registers of tensor-core results.
//
// Four warps hold 64 rows as `wgmma_result` places them, which is how results of m16n8k16 lie in them, too: register i of
// a thread is in its row i / 2 % 2, and the four threads of a quad share both rows.
#pragma once

#include "cuda/attention.hpp"
#include "cuda/attention_intrinsics.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/layouts.hpp"

namespace fp8sim {

constexpr float kUnseen = -__builtin_huge_valf();

// What is kept of a row between blocks. The denominator is this thread's part of it.
struct RowState {
    float maximum = kUnseen;
    float denominator = 0.0f;
};

// Blocks of keys [first, last).
struct KeyBlocks {
    int first;
    int last;
};

// Keys [first, last] that a query sees.
struct SeenKeys {
    int first;
    int last;
};

FP8SIM_HD constexpr SeenKeys seen_by(const Mask& mask, int query, int keys) {
    const int place = query + mask.offset;
    return {mask.window == 0 ? 0 : place - mask.window + 1, mask.causal ? smaller(place, keys - 1) : keys - 1};
}

FP8SIM_HD constexpr bool sees(const Mask& mask, int query, int key, int keys) {
    const SeenKeys seen = seen_by(mask, query, keys);
    return seen.first <= key && key <= seen.last;
}

// The blocks of which some query of [query, query + queries) sees a key.
FP8SIM_HD KeyBlocks blocks_of(const Mask& mask, int query, int queries, int keys, int block) {
    const int last_place = query + queries - 1 + mask.offset;
    const int end = mask.causal ? larger(smaller(last_place + 1, keys), 0) : keys;
    const int begin = mask.window == 0 ? 0 : smaller(larger(query + mask.offset - mask.window + 1, 0), end);
    return {begin / block, ceil_div(end, block)};
}

// Whether all of these queries see all keys of a block.
FP8SIM_HD constexpr bool sees_all(const Mask& mask, int query, int queries, int key, int count, int keys) {
    return sees(mask, query, key + count - 1, keys) && sees(mask, query + queries - 1, key, keys);
}

constexpr int kRowThreads = 128, kThreadRows = 64;

FP8SIM_DEVICE int row_thread() { return thread_index() % kRowThreads; }

// Logits of keys that their query does not see become -infinity. `query`, `key`: the first ones.
template <int registers>
FP8SIM_DEVICE void hide_keys(const AttentionJob& job, int query, int key, float (&logits)[registers]) {
    if (sees_all(job.mask, query, kThreadRows, key, 2 * registers, job.extent.keys)) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Place at = wgmma_result(row_thread(), 2 * half);  // the thread's first one in the row
        const SeenKeys seen = seen_by(job.mask, query + at.row, job.extent.keys);
        const int first = seen.first - key - at.column, last = seen.last - key - at.column;
#pragma unroll
        for (int i = 0; i < registers; ++i) {
            const int further = wgmma_result(0, i).column;
            if (i / 2 % 2 == half && (further < first || further > last)) logits[i] = kUnseen;
        }
    }
}

template <int registers>
FP8SIM_DEVICE float largest_of_row(const float (&logits)[registers], int half, float before) {
    float largest = before;
#pragma unroll
    for (int i = 0; i < registers; ++i) {
        if (i / 2 % 2 == half) largest = fmaxf(largest, logits[i]);
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    return fmaxf(largest, shuffle_xor(largest, 2));
}

// Logits become probabilities before their cast; `shrink` is what the rows' results so far are to be multiplied by.
template <int registers>
FP8SIM_DEVICE void add_block(const Softmax& softmax, float (&logits)[registers], RowState (&rows)[2],
                             float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        RowState& row = rows[half];
        const float before = row.maximum;
        row.maximum = largest_of_row(logits, half, before);
        const float reference = row.maximum == kUnseen ? 0.0f : row.maximum;  // a row that sees no key yet
        shrink[half] = exp2_of(softmax.c * (before - reference));
        const float shift = multiply_add(reference, -softmax.c, softmax.p_offset);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < registers; ++i) {
            if (i / 2 % 2 != half) continue;
            logits[i] = exp2_of(multiply_add(logits[i], softmax.c, shift));
            sum += logits[i];
        }
        row.denominator = row.denominator * shrink[half] + sum;
    }
}

template <int registers>
FP8SIM_DEVICE void shrink_rows(float (&result)[registers], const float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < registers; ++i) result[i] *= shrink[i / 2 % 2];
}

// The whole row's denominator, in every thread of the quad.
FP8SIM_DEVICE void finish_row(RowState& row) {
    row.denominator += shuffle_xor(row.denominator, 1);
    row.denominator += shuffle_xor(row.denominator, 2);
}

FP8SIM_DEVICE float log_sum(const Softmax& softmax, const RowState& row) {
    if (row.denominator == 0.0f) return -kUnseen;
    return multiply_add(row.maximum, softmax.c, log2_of(row.denominator) - softmax.p_offset);
}

// What a row's result is multiplied by at the end, 1 / l * factor; 0 in a row that sees no key.
FP8SIM_DEVICE float inverse_sum(const Softmax& softmax, const RowState& row) {
    return row.denominator == 0.0f ? 0.0f : 1.0f / row.denominator * softmax.factor;
}

// Two probabilities in the format that the values are multiplied with: their own.

FP8SIM_DEVICE uint32_t pair_of(Float16, float low, float high) { return round_to_float16_pair(low, high); }
FP8SIM_DEVICE uint32_t pair_of(Bfloat16, float low, float high) { return round_to_bfloat16_pair(low, high); }
FP8SIM_DEVICE uint32_t pair_of(E4m3, float low, float high) { return round_to_e4m3(low, high); }

template <class Storage>
struct alignas(2 * sizeof(Storage)) StoredPair {
    Storage element[2];
};

// Stores a row of a thread, `at` being its number among all rows, as far as the result has columns; two at a time where
// every row starts at a multiple of two.
template <class Out, int registers>
FP8SIM_DEVICE void store_row(Out type, const AttentionJob& job, int64_t at, int half, float inverse,
                             const float (&result)[registers]) {
    using Storage = typename Out::Storage;
    using Pair = StoredPair<Storage>;
    const int features = job.extent.features;
    Storage* out = static_cast<Storage*>(job.out) + at * features;
    const bool in_pairs = features % 2 == 0 && reinterpret_cast<uintptr_t>(job.out) % sizeof(Pair) == 0;
#pragma unroll
    for (int i = 2 * half; i < registers; i += 4) {
        const int feature = wgmma_result(row_thread(), i).column;
        if (feature >= features) continue;
        Pair pair;
#pragma unroll
        for (int k = 0; k < 2; ++k) pair.element[k] = static_cast<Storage>(rounded(type, result[i + k] * inverse));
        if (in_pairs) {
            *reinterpret_cast<Pair*>(out + feature) = pair;
        } else {
            out[feature] = pair.element[0];
            if (feature + 1 < features) out[feature + 1] = pair.element[1];
        }
    }
}

// Stores what lies within the result of rows from `query` on. `head`: its number among those of the whole batch.
template <int registers>
FP8SIM_DEVICE void store_rows(const AttentionJob& job, int64_t head, int query, RowState (&rows)[2],
                              const float (&result)[registers]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        finish_row(rows[half]);
        const int row = query + wgmma_result(row_thread(), 2 * half).row;
        if (row >= job.extent.queries) continue;
        const int64_t at = head * job.extent.queries + row;
        const float inverse = inverse_sum(job.softmax, rows[half]);
        if (row_thread() % 4 == 0) job.lse[at] = log_sum(job.softmax, rows[half]);
        if (job.out_type == Result::kFloat32) store_row(Float32{}, job, at, half, inverse, result);
        else if (job.out_type == Result::kFloat16) store_row(Float16{}, job, at, half, inverse, result);
        else store_row(Bfloat16{}, job, at, half, inverse, result);
    }
}

}  // namespace fp8sim
