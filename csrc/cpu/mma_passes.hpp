// One step of truncating adders, a vector of columns at a time; included once for each instruction set.
//
// A step takes two passes over its products. The first finds the largest exponent: that of a product is the sum of its
// factors'. The second shifts each product's magnitude to it, which cuts what lies below, and adds with sign. Where the
// adder keeps 13 fraction bits, products have 15 and 16-bit lanes do; else they have 27 and take 32-bit lanes.
#pragma once

#include "cpu/mma_fast.hpp"
#include "cpu/mma_pack.hpp"
#include "cpu/mma_vectors.hpp"

namespace fp8sim {
namespace {

constexpr int kRows = 4;               // of a tile: they share the loads of b
constexpr int kChunkPairs = 8;         // 16 terms of 27 bits and a sign fit 32 bits
constexpr int kExponentBias = 127;
constexpr int32_t kInfinityBits = 0x7F800000;
constexpr int32_t kNanBits = 0x7FFFFFFF;

// What steps read of the adder.
struct Rule {
    int32_t fraction_bits;
    int32_t zero_exponent;
    int32_t least_exponent;  // of the accumulator's format
    int32_t dropped_mask;    // bits of a binary32 result that are not kept
    int32_t more_bits;       // fraction bits kept beyond those of binary32
    int32_t place_bias;      // of `Accumulator::place`
};

FP8SIM_HD Rule rule_of(const MmaModel& m) {
    const bool is_binary16 = m.accumulator.mantissa_bits == 10;
    const int32_t dropped = is_binary16 ? 0 : (1 << (23 - m.kept_bits)) - 1;
    const int32_t more_bits = larger<int32_t>(m.fraction_bits - 23, 0);
    const int32_t fewer_bits = larger<int32_t>(23 - m.fraction_bits, 0);
    const int32_t least_exponent = 1 - m.accumulator.bias;
    return {m.fraction_bits, m.zero_exponent, least_exponent, dropped, more_bits, kExponentBias + fewer_bits};
}

// binary32 bits as a term.
struct Accumulator {
    Vec significand;  // 24 bits
    Vec exponent;     // as the adder sees it
    Vec place;        // the exponent that the significand has, less what the shift adds
    Mask zero;
    Mask negative;
};

// Of numbers that are not odd. What is subnormal in binary16 alone has the exponent of its smallest normal number.
template <bool is_binary16>
FP8SIM_HD Accumulator accumulator_of(Vec bits, const Rule& rule) {
    const Vec field = right<24>(left<1>(bits)), place = sub(field, all(rule.place_bias));
    const Vec significand = either(both(bits, all(0x007FFFFF)), all(0x00800000));
    Vec exponent = sub(field, all(kExponentBias));
    if (is_binary16) exponent = larger_of(exponent, all(rule.least_exponent));
    const Mask zero = equal(field, all(0));
    return {significand, choose(zero, all(rule.zero_exponent), exponent), place, zero, negative(bits)};
}

// Infinities, NaN and subnormal numbers of binary32, which the vectors leave alone.
FP8SIM_HD Mask odd_of(Vec bits) {
    const Vec magnitude_bits = left<1>(bits), field = right<24>(magnitude_bits);
    const Mask zero = equal(magnitude_bits, all(0));
    return any_of(equal(field, all(255)), except(equal(field, all(0)), zero));
}

template <bool has_more_bits>
FP8SIM_HD Vec aligned(const Accumulator& c, Vec largest, const Rule& rule) {
    const Vec raised = has_more_bits ? left_by(c.significand, rule.more_bits) : c.significand;
    return minus_where(c.negative, clear_where(c.zero, shift_by(raised, sub(largest, c.place))));
}

// The bits above the 24 leading ones of a magnitude become one sticky bit, so that one more rounding is harmless.
FP8SIM_HD Vec with_sticky_bit(Vec magnitude) {
    Vec beyond = right<24>(magnitude);
    beyond = either(beyond, right<1>(beyond));
    beyond = either(beyond, right<2>(beyond));
    beyond = either(beyond, right<4>(beyond));
    const Mask none_lost = equal(both(magnitude, beyond), all(0));
    return either(without(magnitude, beyond), clear_where(none_lost, add(beyond, all(1))));
}

struct Result {
    Vec bits;
    Mask valid;
};

// sum * 2^(largest - fraction_bits), where that is normal in binary32, or zero. The exponent added stays below 2^9, so
// that a field out of range shows in the sign bit or is that of infinity.
template <bool is_binary16>
FP8SIM_HD Result finish(Vec sum, Vec largest, const Rule& rule) {
    const Vec size = magnitude(sum);
    const Vec number = to_float(is_binary16 ? with_sticky_bit(size) : size);
    Vec bits = add(number, left<23>(sub(largest, all(rule.fraction_bits))));
    const Mask zero = equal(sum, all(0));
    const Mask normal = all_of(above(bits, all(0x007FFFFF)), above(all(kInfinityBits), bits));
    Mask vanished = zero;
    if (is_binary16) {
        bits = through_binary16(bits);
        vanished = any_of(zero, equal(bits, all(0)));
    }
    bits = either(without(bits, all(rule.dropped_mask)), without(sum, all(kNanBits)));
    return {clear_where(vanished, bits), any_of(normal, zero)};
}

// Lanes whose sum * 2^(largest - fraction_bits) is 2^128 or more.
FP8SIM_HD Mask beyond_binary32(Vec sum, Vec largest, const Rule& rule) {
    const Vec field = add(right<23>(to_float(magnitude(sum))), sub(largest, all(rule.fraction_bits)));
    return except(above(field, all(254)), equal(sum, all(0)));
}

// The two passes.

// Where the operands of a step are.
struct StepRows {
    const int16_t* a[kRows];  // the exponents' plane
    int64_t plane;            // from one plane of a to the next
};

FP8SIM_HD Vec pair_at(const int16_t* from) {
    int32_t pair;
    memcpy(&pair, from, sizeof(pair));
    return all(pair);
}

template <int panels>
struct Tile {
    Vec lane[kRows][panels];
};

constexpr int kVectorWords = kWidth * kLanePair;
constexpr int kPairWords = kPlanes * kVectorWords;

// The largest exponent of each element's products, in both halves of its lane.
template <int panels>
FP8SIM_HD void largest_exponents(const StepRows& rows, const int16_t* const (&b)[panels], int pairs,
                                 Tile<panels>& largest) {
    for (auto& row : largest.lane) {
        for (Vec& lane : row) lane = all16(2 * kNoExponent16);
    }
    for (int pair = 0; pair < pairs; ++pair) {
        Vec right_exponent[panels];
        for (int p = 0; p < panels; ++p) right_exponent[p] = load(b[p] + pair * kPairWords);
        for (int r = 0; r < kRows; ++r) {
            const Vec left_exponent = pair_at(rows.a[r] + pair * kLanePair);
            for (int p = 0; p < panels; ++p) {
                largest.lane[r][p] = max16(largest.lane[r][p], add16(left_exponent, right_exponent[p]));
            }
        }
    }
    for (auto& row : largest.lane) {
        for (Vec& lane : row) lane = max16(lane, exchange_halves(lane));
    }
}

// An exponent in both halves of its lane.
FP8SIM_HD Vec in_both_halves(Vec exponent) { return either(left<16>(exponent), both(exponent, all(0xFFFF))); }

// sum += products of at most 15 bits, shifted from exponent `base` on.
template <bool has_dot, int panels>
FP8SIM_HD void add_short(const StepRows& rows, const int16_t* const (&b)[panels], int pairs, const Tile<panels>& base,
                         Tile<panels>& sum) {
    for (int pair = 0; pair < pairs; ++pair) {
        Vec exponent[panels], size[panels], sign[panels];
        for (int p = 0; p < panels; ++p) {
            exponent[p] = load(b[p] + pair * kPairWords);
            size[p] = load(b[p] + pair * kPairWords + kVectorWords);
            sign[p] = load(b[p] + pair * kPairWords + 2 * kVectorWords);
        }
        for (int r = 0; r < kRows; ++r) {
            const int16_t* a = rows.a[r] + pair * kLanePair;
            const Vec left_exponent = pair_at(a), left_size = pair_at(a + rows.plane);
            const Vec left_sign = pair_at(a + 2 * rows.plane);
            for (int p = 0; p < panels; ++p) {
                const Vec shift = sub16(sub16(base.lane[r][p], left_exponent), exponent[p]);
                const Vec term = shift16(mul16(left_size, size[p]), shift);
                sum.lane[r][p] = add_dot<has_dot>(sum.lane[r][p], term, differ(sign[p], left_sign));
            }
        }
    }
}

// The same for products of at most 27 bits, and at most kChunkPairs pairs.
FP8SIM_HD void add_long(const StepRows& rows, const int16_t* b, int first, int pairs, const Tile<1>& base,
                        SignedSum (&sum)[kRows]) {
    const Vec low_half = all(0xFFFF);
    for (int pair = first; pair < first + pairs; ++pair) {
        const Vec exponent = load(b + pair * kPairWords), size = load(b + pair * kPairWords + kVectorWords);
        const Vec sign = load(b + pair * kPairWords + 2 * kVectorWords);
        const Vec even = both(size, low_half), odd = without(size, low_half);
        for (int r = 0; r < kRows; ++r) {
            const int16_t* a = rows.a[r] + pair * kLanePair;
            const Vec left_size = pair_at(a + rows.plane);
            const Vec shift = sub16(sub16(base.lane[r][0], pair_at(a)), exponent);
            const Vec even_term = shift_by(multiply_pairs(left_size, even), both(shift, low_half));
            const Vec odd_term = shift_by(multiply_pairs(left_size, odd), right<16>(shift));
            add_terms(sum[r], even_term, odd_term, differ(sign, pair_at(a + 2 * rows.plane)));
        }
    }
}

// Where x + y does not fit 32 bits.
FP8SIM_HD Mask overflows(Vec x, Vec y, Vec sum) { return negative(both(differ(x, sum), differ(y, sum))); }

}  // namespace
}  // namespace fp8sim
