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

static inline uint32_t shuffle_from(uint32_t x, int lane) {
    on_host::Warp& warp = this_warp();
    uint32_t taken = 0;
    void** brought = &warp.arguments[3 * (thread_index() % 32)];
    brought[0] = &x, brought[1] = &taken, brought[2] = &lane;
    on_host::meet(warp.meeting, 32, [&warp] {
        for (int to = 0; to < 32; ++to) {
            const int from = *static_cast<int*>(warp.arguments[3 * to + 2]);
            on_host::require(from >= 0 && from < 32, "shuffle: a lane of the warp");
            *static_cast<uint32_t*>(warp.arguments[3 * to + 1]) = *static_cast<uint32_t*>(warp.arguments[3 * from]);
        }
    });
    return taken;
}

static inline uint32_t choose_bytes(uint32_t low, uint32_t high, uint32_t which) {
    const uint64_t bytes = uint64_t{high} << 32 | low;
    uint32_t chosen = 0;
    for (int i = 0; i < 4; ++i) chosen |= uint32_t{uint8_t(bytes >> 8 * (which >> 4 * i & 7))} << 8 * i;
    return chosen;
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
    for (const uint64_t stride : map.strides) on_host::require(is_valid_stride(stride), "tensor map: strides");
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

// Row m of an operand in the registers of a warpgroup, 32 bytes of it (PTX ISA, "Register fragments for
// wgmma.mma_async"): a quad has a row and the one 8 below, a thread of it two words of each, four apart.
inline std::vector<Number> read_registers(const std::vector<const uint32_t*>& words, int m, const MmaFormat& format,
                                          int bytes) {
    std::vector<Number> numbers;
    for (int at = 0; at < 32; at += bytes) {
        const int word = at / 4, thread = m / 16 * 32 + m % 8 * 4 + word % 4, i = m / 8 % 2 + word / 4 * 2;
        const uint32_t bits = words[thread][i] >> 8 * (at % 4);
        numbers.push_back(decode_operand(bytes == 1 ? bits & 0xFF : bits & 0xFFFF, format));
    }
    return numbers;
}

inline void multiply_rows(on_host::Block& block, const std::vector<const uint32_t*>& words,
                          const std::vector<float*>& sums, int columns, uint64_t b, int bytes) {
    std::vector<std::vector<Number>> right(columns);
    for (int n = 0; n < columns; ++n) {
        if (bytes == 1) right[n] = read_row(block, b, n, model.b, bytes);
        else for (int k = 0; k < 16; ++k) right[n].push_back(read_down(block, b, n, k));
    }
    for (int m = 0; m < 64; ++m) {
        const std::vector<Number> left = read_registers(words, m, model.a, bytes);
        on_host::require(static_cast<int>(left.size()) == model.k, "the model is of another instruction");
        for (int n = 0; n < columns; ++n) {
            const int thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2, i = n / 8 * 4 + m / 8 % 2 * 2 + n % 2;
            multiply_row(left.data(), right[n].data(), sums[thread][i]);
        }
    }
}

// Late products read their registers late, too.
template <class Type, int registers>
void wgmma_rows(Type, float (&sum)[registers], const uint32_t* a, uint64_t b) {
    on_host::Warpgroup& group = this_warpgroup();
    group.sums[thread_index() % 128] = sum;
    group.words[thread_index() % 128] = a;
    on_host::Block& block = *on_host::running->block;
    on_host::meet(group.meeting, 128, [&group, &block, b] {
        const auto product = [sums = group.sums, words = group.words, &block, b] {
            multiply_rows(block, words, sums, 2 * registers, b, sizeof(typename Type::Storage));
        };
        if (on_host::cluster->when == on_host::When::kEarly) product();
        else group.open.push_back(product);
    });
}

}  // namespace fp8sim
