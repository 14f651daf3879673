// An instruction of a tensor core as integers, its operands as numbers, and the rounding of its results.
//
// An `MmaModel` is made from `fp8sim.mma.MmaModel`, whose docstrings define every adder. Significands are integers and
// keep the exponent that is stored with them: a subnormal number has that of the smallest normal one.
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
constexpr int kMostEmulatedHalf = 16;
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

// Results.

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

}  // namespace fp8sim
