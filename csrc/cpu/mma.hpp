// Chains of matrix multiply-accumulate instructions: d = c + a * b^T, one instruction after another over k.
#pragma once

#include <cstdint>

#include "core/mma.hpp"

namespace fp8sim {

// One matrix product. All matrices are contiguous: a [m, k], b [n, k], c and d [m, n], scale factors [m or n, blocks].
struct MmaJob {
    const void* a;
    const void* b;
    const void* c;  // null: +0
    void* d;        // may be c
    const uint8_t* a_scales;  // null where the instruction has none
    const uint8_t* b_scales;
    int64_t m;
    int64_t n;
    int64_t k;
    int32_t operand_bytes[2];
    MmaModel model;
};

// d of every element; the last instruction's missing products are 0 * 0 with the scale factors of the last block.
void run(const MmaJob& job);

}  // namespace fp8sim
