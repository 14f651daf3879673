// Numbers of any storage as the quick way of core/quick.hpp takes them.
#pragma once

#include "core/element.hpp"
#include "cuda/intrinsics.cuh"

namespace fp8sim {

// The bits of a number in binary32; a NaN may be any.
FP8SIM_DEVICE uint32_t quick_bits(Float32, uint32_t x) { return x; }
FP8SIM_DEVICE uint32_t quick_bits(Bfloat16, uint16_t x) { return uint32_t{x} << 16; }
FP8SIM_DEVICE uint32_t quick_bits(Float16, uint16_t x) { return bit_cast<uint32_t>(widen_float16(x)); }

}  // namespace fp8sim
