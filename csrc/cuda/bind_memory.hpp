// What the bindings of all CUDA kernels check of arrays in memory.
#pragma once

#include <string>

#include "cpu/bind_arguments.hpp"
#include "cuda/bind_device.hpp"

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

// The target of a kernel shares no byte with what it reads.
inline void check_apart(const Memory& source, int64_t source_size, const Memory& target, int64_t target_size) {
    if (source.address + source_size * source.dtype.bytes <= target.address) return;
    if (target.address + target_size * target.dtype.bytes <= source.address) return;
    refuse(std::string(source.argument) + " and " + target.argument + " overlap: pass disjoint memory");
}

// The bindings of single operations.
void define_attention(pybind11::module_& module);
void define_encode_scaled(pybind11::module_& module);
void define_matmul(pybind11::module_& module);

}  // namespace fp8sim
