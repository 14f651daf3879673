// wgmma.mma_async: 64 rows of a, N columns of b and 32 bytes of K, both from swizzled shared memory, added to `sum`.
//
// `adds` is 0 where the products replace the sum. The function for a pair of types is chosen by their tags.
#pragma once

#include "cuda/fp8.hpp"
#include "cuda/intrinsics.cuh"
#include "cuda/register_lists.hpp"

namespace fp8sim {

// 16-bit operands say, too, that neither is transposed.
#define FP8SIM_WGMMA(A, B, K, TYPES, TRANSPOSED)                                                              \
    FP8SIM_DEVICE void wgmma(A, B, float(&s)[64], uint64_t a, uint64_t b, int adds) {                         \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %66, 0;\n\twgmma.mma_async.sync.aligned."    \
                     "m64n128" K ".f32." TYPES " {" FP8SIM_REGISTERS_64 "}, %64, %65, adds, 1, 1" TRANSPOSED  \
                     ";\n\t}"                                                                                 \
                     : FP8SIM_VALUES_64("+f", s, 0)                                                           \
                     : "l"(a), "l"(b), "r"(adds));                                                            \
    }                                                                                                         \
    FP8SIM_DEVICE void wgmma(A, B, float(&s)[128], uint64_t a, uint64_t b, int adds) {                        \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %130, 0;\n\twgmma.mma_async.sync.aligned."   \
                     "m64n256" K ".f32." TYPES " {" FP8SIM_REGISTERS_128 "}, %128, %129, adds, 1, 1"          \
                     TRANSPOSED ";\n\t}"                                                                      \
                     : FP8SIM_VALUES_128("+f", s, 0)                                                          \
                     : "l"(a), "l"(b), "r"(adds));                                                            \
    }

FP8SIM_WGMMA(E4m3, E4m3, "k32", "e4m3.e4m3", "")
FP8SIM_WGMMA(E4m3, E5m2, "k32", "e4m3.e5m2", "")
FP8SIM_WGMMA(E5m2, E4m3, "k32", "e5m2.e4m3", "")
FP8SIM_WGMMA(E5m2, E5m2, "k32", "e5m2.e5m2", "")
FP8SIM_WGMMA(Float16, Float16, "k16", "f16.f16", ", 0, 0")
FP8SIM_WGMMA(Bfloat16, Bfloat16, "k16", "bf16.bf16", ", 0, 0")

#undef FP8SIM_WGMMA

}  // namespace fp8sim
