// fp8sim._core: checked conversions of contiguous NumPy arrays, threads and instruction sets. Whatever is passed, no
// memory outside of the two arrays is touched. One file, because pybind11's headers are most of its compilation.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/bind_arguments.hpp"
#include "cpu/cast.hpp"
#include "cpu/isa.hpp"
#include "cpu/parallel.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

constexpr py::ssize_t kMostCuts = 255;

struct Operand {
    const char* argument;
    const py::array& array;
    const DtypeRow& dtype;

    const char* begin() const { return static_cast<const char*>(array.data()); }
    const char* end() const { return begin() + array.nbytes(); }
};

constexpr uint64_t kHoldsReferences = 1;  // NumPy's NPY_ITEM_REFCOUNT

void check(const Operand& operand) {
    const std::string argument = operand.argument;
    if (operand.array.dtype().flags() & kHoldsReferences) refuse(argument + " holds Python objects: pass numbers");
    const auto address = reinterpret_cast<uintptr_t>(operand.begin());
    if (operand.array.itemsize() != operand.dtype.bytes) {
        refuse(argument + " has items of " + std::to_string(operand.array.itemsize()) + " bytes: expected " +
               operand.dtype.name);
    }
    const bool is_contiguous = (operand.array.flags() & py::array::c_style) != 0;
    if (!is_contiguous) refuse(argument + " is not C-contiguous: pass a contiguous copy");
    if (address % operand.dtype.bytes != 0) refuse(argument + " is not aligned: pass an aligned copy");
}

void check_target(const Operand& target) {
    check(target);
    if (!target.array.writeable()) refuse("target is read-only: pass a writeable array");
}

void check_pair(const Operand& source, const Operand& target) {
    check(source);
    check_target(target);
    if (source.array.size() != target.array.size()) {
        refuse("target has " + std::to_string(target.array.size()) + " elements: expected those of source, " +
               std::to_string(source.array.size()));
    }
    const bool in_place = source.begin() == target.begin() && source.dtype.bytes == target.dtype.bytes;
    const bool disjoint = source.end() <= target.begin() || target.end() <= source.begin();
    if (!in_place && !disjoint) refuse("source and target overlap: pass the same array or disjoint ones");
}

void convert(const Operand& source, const Operand& target, const Fields& fields, const RandomBits& random) {
    const Conversion conversion = to_conversion(fields);
    check_random_bits(random);
    check_pair(source, target);
    const CastJob job = {source.begin(),     const_cast<char*>(target.begin()),
                         source.array.size(), source.dtype.dtype,
                         target.dtype.dtype,  conversion,
                         random.seed,         random.stream,
                         random.offset,       random.count};
    const py::gil_scoped_release unlocked;
    run(job);
}

void cast(const py::array& source, const py::array& target, const std::string& dtype, const Fields& conversion,
          uint64_t seed, uint64_t stream, uint64_t offset, int random_bits) {
    const DtypeRow& row = find_dtype("dtype", dtype, true);
    convert({"source", source, row}, {"target", target, row}, conversion, {seed, stream, offset, random_bits});
}

void encode(const py::array& source, const py::array& target, const std::string& dtype, const std::string& code_dtype,
            const Fields& conversion, uint64_t seed, uint64_t stream, uint64_t offset, int random_bits) {
    const Operand from = {"source", source, find_dtype("dtype", dtype, true)};
    const Operand to = {"target", target, find_dtype("code_dtype", code_dtype, false)};
    convert(from, to, conversion, {seed, stream, offset, random_bits});
}

void decode(const py::array& source, const py::array& target, const std::string& code_dtype, const std::string& dtype,
            const Fields& conversion) {
    const Operand from = {"source", source, find_dtype("code_dtype", code_dtype, false)};
    const Operand to = {"target", target, find_dtype("dtype", dtype, true)};
    convert(from, to, conversion, {0, 0, 0, 32});
}

// `cuts`: numbers of the dtype that the loop compares in.
void encode_levels(const py::array& source, const py::array& target, const std::string& dtype, const py::array& cuts) {
    const Operand from = {"source", source, find_dtype("dtype", dtype, true)};
    const Operand to = {"target", target, find_dtype("code_dtype", "uint8", false)};
    const bool wide = from.dtype.dtype == Dtype::kFloat64;
    const Operand compared = {"cuts", cuts, find_dtype("dtype", wide ? "float64" : "float32", true)};
    check_pair(from, to);
    check(compared);
    if (cuts.size() > kMostCuts) refuse("cuts has " + std::to_string(cuts.size()) + " numbers: expected 255 at most");
    const LevelsJob job = {from.begin(), reinterpret_cast<uint8_t*>(const_cast<char*>(to.begin())), source.size(),
                           from.dtype.dtype, cuts.data(), static_cast<int>(cuts.size())};
    const py::gil_scoped_release unlocked;
    run(job);
}

void random_integers(const py::array& target, uint64_t seed, uint64_t stream, uint64_t offset, int random_bits) {
    const Operand to = {"target", target, find_dtype("dtype", "uint32", false)};
    const RandomBits random = {seed, stream, offset, random_bits};
    check_random_bits(random);
    check_target(to);
    const py::gil_scoped_release unlocked;
    draw(static_cast<uint32_t*>(const_cast<void*>(target.data())), target.size(), random);
}

constexpr int kMostThreads = 1024;

void set_threads(int count) {
    if (count < 1 || count > kMostThreads) {
        refuse("count=" + std::to_string(count) + ": expected 1 to " + std::to_string(kMostThreads) + " threads");
    }
    set_num_threads(count);
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(name_of(isa));
    return names;
}

void bind_cast(py::module_& module) {
    const auto source = py::arg("source").noconvert(), target = py::arg("target").noconvert();
    const auto dtype = py::arg("dtype"), code_dtype = py::arg("code_dtype"), conversion = py::arg("conversion");
    const auto seed = py::arg("seed") = 0, stream = py::arg("stream") = 0, offset = py::arg("offset") = 0;
    const auto random_bits = py::arg("random_bits") = 32;
    const auto keywords = py::kw_only();

    module.def("cast", &cast, source, target, dtype, conversion, keywords, seed, stream, offset, random_bits);
    module.def("encode", &encode, source, target, dtype, code_dtype, conversion, keywords, seed, stream, offset,
               random_bits);
    module.def("decode", &decode, source, target, code_dtype, dtype, conversion);
    module.def("encode_levels", &encode_levels, source, target, dtype, py::arg("cuts").noconvert());
    module.def("random_integers", &random_integers, target, keywords, seed, stream, offset, random_bits);
}

void bind_threads(py::module_& module) {
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_threads, py::arg("count"));
    module.def("isa", [] { return name_of(current_isa()); });
    module.def("isas", &isa_names);
    module.def("set_isa", &set_isa, py::arg("isa"));
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "Vectorised, threaded loops over the arithmetic of fp8sim; _core.pyi documents them.";
    bind_cast(module);
    bind_threads(module);
}

}  // namespace fp8sim
