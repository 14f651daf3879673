// Plain launchers: what the bindings, which see no CUDA header, may call.
#pragma once

#include <cstdint>

#include "cpu/cast_job.hpp"

namespace fp8sim {

// A result of the CUDA runtime; code 0 is success, name and text are its own.
struct CudaStatus {
    int code;
    const char* name;
    const char* text;
};

constexpr int kNoDevice = -1;

CudaStatus current_device(int* device);

// The device on which `address` is allocated; kNoDevice if it is not device memory.
CudaStatus device_of(const void* address, int* device);

// Starts the job on a stream (a cudaStream_t) of the current device. `job` has at least one element.
CudaStatus launch_cast(const CastJob& job, uintptr_t stream);

}  // namespace fp8sim
