// Fused attention on Hopper: the copy engine brings queries, then keys and values block by block, and two warpgroups
// multiply what is there, 64 rows of queries each.
//
// Assumes: tensor maps of q, k and v as `head_boxes` (attention_choice.hpp) describes them. Everything in shared memory
// is made of panels, rows of 128 bytes whose chunks are permuted: features of queries and keys, keys of FP8 values,
// features of 16-bit values, which the instruction reads across.
//
// A ring of pieces holds keys and values in turn. Per piece, a `full` barrier counts the bytes that arrive, an `empty`
// one the warps that have read it. Probabilities stay in registers: the result of one product is an operand of the next.
// Logits of a block are computed while the block before it is multiplied by its values, whose products run on under the
// softmax. A row's sums are added in the order of the blocks all the same.
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
    static constexpr int kKeyBytes = kFeaturePanels * kKeyPanel;
    static constexpr int kValuePanels = kTransposed ? kKeyPanels : kFeaturePanels;
    static constexpr int kValueRows = kTransposed ? kFeatures : kKeys;
    static constexpr int kValueBytes = kValuePanels * kValueRows * kSwizzledRow;
    static constexpr int kPieceBytes = kKeyBytes > kValueBytes ? kKeyBytes : kValueBytes;
    static constexpr int kStages = 4;

    static constexpr int kPiecesAt = kFeaturePanels * kQueryPanel;
    static constexpr int kBarriersAt = kPiecesAt + kStages * kPieceBytes;
    static constexpr int kSharedBytes = kBarriersAt + (2 * kStages + 1) * 8;
    static constexpr int kLogits = kKeys / 2, kResults = kFeatures / 2;  // registers of a thread
    static constexpr int kProbabilities = kLogits * kElement / 4;        // and those of probabilities after their cast

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

// Keys, or values: every other piece of the ring.
template <class Tile>
struct PieceRing {
    Ring<Tile::kStages> ring;

    // The address of the next piece, when it is there.
    __device__ uint32_t wait(const AttentionWork<Tile>& work) const {
        barrier_wait(work.full(ring.stage), ring.parity);
        return work.piece(ring.stage);
    }

    // This warp has read it.
    __device__ void release(const AttentionWork<Tile>& work) {
        if (thread_index() % 32 == 0) barrier_arrive_here(work.empty(ring.stage));
        ring.advance();
        ring.advance();
    }
};

// Starts logits = q k^T of a block.
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
}

// The probabilities of a block after their cast, four registers for each instruction. Those of 16 bits lie as logits do.
template <class Type, int logits, int words>
FP8SIM_DEVICE void cast_probabilities(Type type, const float (&p)[logits], uint32_t (&to)[words]) {
    static_assert(words == logits / 2, "a pair in each");
#pragma unroll
    for (int i = 0; i < words; ++i) to[i] = pair_of(type, p[2 * i], p[2 * i + 1]);
}

// Of FP8, four neighbours are in a register, and threads of a quad have two: of thread t, the keys 8 i + 2 t and the next
// in the i-th eight. It needs 4 t to 4 t + 3 of 16, and of the next 16. From two threads it gets pairs of both at a time:
// the lower two threads those of the first eights, the upper two those of the second.
template <int logits, int words>
FP8SIM_DEVICE void cast_probabilities(E4m3 type, const float (&p)[logits], uint32_t (&to)[words]) {
    static_assert(words == logits / 4, "four in each");
    const int lane = thread_index() % 32, in_quad = lane % 4, source = lane - in_quad + 2 * (in_quad % 2);
    const bool odd = lane % 2 == 1, upper = in_quad / 2 == 1;
    const uint32_t lower_halves = upper ? 0x1054 : 0x5410, upper_halves = upper ? 0x3276 : 0x7632;
#pragma unroll
    for (int i = 0; i < words; i += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // of the thread's two rows
            uint32_t pair[4];
#pragma unroll
            for (int eight = 0; eight < 4; ++eight) {
                const int at = 4 * (i + eight) + 2 * half;
                pair[eight] = pair_of(type, p[at], p[at + 1]);
            }
            const uint32_t first = pair[0] | pair[2] << 16, second = pair[1] | pair[3] << 16;
            const uint32_t one = shuffle_from(odd ? second : first, source + upper);
            const uint32_t other = shuffle_from(odd ? first : second, source + !upper);
            to[i + half] = choose_bytes(one, other, lower_halves);
            to[i + half + 2] = choose_bytes(one, other, upper_halves);
        }
    }
}

// How wgmma finds the values of a block from `key` on.
template <class Tile>
FP8SIM_DEVICE uint64_t values_from(uint32_t values, int key) {
    if constexpr (Tile::kTransposed) {
        const int panel = key / kSwizzledRow, within = key % kSwizzledRow;
        return advance_descriptor(matrix_descriptor(values + panel * Tile::kValueRows * kSwizzledRow), within);
    } else {
        return matrix_descriptor_down(values + key * kSwizzledRow, Tile::kKeyPanel);
    }
}

// Starts result += p v of a block.
template <class Tile>
FP8SIM_DEVICE void multiply_values(const uint32_t (&p)[Tile::kProbabilities], uint32_t values,
                                   float (&result)[Tile::kResults]) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::kProbabilities / 4; ++step) {
        const int key = step * (Tile::kInstructionBytes / Tile::kElement);
        wgmma_rows(typename Tile::Type{}, result, p + 4 * step, values_from<Tile>(values, key));
    }
    wgmma_commit();
}

// Logits of a block become probabilities before their cast, when the products that make them are over.
template <class Tile>
FP8SIM_DEVICE void soften(const AttentionJob& job, int query, int block, float (&logits)[Tile::kLogits],
                          RowState (&rows)[2], float (&shrink)[2]) {
    hide_keys(job, query, block * Tile::kKeys, logits);
    add_block(job.softmax, logits, rows, shrink);
}

template <class Tile>
FP8SIM_DEVICE void consume_attention(const AttentionJob& job, const AttentionWork<Tile>& work) {
    using Type = typename Tile::Type;
    const int query = work.query + warpgroup_of_thread() * Tile::kWarpgroupRows;
    PieceRing<Tile> keys, values;
    values.ring.advance();
    RowState rows[2];
    float logits[Tile::kLogits], result[Tile::kResults] = {}, shrink[2];
    uint32_t p[Tile::kProbabilities];
    barrier_wait(work.queries_full(), 0);
    if (work.blocks.first < work.blocks.last) {
        multiply_keys(work, keys.wait(work), logits);
        wgmma_wait<0>(logits);
        keys.release(work);
        soften<Tile>(job, query, work.blocks.first, logits, rows, shrink);
        cast_probabilities(Type{}, logits, p);
        for (int block = work.blocks.first + 1; block < work.blocks.last; ++block) {
            multiply_keys(work, keys.wait(work), logits);
            multiply_values<Tile>(p, values.wait(work), result);
            wgmma_wait<1>(logits);
            keys.release(work);
            soften<Tile>(job, query, block, logits, rows, shrink);
            wgmma_wait<0>(result, p);
            values.release(work);
            shrink_rows(result, shrink);
            cast_probabilities(Type{}, logits, p);
        }
        multiply_values<Tile>(p, values.wait(work), result);
        wgmma_wait<0>(result, p);
        values.release(work);
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
