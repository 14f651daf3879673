// Which kernel computes a job, and what the copy engine is told of its operands.
#pragma once

#include "cuda/fp8.hpp"
#include "cuda/matmul.hpp"

namespace fp8sim {

// A tensor [batches, rows, K] and the box that is loaded of it at a time, [1, box_rows, box_depth] elements whose rows
// have 128 bytes; what a box has beyond the tensor is zero.
struct Boxes {
    const void* address;
    Operand type;
    uint64_t extents[3];  // elements: K, rows, batches
    uint64_t strides[2];  // bytes from row to row, from matrix to matrix
    uint32_t box[3];      // elements: K, rows, batches
};

// Bytes between neighbours in a dimension of `size`, `elements` apart: one that nothing uses still has to be a valid one.
inline uint64_t stride_of(int64_t elements, int64_t size, Operand type) {
    return size == 1 ? uint64_t{16} : static_cast<uint64_t>(elements) * bytes_of(type);
}

inline Boxes boxes_of(const Matrices& x, int64_t rows, int64_t k, int64_t batches, int box_rows, int box_depth) {
    const int64_t matrices = x.per_batch == 0 ? 1 : batches;
    return {x.address,
            x.type,
            {static_cast<uint64_t>(k), static_cast<uint64_t>(rows), static_cast<uint64_t>(matrices)},
            {stride_of(x.per_row, rows, x.type), stride_of(x.per_batch, matrices, x.type)},
            {static_cast<uint32_t>(box_depth), static_cast<uint32_t>(box_rows), 1}};
}

// Calls run(A{}, B{}) with the tags of the operands' types: FP8 ones in any mixture, others alike.
template <class Run>
auto for_operands(Operand a, Operand b, const Run& run) {
    if (a == Operand::kFloat16) return run(Float16{}, Float16{});
    if (a == Operand::kBfloat16) return run(Bfloat16{}, Bfloat16{});
    if (a == Operand::kE4m3) return b == Operand::kE4m3 ? run(E4m3{}, E4m3{}) : run(E4m3{}, E5m2{});
    return b == Operand::kE4m3 ? run(E5m2{}, E4m3{}) : run(E5m2{}, E5m2{});
}

// Calls run with the tile by which a Hopper GPU with that many processors computes the job: of 128 rows and 256
// columns, two of them below each other, where there are enough of them.
template <template <class, class, int, int, bool> class Tile, class Run>
auto for_wgmma_tile(const MatmulJob& job, int processors, const Run& run) {
    return for_operands(job.a.type, job.b.type, [&](auto a, auto b) {
        using A = decltype(a);
        using B = decltype(b);
        if constexpr (sizeof(typename A::Storage) == 1) {
            if (job.promotes) return run(Tile<A, B, 128, 2, true>{});
        }
        const Extent& e = job.extent;
        const int64_t wide = (int64_t{e.m} + 127) / 128 * ((int64_t{e.n} + 255) / 256) * e.batches;
        if (wide >= processors) return run(Tile<A, B, 256, 2, false>{});
        return run(Tile<A, B, 128, 1, false>{});
    });
}

}  // namespace fp8sim
