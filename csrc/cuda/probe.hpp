// Single tensor-core instructions on raw bits: what the bindings may call.
#pragma once

#include <cstdint>

#include "cuda/status.hpp"

namespace fp8sim {

// How wgmma gets a: from shared memory, from registers, or from shared memory and negated by the instruction.
enum class ProbeVariant : int { kShared = 0, kRegisters = 1, kNegated = 2 };

struct ProbeInstruction {
    const char* name;    // as in PTX, without .sync and .aligned
    const char* kernel;  // part of the kernel's name in machine code
    int m;
    int n;
    int k;
    int operand_bytes;
    int accumulator_bytes;
    int least_capability;  // 10 * major + minor
    bool on_later_devices;
    bool may_ignore_c;
    bool has_variants;
};

// Every instruction of a table that ends with a name of nullptr.
const ProbeInstruction* probe_instructions();

struct ProbeJob {
    int instruction;  // its place in the table
    ProbeVariant variant;
    const void* a;  // [cases, m, steps * k]
    const void* b;  // [cases, n, steps * k]
    const void* c;  // [cases, m, n]; nullptr: the first instruction replaces what is in its registers (wgmma only)
    void* d;        // [cases, m, n]
    int64_t cases;
    int steps;  // instructions that follow each other in the same registers
};

constexpr int kMostProbeSteps = 8;

// 10 * major + minor of the current device.
CudaStatus device_capability(int* capability);

// Starts the job on a stream of the current device, which has the instruction.
CudaStatus launch_probe(const ProbeJob& job, uintptr_t stream);

}  // namespace fp8sim
