// What the copy engine is told of a tensor, by the driver's function, without linking the driver.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "cuda/matmul.hpp"

namespace fp8sim {

using TensorMapEncoder = PFN_cuTensorMapEncodeTiled_v12000;

inline cudaError_t look_up_encoder(TensorMapEncoder* encode) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const char* name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess) return error;
    *encode = reinterpret_cast<TensorMapEncoder>(function);
    return found == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorSymbolNotFound;
}

// Looked up once, at the first launch.
inline cudaError_t find_encoder(TensorMapEncoder* encode) {
    static TensorMapEncoder found = nullptr;
    static const cudaError_t error = look_up_encoder(&found);
    *encode = found;
    return error;
}

inline CUtensorMapDataType tensor_map_type(Operand type) {
    if (type == Operand::kFloat16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    return type == Operand::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

// `boxes` has an address, a type, extents and a box of each dimension, and strides of all but the first. The bindings
// have checked what the driver checks, so that its refusal is a fault of the launcher.
template <class SomeBoxes>
cudaError_t encode_boxes(TensorMapEncoder encode, const SomeBoxes& boxes, CUtensorMap* map) {
    constexpr cuuint32_t kRank = sizeof(boxes.extents) / sizeof(boxes.extents[0]);
    const cuuint32_t every_element[] = {1, 1, 1, 1};
    static_assert(kRank <= 4, "a step for each dimension");
    const CUresult result =
        encode(map, tensor_map_type(boxes.type), kRank, const_cast<void*>(boxes.address), boxes.extents, boxes.strides,
               boxes.box, every_element, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace fp8sim
