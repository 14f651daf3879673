// From finished sums to the result in memory: through shared memory, where a thread finds neighbours of one row.
#pragma once

#include "cuda/fp8.hpp"
#include "cuda/intrinsics.cuh"
#include "cuda/layouts.hpp"
#include "cuda/matmul.hpp"

namespace fp8sim {

constexpr int kQuad = 4;

FP8SIM_DEVICE float factor_of(const RowFactors& factors, int batch, int row) {
    if (factors.address == nullptr) return 1.0f;
    return factors.address[batch * factors.per_batch + row * factors.per_row];
}

FP8SIM_DEVICE uint32_t rounded(Float32, float x) { return bit_cast<uint32_t>(x); }
FP8SIM_DEVICE uint32_t rounded(Float16, float x) { return round_to_float16(x); }
FP8SIM_DEVICE uint32_t rounded(Bfloat16, float x) { return round_to_bfloat16(x); }

FP8SIM_DEVICE uint32_t rounded_pair(Float16, float low, float high) { return round_to_float16_pair(low, high); }
FP8SIM_DEVICE uint32_t rounded_pair(Bfloat16, float low, float high) { return round_to_bfloat16_pair(low, high); }

template <class Storage>
struct alignas(kQuad * sizeof(Storage)) StoredQuad {
    Storage element[kQuad];
};

FP8SIM_DEVICE bool none_is_nan(const float (&x)[kQuad]) {
    return x[0] == x[0] && x[1] == x[1] && x[2] == x[2] && x[3] == x[3];
}

// Four numbers in a type of the result. Two are rounded at once, but for NaN.
template <class Out>
FP8SIM_DEVICE StoredQuad<typename Out::Storage> rounded_quad(Out type, const float (&x)[kQuad]) {
    using Storage = typename Out::Storage;
    if constexpr (sizeof(Storage) == 2) {
        if (none_is_nan(x)) {
            const uint64_t pairs = rounded_pair(type, x[0], x[1]) | uint64_t{rounded_pair(type, x[2], x[3])} << 32;
            return bit_cast<StoredQuad<Storage>>(pairs);
        }
    }
    StoredQuad<Storage> quad;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) quad.element[i] = static_cast<Storage>(rounded(type, x[i]));
    return quad;
}

// A thread takes the same four columns of every `threads / (columns / kQuad)`-th row.
template <class Out, int rows, int columns, int threads>
FP8SIM_DEVICE void finish_columns(Out type, uint32_t staged, int thread, const Epilogue& epilogue, const Extent& extent,
                                  int batch, const Place& first) {
    using Storage = typename Out::Storage;
    constexpr int kQuads = columns / kQuad, kRowsAtOnce = threads / kQuads;
    static_assert(threads % kQuads == 0 && rows % kRowsAtOnce == 0, "all threads have as many rows");
    const int column = thread % kQuads * kQuad, n = first.column + column;
    const int count = extent.n - n < kQuad ? extent.n - n : kQuad;
    if (count <= 0) return;
    float column_factors[kQuad];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) column_factors[i] = i < count ? factor_of(epilogue.b, batch, n + i) : 1.0f;
    const int first_row = thread / kQuads;
    Storage* out = static_cast<Storage*>(epilogue.out) +
                   (int64_t{batch} * extent.m + first.row + first_row) * extent.n + n;
#pragma unroll 4
    for (int row = first_row; row < rows; row += kRowsAtOnce, out += int64_t{kRowsAtOnce} * extent.n) {
        if (first.row + row >= extent.m) break;
        const float row_factor = factor_of(epilogue.a, batch, first.row + row);
        float sums[kQuad];
        load_shared_quad(staged + staged_offset(row, column, columns), sums);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) sums[i] = sums[i] * row_factor * column_factors[i] * epilogue.scale;
        const auto quad = rounded_quad(type, sums);
        if (epilogue.in_quads) {
            *reinterpret_cast<StoredQuad<Storage>*>(out) = quad;
        } else {
#pragma unroll
            for (int i = 0; i < kQuad; ++i) {
                if (i < count) out[i] = quad.element[i];
            }
        }
    }
}

// Sums [rows, columns], staged at `staged`, become results from row and column `first` on; `threads` threads share
// them. What lies outside of the result is left alone.
template <int rows, int columns, int threads>
FP8SIM_DEVICE void finish_sums(uint32_t staged, int thread, const Epilogue& epilogue, const Extent& extent, int batch,
                               const Place& first) {
    const auto finish = [&](auto type) {
        finish_columns<decltype(type), rows, columns, threads>(type, staged, thread, epilogue, extent, batch, first);
    };
    if (epilogue.type == Result::kFloat32) finish(Float32{});
    else if (epilogue.type == Result::kFloat16) finish(Float16{});
    else finish(Bfloat16{});
}

}  // namespace fp8sim
