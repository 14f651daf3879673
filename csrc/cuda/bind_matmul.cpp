// The checked launch of a matrix product.
#include "cuda/bind_operands.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

constexpr DtypeRow kFactorRow = {"float32", Dtype::kFloat32, 4};

using Strides = std::array<int64_t, 2>;

// Elements from the first to beyond the last.
int64_t check_operand(const Memory& memory, const Strides& strides, int64_t rows, int64_t k, int64_t batches) {
    check_alignment(memory, strides.data(), strides.size());
    if (rows > 1 && strides[0] < k) {
        refuse(std::string(memory.argument) + "_strides: rows of " + std::to_string(k) + " elements overlap");
    }
    const int64_t lengths[] = {rows, batches};
    const int64_t size = check_reach(memory, lengths, strides.data(), strides.size(), k);
    check_memory(memory, size);
    return size;
}

int64_t check_factors(const Memory& memory, const Strides& strides, int64_t rows, int64_t batches) {
    if (strides[0] < 0 || strides[1] < 0) {
        refuse(std::string(memory.argument) + ": strides " + std::to_string(strides[0]) + ", " +
               std::to_string(strides[1]) + " are below 0");
    }
    const int64_t lengths[] = {rows, batches};
    const int64_t size = check_reach(memory, lengths, strides.data(), strides.size(), 1);
    if (memory.address != 0) check_memory(memory, size);
    return size;
}

Matrices to_matrices(const Memory& memory, int type, const Strides& strides, int64_t batches) {
    return {reinterpret_cast<const void*>(memory.address), static_cast<Operand>(type), strides[0],
            batches == 1 ? 0 : strides[1]};
}

RowFactors to_factors(const Memory& memory, const Strides& strides) {
    return {reinterpret_cast<const float*>(memory.address), strides[0], strides[1]};
}

void matmul(uintptr_t a, uintptr_t b, uintptr_t out, const std::array<int64_t, 4>& extent, const std::string& a_dtype,
            const std::string& b_dtype, const std::string& out_dtype, const Strides& a_strides,
            const Strides& b_strides, uintptr_t cuda_stream, bool fast_accumulation, float scale, uintptr_t a_factors,
            const Strides& a_factor_strides, uintptr_t b_factors, const Strides& b_factor_strides) {
    const auto& [m, n, k, batches] = extent;
    const int left_type = find_row("a_dtype", a_dtype, kOperandRows);
    const int right_type = find_row("b_dtype", b_dtype, kOperandRows);
    const int result_type = find_row("out_dtype", out_dtype, kResultRows);
    const bool both_fp8 = is_fp8(static_cast<Operand>(left_type)) && is_fp8(static_cast<Operand>(right_type));
    if (left_type != right_type && !both_fp8) {
        refuse("a_dtype='" + a_dtype + "', b_dtype='" + b_dtype + "': expected the same dtype, or both FP8");
    }
    check_extent("m", m, 0);
    check_extent("n", n, 0);
    check_extent("k", k, 1);
    check_extent("batches", batches, 0);
    if (m == 0 || n == 0 || batches == 0) return;
    const Memory left = {"a", a, kOperandRows[left_type]}, right = {"b", b, kOperandRows[right_type]};
    const Memory result = {"out", out, kResultRows[result_type]};
    const Memory left_factors = {"a_factors", a_factors, kFactorRow};
    const Memory right_factors = {"b_factors", b_factors, kFactorRow};
    if (m > INT64_MAX / 4 / n / batches) refuse("m, n, batches: the result is larger than the address space");
    const int64_t size = m * n * batches;
    check_memory(result, size);
    check_apart(left, check_operand(left, a_strides, m, k, batches), result, size);
    check_apart(right, check_operand(right, b_strides, n, k, batches), result, size);
    check_apart(left_factors, check_factors(left_factors, a_factor_strides, m, batches), result, size);
    check_apart(right_factors, check_factors(right_factors, b_factor_strides, n, batches), result, size);
    for (const Memory& memory : {left, right, result, left_factors, right_factors}) {
        if (memory.address != 0) check_device(memory.argument, memory.address);
    }
    const bool in_quads = n % 4 == 0 && out % (4 * result.dtype.bytes) == 0;
    const MatmulJob job = {{static_cast<int32_t>(m), static_cast<int32_t>(n), static_cast<int32_t>(k),
                            static_cast<int32_t>(batches)},
                           to_matrices(left, left_type, a_strides, batches),
                           to_matrices(right, right_type, b_strides, batches),
                           both_fp8 && !fast_accumulation,
                           {reinterpret_cast<void*>(out), static_cast<Result>(result_type), in_quads, scale,
                            to_factors(left_factors, a_factor_strides), to_factors(right_factors, b_factor_strides)}};
    py::gil_scoped_release unlocked;
    check(launch_matmul(job, cuda_stream));
}

}  // namespace

void define_matmul(py::module_& module) {
    const Strides kNone = {0, 0};
    module.def("matmul", &matmul, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("extent"), py::arg("a_dtype"),
               py::arg("b_dtype"), py::arg("out_dtype"), py::arg("a_strides"), py::arg("b_strides"),
               py::arg("cuda_stream") = 0, py::kw_only(), py::arg("fast_accumulation") = true, py::arg("scale") = 1.0f,
               py::arg("a_factors") = 0, py::arg("a_factor_strides") = kNone, py::arg("b_factors") = 0,
               py::arg("b_factor_strides") = kNone);
}

}  // namespace fp8sim
