// Launches of the matrix products: which kernel, how many blocks, and what the copy engine has to know.
#include "cuda/matmul.hpp"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/matmul_choice.hpp"
#include "cuda/matmul_mma.cuh"
#include "cuda/matmul_wgmma.cuh"
#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kHopper = 90;

struct Device {
    int capability;
    int processors;
};

cudaError_t query(Device* device) {
    int index = 0, major = 0, minor = 0;
    if (cudaError_t error = cudaGetDevice(&index)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index)) return error;
    device->capability = 10 * major + minor;
    return cudaDeviceGetAttribute(&device->processors, cudaDevAttrMultiProcessorCount, index);
}

// The driver's function, without linking the driver.
cudaError_t find_encoder(PFN_cuTensorMapEncodeTiled_v12000* encode) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const char* name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess) return error;
    *encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    return found == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorSymbolNotFound;
}

CUtensorMapDataType data_type(Operand type) {
    if (type == Operand::kFloat16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    return type == Operand::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

// The bindings have checked what the driver checks, so that its refusal is a fault of the launcher.
cudaError_t encode_boxes(PFN_cuTensorMapEncodeTiled_v12000 encode, const Boxes& boxes, CUtensorMap* map) {
    const cuuint32_t every_element[3] = {1, 1, 1};
    const CUresult result =
        encode(map, data_type(boxes.type), 3, const_cast<void*>(boxes.address), boxes.extents, boxes.strides, boxes.box,
               every_element, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Tile>
cudaError_t run_wgmma(const MatmulJob& job, int processors, cudaStream_t stream) {
    const auto& [m, n, k, batches] = job.extent;
    PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
    CUtensorMap a, b;
    if (cudaError_t error = find_encoder(&encode)) return error;
    if (cudaError_t error = encode_boxes(encode, boxes_of(job.a, m, k, batches, Tile::kRows, Tile::kDepth), &a)) {
        return error;
    }
    if (cudaError_t error = encode_boxes(encode, boxes_of(job.b, n, k, batches, Tile::kLoadedColumns, Tile::kDepth), &b)) {
        return error;
    }
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
        return for_wgmma_tile<WgmmaTile>(
            job, device.processors, [&](auto tile) { return run_wgmma<decltype(tile)>(job, device.processors, stream); });
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
