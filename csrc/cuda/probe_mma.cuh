// The probes' instructions mma.sync, one case for a warp: what registers hold goes to memory as it is.
//
// Assumes, as probe.cu says, what the bindings checked. Rows of a and b are contiguous along k, 16 or 32 bytes (32, 64
// or 128 of binary64) for each instruction.
#pragma once

#include "cuda/fragments.hpp"
#include "cuda/probe_device.cuh"

namespace fp8sim {
namespace {

// mma.sync. An `Op` is an instruction: its words and registers, and `run`, which adds to d.

template <class Op>
__global__ void __launch_bounds__(kThreads)
    mma_kernel(const typename Op::Word* a, const typename Op::Word* b, const typename Op::Register* c,
               typename Op::Register* d, int64_t cases, int steps) {
    constexpr int kWarps = kThreads / kLanes;
    const int lane = threadIdx.x % kLanes, width = steps * Op::kWords;
    const int64_t stride = int64_t{kWarps} * gridDim.x;
    for (int64_t i = int64_t{kWarps} * blockIdx.x + threadIdx.x / kLanes; i < cases; i += stride) {
        typename Op::Register sum[Op::kRegistersD];
        const int64_t result = i * Op::kM * Op::kWordsD;
#pragma unroll
        for (int r = 0; r < Op::kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            sum[r] = c[result + at.row * Op::kWordsD + at.word];
        }
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            typename Op::Word left[Op::kRegistersA], right[Op::kRegistersB];
#pragma unroll
            for (int r = 0; r < Op::kRegistersA; ++r) {
                const WordPlace at = fragment_a(lane, r, Op::kM);
                left[r] = a[(i * Op::kM + at.row) * width + step * Op::kWords + at.word];
            }
#pragma unroll
            for (int r = 0; r < Op::kRegistersB; ++r) {
                const WordPlace at = fragment_b(lane, r);
                right[r] = b[(i * Op::kN + at.row) * width + step * Op::kWords + at.word];
            }
            Op::run(sum, left, right);
        }
#pragma unroll
        for (int r = 0; r < Op::kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            d[result + at.row * Op::kWordsD + at.word] = sum[r];
        }
    }
}

template <class WordType, class RegisterType, int m, int words, bool packed>
struct MmaShape {
    using Word = WordType;
    using Register = RegisterType;
    static constexpr int kM = m, kN = 8, kWords = words, kWordsD = packed ? kN / 2 : kN;
    static constexpr bool kPacked = packed;
    static constexpr int kRegistersA = m / 8 * words / 4, kRegistersB = words / 4;
    static constexpr int kRegistersD = m / 8 * kWordsD / 4;
};

using LongF32 = MmaShape<uint32_t, float, 16, 8, false>;
using ShortF32 = MmaShape<uint32_t, float, 16, 4, false>;
using LongF16 = MmaShape<uint32_t, uint32_t, 16, 8, true>;
using ShortF16 = MmaShape<uint32_t, uint32_t, 16, 4, true>;
using SmallF64 = MmaShape<double, double, 8, 4, false>;
using LongF64 = MmaShape<double, double, 16, 16, false>;

#define FP8SIM_MMA_LongF32(TEXT)                                                                                 \
    asm volatile("mma.sync.aligned." TEXT " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"     \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define FP8SIM_MMA_ShortF32(TEXT)                                                                  \
    asm volatile("mma.sync.aligned." TEXT " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"   \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]))
#define FP8SIM_MMA_LongF16(TEXT)                                                                   \
    asm volatile("mma.sync.aligned." TEXT " {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"       \
                 : "+r"(d[0]), "+r"(d[1])                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define FP8SIM_MMA_ShortF16(TEXT)                                                                  \
    asm volatile("mma.sync.aligned." TEXT " {%0, %1}, {%2, %3}, {%4}, {%0, %1};"                   \
                 : "+r"(d[0]), "+r"(d[1])                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]))
#define FP8SIM_MMA_SmallF64(TEXT)                                                                  \
    asm volatile("mma.sync.aligned." TEXT " {%0, %1}, {%2}, {%3}, {%0, %1};"                       \
                 : "+d"(d[0]), "+d"(d[1])                                                          \
                 : "d"(a[0]), "d"(b[0]))
#define FP8SIM_MMA_LongF64(TEXT)                                                                   \
    asm volatile("mma.sync.aligned." TEXT                                                          \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15}, {%0, %1, %2, %3};" \
                 : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])                                  \
                 : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), \
                   "d"(b[0]), "d"(b[1]), "d"(b[2]), "d"(b[3]))

// X(struct, shape, PTX shape, types of d, a, b, K, bytes of an operand, bytes of the accumulator, compute capability)
#define FP8SIM_MMA_HALF(X)                                                            \
    X(F16, LongF32, m16n8k16, f32, f16, f16, 16, 2, 4, 80)                            \
    X(F16ToF16, LongF16, m16n8k16, f16, f16, f16, 16, 2, 2, 80)                       \
    X(Bf16, LongF32, m16n8k16, f32, bf16, bf16, 16, 2, 4, 80)                         \
    X(Tf32, LongF32, m16n8k8, f32, tf32, tf32, 8, 4, 4, 80)                           \
    X(F16Short, ShortF32, m16n8k8, f32, f16, f16, 8, 2, 4, 80)                        \
    X(F16ToF16Short, ShortF16, m16n8k8, f16, f16, f16, 8, 2, 2, 80)                   \
    X(Bf16Short, ShortF32, m16n8k8, f32, bf16, bf16, 8, 2, 4, 80)                     \
    X(Tf32Short, ShortF32, m16n8k4, f32, tf32, tf32, 4, 4, 4, 80)                     \
    X(F64Small, SmallF64, m8n8k4, f64, f64, f64, 4, 8, 8, 80)
#define FP8SIM_MMA_PAIR(X, A, B, a, b)                                                \
    X(A##B, LongF32, m16n8k32, f32, a, b, 32, 1, 4, 89)                               \
    X(A##B##ToF16, LongF16, m16n8k32, f16, a, b, 32, 1, 2, 89)                        \
    X(A##B##Short, ShortF32, m16n8k16, f32, a, b, 16, 1, 4, 89)                       \
    X(A##B##ToF16Short, ShortF16, m16n8k16, f16, a, b, 16, 1, 2, 89)
#define FP8SIM_MMA_FP8(X)                                                             \
    FP8SIM_MMA_PAIR(X, E4m3, E4m3, e4m3, e4m3)                                        \
    FP8SIM_MMA_PAIR(X, E4m3, E5m2, e4m3, e5m2)                                        \
    FP8SIM_MMA_PAIR(X, E5m2, E4m3, e5m2, e4m3)                                        \
    FP8SIM_MMA_PAIR(X, E5m2, E5m2, e5m2, e5m2)
#define FP8SIM_MMA_F64(X) X(F64, LongF64, m16n8k16, f64, f64, f64, 16, 8, 8, 90)

#define FP8SIM_MMA_STRUCT(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY)                \
    struct Mma##NAME : SHAPE {                                                                         \
        __device__ static void run(Register(&d)[kRegistersD], const Word(&a)[kRegistersA],             \
                                   const Word(&b)[kRegistersB]) {                                      \
            FP8SIM_MMA_##SHAPE(#PTX ".row.col." #D "." #A "." #B "." #D);                              \
        }                                                                                              \
    };
#define FP8SIM_MMA_REFUSAL(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY)               \
    struct Mma##NAME : SHAPE {                                                                         \
        __device__ static void run(Register(&)[kRegistersD], const Word(&)[kRegistersA],               \
                                   const Word(&)[kRegistersB]) {                                       \
            refuse_on_this_device();                                                                   \
        }                                                                                              \
    };

FP8SIM_MMA_HALF(FP8SIM_MMA_STRUCT)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
FP8SIM_MMA_FP8(FP8SIM_MMA_STRUCT)
#else
FP8SIM_MMA_FP8(FP8SIM_MMA_REFUSAL)
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FP8SIM_MMA_F64(FP8SIM_MMA_STRUCT)
#else
FP8SIM_MMA_F64(FP8SIM_MMA_REFUSAL)
#endif

}  // namespace
}  // namespace fp8sim
