// Stands in for csrc/cuda/attention_intrinsics.cuh on a CPU, like the other files here.
#pragma once

#include <cmath>

#include "cuda/attention_choice.hpp"
#include "cuda/layouts.hpp"
#include "cuda/wgmma.cuh"

namespace fp8sim {

using HeadTensorMap = HeadBoxes;

static inline int only_here(int x) { return x; }

static inline float shuffle_xor(float x, int lanes) {
    on_host::Warp& warp = this_warp();
    void** brought = &warp.arguments[3 * (thread_index() % 32)];
    float taken = 0.0f;
    brought[0] = &x, brought[1] = &taken;
    on_host::meet(warp.meeting, 32, [&warp, lanes] {
        for (int lane = 0; lane < 32; ++lane) {
            *static_cast<float*>(warp.arguments[3 * lane + 1]) =
                *static_cast<float*>(warp.arguments[3 * (lane ^ lanes)]);
        }
    });
    return taken;
}

static inline float exp2_of(float x) {
    const float y = static_cast<float>(std::exp2(static_cast<double>(x)));
    return y < 0x1p-126f ? 0.0f : y;
}
static inline float log2_of(float x) { return static_cast<float>(std::log2(static_cast<double>(x))); }
static inline float multiply_add(float x, float y, float z) { return std::fma(x, y, z); }

static inline uint32_t round_to_e4m3(float low, float high) {
    const Conversion e4m3 = {3, -6, 0, 126, kNoCode, 127, 128, 1, 0, 0, 128, 126, 254, 126, 254, 127, 255, 0, 0};
    return encode<uint32_t>(bit_cast<uint32_t>(low), e4m3) | encode<uint32_t>(bit_cast<uint32_t>(high), e4m3) << 8;
}

static inline uint32_t load_shared_8(uint32_t address) { return *shared(address, 1); }
static inline void store_shared_32(uint32_t address, uint32_t word) { memcpy(shared(address, 4), &word, 4); }
static inline void store_shared_16(uint32_t address, uint32_t word) { memcpy(shared(address, 2), &word, 2); }

// ldmatrix (PTX ISA): lane l names row l % 8 of matrix l / 8.
static inline void load_matrices_of(uint32_t (&words)[4], uint32_t row, bool transposed) {
    on_host::Warp& warp = this_warp();
    uint8_t* source = shared(row, 16);
    void** brought = &warp.arguments[3 * (thread_index() % 32)];
    brought[0] = source, brought[1] = words;
    on_host::meet(warp.meeting, 32, [&warp, transposed] {
        for (int lane = 0; lane < 32; ++lane) {
            auto* taken = static_cast<uint32_t*>(warp.arguments[3 * lane + 1]);
            for (int matrix = 0; matrix < 4; ++matrix) {
                taken[matrix] = 0;
                for (int i = 0; i < 2; ++i) {
                    const int r = transposed ? 2 * (lane & 3) + i : lane >> 2;
                    const int c = transposed ? lane >> 2 : 2 * (lane & 3) + i;
                    uint16_t number;
                    memcpy(&number, static_cast<uint8_t*>(warp.arguments[3 * (8 * matrix + r)]) + 2 * c, 2);
                    taken[matrix] |= uint32_t{number} << 16 * i;
                }
            }
        }
    });
}
static inline void load_matrices(uint32_t (&words)[4], uint32_t row) { load_matrices_of(words, row, false); }
static inline void load_matrices_transposed(uint32_t (&words)[4], uint32_t row) { load_matrices_of(words, row, true); }

static inline void load_head_box(uint32_t target, const HeadTensorMap& map, int column, int row, int head, int batch,
                                 uint32_t barrier) {
    const uint64_t bytes = bytes_of(map.type);
    on_host::require(reinterpret_cast<uintptr_t>(map.address) % 16 == 0, "tensor map: address");
    for (const uint64_t stride : map.strides) on_host::require(stride % 16 == 0, "tensor map: strides");
    on_host::require(map.box[0] * bytes == 128 && map.box[1] <= 256 && map.box[2] * map.box[3] == 1, "tensor map: box");
    on_host::require(target % 128 == 0, "the copy engine's target is not aligned");
    on_host::Block& block = *on_host::running->block;
    on_host::on_its_own([=, &block] {
        for (uint32_t r = 0; r < map.box[1]; ++r) {
            for (uint32_t at = 0; at < map.box[0]; ++at) {
                const uint64_t place[4] = {uint64_t(column) + at, uint64_t(row) + r, uint64_t(head), uint64_t(batch)};
                const auto* from = static_cast<const uint8_t*>(map.address) + place[0] * bytes;
                bool inside = place[0] < map.extents[0];
                for (int i = 1; i < 4; ++i) {
                    inside = inside && place[i] < map.extents[i];
                    from += place[i] * map.strides[i - 1];
                }
                uint8_t* to = block.at(swizzled(target + static_cast<uint32_t>(r * 128 + at * bytes)), bytes);
                if (inside) memcpy(to, from, bytes);
                else memset(to, 0, bytes);
            }
        }
        Barrier& counter = ready_barrier(block, barrier);
        counter.bytes -= static_cast<int32_t>(map.box[0] * map.box[1] * bytes);
        end_phase_if_complete(counter);
    });
}

static inline void barrier_arrive_here(uint32_t barrier) { barrier_arrive(barrier, rank_in_cluster()); }
static inline void products_fence() {}
static inline void warpgroup_sync(int warpgroup) { threads_sync(1 + warpgroup, 128); }

// Number (n, k) of an operand whose columns are contiguous (PTX ISA, "Strides" of MN-major layouts with a swizzle of 128
// bytes): 64 columns by 8 of k make 1024 bytes; the descriptor says how far it is to the next of either.
inline Number read_down(on_host::Block& block, uint64_t descriptor, int n, int k) {
    const auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
    const auto columns_apart = static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4;
    const auto rows_apart = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
    on_host::require(descriptor >> 62 == 1, "descriptor: swizzle of 128 bytes");
    uint16_t code;
    const uint32_t at = start + n / 64 * columns_apart + k / 8 * rows_apart + k % 8 * 128 + n % 64 * 2;
    memcpy(&code, block.at(swizzled(at), 2), 2);
    return decode_operand(code, model.b);
}

inline void multiply_tile_down(on_host::Block& block, const std::vector<float*>& sums, int columns, uint64_t a,
                               uint64_t b, bool adds) {
    constexpr int kDepth = 16;
    std::vector<std::vector<Number>> right(columns);
    for (int n = 0; n < columns; ++n) {
        for (int k = 0; k < kDepth; ++k) right[n].push_back(read_down(block, b, n, k));
    }
    for (int m = 0; m < 64; ++m) {
        const std::vector<Number> left = read_row(block, a, m, model.a, 2);
        for (int n = 0; n < columns; ++n) {
            const int thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2, i = n / 8 * 4 + m / 8 % 2 * 2 + n % 2;
            float& sum = sums[thread][i];
            if (!adds) sum = 0.0f;
            multiply_row(left.data(), right[n].data(), sum);
        }
    }
}

template <class A, class B, int registers>
void wgmma_down(A, B, float (&sum)[registers], uint64_t a, uint64_t b, int adds) {
    on_host::Warpgroup& group = this_warpgroup();
    group.sums[thread_index() % 128] = sum;
    on_host::Block& block = *on_host::running->block;
    on_host::meet(group.meeting, 128, [&group, &block, a, b, adds] {
        const auto product = [sums = group.sums, &block, a, b, adds] {
            multiply_tile_down(block, sums, 2 * registers, a, b, adds != 0);
        };
        if (on_host::cluster->when == on_host::When::kEarly) product();
        else group.open.push_back(product);
    });
}

}  // namespace fp8sim
