// Conversion between binary32 or binary64 and the codes of any format: the arithmetic, in integers.
//
// One source for every backend: CPU loops vectorise it, CUDA kernels call it. Nothing branches on data, no result
// depends on the floating-point environment (rounding mode, flushing of subnormals), and policies are read from
// `Conversion`.
//
// Encoding follows the order of P3109 v4.0, 4.6: round the magnitude with unbounded exponent, decide overflow, add the
// sign. A *counting code* is a magnitude code plus `offset`: 0 is zero, and counting codes go up with the magnitude,
// across the subnormals and from binade to binade, so that rounding up is "+1" everywhere:
//
//     x       = 0 eeeeeeee fff...f              sign, exponent field, F fraction bits
//     sig     = 0...01fff...f0                  hidden bit (none in a subnormal), one guard bit: shift >= 1 always
//     code    = [binade above emin] << M        M = mantissa_bits
//             + sig >> shift                    shift = F + 1 - M, and one more for each binade below emin
#pragma once

#include <cstdint>
#include <cstring>

#include "core/format.hpp"

namespace fp8sim {

template <class Bits>
struct Source;

// binary32
template <>
struct Source<uint32_t> {
    using Float = float;
    using Int = int32_t;
    static constexpr int kFractionBits = 23;
    static constexpr int kBias = 127;
};

// binary64
template <>
struct Source<uint64_t> {
    using Float = double;
    using Int = int64_t;
    static constexpr int kFractionBits = 52;
    static constexpr int kBias = 1023;
};

template <class Bits>
struct Layout : Source<Bits> {
    using S = Source<Bits>;
    static constexpr Bits kHidden = Bits{1} << S::kFractionBits;
    static constexpr Bits kFractionMask = kHidden - 1;
    static constexpr Bits kSignMask = Bits{1} << (8 * sizeof(Bits) - 1);
    static constexpr int kLargestField = 2 * S::kBias + 1;
    static constexpr Bits kInfinity = Bits{kLargestField} << S::kFractionBits;
    static constexpr Bits kQuietNan = kInfinity | (kHidden >> 1);
    // A significand with its guard bit is below 2^(F + 2), less than half of 2^kAllShiftedOut.
    static constexpr int kAllShiftedOut = S::kFractionBits + 3;
};

template <class To, class From>
FP8SIM_HD To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

template <class T>
FP8SIM_HD T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
FP8SIM_HD T larger(T a, T b) {
    return a > b ? a : b;
}

// ---------------------------------------------------------------------------------------------------------------------
// Rounding of a magnitude

// sig * 2^-shift is the magnitude in units of the code spacing; `binades` << M more makes its counting code.
template <class Bits>
struct Scaled {
    Bits sig;
    typename Source<Bits>::Int shift;
    Bits below;  // counting codes below this binade: binades above emin << M
};

// A format that reaches below binary32 (binary64) needs its subnormals as numbers with a hidden bit: their integer
// fraction, converted to floating point by adding it to 2^F and taking 2^F away, has the leading bit in its exponent.
template <class Bits>
FP8SIM_HD void normalise_subnormal(Bits magnitude, typename Source<Bits>::Int& field, Bits& sig) {
    using L = Layout<Bits>;
    using Float = typename L::Float;
    using Int = typename L::Int;
    constexpr Bits kShiftedOne = Bits{L::kBias + L::kFractionBits} << L::kFractionBits;  // 2^F
    const Float fraction = bit_cast<Float>(kShiftedOne | (magnitude & L::kFractionMask)) - bit_cast<Float>(kShiftedOne);
    const Bits bits = bit_cast<Bits>(fraction) & ~L::kSignMask;
    const bool subnormal = field == 0;
    field = subnormal ? static_cast<Int>(bits >> L::kFractionBits) + 1 - L::kBias - L::kFractionBits : field;
    sig = subnormal ? (bits & L::kFractionMask) | (bits != 0 ? L::kHidden : 0) : sig;
}

template <class Bits>
FP8SIM_HD Scaled<Bits> scale_magnitude(Bits magnitude, const Conversion& c) {
    using L = Layout<Bits>;
    using Int = typename L::Int;
    Int field = static_cast<Int>(magnitude >> L::kFractionBits);
    Bits sig = (magnitude & L::kFractionMask) | (field != 0 ? L::kHidden : 0);
    const Int emin_field = c.emin + L::kBias;
    if (emin_field < 1) normalise_subnormal(magnitude, field, sig);
    else field = larger<Int>(field, 1);

    // No finite code lies in a binade above the last one: the cap keeps the code in range and larger than all of them.
    const Int last_binade = static_cast<Int>((c.max_code + c.offset) >> c.mantissa_bits);
    const Int binades = smaller(larger<Int>(field - emin_field, 0), last_binade);
    const Int extra = larger<Int>(emin_field - field, 0);
    const Int shift = static_cast<Int>(L::kFractionBits + 1 - c.mantissa_bits) + extra;
    return {sig << 1, shift, static_cast<Bits>(binades) << c.mantissa_bits};
}

// Whether a stochastic mode rounds `rest` * 2^-shift away from zero (0 <= rest < 2^shift). With the random integer R of
// N bits, "k + R >= 2^N" is "k > 2^N - 1 - R", which needs no bit more than N.
template <Rounding mode, class Bits>
FP8SIM_HD bool rounds_away(Bits rest, typename Source<Bits>::Int shift, uint32_t random, int random_bits) {
    using L = Layout<Bits>;
    using Int = typename L::Int;
    if constexpr (mode == Rounding::kStochasticEqual) return rest != 0 && (random >> (random_bits - 1)) != 0;
    const Int left = larger<Int>(random_bits - shift, 0);
    const Int right = smaller<Int>(larger<Int>(shift - random_bits, 0), L::kAllShiftedOut);
    const Bits quotient = rest >> right;
    const Bits threshold = (0xFFFFFFFFu >> (32 - random_bits)) ^ random;
    const Bits lost = rest & ((Bits{1} << right) - 1);
    if constexpr (mode == Rounding::kStochastic) {
        const Bits half = ((Bits{1} << right) >> 1) | (right == 0);  // nothing lost: never up
        const Bits up = lost + (quotient & 1) > half;
        return (quotient << left) + up > threshold;
    } else if constexpr (mode == Rounding::kStochasticB) {
        const Bits next_bit = (lost << 1) >> right;
        return (quotient << left) + next_bit > threshold;
    } else {
        return (quotient << left) > threshold;
    }
}

// The counting code of the magnitude that x's bits hold, rounded as if there were no largest one.
template <Rounding mode, class Bits>
FP8SIM_HD Bits round_magnitude(Bits magnitude, bool negative, const Conversion& c, uint32_t random, int random_bits) {
    using L = Layout<Bits>;
    const Scaled<Bits> scaled = scale_magnitude(magnitude, c);
    const auto shift = smaller<typename L::Int>(scaled.shift, L::kAllShiftedOut);
    const Bits unit = Bits{1} << shift;
    const Bits half = unit >> 1;
    const Bits down = (scaled.sig >> shift) + scaled.below;
    if constexpr (mode == Rounding::kTowardZero) return down;
    if constexpr (mode == Rounding::kToOdd) return down + ((scaled.sig & (unit - 1)) != 0 && !((down ^ c.offset) & 1));
    if constexpr (is_stochastic(mode)) {
        const auto far = smaller<typename L::Int>(scaled.shift, L::kAllShiftedOut + 32);
        return down + rounds_away<mode>(static_cast<Bits>(scaled.sig & (unit - 1)), far, random, random_bits);
    }
    Bits addend = 0;
    if constexpr (mode == Rounding::kTiesToEven) addend = half - 1 + ((down ^ c.offset) & 1);
    if constexpr (mode == Rounding::kTiesToAway) addend = half;
    if constexpr (mode == Rounding::kTiesToZero) addend = half - 1;
    if constexpr (mode == Rounding::kTowardPositive) addend = negative ? 0 : unit - 1;
    if constexpr (mode == Rounding::kTowardNegative) addend = negative ? unit - 1 : 0;
    return ((scaled.sig + addend) >> shift) + scaled.below;
}

// ---------------------------------------------------------------------------------------------------------------------
// Encode

// The code, sign included, of a finite magnitude's counting code; `overflow` and `zero` are those of x's sign.
template <class Bits>
FP8SIM_HD uint32_t finish_finite(Bits counting, bool negative, const Conversion& c) {
    const uint32_t code = static_cast<uint32_t>(counting) - c.offset;
    const uint32_t overflow = negative ? c.overflow_negative : c.overflow_positive;
    const uint32_t zero = negative ? c.zero_negative : c.zero_positive;
    const uint32_t negative_code = c.sign_bit ? code | c.sign_bit : c.below;
    const uint32_t in_range = negative ? negative_code : code;
    const uint32_t nonzero = counting > c.max_code + c.offset ? overflow : in_range;
    return counting == 0 ? zero : nonzero;
}

// The code of the binary32 (binary64) number whose bits are x, and of infinities and NaN. `random` is the random
// integer R of `random_bits` bits (1 to 32) in the stochastic modes; the others ignore both.
template <Rounding mode, class Bits>
FP8SIM_HD uint32_t encode(Bits x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    using L = Layout<Bits>;
    const Bits magnitude = x & ~L::kSignMask;
    const bool negative = x != magnitude;
    const uint32_t finite = finish_finite(round_magnitude<mode>(magnitude, negative, c, random, random_bits), negative, c);
    const uint32_t infinity = negative ? c.infinity_negative : c.infinity_positive;
    const uint32_t nan = negative ? c.nan_negative : c.nan_positive;
    return magnitude < L::kInfinity ? finite : (magnitude == L::kInfinity ? infinity : nan);
}

// The same with the mode read from the conversion.
template <class Bits>
FP8SIM_HD uint32_t encode(Bits x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    switch (static_cast<Rounding>(c.rounding)) {
        case Rounding::kTiesToEven: return encode<Rounding::kTiesToEven>(x, c);
        case Rounding::kTiesToAway: return encode<Rounding::kTiesToAway>(x, c);
        case Rounding::kTiesToZero: return encode<Rounding::kTiesToZero>(x, c);
        case Rounding::kTowardZero: return encode<Rounding::kTowardZero>(x, c);
        case Rounding::kTowardPositive: return encode<Rounding::kTowardPositive>(x, c);
        case Rounding::kTowardNegative: return encode<Rounding::kTowardNegative>(x, c);
        case Rounding::kToOdd: return encode<Rounding::kToOdd>(x, c);
        case Rounding::kStochastic: return encode<Rounding::kStochastic>(x, c, random, random_bits);
        case Rounding::kStochasticA: return encode<Rounding::kStochasticA>(x, c, random, random_bits);
        case Rounding::kStochasticB: return encode<Rounding::kStochasticB>(x, c, random, random_bits);
        case Rounding::kStochasticEqual: return encode<Rounding::kStochasticEqual>(x, c, random, random_bits);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Decode

// sig * 2^exponent in binary32 (binary64), rounded to nearest even where it is subnormal there, infinity above.
// sig < 2^24, so that its conversion is exact and leaves the leading bit in the exponent field.
template <class Bits>
FP8SIM_HD Bits compose(uint32_t sig, typename Source<Bits>::Int exponent) {
    using L = Layout<Bits>;
    using Int = typename L::Int;
    const Bits bits = bit_cast<Bits>(static_cast<typename L::Float>(static_cast<int32_t>(sig)));
    const Int field = static_cast<Int>(bits >> L::kFractionBits) + exponent;
    const Bits normal = (bits & L::kFractionMask) | (static_cast<Bits>(field) << L::kFractionBits);
    const Int shift = smaller<Int>(larger<Int>(1 - field, 1), L::kAllShiftedOut);
    const Bits significand = (bits & L::kFractionMask) | L::kHidden;
    const Bits odd = (significand >> shift) & 1;
    const Bits subnormal = (significand + (Bits{1} << (shift - 1)) - 1 + odd) >> shift;
    const Bits finite = field >= 1 ? normal : subnormal;
    return sig == 0 ? 0 : (field >= L::kLargestField ? L::kInfinity : finite);
}

// The bits of the number that `code` stands for. The code's sign bit stays the sign, NaN included (0x80 of the FNUZ
// formats is a negative NaN, as in ml_dtypes); NaN is the quiet one without payload.
template <class Bits>
FP8SIM_HD Bits decode(uint32_t code, const Conversion& c) {
    using L = Layout<Bits>;
    using Int = typename L::Int;
    const uint32_t magnitude = code & ~c.sign_bit;
    const bool negative = magnitude != code;
    const uint32_t counting = magnitude + c.offset;
    const Int binade = static_cast<Int>(counting >> c.mantissa_bits);  // 0: subnormal
    const uint32_t hidden = 1u << c.mantissa_bits;
    const uint32_t sig = (counting & (hidden - 1)) | (binade != 0 ? hidden : 0);
    const Int exponent = c.emin - c.mantissa_bits + larger<Int>(binade - 1, 0);

    const bool nan = magnitude >= c.nan_from || (negative && magnitude == 0 && !c.negative_zero);
    const Bits finite = compose<Bits>(sig, exponent);
    const Bits number = magnitude == c.inf_code ? L::kInfinity : finite;
    return (nan ? L::kQuietNan : number) | (negative ? L::kSignMask : 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cast: the value that a number becomes in the format

template <Rounding mode, class Bits>
FP8SIM_HD Bits cast(Bits x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    return decode<Bits>(encode<mode>(x, c, random, random_bits), c);
}

template <class Bits>
FP8SIM_HD Bits cast(Bits x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    return decode<Bits>(encode(x, c, random, random_bits), c);
}

}  // namespace fp8sim
