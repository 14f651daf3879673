// Where things are in attention's shared memory.
#pragma once

#include "cuda/layouts.hpp"

namespace fp8sim {

// Chunks of a row of `bytes`, permuted so that those of one number in 8 rows lie in different banks.
template <int bytes>
FP8SIM_HD constexpr int row_chunk(int row, int chunk) {
    return row * bytes + (bytes % 128 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3)) * kChunk;
}

// `matrix_descriptor` of a tile whose rows go along K and whose columns are those of the product, 64 of 16 bits in 128
// bytes; the next 64 are `panel` bytes away (PTX ISA, "Strides", for MN-major layouts).
FP8SIM_HD constexpr uint64_t matrix_descriptor_down(uint32_t address, int panel) {
    constexpr uint64_t kRowsApart = kSwizzleAlignment >> 4, kSwizzle128 = 1;
    return uint64_t{(address & 0x3FFFF) >> 4} | static_cast<uint64_t>(panel >> 4) << 16 | kRowsApart << 32 |
           kSwizzle128 << 62;
}

}  // namespace fp8sim
