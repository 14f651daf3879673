// Single tensor-core instructions on raw bits, one case for a warp (mma.sync) or a warpgroup (wgmma).
//
// Assumes: `job` was checked by the bindings. Rows of a and b are contiguous along k, 16 or 32 bytes (32, 64 or 128 of
// binary64) for each instruction; what registers hold goes to memory as it is.
#include "cuda/probe.hpp"

#include "cuda/fragments.hpp"
#include "cuda/status.cuh"

namespace fp8sim {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 128;
constexpr int kMostBlocks = 4096;

// In the machine code of devices that lack an instruction: the bindings do not launch it there.
[[maybe_unused]] __device__ void refuse_on_this_device() { __trap(); }

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

// wgmma, m64n8: 32 bytes of K for every type; a and b wait in shared memory, all steps of a case at once.

constexpr int kRowsA = 64, kRowsB = 8, kRowBytes = 32, kRowWords = kRowBytes / 4;
constexpr int kBytesA = kRowsA * kRowBytes, kBytesB = kRowsB * kRowBytes;

template <class RegisterType, bool packed>
struct WgmmaShape {
    using Register = RegisterType;
    static constexpr bool kPacked = packed;
    static constexpr int kWordsD = packed ? kRowsB / 2 : kRowsB, kRegistersD = packed ? 2 : 4;
};

using WideF32 = WgmmaShape<float, false>;
using WideF16 = WgmmaShape<uint32_t, true>;

#define FP8SIM_WGMMA_WideF32(TEXT, NEGATE, LAST)                                                       \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %6, 0;\n\twgmma.mma_async.sync.aligned."  \
                 TEXT " {%0, %1, %2, %3}, %4, %5, adds, " NEGATE ", 1" LAST ";\n\t}"                   \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                      \
                 : "l"(a), "l"(b), "r"(adds)                                                           \
                 : "memory")
#define FP8SIM_WGMMA_WideF16(TEXT, NEGATE, LAST)                                                       \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %4, 0;\n\twgmma.mma_async.sync.aligned."  \
                 TEXT " {%0, %1}, %2, %3, adds, " NEGATE ", 1" LAST ";\n\t}"                           \
                 : "+r"(d[0]), "+r"(d[1])                                                              \
                 : "l"(a), "l"(b), "r"(adds)                                                           \
                 : "memory")
#define FP8SIM_WGMMA_REGISTERS_WideF32(TEXT, LAST)                                                     \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %9, 0;\n\twgmma.mma_async.sync.aligned."  \
                 TEXT " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, adds, 1, 1" LAST ";\n\t}"              \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds)                       \
                 : "memory")
#define FP8SIM_WGMMA_REGISTERS_WideF16(TEXT, LAST)                                                     \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %7, 0;\n\twgmma.mma_async.sync.aligned."  \
                 TEXT " {%0, %1}, {%2, %3, %4, %5}, %6, adds, 1, 1" LAST ";\n\t}"                      \
                 : "+r"(d[0]), "+r"(d[1])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds)                       \
                 : "memory")

// 16-bit operands say, too, which of them is transposed: those in shared memory.
#define FP8SIM_BOTH_STRAIGHT ", 0, 0"
#define FP8SIM_B_STRAIGHT ", 0"
#define FP8SIM_NOT_SAID ""

// X(struct, shape, PTX shape, types of d, a, b, K, bytes of an operand, bytes of the accumulator, both, one)
#define FP8SIM_WGMMA_PAIR(X, A, B, a, b)                                                                 \
    X(A##B, WideF32, m64n8k32, f32, a, b, 32, 1, 4, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)                    \
    X(A##B##ToF16, WideF16, m64n8k32, f16, a, b, 32, 1, 2, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)
#define FP8SIM_WGMMA(X)                                                                                  \
    X(F16, WideF32, m64n8k16, f32, f16, f16, 16, 2, 4, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)          \
    X(F16ToF16, WideF16, m64n8k16, f16, f16, f16, 16, 2, 2, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)     \
    X(Bf16, WideF32, m64n8k16, f32, bf16, bf16, 16, 2, 4, FP8SIM_BOTH_STRAIGHT, FP8SIM_B_STRAIGHT)       \
    X(Tf32, WideF32, m64n8k8, f32, tf32, tf32, 8, 4, 4, FP8SIM_NOT_SAID, FP8SIM_NOT_SAID)                \
    FP8SIM_WGMMA_PAIR(X, E4m3, E4m3, e4m3, e4m3)                                                         \
    FP8SIM_WGMMA_PAIR(X, E4m3, E5m2, e4m3, e5m2)                                                         \
    FP8SIM_WGMMA_PAIR(X, E5m2, E4m3, e5m2, e4m3)                                                         \
    FP8SIM_WGMMA_PAIR(X, E5m2, E5m2, e5m2, e5m2)

#define FP8SIM_WGMMA_STRUCT(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE)                 \
    struct Wgmma##NAME : SHAPE {                                                                         \
        __device__ static void run(Register(&d)[kRegistersD], uint64_t a, uint64_t b, int adds) {        \
            FP8SIM_WGMMA_##SHAPE(#PTX "." #D "." #A "." #B, "1", BOTH);                                  \
        }                                                                                                \
        __device__ static void run_negated(Register(&d)[kRegistersD], uint64_t a, uint64_t b, int adds) { \
            FP8SIM_WGMMA_##SHAPE(#PTX "." #D "." #A "." #B, "-1", BOTH);                                 \
        }                                                                                                \
        __device__ static void run(Register(&d)[kRegistersD], const uint32_t(&a)[4], uint64_t b, int adds) { \
            FP8SIM_WGMMA_REGISTERS_##SHAPE(#PTX "." #D "." #A "." #B, ONE);                              \
        }                                                                                                \
    };

#define FP8SIM_WGMMA_ABSENT(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE) \
    struct Wgmma##NAME : SHAPE {};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
FP8SIM_WGMMA(FP8SIM_WGMMA_STRUCT)

// Rows of `words` words to the shared memory of `steps` instructions, `bytes` for each.
template <int rows, int bytes>
__device__ void stage(unsigned char* target, const uint32_t* source, int steps) {
    const int words = steps * kRowWords;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * words; i += kThreads) {
        const int row = i / words, word = i % words;
        unsigned char* place = target + word / kRowWords * bytes + core_offset(row, word % kRowWords * 4);
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

template <class Op, ProbeVariant variant>
__device__ void chain_from_shared(typename Op::Register (&sum)[Op::kRegistersD], uint32_t left, uint32_t right,
                                  bool adds, int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const uint64_t a = core_descriptor(left + step * kBytesA), b = core_descriptor(right + step * kBytesB);
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
template <class Op>
__device__ void chain_from_registers(typename Op::Register (&sum)[Op::kRegistersD], const uint32_t* a, uint32_t right,
                                     bool adds, int steps) {
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
        Op::run(sum, fragment, core_descriptor(right + step * kBytesB), adds || step > 0);
        wgmma_finish(sum);
    }
}

template <class Op, ProbeVariant variant>
__device__ void wgmma_cases(const uint32_t* a, const uint32_t* b, const typename Op::Register* c,
                            typename Op::Register* d, int64_t cases, int steps) {
    __shared__ __align__(1024) unsigned char left[kMostProbeSteps * kBytesA], right[kMostProbeSteps * kBytesB];
    const uint32_t left_address = static_cast<uint32_t>(__cvta_generic_to_shared(left));
    const uint32_t right_address = static_cast<uint32_t>(__cvta_generic_to_shared(right));
    const int lane = threadIdx.x % kLanes, warp_row = threadIdx.x / kLanes * 16, width = steps * kRowWords;
    for (int64_t i = blockIdx.x; i < cases; i += gridDim.x) {
        stage<kRowsA, kBytesA>(left, a + i * kRowsA * width, steps);
        stage<kRowsB, kBytesB>(right, b + i * kRowsB * width, steps);
        shared_fence();
        __syncthreads();
        typename Op::Register sum[Op::kRegistersD];
        const int64_t result = i * kRowsA * Op::kWordsD;
#pragma unroll
        for (int r = 0; r < Op::kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            sum[r] = c == nullptr ? typename Op::Register(1) : c[result + (warp_row + at.row) * Op::kWordsD + at.word];
        }
        if constexpr (variant == ProbeVariant::kRegisters) {
            chain_from_registers<Op>(sum, a + (i * kRowsA + warp_row) * width, right_address, c != nullptr, steps);
        } else {
            chain_from_shared<Op, variant>(sum, left_address, right_address, c != nullptr, steps);
        }
#pragma unroll
        for (int r = 0; r < Op::kRegistersD; ++r) {
            const WordPlace at = fragment_d(lane, r, Op::kPacked);
            d[result + (warp_row + at.row) * Op::kWordsD + at.word] = sum[r];
        }
        __syncthreads();
    }
}
#else
FP8SIM_WGMMA(FP8SIM_WGMMA_ABSENT)

template <class Op, ProbeVariant variant>
__device__ void wgmma_cases(const uint32_t*, const uint32_t*, const typename Op::Register*, typename Op::Register*,
                            int64_t, int) {
    refuse_on_this_device();
}
#endif

template <class Op, ProbeVariant variant>
__global__ void __launch_bounds__(kThreads)
    wgmma_kernel(const uint32_t* a, const uint32_t* b, const typename Op::Register* c, typename Op::Register* d,
                 int64_t cases, int steps) {
    wgmma_cases<Op, variant>(a, b, c, d, cases, steps);
}

// Launches, and the table of all instructions.

unsigned blocks_for(int64_t cases, int cases_in_block) {
    const int64_t wanted = (cases - 1) / cases_in_block + 1;
    return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
}

template <class Op>
void launch_mma(const ProbeJob& job, cudaStream_t stream) {
    using Word = typename Op::Word;
    using Register = typename Op::Register;
    mma_kernel<Op><<<blocks_for(job.cases, kThreads / kLanes), kThreads, 0, stream>>>(
        static_cast<const Word*>(job.a), static_cast<const Word*>(job.b), static_cast<const Register*>(job.c),
        static_cast<Register*>(job.d), job.cases, job.steps);
}

template <class Op, ProbeVariant variant>
void launch_variant(const ProbeJob& job, cudaStream_t stream) {
    using Register = typename Op::Register;
    wgmma_kernel<Op, variant><<<blocks_for(job.cases, 1), kThreads, 0, stream>>>(
        static_cast<const uint32_t*>(job.a), static_cast<const uint32_t*>(job.b), static_cast<const Register*>(job.c),
        static_cast<Register*>(job.d), job.cases, job.steps);
}

template <class Op>
void launch_wgmma(const ProbeJob& job, cudaStream_t stream) {
    switch (job.variant) {
        case ProbeVariant::kShared: return launch_variant<Op, ProbeVariant::kShared>(job, stream);
        case ProbeVariant::kRegisters: return launch_variant<Op, ProbeVariant::kRegisters>(job, stream);
        case ProbeVariant::kNegated: return launch_variant<Op, ProbeVariant::kNegated>(job, stream);
    }
}

#define FP8SIM_MMA_ROW(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY) \
    {"mma." #PTX "." #D "." #A "." #B "." #D,                                       \
     "Mma" #NAME,                                                                    \
     SHAPE::kM,                                                                      \
     SHAPE::kN,                                                                      \
     K,                                                                              \
     BYTES,                                                                          \
     ACCUMULATOR,                                                                    \
     CAPABILITY,                                                                     \
     true,                                                                           \
     false},
#define FP8SIM_WGMMA_ROW(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE) \
    {"wgmma." #PTX "." #D "." #A "." #B, "Wgmma" #NAME, kRowsA, kRowsB, K, BYTES, ACCUMULATOR, 90, false, true},
#define FP8SIM_MMA_LAUNCH(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, CAPABILITY) launch_mma<Mma##NAME>,
#define FP8SIM_WGMMA_LAUNCH(NAME, SHAPE, PTX, D, A, B, K, BYTES, ACCUMULATOR, BOTH, ONE) launch_wgmma<Wgmma##NAME>,
#define FP8SIM_EVERY(MMA, WGMMA) FP8SIM_MMA_HALF(MMA) FP8SIM_MMA_FP8(MMA) FP8SIM_MMA_F64(MMA) FP8SIM_WGMMA(WGMMA)

constexpr ProbeInstruction kInstructions[] = {
    FP8SIM_EVERY(FP8SIM_MMA_ROW, FP8SIM_WGMMA_ROW){nullptr, nullptr, 0, 0, 0, 0, 0, 0, false, false}};

using Launch = void (*)(const ProbeJob&, cudaStream_t);
constexpr Launch kLaunches[] = {FP8SIM_EVERY(FP8SIM_MMA_LAUNCH, FP8SIM_WGMMA_LAUNCH)};

}  // namespace

const ProbeInstruction* probe_instructions() { return kInstructions; }

CudaStatus device_capability(int* capability) {
    int device = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *capability = 10 * major + minor;
    return status_of(error);
}

CudaStatus launch_probe(const ProbeJob& job, uintptr_t stream) {
    kLaunches[job.instruction](job, reinterpret_cast<cudaStream_t>(stream));
    return status_of(cudaGetLastError());
}

}  // namespace fp8sim
