// The kernel of csrc/cuda/cast.cuh on a CPU, launched as csrc/cuda/cast.cu does.
#include "cuda/cast.cuh"

namespace fp8sim {
namespace {

struct Launch {
    const on_host::Schedule& schedule;

    template <class From, class To, Mode mode>
    int operator()(From, To, Constant<mode>, const CastJob& job) const {
        const auto* source = static_cast<const typename From::Storage*>(job.source);
        auto* target = static_cast<typename To::Storage*>(job.target);
        const RandomBits bits = {job.seed, job.stream, job.offset, job.random_bits};
        on_host::run_grid(schedule, schedule.processors, 1, kCastThreads, 0, [&] {
            convert_kernel<From, To, mode>(source, target, job.size, moves_packs<From, To, mode>(job), job.conversion,
                                           quick_rounding_of(job.conversion), bits);
        });
        return 0;
    }
};

}  // namespace
}  // namespace fp8sim

extern "C" int cast_on_host(const fp8sim::CastJob* job, const on_host::Schedule* schedule, char* error, size_t size) {
    return on_host::report([&] { fp8sim::dispatch(*job, fp8sim::Launch{*schedule}); }, error, size);
}
