// Vectors as words: GCC's and Clang's vector types, as wide as the instruction set of the file that includes this.
//
// The arithmetic of csrc/core works on them as it does on scalars, so a loop is vector code by construction; nothing
// depends on what the compiler recognises.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
// GCC 12 finds its own "undefined" registers uninitialized.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "core/rounding.hpp"

// Lambdas are functions of their own, and must be part of the loop that calls them.
#define FP8SIM_INLINE __attribute__((always_inline))

namespace fp8sim {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Element, int count>
struct VectorOf {
    typedef Element type __attribute__((vector_size(count * sizeof(Element))));
};

template <class Element>
constexpr int kLanes = kVectorBytes / sizeof(Element);

// `Lanes<uint32_t>` is a register of binary32 bits.
template <class Element>
using Lanes = typename VectorOf<Element, kLanes<Element>>::type;

}  // namespace

template <>
struct WordTypes<Lanes<uint32_t>> {
    using Element = uint32_t;
    using Int = Lanes<int32_t>;
    using Float = Lanes<float>;
};

template <>
struct WordTypes<Lanes<uint64_t>> {
    using Element = uint64_t;
    using Int = Lanes<int64_t>;
    using Float = Lanes<double>;
};

namespace {

#if defined(__AVX2__)
// The first 4, 8 or 16 bytes of a register.
template <int bytes>
FP8SIM_HD __m128i load_bytes(const void* from) {
    if constexpr (bytes == 4) {
        int32_t word;
        memcpy(&word, from, sizeof(word));
        return _mm_cvtsi32_si128(word);
    } else if constexpr (bytes == 8) {
        return _mm_loadl_epi64(static_cast<const __m128i*>(from));
    } else {
        return _mm_loadu_si128(static_cast<const __m128i*>(from));
    }
}

// GCC 12 widens from less than a register element by element, and there are instructions for it.
template <class Element, class Stored>
FP8SIM_HD Lanes<Element> load_wider(const Stored* from) {
    constexpr int kFrom = sizeof(Stored), kTo = sizeof(Element);
    using Word = Lanes<Element>;
#if defined(__AVX512F__)
    if constexpr (2 * kFrom == kTo) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        if constexpr (kTo == 8) return bit_cast<Word>(_mm512_cvtepu32_epi64(half));
        else return bit_cast<Word>(_mm512_cvtepu16_epi32(half));
    } else {
        const __m128i low = load_bytes<kLanes<Element> * kFrom>(from);
        if constexpr (kTo == 4) return bit_cast<Word>(_mm512_cvtepu8_epi32(low));
        else if constexpr (kFrom == 2) return bit_cast<Word>(_mm512_cvtepu16_epi64(low));
        else return bit_cast<Word>(_mm512_cvtepu8_epi64(low));
    }
#else
    const __m128i low = load_bytes<kLanes<Element> * kFrom>(from);
    if constexpr (kTo == 4 && kFrom == 1) return bit_cast<Word>(_mm256_cvtepu8_epi32(low));
    else if constexpr (kTo == 4) return bit_cast<Word>(_mm256_cvtepu16_epi32(low));
    else if constexpr (kFrom == 1) return bit_cast<Word>(_mm256_cvtepu8_epi64(low));
    else if constexpr (kFrom == 2) return bit_cast<Word>(_mm256_cvtepu16_epi64(low));
    else return bit_cast<Word>(_mm256_cvtepu32_epi64(low));
#endif
}
#endif

// As many elements as a word of `Element` has lanes, widened from what memory holds.
template <class Element, class Stored>
FP8SIM_HD Lanes<Element> load(const Stored* from) {
#if defined(__AVX2__)
    if constexpr (sizeof(Element) > sizeof(Stored)) return load_wider<Element>(from);
#endif
    typename VectorOf<Stored, kLanes<Element>>::type stored;
    memcpy(&stored, from, sizeof(stored));
    return __builtin_convertvector(stored, Lanes<Element>);
}

// The low bits of each lane.
template <class Element, class Stored>
FP8SIM_HD void store(Stored* to, Lanes<Element> lanes) {
    using Narrow = typename VectorOf<Stored, kLanes<Element>>::type;
    const Narrow narrow = __builtin_convertvector(lanes, Narrow);
    memcpy(to, &narrow, sizeof(narrow));
}

// A register of narrow codes from as many words as fill it: packing works within 128-bit parts, whence the permutation.
// Storing word by word takes twice the time.
FP8SIM_HD void store_register(uint16_t* to, const Lanes<uint32_t> (&words)[2]) {
#if defined(__AVX512BW__)
    const __m512i packed = _mm512_packus_epi32(bit_cast<__m512i>(words[0]), bit_cast<__m512i>(words[1]));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed));
#elif defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(words[0]), bit_cast<__m256i>(words[1]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xD8));  // 0, 2, 1, 3
#else
    for (int word = 0; word < 2; ++word) store<uint32_t>(to + word * kLanes<uint32_t>, words[word]);
#endif
}

#if defined(__AVX512BW__)
constexpr bool kHasSignedBytes = true;
using Register = __m512i;

// Bytes of the words' lanes, out of order, as `in_order` expects them; the sign bits of words alike.
FP8SIM_HD Register bytes_of(const Lanes<uint32_t> (&words)[4]) {
    const __m512i low = _mm512_packus_epi32(bit_cast<__m512i>(words[0]), bit_cast<__m512i>(words[1]));
    const __m512i high = _mm512_packus_epi32(bit_cast<__m512i>(words[2]), bit_cast<__m512i>(words[3]));
    return _mm512_packus_epi16(low, high);
}

FP8SIM_HD Register signs_of(const Lanes<uint32_t> (&words)[4], int shift) {
    const __m512i low = _mm512_packs_epi32(bit_cast<__m512i>(words[0]), bit_cast<__m512i>(words[1]));
    const __m512i high = _mm512_packs_epi32(bit_cast<__m512i>(words[2]), bit_cast<__m512i>(words[3]));
    const __m512i signs = _mm512_and_si512(_mm512_packs_epi16(low, high), _mm512_set1_epi8(-128));
    return _mm512_srl_epi16(signs, _mm_cvtsi32_si128(shift));
}

FP8SIM_HD void store_bytes(uint8_t* to, Register bytes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, bytes));
}
#elif defined(__AVX2__)
constexpr bool kHasSignedBytes = true;
using Register = __m256i;

FP8SIM_HD Register bytes_of(const Lanes<uint32_t> (&words)[4]) {
    const __m256i low = _mm256_packus_epi32(bit_cast<__m256i>(words[0]), bit_cast<__m256i>(words[1]));
    const __m256i high = _mm256_packus_epi32(bit_cast<__m256i>(words[2]), bit_cast<__m256i>(words[3]));
    return _mm256_packus_epi16(low, high);
}

FP8SIM_HD Register signs_of(const Lanes<uint32_t> (&words)[4], int shift) {
    const __m256i low = _mm256_packs_epi32(bit_cast<__m256i>(words[0]), bit_cast<__m256i>(words[1]));
    const __m256i high = _mm256_packs_epi32(bit_cast<__m256i>(words[2]), bit_cast<__m256i>(words[3]));
    const __m256i signs = _mm256_and_si256(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-128));
    return _mm256_srl_epi16(signs, _mm_cvtsi32_si128(shift));
}

FP8SIM_HD void store_bytes(uint8_t* to, Register bytes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, order));
}
#else
constexpr bool kHasSignedBytes = false;
#endif

FP8SIM_HD void store_register(uint8_t* to, const Lanes<uint32_t> (&words)[4]) {
#if defined(__AVX2__)
    store_bytes(to, bytes_of(words));
#else
    for (int word = 0; word < 4; ++word) store<uint32_t>(to + word * kLanes<uint32_t>, words[word]);
#endif
}

// to[i] = apply(from[i]) | its sign, which goes `sign_shift` places down, for as many as fill registers; their number.
// Packing takes the signs along for a third of what they cost in words.
template <class Apply>
FP8SIM_HD int64_t map_to_signed_bytes(const uint32_t* from, uint8_t* to, int64_t count, int sign_shift, Apply apply) {
    int64_t i = 0;
#if defined(__AVX2__)
    constexpr int kStep = kLanes<uint32_t>;
    for (; i + 4 * kStep <= count; i += 4 * kStep) {
        Lanes<uint32_t> x[4], words[4];
        for (int k = 0; k < 4; ++k) {
            x[k] = load<uint32_t>(from + i + k * kStep);
            words[k] = apply(x[k]);
        }
        store_bytes(to + i, bytes_of(words) | signs_of(x, sign_shift - 24));
    }
#endif
    return i;
}

// to[i] = apply(from[i]), a word at a time; the last lanes go through a buffer. `from` may be `to` itself. `apply` gets
// the index of the first lane besides.
template <class Element, class From, class To, class Apply>
FP8SIM_HD void map_lanes(const From* from, To* to, int64_t count, Apply apply) {
    constexpr int kStep = kLanes<Element>;
    int64_t i = 0;
    if constexpr (sizeof(Element) == 4 && sizeof(To) < 4) {
        constexpr int kWords = 4 / sizeof(To);
        for (; i + kWords * kStep <= count; i += kWords * kStep) {
            Lanes<uint32_t> words[kWords];
            for (int k = 0; k < kWords; ++k) words[k] = apply(load<Element>(from + i + k * kStep), i + k * kStep);
            store_register(to + i, words);
        }
    }
    for (; i + kStep <= count; i += kStep) store<Element>(to + i, apply(load<Element>(from + i), i));
    if (i == count) return;
    From rest[kStep] = {};
    To result[kStep];
    memcpy(rest, from + i, (count - i) * sizeof(From));
    store<Element>(result, apply(load<Element>(rest), i));
    memcpy(to + i, result, (count - i) * sizeof(To));
}

}  // namespace
}  // namespace fp8sim
