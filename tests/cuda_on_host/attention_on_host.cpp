// The kernels of csrc/cuda/attention_*.cuh on a CPU, launched as csrc/cuda/attention.cu does.
#include "cuda/attention_intrinsics.cuh"

#if FP8SIM_EMULATED_WGMMA
#include "cuda/attention_wgmma.cuh"
#else
#include "cuda/attention_mma.cuh"
#endif

namespace fp8sim {
namespace {

#if FP8SIM_EMULATED_WGMMA
void run(const AttentionJob& job, const on_host::Schedule& schedule) {
    for_attention_tile<AttentionWgmmaTile>(job, [&](auto tile) {
        using Tile = decltype(tile);
        const AttentionBoxes boxes = attention_boxes<Tile>(job);
        on_host::run_grid(schedule, static_cast<int>(attention_blocks<Tile>(job.extent)), 1, Tile::kThreads,
                          Tile::kSharedBytes,
                          [&] { attention_wgmma_kernel<Tile>(boxes.q, boxes.k, boxes.v, job); });
    });
}
#else
void run(const AttentionJob& job, const on_host::Schedule& schedule) {
    for_attention_tile<AttentionMmaTile>(job, [&](auto tile) {
        using Tile = decltype(tile);
        on_host::run_grid(schedule, static_cast<int>(attention_blocks<Tile>(job.extent)), 1, Tile::kThreads,
                          Tile::kSharedBytes, [&] { attention_mma_kernel<Tile>(job); });
    });
}
#endif

}  // namespace
}  // namespace fp8sim

extern "C" int attention_on_host(const fp8sim::AttentionJob* job, const fp8sim::MmaModel* model,
                                 const on_host::Schedule* schedule, char* error, size_t size) {
    fp8sim::model = *model;
    return on_host::report([&] { fp8sim::run(*job, *schedule); }, error, size);
}

extern "C" int attention_block_on_host(int features, int capability) {
    return fp8sim::attention_block(features, capability);
}
