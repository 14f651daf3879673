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

// What `lane` brings; every lane of the warp brings something.
FP8SIM_DEVICE uint32_t shuffle_from(uint32_t x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }

// Byte i is the one of `high`:`low` that digit i of `which` names, from the lowest of `low` on.
FP8SIM_DEVICE uint32_t choose_bytes(uint32_t low, uint32_t high, uint32_t which) {
    return __byte_perm(low, high, which);
}

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

// wgmma for 64 columns.

#define FP8SIM_WGMMA_64(TYPE, SHAPE, FLAGS)                                                                   \
    FP8SIM_DEVICE void wgmma(TYPE, TYPE, float(&s)[32], uint64_t a, uint64_t b, int adds) {                   \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %34, 0;\n\t"                                 \
                     "wgmma.mma_async.sync.aligned.m64n64" SHAPE " {" FP8SIM_REGISTERS_32 "}, %32, %33, adds" \
                     ", 1, 1" FLAGS ";\n\t}"                                                                  \
                     : FP8SIM_VALUES_32("+f", s, 0)                                                           \
                     : "l"(a), "l"(b), "r"(adds));                                                            \
    }

FP8SIM_WGMMA_64(E4m3, "k32.f32.e4m3.e4m3", "")
FP8SIM_WGMMA_64(Float16, "k16.f32.f16.f16", ", 0, 0")
FP8SIM_WGMMA_64(Bfloat16, "k16.f32.bf16.bf16", ", 0, 0")

#undef FP8SIM_WGMMA_64

// wgmma with a in registers, four from a[0] on, added to `s`: b is K-major if it is of FP8; if of 16 bits, it lies
// [k, column] in memory. The registers of a, too, are the instruction's until it was waited for.

#define FP8SIM_WGMMA_ROWS_OF(TYPE, COUNT, SHAPE, REGISTERS, A, B, FLAGS, ...)                               \
    FP8SIM_DEVICE void wgmma_rows(TYPE, float(&s)[COUNT], const uint32_t* a, uint64_t b) {                  \
        asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, 1, 0;\n\twgmma.mma_async.sync.aligned.m64" \
                     SHAPE " {" REGISTERS "}, {" A "}, " B ", adds, 1, 1" FLAGS ";\n\t}"                    \
                     : __VA_ARGS__                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }
#define FP8SIM_WGMMA_ROWS(TYPE, SHAPE, FLAGS)                                                             \
    FP8SIM_WGMMA_ROWS_OF(TYPE, 32, "n64" SHAPE, FP8SIM_REGISTERS_32, "%32, %33, %34, %35", "%36", FLAGS,  \
                         FP8SIM_VALUES_32("+f", s, 0))                                                    \
    FP8SIM_WGMMA_ROWS_OF(TYPE, 64, "n128" SHAPE, FP8SIM_REGISTERS_64, "%64, %65, %66, %67", "%68", FLAGS, \
                         FP8SIM_VALUES_64("+f", s, 0))                                                    \
    FP8SIM_WGMMA_ROWS_OF(TYPE, 128, "n256" SHAPE, FP8SIM_REGISTERS_128, "%128, %129, %130, %131", "%132", \
                         FLAGS, FP8SIM_VALUES_128("+f", s, 0))

FP8SIM_WGMMA_ROWS(E4m3, "k32.f32.e4m3.e4m3", "")
FP8SIM_WGMMA_ROWS(Float16, "k16.f32.f16.f16", ", 1")
FP8SIM_WGMMA_ROWS(Bfloat16, "k16.f32.bf16.bf16", ", 1")

#undef FP8SIM_WGMMA_ROWS
#undef FP8SIM_WGMMA_ROWS_OF

}  // namespace fp8sim
