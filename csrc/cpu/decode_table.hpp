// Decoding of byte codes to binary32 by table.
//
// Nearly every number of 8 bits has its last 16 binary32 bits clear (all but some that binary32 has to round), so that
// 256 halves in eight registers are the table, and one instruction looks 64 of them up. Without such an instruction,
// arithmetic is as fast as loads wherever vectors have 256 bits.
#pragma once

#include <cstdint>

#include "cpu/cast_stages.hpp"

namespace fp8sim {
namespace {

constexpr int kByteCodes = 256;

struct DecodeTable {
    uint32_t number[kByteCodes];
    bool pays;
};

inline DecodeTable decode_table_of(const Conversion& c) {
    uint8_t codes[kByteCodes];
    for (int code = 0; code < kByteCodes; ++code) codes[code] = static_cast<uint8_t>(code);
    DecodeTable table;
    decode_stage<uint32_t>(codes, table.number, kByteCodes, c);
    uint32_t low_halves = 0;
    for (uint32_t number : table.number) low_halves |= number & 0xFFFF;
#if defined(__AVX512BW__)
    table.pays = low_halves == 0;
#elif defined(__AVX2__)
    table.pays = false;
#else
    table.pays = true;
#endif
    return table;
}

#if defined(__AVX512BW__)
// The high halves of the numbers of 32 codes in 16-bit lanes.
FP8SIM_HD __m512i look_up(const __m512i (&halves)[8], __m512i codes) {
    const __mmask32 bit6 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1 << 6));
    const __mmask32 bit7 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1 << 7));
    __m512i quarter[4];
    for (int q = 0; q < 4; ++q) quarter[q] = _mm512_permutex2var_epi16(halves[2 * q], codes, halves[2 * q + 1]);
    const __m512i lower = _mm512_mask_mov_epi16(quarter[0], bit6, quarter[1]);
    const __m512i upper = _mm512_mask_mov_epi16(quarter[2], bit6, quarter[3]);
    return _mm512_mask_mov_epi16(lower, bit7, upper);
}

// As many codes as can be decoded 32 at a time; the number of them.
FP8SIM_HD int64_t look_up_all(const uint8_t* codes, uint32_t* numbers, int64_t count, const DecodeTable& table) {
    constexpr int kStep = 32;
    __m512i halves[8];
    for (int k = 0; k < 8; ++k) {
        uint16_t part[kStep];
        for (int lane = 0; lane < kStep; ++lane) part[lane] = table.number[k * kStep + lane] >> 16;
        halves[k] = _mm512_loadu_si512(part);
    }
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
        const __m512i high = look_up(halves, _mm512_cvtepu8_epi16(bytes));
        const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(high));
        const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1));
        _mm512_storeu_si512(numbers + i, _mm512_slli_epi32(first, 16));
        _mm512_storeu_si512(numbers + i + kStep / 2, _mm512_slli_epi32(second, 16));
    }
    return i;
}
#else
FP8SIM_HD int64_t look_up_all(const uint8_t*, uint32_t*, int64_t, const DecodeTable&) { return 0; }
#endif

FP8SIM_LOOP decode_by_table(const uint8_t* codes, uint32_t* numbers, int64_t count, const DecodeTable& table) {
    for (int64_t i = look_up_all(codes, numbers, count, table); i < count; ++i) numbers[i] = table.number[codes[i]];
}

}  // namespace
}  // namespace fp8sim
