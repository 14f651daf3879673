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

template <class Storage>
struct alignas(kQuad * sizeof(Storage)) StoredQuad {
    Storage element[kQuad];
};

// Four neighbours of a row, from element `index` of the result on; `count` of them exist.
template <class Out>
FP8SIM_DEVICE void store_quad(Out type, const Epilogue& epilogue, int64_t index, const float (&results)[kQuad],
                              int count) {
    using Storage = typename Out::Storage;
    Storage* out = static_cast<Storage*>(epilogue.out) + index;
    StoredQuad<Storage> quad;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) quad.element[i] = static_cast<Storage>(rounded(type, results[i]));
    if (epilogue.in_quads) {
        *reinterpret_cast<StoredQuad<Storage>*>(out) = quad;
        return;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        if (i < count) out[i] = quad.element[i];
    }
}

// Sums [rows, columns], staged at `staged`, become results from row and column `first` on; `threads` threads share
// them. What lies outside of the result is left alone.
template <int rows, int columns, int threads>
FP8SIM_DEVICE void finish_sums(uint32_t staged, int thread, const Epilogue& epilogue, const Extent& extent, int batch,
                               const Place& first) {
    constexpr int kQuads = columns / kQuad;
#pragma unroll 2
    for (int piece = thread; piece < rows * kQuads; piece += threads) {
        const int row = piece / kQuads, column = piece % kQuads * kQuad;
        const int m = first.row + row, n = first.column + column;
        if (m >= extent.m || n >= extent.n) continue;
        const int count = extent.n - n < kQuad ? extent.n - n : kQuad;
        const float row_factor = factor_of(epilogue.a, batch, m);
        float sums[kQuad];
        load_shared_quad(staged + staged_offset(row, column, columns), sums);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            const float column_factor = i < count ? factor_of(epilogue.b, batch, n + i) : 1.0f;
            sums[i] = sums[i] * row_factor * column_factor * epilogue.scale;
        }
        const int64_t index = (int64_t{batch} * extent.m + m) * extent.n + n;
        if (epilogue.type == Result::kFloat32) store_quad(Float32{}, epilogue, index, sums, count);
        else if (epilogue.type == Result::kFloat16) store_quad(Float16{}, epilogue, index, sums, count);
        else store_quad(Bfloat16{}, epilogue, index, sums, count);
    }
}

}  // namespace fp8sim
