// Fused attention on Hopper: the copy engine brings queries, then keys and values block by block, and two warpgroups
// multiply what is there, 64 rows of queries each.
//
// Assumes: tensor maps of q, k and v as `head_boxes` (attention_choice.hpp) describes them. Everything in shared memory
// is made of panels, rows of 128 bytes whose chunks are permuted: features of queries and keys, keys of probabilities
// and of FP8 values, features of 16-bit values, which the instruction reads across.
//
// A ring of pieces holds keys and values in turn. Per piece, a `full` barrier counts the bytes that arrive, an `empty`
// one the warps that have read it. Probabilities go through shared memory, since the instruction takes those of FP8 in
// another order than it leaves logits in.
#pragma once

#include "cuda/attention_choice.hpp"
#include "cuda/attention_layouts.hpp"
#include "cuda/softmax.cuh"

namespace fp8sim {

template <class Type_, int features>
struct AttentionWgmmaTile {
    using Type = Type_;
    static constexpr int kFeatures = features;
    static constexpr int kWarpgroups = 2, kWarpgroupThreads = kRowThreads, kWarpgroupRows = kThreadRows;
    static constexpr int kConsumerWarps = kWarpgroups * kWarpgroupThreads / 32;
    static constexpr int kThreads = (kWarpgroups + 1) * kWarpgroupThreads;
    static constexpr int kQueries = kWarpgroups * kWarpgroupRows;
    static constexpr int kKeys = attention_block(features, kHopper);
    static constexpr int kElement = sizeof(typename Type::Storage);
    static constexpr bool kTransposed = kElement == 1;  // values come as [features, keys]
    static constexpr int kPanel = kSwizzledRow / kElement;
    static constexpr int kFeaturePanels = ceil_div(kFeatures, kPanel), kKeyPanels = ceil_div(kKeys, kPanel);
    static constexpr int kFeatureBytes = kFeatures * kElement, kProbabilityBytes = kKeys * kElement;
    static constexpr int kInstructionBytes = 32;

    static constexpr int kQueryPanel = kQueries * kSwizzledRow, kKeyPanel = kKeys * kSwizzledRow;
    static constexpr int kProbabilityPanel = kWarpgroupRows * kSwizzledRow;
    static constexpr int kKeyBytes = kFeaturePanels * kKeyPanel;
    static constexpr int kValuePanels = kTransposed ? kKeyPanels : kFeaturePanels;
    static constexpr int kValueRows = kTransposed ? kFeatures : kKeys;
    static constexpr int kValueBytes = kValuePanels * kValueRows * kSwizzledRow;
    static constexpr int kPieceBytes = kKeyBytes > kValueBytes ? kKeyBytes : kValueBytes;
    static constexpr int kStages = 4;

    static constexpr int kPiecesAt = kFeaturePanels * kQueryPanel;
    static constexpr int kProbabilitiesAt = kPiecesAt + kStages * kPieceBytes;
    static constexpr int kProbabilitiesOfOne = kKeyPanels * kProbabilityPanel;
    static constexpr int kBarriersAt = kProbabilitiesAt + kWarpgroups * kProbabilitiesOfOne;
    static constexpr int kSharedBytes = kBarriersAt + (2 * kStages + 1) * 8;
    static constexpr int kLogits = kKeys / 2, kResults = kFeatures / 2;  // registers of a thread

    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

    static_assert(kPieceBytes % kSwizzleAlignment == 0 && kValueRows * kSwizzledRow % kSwizzleAlignment == 0, "aligned");
    static_assert(kWarpgroupThreads * (kProducerRegisters + kWarpgroups * kConsumerRegisters) <= 65536, "registers");
    static_assert(kSharedBytes <= 232448, "shared memory of a block");
};

// What a block computes, and where things are.
template <class Tile>
struct AttentionWork {
    int batch;
    int head;
    int group;
    int query;
    KeyBlocks blocks;
    uint32_t memory;

    __device__ uint32_t piece(int stage) const { return memory + Tile::kPiecesAt + stage * Tile::kPieceBytes; }
    __device__ uint32_t probabilities(int warpgroup) const {
        return memory + Tile::kProbabilitiesAt + warpgroup * Tile::kProbabilitiesOfOne;
    }
    __device__ uint32_t full(int stage) const { return memory + Tile::kBarriersAt + 8 * stage; }
    __device__ uint32_t empty(int stage) const { return full(Tile::kStages + stage); }
    __device__ uint32_t queries_full() const { return full(2 * Tile::kStages); }
};

template <class Tile>
FP8SIM_DEVICE AttentionWork<Tile> set_up_attention(const AttentionJob& job) {
    const AttentionExtent& extent = job.extent;
    const int tiles = ceil_div(extent.queries, Tile::kQueries), matrix = block_index() / tiles;
    const int query = (tiles - 1 - block_index() % tiles) * Tile::kQueries;  // under a causal mask the longest first
    const int head = matrix % extent.heads;
    const AttentionWork<Tile> work = {matrix / extent.heads,
                                      head,
                                      head / (extent.heads / extent.groups),
                                      query,
                                      blocks_of(job.mask, query, Tile::kQueries, extent.keys, Tile::kKeys),
                                      shared_memory()};
    if (thread_index() == 0) {
        for (int stage = 0; stage < Tile::kStages; ++stage) {
            barrier_init(work.full(stage), 1);
            barrier_init(work.empty(stage), Tile::kConsumerWarps);
        }
        barrier_init(work.queries_full(), 1);
        barrier_init_fence();
    }
    block_sync();
    return work;
}

// Producer: one thread keeps the ring full, with keys and values in turn.

template <class Tile>
FP8SIM_DEVICE void produce_attention(const AttentionWork<Tile>& work, const HeadTensorMap& q, const HeadTensorMap& k,
                                     const HeadTensorMap& v) {
    barrier_expect(work.queries_full(), Tile::kPiecesAt);
#pragma unroll
    for (int panel = 0; panel < Tile::kFeaturePanels; ++panel) {
        load_head_box(work.memory + panel * Tile::kQueryPanel, q, panel * Tile::kPanel, work.query, work.head,
                      work.batch, work.queries_full());
    }
    Ring<Tile::kStages> ring;
    for (int block = work.blocks.first; block < work.blocks.last; ++block) {
        const int key = block * Tile::kKeys;
        barrier_wait(work.empty(ring.stage), ring.parity ^ 1);
        barrier_expect(work.full(ring.stage), Tile::kKeyBytes);
#pragma unroll
        for (int panel = 0; panel < Tile::kFeaturePanels; ++panel) {
            load_head_box(work.piece(ring.stage) + panel * Tile::kKeyPanel, k, panel * Tile::kPanel, key, work.group,
                          work.batch, work.full(ring.stage));
        }
        ring.advance();
        barrier_wait(work.empty(ring.stage), ring.parity ^ 1);
        barrier_expect(work.full(ring.stage), Tile::kValueBytes);
#pragma unroll
        for (int panel = 0; panel < Tile::kValuePanels; ++panel) {
            const uint32_t target = work.piece(ring.stage) + panel * Tile::kValueRows * kSwizzledRow;
            const int along = panel * Tile::kPanel;
            load_head_box(target, v, Tile::kTransposed ? key + along : along, Tile::kTransposed ? 0 : key, work.group,
                          work.batch, work.full(ring.stage));
        }
        ring.advance();
    }
}

// Consumers: each warpgroup has 64 rows of queries.

FP8SIM_DEVICE int warpgroup_of_thread() { return thread_index() / kRowThreads; }

template <class Tile>
FP8SIM_DEVICE void release_piece(const AttentionWork<Tile>& work, int stage) {
    if (thread_index() % 32 == 0) barrier_arrive_here(work.empty(stage));
}

// logits = q k^T of a block.
template <class Tile>
FP8SIM_DEVICE void multiply_keys(const AttentionWork<Tile>& work, uint32_t keys, float (&logits)[Tile::kLogits]) {
    const uint32_t rows = work.memory + warpgroup_of_thread() * Tile::kWarpgroupRows * kSwizzledRow;
    wgmma_fence();
#pragma unroll
    for (int byte = 0; byte < Tile::kFeatureBytes; byte += Tile::kInstructionBytes) {
        const int panel = byte / kSwizzledRow, within = byte % kSwizzledRow;
        const uint64_t a = matrix_descriptor(rows + panel * Tile::kQueryPanel);
        const uint64_t b = matrix_descriptor(keys + panel * Tile::kKeyPanel);
        wgmma(typename Tile::Type{}, typename Tile::Type{}, logits, advance_descriptor(a, within),
              advance_descriptor(b, within), byte > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(logits);
}

// Two neighbouring probabilities to where the instruction finds them.
template <class Type>
FP8SIM_DEVICE void store_probabilities(Type type, uint32_t address, float low, float high) {
    if constexpr (sizeof(typename Type::Storage) == 2) store_shared_32(address, pair_of(type, low, high));
    else store_shared_16(address, pair_of(type, low, high));
}

// Casts the probabilities of a block, and leaves them where the products find them.
template <class Tile>
FP8SIM_DEVICE void cast_probabilities(const AttentionWork<Tile>& work, const float (&p)[Tile::kLogits]) {
    const int warpgroup = warpgroup_of_thread(), thread = only_here(row_thread());
    const uint32_t panels = work.probabilities(warpgroup);
#pragma unroll
    for (int i = 0; i < Tile::kLogits; i += 2) {
        const Place at = wgmma_result(thread, i);
        const int byte = at.column * Tile::kElement;
        store_probabilities(typename Tile::Type{},
                            panels + byte / kSwizzledRow * Tile::kProbabilityPanel +
                                swizzled_byte(at.row, byte % kSwizzledRow),
                            p[i], p[i + 1]);
    }
    products_fence();
    warpgroup_sync(warpgroup);
}

// result += p v of a block.
template <class Tile>
FP8SIM_DEVICE void multiply_values(const AttentionWork<Tile>& work, uint32_t values, float (&result)[Tile::kResults]) {
    const uint32_t rows = work.probabilities(warpgroup_of_thread());
    wgmma_fence();
#pragma unroll
    for (int byte = 0; byte < Tile::kProbabilityBytes; byte += Tile::kInstructionBytes) {
        const int panel = byte / kSwizzledRow, within = byte % kSwizzledRow;
        const uint64_t p = advance_descriptor(matrix_descriptor(rows + panel * Tile::kProbabilityPanel), within);
        if constexpr (Tile::kTransposed) {
            const uint64_t v = matrix_descriptor(values + panel * Tile::kValueRows * kSwizzledRow);
            wgmma(E4m3{}, typename Tile::Type{}, result, p, advance_descriptor(v, within), 1);
        } else {
            const int key = byte / Tile::kElement;
            wgmma_down(typename Tile::Type{}, typename Tile::Type{}, result, p,
                       matrix_descriptor_down(values + key * kSwizzledRow, Tile::kKeyPanel), 1);
        }
    }
    wgmma_commit();
    wgmma_wait<0>(result);
}

template <class Tile>
FP8SIM_DEVICE void consume_attention(const AttentionJob& job, const AttentionWork<Tile>& work) {
    const int query = work.query + warpgroup_of_thread() * Tile::kWarpgroupRows;
    Ring<Tile::kStages> ring;
    RowState rows[2];
    float result[Tile::kResults] = {};
    barrier_wait(work.queries_full(), 0);
    for (int block = work.blocks.first; block < work.blocks.last; ++block) {
        float logits[Tile::kLogits], shrink[2];
        barrier_wait(work.full(ring.stage), ring.parity);
        multiply_keys(work, work.piece(ring.stage), logits);
        release_piece(work, ring.stage);
        ring.advance();
        hide_keys(job, query, block * Tile::kKeys, logits);
        add_block(job.softmax, logits, rows, shrink);
        shrink_rows(result, shrink);
        cast_probabilities(work, logits);
        barrier_wait(work.full(ring.stage), ring.parity);
        multiply_values(work, work.piece(ring.stage), result);
        release_piece(work, ring.stage);
        ring.advance();
    }
    store_rows(job, int64_t{work.batch} * job.extent.heads + work.head, query, rows, result);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    attention_wgmma_kernel(const __grid_constant__ HeadTensorMap q, const __grid_constant__ HeadTensorMap k,
                           const __grid_constant__ HeadTensorMap v, AttentionJob job) {
#if FP8SIM_HAS_WGMMA
    const auto work = set_up_attention<Tile>(job);
    if (warpgroup_of_thread() == Tile::kWarpgroups) {
        keep_registers<Tile::kProducerRegisters>();
        if (thread_index() % Tile::kWarpgroupThreads == 0) produce_attention(work, q, k, v);
    } else {
        take_registers<Tile::kConsumerRegisters>();
        consume_attention(job, work);
    }
#endif
}

}  // namespace fp8sim
