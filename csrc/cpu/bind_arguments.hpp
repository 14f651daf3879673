// What the bindings of C++ and of CUDA have in common: a conversion's arguments, from Python's to the loops'.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <string>

#include "core/random.hpp"
#include "cpu/cast_job.hpp"

namespace fp8sim {

[[noreturn]] inline void refuse(const std::string& message) { throw pybind11::value_error(message); }

struct DtypeRow {
    const char* name;
    Dtype dtype;
    pybind11::ssize_t bytes;
};

constexpr DtypeRow kDtypes[] = {
    {"float16", Dtype::kFloat16, 2}, {"bfloat16", Dtype::kBfloat16, 2}, {"float32", Dtype::kFloat32, 4},
    {"float64", Dtype::kFloat64, 8}, {"uint8", Dtype::kCodes8, 1},      {"uint16", Dtype::kCodes16, 2},
    {"uint32", Dtype::kCodes32, 4},
};

// The dtype of that name: of a number if `floats`, else of codes.
inline const DtypeRow& find_dtype(const std::string& argument, const std::string& name, bool floats) {
    std::string known;
    for (const DtypeRow& row : kDtypes) {
        if (is_float(row.dtype) != floats) continue;
        if (name == row.name) return row;
        known += (known.empty() ? "" : ", ") + std::string(row.name);
    }
    refuse(argument + "='" + name + "': use one of " + known);
}

// The fields of `fp8sim.rounding.Conversion`.
using Fields = std::array<int64_t, kConversionFields>;

inline Conversion to_conversion(const Fields& fields) {
    Conversion c;
    uint32_t words[kConversionFields];
    for (int i = 0; i < kConversionFields; ++i) words[i] = static_cast<uint32_t>(fields[i]);
    std::memcpy(&c, words, sizeof(c));
    if (c.mantissa_bits < 0 || c.mantissa_bits > 23 || c.emin < -65536 || c.emin > 65536 || c.offset > 1 ||
        c.max_code > 0x7FFFFFFF || c.twos_complement > 1 ||
        static_cast<Rounding>(c.rounding) > Rounding::kStochasticEqual) {
        refuse("conversion: expected what fp8sim.rounding.resolve returns");
    }
    return c;
}

inline void check_random_bits(const RandomBits& random) {
    if (random.count >= 1 && random.count <= 32) return;
    refuse("random_bits=" + std::to_string(random.count) + ": expected 1 to 32");
}

}  // namespace fp8sim
