// Matrix multiply-accumulate as tensor cores do it: one interpreter for every instruction, in integers.
//
// An instruction is an `MmaModel`, made from `fp8sim.mma.MmaModel`, whose docstrings define every adder. This is the
// scalar definition that vectorised loops must equal bit for bit, and that they call where they do not apply.
// Significands are integers and keep the exponent that is stored with them: a product of two numbers in [1, 2) lies in
// [1, 4) and is not renormalised, a subnormal number has the exponent of the smallest normal one.
#pragma once

#include <cstdint>

#include "core/format.hpp"

// The larger functions have several callers each: inlined everywhere, they would take half a minute to compile.
#if defined(__CUDACC__)
#define FP8SIM_HD_CALL static __host__ __device__
#else
#define FP8SIM_HD_CALL static inline __attribute__((noinline))
#endif

namespace fp8sim {

// Numbers are those of `fp8sim.mma.Adder`, which defines them.
enum class Adder : int32_t {
    kTruncated = 0,
    kEmulated = 1,
    kBlockScaled = 2,
    kGrouped = 3,
    kSequential = 4,
    kExact = 5,
    kFlushing = 6,
    kRounded = 7,
    kEvenOdd = 8,
};

// Which codes are not numbers; numbers are those that `fp8sim.mma.models` assigns to `fp8sim.formats.Nan`.
enum class NanCodes : int32_t { kIeee = 0, kAllOnes = 1, kNegativeZero = 2, kNone = 3 };

struct MmaFormat {
    int32_t exponent_bits;
    int32_t mantissa_bits;
    int32_t bias;
    int32_t dropped_bits;  // low bits of the register that are ignored: 13 in tf32
    int32_t is_signed;
    int32_t has_zero;
    int32_t nan;
};

struct MmaModel {
    int32_t adder;
    int32_t k;                  // products per instruction
    int32_t terms;              // products per step
    int32_t fraction_bits;      // kept below the largest exponent of a step
    int32_t zero_exponent;      // of a term that is zero
    int32_t kept_bits;          // fraction bits of a result
    int32_t rounds_to_nearest;  // ties to even; otherwise toward zero
    int32_t scale_block;        // products that share a scale factor; 0: none
    MmaFormat a;
    MmaFormat b;
    MmaFormat accumulator;
    MmaFormat scale;
};

constexpr int kMmaModelFields = sizeof(MmaModel) / sizeof(int32_t);
static_assert(kMmaModelFields == 36, "as many fields as fp8sim.mma.models.core_fields returns");

constexpr int kGroup = 16;  // products that Adder::kGrouped adds exactly
constexpr int kEmulatedHalf = 16;
constexpr int kMostProducts = 64;  // of one instruction

using Wide = unsigned __int128;

enum class Kind : uint8_t { kFinite, kInfinity, kNan };

struct Number {
    uint64_t significand;
    int32_t exponent;  // the number is significand * 2^(exponent - mantissa_bits)
    uint8_t negative;
    Kind kind;
};

FP8SIM_HD int32_t at_least(int32_t x, int32_t low) { return x < low ? low : x; }

FP8SIM_HD int bit_length(uint64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(x); }

FP8SIM_HD uint64_t mask_of(int bits) { return (uint64_t{1} << bits) - 1; }

// floor(x * 2^-shift), for a shift of either sign; the result fits.
FP8SIM_HD uint64_t shift_right(uint64_t x, int32_t shift) {
    if (shift <= 0) return x << -shift;
    return shift >= 64 ? 0 : x >> shift;
}

FP8SIM_HD int64_t floor_shift(int64_t x, int32_t shift) {
    if (shift <= 0) return static_cast<int64_t>(static_cast<uint64_t>(x) << -shift);
    return x >> (shift >= 64 ? 63 : shift);
}

FP8SIM_HD Kind kind_of(uint64_t magnitude, bool negative, const MmaFormat& f) {
    const uint64_t all_ones = mask_of(f.exponent_bits + f.mantissa_bits);
    switch (static_cast<NanCodes>(f.nan)) {
        case NanCodes::kIeee:
            if (magnitude >> f.mantissa_bits != mask_of(f.exponent_bits)) return Kind::kFinite;
            return (magnitude & mask_of(f.mantissa_bits)) == 0 ? Kind::kInfinity : Kind::kNan;
        case NanCodes::kAllOnes: return magnitude == all_ones ? Kind::kNan : Kind::kFinite;
        case NanCodes::kNegativeZero: return magnitude == 0 && negative ? Kind::kNan : Kind::kFinite;
        case NanCodes::kNone: break;
    }
    return Kind::kFinite;
}

FP8SIM_HD_CALL Number decode_operand(uint64_t code, const MmaFormat& f) {
    const uint64_t kept = code >> f.dropped_bits;
    const int magnitude_bits = f.exponent_bits + f.mantissa_bits;
    const uint64_t magnitude = kept & mask_of(magnitude_bits);
    const bool negative = f.is_signed && ((kept >> magnitude_bits) & 1);
    const uint64_t field = magnitude >> f.mantissa_bits;
    const bool normal = field > 0 || !f.has_zero;
    const uint64_t significand = (magnitude & mask_of(f.mantissa_bits)) | (uint64_t{normal} << f.mantissa_bits);
    const int32_t exponent = (normal ? static_cast<int32_t>(field) : 1) - f.bias;
    return {significand, exponent, negative, kind_of(magnitude, negative, f)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

FP8SIM_HD uint64_t infinity_code(const MmaFormat& f) { return mask_of(f.exponent_bits) << f.mantissa_bits; }

FP8SIM_HD uint64_t sign_of_code(bool negative, const MmaFormat& f) {
    return uint64_t{negative} << (f.exponent_bits + f.mantissa_bits);
}

// NVIDIA's fused adders return the NaN of all ones; what the others return is not specified, here the quiet one.
FP8SIM_HD uint64_t nan_code(const MmaModel& m) {
    const MmaFormat& f = m.accumulator;
    if (m.adder <= static_cast<int32_t>(Adder::kGrouped)) return mask_of(f.exponent_bits + f.mantissa_bits);
    return infinity_code(f) | (uint64_t{1} << (f.mantissa_bits - 1));
}

// The code of magnitude * 2^exponent, magnitude > 0, with `kept_bits` fraction bits (fewer in a subnormal number).
// Beyond the largest number lies infinity, also where rounding is toward zero.
FP8SIM_HD_CALL uint64_t round_magnitude(
    uint64_t magnitude, int32_t exponent, const MmaFormat& f, int32_t kept_bits, bool to_nearest) {
    const int32_t smallest = 1 - f.bias;
    const int32_t leading = exponent + bit_length(magnitude) - 1;
    if (leading > f.bias) return infinity_code(f);
    const int32_t binade = at_least(leading, smallest);
    const int32_t shift = binade - kept_bits - exponent;
    uint64_t rounded = shift_right(magnitude, shift);
    if (to_nearest && shift > 0 && shift <= 64) {
        const uint64_t rest = shift == 64 ? magnitude : magnitude & mask_of(shift);
        const uint64_t half = uint64_t{1} << (shift - 1);
        rounded += rest > half || (rest == half && (rounded & 1));
    }
    // The hidden bit counts as one binade, so that a carry goes to the next one, from the last to infinity.
    return (static_cast<uint64_t>(binade - smallest) << f.mantissa_bits) + (rounded << (f.mantissa_bits - kept_bits));
}

// The result sum * 2^exponent of a fused adder. Zero is +0, whatever it was rounded from.
FP8SIM_HD uint64_t round_sum(int64_t sum, int32_t exponent, const MmaModel& m) {
    if (sum == 0) return 0;
    const uint64_t magnitude = sum < 0 ? 0 - static_cast<uint64_t>(sum) : static_cast<uint64_t>(sum);
    const uint64_t code = round_magnitude(magnitude, exponent, m.accumulator, m.kept_bits, m.rounds_to_nearest != 0);
    return code == 0 ? 0 : code | sign_of_code(sum < 0, m.accumulator);
}

// Infinities and NaN among the terms of a sum.
struct Specials {
    bool nan;
    bool infinite[2];  // positive, negative
};

FP8SIM_HD bool is_zero(const Number& x) { return x.kind == Kind::kFinite && x.significand == 0; }

FP8SIM_HD_CALL Specials specials_of(const Number* a, const Number* b, int count, const Number& c) {
    Specials found = {c.kind == Kind::kNan, {false, false}};
    found.infinite[c.negative] = c.kind == Kind::kInfinity;
    for (int i = 0; i < count; ++i) {
        const Number &x = a[i], &y = b[i];
        found.nan |= x.kind == Kind::kNan || y.kind == Kind::kNan;
        if (x.kind != Kind::kInfinity && y.kind != Kind::kInfinity) continue;
        found.nan |= is_zero(x) || is_zero(y);
        found.infinite[x.negative ^ y.negative] = true;
    }
    return found;
}

FP8SIM_HD bool any(const Specials& found) { return found.nan || found.infinite[0] || found.infinite[1]; }

FP8SIM_HD uint64_t code_of(const Specials& found, const MmaModel& m) {
    if (found.nan || (found.infinite[0] && found.infinite[1])) return nan_code(m);
    return infinity_code(m.accumulator) | sign_of_code(found.infinite[1], m.accumulator);
}

// ---------------------------------------------------------------------------------------------------------------------
// Truncated sums: terms aligned at the largest exponent, magnitudes cut

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

// ---------------------------------------------------------------------------------------------------------------------
// Exact sums, rounded once to nearest even

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

// ---------------------------------------------------------------------------------------------------------------------
// The other adders

// Two halves of the products on the binary16 unit from c = 0, then c by an ordinary addition. Each 32-bit register
// holds four numbers of 8 bits: the low pairs of all are one half, the high pairs the other.
FP8SIM_HD_CALL uint64_t add_emulated(const MmaModel& m, const Number* a, const Number* b, uint64_t c) {
    uint64_t sum = 0;
    for (int high = 0; high < 2; ++high) {
        Number half_a[kEmulatedHalf], half_b[kEmulatedHalf];
        for (int i = 0; i < kEmulatedHalf; ++i) {
            const int k = 4 * (i / 2) + 2 * high + i % 2;
            half_a[i] = a[k];
            half_b[i] = b[k];
        }
        sum = add_truncated(m, half_a, half_b, kEmulatedHalf, sum, 0);
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

// ---------------------------------------------------------------------------------------------------------------------
// Steps and instructions

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
