// binary16 and bfloat16 as dtypes: to binary32, which is exact, and back, rounded to nearest even.
//
// What comes back is a number of some format, or the quiet NaN without payload, so NaN needs no care.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "cpu/cast_stages.hpp"

namespace fp8sim {
namespace {

FP8SIM_LOOP widen_loop(Bfloat16, const uint16_t* from, uint32_t* to, int64_t count) {
    map_lanes<uint32_t>(from, to, count, [](Lanes<uint32_t> bits, int64_t) FP8SIM_INLINE { return bits << 16; });
}

// Carries out of the fraction go to the next binade, out of the last one to infinity.
FP8SIM_LOOP narrow_loop(Bfloat16, const uint32_t* from, uint16_t* to, int64_t count) {
    map_lanes<uint32_t>(from, to, count, [](Lanes<uint32_t> bits, int64_t) FP8SIM_INLINE {
        const Lanes<uint32_t> odd = (bits >> 16) & 1;
        return (bits + 0x7FFF + odd) >> 16;
    });
}

#if defined(__AVX2__)
// The instructions know no other binary16 than IEEE 754's, and heed neither flushing nor the rounding mode.
FP8SIM_HD Lanes<uint32_t> load_binary16(const uint16_t* from) {
#if defined(__AVX512F__)
    return bit_cast<Lanes<uint32_t>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    return bit_cast<Lanes<uint32_t>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
}

FP8SIM_HD void store_binary16(uint16_t* to, Lanes<uint32_t> bits) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(bit_cast<__m512>(bits), kNearest));
#else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(bit_cast<__m256>(bits), kNearest));
#endif
}
#else
FP8SIM_HD Lanes<uint32_t> load_binary16(const uint16_t* from) {
    return decode<Span::kNormal>(load<uint32_t>(from), to_float16());
}

FP8SIM_HD void store_binary16(uint16_t* to, Lanes<uint32_t> bits) {
    const Lanes<uint32_t> none = {};
    store<uint32_t>(to, encode<Rounding::kTiesToEven, Reach::kWithin>(bits, to_float16(), none, 32));
}
#endif

FP8SIM_LOOP widen_loop(Float16, const uint16_t* from, uint32_t* to, int64_t count) {
    constexpr int kStep = kLanes<uint32_t>;
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) store<uint32_t>(to + i, load_binary16(from + i));
    uint16_t rest[kStep] = {};
    uint32_t wide[kStep];
    memcpy(rest, from + i, (count - i) * sizeof(uint16_t));
    store<uint32_t>(wide, load_binary16(rest));
    memcpy(to + i, wide, (count - i) * sizeof(uint32_t));
}

FP8SIM_LOOP narrow_loop(Float16, const uint32_t* from, uint16_t* to, int64_t count) {
    constexpr int kStep = kLanes<uint32_t>;
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) store_binary16(to + i, load<uint32_t>(from + i));
    uint32_t rest[kStep] = {};
    uint16_t narrow[kStep];
    memcpy(rest, from + i, (count - i) * sizeof(uint32_t));
    store_binary16(narrow, load<uint32_t>(rest));
    memcpy(to + i, narrow, (count - i) * sizeof(uint16_t));
}

}  // namespace
}  // namespace fp8sim
