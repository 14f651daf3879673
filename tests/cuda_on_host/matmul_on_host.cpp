// The kernels of csrc/cuda/matmul_*.cuh on a CPU, launched as csrc/cuda/matmul.cu does: whole clusters, as many as
// there are processors and tiles for.
#include "cuda/intrinsics.cuh"

#if FP8SIM_EMULATED_WGMMA
#include "cuda/matmul_wgmma.cuh"
#else
#include "cuda/matmul_mma.cuh"
#endif

namespace fp8sim {
namespace {

int clusters_for(const TileOrder& order, int processors, int blocks) {
    return static_cast<int>(std::min<int64_t>(processors / blocks, count_tiles(order)));
}

#if FP8SIM_EMULATED_WGMMA
void run(const MatmulJob& job, const on_host::Schedule& schedule) {
    for_wgmma_tile<WgmmaTile>(job, schedule.processors, [&](auto tile) {
        using Tile = decltype(tile);
        const Extent& e = job.extent;
        const Boxes a = boxes_of(job.a, e.m, e.k, e.batches, Tile::kRows, Tile::kDepth);
        const Boxes b = boxes_of(job.b, e.n, e.k, e.batches, Tile::kLoadedColumns, Tile::kDepth);
        const OneForAll one = {job.a.per_batch == 0, job.b.per_batch == 0};
        const int clusters = clusters_for(wgmma_order<Tile>(e), schedule.processors, Tile::kBlocks);
        on_host::run_grid(schedule, clusters, Tile::kBlocks, Tile::kThreads, Tile::kSharedBytes,
                          [&] { matmul_wgmma_kernel<Tile>(a, b, e, one, job.epilogue); });
    });
}
#else
void run(const MatmulJob& job, const on_host::Schedule& schedule) {
    for_operands(job.a.type, job.b.type, [&](auto a, auto b) {
        using Tile = MmaTile<decltype(a), decltype(b)>;
        const int blocks = clusters_for(mma_order<Tile>(job.extent), schedule.processors, 1);
        on_host::run_grid(schedule, blocks, 1, Tile::kThreads, Tile::kSharedBytes,
                          [&] { matmul_mma_kernel<Tile>(job.a, job.b, job.extent, job.epilogue); });
    });
}
#endif

}  // namespace
}  // namespace fp8sim

extern "C" int matmul_on_host(const fp8sim::MatmulJob* job, const fp8sim::MmaModel* model,
                              const on_host::Schedule* schedule, char* error, size_t size) {
    fp8sim::model = *model;
    return on_host::report([&] { fp8sim::run(*job, *schedule); }, error, size);
}

extern "C" void lose_copies(int lost) { on_host::copies_are_lost = lost != 0; }

extern "C" void tile_on_host(const fp8sim::TileOrder* order, int64_t index, int* place) {
    const fp8sim::TilePlace at = fp8sim::tile_at(*order, index);
    place[0] = at.batch, place[1] = at.m, place[2] = at.n;
}

extern "C" uint64_t descriptor_on_host(uint32_t address) { return fp8sim::matrix_descriptor(address); }
