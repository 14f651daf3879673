// Errors of the CUDA runtime as the bindings take them.
#pragma once

#include <cuda_runtime.h>

#include "cuda/status.hpp"

namespace fp8sim {

inline CudaStatus status_of(cudaError_t error) {
    return {static_cast<int>(error), cudaGetErrorName(error), cudaGetErrorString(error)};
}

}  // namespace fp8sim
