// A matrix product as the bindings hand it to the launcher, and what both GPU kernels know of it.
#pragma once

#include <cstdint>

#include "cuda/status.hpp"

namespace fp8sim {

constexpr int kAmpere = 80, kHopper = 90;  // compute capabilities, 10 * major + minor

enum class Operand { kE4m3, kE5m2, kFloat16, kBfloat16 };

constexpr bool is_fp8(Operand operand) { return operand <= Operand::kE5m2; }
constexpr int bytes_of(Operand operand) { return is_fp8(operand) ? 1 : 2; }

enum class Result { kFloat32, kFloat16, kBfloat16 };

// Matrices [batches, rows, K] whose rows are contiguous and start at multiples of 16 bytes. Strides are in elements; a
// `per_batch` of 0 is one matrix for all.
struct Matrices {
    const void* address;
    Operand type;
    int64_t per_row;
    int64_t per_batch;
};

// Factors of an operand's rows in float32, [batches, rows]; a stride of 0 repeats one, a null address is 1 for all.
struct RowFactors {
    const float* address;
    int64_t per_row;
    int64_t per_batch;
};

struct Extent {
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t batches;
};

// Whether all places of the batch share one matrix.
struct OneForAll {
    bool a;
    bool b;
};

// What becomes of a finished sum: times the factor of its row of a, of its row of b, `scale`, then rounded to `type`.
struct Epilogue {
    void* out;  // [batches, M, N], contiguous
    Result type;
    bool in_quads;  // four neighbours may be stored at once: N is a multiple of 4 and `out` aligned to 4 elements
    float scale;
    RowFactors a;
    RowFactors b;
};

// out[b, m, n] = sum_k a[b, m, k] * b[b, n, k]; all extents are positive.
struct MatmulJob {
    Extent extent;
    Matrices a;
    Matrices b;
    bool promotes;  // on Hopper, sums of 128 FP8 products are added in float32
    Epilogue epilogue;
};

constexpr int kPromotion = 128;

// Starts the job on a stream (a cudaStream_t) of the current device, whose compute capability is 8.0 or later.
CudaStatus launch_matmul(const MatmulJob& job, uintptr_t stream);

}  // namespace fp8sim
