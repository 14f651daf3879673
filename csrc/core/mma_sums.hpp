// Sums of products as tensor cores form them: cut at the largest exponent, or exact.
#pragma once

#include "core/mma_model.hpp"

namespace fp8sim {

// Truncated sums: terms aligned at the largest exponent, magnitudes cut.

FP8SIM_HD int64_t with_sign(uint64_t magnitude, bool negative) {
    const int64_t value = static_cast<int64_t>(magnitude);
    return negative ? -value : value;
}

// significand * 2^(exponent - has) in units of 2^(largest - fraction_bits), cut.
FP8SIM_HD int64_t align(uint64_t significand, bool negative, int32_t has, int32_t exponent, int32_t largest,
                        int32_t fraction_bits) {
    return with_sign(shift_right(significand, largest - exponent + has - fraction_bits), negative);
}

struct AlignedSum {
    int64_t sum;       // in units of 2^(exponent - fraction_bits)
    int32_t exponent;  // the largest
};

// The products a[i] * b[i], `stride` apart, and no less than `floor` as largest exponent.
FP8SIM_HD_CALL AlignedSum add_products(const MmaModel& m, const Number* a, const Number* b, int count, int stride,
                                  int32_t scale, int32_t zero_exponent, int32_t floor) {
    int32_t largest = floor;
    for (int i = 0; i < count; i += stride) {
        const bool zero = a[i].significand == 0 || b[i].significand == 0;
        largest = at_least(largest, zero ? zero_exponent : a[i].exponent + b[i].exponent + scale);
    }
    int64_t sum = 0;
    for (int i = 0; i < count; i += stride) {
        const uint64_t product = a[i].significand * b[i].significand;
        if (product == 0) continue;
        sum += align(product, a[i].negative ^ b[i].negative, m.a.mantissa_bits + m.b.mantissa_bits,
                     a[i].exponent + b[i].exponent + scale, largest, m.fraction_bits);
    }
    return {sum, largest};
}

FP8SIM_HD_CALL uint64_t add_truncated(
    const MmaModel& m, const Number* a, const Number* b, int count, uint64_t c_code, int32_t scale) {
    const Number c = decode_operand(c_code, m.accumulator);
    const Specials specials = specials_of(a, b, count, c);
    if (any(specials)) return code_of(specials, m);
    const int32_t c_exponent = c.significand == 0 ? m.zero_exponent : c.exponent;
    const AlignedSum products = add_products(m, a, b, count, 1, scale, m.zero_exponent, c_exponent);
    const int64_t c_term = align(c.significand, c.negative, m.accumulator.mantissa_bits, c_exponent, products.exponent,
                                 m.fraction_bits);
    return round_sum(products.sum + c_term, products.exponent - m.fraction_bits, m);
}

// Exact sums, rounded once to nearest even.

// An integer of `limbs` words in units of 2^lowest, in two's complement.
template <int limbs>
struct ExactSum {
    uint64_t word[limbs];
    int32_t lowest;
};

template <int limbs>
FP8SIM_HD_CALL void add_to(ExactSum<limbs>& sum, Wide magnitude, int32_t exponent, bool negative) {
    const int32_t place = exponent - sum.lowest, bit = place % 64;
    const uint64_t low = static_cast<uint64_t>(magnitude), high = static_cast<uint64_t>(magnitude >> 64);
    const Wide first = static_cast<Wide>(low) << bit;
    const Wide second = (static_cast<Wide>(high) << bit) + (first >> 64);
    const uint64_t part[3] = {static_cast<uint64_t>(first), static_cast<uint64_t>(second),
                              static_cast<uint64_t>(second >> 64)};
    uint64_t carry = negative;  // minus x is its complement plus one
    for (int i = place / 64, j = 0; i < limbs; ++i, ++j) {
        const uint64_t x = j < 3 ? part[j] : 0;
        const Wide total = static_cast<Wide>(sum.word[i]) + (negative ? ~x : x) + carry;
        sum.word[i] = static_cast<uint64_t>(total);
        carry = static_cast<uint64_t>(total >> 64);
    }
}

template <int limbs>
FP8SIM_HD void negate(ExactSum<limbs>& sum) {
    uint64_t carry = 1;
    for (int i = 0; i < limbs; ++i) {
        sum.word[i] = ~sum.word[i] + carry;
        carry = carry && sum.word[i] == 0;
    }
}

// The code of the magnitude of a sum that is not negative: its 64 leading bits, the last one set if any other follows.
template <int limbs>
FP8SIM_HD_CALL uint64_t round_exact(const ExactSum<limbs>& sum, const MmaFormat& f) {
    int top = limbs - 1;
    while (top >= 0 && sum.word[top] == 0) --top;
    if (top < 0) return 0;
    const int spare = 64 - bit_length(sum.word[top]);
    const uint64_t next = top > 0 ? sum.word[top - 1] : 0;
    const uint64_t leading = spare == 0 ? sum.word[top] : sum.word[top] << spare | next >> (64 - spare);
    uint64_t rest = next << spare;
    for (int i = 0; i < top - 1; ++i) rest |= sum.word[i];
    return round_magnitude(leading | (rest != 0), sum.lowest + 64 * top - spare, f, f.mantissa_bits, true);
}

// Sums of binary32 and narrower numbers' products lie between 2^-300 and 2^264, those of binary64 between 2^-2150 and
// 2^2056.
constexpr int kNarrowLimbs = 10;
constexpr int32_t kNarrowLowest = -304;
constexpr int kDoubleLimbs = 67;
constexpr int32_t kDoubleLowest = -2160;

// c + sum of products, rounded once. An exact zero is -0 if every term is -0, else +0 (IEEE 754-2019, 6.3).
template <int limbs>
FP8SIM_HD_CALL uint64_t add_exactly(
    const MmaModel& m, const Number* a, const Number* b, int count, uint64_t c_code, int32_t lowest) {
    const Number c = decode_operand(c_code, m.accumulator);
    const Specials specials = specials_of(a, b, count, c);
    if (any(specials)) return code_of(specials, m);
    ExactSum<limbs> sum = {{}, lowest};
    bool every_negative_zero = c.negative && c.significand == 0;
    for (int i = 0; i < count; ++i) {
        const Wide product = static_cast<Wide>(a[i].significand) * b[i].significand;
        const bool negative = a[i].negative ^ b[i].negative;
        every_negative_zero &= negative && product == 0;
        if (product == 0) continue;
        add_to(sum, product, a[i].exponent + b[i].exponent - m.a.mantissa_bits - m.b.mantissa_bits, negative);
    }
    add_to(sum, c.significand, c.exponent - m.accumulator.mantissa_bits, c.negative);
    const bool negative = sum.word[limbs - 1] >> 63;
    if (negative) negate(sum);
    return round_exact(sum, m.accumulator) | sign_of_code(negative || every_negative_zero, m.accumulator);
}

FP8SIM_HD_CALL uint64_t multiply_add(const MmaModel& m, const Number& a, const Number& b, uint64_t c) {
    if (m.accumulator.mantissa_bits > 23) return add_exactly<kDoubleLimbs>(m, &a, &b, 1, c, kDoubleLowest);
    return add_exactly<kNarrowLimbs>(m, &a, &b, 1, c, kNarrowLowest);
}

// x + y in the accumulator's format, one rounding to nearest even.
FP8SIM_HD_CALL uint64_t add_nearest(const MmaModel& m, uint64_t x, uint64_t y) {
    MmaModel plain = m;
    plain.a = plain.b = m.accumulator;
    const Number one = {uint64_t{1} << m.accumulator.mantissa_bits, 0, 0, Kind::kFinite};
    const Number left = decode_operand(x, m.accumulator);
    return add_exactly<kNarrowLimbs>(plain, &left, &one, 1, y, kNarrowLowest);
}

}  // namespace fp8sim
