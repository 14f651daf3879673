// fp8sim._cuda: checked launches. Memory and streams arrive as integers, so that no framework is linked.
#include <string>

#include "cpu/bind_arguments.hpp"
#include "cuda/cast.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

struct Memory {
    const char* argument;
    uintptr_t address;
    const DtypeRow& dtype;
};

struct Request {
    Memory source;
    Memory target;
    int64_t size;
    Conversion conversion;
    RandomBits bits;
    uintptr_t cuda_stream;
};

void check_memory(const Memory& memory, int64_t size) {
    const std::string argument = memory.argument;
    if (memory.address == 0) refuse(argument + " is a null pointer: pass the address of device memory");
    if (memory.address % memory.dtype.bytes != 0) {
        refuse(argument + "=" + std::to_string(memory.address) + " is not aligned to " + memory.dtype.name);
    }
    if (static_cast<uint64_t>(size) > (UINTPTR_MAX - memory.address) / memory.dtype.bytes) {
        refuse("size=" + std::to_string(size) + " reaches beyond the address space from " + argument);
    }
}

// In place (same address, same width) or disjoint.
void check_overlap(const Memory& source, const Memory& target, int64_t size) {
    const bool in_place = source.address == target.address && source.dtype.bytes == target.dtype.bytes;
    const bool disjoint = source.address + size * source.dtype.bytes <= target.address ||
                          target.address + size * target.dtype.bytes <= source.address;
    if (!in_place && !disjoint) refuse("source and target overlap: pass the same memory or disjoint ones");
}

void check(const CudaStatus& status) {
    if (status.code == 0) return;
    constexpr int kInsufficientDriver = 35, kNoDeviceFound = 100;
    const bool absent = status.code == kInsufficientDriver || status.code == kNoDeviceFound;
    const std::string kind = absent ? "no CUDA device: " : "CUDA error: ";
    const std::string remedy = absent ? "; fp8sim.use_backend(\"simulate\") needs no GPU" : "";
    throw std::runtime_error(kind + status.text + " (" + status.name + ", code " + std::to_string(status.code) + ")" +
                             remedy);
}

void check_device(const Memory& memory) {
    int current = 0, device = 0;
    check(current_device(&current));
    check(device_of(reinterpret_cast<const void*>(memory.address), &device));
    const std::string argument = memory.argument, number = std::to_string(device);
    if (device == kNoDevice) refuse(argument + " is not memory of a CUDA device: move the array to one");
    if (device != current) {
        refuse(argument + " is on CUDA device " + number + ", and the current one is " + std::to_string(current) +
               ": call under torch.cuda.device(" + number + ")");
    }
}

void run(const Request& request) {
    const auto& [source, target, size, conversion, bits, cuda_stream] = request;
    if (size < 0) refuse("size=" + std::to_string(size) + ": expected 0 or more elements");
    check_random_bits(bits);
    if (size == 0) return;
    check_memory(source, size);
    check_memory(target, size);
    check_overlap(source, target, size);
    check_device(source);
    check_device(target);
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
}

}  // namespace fp8sim
