// fp8sim._core.mma_chain: a checked matrix product of contiguous NumPy arrays.
#include "cpu/bind_mma.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "cpu/bind_arguments.hpp"
#include "cpu/mma.hpp"
#include "cpu/promote.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

using ModelFields = std::array<int32_t, kMmaModelFields>;

bool is_format(const MmaFormat& f) {
    return f.exponent_bits >= 1 && f.exponent_bits <= 11 && f.mantissa_bits >= 0 && f.mantissa_bits <= 52 &&
           f.bias >= 0 && f.bias <= 1023 && f.dropped_bits >= 0 && f.dropped_bits <= 13 && f.nan >= 0 && f.nan <= 3;
}

bool is_narrow(const MmaFormat& f) { return f.exponent_bits <= 8 && f.mantissa_bits <= 23 && f.bias <= 127; }

bool is_accumulator(const MmaFormat& f) {
    const int bits = 1 + f.exponent_bits + f.mantissa_bits;
    return f.is_signed == 1 && f.has_zero == 1 && f.nan == 0 && f.dropped_bits == 0 && f.exponent_bits >= 5 &&
           f.mantissa_bits >= 10 && (bits == 16 || bits == 32 || bits == 64);
}

// What the loops rely on: indices stay inside of an instruction, shifts and sums inside of their words.
bool is_sound(const MmaModel& m) {
    const Adder adder = static_cast<Adder>(m.adder);
    if (m.adder < 0 || m.adder > static_cast<int32_t>(Adder::kEvenOdd)) return false;
    if (!is_format(m.a) || !is_format(m.b) || !is_format(m.scale) || !is_accumulator(m.accumulator)) return false;
    if (m.k < 1 || m.k > kMostProducts || m.terms < 1 || m.k % m.terms != 0) return false;
    if (m.fraction_bits < 1 || m.fraction_bits > 35 || m.zero_exponent < -1024 || m.zero_exponent > 1024) return false;
    if (m.kept_bits < 1 || m.kept_bits > m.accumulator.mantissa_bits) return false;
    const bool has_scales = adder == Adder::kBlockScaled || adder == Adder::kGrouped;
    if (m.scale_block < 0 || has_scales != (m.scale_block > 0)) return false;
    if (m.scale.exponent_bits + m.scale.mantissa_bits > 8) return false;
    const bool narrow = is_narrow(m.a) && is_narrow(m.b) && is_narrow(m.accumulator);
    if (adder == Adder::kSequential) return m.terms == 1 && (narrow || m.accumulator.mantissa_bits > 23);
    if (!narrow) return false;
    const bool short_products = m.a.mantissa_bits + m.b.mantissa_bits <= 20;
    switch (adder) {
        case Adder::kEmulated: return short_products && (m.k == 16 || m.k == 32) && m.terms == m.k;
        case Adder::kBlockScaled: return short_products && m.scale_block % m.terms == 0 && m.k % m.scale_block == 0;
        case Adder::kGrouped:
            return m.k == kMostProducts && m.terms == m.k && m.scale_block % kGroup == 0 && m.k % m.scale_block == 0 &&
                   m.a.mantissa_bits == 1 && m.b.mantissa_bits == 1 && m.a.bias == 1 && m.b.bias == 1 &&
                   m.a.exponent_bits == 2 && m.b.exponent_bits == 2 && m.scale.mantissa_bits <= 3;
        case Adder::kFlushing: return m.terms == 2 || m.terms == 4;
        case Adder::kEvenOdd: return short_products && m.terms % 2 == 0;
        default: return short_products;
    }
}

MmaModel to_model(const ModelFields& fields) {
    MmaModel model;
    std::memcpy(&model, fields.data(), sizeof(model));
    if (!is_sound(model)) refuse("model: expected what fp8sim.mma.MmaModel.core_fields returns");
    return model;
}

void check_layout(const char* argument, const py::array& array, std::initializer_list<py::ssize_t> shape,
                  py::ssize_t bytes) {
    const std::string name = argument;
    if (array.ndim() != 2 || array.shape(0) != shape.begin()[0] || array.shape(1) != shape.begin()[1]) {
        refuse(name + ": expected shape [" + std::to_string(shape.begin()[0]) + ", " +
               std::to_string(shape.begin()[1]) + "]");
    }
    if (array.itemsize() != bytes) refuse(name + ": expected items of " + std::to_string(bytes) + " bytes");
    if ((array.flags() & py::array::c_style) == 0) refuse(name + " is not C-contiguous: pass a contiguous copy");
    if (reinterpret_cast<uintptr_t>(array.data()) % bytes != 0) refuse(name + " is not aligned: pass an aligned copy");
}

py::ssize_t operand_bytes(const MmaFormat& f) {
    const int bits = f.is_signed + f.exponent_bits + f.mantissa_bits + f.dropped_bits;
    return bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : 8;
}

bool overlap(const py::array& x, const py::array& y) {
    const char *a = static_cast<const char*>(x.data()), *b = static_cast<const char*>(y.data());
    return a < b + y.nbytes() && b < a + x.nbytes();
}

const uint8_t* check_scales(const char* argument, const std::optional<py::array>& scales, const MmaModel& model,
                            py::ssize_t rows, py::ssize_t k) {
    if (scales.has_value() != (model.scale_block > 0)) {
        refuse(std::string(argument) + (scales ? ": the instruction takes no scale factors" : ": missing"));
    }
    if (!scales) return nullptr;
    check_layout(argument, *scales, {rows, (k + model.scale_block - 1) / model.scale_block}, 1);
    return static_cast<const uint8_t*>(scales->data());
}

void mma_chain(const py::array& a, const py::array& b, const std::optional<py::array>& c, const py::array& d,
               const ModelFields& fields, const std::optional<py::array>& a_scales,
               const std::optional<py::array>& b_scales) {
    const MmaModel model = to_model(fields);
    if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(1)) refuse("a, b: expected shapes [M, K] and [N, K]");
    const py::ssize_t m = a.shape(0), n = b.shape(0), k = a.shape(1);
    const py::ssize_t a_bytes = operand_bytes(model.a), b_bytes = operand_bytes(model.b);
    const py::ssize_t d_bytes = operand_bytes(model.accumulator);
    check_layout("a", a, {m, k}, a_bytes);
    check_layout("b", b, {n, k}, b_bytes);
    check_layout("d", d, {m, n}, d_bytes);
    if (!d.writeable()) refuse("d is read-only: pass a writeable array");
    if (overlap(a, d) || overlap(b, d)) refuse("d overlaps a or b: pass memory of its own");
    if (c) check_layout("c", *c, {m, n}, d_bytes);
    if (c && c->data() != d.data() && overlap(*c, d)) refuse("d overlaps c: pass c itself or memory of its own");
    const uint8_t* left = check_scales("a_scales", a_scales, model, m, k);
    const uint8_t* right = check_scales("b_scales", b_scales, model, n, k);
    const MmaJob job = {a.data(),
                        b.data(),
                        c ? c->data() : nullptr,
                        const_cast<void*>(d.data()),
                        left,
                        right,
                        m,
                        n,
                        k,
                        {static_cast<int32_t>(a_bytes), static_cast<int32_t>(b_bytes)},
                        model};
    const py::gil_scoped_release unlocked;
    run(job);
}

const float* check_factors(const char* argument, const std::optional<py::array>& factors, py::ssize_t count) {
    if (!factors) return nullptr;
    if (factors->ndim() != 1) refuse(std::string(argument) + ": expected one axis");
    if (factors->shape(0) != count || factors->itemsize() != sizeof(float)) {
        refuse(std::string(argument) + ": expected " + std::to_string(count) + " float32 numbers");
    }
    if ((factors->flags() & py::array::c_style) == 0) refuse(std::string(argument) + " is not contiguous");
    return static_cast<const float*>(factors->data());
}

void promote(const py::array& target, const py::array& partial, const std::optional<py::array>& row,
             const std::optional<py::array>& column, int factors, int addition) {
    if (target.ndim() != 2) refuse("target: expected shape [M, N]");
    const py::ssize_t m = target.shape(0), n = target.shape(1);
    check_layout("target", target, {m, n}, sizeof(float));
    check_layout("partial", partial, {m, n}, sizeof(float));
    if (!target.writeable()) refuse("target is read-only: pass a writeable array");
    if (target.data() != partial.data() && overlap(target, partial)) refuse("target overlaps partial");
    if (factors < 0 || factors > 2 || addition < 0 || addition > 2) refuse("factors, addition: expected 0, 1 or 2");
    const float *left = check_factors("row", row, m), *right = check_factors("column", column, n);
    if ((factors != 0) != (left && right)) refuse("row, column: expected both with factors, neither without");
    const PromoteJob job = {static_cast<float*>(const_cast<void*>(target.data())),
                            static_cast<const float*>(partial.data()),
                            left,
                            right,
                            m,
                            n,
                            static_cast<Factors>(factors),
                            static_cast<Addition>(addition)};
    const py::gil_scoped_release unlocked;
    run(job);
}

}  // namespace

void bind_mma(py::module_& module) {
    module.def("mma_chain", &mma_chain, py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("c").none(true),
               py::arg("d").noconvert(), py::arg("model"), py::arg("a_scales") = py::none(),
               py::arg("b_scales") = py::none());
    module.def("promote", &promote, py::arg("target").noconvert(), py::arg("partial").noconvert(),
               py::arg("row").none(true), py::arg("column").none(true), py::arg("factors"), py::arg("addition"));
}

}  // namespace fp8sim
