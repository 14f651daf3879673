// What the bindings hand to the loops: one array in, one array out, one conversion.
#pragma once

#include <cstdint>

#include "core/format.hpp"
#include "core/random.hpp"
#include "cpu/quantize_job.hpp"

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

// To codes of a codebook: `cuts` are `cut_count` ascending numbers, of the source's dtype, but float for the halves.
struct LevelsJob {
    const void* source;
    uint8_t* codes;
    int64_t size;
    Dtype source_dtype;
    const void* cuts;
    int cut_count;
};

// What there is for each instruction set.
struct CastLoops {
    // Runs elements [begin, end) of a job.
    void (*run)(const CastJob& job, int64_t begin, int64_t end);
    void (*encode_levels)(const LevelsJob& job, int64_t begin, int64_t end);
    // Units [begin, end) of a job.
    void (*quantize)(const QuantizeJob& job, Pass pass, int64_t begin, int64_t end);
    // Factors of blocks from their amax.
    void (*make_factors)(const uint32_t* largest, uint32_t* stored, uint32_t* applied, int64_t count, ScaleConstants s,
                         TensorFactor tensor);
    // target[i] = the random integer of element i, for i in [begin, end).
    void (*draw)(uint32_t* target, RandomBits random, int64_t begin, int64_t end);
};

CastLoops cast_loops_portable();
CastLoops cast_loops_avx2();
CastLoops cast_loops_avx512();

}  // namespace fp8sim
