// What the copy engine is told of attention's operands.
#pragma once

#include "cuda/attention.hpp"
#include "cuda/fp8.hpp"
#include "cuda/matmul_choice.hpp"

namespace fp8sim {

// A tensor [batches, heads, rows, columns] and the box that is loaded of it at a time, [1, 1, box_rows, 128 bytes]; what
// a box has beyond the tensor is zero.
struct HeadBoxes {
    const void* address;
    Operand type;
    uint64_t extents[4];  // elements: columns, rows, heads, batches
    uint64_t strides[3];  // bytes from row to row, head to head, batch to batch
    uint32_t box[4];      // elements: columns, rows, heads, batches
};

inline HeadBoxes head_boxes(const HeadMatrices& x, Operand type, int batches, int heads, int rows, int columns,
                            int box_rows) {
    const auto extent = [](int size) { return static_cast<uint64_t>(size); };
    return {x.address,
            type,
            {extent(columns), extent(rows), extent(heads), extent(batches)},
            {stride_of(x.per_row, rows, type), stride_of(x.per_head, heads, type), stride_of(x.per_batch, batches, type)},
            {static_cast<uint32_t>(128 / bytes_of(type)), static_cast<uint32_t>(box_rows), 1, 1}};
}

struct AttentionBoxes {
    HeadBoxes q;
    HeadBoxes k;
    HeadBoxes v;
};

template <class Tile>
AttentionBoxes attention_boxes(const AttentionJob& job) {
    const AttentionExtent& e = job.extent;
    const int value_rows = Tile::kTransposed ? e.features : e.keys, value_columns = Tile::kTransposed ? e.keys : e.features;
    return {head_boxes(job.q, job.type, e.batches, e.heads, e.queries, e.features, Tile::kQueries),
            head_boxes(job.k, job.type, e.batches, e.groups, e.keys, e.features, Tile::kKeys),
            head_boxes(job.v, job.type, e.batches, e.groups, value_rows, value_columns, Tile::kValueRows)};
}

// Calls run(Tile{}) with the tile of the job's type and of the next larger number of features.
template <template <class, int> class Tile, class Run>
auto for_attention_tile(const AttentionJob& job, const Run& run) {
    const auto for_features = [&](auto type) {
        using Type = decltype(type);
        if (job.extent.features <= 64) return run(Tile<Type, 64>{});
        if (job.extent.features <= 128) return run(Tile<Type, 128>{});
        return run(Tile<Type, 256>{});
    };
    if (job.type == Operand::kFloat16) return for_features(Float16{});
    if (job.type == Operand::kBfloat16) return for_features(Bfloat16{});
    return for_features(E4m3{});
}

template <class Tile>
constexpr int64_t attention_blocks(const AttentionExtent& extent) {
    const int64_t tiles = (int64_t{extent.queries} + Tile::kQueries - 1) / Tile::kQueries;
    return tiles * extent.heads * extent.batches;
}

}  // namespace fp8sim
