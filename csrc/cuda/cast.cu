// Launches of casts, encodes and decodes.
#include "cuda/cast.hpp"

#include "cuda/cast.cuh"
#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kBlocksPerMultiprocessor = 16;

cudaError_t blocks_for(int64_t threads, unsigned* blocks) {
    int device = 0, multiprocessors = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    const int64_t most = int64_t{multiprocessors} * kBlocksPerMultiprocessor;
    const int64_t wanted = (threads - 1) / kCastThreads + 1;
    *blocks = static_cast<unsigned>(wanted < most ? wanted : most);
    return cudaSuccess;
}

struct Launch {
    cudaStream_t stream;

    template <class From, class To, Mode mode>
    cudaError_t operator()(From, To, Constant<mode>, const CastJob& job) const {
        using Source = typename From::Storage;
        using Target = typename To::Storage;
        constexpr int pack = kPack<From, To, mode> * kPacksAhead<mode>;
        unsigned blocks = 0;
        if (cudaError_t error = blocks_for((job.size - 1) / pack + 1, &blocks)) return error;
        const RandomBits bits = {job.seed, job.stream, job.offset, job.random_bits};
        convert_kernel<From, To, mode><<<blocks, kCastThreads, 0, stream>>>(
            static_cast<const Source*>(job.source), static_cast<Target*>(job.target), job.size,
            moves_packs<From, To, mode>(job), job.conversion, quick_rounding_of(job.conversion), bits);
        return cudaGetLastError();
    }
};

}  // namespace

CudaStatus launch_cast(const CastJob& job, uintptr_t stream) {
    return status_of(dispatch(job, Launch{reinterpret_cast<cudaStream_t>(stream)}));
}

}  // namespace fp8sim
