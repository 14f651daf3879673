// Where the registers of a warp lie in the matrices of mma.sync and wgmma (PTX ISA, "Matrix fragments").
//
// Counted in words: 4 bytes of a row, or the 8 of a binary64 number. So the types of all widths share one layout. Plain
// functions of integers, so that tests compare them with the tables of the PTX ISA without a GPU.
#pragma once

#include "core/format.hpp"

namespace fp8sim {

struct WordPlace {
    int row;
    int word;
};

// a [row, k]: register `i` of a lane; with 8 rows there is one register for each 4 words.
FP8SIM_HD constexpr WordPlace fragment_a(int lane, int i, int rows) {
    if (rows == 8) return {lane / 4, lane % 4 + 4 * i};
    return {lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2)};
}

// b [column, k].
FP8SIM_HD constexpr WordPlace fragment_b(int lane, int i) { return {lane / 4, lane % 4 + 4 * i}; }

// c and d [row, column], of wgmma the 16 rows of a warp: two neighbouring numbers in one word (binary16), or one in
// each. Every 8 columns take as many registers as the next 8.
FP8SIM_HD constexpr WordPlace fragment_d(int lane, int i, bool packed) {
    if (packed) return {lane / 4 + 8 * (i % 2), 4 * (i / 2) + lane % 4};
    return {lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2};
}

// Operands of wgmma in shared memory without a swizzle: 8 rows of 16 bytes are 128 bytes in a row, two of these lie side
// by side along K, and then the next 8 rows begin.
constexpr int kCoreBytes = 128;
constexpr int kRowGroupBytes = 2 * kCoreBytes;

FP8SIM_HD constexpr int core_offset(int row, int byte) {
    return row / 8 * kRowGroupBytes + byte / 16 * kCoreBytes + row % 8 * 16 + byte % 16;
}

// How wgmma finds them (PTX ISA, "Matrix descriptor format"): the address, the distance along K, the distance along the
// rows, and no swizzle; all in units of 16 bytes.
FP8SIM_HD constexpr uint64_t core_descriptor(uint32_t address) {
    return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{kCoreBytes >> 4} << 16 | uint64_t{kRowGroupBytes >> 4} << 32;
}

}  // namespace fp8sim
