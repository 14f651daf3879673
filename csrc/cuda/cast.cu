// Casts, encodes and decodes on the GPU, in integer arithmetic, for every format, mode and policy.
//
// Assumes: `job` was checked by the bindings; source and target are device memory, aligned to their elements, equal or
// disjoint. One thread takes `pack` neighbouring elements, in one load and one store where the addresses allow it.
#include "cuda/cast.hpp"

#include "core/element.hpp"
#include "cuda/dispatch.hpp"
#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;

// Packs are for the modes that memory limits; in the others arithmetic does, and one element keeps the code small.
template <Mode mode>
constexpr int kPack = mode == Mode::kUsual ? 4 : 1;

template <class T, int pack>
struct alignas(pack * sizeof(T)) Pack {
    T element[pack];
};

template <int pack, class T>
__device__ Pack<T, pack> load_pack(const T* source, int64_t begin, int64_t size, bool whole) {
    if (whole) return *reinterpret_cast<const Pack<T, pack>*>(source + begin);
    Pack<T, pack> loaded = {};
#pragma unroll
    for (int k = 0; k < pack; ++k) {
        if (begin + k < size) loaded.element[k] = source[begin + k];
    }
    return loaded;
}

template <int pack, class T>
__device__ void store_pack(T* target, int64_t begin, int64_t size, bool whole, const Pack<T, pack>& stored) {
    if (whole) {
        *reinterpret_cast<Pack<T, pack>*>(target + begin) = stored;
        return;
    }
#pragma unroll
    for (int k = 0; k < pack; ++k) {
        if (begin + k < size) target[begin + k] = stored.element[k];
    }
}

template <class From, class To, Mode mode>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const typename From::Storage* source, typename To::Storage* target, int64_t size, bool aligned,
                   Conversion c, RandomBits bits) {
    constexpr int pack = kPack<mode>;
    const int64_t stride = int64_t{pack} * kThreads * gridDim.x;
    for (int64_t begin = pack * (int64_t{kThreads} * blockIdx.x + threadIdx.x); begin < size; begin += stride) {
        const bool whole = aligned && begin + pack <= size;
        const auto in = load_pack<pack>(source, begin, size, whole);
        Pack<typename To::Storage, pack> out;
#pragma unroll
        for (int k = 0; k < pack; ++k) out.element[k] = convert<From, To, mode>(in.element[k], c, bits, begin + k);
        store_pack(target, begin, size, whole, out);
    }
}

cudaError_t blocks_for(int64_t threads, unsigned* blocks) {
    int device = 0, multiprocessors = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    const int64_t most = int64_t{multiprocessors} * kBlocksPerMultiprocessor;
    const int64_t wanted = (threads - 1) / kThreads + 1;
    *blocks = static_cast<unsigned>(wanted < most ? wanted : most);
    return cudaSuccess;
}

template <class T>
bool is_aligned(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % alignof(T) == 0;
}

struct Launch {
    cudaStream_t stream;

    template <class From, class To, Mode mode>
    cudaError_t operator()(From, To, Constant<mode>, const CastJob& job) const {
        using Source = typename From::Storage;
        using Target = typename To::Storage;
        constexpr int pack = kPack<mode>;
        unsigned blocks = 0;
        if (cudaError_t error = blocks_for((job.size - 1) / pack + 1, &blocks)) return error;
        const bool aligned = is_aligned<Pack<Source, pack>>(job.source) && is_aligned<Pack<Target, pack>>(job.target);
        const RandomBits bits = {job.seed, job.stream, job.offset, job.random_bits};
        convert_kernel<From, To, mode><<<blocks, kThreads, 0, stream>>>(
            static_cast<const Source*>(job.source), static_cast<Target*>(job.target), job.size, aligned,
            job.conversion, bits);
        return cudaGetLastError();
    }
};

}  // namespace

CudaStatus launch_cast(const CastJob& job, uintptr_t stream) {
    return status_of(dispatch(job, Launch{reinterpret_cast<cudaStream_t>(stream)}));
}

}  // namespace fp8sim
