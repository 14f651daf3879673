// Matrix products by mma.sync on 16-bit numbers, for every GPU from Ampere on; FP8 numbers are widened to binary16.
//
// A block computes one tile after another; a warp 64 rows and 32 columns of it. Stages of shared memory are filled by
// asynchronous copies of 16 bytes, kStages - 1 of them ahead of the one that is multiplied.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/layouts.hpp"
#include "cuda/matmul.hpp"

namespace fp8sim {

// A pair of E4M3 numbers as binary16 numbers, exactly.
FP8SIM_DEVICE uint32_t widened_pair(E4m3, uint32_t pair) {
    constexpr uint32_t kTwice256 = 0x5C005C00;
    return multiply_halves(e4m3_over_256(pair), kTwice256) | e4m3_nans(pair);
}

// Pairs of numbers of an operand, as the instruction takes them.

FP8SIM_DEVICE uint32_t load_pair(Float16, uint32_t address) { return load_shared_32(address); }
FP8SIM_DEVICE uint32_t load_pair(Bfloat16, uint32_t address) { return load_shared_32(address); }
FP8SIM_DEVICE uint32_t load_pair(E5m2 type, uint32_t address) { return widen_pair(type, load_shared_16(address)); }
FP8SIM_DEVICE uint32_t load_pair(E4m3 type, uint32_t address) { return widened_pair(type, load_shared_16(address)); }

template <class A_, class B_>
struct MmaTile {
    using A = A_;
    using B = B_;
    static constexpr int kRows = 128, kColumns = 128;
    static constexpr int kWarpRows = 64, kWarpColumns = 32, kWarpsDown = kRows / kWarpRows;
    static constexpr int kThreads = 32 * kWarpsDown * (kColumns / kWarpColumns);
    static constexpr int kElement = sizeof(typename A::Storage);
    static constexpr int kDepth = kChunkedRow / kElement;
    static constexpr int kInstructionDepth = 16;
    static constexpr int kStages = 4;
    static constexpr int kBytesA = kRows * kChunkedRow, kStageBytes = kBytesA + kColumns * kChunkedRow;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    static_assert(4 * kRows * kColumns <= kSharedBytes, "sums pass through the stages");
    static constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;  // instructions of a warp

    static_assert(sizeof(typename A::Storage) == sizeof(typename B::Storage), "one depth for both operands");
    static_assert(kRows * kChunkedRow / kChunk % kThreads == 0, "all threads copy as much");
    static_assert(kSharedBytes <= 101376, "shared memory of a block, GPUs of compute capability 8.6 included");
};

// A sum for each instruction of a warp, and each of its registers.
template <class Tile>
using MmaSums = float[Tile::kDown][Tile::kAcross][4];

// Producer: all threads start the copies of a stage.

// Rows [first, first + rows) of a matrix of `count` rows, from k on; zeros where there is nothing.
template <class Tile, int rows>
FP8SIM_DEVICE void copy_rows(uint32_t target, const Matrices& matrices, int batch, int first, int count, int k,
                             int depth) {
    constexpr int kChunks = kChunkedRow / kChunk;
    const char* source = static_cast<const char*>(matrices.address);
#pragma unroll
    for (int piece = thread_index(); piece < rows * kChunks; piece += Tile::kThreads) {
        const int row = piece / kChunks, chunk = piece % kChunks;
        const int at = k + chunk * (kChunk / Tile::kElement);
        const int left = (depth - at) * Tile::kElement;
        const bool inside = first + row < count && left > 0;
        const int64_t element = batch * matrices.per_batch + (first + row) * matrices.per_row + at;
        copy_chunk(target + chunk_offset(row, chunk), inside ? source + element * Tile::kElement : source,
                   inside ? (left < kChunk ? left : kChunk) : 0);
    }
}

template <class Tile>
FP8SIM_DEVICE void copy_stage(uint32_t stage, const Matrices& a, const Matrices& b, const Extent& extent,
                              const TilePlace& at, int step) {
    const int k = step * Tile::kDepth;
    if (k < extent.k) {
        copy_rows<Tile, Tile::kRows>(stage, a, at.batch, at.m * Tile::kRows, extent.m, k, extent.k);
        copy_rows<Tile, Tile::kColumns>(stage + Tile::kBytesA, b, at.batch, at.n * Tile::kColumns, extent.n, k,
                                        extent.k);
    }
    copy_commit();  // an empty group, too, counts
}

// Consumer: the warps multiply what is in a stage.

FP8SIM_DEVICE void multiply(Float16, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_float16(sum, a, b);
}
FP8SIM_DEVICE void multiply(Bfloat16, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bfloat16(sum, a, b);
}
FP8SIM_DEVICE void multiply(E4m3, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_float16(sum, a, b);
}
FP8SIM_DEVICE void multiply(E5m2, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_float16(sum, a, b);
}

// The pair of numbers of an operand that begins at a row and k of a stage.
template <class Type, int element>
FP8SIM_DEVICE uint32_t load_from(uint32_t rows, int row, int k) {
    const int byte = k * element;
    return load_pair(Type{}, rows + chunk_offset(row, byte / kChunk) + byte % kChunk);
}

template <class Tile>
FP8SIM_DEVICE void multiply_stage(uint32_t stage, MmaSums<Tile>& sums) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int first_row = warp % Tile::kWarpsDown * Tile::kWarpRows;
    const int first_column = warp / Tile::kWarpsDown * Tile::kWarpColumns;
#pragma unroll 1
    for (int k = 0; k < Tile::kDepth; k += Tile::kInstructionDepth) {
        uint32_t b[Tile::kAcross][2];
#pragma unroll
        for (int across = 0; across < Tile::kAcross; ++across) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const Place at = mma_b(lane, i);
                b[across][i] = load_from<typename Tile::B, Tile::kElement>(
                    stage + Tile::kBytesA, first_column + 8 * across + at.row, k + at.column);
            }
        }
#pragma unroll
        for (int down = 0; down < Tile::kDown; ++down) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const Place at = mma_a(lane, i);
                a[i] = load_from<typename Tile::A, Tile::kElement>(stage, first_row + 16 * down + at.row,
                                                                   k + at.column);
            }
#pragma unroll
            for (int across = 0; across < Tile::kAcross; ++across) {
                multiply(typename Tile::A{}, sums[down][across], a, b[across]);
            }
        }
    }
}

template <class Tile>
FP8SIM_DEVICE void multiply_tile(uint32_t memory, const Matrices& a, const Matrices& b, const Extent& extent,
                                 const TilePlace& at, MmaSums<Tile>& sums) {
    for (int ahead = 0; ahead < Tile::kStages - 1; ++ahead) {
        copy_stage<Tile>(memory + ahead * Tile::kStageBytes, a, b, extent, at, ahead);
    }
    const int steps = ceil_div(extent.k, Tile::kDepth);
    for (int step = 0; step < steps; ++step) {
        copy_wait<Tile::kStages - 2>();
        block_sync();  // the copies of all threads are there, and all have read the stage that is filled next
        const int ahead = step + Tile::kStages - 1;
        copy_stage<Tile>(memory + ahead % Tile::kStages * Tile::kStageBytes, a, b, extent, at, ahead);
        multiply_stage<Tile>(memory + step % Tile::kStages * Tile::kStageBytes, sums);
    }
    copy_wait<0>();
    block_sync();
}

// The sums of a warp pass through its part of the stages, which nobody reads any more.
template <class Tile>
FP8SIM_DEVICE void store_tile(uint32_t memory, const Epilogue& epilogue, const Extent& extent, const TilePlace& at,
                              const MmaSums<Tile>& sums) {
    constexpr int kRows = Tile::kWarpRows, kColumns = Tile::kWarpColumns;
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const uint32_t staged = memory + warp * 4 * kRows * kColumns;
#pragma unroll
    for (int down = 0; down < Tile::kDown; ++down) {
#pragma unroll
        for (int across = 0; across < Tile::kAcross; ++across) {
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const Place in = mma_result(lane, i);
                const float(&sum)[4] = sums[down][across];
                store_shared_pair(staged + staged_offset(16 * down + in.row, 8 * across + in.column, kColumns), sum[i],
                                  sum[i + 1]);
            }
        }
    }
    warp_sync();
    const Place first = {at.m * Tile::kRows + warp % Tile::kWarpsDown * kRows,
                         at.n * Tile::kColumns + warp / Tile::kWarpsDown * kColumns};
    finish_sums<kRows, kColumns, 32>(staged, lane, epilogue, extent, at.batch, first);
    block_sync();  // before the next tile is copied over it
}

template <class Tile>
FP8SIM_HD constexpr TileOrder mma_order(const Extent& extent) {
    return {ceil_div(extent.m, Tile::kRows), ceil_div(extent.n, Tile::kColumns), extent.batches};
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_mma_kernel(Matrices a, Matrices b, Extent extent, Epilogue epilogue) {
#if !FP8SIM_HAS_WGMMA
    const TileOrder order = mma_order<Tile>(extent);
    for (int64_t tile = block_index(); tile < count_tiles(order); tile += block_count()) {
        MmaSums<Tile> sums = {};
        const TilePlace at = tile_at(order, tile);
        multiply_tile<Tile>(shared_memory(), a, b, extent, at, sums);
        store_tile<Tile>(shared_memory(), epilogue, extent, at, sums);
    }
#endif
}

}  // namespace fp8sim
