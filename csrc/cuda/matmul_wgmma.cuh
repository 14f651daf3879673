// Matrix products on Hopper: the copy engine fills a ring of stages, two warpgroups multiply what is in them.
//
// Assumes: tensor maps of a and b as `boxes_of` (matmul_choice.hpp) describes them, and a grid of whole clusters. A
// cluster of kBlocks blocks computes tiles that lie below each other; each of its blocks loads its own rows of a, and a
// part of the columns of b for all of them.
//
// Per stage, a `full` barrier counts the bytes that arrive, an `empty` one the warps, of every block of the cluster,
// that have read it. All blocks of a cluster walk the same tiles in the same order, so their rings turn together.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/layouts.hpp"
#include "cuda/matmul.hpp"
#include "cuda/wgmma.cuh"

namespace fp8sim {

template <class A_, class B_, int columns, int blocks, bool promotes>
struct WgmmaTile {
    using A = A_;
    using B = B_;
    static constexpr int kWarpgroups = 2, kWarpgroupThreads = 128, kWarpgroupRows = 64;
    static constexpr int kRows = kWarpgroups * kWarpgroupRows;
    static constexpr int kColumns = columns;
    static constexpr int kBlocks = blocks;
    static constexpr bool kPromotes = promotes;
    static constexpr int kThreads = (kWarpgroups + 1) * kWarpgroupThreads;
    static constexpr int kConsumerWarps = kWarpgroups * kWarpgroupThreads / 32;

    static constexpr int kElement = sizeof(typename A::Storage);
    static constexpr int kDepth = kSwizzledRow / kElement;
    static constexpr int kInstructionBytes = 32;
    static constexpr int kLoadedColumns = kColumns / kBlocks;
    static constexpr int kBytesA = kRows * kSwizzledRow, kBytesB = kColumns * kSwizzledRow;
    static constexpr int kStageBytes = kBytesA + kBytesB;
    static constexpr int kStages = kColumns == 256 ? 4 : 6;
    static constexpr int kStagedColumns = 64, kStagedBytes = 4 * kWarpgroupRows * kStagedColumns;
    static constexpr int kStagedAt = kStages * kStageBytes;
    static constexpr int kBarriersAt = kStagedAt + kWarpgroups * kStagedBytes;
    static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
    static constexpr int kRegisters = kColumns / 2;

    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

    static_assert(sizeof(typename A::Storage) == sizeof(typename B::Storage), "one depth for both operands");
    static_assert(kColumns == 128 || kColumns == 256, "there is an instruction for it");
    static_assert(!kPromotes || kDepth == kPromotion, "a stage is what is promoted at once");
    static_assert(kLoadedColumns * kSwizzledRow % kSwizzleAlignment == 0, "a block's part of b is whole");
    static_assert(kWarpgroupThreads * (kProducerRegisters + kWarpgroups * kConsumerRegisters) <= 65536, "registers");
    static_assert(kSharedBytes <= 232448, "shared memory of a block");
};

// What the blocks of the grid compute, in which order, and where a stage is.
template <class Tile>
struct WgmmaWork {
    Extent extent;
    OneForAll one;
    TileOrder order;
    int steps;
    int rank;
    int cluster;
    int clusters;
    uint32_t memory;

    __device__ int rows_from(const TilePlace& at) const { return (at.m * Tile::kBlocks + rank) * Tile::kRows; }
    __device__ int columns_from(const TilePlace& at) const { return at.n * Tile::kColumns; }
    __device__ uint32_t a_of(int stage) const { return memory + stage * Tile::kStageBytes; }
    __device__ uint32_t b_of(int stage) const { return a_of(stage) + Tile::kBytesA; }
    __device__ uint32_t full(int stage) const { return memory + Tile::kBarriersAt + 8 * stage; }
    __device__ uint32_t empty(int stage) const { return full(stage) + 8 * Tile::kStages; }
};

template <class Tile>
FP8SIM_HD constexpr TileOrder wgmma_order(const Extent& extent) {
    return {ceil_div(extent.m, Tile::kRows * Tile::kBlocks), ceil_div(extent.n, Tile::kColumns), extent.batches};
}

// Set-up: what a block computes; its barriers are ready in the whole cluster.
template <class Tile>
FP8SIM_DEVICE WgmmaWork<Tile> set_up(const Extent& extent, const OneForAll& one) {
    const WgmmaWork<Tile> work = {extent,
                                  one,
                                  wgmma_order<Tile>(extent),
                                  ceil_div(extent.k, Tile::kDepth),
                                  Tile::kBlocks == 1 ? 0 : rank_in_cluster(),
                                  block_index() / Tile::kBlocks,
                                  block_count() / Tile::kBlocks,
                                  shared_memory()};
    if (thread_index() == 0) {
        for (int stage = 0; stage < Tile::kStages; ++stage) {
            barrier_init(work.full(stage), 1);
            barrier_init(work.empty(stage), Tile::kConsumerWarps * Tile::kBlocks);
        }
        barrier_init_fence();
    }
    cluster_sync();
    return work;
}

// Producer: one thread keeps the ring full.

template <class Tile>
FP8SIM_DEVICE void load_stage(const WgmmaWork<Tile>& work, const TensorMap& a, const TensorMap& b, const TilePlace& at,
                              int k, int stage) {
    constexpr uint16_t kAllBlocks = (1 << Tile::kBlocks) - 1;
    const uint32_t full = work.full(stage);
    barrier_expect(full, Tile::kStageBytes);
    load_box(work.a_of(stage), a, k, work.rows_from(at), work.one.a ? 0 : at.batch, full);
    const int b_batch = work.one.b ? 0 : at.batch, first = work.rank * Tile::kLoadedColumns;
    const uint32_t b_at = work.b_of(stage) + first * kSwizzledRow;
    if constexpr (Tile::kBlocks == 1) load_box(b_at, b, k, work.columns_from(at), b_batch, full);
    else load_box_to_blocks(b_at, b, k, work.columns_from(at) + first, b_batch, full, kAllBlocks);
}

template <class Tile>
FP8SIM_DEVICE void produce(const WgmmaWork<Tile>& work, const TensorMap& a, const TensorMap& b) {
    Ring<Tile::kStages> ring;
    for (int64_t tile = work.cluster; tile < count_tiles(work.order); tile += work.clusters) {
        const TilePlace at = tile_at(work.order, tile);
        for (int step = 0; step < work.steps; ++step) {
            barrier_wait(work.empty(ring.stage), ring.parity ^ 1);
            load_stage(work, a, b, at, step * Tile::kDepth, ring.stage);
            ring.advance();
        }
    }
}

// Consumers: each warpgroup multiplies 64 rows of the tile.

// Starts the products of a stage. `adds`: whether they are added to what `sum` holds.
template <class Tile>
FP8SIM_DEVICE void multiply_stage(const WgmmaWork<Tile>& work, int stage, float (&sum)[Tile::kRegisters], bool adds) {
    const int warpgroup = thread_index() / Tile::kWarpgroupThreads;
    const uint32_t rows_at = work.a_of(stage) + warpgroup * Tile::kWarpgroupRows * kSwizzledRow;
    const uint64_t a = matrix_descriptor(rows_at), b = matrix_descriptor(work.b_of(stage));
    wgmma_fence();
#pragma unroll
    for (int at = 0; at < kSwizzledRow; at += Tile::kInstructionBytes) {
        wgmma(typename Tile::A{}, typename Tile::B{}, sum, advance_descriptor(a, at), advance_descriptor(b, at),
              adds || at > 0);
    }
    wgmma_commit();
}

// This warp has read the stage: each block of the cluster may load the next into it.
template <class Tile>
FP8SIM_DEVICE void release(const WgmmaWork<Tile>& work, int stage) {
    if (thread_index() % 32 < Tile::kBlocks) barrier_arrive(work.empty(stage), thread_index() % 32);
}

// sum = the products of a tile. One stage's products run while those of the next are started.
template <class Tile>
FP8SIM_DEVICE void multiply_in_one_chain(const WgmmaWork<Tile>& work, Ring<Tile::kStages>& ring,
                                         float (&sum)[Tile::kRegisters]) {
#pragma unroll
    for (int i = 0; i < Tile::kRegisters; ++i) sum[i] = 0.0f;
    int before = ring.stage;
    for (int step = 0; step < work.steps; ++step) {
        barrier_wait(work.full(ring.stage), ring.parity);
        multiply_stage(work, ring.stage, sum, true);
        wgmma_wait<1>(sum);
        if (step > 0) release(work, before);
        before = ring.stage;
        ring.advance();
    }
    wgmma_wait<0>(sum);
    release(work, before);
}

// The same, the products of each stage added to `sum` in float32.
template <class Tile>
FP8SIM_DEVICE void multiply_and_promote(const WgmmaWork<Tile>& work, Ring<Tile::kStages>& ring,
                                        float (&sum)[Tile::kRegisters]) {
    float part[Tile::kRegisters];
#pragma unroll
    for (int i = 0; i < Tile::kRegisters; ++i) sum[i] = 0.0f;
    for (int step = 0; step < work.steps; ++step) {
        barrier_wait(work.full(ring.stage), ring.parity);
        multiply_stage(work, ring.stage, part, false);
        wgmma_wait<0>(part);
        release(work, ring.stage);
        ring.advance();
#pragma unroll
        for (int i = 0; i < Tile::kRegisters; ++i) sum[i] += part[i];
    }
}

// Stores the sums of a warpgroup, kStagedColumns at a time.
template <class Tile>
FP8SIM_DEVICE void store_tile(const WgmmaWork<Tile>& work, const Epilogue& epilogue, const TilePlace& at,
                              const float (&sum)[Tile::kRegisters]) {
    constexpr int kColumns = Tile::kStagedColumns, kRegisters = kColumns / 2;
    const int warpgroup = thread_index() / Tile::kWarpgroupThreads, thread = thread_index() % Tile::kWarpgroupThreads;
    const int first_row = work.rows_from(at) + warpgroup * Tile::kWarpgroupRows;
    const uint32_t staged = work.memory + Tile::kStagedAt + warpgroup * Tile::kStagedBytes;
#pragma unroll
    for (int part = 0; part < Tile::kColumns / kColumns; ++part) {
        threads_sync(1 + warpgroup, Tile::kWarpgroupThreads);  // all have read what was there
#pragma unroll
        for (int i = 0; i < kRegisters; i += 2) {
            const Place in_part = wgmma_result(thread, i);
            store_shared_pair(staged + staged_offset(in_part.row, in_part.column, kColumns), sum[part * kRegisters + i],
                              sum[part * kRegisters + i + 1]);
        }
        threads_sync(1 + warpgroup, Tile::kWarpgroupThreads);
        const Place first = {first_row, work.columns_from(at) + part * kColumns};
        finish_sums<Tile::kWarpgroupRows, kColumns, Tile::kWarpgroupThreads>(staged, thread, epilogue, work.extent,
                                                                             at.batch, first);
    }
}

template <class Tile>
FP8SIM_DEVICE void consume(const WgmmaWork<Tile>& work, const Epilogue& epilogue) {
    Ring<Tile::kStages> ring;
    float sum[Tile::kRegisters];
    for (int64_t tile = work.cluster; tile < count_tiles(work.order); tile += work.clusters) {
        if constexpr (Tile::kPromotes) multiply_and_promote(work, ring, sum);
        else multiply_in_one_chain(work, ring, sum);
        store_tile(work, epilogue, tile_at(work.order, tile), sum);
    }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_wgmma_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, Extent extent,
                        OneForAll one, Epilogue epilogue) {
#if FP8SIM_HAS_WGMMA
    const auto work = set_up<Tile>(extent, one);
    if (thread_index() / Tile::kWarpgroupThreads == Tile::kWarpgroups) {
        keep_registers<Tile::kProducerRegisters>();
        if (thread_index() % Tile::kWarpgroupThreads == 0) produce(work, a, b);
    } else {
        take_registers<Tile::kConsumerRegisters>();
        consume(work, epilogue);
    }
    cluster_sync();  // no block leaves while another may still reach into its shared memory
#endif
}

}  // namespace fp8sim
