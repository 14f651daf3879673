// The kernels of csrc/cuda/matmul_*.cuh on a CPU, and their layouts and orders as functions for tests.
#include "cuda/intrinsics.cuh"

#include <cstdio>

#if FP8SIM_EMULATED_WGMMA
#include "cuda/matmul_wgmma.cuh"
#else
#include "cuda/matmul_mma.cuh"
#endif

namespace fp8sim {
namespace {

struct Schedule {
    int processors;
    int late;
    int backwards;
};

// As the launchers do: whole clusters, as many as there are processors and tiles for.
template <class Kernel>
void run_grid(const Schedule& schedule, int64_t tiles, int blocks, int threads, int shared_bytes, const Kernel& kernel) {
    const auto clusters = static_cast<int>(std::min<int64_t>(schedule.processors / blocks, tiles));
    for (int index = 0; index < clusters; ++index) {
        on_host::Cluster cluster;
        cluster.when = schedule.late ? on_host::When::kLate : on_host::When::kEarly;
        cluster.backwards = schedule.backwards;
        cluster.blocks_in_grid = clusters * blocks;
        cluster.kernel = kernel;
        for (int rank = 0; rank < blocks; ++rank) {
            auto block = std::make_unique<on_host::Block>();
            block->index = index * blocks + rank;
            block->rank = rank;
            block->memory.assign(shared_bytes, 0xFF);
            cluster.blocks.push_back(std::move(block));
        }
        on_host::run_cluster(cluster, threads);
    }
}

#if FP8SIM_EMULATED_WGMMA
void run(const MatmulJob& job, const Schedule& schedule) {
    for_wgmma_tile<WgmmaTile>(job, schedule.processors, [&](auto tile) {
        using Tile = decltype(tile);
        const Extent& e = job.extent;
        const Boxes a = boxes_of(job.a, e.m, e.k, e.batches, Tile::kRows, Tile::kDepth);
        const Boxes b = boxes_of(job.b, e.n, e.k, e.batches, Tile::kLoadedColumns, Tile::kDepth);
        const OneForAll one = {job.a.per_batch == 0, job.b.per_batch == 0};
        run_grid(schedule, count_tiles(wgmma_order<Tile>(e)), Tile::kBlocks, Tile::kThreads, Tile::kSharedBytes,
                 [&] { matmul_wgmma_kernel<Tile>(a, b, e, one, job.epilogue); });
    });
}
#else
void run(const MatmulJob& job, const Schedule& schedule) {
    for_operands(job.a.type, job.b.type, [&](auto a, auto b) {
        using Tile = MmaTile<decltype(a), decltype(b)>;
        run_grid(schedule, count_tiles(mma_order<Tile>(job.extent)), 1, Tile::kThreads, Tile::kSharedBytes,
                 [&] { matmul_mma_kernel<Tile>(job.a, job.b, job.extent, job.epilogue); });
    });
}
#endif

}  // namespace
}  // namespace fp8sim

// 0, or 1 with what went wrong in `error`.
extern "C" int matmul_on_host(const fp8sim::MatmulJob* job, const fp8sim::MmaModel* model,
                              const fp8sim::Schedule* schedule, char* error, size_t size) {
    try {
        fp8sim::model = *model;
        fp8sim::run(*job, *schedule);
        return 0;
    } catch (const std::exception& caught) {
        snprintf(error, size, "%s", caught.what());
        return 1;
    }
}
