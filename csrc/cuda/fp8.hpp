// FP8 numbers as the matrix products see them: tags for templates, and FP8 pairs as pairs of binary16 numbers.
#pragma once

#include <cstdint>

#include "core/element.hpp"

namespace fp8sim {

struct E4m3 {
    using Storage = uint8_t;
};

struct E5m2 {
    using Storage = uint8_t;
};

// Both bytes of `pair` in the upper bytes of two halves.
FP8SIM_HD uint32_t spread_bytes(uint32_t pair) { return (pair & 0xFF) << 8 | (pair & 0xFF00) << 16; }

// Bits of E5M2 are those of binary16's upper byte.
FP8SIM_HD uint32_t widen_pair(E5m2, uint32_t pair) { return spread_bytes(pair); }

// E4M3's exponent, moved to binary16's place, is 8 too low: 2^8 times that number, exactly, subnormals included.
FP8SIM_HD uint32_t e4m3_over_256(uint32_t pair) {
    const uint32_t spread = spread_bytes(pair);
    return (spread & 0x80008000) | (spread & 0x7F007F00) >> 1;
}

// 0x7E00, what makes a binary16 pattern NaN, in each half where E4M3 is.
FP8SIM_HD uint32_t e4m3_nans(uint32_t pair) {
    const uint32_t all_ones = ((spread_bytes(pair) & 0x7F007F00) + 0x01000100) & 0x80008000;
    return all_ones - (all_ones >> 6);
}

}  // namespace fp8sim
