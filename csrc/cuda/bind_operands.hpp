// What the bindings of tensor-core kernels check of their operands.
#pragma once

#include <string>

#include "cuda/bind_memory.hpp"
#include "cuda/matmul.hpp"

namespace fp8sim {

constexpr DtypeRow kOperandRows[] = {{"float8_e4m3fn", Dtype::kCodes8, 1},
                                     {"float8_e5m2", Dtype::kCodes8, 1},
                                     {"float16", Dtype::kFloat16, 2},
                                     {"bfloat16", Dtype::kBfloat16, 2}};
constexpr DtypeRow kResultRows[] = {
    {"float32", Dtype::kFloat32, 4}, {"float16", Dtype::kFloat16, 2}, {"bfloat16", Dtype::kBfloat16, 2}};

constexpr int64_t kMostRows = INT32_MAX - 1024;  // places a tile further are still counted in 32 bits

// The place in `rows` of the dtype of that name.
template <size_t count>
int find_row(const std::string& argument, const std::string& name, const DtypeRow (&rows)[count]) {
    std::string known;
    for (size_t i = 0; i < count; ++i) {
        if (name == rows[i].name) return static_cast<int>(i);
        known += (known.empty() ? "" : ", ") + std::string(rows[i].name);
    }
    refuse(argument + "='" + name + "': use one of " + known);
}

inline void check_extent(const char* name, int64_t length, int64_t least) {
    if (length >= least && length <= kMostRows) return;
    refuse(std::string(name) + "=" + std::to_string(length) + ": expected " + std::to_string(least) + " to " +
           std::to_string(kMostRows));
}

// The copy engine takes rows and matrices at multiples of 16 bytes.
inline void check_alignment(const Memory& memory, const int64_t* strides, size_t count) {
    constexpr int64_t kAlignment = 16, kMost = int64_t{1} << 40;
    const std::string argument = memory.argument;
    const int64_t bytes = memory.dtype.bytes;
    for (size_t i = 0; i < count; ++i) {
        const int64_t stride = strides[i];
        if (stride >= 0 && stride < kMost / bytes && stride * bytes % kAlignment == 0) continue;
        refuse(argument + "_strides: " + std::to_string(stride) + " elements of " + memory.dtype.name +
               " are no multiple of 16 bytes below 2^40: copy it to rows that are padded to one");
    }
    if (memory.address % kAlignment != 0) {
        refuse(argument + "=" + std::to_string(memory.address) +
               " is no multiple of 16 bytes: copy it to memory that is");
    }
}

// Elements from the first to beyond the last of rows of `last` elements; `lengths`, 1 or more, are apart by `strides`.
inline int64_t check_reach(const Memory& memory, const int64_t* lengths, const int64_t* strides, size_t count,
                           int64_t last) {
    constexpr int64_t kMost = int64_t{1} << 60;
    int64_t size = last;
    for (size_t i = 0; i < count; ++i) {
        if (lengths[i] == 1) continue;
        if (strides[i] > (kMost - size) / (lengths[i] - 1)) {
            refuse(std::string(memory.argument) + "_strides: " + std::to_string(strides[i]) + " elements, " +
                   std::to_string(lengths[i]) + " times, reach beyond the address space");
        }
        size += (lengths[i] - 1) * strides[i];
    }
    return size;
}

}  // namespace fp8sim
