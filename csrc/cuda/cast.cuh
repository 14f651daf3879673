// Casts, encodes and decodes on the GPU, in integer arithmetic, for every format, mode and policy; where ties go to even,
// finite numbers take the quick way of core/quick.hpp, which has the same bits.
//
// Assumes: `job` was checked by the bindings; source and target are device memory, aligned to their elements, equal or
// disjoint. One thread takes packs of neighbouring elements, each in one load and one store where the addresses allow it.
#pragma once

#include "core/quick.hpp"
#include "cuda/dispatch.hpp"
#include "cuda/intrinsics.cuh"
#include "cuda/quick_bits.cuh"

namespace fp8sim {

constexpr int kCastThreads = 256;

// Packs are for the modes that memory limits, 16 bytes of the wider type; in the others arithmetic does, and one element
// keeps the code small.
template <class From, class To>
constexpr int kWider = sizeof(typename From::Storage) > sizeof(typename To::Storage) ? sizeof(typename From::Storage)
                                                                                     : sizeof(typename To::Storage);
template <class From, class To, Mode mode>
constexpr int kPack = mode == Mode::kUsual ? 16 / kWider<From, To> : 1;

// Packs that a thread loads before it uses the first one, so that enough of memory is on its way.
template <Mode mode>
constexpr int kPacksAhead = mode == Mode::kUsual ? 2 : 1;

template <class T, int pack>
struct alignas(pack * sizeof(T)) Pack {
    T element[pack];
};

// A finite number on its way to its code, or cast and back in its own type. A bfloat16 number has no bits to lose on the
// way, a binary16 number may become one that is too large.
template <class Unsigned>
FP8SIM_DEVICE Unsigned quick_result(Codes<Unsigned>, uint32_t x, const QuickRounding& quick) {
    return static_cast<Unsigned>(quick_encode(x, quick));
}
FP8SIM_DEVICE uint32_t quick_result(Float32, uint32_t x, const QuickRounding& quick) { return quick_cast(x, quick); }
FP8SIM_DEVICE uint16_t quick_result(Bfloat16, uint32_t x, const QuickRounding& quick) {
    return static_cast<uint16_t>(quick_cast(x, quick) >> 16);
}
FP8SIM_DEVICE uint16_t quick_result(Float16, uint32_t x, const QuickRounding& quick) {
    return static_cast<uint16_t>(round_to_float16_pair(bit_cast<float>(quick_cast(x, quick)), 0.0f));
}

template <class From, Mode mode>
constexpr bool kHasQuickWay = mode == Mode::kUsual && !From::kIsCode && sizeof(typename From::Storage) <= 4;

template <class From, class To, Mode mode, int pack>
FP8SIM_DEVICE Pack<typename To::Storage, pack> convert_pack(const Pack<typename From::Storage, pack>& in,
                                                            const Conversion& c, const RandomBits& bits,
                                                            int64_t begin) {
    Pack<typename To::Storage, pack> out;
#pragma unroll
    for (int k = 0; k < pack; ++k) out.element[k] = convert<From, To, mode>(in.element[k], c, bits, begin + k);
    return out;
}

// Stores what the quick way gives, if all of them can take it; whether they did.
template <class From, class To, int pack>
FP8SIM_DEVICE bool convert_quickly(const Pack<typename From::Storage, pack>& in, const QuickRounding& quick,
                                   Pack<typename To::Storage, pack>* target) {
    uint32_t x[pack];
    bool all = true;
#pragma unroll
    for (int k = 0; k < pack; ++k) {
        x[k] = quick_bits(From{}, in.element[k]);
        all = all && takes_quick_way(x[k], quick);
    }
    if (!all) return false;
    Pack<typename To::Storage, pack> out;
#pragma unroll
    for (int k = 0; k < pack; ++k) out.element[k] = quick_result(To{}, x[k], quick);
    *target = out;
    return true;
}

template <class From, class To, Mode mode>
__global__ void __launch_bounds__(kCastThreads)
    convert_kernel(const typename From::Storage* source, typename To::Storage* target, int64_t size, bool aligned,
                   Conversion c, QuickRounding quick, RandomBits bits) {
    constexpr int pack = kPack<From, To, mode>, ahead = kPacksAhead<mode>;
    using In = Pack<typename From::Storage, pack>;
    using Out = Pack<typename To::Storage, pack>;
    constexpr int64_t apart = int64_t{pack} * kCastThreads;
    for (int64_t begin = ahead * apart * block_index() + pack * thread_index(); begin < size;
         begin += ahead * apart * block_count()) {
        if (aligned && begin + (ahead - 1) * apart + pack <= size) {
            In in[ahead];
#pragma unroll
            for (int i = 0; i < ahead; ++i) in[i] = *reinterpret_cast<const In*>(source + begin + i * apart);
#pragma unroll
            for (int i = 0; i < ahead; ++i) {
                Out* to = reinterpret_cast<Out*>(target + begin + i * apart);
                if constexpr (kHasQuickWay<From, mode>) {
                    if (convert_quickly<From, To>(in[i], quick, to)) continue;
                }
                *to = convert_pack<From, To, mode>(in[i], c, bits, begin + i * apart);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < ahead * pack; ++i) {
                const int64_t at = begin + i / pack * apart + i % pack;
                if (at < size) target[at] = convert<From, To, mode>(source[at], c, bits, at);
            }
        }
    }
}

template <class T>
bool is_aligned(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % alignof(T) == 0;
}

// Whether source and target may be moved by whole packs.
template <class From, class To, Mode mode>
bool moves_packs(const CastJob& job) {
    constexpr int pack = kPack<From, To, mode>;
    return is_aligned<Pack<typename From::Storage, pack>>(job.source) &&
           is_aligned<Pack<typename To::Storage, pack>>(job.target);
}

}  // namespace fp8sim
