// Single tensor-core instructions on raw bits: their launches, and the table of all.
//
// Assumes: `job` was checked by the bindings.
#include "cuda/probe.hpp"

#include "cuda/probe_mma.cuh"
#include "cuda/probe_wgmma.cuh"
#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kMostBlocks = 4096;

unsigned blocks_for(int64_t cases, int cases_in_block) {
    const int64_t wanted = (cases - 1) / cases_in_block + 1;
    return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
}

template <class Op>
cudaError_t launch_mma(const ProbeJob& job, cudaStream_t stream) {
    using Word = typename Op::Word;
    using Register = typename Op::Register;
    mma_kernel<Op><<<blocks_for(job.cases, kThreads / kLanes), kThreads, 0, stream>>>(
        static_cast<const Word*>(job.a), static_cast<const Word*>(job.b), static_cast<const Register*>(job.c),
        static_cast<Register*>(job.d), job.cases, job.steps);
    return cudaGetLastError();
}

template <class Op, int n, ProbeVariant variant>
cudaError_t launch_variant(const ProbeJob& job, cudaStream_t stream) {
    using Register = typename Op::Register;
    const auto kernel = wgmma_kernel<Op, n, variant>;
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaError_t error = cudaFuncSetAttribute(kernel, limit, shared_bytes(n, kMostProbeSteps))) return error;
    kernel<<<blocks_for(job.cases, 1), kThreads, shared_bytes(n, job.steps), stream>>>(
        static_cast<const uint32_t*>(job.a), static_cast<const uint32_t*>(job.b), static_cast<const Register*>(job.c),
        static_cast<Register*>(job.d), job.cases, job.steps);
    return cudaGetLastError();
}

// With n = 8 in every variant; wider ones only have other columns.
template <class Op, int n>
cudaError_t launch_wgmma(const ProbeJob& job, cudaStream_t stream) {
    if constexpr (n == 8) {
        switch (job.variant) {
            case ProbeVariant::kShared: break;
            case ProbeVariant::kRegisters: return launch_variant<Op, n, ProbeVariant::kRegisters>(job, stream);
            case ProbeVariant::kNegated: return launch_variant<Op, n, ProbeVariant::kNegated>(job, stream);
        }
    }
    return launch_variant<Op, n, ProbeVariant::kShared>(job, stream);
}

#define FP8SIM_MMA_ROW(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY) \
    {"mma." #PTX "." #D "." #A "." #B "." #D,                                       \
     "Mma" #NAME,                                                                    \
     SHAPE::kM,                                                                      \
     SHAPE::kN,                                                                      \
     K,                                                                              \
     BYTES,                                                                          \
     ACCUMULATOR,                                                                    \
     CAPABILITY,                                                                     \
     true,                                                                           \
     false,                                                                          \
     false},
#define FP8SIM_MMA_LAUNCH(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY) launch_mma<Mma##NAME>,

#define FP8SIM_WGMMA_ROW_OF(N, NAME, D, A, B, K, BYTES, ACCUMULATOR)                                                \
    {"wgmma.m64n" #N "k" #K "." #D "." #A "." #B, "Wgmma" #NAME "ELi" #N, kRowsA, N, K, BYTES, ACCUMULATOR, 90, false, \
     true, N == 8},
#define FP8SIM_WGMMA_ROW(NAME, SHAPE, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE) \
    FP8SIM_WGMMA_ROW_OF(8, NAME, D, A, B, K, BYTES, ACCUMULATOR)                 \
    FP8SIM_WGMMA_ROW_OF(64, NAME, D, A, B, K, BYTES, ACCUMULATOR)                \
    FP8SIM_WGMMA_ROW_OF(128, NAME, D, A, B, K, BYTES, ACCUMULATOR)               \
    FP8SIM_WGMMA_ROW_OF(256, NAME, D, A, B, K, BYTES, ACCUMULATOR)
#define FP8SIM_WGMMA_LAUNCH(NAME, SHAPE, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE)                   \
    launch_wgmma<Wgmma##NAME, 8>, launch_wgmma<Wgmma##NAME, 64>, launch_wgmma<Wgmma##NAME, 128>,      \
        launch_wgmma<Wgmma##NAME, 256>,

#define FP8SIM_EVERY(MMA, WGMMA) FP8SIM_MMA_HALF(MMA) FP8SIM_MMA_FP8(MMA) FP8SIM_MMA_F64(MMA) FP8SIM_WGMMA(WGMMA)

constexpr ProbeInstruction kInstructions[] = {
    FP8SIM_EVERY(FP8SIM_MMA_ROW, FP8SIM_WGMMA_ROW){nullptr, nullptr, 0, 0, 0, 0, 0, 0, false, false, false}};

using Launch = cudaError_t (*)(const ProbeJob&, cudaStream_t);
constexpr Launch kLaunches[] = {FP8SIM_EVERY(FP8SIM_MMA_LAUNCH, FP8SIM_WGMMA_LAUNCH)};

}  // namespace

const ProbeInstruction* probe_instructions() { return kInstructions; }

CudaStatus device_capability(int* capability) {
    Device device = {};
    const cudaError_t error = query(&device);
    *capability = device.capability;
    return status_of(error);
}

CudaStatus launch_probe(const ProbeJob& job, uintptr_t stream) {
    return status_of(kLaunches[job.instruction](job, reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace fp8sim
