// Plain launchers: what the bindings, which see no CUDA header, may call.
#pragma once

#include <cstdint>

#include "cpu/cast_job.hpp"
#include "cuda/status.hpp"

namespace fp8sim {

// Starts the job on a stream (a cudaStream_t) of the current device. `job` has at least one element.
CudaStatus launch_cast(const CastJob& job, uintptr_t stream);

}  // namespace fp8sim
