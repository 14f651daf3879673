// What a kernel does with partial sums outside of the tensor core, in binary32, every operation rounded to nearest with
// ties to even.
#pragma once

#include <cstdint>

namespace fp8sim {

// How factors meet a partial sum p. Numbers are those of fp8sim.mma.plans.
enum class Factors : int32_t {
    kNone = 0,
    kSuccessive = 1,  // (p * row) * column
    kProduct = 2,     // p * (row * column)
};

enum class Addition : int32_t {
    kNone = 0,      // the scaled partial sum replaces the target
    kSeparate = 1,  // target + scaled partial sum, itself rounded
    kFused = 2,     // the last multiplication and the addition are one FMA
};

struct PromoteJob {
    float* target;         // [M, N]
    const float* partial;  // [M, N]; the target itself for an addition of nothing
    const float* row;      // [M]
    const float* column;   // [N]
    int64_t m;
    int64_t n;
    Factors factors;
    Addition addition;
};

void run(const PromoteJob& job);

}  // namespace fp8sim
