// The probes' instructions wgmma m64nN, one case for a warpgroup: 32 bytes of K for every type.
//
// Assumes, as probe.cu says, what the bindings checked. a and b wait in shared memory, all steps of a case at once.
#pragma once

#include "cuda/fragments.hpp"
#include "cuda/probe.hpp"
#include "cuda/probe_device.cuh"
#include "cuda/register_lists.hpp"

namespace fp8sim {
namespace {

constexpr int kRowsA = 64, kRowBytes = 32;

// Operands of one instruction with `rows` rows; shared memory of a case.
FP8SIM_HD constexpr int operand_bytes(int rows) { return rows * kRowBytes; }
FP8SIM_HD constexpr int shared_bytes(int n, int steps) { return steps * (operand_bytes(kRowsA) + operand_bytes(n)); }

// An `Op` is a type of a, b and d: its registers, and `run` for each N, which is told by how many registers d has.
template <class RegisterType, bool packed>
struct WgmmaShape {
    using Register = RegisterType;
    static constexpr bool kPacked = packed;
};

using WideF32 = WgmmaShape<float, false>;
using WideF16 = WgmmaShape<uint32_t, true>;

#define FP8SIM_WGMMA_TEXT(SHAPE, REGISTERS, A, B, ADDS, NEGATE, LAST)                                      \
    "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, " ADDS ", 0;\n\twgmma.mma_async.sync.aligned." SHAPE       \
    " {" REGISTERS "}, " A ", " B ", adds, " NEGATE ", 1" LAST ";\n\t}"

// COUNT registers of TYPE, bound as C; A, B and ADDS are the operands after them.
#define FP8SIM_WGMMA_SHARED(NAME, TYPE, C, COUNT, A, B, ADDS, SHAPE, NEGATE, LAST)                         \
    __device__ static void NAME(TYPE(&d)[COUNT], uint64_t a, uint64_t b, int adds) {                       \
        asm volatile(FP8SIM_WGMMA_TEXT(SHAPE, FP8SIM_REGISTERS_##COUNT, A, B, ADDS, NEGATE, LAST)          \
                     : FP8SIM_VALUES_##COUNT(C, d, 0)                                                      \
                     : "l"(a), "l"(b), "r"(adds)                                                           \
                     : "memory");                                                                          \
    }
#define FP8SIM_WGMMA_REGISTERS(TYPE, C, COUNT, A, B, ADDS, SHAPE, LAST)                                    \
    __device__ static void run(TYPE(&d)[COUNT], const uint32_t(&a)[4], uint64_t b, int adds) {             \
        asm volatile(FP8SIM_WGMMA_TEXT(SHAPE, FP8SIM_REGISTERS_##COUNT, A, B, ADDS, "1", LAST)             \
                     : FP8SIM_VALUES_##COUNT(C, d, 0)                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds)                       \
                     : "memory");                                                                          \
    }

// Each N of a type: "k32.f32.e4m3.e4m3", and what else the instruction says of both operands, or of b alone.
#define FP8SIM_WGMMA_WideF32(TYPES, BOTH, ONE)                                                             \
    FP8SIM_WGMMA_SHARED(run, float, "+f", 4, "%4", "%5", "%6", "m64n8" TYPES, "1", BOTH)                   \
    FP8SIM_WGMMA_SHARED(run_negated, float, "+f", 4, "%4", "%5", "%6", "m64n8" TYPES, "-1", BOTH)          \
    FP8SIM_WGMMA_REGISTERS(float, "+f", 4, "{%4, %5, %6, %7}", "%8", "%9", "m64n8" TYPES, ONE)             \
    FP8SIM_WGMMA_SHARED(run, float, "+f", 32, "%32", "%33", "%34", "m64n64" TYPES, "1", BOTH)              \
    FP8SIM_WGMMA_SHARED(run, float, "+f", 64, "%64", "%65", "%66", "m64n128" TYPES, "1", BOTH)             \
    FP8SIM_WGMMA_SHARED(run, float, "+f", 128, "%128", "%129", "%130", "m64n256" TYPES, "1", BOTH)
#define FP8SIM_WGMMA_WideF16(TYPES, BOTH, ONE)                                                             \
    FP8SIM_WGMMA_SHARED(run, uint32_t, "+r", 2, "%2", "%3", "%4", "m64n8" TYPES, "1", BOTH)                \
    FP8SIM_WGMMA_SHARED(run_negated, uint32_t, "+r", 2, "%2", "%3", "%4", "m64n8" TYPES, "-1", BOTH)       \
    FP8SIM_WGMMA_REGISTERS(uint32_t, "+r", 2, "{%2, %3, %4, %5}", "%6", "%7", "m64n8" TYPES, ONE)          \
    FP8SIM_WGMMA_SHARED(run, uint32_t, "+r", 16, "%16", "%17", "%18", "m64n64" TYPES, "1", BOTH)           \
    FP8SIM_WGMMA_SHARED(run, uint32_t, "+r", 32, "%32", "%33", "%34", "m64n128" TYPES, "1", BOTH)          \
    FP8SIM_WGMMA_SHARED(run, uint32_t, "+r", 64, "%64", "%65", "%66", "m64n256" TYPES, "1", BOTH)

// 16-bit operands say, too, which of them is transposed: those in shared memory.
#define FP8SIM_BOTH_STRAIGHT ", 0, 0"
#define FP8SIM_B_STRAIGHT ", 0"
#define FP8SIM_NOT_SAID ""

// X(struct, shape, types of d, a, b, K, bytes of an operand, bytes of the accumulator, both, one)
#define FP8SIM_WGMMA_PAIR(X, A, B, a, b)                                                           \
    X(A##B, WideF32, f32, a, b, 32, 1, 4, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)                        \
    X(A##B##ToF16, WideF16, f16, a, b, 32, 1, 2, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)
#define FP8SIM_WGMMA(X)                                                                            \
    X(F16, WideF32, f32, f16, f16, 16, 2, 4, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)              \
    X(F16ToF16, WideF16, f16, f16, f16, 16, 2, 2, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)         \
    X(Bf16, WideF32, f32, bf16, bf16, 16, 2, 4, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)           \
    X(Tf32, WideF32, f32, tf32, tf32, 8, 4, 4, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)                   \
    FP8SIM_WGMMA_PAIR(X, E4m3, E4m3, e4m3, e4m3)                                                   \
    FP8SIM_WGMMA_PAIR(X, E4m3, E5m2, e4m3, e5m2)                                                   \
    FP8SIM_WGMMA_PAIR(X, E5m2, E4m3, e5m2, e4m3)                                                   \
    FP8SIM_WGMMA_PAIR(X, E5m2, E5m2, e5m2, e5m2)

#define FP8SIM_WGMMA_STRUCT(NAME, SHAPE, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE)                \
    struct Wgmma##NAME : SHAPE {                                                                   \
        FP8SIM_WGMMA_##SHAPE("k" #K "." #D "." #A "." #B, BOTH, ONE)                               \
    };
#define FP8SIM_WGMMA_ABSENT(NAME, SHAPE, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE) \
    struct Wgmma##NAME : SHAPE {};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
FP8SIM_WGMMA(FP8SIM_WGMMA_STRUCT)

constexpr int kRowWords = kRowBytes / 4;

// Rows of `words` words to the shared memory of `steps` instructions.
template <int rows>
__device__ void stage(unsigned char* target, const uint32_t* source, int steps) {
    const int words = steps * kRowWords;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * words; i += kThreads) {
        const int row = i / words, word = i % words;
        unsigned char* place = target + word / kRowWords * operand_bytes(rows) + core_offset(row, word % kRowWords * 4);
        *reinterpret_cast<uint32_t*>(place) = source[i];
    }
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// What was stored to shared memory is seen by wgmma.
__device__ inline void shared_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Named where they have been written, so that nothing reads registers before.
__device__ inline void written(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ inline void written(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }

template <class Register, int count>
__device__ void wgmma_finish(Register (&sum)[count]) {
    asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int r = 0; r < count; ++r) written(sum[r]);
}

template <class Op, int n, ProbeVariant variant, int count>
__device__ void chain_from_shared(typename Op::Register (&sum)[count], uint32_t left, uint32_t right, bool adds,
                                  int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const uint64_t a = core_descriptor(left + step * operand_bytes(kRowsA));
        const uint64_t b = core_descriptor(right + step * operand_bytes(n));
        wgmma_fence();
        if constexpr (variant == ProbeVariant::kNegated) {
            Op::run_negated(sum, a, b, adds || step > 0);
        } else {
            Op::run(sum, a, b, adds || step > 0);
        }
        wgmma_finish(sum);
    }
}

// `a` is the first of the warp's 16 rows.
template <class Op, int n, int count>
__device__ void chain_from_registers(typename Op::Register (&sum)[count], const uint32_t* a, uint32_t right, bool adds,
                                     int steps) {
    const int lane = threadIdx.x % kLanes;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        uint32_t fragment[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const WordPlace at = fragment_a(lane, r, 16);
            fragment[r] = a[(at.row * steps + step) * kRowWords + at.word];
        }
        wgmma_fence();
        Op::run(sum, fragment, core_descriptor(right + step * operand_bytes(n)), adds || step > 0);
        wgmma_finish(sum);
    }
}

template <class Op, int n, ProbeVariant variant>
__device__ void wgmma_cases(const uint32_t* a, const uint32_t* b, const typename Op::Register* c,
                            typename Op::Register* d, int64_t cases, int steps) {
    using Register = typename Op::Register;
    constexpr int kWordsD = Op::kPacked ? n / 2 : n, kRegistersD = kWordsD / 2;
    extern __shared__ __align__(1024) unsigned char left[];
    unsigned char* right = left + steps * operand_bytes(kRowsA);
    const uint32_t left_address = static_cast<uint32_t>(__cvta_generic_to_shared(left));
    const uint32_t right_address = static_cast<uint32_t>(__cvta_generic_to_shared(right));
    const int lane = threadIdx.x % kLanes, warp_row = threadIdx.x / kLanes * 16, width = steps * kRowWords;
    for (int64_t i = blockIdx.x; i < cases; i += gridDim.x) {
        stage<kRowsA>(left, a + i * kRowsA * width, steps);
        stage<n>(right, b + i * n * width, steps);
        shared_fence();
        __syncthreads();
        Register sum[kRegistersD];
        const int64_t result = i * kRowsA * kWordsD;
#pragma unroll
        for (int r = 0; r < kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            sum[r] = c == nullptr ? Register(1) : c[result + (warp_row + at.row) * kWordsD + at.word];
        }
        if constexpr (variant == ProbeVariant::kRegisters) {
            chain_from_registers<Op, n>(sum, a + (i * kRowsA + warp_row) * width, right_address, c != nullptr, steps);
        } else {
            chain_from_shared<Op, n, variant>(sum, left_address, right_address, c != nullptr, steps);
        }
#pragma unroll
        for (int r = 0; r < kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            d[result + (warp_row + at.row) * kWordsD + at.word] = sum[r];
        }
        __syncthreads();
    }
}
#else
FP8SIM_WGMMA(FP8SIM_WGMMA_ABSENT)

template <class Op, int n, ProbeVariant variant>
__device__ void wgmma_cases(const uint32_t*, const uint32_t*, const typename Op::Register*, typename Op::Register*,
                            int64_t, int) {
    refuse_on_this_device();
}
#endif

template <class Op, int n, ProbeVariant variant>
__global__ void __launch_bounds__(kThreads)
    wgmma_kernel(const uint32_t* a, const uint32_t* b, const typename Op::Register* c, typename Op::Register* d,
                 int64_t cases, int steps) {
    wgmma_cases<Op, n, variant>(a, b, c, d, cases, steps);
}

}  // namespace
}  // namespace fp8sim
