// The checked launch of encode with a factor, amax and a transposed copy.
#include <optional>

#include "cuda/bind_memory.hpp"
#include "cuda/encode_scaled.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

constexpr DtypeRow kFloat32Row = {"float32", Dtype::kFloat32, 4};

constexpr int64_t kMostElements = int64_t{1} << 40;

// The transposing kernel counts tiles in 32 bits, from one of a block to its next.
constexpr int64_t kMostTiles = int64_t{1} << 31;

using Shape = std::array<int64_t, 3>;

int64_t checked_size(const Shape& shape) {
    int64_t size = 1;
    for (const int64_t length : shape) {
        if (length < 0) refuse("shape: expected three lengths of 0 or more");
        if (length > 0 && size > kMostElements / length) refuse("shape: expected at most 2^40 elements");
        size *= length;
    }
    return size;
}

void check_tiles(const Shape& shape) {
    const auto tiles = [](int64_t length) { return (length + kTile - 1) / kTile; };
    if (shape[0] * tiles(shape[1]) * tiles(shape[2]) <= kMostTiles) return;
    refuse("shape: expected at most 2^31 tiles of 64 rows and columns to transpose, got " + std::to_string(shape[0]) +
           " matrices of " + std::to_string(shape[1]) + " by " + std::to_string(shape[2]));
}

void check_target(const Memory& x, const Memory& target, int64_t size) {
    check_memory(target, size);
    check_apart(x, size, target, size);
}

KnownFactor to_factor(std::optional<float> value, uintptr_t address, bool fused) {
    if (value && address != 0) refuse("factor and factor_address: give one of them");
    if (!value && address == 0) return {Meets::kNothing, 1.0f, nullptr};
    return {fused ? Meets::kFused : Meets::kRounded, value.value_or(1.0f), reinterpret_cast<const float*>(address)};
}

void encode_scaled(uintptr_t x, uintptr_t codes, const Shape& shape, const std::string& dtype,
                   const std::string& code_dtype, const Fields& conversion, uintptr_t cuda_stream,
                   std::optional<float> factor, uintptr_t factor_address, bool fused, uintptr_t amax,
                   uintptr_t transposed, uint64_t seed, uint64_t stream, uint64_t offset, int random_bits) {
    const Memory from = {"x", x, find_dtype("dtype", dtype, true)};
    const DtypeRow& code = find_dtype("code_dtype", code_dtype, false);
    const Memory to = {"codes", codes, code}, turned = {"transposed", transposed, code};
    const Memory given = {"factor_address", factor_address, kFloat32Row}, largest = {"amax", amax, kFloat32Row};
    const RandomBits bits = {seed, stream, offset, random_bits};
    check_random_bits(bits);
    const EncodeScaledJob job = {reinterpret_cast<const void*>(x),
                                 reinterpret_cast<void*>(codes),
                                 reinterpret_cast<void*>(transposed),
                                 reinterpret_cast<uint32_t*>(amax),
                                 shape[0],
                                 shape[1],
                                 shape[2],
                                 from.dtype.dtype,
                                 code.dtype,
                                 to_factor(factor, factor_address, fused),
                                 to_conversion(conversion),
                                 bits};
    const int64_t size = checked_size(shape);
    if (size == 0) return;
    check_memory(from, size);
    check_target(from, to, size);
    if (transposed != 0) {
        check_tiles(shape);
        check_target(from, turned, size);
        check_apart(to, size, turned, size);
    }
    if (factor_address != 0) check_memory(given, 1);
    if (amax != 0) check_memory(largest, 1);
    for (const Memory& memory : {from, to, turned, given, largest}) {
        if (memory.address != 0) check_device(memory.argument, memory.address);
    }
    py::gil_scoped_release unlocked;
    check(launch_encode_scaled(job, cuda_stream));
}

}  // namespace

void define_encode_scaled(py::module_& module) {
    module.def("encode_scaled", &encode_scaled, py::arg("x"), py::arg("codes"), py::arg("shape"), py::arg("dtype"),
               py::arg("code_dtype"), py::arg("conversion"), py::arg("cuda_stream") = 0, py::kw_only(),
               py::arg("factor") = py::none(), py::arg("factor_address") = 0, py::arg("fused") = false,
               py::arg("amax") = 0, py::arg("transposed") = 0, py::arg("seed") = 0, py::arg("stream") = 0,
               py::arg("offset") = 0, py::arg("random_bits") = 32);
}

}  // namespace fp8sim
