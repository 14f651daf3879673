// Fused attention as the bindings hand it to the launcher, and what both GPU kernels know of it.
#pragma once

#include <cstdint>

#include "cuda/matmul.hpp"

namespace fp8sim {

struct AttentionExtent {
    int32_t batches;
    int32_t heads;
    int32_t groups;  // heads of keys and values; divides `heads`
    int32_t queries;
    int32_t keys;
    int32_t features;
};

// Matrices [batches, heads, rows, columns] whose columns are contiguous; rows start at multiples of 16 bytes. Strides
// are in elements.
struct HeadMatrices {
    const void* address;
    int64_t per_row;
    int64_t per_head;
    int64_t per_batch;
};

// Which keys a query sees: from `window` - 1 before its place on (0: from the first) up to its place, if `causal`. The
// place of query i is key i + offset.
struct Mask {
    bool causal;
    int32_t window;
    int32_t offset;
};

// p = 2^(c s - (c m - p_offset)) of logits s and their running maximum m; the result is multiplied by `factor`.
struct Softmax {
    float c;
    float p_offset;
    float factor;
};

// out = softmax(c ln 2 q k^T) v factor, and lse = log2 of the sum of 2^(c s), infinite in rows that see no key. Every
// extent is positive.
struct AttentionJob {
    AttentionExtent extent;
    Operand type;  // of q, k and v
    HeadMatrices q;
    HeadMatrices k;
    HeadMatrices v;
    bool transposed_values;  // they are [batches, groups, features, keys], as the kernel takes those of FP8 on Hopper
    Mask mask;
    Softmax softmax;
    void* out;  // [batches, heads, queries, features], contiguous
    Result out_type;
    float* lse;  // [batches, heads, queries]
};

// Keys per block: the plan's `block`.
constexpr int attention_block(int features, int capability) {
    if (capability == kHopper) return features > 128 ? 64 : 128;
    return features > 128 ? 32 : 64;
}

// Starts the job on a stream (a cudaStream_t) of the current device, whose compute capability is 8.0 or later.
CudaStatus launch_attention(const AttentionJob& job, uintptr_t stream);

}  // namespace fp8sim
