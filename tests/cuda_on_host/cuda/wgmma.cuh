// Stands in for csrc/cuda/wgmma.cuh on a CPU: the same products, through the descriptors' bits.
#pragma once

#include "cuda/fp8.hpp"
#include "cuda/intrinsics.cuh"

namespace fp8sim {

// Row `row` of a K-major operand in shared memory, 32 bytes of it, as numbers.
inline std::vector<Number> read_row(on_host::Block& block, uint64_t descriptor, int row, const MmaFormat& format,
                                    int bytes) {
    const auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
    const auto rows_apart = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
    on_host::require(descriptor >> 62 == 1, "descriptor: swizzle of 128 bytes");
    on_host::require((descriptor >> 46 & 0xFFFF) == 0 && (descriptor >> 30 & 3) == 0, "descriptor: unused bits");
    std::vector<Number> numbers;
    for (int at = 0; at < 32; at += bytes) {
        const uint32_t address = swizzled(start + row / 8 * rows_apart + row % 8 * 128 + at);
        uint64_t code = 0;
        memcpy(&code, block.at(address, bytes), bytes);
        numbers.push_back(decode_operand(code, format));
    }
    return numbers;
}

inline void multiply_tile(on_host::Block& block, const std::vector<float*>& sums, int columns, uint64_t a, uint64_t b,
                          bool adds, int bytes) {
    std::vector<std::vector<Number>> left, right;
    for (int m = 0; m < 64; ++m) left.push_back(read_row(block, a, m, model.a, bytes));
    for (int n = 0; n < columns; ++n) right.push_back(read_row(block, b, n, model.b, bytes));
    on_host::require(static_cast<int>(left[0].size()) == model.k, "the model is of another instruction");
    for (int thread = 0; thread < 128; ++thread) {
        const int warp = thread / 32, lane = thread % 32;
        for (int i = 0; i < columns / 2; ++i) {
            const int m = 16 * warp + (lane >> 2) + ((i & 2) ? 8 : 0), n = (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
            float& sum = sums[thread][i];
            if (!adds) sum = 0.0f;
            multiply_row(left[m].data(), right[n].data(), sum);
        }
    }
}

template <class A, class B, int registers>
void wgmma(A, B, float (&sum)[registers], uint64_t a, uint64_t b, int adds) {
    on_host::Warpgroup& group = this_warpgroup();
    group.sums[thread_index() % 128] = sum;
    on_host::Block& block = *on_host::running->block;
    on_host::meet(group.meeting, 128, [&group, &block, a, b, adds] {
        const auto product = [sums = group.sums, &block, a, b, adds] {
            multiply_tile(block, sums, 2 * registers, a, b, adds != 0, sizeof(typename A::Storage));
        };
        if (on_host::cluster->when == on_host::When::kEarly) product();
        else group.open.push_back(product);
    });
}

}  // namespace fp8sim
