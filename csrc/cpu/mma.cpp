#include "cpu/mma.hpp"

#include "cpu/mma_portable.hpp"
#include "cpu/parallel.hpp"

namespace fp8sim {
namespace {

// Threads take rows; a row counts as its products.
void each_row(const MmaJob& job, int64_t grain, void (*body)(const MmaJob&, int64_t, int64_t)) {
    const int64_t products = job.n * (job.k + 1);
    if (products == 0) return;
    parallel_for(job.m * products, grain * products, [&](int64_t begin, int64_t end) {
        body(job, begin / products, end / products);
    });
}

}  // namespace

void run(const MmaJob& job) { each_row(job, 16, run_portable); }

}  // namespace fp8sim
