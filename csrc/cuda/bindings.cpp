// fp8sim._cuda: checked launches. Memory and streams arrive as integers, so that no framework is linked.
#include <string>

#include "cuda/bind_memory.hpp"
#include "cuda/bind_probe.hpp"
#include "cuda/cast.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

struct Request {
    Memory source;
    Memory target;
    int64_t size;
    Conversion conversion;
    RandomBits bits;
    uintptr_t cuda_stream;
};

void run(const Request& request) {
    const auto& [source, target, size, conversion, bits, cuda_stream] = request;
    if (size < 0) refuse("size=" + std::to_string(size) + ": expected 0 or more elements");
    check_random_bits(bits);
    if (size == 0) return;
    check_memory(source, size);
    check_memory(target, size);
    check_overlap(source, target, size);
    check_device(source.argument, source.address);
    check_device(target.argument, target.address);
    const CastJob job = {reinterpret_cast<const void*>(source.address),
                         reinterpret_cast<void*>(target.address),
                         size,
                         source.dtype.dtype,
                         target.dtype.dtype,
                         conversion,
                         bits.seed,
                         bits.stream,
                         bits.offset,
                         bits.count};
    py::gil_scoped_release unlocked;
    check(launch_cast(job, cuda_stream));
}

void cast_memory(uintptr_t source, uintptr_t target, int64_t size, const std::string& dtype, const Fields& conversion,
                 uintptr_t cuda_stream, uint64_t seed, uint64_t stream, uint64_t offset, int random_bits) {
    const DtypeRow& row = find_dtype("dtype", dtype, true);
    const RandomBits bits = {seed, stream, offset, random_bits};
    run({{"source", source, row}, {"target", target, row}, size, to_conversion(conversion), bits, cuda_stream});
}

void encode_memory(uintptr_t source, uintptr_t target, int64_t size, const std::string& dtype,
                   const std::string& code_dtype, const Fields& conversion, uintptr_t cuda_stream, uint64_t seed,
                   uint64_t stream, uint64_t offset, int random_bits) {
    const Memory from = {"source", source, find_dtype("dtype", dtype, true)};
    const Memory to = {"target", target, find_dtype("code_dtype", code_dtype, false)};
    run({from, to, size, to_conversion(conversion), {seed, stream, offset, random_bits}, cuda_stream});
}

void decode_memory(uintptr_t source, uintptr_t target, int64_t size, const std::string& code_dtype,
                   const std::string& dtype, const Fields& conversion, uintptr_t cuda_stream) {
    const Memory from = {"source", source, find_dtype("code_dtype", code_dtype, false)};
    const Memory to = {"target", target, find_dtype("dtype", dtype, true)};
    run({from, to, size, to_conversion(conversion), {0, 0, 0, 32}, cuda_stream});
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    const auto source = py::arg("source"), target = py::arg("target"), size = py::arg("size");
    const auto dtype = py::arg("dtype"), code_dtype = py::arg("code_dtype"), conversion = py::arg("conversion");
    const auto cuda_stream = py::arg("cuda_stream") = 0;
    const auto seed = py::arg("seed") = 0, stream = py::arg("stream") = 0, offset = py::arg("offset") = 0;
    const auto random_bits = py::arg("random_bits") = 32;
    const auto keyword_only = py::kw_only();

    module.doc() = "Checked launches of fp8sim's CUDA kernels; _cuda.pyi documents them.";
    module.def("cast", &cast_memory, source, target, size, dtype, conversion, cuda_stream, keyword_only, seed, stream,
               offset, random_bits);
    module.def("encode", &encode_memory, source, target, size, dtype, code_dtype, conversion, cuda_stream, keyword_only,
               seed, stream, offset, random_bits);
    module.def("decode", &decode_memory, source, target, size, code_dtype, dtype, conversion, cuda_stream);
    define_attention(module);
    define_encode_scaled(module);
    define_matmul(module);
    bind_probe(module);
}

}  // namespace fp8sim
