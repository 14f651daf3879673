// The checked launch of attention.
#include "cuda/attention.hpp"
#include "cuda/attention_choice.hpp"
#include "cuda/bind_operands.hpp"

#include <cmath>

namespace py = pybind11;

namespace fp8sim {
namespace {

using Strides = std::array<int64_t, 3>;  // from batch to batch, head to head, row to row

constexpr int kMostFeatures = 256;

// Elements from the first to beyond the last of [batches, heads, rows, columns].
int64_t check_heads(const Memory& memory, const Strides& strides, const std::array<int64_t, 4>& shape) {
    check_alignment(memory, strides.data(), strides.size());
    const int64_t size = check_reach(memory, shape.data(), strides.data(), strides.size(), shape[3]);
    check_memory(memory, size);
    return size;
}

HeadMatrices to_heads(const Memory& memory, const Strides& strides) {
    return {reinterpret_cast<const void*>(memory.address), strides[2], strides[1], strides[0]};
}

void check_features(int64_t features) {
    if (features >= 1 && features <= kMostFeatures) return;
    refuse("features=" + std::to_string(features) + ": expected 1 to " + std::to_string(kMostFeatures));
}

void check_numbers(float c, float p_offset, int64_t window, int64_t offset) {
    if (!(c > 0) || !std::isfinite(c)) refuse("c=" + std::to_string(c) + ": expected a positive, finite number");
    if (!std::isfinite(p_offset)) refuse("p_offset=" + std::to_string(p_offset) + ": expected a finite number");
    if (window < 0 || window > kMostRows) {
        refuse("window=" + std::to_string(window) + ": expected a number of keys, or 0 for all");
    }
    if (offset < -kMostRows || offset > kMostRows) refuse("offset=" + std::to_string(offset) + " is out of range");
}

void attention(uintptr_t query, uintptr_t key, uintptr_t value, uintptr_t out, uintptr_t lse,
               const std::array<int64_t, 6>& extent, const std::string& dtype, const std::string& out_dtype,
               const Strides& query_strides, const Strides& key_strides, const Strides& value_strides, float c,
               uintptr_t cuda_stream, bool transposed_value, bool causal, int64_t window, int64_t offset,
               float p_offset, float factor) {
    const auto& [batches, heads, groups, queries, keys, features] = extent;
    const int type = find_row("dtype", dtype, kOperandRows), out_type = find_row("out_dtype", out_dtype, kResultRows);
    const auto operand = static_cast<Operand>(type);
    if (operand == Operand::kE5m2) refuse("dtype='float8_e5m2': use one of float8_e4m3fn, float16, bfloat16");
    if (transposed_value && operand != Operand::kE4m3) refuse("transposed_value: only values of FP8 are");
    const char* names[] = {"batches", "heads", "groups", "queries", "keys", "features"};
    for (int i = 0; i < 6; ++i) check_extent(names[i], extent[i], 1);
    if (heads % groups != 0) {
        refuse("groups=" + std::to_string(groups) + ": must divide heads=" + std::to_string(heads));
    }
    check_features(features);
    check_numbers(c, p_offset, window, offset);
    const int64_t rows = batches * heads;
    if (batches > kMostRows / heads || rows > kMostRows / queries) {
        refuse("batches, heads, queries: more than 2^31 rows");
    }
    const DtypeRow& row = kOperandRows[type];
    const Memory q = {"query", query, row}, k = {"key", key, row}, v = {"value", value, row};
    const Memory o = {"out", out, kResultRows[out_type]}, sums = {"lse", lse, kResultRows[0]};
    const int64_t size = rows * queries * features;
    check_memory(o, size);
    check_memory(sums, rows * queries);
    check_apart(sums, rows * queries, o, size);
    const std::array<int64_t, 4> value_shape = {batches, groups, transposed_value ? features : keys,
                                                transposed_value ? keys : features};
    const int64_t sizes[] = {check_heads(q, query_strides, {batches, heads, queries, features}),
                             check_heads(k, key_strides, {batches, groups, keys, features}),
                             check_heads(v, value_strides, value_shape)};
    const Memory* operands[] = {&q, &k, &v};
    for (int i = 0; i < 3; ++i) {
        check_apart(*operands[i], sizes[i], o, size);
        check_apart(*operands[i], sizes[i], sums, rows * queries);
    }
    for (const Memory& memory : {q, k, v, o, sums}) check_device(memory.argument, memory.address);
    AttentionJob job = {};
    job.extent = {static_cast<int32_t>(batches), static_cast<int32_t>(heads), static_cast<int32_t>(groups),
                  static_cast<int32_t>(queries), static_cast<int32_t>(keys),  static_cast<int32_t>(features)};
    job.type = operand;
    job.q = to_heads(q, query_strides);
    job.k = to_heads(k, key_strides);
    job.v = to_heads(v, value_strides);
    job.transposed_values = transposed_value;
    job.mask = {causal, static_cast<int32_t>(window), static_cast<int32_t>(offset)};
    job.softmax = {c, p_offset, factor};
    job.out = reinterpret_cast<void*>(out);
    job.out_type = static_cast<Result>(out_type);
    job.lse = reinterpret_cast<float*>(lse);
    py::gil_scoped_release unlocked;
    check(launch_attention(job, cuda_stream));
}

int block(int64_t features, int64_t capability) {
    constexpr int64_t kMostCapability = 999;
    check_features(features);
    if (capability < 80 || capability > kMostCapability) {
        refuse("capability=" + std::to_string(capability) + ": expected 10 * major + minor of 8.0 or later, such as 90");
    }
    return attention_block(static_cast<int>(features), static_cast<int>(capability));
}

}  // namespace

void define_attention(py::module_& module) {
    module.def("attention", &attention, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"),
               py::arg("lse"), py::arg("extent"), py::arg("dtype"), py::arg("out_dtype"), py::arg("query_strides"),
               py::arg("key_strides"), py::arg("value_strides"), py::arg("c"), py::arg("cuda_stream") = 0,
               py::kw_only(), py::arg("transposed_value") = false, py::arg("causal") = false, py::arg("window") = 0,
               py::arg("offset") = 0, py::arg("p_offset") = 0.0f, py::arg("factor") = 1.0f);
    module.def("attention_block", &block, py::arg("features"), py::arg("capability"));
}

}  // namespace fp8sim
