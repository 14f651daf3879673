// The kernels of csrc/cuda/encode_scaled.cuh on a CPU.
#include "cuda/encode_scaled.cuh"

namespace fp8sim {
namespace {

void run(const EncodeScaledJob& job, const on_host::Schedule& schedule) {
    for_source(job, [&](auto from, auto mode) {
        using From = decltype(from);
        constexpr Mode kMode = decltype(mode)::kValue;
        const int blocks = schedule.processors;
        const int64_t size = job.matrices * job.rows * job.columns;
        const QuickRounding quick = quick_rounding_of(job.conversion);
        const bool aligned = moves_pieces<From, kMode>(job);
        if (job.transposed == nullptr) {
            on_host::run_grid(schedule, blocks, 1, kFlatThreads, 0,
                              [&] { encode_scaled_kernel<From, kMode>(job, quick, size, aligned); });
        } else {
            on_host::run_grid(schedule, blocks, 1, kTransposingThreads, 0, [&] {
                encode_transposing_kernel<From, kMode>(job, quick, tiling_of(job), aligned, turns_pieces(job));
            });
        }
    });
}

}  // namespace
}  // namespace fp8sim

extern "C" int encode_scaled_on_host(const fp8sim::EncodeScaledJob* job, const on_host::Schedule* schedule, char* error,
                                     size_t size) {
    return on_host::report([&] { fp8sim::run(*job, *schedule); }, error, size);
}
