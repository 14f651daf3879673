#include "cpu/promote.hpp"

#include <cmath>
#include <cstring>

#include "cpu/float_environment.hpp"
#include "cpu/parallel.hpp"

namespace fp8sim {
namespace {

constexpr int64_t kGrain = int64_t{1} << 15;

// GPUs return one NaN, with all bits but the sign set.
inline float with_one_nan(float x) {
    constexpr uint32_t kNan = 0x7fffffff;
    float nan;
    std::memcpy(&nan, &kNan, sizeof(nan));
    return x == x ? x : nan;
}

template <Factors factors, Addition addition>
inline __attribute__((always_inline)) void promote_row(const PromoteJob& job, int64_t i) {
    float* __restrict target = job.target + i * job.n;
    const float* partial = job.partial + i * job.n;
    const float* column = job.column;
    const float row = factors == Factors::kNone ? 1.0f : job.row[i];
    for (int64_t j = 0; j < job.n; ++j) {
        float left = partial[j], right = 1.0f;
        if (factors == Factors::kSuccessive) left = partial[j] * row, right = column[j];
        if (factors == Factors::kProduct) left = row * column[j], right = partial[j];
        if (addition == Addition::kFused && factors != Factors::kNone) {
            target[j] = with_one_nan(std::fma(left, right, target[j]));
        } else {
            const float scaled = factors == Factors::kNone ? left : left * right;
            target[j] = with_one_nan(addition == Addition::kNone ? scaled : target[j] + scaled);
        }
    }
}

template <Factors factors, Addition addition>
void promote_rows(const PromoteJob& job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) promote_row<factors, addition>(job, i);
}

#if defined(__x86_64__)
// The same with the processor's FMA instruction, where the C library's function is a call for each element.
template <Factors factors, Addition addition>
__attribute__((target("avx2,fma"))) void promote_rows_fma(const PromoteJob& job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) promote_row<factors, addition>(job, i);
}

bool has_fma() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

template <Factors factors, Addition addition>
void promote(const PromoteJob& job) {
    auto rows = promote_rows<factors, addition>;
#if defined(__x86_64__)
    if (has_fma()) rows = promote_rows_fma<factors, addition>;
#endif
    if (job.n == 0) return;
    const int64_t whole_rows = (kGrain + job.n - 1) / job.n * job.n;
    parallel_for(job.m * job.n, whole_rows, [&](int64_t begin, int64_t end) {
        const ScopedFloatEnvironment environment;
        rows(job, begin / job.n, end / job.n);
    });
}

template <Factors factors>
void run_with(const PromoteJob& job) {
    switch (job.addition) {
        case Addition::kNone: return promote<factors, Addition::kNone>(job);
        case Addition::kSeparate: return promote<factors, Addition::kSeparate>(job);
        case Addition::kFused: return promote<factors, Addition::kFused>(job);
    }
}

}  // namespace

void run(const PromoteJob& job) {
    switch (job.factors) {
        case Factors::kNone: return run_with<Factors::kNone>(job);
        case Factors::kSuccessive: return run_with<Factors::kSuccessive>(job);
        case Factors::kProduct: return run_with<Factors::kProduct>(job);
    }
}

}  // namespace fp8sim
