#include "cpu/cast.hpp"

#include "cpu/float_environment.hpp"
#include "cpu/isa.hpp"
#include "cpu/parallel.hpp"

namespace fp8sim {
namespace {

// Elements that one thread takes at a time: a multiple of every block and vector.
constexpr int64_t kGrain = int64_t{1} << 15;

}  // namespace

CastLoops current_loops() {
    const Isa isa = current_isa();
#if defined(FP8SIM_HAVE_AVX512)
    if (isa == Isa::kAvx512) return cast_loops_avx512();
#endif
#if defined(FP8SIM_HAVE_AVX2)
    if (isa == Isa::kAvx2) return cast_loops_avx2();
#endif
    (void)isa;
    return cast_loops_portable();
}

void run(const CastJob& job) {
    const CastLoops loops = current_loops();
    parallel_for(job.size, kGrain, [&](int64_t begin, int64_t end) {
        const ScopedFloatEnvironment environment;
        loops.run(job, begin, end);
    });
}

void run(const LevelsJob& job) {
    const CastLoops loops = current_loops();
    parallel_for(job.size, kGrain, [&](int64_t begin, int64_t end) {
        const ScopedFloatEnvironment environment;
        loops.encode_levels(job, begin, end);
    });
}

void draw(uint32_t* target, int64_t size, const RandomBits& random) {
    const CastLoops loops = current_loops();
    parallel_for(size, kGrain, [&](int64_t begin, int64_t end) { loops.draw(target, random, begin, end); });
}

}  // namespace fp8sim
