// Fused attention by mma.sync on 16-bit numbers, for every GPU from Ampere on; FP8 numbers are widened to binary16.
//
// A block computes kQueries rows of one head, a warp 16 of them. Keys and values come block by block into two stages of
// shared memory; the next block's asynchronous copies run while one is multiplied. A warp's probabilities stay in its
// registers: the result of one instruction is the operand of the next.
#pragma once

#include "cuda/attention_layouts.hpp"
#include "cuda/matmul_mma.cuh"
#include "cuda/softmax.cuh"

namespace fp8sim {

template <class Type_, int features>
struct AttentionMmaTile {
    using Type = Type_;
    static constexpr int kFeatures = features;
    static constexpr int kThreads = kRowThreads, kQueries = kThreadRows;
    static constexpr int kKeys = attention_block(features, kAmpere);
    static constexpr int kInstructionDepth = 16;
    static constexpr int kElement = sizeof(typename Type::Storage);
    static constexpr int kRowBytes = kFeatures * kElement;
    static constexpr int kQueryBytes = kQueries * kRowBytes, kKeyBytes = kKeys * kRowBytes;
    static constexpr int kStages = 2, kStageBytes = 2 * kKeyBytes;
    static constexpr int kSharedBytes = kQueryBytes + kStages * kStageBytes;
    static constexpr int kLogits = kKeys / 2, kResults = kFeatures / 2;  // registers of a thread

    static_assert(kKeys % kInstructionDepth == 0 && kFeatures % kInstructionDepth == 0, "whole instructions");
    static_assert(kRowBytes / kChunk % 4 == 0, "chunks are permuted by four or eight");
    static_assert(kSharedBytes <= 101376, "shared memory of a block, GPUs of compute capability 8.6 included");
};

// Producer: all threads start copies of rows [first, first + rows) of a matrix of `count` rows; zeros beyond.

template <class Tile, int rows>
FP8SIM_DEVICE void copy_head_rows(uint32_t target, const char* matrix, int64_t per_row, int first, int count,
                                  int features) {
    constexpr int kChunks = Tile::kRowBytes / kChunk;
#pragma unroll
    for (int piece = thread_index(); piece < rows * kChunks; piece += Tile::kThreads) {
        const int row = piece / kChunks, chunk = piece % kChunks;
        const int left = features * Tile::kElement - chunk * kChunk;
        const bool inside = first + row < count && left > 0;
        const char* source = matrix + (first + row) * per_row * Tile::kElement + chunk * kChunk;
        copy_chunk(target + row_chunk<Tile::kRowBytes>(row, chunk), inside ? source : matrix,
                   inside ? smaller(left, kChunk) : 0);
    }
}

template <class Tile>
FP8SIM_DEVICE const char* head_of(const HeadMatrices& x, int batch, int head) {
    return static_cast<const char*>(x.address) + (batch * x.per_batch + head * x.per_head) * Tile::kElement;
}

// Operands of m16n8k16 from rows in shared memory. 16-bit ones come as whole matrices, FP8 ones pair by pair.

// a: rows [row, row + 16), k [k, k + 16).
template <class Tile>
FP8SIM_DEVICE void load_a(uint32_t rows, int row, int k, uint32_t (&a)[4]) {
    const int lane = Tile::kElement == 2 ? thread_index() % 32 : only_here(thread_index() % 32);
    if constexpr (Tile::kElement == 2) {
        load_matrices(a, rows + row_chunk<Tile::kRowBytes>(row + lane % 16, k / 8 + lane / 16));
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Place at = mma_a(lane, i);
            const int byte = k + at.column;
            a[i] = load_pair(typename Tile::Type{},
                             rows + row_chunk<Tile::kRowBytes>(row + at.row, byte / kChunk) + byte % kChunk);
        }
    }
}

// b of two instructions, [columns [row, row + 16), k]: rows are columns of the product.
template <class Tile>
FP8SIM_DEVICE void load_b(uint32_t rows, int row, int k, uint32_t (&b)[2][2]) {
    const int lane = Tile::kElement == 2 ? thread_index() % 32 : only_here(thread_index() % 32);
    if constexpr (Tile::kElement == 2) {
        uint32_t words[4];
        const int matrix = lane / 8;
        load_matrices(words, rows + row_chunk<Tile::kRowBytes>(row + lane % 8 + matrix / 2 * 8, k / 8 + matrix % 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = words[i];
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Place at = mma_b(lane, i % 2);
            const int byte = k + at.column;
            b[i / 2][i % 2] =
                load_pair(typename Tile::Type{},
                          rows + row_chunk<Tile::kRowBytes>(row + i / 2 * 8 + at.row, byte / kChunk) + byte % kChunk);
        }
    }
}

// b of two instructions, [columns [column, column + 16), k from `row` on]: rows are the numbers that are summed over.
template <class Tile>
FP8SIM_DEVICE void load_b_down(uint32_t rows, int row, int column, uint32_t (&b)[2][2]) {
    const int lane = Tile::kElement == 2 ? thread_index() % 32 : only_here(thread_index() % 32);
    if constexpr (Tile::kElement == 2) {
        uint32_t words[4];
        load_matrices_transposed(words, rows + row_chunk<Tile::kRowBytes>(row + lane % 16, column / 8 + lane / 16));
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = words[i];
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Place at = mma_b(lane, i % 2);
            const uint32_t within = i / 2 * 8 + at.row;  // of a chunk, since columns come by 16
            const uint32_t low = load_shared_8(rows + row_chunk<Tile::kRowBytes>(row + at.column, column / kChunk) + within);
            const uint32_t high =
                load_shared_8(rows + row_chunk<Tile::kRowBytes>(row + at.column + 1, column / kChunk) + within);
            b[i / 2][i % 2] = widened_pair(typename Tile::Type{}, low | high << 8);
        }
    }
}

// Consumer: a warp's 16 rows.

// The four registers of one instruction's result, among those of its neighbours.
template <int registers>
FP8SIM_DEVICE float (&sum_at(float (&sums)[registers], int first))[4] {
    return reinterpret_cast<float(&)[4]>(sums[first]);
}

template <class Tile>
FP8SIM_DEVICE void multiply_keys(uint32_t queries, uint32_t keys, float (&logits)[Tile::kLogits]) {
    const int row = thread_index() / 32 * 16;
#pragma unroll
    for (int i = 0; i < Tile::kLogits; ++i) logits[i] = 0.0f;
    // FP8 is widened here: more steps side by side would take more registers than there are.
#pragma unroll(Tile::kElement == 2 ? Tile::kFeatures : 2)
    for (int k = 0; k < Tile::kFeatures; k += Tile::kInstructionDepth) {
        uint32_t a[4];
        load_a<Tile>(queries, row, k, a);
#pragma unroll
        for (int key = 0; key < Tile::kKeys; key += 16) {
            uint32_t b[2][2];
            load_b<Tile>(keys, key, k, b);
#pragma unroll
            for (int i = 0; i < 2; ++i) multiply(typename Tile::Type{}, sum_at(logits, (key + 8 * i) / 2), a, b[i]);
        }
    }
}

// A pair of probabilities as the instruction takes it.
FP8SIM_DEVICE uint32_t probabilities(Float16 type, float low, float high) { return pair_of(type, low, high); }
FP8SIM_DEVICE uint32_t probabilities(Bfloat16 type, float low, float high) { return pair_of(type, low, high); }
FP8SIM_DEVICE uint32_t probabilities(E4m3 type, float low, float high) {
    return widened_pair(type, pair_of(type, low, high));
}

// All are cast before the first product: half as many registers are held from then on.
template <class Tile>
FP8SIM_DEVICE void multiply_values(const float (&p)[Tile::kLogits], uint32_t values, float (&result)[Tile::kResults]) {
    uint32_t a[Tile::kKeys / Tile::kInstructionDepth][4];
#pragma unroll
    for (int i = 0; i < Tile::kLogits / 2; ++i) {
        a[i / 4][i % 4] = probabilities(typename Tile::Type{}, p[2 * i], p[2 * i + 1]);
    }
#pragma unroll
    for (int key = 0; key < Tile::kKeys; key += Tile::kInstructionDepth) {
#pragma unroll
        for (int feature = 0; feature < Tile::kFeatures; feature += 16) {
            uint32_t b[2][2];
            load_b_down<Tile>(values, key, feature, b);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                multiply(typename Tile::Type{}, sum_at(result, (feature + 8 * i) / 2),
                         a[key / Tile::kInstructionDepth], b[i]);
            }
        }
    }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) attention_mma_kernel(AttentionJob job) {
#if !FP8SIM_HAS_WGMMA
    const AttentionExtent& extent = job.extent;
    const int tiles = ceil_div(extent.queries, Tile::kQueries);
    const int first = (tiles - 1 - block_index() % tiles) * Tile::kQueries;  // under a causal mask the longest first
    const int64_t matrix = block_index() / tiles;
    const int batch = static_cast<int>(matrix / extent.heads), head = static_cast<int>(matrix % extent.heads);
    const int group = head / (extent.heads / extent.groups);
    const char* key_head = head_of<Tile>(job.k, batch, group);
    const char* value_head = head_of<Tile>(job.v, batch, group);
    const uint32_t queries = shared_memory(), stages = queries + Tile::kQueryBytes;
    const KeyBlocks blocks = blocks_of(job.mask, first, Tile::kQueries, extent.keys, Tile::kKeys);

    const auto copy_stage = [&](int block) {
        const uint32_t stage = stages + block % Tile::kStages * Tile::kStageBytes;
        if (block < blocks.last) {
            copy_head_rows<Tile, Tile::kKeys>(stage, key_head, job.k.per_row, block * Tile::kKeys, extent.keys,
                                              extent.features);
            copy_head_rows<Tile, Tile::kKeys>(stage + Tile::kKeyBytes, value_head, job.v.per_row, block * Tile::kKeys,
                                              extent.keys, extent.features);
        }
        copy_commit();  // an empty group, too, counts
    };

    copy_head_rows<Tile, Tile::kQueries>(queries, head_of<Tile>(job.q, batch, head), job.q.per_row, first,
                                         extent.queries, extent.features);
    copy_stage(blocks.first);
    RowState rows[2];
    float result[Tile::kResults] = {};
    for (int block = blocks.first; block < blocks.last; ++block) {
        copy_stage(block + 1);
        copy_wait<Tile::kStages - 1>();
        block_sync();
        const uint32_t stage = stages + block % Tile::kStages * Tile::kStageBytes;
        float logits[Tile::kLogits], shrink[2];
        multiply_keys<Tile>(queries, stage, logits);
        hide_keys(job, first, block * Tile::kKeys, logits);
        add_block(job.softmax, logits, rows, shrink);
        shrink_rows(result, shrink);
        multiply_values<Tile>(logits, stage + Tile::kKeyBytes, result);
        block_sync();  // all have read the stage that is filled next
    }
    copy_wait<0>();
    store_rows(job, matrix, first, rows, result);
#endif
}

}  // namespace fp8sim
