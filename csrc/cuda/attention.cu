// Launches of attention: which kernel, how many blocks, and what the copy engine has to know.
#include "cuda/attention.hpp"

#include "cuda/attention_choice.hpp"
#include "cuda/attention_mma.cuh"
#include "cuda/attention_wgmma.cuh"
#include "cuda/status.cuh"
#include "cuda/tensor_map.cuh"

namespace fp8sim {
namespace {

template <class Kernel>
cudaError_t allow_shared_memory(Kernel kernel, int bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <class Tile>
cudaError_t run_wgmma(const AttentionJob& job, cudaStream_t stream) {
    TensorMapEncoder encode = nullptr;
    CUtensorMap q, k, v;
    const AttentionBoxes boxes = attention_boxes<Tile>(job);
    if (cudaError_t error = find_encoder(&encode)) return error;
    if (cudaError_t error = encode_boxes(encode, boxes.q, &q)) return error;
    if (cudaError_t error = encode_boxes(encode, boxes.k, &k)) return error;
    if (cudaError_t error = encode_boxes(encode, boxes.v, &v)) return error;
    const auto kernel = attention_wgmma_kernel<Tile>;
    if (cudaError_t error = allow_shared_memory(kernel, Tile::kSharedBytes)) return error;
    const auto blocks = static_cast<unsigned>(attention_blocks<Tile>(job.extent));
    kernel<<<blocks, Tile::kThreads, Tile::kSharedBytes, stream>>>(q, k, v, job);
    return cudaGetLastError();
}

template <class Tile>
cudaError_t run_mma(const AttentionJob& job, cudaStream_t stream) {
    const auto kernel = attention_mma_kernel<Tile>;
    if (cudaError_t error = allow_shared_memory(kernel, Tile::kSharedBytes)) return error;
    const auto blocks = static_cast<unsigned>(attention_blocks<Tile>(job.extent));
    kernel<<<blocks, Tile::kThreads, Tile::kSharedBytes, stream>>>(job);
    return cudaGetLastError();
}

cudaError_t run(const AttentionJob& job, cudaStream_t stream) {
    Device device = {};
    if (cudaError_t error = query(&device)) return error;
    const bool hopper = device.capability == kHopper;
    if (job.transposed_values != (hopper && is_fp8(job.type))) return cudaErrorInvalidValue;
    if (hopper) {
        return for_attention_tile<AttentionWgmmaTile>(job,
                                                      [&](auto tile) { return run_wgmma<decltype(tile)>(job, stream); });
    }
    return for_attention_tile<AttentionMmaTile>(job, [&](auto tile) { return run_mma<decltype(tile)>(job, stream); });
}

}  // namespace

CudaStatus launch_attention(const AttentionJob& job, uintptr_t stream) {
    return status_of(run(job, reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace fp8sim
