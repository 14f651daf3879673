// The vector instructions of matrix products, for AVX2 and AVX-512: W lanes of 32 bits, or 2 W of 16.
#pragma once

#include <cstdint>
#include <cstring>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "core/format.hpp"

namespace fp8sim {
namespace {

#if defined(__AVX512F__)

constexpr int kWidth = 16;
using Vec = __m512i;
using Mask = __mmask16;

FP8SIM_HD Vec load(const void* from) { return _mm512_load_si512(from); }
FP8SIM_HD Vec load_unaligned(const void* from) { return _mm512_loadu_si512(from); }
FP8SIM_HD void store(void* to, Vec x) { _mm512_storeu_si512(to, x); }
FP8SIM_HD Vec all(int32_t x) { return _mm512_set1_epi32(x); }
FP8SIM_HD Vec all16(int16_t x) { return _mm512_set1_epi16(x); }
FP8SIM_HD Vec add16(Vec a, Vec b) { return _mm512_add_epi16(a, b); }
FP8SIM_HD Vec sub16(Vec a, Vec b) { return _mm512_sub_epi16(a, b); }
FP8SIM_HD Vec max16(Vec a, Vec b) { return _mm512_max_epi16(a, b); }
FP8SIM_HD Vec mul16(Vec a, Vec b) { return _mm512_mullo_epi16(a, b); }
FP8SIM_HD Vec shift16(Vec a, Vec count) { return _mm512_srlv_epi16(a, count); }
FP8SIM_HD Vec multiply_pairs(Vec a, Vec b) { return _mm512_madd_epi16(a, b); }
FP8SIM_HD Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
FP8SIM_HD Vec sub(Vec a, Vec b) { return _mm512_sub_epi32(a, b); }
FP8SIM_HD Vec larger_of(Vec a, Vec b) { return _mm512_max_epi32(a, b); }
FP8SIM_HD Vec magnitude(Vec a) { return _mm512_abs_epi32(a); }
FP8SIM_HD Vec both(Vec a, Vec b) { return _mm512_and_si512(a, b); }
FP8SIM_HD Vec either(Vec a, Vec b) { return _mm512_or_si512(a, b); }
FP8SIM_HD Vec differ(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
FP8SIM_HD Vec without(Vec a, Vec b) { return _mm512_andnot_si512(b, a); }
FP8SIM_HD Vec shift_by(Vec a, Vec count) { return _mm512_srlv_epi32(a, count); }
template <int count> FP8SIM_HD Vec left(Vec a) { return _mm512_slli_epi32(a, count); }
template <int count> FP8SIM_HD Vec right(Vec a) { return _mm512_srli_epi32(a, count); }
template <int count> FP8SIM_HD Vec right_signed(Vec a) { return _mm512_srai_epi32(a, count); }
FP8SIM_HD Vec exchange_halves(Vec a) { return _mm512_rol_epi32(a, 16); }
FP8SIM_HD Vec left_by(Vec a, int count) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(count)); }
FP8SIM_HD Mask equal(Vec a, Vec b) { return _mm512_cmpeq_epi32_mask(a, b); }
FP8SIM_HD Mask above(Vec a, Vec b) { return _mm512_cmpgt_epi32_mask(a, b); }
FP8SIM_HD Mask negative(Vec a) { return _mm512_movepi32_mask(a); }
FP8SIM_HD Vec choose(Mask mask, Vec yes, Vec no) { return _mm512_mask_blend_epi32(mask, no, yes); }
FP8SIM_HD Vec clear_where(Mask mask, Vec a) { return _mm512_maskz_mov_epi32(static_cast<Mask>(~mask), a); }
FP8SIM_HD Vec minus_where(Mask mask, Vec a) { return _mm512_mask_sub_epi32(a, mask, _mm512_setzero_si512(), a); }
FP8SIM_HD uint32_t bits_of(Mask mask) { return mask; }
FP8SIM_HD Mask mask_from(uint32_t bits) { return static_cast<Mask>(bits); }
FP8SIM_HD Mask any_of(Mask a, Mask b) { return a | b; }
FP8SIM_HD Mask all_of(Mask a, Mask b) { return a & b; }
FP8SIM_HD Mask except(Mask a, Mask b) { return a & static_cast<Mask>(~b); }

// Of a non-negative integer, rounded toward zero.
FP8SIM_HD Vec to_float(Vec a) {
    return _mm512_castps_si512(_mm512_cvt_roundepi32_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
}
FP8SIM_HD Vec through_binary16(Vec a) {
    const __m256i half = _mm512_cvtps_ph(_mm512_castsi512_ps(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_castps_si512(_mm512_cvtph_ps(half));
}
FP8SIM_HD Vec add_floats(Vec a, Vec b) {
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}
FP8SIM_HD Vec load_binary16(const uint16_t* from) {
    return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
FP8SIM_HD void store_binary16(uint16_t* to, Vec a) {
    const __m256i half = _mm512_cvtps_ph(_mm512_castsi512_ps(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
}

// sum + a0 * b0 + a1 * b1. The instruction is written out, because the file is compiled for processors without it.
template <bool has_dot>
FP8SIM_HD Vec add_dot(Vec sum, Vec a, Vec b) {
    if constexpr (!has_dot) return add(sum, multiply_pairs(a, b));
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

// Sums of terms whose signs are those of 16-bit lanes, -1 or 1.
struct SignedSum {
    Vec total;
    Vec negative;
};

FP8SIM_HD SignedSum no_terms() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }

FP8SIM_HD void add_terms(SignedSum& sum, Vec even, Vec odd, Vec signs) {
    const Mask even_negative = _mm512_test_epi32_mask(signs, all(0x8000)), odd_negative = negative(signs);
    sum.total = add(add(sum.total, even), odd);
    sum.negative = _mm512_mask_add_epi32(sum.negative, even_negative, sum.negative, even);
    sum.negative = _mm512_mask_add_epi32(sum.negative, odd_negative, sum.negative, odd);
}

FP8SIM_HD Vec value_of(const SignedSum& sum) { return sub(sum.total, left<1>(sum.negative)); }

#else

constexpr int kWidth = 8;
using Vec = __m256i;
using Mask = __m256i;

FP8SIM_HD Vec load(const void* from) { return _mm256_load_si256(static_cast<const Vec*>(from)); }
FP8SIM_HD Vec load_unaligned(const void* from) { return _mm256_loadu_si256(static_cast<const Vec*>(from)); }
FP8SIM_HD void store(void* to, Vec x) { _mm256_storeu_si256(static_cast<Vec*>(to), x); }
FP8SIM_HD Vec all(int32_t x) { return _mm256_set1_epi32(x); }
FP8SIM_HD Vec all16(int16_t x) { return _mm256_set1_epi16(x); }
FP8SIM_HD Vec add16(Vec a, Vec b) { return _mm256_add_epi16(a, b); }
FP8SIM_HD Vec sub16(Vec a, Vec b) { return _mm256_sub_epi16(a, b); }
FP8SIM_HD Vec max16(Vec a, Vec b) { return _mm256_max_epi16(a, b); }
FP8SIM_HD Vec mul16(Vec a, Vec b) { return _mm256_mullo_epi16(a, b); }
// There is no such instruction for 16 bits: the low halves and the high halves of 32-bit lanes apart.
FP8SIM_HD Vec shift16(Vec a, Vec count) {
    const Vec low_half = _mm256_set1_epi32(0xFFFF);
    const Vec low = _mm256_srlv_epi32(_mm256_and_si256(a, low_half), _mm256_and_si256(count, low_half));
    const Vec high = _mm256_srlv_epi32(a, _mm256_srli_epi32(count, 16));
    return _mm256_blend_epi16(low, high, 0xAA);
}
FP8SIM_HD Vec multiply_pairs(Vec a, Vec b) { return _mm256_madd_epi16(a, b); }
FP8SIM_HD Vec add(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
FP8SIM_HD Vec sub(Vec a, Vec b) { return _mm256_sub_epi32(a, b); }
FP8SIM_HD Vec larger_of(Vec a, Vec b) { return _mm256_max_epi32(a, b); }
FP8SIM_HD Vec magnitude(Vec a) { return _mm256_abs_epi32(a); }
FP8SIM_HD Vec both(Vec a, Vec b) { return _mm256_and_si256(a, b); }
FP8SIM_HD Vec either(Vec a, Vec b) { return _mm256_or_si256(a, b); }
FP8SIM_HD Vec differ(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
FP8SIM_HD Vec without(Vec a, Vec b) { return _mm256_andnot_si256(b, a); }
FP8SIM_HD Vec shift_by(Vec a, Vec count) { return _mm256_srlv_epi32(a, count); }
template <int count> FP8SIM_HD Vec left(Vec a) { return _mm256_slli_epi32(a, count); }
template <int count> FP8SIM_HD Vec right(Vec a) { return _mm256_srli_epi32(a, count); }
template <int count> FP8SIM_HD Vec right_signed(Vec a) { return _mm256_srai_epi32(a, count); }
FP8SIM_HD Vec exchange_halves(Vec a) { return _mm256_or_si256(_mm256_slli_epi32(a, 16), _mm256_srli_epi32(a, 16)); }
FP8SIM_HD Vec left_by(Vec a, int count) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(count)); }
FP8SIM_HD Mask equal(Vec a, Vec b) { return _mm256_cmpeq_epi32(a, b); }
FP8SIM_HD Mask above(Vec a, Vec b) { return _mm256_cmpgt_epi32(a, b); }
FP8SIM_HD Mask negative(Vec a) { return _mm256_srai_epi32(a, 31); }
FP8SIM_HD Vec choose(Mask mask, Vec yes, Vec no) { return _mm256_blendv_epi8(no, yes, mask); }
FP8SIM_HD Vec clear_where(Mask mask, Vec a) { return _mm256_andnot_si256(mask, a); }
FP8SIM_HD Vec minus_where(Mask mask, Vec a) { return _mm256_sub_epi32(_mm256_xor_si256(a, mask), mask); }
FP8SIM_HD uint32_t bits_of(Mask mask) { return _mm256_movemask_ps(_mm256_castsi256_ps(mask)); }
FP8SIM_HD Mask mask_from(uint32_t bits) {
    const Vec lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), lane), lane);
}
FP8SIM_HD Mask any_of(Mask a, Mask b) { return _mm256_or_si256(a, b); }
FP8SIM_HD Mask all_of(Mask a, Mask b) { return _mm256_and_si256(a, b); }
FP8SIM_HD Mask except(Mask a, Mask b) { return _mm256_andnot_si256(b, a); }

// Of a non-negative integer, rounded toward zero: the bits that binary32 has no room for go first.
FP8SIM_HD Vec to_float(Vec a) {
    Vec beyond = _mm256_srli_epi32(a, 24);
    beyond = _mm256_or_si256(beyond, _mm256_srli_epi32(beyond, 1));
    beyond = _mm256_or_si256(beyond, _mm256_srli_epi32(beyond, 2));
    beyond = _mm256_or_si256(beyond, _mm256_srli_epi32(beyond, 4));
    return _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_andnot_si256(beyond, a)));
}
FP8SIM_HD Vec through_binary16(Vec a) {
    const __m128i half = _mm256_cvtps_ph(_mm256_castsi256_ps(a), _MM_FROUND_TO_NEAREST_INT);
    return _mm256_castps_si256(_mm256_cvtph_ps(half));
}
FP8SIM_HD Vec add_floats(Vec a, Vec b) {
    return _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}
FP8SIM_HD Vec load_binary16(const uint16_t* from) {
    return _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FP8SIM_HD void store_binary16(uint16_t* to, Vec a) {
    const __m128i half = _mm256_cvtps_ph(_mm256_castsi256_ps(a), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
}

template <bool has_dot>
FP8SIM_HD Vec add_dot(Vec sum, Vec a, Vec b) {
    return add(sum, multiply_pairs(a, b));
}

struct SignedSum {
    Vec total;
};

FP8SIM_HD SignedSum no_terms() { return {_mm256_setzero_si256()}; }

FP8SIM_HD void add_terms(SignedSum& sum, Vec even, Vec odd, Vec signs) {
    const Vec terms = add(_mm256_sign_epi32(even, left<16>(signs)), _mm256_sign_epi32(odd, signs));
    sum.total = add(sum.total, terms);
}

FP8SIM_HD Vec value_of(const SignedSum& sum) { return sum.total; }

#endif

constexpr uint32_t kAllLanes = (uint32_t{1} << kWidth) - 1;

}  // namespace
}  // namespace fp8sim
