// Random bits: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Key: the seed, low word first. Counter: words 0 and 1 are j, words 2 and 3 the stream, low words first. Element e of
// a tensor (row-major index plus offset, modulo 2^64) takes word (e / 16) mod 4 of counter j = 16 (e / 64) + e mod 16:
//
//     e       0..15   16..31   32..47   48..63 | 64..79 ...
//     j       0..15    0..15    0..15    0..15 | 16..31 ...
//     word      0        1        2        3   |    0   ...
//
// so sixteen lanes compute sixteen counters side by side and store their four words as 64 consecutive elements.
#pragma once

#include <cstdint>

#include "core/format.hpp"

namespace fp8sim {

struct PhiloxState {
    uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

FP8SIM_HD PhiloxState philox(PhiloxState counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * counter.word[0];
        const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * counter.word[2];
        counter = PhiloxState{{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                               static_cast<uint32_t>(product1),
                               static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                               static_cast<uint32_t>(product0)}};
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
    return counter;
}

FP8SIM_HD PhiloxState philox_counter(uint64_t j, uint64_t stream) {
    return PhiloxState{{static_cast<uint32_t>(j), static_cast<uint32_t>(j >> 32), static_cast<uint32_t>(stream),
                        static_cast<uint32_t>(stream >> 32)}};
}

// The 32 random bits of one element.
FP8SIM_HD uint32_t random_word(uint64_t seed, uint64_t stream, uint64_t element) {
    const uint64_t j = 16 * (element / 64) + element % 16;
    const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    const PhiloxState words = philox(philox_counter(j, stream), key0, key1);
    return words.word[(element / 16) % 4];
}

// R: the high `random_bits` bits (1 to 32) of a random word, as rounding takes them.
FP8SIM_HD uint32_t random_integer(uint32_t word, int random_bits) { return word >> (32 - random_bits); }

// What stochastic modes draw: the random integer of element e of a tensor is that of element e + offset of the stream.
struct RandomBits {
    uint64_t seed;
    uint64_t stream;
    uint64_t offset;
    int count;  // bits per element, 1 to 32
};

}  // namespace fp8sim
