// Stands in for csrc/cuda/intrinsics.cuh on a CPU. Where fragments, swizzled rows and descriptors are is written here
// again, from the PTX ISA; the arithmetic of the tensor core is csrc/core's.
#pragma once

#include <algorithm>

#include "core/mma.hpp"
#include "cuda/matmul_choice.hpp"
#include "fibers.hpp"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define FP8SIM_DEVICE static inline
#if defined(FP8SIM_EMULATED_WGMMA)
#define FP8SIM_HAS_WGMMA FP8SIM_EMULATED_WGMMA
#endif

namespace fp8sim {

using TensorMap = Boxes;

inline MmaModel model;  // of the instruction

static inline int thread_index() { return on_host::running->thread; }
static inline int block_index() { return on_host::running->block->index; }
static inline int block_count() { return on_host::cluster->blocks_in_grid; }
static inline uint32_t shared_memory() { return on_host::kFirstAddress; }
static inline int rank_in_cluster() { return on_host::running->block->rank; }
static inline on_host::Warp& this_warp() { return on_host::running->block->warps[thread_index() / 32]; }

static inline uint8_t* shared(uint32_t address, size_t bytes) {
    on_host::require(address % bytes == 0, "misaligned address in shared memory");
    return on_host::running->block->at(address, bytes);
}

static inline void threads_sync(int id, int threads) {
    on_host::meet(on_host::running->block->meetings[id], threads, [] {});
}
static inline void block_sync() {
    threads_sync(0, static_cast<int>(on_host::cluster->fibers.size() / on_host::cluster->blocks.size()));
}
static inline void warp_sync() {
    on_host::meet(this_warp().meeting, 32, [] {});
}

static inline uint32_t warp_max(uint32_t value) {
    on_host::Warp& warp = this_warp();
    warp.arguments[thread_index() % 32] = &value;
    on_host::meet(warp.meeting, 32, [&warp] {
        uint32_t largest = 0;
        const auto value_of = [&warp](int lane) { return static_cast<uint32_t*>(warp.arguments[lane]); };
        for (int lane = 0; lane < 32; ++lane) largest = std::max(largest, *value_of(lane));
        for (int lane = 0; lane < 32; ++lane) *value_of(lane) = largest;
    });
    return value;
}

static inline void atomic_max(uint32_t* address, uint32_t value) { *address = std::max(*address, value); }

static inline void cluster_sync() {
    on_host::meet(on_host::cluster->meeting, static_cast<int>(on_host::cluster->fibers.size()), [] {});
}

template <int registers>
void keep_registers() {}
template <int registers>
void take_registers() {}

// Barriers.

struct Barrier {
    int32_t bytes;
    uint8_t pending;
    uint8_t count;
    uint8_t phase;
    uint8_t mark;
};

constexpr uint8_t kInitialised = 0xB7;

static inline Barrier& barrier_of(on_host::Block& block, uint32_t address) {
    on_host::require(address % 8 == 0, "misaligned barrier");
    return *reinterpret_cast<Barrier*>(block.at(address, sizeof(Barrier)));
}

static inline Barrier& ready_barrier(on_host::Block& block, uint32_t address) {
    Barrier& barrier = barrier_of(block, address);
    on_host::require(barrier.mark == kInitialised, "a barrier is used before it is initialised");
    return barrier;
}

static inline void end_phase_if_complete(Barrier& barrier) {
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    barrier.phase ^= 1;
    barrier.pending = barrier.count;
}

static inline void arrive(Barrier& barrier) {
    on_host::require(barrier.pending > 0, "more arrivals than a barrier expects");
    --barrier.pending;
    end_phase_if_complete(barrier);
}

static inline void barrier_init(uint32_t address, int arrivals) {
    barrier_of(*on_host::running->block, address) = {0, uint8_t(arrivals), uint8_t(arrivals), 0, kInitialised};
}
static inline void barrier_init_fence() {}

static inline void barrier_expect(uint32_t address, uint32_t bytes) {
    Barrier& barrier = ready_barrier(*on_host::running->block, address);
    barrier.bytes += static_cast<int32_t>(bytes);
    arrive(barrier);
}

static inline void barrier_arrive(uint32_t address, int rank) {
    arrive(ready_barrier(*on_host::cluster->blocks.at(rank), address));
}

static inline void barrier_wait(uint32_t address, uint32_t parity) {
    const Barrier& barrier = ready_barrier(*on_host::running->block, address);
    on_host::wait_until([&barrier, parity] { return barrier.phase != parity; });
}

// The copy engine.

// What cuTensorMapEncodeTiled documents, and not 0, of which it says nothing.
static inline bool is_valid_stride(uint64_t bytes) { return bytes % 16 == 0 && bytes > 0 && bytes < uint64_t{1} << 40; }

static inline void check_map(const TensorMap& map) {
    const uint64_t bytes = bytes_of(map.type);
    on_host::require(reinterpret_cast<uintptr_t>(map.address) % 16 == 0, "tensor map: address");
    for (const uint64_t stride : map.strides) on_host::require(is_valid_stride(stride), "tensor map: strides");
    on_host::require(map.box[0] * bytes == 128 && map.box[1] <= 256 && map.box[2] == 1, "tensor map: box");
}

// Swizzle of 128 bytes: the 16-byte chunk's number in its row of 128, exclusive-or the row's number in its 8 rows.
static inline uint32_t swizzled(uint32_t address) { return address ^ (address / 128 % 8) * 16; }

static inline void load_box_to_blocks(uint32_t target, const TensorMap& map, int k, int row, int batch,
                                      uint32_t barrier, uint16_t blocks) {
    check_map(map);
    on_host::require(target % 128 == 0, "the copy engine's target is not aligned");
    on_host::on_its_own([=] {
        const uint64_t bytes = bytes_of(map.type);
        for (size_t rank = 0; rank < on_host::cluster->blocks.size(); ++rank) {
            if (!(blocks >> rank & 1)) continue;
            on_host::Block& block = *on_host::cluster->blocks[rank];
            for (uint32_t r = 0; r < map.box[1]; ++r) {
                for (uint32_t at = 0; at < map.box[0]; ++at) {
                    const uint64_t i = k + at, j = row + r, n = batch;
                    const bool inside = i < map.extents[0] && j < map.extents[1] && n < map.extents[2];
                    const auto* from = static_cast<const uint8_t*>(map.address) + n * map.strides[1] +
                                       j * map.strides[0] + i * bytes;
                    const auto offset = static_cast<uint32_t>(r * 128 + at * bytes);
                    uint8_t* to = block.at(swizzled(target + offset), bytes);
                    if (inside) memcpy(to, from, bytes);
                    else memset(to, 0, bytes);
                }
            }
            Barrier& counter = ready_barrier(block, barrier);
            counter.bytes -= static_cast<int32_t>(map.box[0] * map.box[1] * bytes);
            end_phase_if_complete(counter);
        }
    });
}

static inline void load_box(uint32_t target, const TensorMap& map, int k, int row, int batch, uint32_t barrier) {
    load_box_to_blocks(target, map, k, row, batch, barrier, static_cast<uint16_t>(1 << rank_in_cluster()));
}

// Products of warpgroups: started, gathered in groups, and waited for.

static inline on_host::Warpgroup& this_warpgroup() {
    return on_host::running->block->warpgroups[thread_index() / 128];
}

static inline void wgmma_fence() {
    on_host::meet(this_warpgroup().meeting, 128, [] {});
}

static inline void wgmma_commit() {
    on_host::Warpgroup& group = this_warpgroup();
    on_host::meet(group.meeting, 128, [&group] {
        group.groups.push_back(std::move(group.open));
        group.open.clear();
    });
}

template <int pending, class... Arrays>
void wgmma_wait(Arrays&...) {
    on_host::Warpgroup& group = this_warpgroup();
    on_host::meet(group.meeting, 128, [&group] {
        for (; group.groups.size() > pending; group.groups.pop_front()) {
            for (const auto& product : group.groups.front()) product();
        }
    });
}

// Chunks.

static inline void copy_chunk(uint32_t target, const void* source, int bytes) {
    on_host::require(reinterpret_cast<uintptr_t>(source) % 16 == 0, "a chunk in memory is not aligned");
    uint8_t* to = shared(target, 16);
    const auto copy = [=] {
        memset(to, 0, 16);
        memcpy(to, source, bytes);
    };
    if (on_host::cluster->when == on_host::When::kEarly) copy();
    else on_host::running->copies.back().push_back(copy);
}

static inline void copy_commit() { on_host::running->copies.push_back({}); }

template <int pending>
void copy_wait() {
    auto& groups = on_host::running->copies;
    for (; groups.size() > pending + 1; groups.pop_front()) {
        for (const auto& copy : groups.front()) copy();
    }
}

static inline uint32_t load_shared_32(uint32_t address) {
    uint32_t word;
    memcpy(&word, shared(address, 4), 4);
    return word;
}
static inline uint32_t load_shared_16(uint32_t address) {
    uint16_t word;
    memcpy(&word, shared(address, 2), 2);
    return word;
}
static inline void store_shared_pair(uint32_t address, float first, float second) {
    const float pair[2] = {first, second};
    memcpy(shared(address, 8), pair, 8);
}
static inline void load_shared_quad(uint32_t address, float (&to)[4]) { memcpy(to, shared(address, 16), 16); }

// Arithmetic.

static inline void multiply_row(const Number* a, const Number* b, float& sum) {
    uint32_t code;
    memcpy(&code, &sum, 4);
    code = static_cast<uint32_t>(mma_instruction(model, a, b, code, nullptr, nullptr));
    memcpy(&sum, &code, 4);
}

static inline uint32_t half_of(uint32_t reg, int i) { return reg >> 16 * i & 0xFFFF; }

// m16n8k16: every lane brings its registers of the sum, of a and of b.
static inline void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    on_host::Warp& warp = this_warp();
    void** mine = &warp.arguments[3 * (thread_index() % 32)];
    mine[0] = sum, mine[1] = const_cast<uint32_t*>(a), mine[2] = const_cast<uint32_t*>(b);
    on_host::meet(warp.meeting, 32, [&warp] {
        Number rows[16][16], columns[8][16];
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane >> 2, in_group = lane & 3;
            const auto* a = static_cast<const uint32_t*>(warp.arguments[3 * lane + 1]);
            const auto* b = static_cast<const uint32_t*>(warp.arguments[3 * lane + 2]);
            for (int i = 0; i < 8; ++i) {
                const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
                const int k = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                rows[row][k] = decode_operand(half_of(a[i / 2], i % 2), model.a);
            }
            for (int i = 0; i < 4; ++i) {
                const int k = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
                columns[group][k] = decode_operand(half_of(b[i / 2], i % 2), model.b);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            auto* sum = static_cast<float*>(warp.arguments[3 * lane]);
            for (int i = 0; i < 4; ++i) {
                const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = (lane & 3) * 2 + (i & 1);
                multiply_row(rows[row], columns[column], sum[i]);
            }
        }
    });
}

static inline void mma_float16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma(sum, a, b); }
static inline void mma_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma(sum, a, b); }

static inline uint32_t round_to_float16(float x) { return x != x ? 0x7E00 : narrow(Float16{}, bit_cast<uint32_t>(x)); }
static inline uint32_t round_to_bfloat16(float x) {
    return x != x ? 0x7FC0 : narrow(Bfloat16{}, bit_cast<uint32_t>(x));
}

static inline uint32_t multiply_halves(uint32_t x, uint32_t y) {
    uint32_t product = 0;
    for (int i = 0; i < 2; ++i) {
        const auto half = [i](uint32_t pair) {
            return bit_cast<float>(widen(Float16{}, static_cast<uint16_t>(half_of(pair, i))));
        };
        product |= round_to_float16(half(x) * half(y)) << 16 * i;
    }
    return product;
}

static inline uint32_t round_to_float16_pair(float low, float high) {
    return round_to_float16(low) | round_to_float16(high) << 16;
}
static inline uint32_t round_to_bfloat16_pair(float low, float high) {
    return round_to_bfloat16(low) | round_to_bfloat16(high) << 16;
}

static inline float widen_float16(uint16_t half) { return bit_cast<float>(decode<uint32_t>(half, to_float16())); }

}  // namespace fp8sim
