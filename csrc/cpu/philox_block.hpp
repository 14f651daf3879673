// Random integers of a run of consecutive elements, sixteen counters side by side (`core/random.hpp` has the layout).
//
// Words live in 64-bit lanes: a widening multiplication reads the low halves only, so what is left in the high halves
// does no harm, and the high word of a product is one shift away.
#pragma once

#include <cstdint>

#include "core/random.hpp"
#include "cpu/lanes.hpp"

namespace fp8sim {
namespace {

constexpr int kPhiloxCounters = 16;
constexpr int kPhiloxGroup = 4 * kPhiloxCounters;  // elements that sixteen counters serve

using PhiloxLanes = Lanes<uint64_t>;

// The products of the low halves of each lane.
FP8SIM_HD PhiloxLanes multiply_low_halves(PhiloxLanes a, uint32_t b) {
    const PhiloxLanes factor = PhiloxLanes{} + b;
#if defined(__AVX512F__)
    return bit_cast<PhiloxLanes>(_mm512_mul_epu32(bit_cast<__m512i>(a), bit_cast<__m512i>(factor)));
#elif defined(__AVX2__)
    return bit_cast<PhiloxLanes>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(factor)));
#elif defined(__SSE2__)
    return bit_cast<PhiloxLanes>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(factor)));
#else
    return (a & 0xFFFFFFFFu) * factor;
#endif
}

FP8SIM_HD PhiloxLanes lane_numbers() {
    PhiloxLanes numbers = {};
    for (int lane = 0; lane < kLanes<uint64_t>; ++lane) numbers[lane] = lane;
    return numbers;
}

// The random integers of two neighbouring words, whose low halves come first in memory.
FP8SIM_HD void store_random(uint32_t* to, PhiloxLanes first, PhiloxLanes second, int random_bits) {
    Lanes<uint32_t> low_halves = {};
    for (int lane = 0; lane < kLanes<uint32_t>; ++lane) low_halves[lane] = 2 * lane;
    const auto a = bit_cast<Lanes<uint32_t>>(first), b = bit_cast<Lanes<uint32_t>>(second);
    store<uint32_t>(to, __builtin_shuffle(a, b, low_halves) >> (32 - random_bits));
}

// The 64 random integers of counters j0 to j0 + 15; j0 is a multiple of 16, so its high word is that of all of them.
FP8SIM_HD void philox_group(uint64_t j0, const RandomBits& random, uint32_t* to) {
    constexpr int kVectors = kPhiloxCounters / kLanes<uint64_t>;
    PhiloxLanes word0[kVectors], word1[kVectors], word2[kVectors], word3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        word0[v] = lane_numbers() + (j0 + v * kLanes<uint64_t>);
        word1[v] = PhiloxLanes{} + (j0 >> 32);
        word2[v] = PhiloxLanes{} + random.stream;
        word3[v] = PhiloxLanes{} + (random.stream >> 32);
    }
    uint32_t key0 = static_cast<uint32_t>(random.seed), key1 = static_cast<uint32_t>(random.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1) {
        for (int v = 0; v < kVectors; ++v) {
            const PhiloxLanes product0 = multiply_low_halves(word0[v], kPhiloxMultiplier0);
            const PhiloxLanes product1 = multiply_low_halves(word2[v], kPhiloxMultiplier1);
            word0[v] = (product1 >> 32) ^ word1[v] ^ key0;
            word1[v] = product1;
            word2[v] = (product0 >> 32) ^ word3[v] ^ key1;
            word3[v] = product0;
        }
    }
    for (int v = 0; v < kVectors; v += 2) {
        uint32_t* first = to + v * kLanes<uint64_t>;
        store_random(first, word0[v], word0[v + 1], random.count);
        store_random(first + kPhiloxCounters, word1[v], word1[v + 1], random.count);
        store_random(first + 2 * kPhiloxCounters, word2[v], word2[v + 1], random.count);
        store_random(first + 3 * kPhiloxCounters, word3[v], word3[v + 1], random.count);
    }
}

// Random integers of elements [begin, begin + count); the result points into `buffer`, which has room for the groups
// that they touch.
__attribute__((noinline)) const uint32_t* random_integers(
    int64_t begin, int count, RandomBits random, uint32_t* buffer) {
    constexpr uint64_t kCounters = uint64_t{1} << 62;  // as many serve 2^64 elements
    const uint64_t element = static_cast<uint64_t>(begin) + random.offset;
    const uint64_t first = element % kPhiloxGroup;
    uint32_t* to = buffer;
    for (uint64_t group = element / kPhiloxGroup; to < buffer + first + count; ++group, to += kPhiloxGroup) {
        philox_group(kPhiloxCounters * group % kCounters, random, to);
    }
    return buffer + first;
}

}  // namespace
}  // namespace fp8sim
