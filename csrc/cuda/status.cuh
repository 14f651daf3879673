// Errors of the CUDA runtime as the bindings take them, and the current device.
#pragma once

#include <cuda_runtime.h>

#include "cuda/status.hpp"

namespace fp8sim {

inline CudaStatus status_of(cudaError_t error) {
    return {static_cast<int>(error), cudaGetErrorName(error), cudaGetErrorString(error)};
}

struct Device {
    int capability;  // 10 * major + minor
    int processors;
};

inline cudaError_t query(Device* device) {
    int index = 0, major = 0, minor = 0;
    if (cudaError_t error = cudaGetDevice(&index)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index)) return error;
    device->capability = 10 * major + minor;
    return cudaDeviceGetAttribute(&device->processors, cudaDevAttrMultiProcessorCount, index);
}

}  // namespace fp8sim
