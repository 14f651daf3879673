// Codes of a tensor times a factor, its amax and the transposed codes, as the bindings hand them to the launcher.
#pragma once

#include <cstdint>

#include "cpu/cast_job.hpp"
#include "cuda/status.hpp"

namespace fp8sim {

constexpr int kTile = 64;  // rows and columns of what a block transposes at a time

// How elements meet the factor, a float32 number.
enum class Meets {
    kNothing,
    kRounded,  // the product is rounded to float32, and then to the format
    kFused,    // the exact product is rounded to the format
};

struct KnownFactor {
    Meets meets;
    float value;
    const float* address;  // of a factor in device memory; null: `value` is the factor
};

// x is [matrices, rows, columns], contiguous, with at least one element.
struct EncodeScaledJob {
    const void* x;
    void* codes;
    void* transposed;  // [matrices, columns, rows]; null: not wanted
    uint32_t* amax;    // raised to the largest magnitude as float32 bits, before the factor; null: not wanted
    int64_t matrices;
    int64_t rows;
    int64_t columns;
    Dtype source_dtype;
    Dtype target_dtype;
    KnownFactor factor;
    Conversion conversion;
    RandomBits bits;
};

// Starts the job on a stream (a cudaStream_t) of the current device.
CudaStatus launch_encode_scaled(const EncodeScaledJob& job, uintptr_t stream);

}  // namespace fp8sim
