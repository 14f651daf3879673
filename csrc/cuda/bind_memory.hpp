// What the bindings of all CUDA kernels check: memory, devices, and what the CUDA runtime answers.
#pragma once

#include <string>

#include "cpu/bind_arguments.hpp"
#include "cuda/status.hpp"

namespace fp8sim {

// An array as an argument: where it is, and of what.
struct Memory {
    const char* argument;
    uintptr_t address;
    const DtypeRow& dtype;
};

inline void check_memory(const Memory& memory, int64_t size) {
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
inline void check_overlap(const Memory& source, const Memory& target, int64_t size) {
    const bool in_place = source.address == target.address && source.dtype.bytes == target.dtype.bytes;
    const bool disjoint = source.address + size * source.dtype.bytes <= target.address ||
                          target.address + size * target.dtype.bytes <= source.address;
    if (!in_place && !disjoint) refuse("source and target overlap: pass the same memory or disjoint ones");
}

inline void check(const CudaStatus& status) {
    if (status.code == 0) return;
    constexpr int kInsufficientDriver = 35, kNoDeviceFound = 100;
    const bool absent = status.code == kInsufficientDriver || status.code == kNoDeviceFound;
    const std::string kind = absent ? "no CUDA device: " : "CUDA error: ";
    const std::string remedy = absent ? "; fp8sim.use_backend(\"simulate\") needs no GPU" : "";
    throw std::runtime_error(kind + status.text + " (" + status.name + ", code " + std::to_string(status.code) + ")" +
                             remedy);
}

inline void check_device(const Memory& memory) {
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

// The target of a kernel shares no byte with what it reads.
inline void check_apart(const Memory& source, int64_t source_size, const Memory& target, int64_t target_size) {
    if (source.address + source_size * source.dtype.bytes <= target.address) return;
    if (target.address + target_size * target.dtype.bytes <= source.address) return;
    refuse(std::string(source.argument) + " and " + target.argument + " overlap: pass disjoint memory");
}

// The bindings of single operations.
void define_encode_scaled(pybind11::module_& module);
void define_matmul(pybind11::module_& module);

}  // namespace fp8sim
