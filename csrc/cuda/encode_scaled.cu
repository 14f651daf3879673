// Launches of encode with a factor, amax and a transposed copy.
#include "cuda/encode_scaled.cuh"

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kThreadsPerProcessor = 2048;

// As many blocks as run at the same time, or fewer if there is less to do.
cudaError_t blocks_for(int64_t pieces_of_work, int threads, unsigned* blocks) {
    int device = 0, processors = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    *blocks = static_cast<unsigned>(std::min<int64_t>(pieces_of_work, processors * (kThreadsPerProcessor / threads)));
    return cudaSuccess;
}

template <class From, Mode mode>
cudaError_t run_flat(const EncodeScaledJob& job, cudaStream_t stream) {
    const int64_t size = job.matrices * job.rows * job.columns, per_block = int64_t{kFlatThreads} * kPiece<From, mode> * kPiecesAhead<mode>;
    unsigned blocks = 0;
    if (cudaError_t error = blocks_for((size - 1) / per_block + 1, kFlatThreads, &blocks)) return error;
    encode_scaled_kernel<From, mode><<<blocks, kFlatThreads, 0, stream>>>(job, quick_rounding_of(job.conversion), size,
                                                                  moves_pieces<From, mode>(job));
    return cudaGetLastError();
}

template <class From, Mode mode>
cudaError_t run_transposing(const EncodeScaledJob& job, cudaStream_t stream) {
    const Tiling tiling = tiling_of(job);
    unsigned blocks = 0;
    if (cudaError_t error = blocks_for(tiling.count, kTransposingThreads, &blocks)) return error;
    encode_transposing_kernel<From, mode><<<blocks, kTransposingThreads, 0, stream>>>(
        job, quick_rounding_of(job.conversion), tiling, moves_pieces<From, mode>(job), turns_pieces(job));
    return cudaGetLastError();
}

}  // namespace

CudaStatus launch_encode_scaled(const EncodeScaledJob& job, uintptr_t stream) {
    const auto on = reinterpret_cast<cudaStream_t>(stream);
    return status_of(for_source(job, [&](auto from, auto mode) {
        using From = decltype(from);
        constexpr Mode kMode = decltype(mode)::kValue;
        return job.transposed == nullptr ? run_flat<From, kMode>(job, on) : run_transposing<From, kMode>(job, on);
    }));
}

}  // namespace fp8sim
