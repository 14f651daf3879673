// Rounding by the adder of the floating-point unit: the fast path of most formats.
//
// With E the exponent of |x|, at least emin, C = 2^(E + F - M) has an ulp of 2^(E - M), which is the format's spacing
// at x, so the sum |x| + C is x rounded to the format, ties to even, carry into the next binade included:
//
//     (|x| + C) - C              is the rounded magnitude, exactly
//     bits(|x| + C) - bits(C)    is its significand in units of the spacing
//     |x| - ((|x| + C) - C)      is what rounding took away, exactly: every other mode is a step of one from there
//
// A multiple K of the spacing, added to C, changes none of this while the sum stays in C's binade. Where codes are
// wanted, K counts those of the binades below E, so that the sum's fraction is the counting code.
//
// Needs the default floating-point environment (`ScopedFloatEnvironment`) and a compiler that keeps to IEEE arithmetic.
// The last bit of the sum is that of the code if M >= 1.
#pragma once

#include <cstdint>

#include "cpu/lanes.hpp"

namespace fp8sim {
namespace {

template <class Element>
struct Adder {
    Element lowest;   // exponent field of emin, in place
    Element highest;  // and of the binade above the largest number
    Element lift;     // from E to the exponent of C, in place
    Element units;    // a number: 2^32 / the smallest spacing
    Element counted;  // `lift` less what shifting `lowest` down as a count of codes leaves
    int mantissa_bits;
};

template <class Element>
FP8SIM_HD Adder<Element> adder_of(const Conversion& c) {
    using L = Layout<Element>;
    const int lowest = c.emin + L::kBias;
    const int binades = larger<int>(c.max_code >> c.mantissa_bits, 1);
    return {Element(lowest) << L::kFractionBits, Element(lowest + binades) << L::kFractionBits,
            Element(L::kFractionBits - c.mantissa_bits) << L::kFractionBits,
            Element(L::kBias + 32 - c.emin + c.mantissa_bits) << L::kFractionBits,
            (Element(L::kFractionBits - c.mantissa_bits) << L::kFractionBits) - (Element(lowest) << c.mantissa_bits),
            c.mantissa_bits};
}

// Whether the sums of this format are numbers that the source's dtype has.
template <class Element>
FP8SIM_HD bool adder_fits(const Conversion& c) {
    using L = Layout<Element>;
    const int m = c.mantissa_bits, lowest = c.emin + L::kBias;
    const int64_t highest = int64_t{lowest} + larger<int>(c.max_code >> m, 1);
    const bool has_codes = c.offset == 0 && m >= 1 && m < L::kFractionBits;
    const bool codes_fit = (uint64_t{c.max_code} + (uint64_t{2} << m)) >> L::kFractionBits == 0;
    return has_codes && codes_fit && lowest - m - 1 >= 1 && highest + L::kFractionBits - m <= 2 * L::kBias;
}

// Stochastic rounding looks 32 bits below the spacing; binary32's subnormals must lie below those.
FP8SIM_HD bool adder_fits_stochastic(const Conversion& c, int random_bits) {
    const int smallest = c.emin - c.mantissa_bits;
    return random_bits == 32 && smallest - 10 >= -126 && 32 - smallest <= 127;
}

#if defined(__AVX512F__)
// The bits of |x| + C + K, rounded down or, where the random integer says so, up: where the discarded fraction in units
// of 2^-32, rounded to nearest even, exceeds `threshold`. Additions can round toward zero here, and a conversion to
// uint32 rounds to nearest even.
FP8SIM_HD Lanes<uint32_t> adder_sum_stochastic(Lanes<uint32_t> magnitude, Lanes<uint32_t> exponent,
                                               Lanes<uint32_t> constant_bits, Lanes<uint32_t> threshold,
                                               const Adder<uint32_t>& adder) {
    using Float = Lanes<float>;
    constexpr int kTowardZero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    const Float x = bit_cast<Float>(magnitude), constant = bit_cast<Float>(constant_bits);
    const auto sum = _mm512_add_round_ps(bit_cast<__m512>(x), bit_cast<__m512>(constant), kTowardZero);
    const Float units = bit_cast<Float>(adder.units + adder.lowest - exponent);  // 2^32 / spacing
    const Float lost = (x - (bit_cast<Float>(sum) - constant)) * units;
    const auto fraction = bit_cast<Lanes<uint32_t>>(_mm512_cvtps_epu32(bit_cast<__m512>(lost)));
    const auto floor = bit_cast<Lanes<uint32_t>>(sum);
    return fraction > threshold ? floor + 1 : floor;
}
#else
// The same in any arithmetic. The discarded fraction is the significand's bits below the spacing, or, when it reaches
// further down than 32 bits, what `units` and an addition of 2^23 make of the whole magnitude.
FP8SIM_HD Lanes<uint32_t> adder_sum_stochastic(Lanes<uint32_t> magnitude, Lanes<uint32_t> exponent,
                                               Lanes<uint32_t> constant_bits, Lanes<uint32_t> threshold,
                                               const Adder<uint32_t>& adder) {
    using Word = Lanes<uint32_t>;
    using Float = Lanes<float>;
    using L = Layout<uint32_t>;
    const Word binades_below = (exponent - (magnitude & L::kInfinity)) >> L::kFractionBits;
    const Word left = (Word{} + (9 + adder.mantissa_bits) - binades_below) & 31;  // 32 - shift
    const Word fraction = ((magnitude & L::kFractionMask) | L::kHidden) << left;

    const Word shifted_one = broadcast<Word>(L::kShiftedOne);
    const Float units = bit_cast<Float>(magnitude) * bit_cast<Float>(broadcast<Word>(adder.units));
    const Word far_fraction = bit_cast<Word>(units + bit_cast<Float>(shifted_one)) - shifted_one;
    const auto away = (units < bit_cast<Float>(shifted_one) ? far_fraction : fraction) > threshold;

    const Float x = bit_cast<Float>(magnitude), constant = bit_cast<Float>(constant_bits);
    const Float sum = x + constant;
    const Word one = broadcast<Word>(1), floor = bit_cast<Word>(sum) - where(x < sum - constant, one);
    return floor + where(away, one);
}
#endif

// The bits of |x| + C + K, one ulp up or down where the mode is not ties to even.
template <Rounding mode, class Word, class Mask, class Element>
FP8SIM_HD Word adder_sum(Word magnitude, Word exponent, Word constant_bits, Mask negative, Word random,
                         const Adder<Element>& adder) {
    using Float = typename WordTypes<Word>::Float;
    using L = Layout<Element>;
    if constexpr (mode == Rounding::kStochastic) {
        return adder_sum_stochastic(magnitude, exponent, constant_bits, ~random, adder);
    }
    const Word one = broadcast<Word>(1);
    const Float x = bit_cast<Float>(magnitude), constant = bit_cast<Float>(constant_bits);
    const Word sum = bit_cast<Word>(x + constant);
    if constexpr (mode == Rounding::kTiesToEven) return sum;

    const Float lost = x - (bit_cast<Float>(sum) - constant);
    const auto rounded_up = lost < Float{}, rounded_down = lost > Float{};
    const Word floor = sum - where(rounded_up, one);
    const Word half_spacing = exponent + (adder.lift - (Element{L::kFractionBits + 1} << L::kFractionBits));
    const Word lost_bits = bit_cast<Word>(lost);
    if constexpr (mode == Rounding::kTowardZero) return floor;
    if constexpr (mode == Rounding::kToOdd) return floor | where(lost != Float{}, one);
    if constexpr (mode == Rounding::kTiesToAway) return sum + where(lost_bits == half_spacing, one);
    if constexpr (mode == Rounding::kTiesToZero) return sum - where(lost_bits == (half_spacing | L::kSignMask), one);
    const Word ceiling = sum + where(rounded_down, one);
    if constexpr (mode == Rounding::kTowardPositive) return negative ? floor : ceiling;
    if constexpr (mode == Rounding::kTowardNegative) return negative ? ceiling : floor;
}

// The bits of C + K for a binade, given as its exponent field in place.
template <class Word, class Element>
FP8SIM_HD Word counted_constant(Word exponent, const Adder<Element>& adder) {
    return exponent + (exponent >> (Layout<Element>::kFractionBits - adder.mantissa_bits)) + adder.counted;
}

// The magnitude that `magnitude` rounds to: its code, or its bits. `clamped`: it does not exceed the largest number.
template <Rounding mode, bool to_codes, bool clamped, class Word, class Mask, class Element>
FP8SIM_HD Word round_by_adder(Word magnitude, Mask negative, Word random, const Adder<Element>& adder) {
    using Float = typename WordTypes<Word>::Float;
    using L = Layout<Element>;
    const Word in_place = magnitude & L::kInfinity;
    const Word limited = clamped ? in_place : smaller<Word>(in_place, broadcast<Word>(adder.highest));
    const Word exponent = larger<Word>(limited, broadcast<Word>(adder.lowest));
    if constexpr (!to_codes) {
        const Word constant = exponent + adder.lift;
        const Word sum = adder_sum<mode>(magnitude, exponent, constant, negative, random, adder);
        return bit_cast<Word>(bit_cast<Float>(sum) - bit_cast<Float>(constant));
    }
    const Word constant = counted_constant(exponent, adder);
    const Word sum = adder_sum<mode>(magnitude, exponent, constant, negative, random, adder);
    // An infinite sum is above all codes if C is taken from it, and has no fraction.
    return clamped ? sum & L::kFractionMask : sum - (exponent + adder.lift);
}

}  // namespace
}  // namespace fp8sim
