// What a launch answers, and where memory is, for bindings that see no CUDA header.
#pragma once

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

}  // namespace fp8sim
