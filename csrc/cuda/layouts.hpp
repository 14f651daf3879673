// Where things are: elements in the registers of tensor-core fragments, rows in shared memory, tiles in a result.
//
// Plain functions of integers, so that tests can compare them with the tables of the PTX ISA without a GPU.
#pragma once

#include <cstdint>

#include "cuda/fragments.hpp"

#if defined(__CUDACC__)
#define FP8SIM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FP8SIM_HOST_DEVICE inline
#endif

namespace fp8sim {

FP8SIM_HD constexpr int ceil_div(int x, int y) { return x / y + (x % y != 0); }

struct Place {
    int row;
    int column;
};

// The result of wgmma m64nNkK (PTX ISA, "Register fragments for wgmma.mma_async"): register `i` of a thread of the
// warpgroup.
FP8SIM_HD constexpr Place wgmma_result(int thread, int i) {
    const WordPlace at = fragment_d(thread % 32, i, false);
    return {16 * (thread / 32) + at.row, at.word};
}

// The operands of mma m16n8k16: the first of both neighbouring numbers in register `i` of a lane. a is [row, k]; b is
// [column, k].
FP8SIM_HD constexpr Place first_of(const WordPlace& pair) { return {pair.row, 2 * pair.word}; }
FP8SIM_HD constexpr Place mma_a(int lane, int i) { return first_of(fragment_a(lane, i, 16)); }
FP8SIM_HD constexpr Place mma_b(int lane, int i) { return first_of(fragment_b(lane, i)); }

// Its result: register `i`, one number.
FP8SIM_HD constexpr Place mma_result(int lane, int i) {
    const WordPlace at = fragment_d(lane, i, false);
    return {at.row, at.word};
}

// Rows of 128 bytes whose 16-byte chunks the copy engine permutes within each 8 rows (CU_TENSOR_MAP_SWIZZLE_128B). The
// pattern is one of addresses: a tile starts at a multiple of 1024 bytes.
constexpr int kSwizzledRow = 128;
constexpr int kSwizzledRows = 8;
constexpr int kSwizzleAlignment = kSwizzledRow * kSwizzledRows;

// How wgmma finds such a tile (PTX ISA, "Matrix descriptor format"): its address, the distance of one 8 rows to the
// next, and the kind of swizzle; the distance along K is not used, and bits 49 to 51 are 0 for aligned tiles.
FP8SIM_HD constexpr uint64_t matrix_descriptor(uint32_t address) {
    constexpr uint64_t kUnused = 1, kRowsApart = kSwizzleAlignment >> 4, kSwizzle128 = 1;
    return uint64_t{(address & 0x3FFFF) >> 4} | kUnused << 16 | kRowsApart << 32 | kSwizzle128 << 62;
}

// The same tile, `bytes` further along K, still within its 128 bytes.
FP8SIM_HD constexpr uint64_t advance_descriptor(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Rows of 64 bytes as four chunks of 16, placed so that 8 rows' chunks of one number lie in different banks.
constexpr int kChunk = 16;
constexpr int kChunkedRow = 64;

FP8SIM_HD constexpr int chunk_offset(int row, int chunk) {
    return row * kChunkedRow + (chunk ^ (row >> 1 & 3)) * kChunk;
}

// Sums on their way to memory, float32 in rows of `columns`: stored as pairs of neighbours in a fragment, read as four
// neighbours of a row, without two lanes that move at the same time and meet in a bank.
FP8SIM_HD constexpr int staged_offset(int row, int column, int columns) {
    return 4 * (row * columns + (column ^ (row & 3) << 3));
}

// In which order tiles of all matrices are computed. `kGroup` rows of tiles are walked column by column, so that blocks
// that run at the same time share rows of a and b in the cache; the last group may have fewer rows.
struct TileOrder {
    int tiles_m;
    int tiles_n;
    int batches;
};

struct TilePlace {
    int batch;
    int m;
    int n;
};

FP8SIM_HD constexpr int64_t count_tiles(const TileOrder& order) {
    return int64_t{order.tiles_m} * order.tiles_n * order.batches;
}

FP8SIM_HD constexpr TilePlace tile_at(const TileOrder& order, int64_t index) {
    constexpr int kGroup = 8;
    const int64_t per_matrix = int64_t{order.tiles_m} * order.tiles_n, within = index % per_matrix;
    const int64_t per_group = int64_t{kGroup} * order.tiles_n;
    const int first = static_cast<int>(within / per_group) * kGroup;
    const int rows = order.tiles_m - first < kGroup ? order.tiles_m - first : kGroup;
    const int in_group = static_cast<int>(within % per_group);
    return {static_cast<int>(index / per_matrix), first + in_group % rows, in_group / rows};
}

// A place in a ring of buffers, and how often it was passed, modulo 2: the phase of the barriers there.
template <int stages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;

    FP8SIM_HOST_DEVICE void advance() {
        stage = stage + 1 == stages ? 0 : stage + 1;
        if (stage == 0) parity ^= 1;
    }
};

}  // namespace fp8sim
