#include "cuda/status.cuh"

#include <cstdint>

namespace fp8sim {

CudaStatus current_device(int* device) { return status_of(cudaGetDevice(device)); }

CudaStatus device_of(const void* address, int* device) {
    cudaPointerAttributes attributes = {};
    const cudaError_t error = cudaPointerGetAttributes(&attributes, address);
    const bool reachable = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    *device = reachable ? attributes.device : kNoDevice;
    return status_of(error);
}

}  // namespace fp8sim
