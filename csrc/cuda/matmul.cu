// Launches of the matrix products: which kernel, how many blocks, and what the copy engine has to know.
#include "cuda/matmul.hpp"

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/matmul_choice.hpp"
#include "cuda/matmul_mma.cuh"
#include "cuda/matmul_wgmma.cuh"
#include "cuda/status.cuh"
#include "cuda/tensor_map.cuh"

namespace fp8sim {
namespace {

template <class Tile>
cudaError_t run_wgmma(const MatmulJob& job, int processors, cudaStream_t stream) {
    const auto& [m, n, k, batches] = job.extent;
    TensorMapEncoder encode = nullptr;
    CUtensorMap a, b;
    if (cudaError_t error = find_encoder(&encode)) return error;
    const Boxes a_boxes = boxes_of(job.a, m, k, batches, Tile::kRows, Tile::kDepth);
    const Boxes b_boxes = boxes_of(job.b, n, k, batches, Tile::kLoadedColumns, Tile::kDepth);
    if (cudaError_t error = encode_boxes(encode, a_boxes, &a)) return error;
    if (cudaError_t error = encode_boxes(encode, b_boxes, &b)) return error;
    const auto kernel = matmul_wgmma_kernel<Tile>;
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaError_t error = cudaFuncSetAttribute(kernel, limit, Tile::kSharedBytes)) return error;
    const int64_t clusters = std::min<int64_t>(processors / Tile::kBlocks, count_tiles(wgmma_order<Tile>(job.extent)));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {Tile::kBlocks, 1, 1};
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3(static_cast<unsigned>(clusters) * Tile::kBlocks);
    launch.blockDim = dim3(Tile::kThreads);
    launch.dynamicSmemBytes = Tile::kSharedBytes;
    launch.stream = stream;
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    const OneForAll one = {job.a.per_batch == 0, job.b.per_batch == 0};
    return cudaLaunchKernelEx(&launch, kernel, a, b, job.extent, one, job.epilogue);
}

template <class Tile>
cudaError_t run_mma(const MatmulJob& job, int processors, cudaStream_t stream) {
    const auto kernel = matmul_mma_kernel<Tile>;
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaError_t error = cudaFuncSetAttribute(kernel, limit, Tile::kSharedBytes)) return error;
    int per_processor = 0;
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, Tile::kThreads, Tile::kSharedBytes);
    if (error != cudaSuccess) return error;
    const int64_t tiles = count_tiles(mma_order<Tile>(job.extent)), fit = int64_t{per_processor} * processors;
    const unsigned blocks = static_cast<unsigned>(std::min(fit, tiles));
    kernel<<<blocks, Tile::kThreads, Tile::kSharedBytes, stream>>>(job.a, job.b, job.extent, job.epilogue);
    return cudaGetLastError();
}

cudaError_t run(const MatmulJob& job, cudaStream_t stream) {
    Device device = {};
    if (cudaError_t error = query(&device)) return error;
    if (device.capability == kHopper) {
        return for_wgmma_tile<WgmmaTile>(job, device.processors, [&](auto tile) {
            return run_wgmma<decltype(tile)>(job, device.processors, stream);
        });
    }
    return for_operands(job.a.type, job.b.type, [&](auto a, auto b) {
        return run_mma<MmaTile<decltype(a), decltype(b)>>(job, device.processors, stream);
    });
}

}  // namespace

CudaStatus launch_matmul(const MatmulJob& job, uintptr_t stream) {
    return status_of(run(job, reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace fp8sim
