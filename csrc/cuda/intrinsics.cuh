// The GPU's instructions that the matrix products are made of, each as a function that does nothing else.
//
// Shared memory is addressed by 32 bits, as the instructions take it. What needs sm_90a may be called only where
// FP8SIM_HAS_WGMMA is 1. Tests put a file of this name in front that does the same on a CPU.
#pragma once

#include <cuda.h>

#include <cstdint>

#define FP8SIM_DEVICE static __device__ __forceinline__

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FP8SIM_HAS_WGMMA 1
#else
#define FP8SIM_HAS_WGMMA 0
#endif

namespace fp8sim {

using TensorMap = CUtensorMap;

// Who runs, and where.

FP8SIM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FP8SIM_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
FP8SIM_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
FP8SIM_DEVICE void block_sync() { __syncthreads(); }
FP8SIM_DEVICE void warp_sync() { __syncwarp(); }

// Waits for the `threads` threads that meet at barrier `id`, 1 to 15.
FP8SIM_DEVICE void threads_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The largest of a warp's values, in every lane.
FP8SIM_DEVICE uint32_t warp_max(uint32_t value) { return __reduce_max_sync(0xFFFFFFFFu, value); }

FP8SIM_DEVICE void atomic_max(uint32_t* address, uint32_t value) { atomicMax(address, value); }

FP8SIM_DEVICE uint32_t shared_memory() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

FP8SIM_DEVICE int rank_in_cluster() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}

FP8SIM_DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// Registers are lent to warpgroups that need more of them.
template <int registers>
FP8SIM_DEVICE void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
FP8SIM_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// Barriers in shared memory, 8 bytes each. A phase ends when all arrived and all announced bytes are there.

FP8SIM_DEVICE void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster.
FP8SIM_DEVICE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

FP8SIM_DEVICE void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier at the same place in the shared memory of the cluster's block `rank`. What has to be over before
// are products, which were waited for: a release to the whole cluster would wait for all memory instead.
FP8SIM_DEVICE void barrier_arrive(uint32_t barrier, int rank) {
    asm volatile(
        "{\n\t.reg .b32 remote;\n\t"
        "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Waits until the phase of this parity has ended; a new barrier is in phase 0, and the one before it has ended.
FP8SIM_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t ended = 0;
    while (ended == 0) {
        asm volatile(
            "{\n\t.reg .pred ended;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, ended;\n\t}"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// The copy engine: a box of a tensor [batch, row, k] to shared memory of this block, or to that place in every block of
// `blocks`, a mask of ranks in the cluster; the barrier at `barrier` in each of them counts its bytes.

FP8SIM_DEVICE void load_box(uint32_t target, const TensorMap& map, int k, int row, int batch, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
            "r"(target),
        "l"(&map), "r"(k), "r"(row), "r"(batch), "r"(barrier)
        : "memory");
}

FP8SIM_DEVICE void load_box_to_blocks(uint32_t target, const TensorMap& map, int k, int row, int batch,
                                      uint32_t barrier, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(target),
        "l"(&map), "r"(k), "r"(row), "r"(batch), "r"(barrier), "h"(blocks)
        : "memory");
}

// Products of a warpgroup run on their own until it waits for them.

FP8SIM_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FP8SIM_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Names registers at this place, so that the compiler neither reads them earlier nor gives them to others before.
template <int registers>
FP8SIM_DEVICE void hold(float (&values)[registers]) {
#pragma unroll
    for (int i = 0; i < registers; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int registers>
FP8SIM_DEVICE void hold(uint32_t (&words)[registers]) {
#pragma unroll
    for (int i = 0; i < registers; ++i) asm volatile("" : "+r"(words[i])::"memory");
}

// Waits until at most `pending` committed groups still run. `arrays` are registers of those that are over.
template <int pending, class... Arrays>
FP8SIM_DEVICE void wgmma_wait(Arrays&... arrays) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
    (hold(arrays), ...);
}

// Copies of 16 bytes to shared memory that run on their own; `bytes` of them are read, the rest is zero.

FP8SIM_DEVICE void copy_chunk(uint32_t target, const void* source, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes) : "memory");
}

FP8SIM_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int pending>
FP8SIM_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

FP8SIM_DEVICE uint32_t load_shared_32(uint32_t address) {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
    return word;
}

FP8SIM_DEVICE uint32_t load_shared_16(uint32_t address) {
    uint16_t word;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(word) : "r"(address));
    return word;
}

FP8SIM_DEVICE void store_shared_pair(uint32_t address, float first, float second) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(first), "f"(second) : "memory");
}

FP8SIM_DEVICE void load_shared_quad(uint32_t address, float (&to)[4]) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
                 : "r"(address)
                 : "memory");
}

// Products of a warp, m16n8k16: sum += a * b.

FP8SIM_DEVICE void mma_float16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FP8SIM_DEVICE void mma_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two binary16 numbers times two others, each product rounded, ties to even; subnormals stay.
FP8SIM_DEVICE uint32_t multiply_halves(uint32_t x, uint32_t y) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
    return product;
}

// The nearest binary16 and bfloat16 numbers of two, ties to even, overflow to infinity, the first one in the lower half. A
// NaN may be any.

FP8SIM_DEVICE uint32_t round_to_float16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

FP8SIM_DEVICE uint32_t round_to_bfloat16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Of one; every NaN is the positive quiet one.
FP8SIM_DEVICE uint32_t round_to_float16(float x) { return x != x ? 0x7E00u : round_to_float16_pair(x, 0.0f); }
FP8SIM_DEVICE uint32_t round_to_bfloat16(float x) { return x != x ? 0x7FC0u : round_to_bfloat16_pair(x, 0.0f); }

// A binary16 number, exactly; a NaN may be any.
FP8SIM_DEVICE float widen_float16(uint16_t half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}

}  // namespace fp8sim
