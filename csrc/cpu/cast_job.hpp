// What the bindings hand to the loops: one array in, one array out, one conversion.
#pragma once

#include <cstdint>

#include "core/format.hpp"

namespace fp8sim {

enum class Dtype { kFloat16, kBfloat16, kFloat32, kFloat64, kCodes8, kCodes16, kCodes32 };

constexpr bool is_float(Dtype dtype) { return dtype <= Dtype::kFloat64; }

// Float to the same float is a cast, float to codes an encode, codes to float a decode. `source` and `target` are
// aligned and contiguous; they are one array or do not overlap.
struct CastJob {
    const void* source;
    void* target;
    int64_t size;
    Dtype source_dtype;
    Dtype target_dtype;
    Conversion conversion;
    uint64_t seed;
    uint64_t stream;
    uint64_t offset;
    int random_bits;
};

// Runs elements [begin, end) of a job; one function for each instruction set.
using CastLoops = void (*)(const CastJob& job, int64_t begin, int64_t end);

void cast_loops_portable(const CastJob& job, int64_t begin, int64_t end);
void cast_loops_avx2(const CastJob& job, int64_t begin, int64_t end);
void cast_loops_avx512(const CastJob& job, int64_t begin, int64_t end);

}  // namespace fp8sim
