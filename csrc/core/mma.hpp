// Matrix multiply-accumulate as tensor cores do it: one interpreter for every instruction, in integers.
//
// This is the scalar definition that vectorised loops must equal bit for bit, and that they call where they do not
// apply.
#pragma once

#include "core/mma_sums.hpp"

namespace fp8sim {

// The other adders.

// Two halves of the products on the binary16 unit from c = 0, then c by an ordinary addition. Each 32-bit register
// holds four numbers of 8 bits: the low pairs of all are one half, the high pairs the other.
FP8SIM_HD_CALL uint64_t add_emulated(const MmaModel& m, const Number* a, const Number* b, uint64_t c) {
    const int half = m.k / 2;
    uint64_t sum = 0;
    for (int high = 0; high < 2; ++high) {
        Number half_a[kMostEmulatedHalf] = {}, half_b[kMostEmulatedHalf] = {};
        for (int i = 0; i < half; ++i) {
            const int k = 4 * (i / 2) + 2 * high + i % 2;
            half_a[i] = a[k];
            half_b[i] = b[k];
        }
        sum = add_truncated(m, half_a, half_b, half, sum, 0);
    }
    return add_nearest(m, c, sum);
}

struct ScaleFactor {
    uint64_t significand;
    int32_t exponent;
    bool nan;
};

FP8SIM_HD ScaleFactor scale_of(const Number& a, const Number& b) {
    return {a.significand * b.significand, a.exponent + b.exponent, a.kind == Kind::kNan || b.kind == Kind::kNan};
}

FP8SIM_HD_CALL uint64_t add_block_scaled(const MmaModel& m, const Number* a, const Number* b, int count, uint64_t c,
                                    const Number* a_scale, const Number* b_scale) {
    const ScaleFactor scale = scale_of(*a_scale, *b_scale);
    return scale.nan ? nan_code(m) : add_truncated(m, a, b, count, c, scale.exponent);
}

// Each group's products are added exactly; the sum stays a multiplier of its scale factors and is not normalised.
FP8SIM_HD_CALL uint64_t add_grouped(const MmaModel& m, const Number* a, const Number* b, uint64_t c_code,
                               const Number* a_scale, const Number* b_scale) {
    constexpr int kGroups = kMostProducts / kGroup;
    const Number c = decode_operand(c_code, m.accumulator);
    const int32_t c_exponent = c.significand == 0 ? m.zero_exponent : c.exponent;
    int64_t value[kGroups];
    int32_t exponent[kGroups], largest = c_exponent;
    for (int g = 0; g < kGroups; ++g) {
        const int block = g * kGroup / m.scale_block;
        const ScaleFactor scale = scale_of(a_scale[block], b_scale[block]);
        if (scale.nan || c.kind == Kind::kNan) return nan_code(m);
        value[g] = 0;
        bool every_zero = true;
        for (int k = g * kGroup; k < (g + 1) * kGroup; ++k) {
            const uint64_t product = a[k].significand * b[k].significand;
            every_zero &= product == 0;
            value[g] += with_sign(product << (a[k].exponent + b[k].exponent), a[k].negative ^ b[k].negative);
        }
        value[g] *= static_cast<int64_t>(scale.significand);
        exponent[g] = every_zero || scale.significand == 0 ? m.zero_exponent : scale.exponent;
        largest = at_least(largest, exponent[g]);
    }
    if (c.kind == Kind::kInfinity) return infinity_code(m.accumulator) | sign_of_code(c.negative, m.accumulator);
    const int32_t has = m.a.mantissa_bits + m.b.mantissa_bits + 2 * m.scale.mantissa_bits;
    int64_t sum = align(c.significand, c.negative, m.accumulator.mantissa_bits, c_exponent, largest, m.fraction_bits);
    for (int g = 0; g < kGroups; ++g) {
        const uint64_t magnitude = static_cast<uint64_t>(value[g] < 0 ? -value[g] : value[g]);
        sum += align(magnitude, value[g] < 0, has, exponent[g], largest, m.fraction_bits);
    }
    return round_sum(sum, largest - m.fraction_bits, m);
}

FP8SIM_HD uint64_t flush(uint64_t code, const MmaFormat& f, bool keep_sign) {
    const uint64_t sign = sign_of_code(true, f);
    return (code & ~sign) >> f.mantissa_bits == 0 ? (keep_sign ? code & sign : 0) : code;
}

FP8SIM_HD_CALL uint64_t add_flushed(const MmaModel& m, uint64_t x, uint64_t y) {
    return flush(add_nearest(m, x, y), m.accumulator, true);
}

FP8SIM_HD Number flush_input(const Number& x, const MmaFormat& f) {
    const bool subnormal = x.kind == Kind::kFinite && x.significand >> f.mantissa_bits == 0;
    return subnormal ? Number{0, x.exponent, 0, Kind::kFinite} : x;
}

FP8SIM_HD_CALL uint64_t multiply_flushed(const MmaModel& m, const Number& a, const Number& b) {
    const Number x = flush_input(a, m.a), y = flush_input(b, m.b);
    const uint64_t zero = sign_of_code(x.negative ^ y.negative, m.accumulator);
    if (x.kind == Kind::kFinite && y.kind == Kind::kFinite && (x.significand == 0 || y.significand == 0)) return zero;
    // A product that is not zero keeps its sign when the zero of its own sign is added.
    return flush(multiply_add(m, x, y, zero), m.accumulator, true);
}

// A tree over the products of a step, then c; every result is rounded to binary32 and flushed.
FP8SIM_HD_CALL uint64_t add_flushing(const MmaModel& m, const Number* a, const Number* b, uint64_t c) {
    uint64_t sum = add_flushed(m, multiply_flushed(m, a[0], b[0]), multiply_flushed(m, a[1], b[1]));
    if (m.terms == 4) {
        sum = add_flushed(
            m, sum, add_flushed(m, multiply_flushed(m, a[2], b[2]), multiply_flushed(m, a[3], b[3])));
    }
    return add_flushed(m, c, sum);
}

// What CDNA3's adders have in common: c joins the products' sum, whose cuts are floors.
constexpr int kFinalBits = 31;
constexpr int32_t kNoExponent = -999;

FP8SIM_HD_CALL uint64_t join_accumulator(const MmaModel& m, const AlignedSum& dot, const Number& c, bool drops_far_c) {
    const int32_t wide = kFinalBits + 1;
    const int32_t largest = at_least(dot.exponent, c.exponent);
    const int64_t products = floor_shift(dot.sum, largest - dot.exponent + m.fraction_bits - wide);
    const int64_t c_value = with_sign(c.significand, c.negative);
    int64_t c_term = floor_shift(c_value, largest - c.exponent + m.accumulator.mantissa_bits - m.fraction_bits);
    if (drops_far_c && c.exponent < largest - m.fraction_bits - 1) c_term = 0;
    const int64_t sum = products + (c_term << (wide - m.fraction_bits));
    if (sum == 0) return 0;
    const uint64_t magnitude = static_cast<uint64_t>(sum < 0 ? -sum : sum);
    const int32_t smallest = 1 - m.accumulator.bias;
    const int32_t leading = at_least(largest - wide + bit_length(magnitude) - 1, smallest);
    const int64_t cut = floor_shift(sum, at_least(leading - kFinalBits - (largest - wide), 0));
    const int32_t unit = at_least(leading - kFinalBits, largest - wide);
    const uint64_t cut_magnitude = static_cast<uint64_t>(cut < 0 ? -cut : cut);
    const uint64_t code = cut_magnitude == 0
        ? 0 : round_magnitude(cut_magnitude, unit, m.accumulator, m.accumulator.mantissa_bits, true);
    return code | sign_of_code(cut < 0, m.accumulator);
}

FP8SIM_HD bool overflows(const Number& a, const Number& b, const MmaModel& m) {
    const uint64_t product = a.significand * b.significand;
    const bool two_or_more = product >> (m.a.mantissa_bits + m.b.mantissa_bits + 1) != 0;
    return product != 0 && two_or_more + a.exponent + b.exponent > m.accumulator.bias;
}

FP8SIM_HD_CALL uint64_t add_rounded(const MmaModel& m, const Number* a, const Number* b, int count, uint64_t c_code) {
    const Number c = decode_operand(c_code, m.accumulator);
    Specials specials = specials_of(a, b, count, c);
    for (int i = 0; i < count; ++i) {
        const bool finite = a[i].kind == Kind::kFinite && b[i].kind == Kind::kFinite;
        if (finite && overflows(a[i], b[i], m)) specials.infinite[a[i].negative ^ b[i].negative] = true;
    }
    if (any(specials)) return code_of(specials, m);
    return join_accumulator(m, add_products(m, a, b, count, 1, 0, kNoExponent, kNoExponent), c, false);
}

FP8SIM_HD_CALL uint64_t add_even_odd(const MmaModel& m, const Number* a, const Number* b, int count, uint64_t c_code) {
    const Number c = decode_operand(c_code, m.accumulator);
    const Specials specials = specials_of(a, b, count, c);
    if (any(specials)) return code_of(specials, m);
    const AlignedSum even = add_products(m, a, b, count, 2, 0, kNoExponent, kNoExponent);
    const AlignedSum odd = add_products(m, a + 1, b + 1, count - 1, 2, 0, kNoExponent, kNoExponent);
    const int32_t largest = at_least(even.exponent, odd.exponent);
    const int64_t sum = floor_shift(even.sum, largest - even.exponent) + floor_shift(odd.sum, largest - odd.exponent);
    return join_accumulator(m, {sum, largest}, c, true);
}

// Steps and instructions.

// `m.terms` products and one accumulator: what is rounded at once.
FP8SIM_HD_CALL uint64_t mma_step(const MmaModel& m, const Number* a, const Number* b, uint64_t c, const Number* a_scale,
                            const Number* b_scale) {
    switch (static_cast<Adder>(m.adder)) {
        case Adder::kTruncated: return add_truncated(m, a, b, m.terms, c, 0);
        case Adder::kEmulated: return add_emulated(m, a, b, c);
        case Adder::kBlockScaled: return add_block_scaled(m, a, b, m.terms, c, a_scale, b_scale);
        case Adder::kGrouped: return add_grouped(m, a, b, c, a_scale, b_scale);
        case Adder::kSequential: return multiply_add(m, *a, *b, c);
        case Adder::kExact: return add_exactly<kNarrowLimbs>(m, a, b, m.terms, c, kNarrowLowest);
        case Adder::kFlushing: return add_flushing(m, a, b, c);
        case Adder::kRounded: return add_rounded(m, a, b, m.terms, c);
        case Adder::kEvenOdd: return add_even_odd(m, a, b, m.terms, c);
    }
    return 0;
}

// The code of d after one instruction: m.k numbers of a and of b, one scale factor of each for every m.scale_block.
FP8SIM_HD_CALL uint64_t mma_instruction(const MmaModel& m, const Number* a, const Number* b, uint64_t c,
                                   const Number* a_scales, const Number* b_scales) {
    if (m.adder == static_cast<int32_t>(Adder::kFlushing)) c = flush(c, m.accumulator, false);
    for (int k = 0; k < m.k; k += m.terms) {
        const int block = m.scale_block == 0 ? 0 : k / m.scale_block;
        c = mma_step(m, a + k, b + k, c, a_scales + block, b_scales + block);
    }
    return c;
}

}  // namespace fp8sim
