// The instructions that attention needs beyond those of the matrix products; each function does nothing else.
//
// Tests put a file of this name in front that does the same on a CPU.
#pragma once

#include "cuda/layouts.hpp"
#include "cuda/wgmma.cuh"

namespace fp8sim {

using HeadTensorMap = CUtensorMap;

// x, of which nothing is computed ahead of this place: addresses that were would take registers for the whole loop.
FP8SIM_DEVICE int only_here(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

FP8SIM_DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xFFFFFFFFu, x, lanes); }

// 2^x within 2 ulp, exact where x is an integer; 0 below 2^-126.
FP8SIM_DEVICE float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2 of a positive normal number, within 2^-22.
FP8SIM_DEVICE float log2_of(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

FP8SIM_DEVICE float multiply_add(float x, float y, float z) { return __fmaf_rn(x, y, z); }

FP8SIM_DEVICE uint32_t load_shared_8(uint32_t address) {
    uint32_t byte;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(address));
    return byte;
}

FP8SIM_DEVICE void store_shared_32(uint32_t address, uint32_t word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

FP8SIM_DEVICE void store_shared_16(uint32_t address, uint32_t word) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(word)) : "memory");
}

// Four 8x8 matrices of 16-bit numbers, lane l naming row l % 8 of matrix l / 8: register i holds two neighbours of
// matrix i, [l / 4, 2 (l % 4)] and the next, or of its transpose.

FP8SIM_DEVICE void load_matrices(uint32_t (&words)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row));
}

FP8SIM_DEVICE void load_matrices_transposed(uint32_t (&words)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row));
}

// A box of a tensor [batch, head, row, column].
FP8SIM_DEVICE void load_head_box(uint32_t target, const HeadTensorMap& map, int column, int row, int head, int batch,
                                 uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(barrier)
        : "memory");
}

// Arrives at a barrier of this block.
FP8SIM_DEVICE void barrier_arrive_here(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// What this thread has written to shared memory, products of warpgroups read after it.
FP8SIM_DEVICE void products_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The threads of one of two warpgroups meet. Barriers have constant numbers, or all 16 of them are reserved.
FP8SIM_DEVICE void warpgroup_sync(int warpgroup) {
    if (warpgroup == 0) asm volatile("bar.sync 1, 128;" ::: "memory");
    else asm volatile("bar.sync 2, 128;" ::: "memory");
}

FP8SIM_HD constexpr Conversion to_e4m3() {
    return {3, -6, 0, 126, kNoCode, 127, 128, 1, 0, 0, 128, 126, 254, 126, 254, 127, 255, 0, 0};
}

FP8SIM_HD uint32_t encode_e4m3(float x) {
    return encode<Rounding::kTiesToEven, Reach::kWithin, uint32_t>(bit_cast<uint32_t>(x), to_e4m3(), 0, 32);
}

// The nearest E4M3 numbers, ties to even, saturating, the first one in the lower byte. NaN may have either sign.
FP8SIM_DEVICE uint32_t round_to_e4m3(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return encode_e4m3(low) | encode_e4m3(high) << 8;
#endif
}

// wgmma for 64 columns, and for 16-bit operands b that lie [k, column] in memory.

#define FP8SIM_WGMMA(NAME, TYPE, COUNT, N, REGISTERS, A, B, ADDS, SHAPE, FLAGS, ...)                         \
    FP8SIM_DEVICE void NAME(TYPE, TYPE, float(&s)[COUNT], uint64_t a, uint64_t b, int adds) {                \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, " ADDS ", 0;\n\t"                           \
                     "wgmma.mma_async.sync.aligned.m64" N SHAPE " {" REGISTERS "}, " A ", " B ", adds, 1, 1" \
                     FLAGS ";\n\t}"                                                                          \
                     : __VA_ARGS__                                                                           \
                     : "l"(a), "l"(b), "r"(adds));                                                           \
    }
#define FP8SIM_WGMMA_64(NAME, TYPE, SHAPE, FLAGS)                                                      \
    FP8SIM_WGMMA(NAME, TYPE, 32, "n64", FP8SIM_REGISTERS_32, "%32", "%33", "%34", SHAPE, FLAGS,        \
                 FP8SIM_VALUES_32("+f", s, 0))
#define FP8SIM_WGMMA_DOWN(TYPE, SHAPE)                                                                         \
    FP8SIM_WGMMA_64(wgmma_down, TYPE, SHAPE, ", 0, 1")                                                         \
    FP8SIM_WGMMA(wgmma_down, TYPE, 64, "n128", FP8SIM_REGISTERS_64, "%64", "%65", "%66", SHAPE, ", 0, 1",      \
                 FP8SIM_VALUES_64("+f", s, 0))                                                                 \
    FP8SIM_WGMMA(wgmma_down, TYPE, 128, "n256", FP8SIM_REGISTERS_128, "%128", "%129", "%130", SHAPE, ", 0, 1", \
                 FP8SIM_VALUES_128("+f", s, 0))

FP8SIM_WGMMA_64(wgmma, E4m3, "k32.f32.e4m3.e4m3", "")
FP8SIM_WGMMA_64(wgmma, Float16, "k16.f32.f16.f16", ", 0, 0")
FP8SIM_WGMMA_64(wgmma, Bfloat16, "k16.f32.bf16.bf16", ", 0, 0")
FP8SIM_WGMMA_DOWN(Float16, "k16.f32.f16.f16")
FP8SIM_WGMMA_DOWN(Bfloat16, "k16.f32.bf16.bf16")

#undef FP8SIM_WGMMA
#undef FP8SIM_WGMMA_64
#undef FP8SIM_WGMMA_DOWN

}  // namespace fp8sim
