// fp8sim._core: checked conversions of contiguous NumPy arrays, threads and instruction sets. Whatever is passed, no
// memory outside of the two arrays is touched. Few files, because pybind11's headers are most of their compilation.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/bind_arguments.hpp"
#include "cpu/bind_mma.hpp"
#include "cpu/cast.hpp"
#include "cpu/isa.hpp"
#include "cpu/parallel.hpp"
#include "cpu/quantize.hpp"

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

// The fields of `fp8sim.scaling.Constants`.
using ScaleFields = std::array<double, 9>;

ScaleConstants to_scale(const ScaleFields& f, const Fields& store) {
    const bool known = f[0] >= 0 && f[0] <= static_cast<int>(ScaleRule::kRceil) && f[1] >= 0 &&
                       f[1] <= static_cast<int>(Order::kTwoLevelTorchao) && f[4] >= 0 && f[4] <= 22 &&
                       f[3] >= -1000 && f[3] <= 1000 && f[5] > 0;
    if (!known) refuse("scale: expected what fp8sim.scaling.constants returns");
    return {static_cast<ScaleRule>(static_cast<uint32_t>(f[0])), static_cast<Order>(static_cast<uint32_t>(f[1])),
            f[2] != 0, static_cast<int>(f[3]), static_cast<int>(f[4]), static_cast<float>(f[5]), f[6], f[7],
            static_cast<float>(f[8]), to_conversion(store)};
}

Blocks to_blocks(const std::array<int64_t, 5>& b, py::ssize_t size) {
    const bool sized = b[0] >= 1 && b[1] >= 1 && b[2] >= 1 && b[0] <= size && b[1] <= size && b[2] <= size &&
                       size % b[0] == 0 && size / b[0] % b[1] == 0 && size / b[0] / b[1] == b[2];
    const bool blocked = b[3] >= 1 && b[4] >= 1 && b[3] <= b[1] && b[4] <= b[2];
    if (!sized || !blocked) {
        refuse("blocks: expected outer, rows, columns, whose product is the size of source, and a block within them");
    }
    return {b[0], b[1], b[2], b[3], b[4]};
}

// Of an array that `check_target` has passed.
uint32_t* words_of(const py::array& array) { return static_cast<uint32_t*>(const_cast<void*>(array.data())); }

void check_size(const char* argument, const py::array& array, int64_t size) {
    if (array.size() == size) return;
    refuse(std::string(argument) + " has " + std::to_string(array.size()) + " elements: expected " +
           std::to_string(size));
}

Operand plain(const char* argument, const py::array& array, const char* dtype) {
    const Operand operand = {argument, array, find_dtype("dtype", dtype, std::string(dtype)[0] == 'f')};
    check(operand);
    return operand;
}

float quantize_tensor(const py::array& source, const py::array& codes, const py::array& stored,
                      const std::string& code_dtype, const std::array<int64_t, 5>& blocks, const ScaleFields& scale,
                      const Fields& store, const Fields& conversion, const py::array& cuts, uint64_t seed,
                      uint64_t stream, uint64_t offset, int random_bits) {
    const Operand from = plain("source", source, "uint32");
    const Operand to = {"codes", codes, find_dtype("code_dtype", code_dtype, false)};
    QuantizeJob job = {};
    job.scale = to_scale(scale, store);
    job.blocks = to_blocks(blocks, source.size());
    const bool bytes = is_mx(job.scale.rule) || has_two_levels(job.scale.order);
    const Operand factors = {"stored", stored, find_dtype("dtype", bytes ? "uint8" : "uint32", false)};
    plain("cuts", cuts, "float32");
    check_pair(from, to);
    check_target(factors);
    check_size("stored", stored, blocks_in(job.blocks));
    if (cuts.size() > (to.dtype.bytes == 1 ? kMostCuts : 0)) refuse("cuts: expected 255 numbers at most, and uint8");
    job.random = {seed, stream, offset, random_bits};
    check_random_bits(job.random);
    if (from.begin() == to.begin()) refuse("codes is source: pass memory of its own");
    job.source = reinterpret_cast<const uint32_t*>(from.begin());
    job.codes = const_cast<char*>(to.begin());
    job.code_bytes = static_cast<int>(to.dtype.bytes);
    job.stored = const_cast<char*>(factors.begin());
    job.conversion = to_conversion(conversion);
    job.cuts = static_cast<const float*>(cuts.data());
    job.cut_count = static_cast<int>(cuts.size());
    const py::gil_scoped_release unlocked;
    return quantize(job);
}

void block_amax(const py::array& source, const py::array& largest, const std::array<int64_t, 5>& blocks) {
    plain("source", source, "uint32");
    const Blocks shape = to_blocks(blocks, source.size());
    check_target(plain("largest", largest, "uint32"));
    check_size("largest", largest, blocks_in(shape));
    const py::gil_scoped_release unlocked;
    find_amax(static_cast<const uint32_t*>(source.data()), shape, words_of(largest));
}

float scale_factors(const py::array& largest, const py::array& stored, const py::array& applied,
                    const ScaleFields& scale, const Fields& store) {
    plain("largest", largest, "uint32");
    const ScaleConstants constants = to_scale(scale, store);
    for (const auto& [argument, array] : {std::pair{"stored", stored}, std::pair{"applied", applied}}) {
        check_target(plain(argument, array, "uint32"));
        check_size(argument, array, largest.size());
    }
    return find_factors(constants, static_cast<const uint32_t*>(largest.data()), largest.size(), words_of(stored),
                        words_of(applied));
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

void bind_quantize(py::module_& module) {
    const auto source = py::arg("source").noconvert(), largest = py::arg("largest").noconvert();
    const auto stored = py::arg("stored").noconvert(), blocks = py::arg("blocks");
    const auto scale = py::arg("scale"), store = py::arg("store");
    module.def("quantize", &quantize_tensor, source, py::arg("codes").noconvert(), stored, py::arg("code_dtype"),
               blocks, scale, store, py::arg("conversion"), py::arg("cuts").noconvert(), py::kw_only(),
               py::arg("seed") = 0, py::arg("stream") = 0, py::arg("offset") = 0, py::arg("random_bits") = 32);
    module.def("block_amax", &block_amax, source, largest, blocks);
    module.def("scale_factors", &scale_factors, largest, stored, py::arg("applied").noconvert(), scale, store);
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
    bind_quantize(module);
    bind_threads(module);
    bind_mma(module);
}

}  // namespace fp8sim
