// Conversion between binary32 or binary64 and the codes of any format: the arithmetic, in integers.
//
// One source for every backend. `Word` is uint32_t (binary32) or uint64_t (binary64), or a vector of either (`Lanes`
// in csrc/cpu), on which operators and ?: work lane by lane; the CUDA kernels use the scalars. Nothing branches on
// data, no result depends on the floating-point environment (rounding mode, flushing of subnormals), and policies are
// read from `Conversion`.
//
// Encoding follows the order of P3109 v4.0, 4.6: round the magnitude with unbounded exponent, decide overflow, add the
// sign. A *counting code* is a magnitude code plus `offset`: 0 is zero, and counting codes go up with the magnitude,
// across the subnormals and from binade to binade, so that rounding up is "+1" everywhere:
//
//     x       = s eeeeeeee fff...f              sign, exponent field, F fraction bits
//     sig     = 0...01fff...f0                  hidden bit (none in a subnormal), one guard bit: shift >= 1 always
//     code    = [binades above emin] << M       M = mantissa_bits
//             + sig >> shift                    shift = F + 1 - M, and one more for each binade below emin
#pragma once

#include <cstdint>
#include <cstring>

#include "core/format.hpp"

namespace fp8sim {

// The types that go with a word: its element, and the signed and floating-point words of the same width.
template <class Word>
struct WordTypes;

template <>
struct WordTypes<uint32_t> {
    using Element = uint32_t;
    using Int = int32_t;
    using Float = float;
};

template <>
struct WordTypes<uint64_t> {
    using Element = uint64_t;
    using Int = int64_t;
    using Float = double;
};

// binary32 and binary64: where things are in their bits.
template <class Element>
struct Layout {
    static constexpr bool kIsDouble = sizeof(Element) == 8;
    static constexpr int kFractionBits = kIsDouble ? 52 : 23;
    static constexpr int kBias = kIsDouble ? 1023 : 127;
    static constexpr int kLargestField = 2 * kBias + 1;
    static constexpr Element kHidden = Element{1} << kFractionBits;
    static constexpr Element kFractionMask = kHidden - 1;
    static constexpr Element kSignMask = Element{1} << (8 * sizeof(Element) - 1);
    static constexpr Element kInfinity = Element{kLargestField} << kFractionBits;
    static constexpr Element kOne = Element{kBias} << kFractionBits;
    static constexpr Element kShiftedOne = kOne + (Element{kFractionBits} << kFractionBits);  // 2^F
    static constexpr Element kQuietNan = kInfinity | (kHidden >> 1);
    // A significand with its guard bit is below 2^(F + 2), less than half of 2^kAllShiftedOut.
    static constexpr int kAllShiftedOut = kFractionBits + 3;
};

template <class Word>
using LayoutOf = Layout<typename WordTypes<Word>::Element>;

template <class To, class From>
FP8SIM_HD To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

template <class Word>
FP8SIM_HD Word broadcast(typename WordTypes<Word>::Element value) {
    return Word{} + value;
}

template <class T>
FP8SIM_HD T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
FP8SIM_HD T larger(T a, T b) {
    return a > b ? a : b;
}

// `a` where the mask is set, 0 elsewhere.
template <class Word, class Mask>
FP8SIM_HD Word where(Mask mask, Word a) {
    return mask ? a : Word{};
}

// Rounding of a magnitude

// How far down a format reaches, seen from the source: a loop over one format knows this before it starts.
enum class Reach {
    kWithin,   // its smallest normal is above the source's: source subnormals need no leading bit
    kAligned,  // the same smallest normal (bfloat16 and binary32): source bits, shifted, are counting codes
    kBeyond,   // it reaches further down
};

template <class Word>
FP8SIM_HD Reach reach_of(const Conversion& c) {
    const int emin_field = c.emin + LayoutOf<Word>::kBias;
    return emin_field > 1 ? Reach::kWithin : (emin_field == 1 ? Reach::kAligned : Reach::kBeyond);
}

// The magnitude in units of the code spacing is sig * 2^-shift; `below` more makes its counting code.
template <class Word>
struct Scaled {
    Word sig;
    Word shift;  // may exceed the word's width
    Word below;  // counting codes below this binade
};

// The bits of an integer below 2^F as a number: added to 2^F, it is that number's fraction.
template <class Word>
FP8SIM_HD Word float_of_fraction(Word fraction) {
    using L = LayoutOf<Word>;
    using Float = typename WordTypes<Word>::Float;
    const Word shifted_one = broadcast<Word>(L::kShiftedOne);
    const Word bits = bit_cast<Word>(bit_cast<Float>(shifted_one | fraction) - bit_cast<Float>(shifted_one));
    return bits & ~L::kSignMask;  // 0 is -0 where the environment rounds down
}

// A format that reaches below binary32 (binary64) needs its subnormals as numbers with a hidden bit. Zero, which has
// none, gets an exponent below every format's, so that it stays counting code 0.
template <class Word>
FP8SIM_HD void normalise_subnormal(Word magnitude, typename WordTypes<Word>::Int& field, Word& sig) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Word bits = float_of_fraction<Word>(magnitude & L::kFractionMask);
    const auto subnormal = field == 0;
    const Int normalised = (Int)(bits >> L::kFractionBits) + (1 - L::kBias - L::kFractionBits);
    field = subnormal ? (bits == 0 ? Int{} - (1 << 17) : normalised) : field;
    sig = subnormal ? (bits & L::kFractionMask) | where(bits != 0, broadcast<Word>(L::kHidden)) : sig;
}

template <Reach reach, class Word>
FP8SIM_HD Scaled<Word> scale_magnitude(Word magnitude, const Conversion& c) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const int least_shift = L::kFractionBits + 1 - c.mantissa_bits;
    if constexpr (reach == Reach::kAligned) return {magnitude << 1, broadcast<Word>(least_shift), Word{}};

    Int field = (Int)(magnitude >> L::kFractionBits);
    Word sig = (magnitude & L::kFractionMask) | where(field != 0, broadcast<Word>(L::kHidden));
    if constexpr (reach == Reach::kBeyond) normalise_subnormal(magnitude, field, sig);
    // A subnormal's exponent is that of field 1; normalised ones have a field of their own, 0 and less.
    else field = larger<Int>(field, Int{} + 1);

    const Int emin_field = Int{} + (c.emin + L::kBias);
    const Int clamped = larger<Int>(field, emin_field);
    Int binades = clamped - emin_field;
    if constexpr (reach == Reach::kBeyond) {
        // No finite code lies in a binade above the last one: the cap keeps the code in the word and above all of them.
        binades = smaller<Int>(binades, Int{} + (int)((c.max_code + c.offset) >> c.mantissa_bits));
    }
    return {sig << 1, (Word)(clamped - field + least_shift), (Word)binades << c.mantissa_bits};
}

// Whether a stochastic mode rounds `rest` * 2^-shift away from zero (0 <= rest < 2^shift). With the random integer R of
// N bits, "k + R >= 2^N" is "k > 2^N - 1 - R", which needs no bit more than N.
template <Rounding mode, class Word>
FP8SIM_HD auto rounds_away(Word rest, Word shift, Word random, int random_bits) {
    const Word zero{}, all_shifted_out = zero + LayoutOf<Word>::kAllShiftedOut;
    const Word n = zero + (uint32_t)random_bits;
    const Word left = where(n > shift, n - shift);
    const Word right = smaller<Word>(where(shift > n, shift - n), all_shifted_out);
    const Word quotient = rest >> right;
    const Word threshold = (0xFFFFFFFFu >> (32 - random_bits)) ^ random;
    if constexpr (mode == Rounding::kStochasticEqual) {
        return where(rest != 0, random >> (n - 1)) != 0;
    } else if constexpr (mode == Rounding::kStochasticA) {
        return (quotient << left) > threshold;
    } else if constexpr (mode == Rounding::kStochasticB) {
        const Word next_bit = ((rest << 1) >> right) & (zero + 1);  // 0 where nothing is lost
        return (quotient << left) + next_bit > threshold;
    } else {
        const Word unit = (zero + 1) << right;
        const Word half = (unit >> 1) | (unit & 1);  // where nothing is lost, nothing reaches it
        const Word lost = rest & (unit - 1);
        return (quotient << left) + where(lost + (quotient & 1) > half, zero + 1) > threshold;
    }
}

// The counting code of a magnitude, rounded as if there were no largest one.
template <Rounding mode, Reach reach, class Word, class Mask>
FP8SIM_HD Word round_magnitude(Word magnitude, Mask negative, const Conversion& c, Word random, int random_bits) {
    const Scaled<Word> scaled = scale_magnitude<reach>(magnitude, c);
    const Word zero{}, one = zero + 1, all_shifted_out = zero + LayoutOf<Word>::kAllShiftedOut;
    const Word shift = smaller<Word>(scaled.shift, all_shifted_out);
    const Word half = one << (shift - 1);
    const Word rest_mask = half + half - 1;
    const Word down = (scaled.sig >> shift) + scaled.below;
    const Word even = ~(down ^ c.offset) & 1;
    if constexpr (mode == Rounding::kTowardZero) return down;
    if constexpr (mode == Rounding::kToOdd) return down + where((scaled.sig & rest_mask) != 0, even);
    if constexpr (is_stochastic(mode)) {
        const Word far = smaller<Word>(scaled.shift, all_shifted_out + 32);
        return down + where(rounds_away<mode, Word>(scaled.sig & rest_mask, far, random, random_bits), one);
    }
    Word addend = zero;
    if constexpr (mode == Rounding::kTiesToEven) addend = half - even;
    if constexpr (mode == Rounding::kTiesToAway) addend = half;
    if constexpr (mode == Rounding::kTiesToZero) addend = half - 1;
    if constexpr (mode == Rounding::kTowardPositive) addend = negative ? zero : rest_mask;
    if constexpr (mode == Rounding::kTowardNegative) addend = negative ? rest_mask : zero;
    return ((scaled.sig + addend) >> shift) + scaled.below;
}

// Encode

// What a rounded magnitude becomes, sign included: the policy, either in codes or in the bits of the numbers that those
// codes stand for. `Element` is wide enough for both.
template <class Element>
struct Ends {
    Element largest;
    Element sign;    // 0 in an unsigned format
    Element negate;  // a code's bits if negative codes are those of a two's complement, else 0
    Element below;
    Element zero[2];  // for a positive and for a negative number
    Element overflow[2];
    Element infinity[2];
    Element nan[2];
};

template <class Element>
FP8SIM_HD Ends<Element> ends_of(const Conversion& c) {
    return {c.max_code,
            c.sign_bit,
            c.twos_complement != 0 ? Element{2} * c.sign_bit - 1 : Element{0},
            c.below,
            {c.zero_positive, c.zero_negative},
            {c.overflow_positive, c.overflow_negative},
            {c.infinity_positive, c.infinity_negative},
            {c.nan_positive, c.nan_negative}};
}

template <class Word, class Mask, class Element>
FP8SIM_HD Word choose(Mask negative, const Element (&ends)[2]) {
    return negative ? Word{} + ends[1] : Word{} + ends[0];
}

// `rounded` is the magnitude that x was rounded to, a code or the bits of a number.
template <class Word, class Mask, class Element>
FP8SIM_HD Word finish(Word rounded, Mask is_zero, Word x, const Ends<Element>& ends) {
    using L = LayoutOf<Word>;
    const Word magnitude = x & ~L::kSignMask;
    const auto negative = x != magnitude;
    Word negative_number = ends.sign != 0 ? rounded | ends.sign : Word{} + ends.below;
    if (ends.negate != 0) negative_number = (Word{} - rounded) & ends.negate;
    Word y = negative ? negative_number : rounded;
    y = rounded > ends.largest ? choose<Word>(negative, ends.overflow) : y;
    y = is_zero ? choose<Word>(negative, ends.zero) : y;
    y = magnitude >= L::kInfinity ? choose<Word>(negative, ends.infinity) : y;
    return magnitude > L::kInfinity ? choose<Word>(negative, ends.nan) : y;
}

// The code of the binary32 (binary64) number whose bits are x, of infinities and NaN, too. `random` is the random
// integer R of `random_bits` bits (1 to 32) in the stochastic modes; the others ignore both.
template <Rounding mode, Reach reach, class Word>
FP8SIM_HD Word encode(Word x, const Conversion& c, Word random, int random_bits) {
    using L = LayoutOf<Word>;
    const Word magnitude = x & ~L::kSignMask;
    const Word counting = round_magnitude<mode, reach>(magnitude, x != magnitude, c, random, random_bits);
    // Where counting is 0 and `offset` 1, the difference wraps round, and the code is that of zero all the same.
    return finish<Word>(counting - c.offset, counting == 0, x, ends_of<typename WordTypes<Word>::Element>(c));
}

// The same where only the mode is known beforehand.
template <Rounding mode, class Word>
FP8SIM_HD Word encode(Word x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    switch (reach_of<Word>(c)) {
        case Reach::kWithin: return encode<mode, Reach::kWithin, Word>(x, c, random, random_bits);
        case Reach::kAligned: return encode<mode, Reach::kAligned, Word>(x, c, random, random_bits);
        case Reach::kBeyond: return encode<mode, Reach::kBeyond, Word>(x, c, random, random_bits);
    }
    return 0;
}

// The same with the mode, too, read from the conversion.
template <class Word>
FP8SIM_HD Word encode(Word x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    switch (static_cast<Rounding>(c.rounding)) {
#define FP8SIM_CASE(mode) \
    case mode: return encode<mode, Word>(x, c, random, random_bits);
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
    return 0;
}

// Decode

// bits * 2^exponent in binary32 (binary64), where bits are those of a normal number or zero: rounded to nearest even
// where the product is subnormal, infinity above.
template <class Word>
FP8SIM_HD Word scale_by_power(Word bits, typename WordTypes<Word>::Int exponent) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Int field = (Int)(bits >> L::kFractionBits) + exponent;
    const Word fraction = bits & L::kFractionMask;
    const Word normal = fraction | ((Word)field << L::kFractionBits);

    const Int zero{}, one = zero + 1;
    const Word shift = (Word)smaller<Int>(larger<Int>(one - field, one), zero + L::kAllShiftedOut);
    const Word significand = fraction | L::kHidden;
    const Word odd = (significand >> shift) & 1;
    const Word subnormal = (significand + ((Word{} + 1) << (shift - 1)) - 1 + odd) >> shift;
    const Word finite = field >= one ? normal : subnormal;
    const Word number = field >= L::kLargestField ? broadcast<Word>(L::kInfinity) : finite;
    return bits == 0 ? Word{} : number;
}

// Where a format's numbers lie among binary32's (binary64's).
enum class Span {
    kAligned,  // codes, shifted, are the bits of the numbers: bfloat16 in binary32
    kNormal,   // they are normal numbers or zero
    kAny,      // there are subnormal ones, or too large ones
};

template <class Word>
FP8SIM_HD Span span_of(const Conversion& c) {
    using L = LayoutOf<Word>;
    const int64_t lowest_field = int64_t{c.emin} + L::kBias;
    const uint32_t largest = c.max_code + c.offset + c.twos_complement;  // the lowest number may be one code further
    const int64_t binades = larger<int64_t>(largest >> c.mantissa_bits, 1);
    const int64_t highest_field = lowest_field + binades - 1;
    if (highest_field >= L::kLargestField) return Span::kAny;
    if (lowest_field == 1) return Span::kAligned;
    return lowest_field > c.mantissa_bits ? Span::kNormal : Span::kAny;
}

// The bits of the number that a counting code stands for.
template <Span span, class Word>
FP8SIM_HD Word number_of_counting(Word counting, const Conversion& c) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    using Float = typename WordTypes<Word>::Float;
    using Element = typename WordTypes<Word>::Element;
    const int spare_bits = L::kFractionBits - c.mantissa_bits;
    const Word in_place = counting << spare_bits;
    if constexpr (span == Span::kAligned) return in_place;

    if constexpr (span == Span::kNormal) {
        // 2^emin * (1 + T) - 2^emin for a subnormal T, whose field is 0; normal fields are one lower.
        const Word smallest_normal = broadcast<Word>((Element)(c.emin + L::kBias) << L::kFractionBits);
        const Word bits = in_place + smallest_normal;
        const Word subnormal = bit_cast<Word>(bit_cast<Float>(bits) - bit_cast<Float>(smallest_normal)) & ~L::kSignMask;
        return in_place < L::kHidden ? subnormal : bits - L::kHidden;
    }

    const Word binade = counting >> c.mantissa_bits;  // 0: subnormal
    const Word fraction = counting & ((1u << c.mantissa_bits) - 1);
    const Word significand = binade == 0 ? float_of_fraction(fraction) : (fraction << spare_bits) | L::kOne;
    const Int below_one = (Int)where(binade == 0, broadcast<Word>((uint32_t)c.mantissa_bits));
    const Int exponent = (Int)larger<Word>(binade, Word{} + 1) - below_one + (c.emin - 1);
    return scale_by_power<Word>(significand, exponent);
}

// The bits of the number that `code` stands for. The code's sign bit stays the sign, NaN included (0x80 of the FNUZ
// formats is a negative NaN, as in ml_dtypes); NaN is the quiet one without payload.
template <Span span, class Word>
FP8SIM_HD Word decode(Word code, const Conversion& c) {
    using L = LayoutOf<Word>;
    using Element = typename WordTypes<Word>::Element;
    const Element sign_bit = c.sign_bit;
    Word magnitude = code & ~sign_bit;
    const auto negative = magnitude != code;
    if (c.twos_complement) magnitude = negative ? (Word{} - code) & (2 * sign_bit - 1) : code;
    Word y = number_of_counting<span, Word>(magnitude + c.offset, c);
    y = magnitude == c.inf_code ? broadcast<Word>(L::kInfinity) : y;
    y = magnitude >= c.nan_from ? broadcast<Word>(L::kQuietNan) : y;
    if (!c.negative_zero) y = negative & (magnitude == 0) ? broadcast<Word>(L::kQuietNan) : y;
    return y | where(negative, broadcast<Word>(L::kSignMask));
}

template <class Word>
FP8SIM_HD Word decode(Word code, const Conversion& c) {
    return decode<Span::kAny, Word>(code, c);
}

// Cast: the number that x becomes in the format

template <Rounding mode, class Word>
FP8SIM_HD Word cast(Word x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    return decode<Word>(encode<mode, Word>(x, c, random, random_bits), c);
}

template <class Word>
FP8SIM_HD Word cast(Word x, const Conversion& c, uint32_t random = 0, int random_bits = 32) {
    return decode<Word>(encode<Word>(x, c, random, random_bits), c);
}

}  // namespace fp8sim
