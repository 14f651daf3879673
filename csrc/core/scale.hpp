// From the largest magnitude of a block to its scale factor: `fp8sim.scaling.ScaleRule` and `Order` have the equations.
//
// `Word` is uint32_t, the bits of one amax, or a vector of those. Exponents are taken from bits, not from a logarithm;
// everything else is one float32 operation after another, each rounded to nearest even in the default environment.
// Magnitudes alone: NaN has no sign, whatever the processor makes of 0 / 0.
#pragma once

#include <cstdint>

#include "core/rounding.hpp"

namespace fp8sim {

// Numbers are those of the members' places in `fp8sim.scaling`.
enum class ScaleRule : uint32_t { kAmax, kPowerOfTwoAmax, kFloor, kCeil, kEven, kRceil };
enum class Order : uint32_t { kMultiply, kDivide, kTwoLevelDivide, kTwoLevelTransformerEngine, kTwoLevelTorchao };

// A rule and the element format, as `fp8sim.scaling.constants` resolves them.
struct ScaleConstants {
    ScaleRule rule;
    Order order;
    bool propagate;
    int emax;
    int mantissa_bits;
    float max;
    double amax_floor;
    double store_max;
    float store_smallest_normal;
    Conversion store;
};

constexpr int kE8m0Bias = 127, kE8m0Largest = 254, kE8m0Nan = 255;
constexpr float kLargestFloat = 3.40282346638528859812e+38f;
constexpr float kSmallestFloat = 1.40129846432481707092e-45f;

FP8SIM_HD constexpr bool is_mx(ScaleRule rule) { return rule >= ScaleRule::kFloor; }
FP8SIM_HD constexpr bool has_two_levels(Order order) { return order >= Order::kTwoLevelDivide; }

// Whether x is divided by `Factor::applied`: a power of two is applied as its reciprocal, to the same effect.
FP8SIM_HD bool divides(const ScaleConstants& s) {
    return !is_mx(s.rule) && (s.order == Order::kDivide || s.order == Order::kTwoLevelDivide);
}

// What a block stores, an E8M0 or `store` code or the bits of a float32 number, and what its elements meet.
template <class Word>
struct Factor {
    Word stored;
    Word applied;  // a float32 number's bits
};

// Numbers

template <class Word>
using FloatOf = typename WordTypes<Word>::Float;

template <class Word>
FP8SIM_HD Word magnitude_bits(FloatOf<Word> x) {
    return bit_cast<Word>(x) & ~LayoutOf<Word>::kSignMask;
}

template <class Word>
FP8SIM_HD FloatOf<Word> as_float(Word bits) {
    return bit_cast<FloatOf<Word>>(bits);
}

// NaN stays.
template <class Float>
FP8SIM_HD Float at_most(Float x, float limit) {
    return x > limit ? Float{} + limit : x;
}

template <class Float>
FP8SIM_HD Float at_least(Float x, float limit) {
    return x < limit ? Float{} + limit : x;
}

// floor(log2) of a magnitude; 128 for infinity, and for zero less than for any number.
template <class Word>
FP8SIM_HD typename WordTypes<Word>::Int floor_log2(Word bits) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Int field = (Int)(bits >> L::kFractionBits);
    const Int leading = (Int)(float_of_fraction<Word>(bits & L::kFractionMask) >> L::kFractionBits);
    return field > 0 ? field - L::kBias : leading - (L::kBias + L::kBias + L::kFractionBits - 1);
}

template <class Word>
FP8SIM_HD typename WordTypes<Word>::Int ceil_log2(Word bits) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Word below_leading = bits >= L::kHidden ? bits & L::kFractionMask : bits & (bits - 1);
    return floor_log2(bits) + (Int)where(below_leading != 0, Word{} + 1);
}

// 2^exponent, -149 to 127.
template <class Word>
FP8SIM_HD Word power_of_two(typename WordTypes<Word>::Int exponent) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Int least = Int{} + (1 - L::kBias);
    const Int place = smaller<Int>(larger<Int>(exponent + (L::kBias + L::kFractionBits - 1), Int{}), Int{} + 23);
    const Word subnormal = (Word{} + 1) << (Word)place;
    return exponent >= least ? (Word)(exponent + L::kBias) << L::kFractionBits : subnormal;
}

// A magnitude rounded to a power of two of float32; zero, infinity and NaN stay.
template <bool up, class Word>
FP8SIM_HD Word to_power_of_two(Word bits) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    const Int exponent = smaller<Int>(up ? ceil_log2(bits) : floor_log2(bits), Int{} + L::kBias);
    return (bits == 0) | (bits >= L::kInfinity) ? bits : power_of_two<Word>(exponent);
}

// One level

template <class Word>
FP8SIM_HD Word e8m0_code(Word amax, const ScaleConstants& s) {
    using L = LayoutOf<Word>;
    using Int = typename WordTypes<Word>::Int;
    Int exponent;
    switch (s.rule) {
        case ScaleRule::kCeil: exponent = ceil_log2(amax) - s.emax; break;
        case ScaleRule::kEven: exponent = floor_log2<Word>(amax + (1u << (22 - s.mantissa_bits))) - s.emax; break;
        case ScaleRule::kRceil: exponent = ceil_log2(magnitude_bits<Word>(as_float(amax) * (1.0f / s.max))); break;
        default: exponent = floor_log2(amax) - s.emax; break;
    }
    const Int code = smaller<Int>(larger<Int>(exponent + kE8m0Bias, Int{}), Int{} + kE8m0Largest);
    const Word finite = amax == 0 ? Word{} : (Word)code;
    return amax >= L::kInfinity ? Word{} + kE8m0Nan : finite;
}

template <class Word>
FP8SIM_HD Factor<Word> mx_factor(Word amax, const ScaleConstants& s) {
    using Int = typename WordTypes<Word>::Int;
    const Word code = e8m0_code(amax, s);
    const Word reciprocal = power_of_two<Word>(kE8m0Bias - (Int)code);
    return {code, code == kE8m0Nan ? broadcast<Word>(LayoutOf<Word>::kQuietNan) : reciprocal};
}

// 1 where amax is zero, infinite or NaN, unless the arithmetic is to show.
template <class Word>
FP8SIM_HD Word replace_unusable(Word factor, Word amax, const ScaleConstants& s, double amax_floor) {
    using L = LayoutOf<Word>;
    if (s.propagate) return factor;
    const uint32_t least = amax_floor > 0 ? 0 : 1;
    return (amax >= least) & (amax < L::kInfinity) ? factor : broadcast<Word>(L::kOne);
}

// amax is raised to `amax_floor`, a binary64 number, by limiting what follows from it instead: rounding is monotonic.
template <class Word>
FP8SIM_HD Factor<Word> one_level_factor(Word amax, const ScaleConstants& s) {
    const bool is_power = s.rule == ScaleRule::kPowerOfTwoAmax;
    if (divides(s)) {
        const float least = static_cast<float>(s.amax_floor / static_cast<double>(s.max));
        const auto quotient = at_least(at_least(as_float(amax) / s.max, least), kSmallestFloat);
        Word scale_inv = magnitude_bits<Word>(quotient);
        if (is_power) scale_inv = to_power_of_two<true>(scale_inv);
        scale_inv = replace_unusable(scale_inv, amax, s, s.amax_floor);
        return {scale_inv, scale_inv};
    }
    const float most = static_cast<float>(static_cast<double>(s.max) / s.amax_floor);
    Word scale = magnitude_bits<Word>(at_most(at_most(s.max / as_float(amax), most), kLargestFloat));
    if (is_power) scale = to_power_of_two<false>(scale);
    scale = replace_unusable(scale, amax, s, s.amax_floor);
    return {magnitude_bits<Word>(1.0f / as_float(scale)), scale};
}

// Two levels

// What the amax of the whole tensor comes to.
struct TensorFactor {
    float scale_inv;  // stored: multiplies codes
    float multiplier;  // of Transformer Engine: amax of a block times this is its factor
};

FP8SIM_HD TensorFactor tensor_factor(uint32_t amax, const ScaleConstants& s) {
    const double ends = static_cast<double>(s.max) * s.store_max, whole = as_float(amax);
    if (s.order == Order::kTwoLevelTransformerEngine) {
        const float limited = at_most(static_cast<float>(ends / whole), kLargestFloat);
        const float scale = as_float(replace_unusable(magnitude_bits<uint32_t>(limited), amax, s, 0));
        return {as_float(magnitude_bits<uint32_t>(1.0f / scale)), scale * (1.0f / s.max)};
    }
    const uint32_t quotient = magnitude_bits<uint32_t>(static_cast<float>(whole / ends));
    const float scale_inv = as_float(replace_unusable(quotient, amax, s, 0));
    return {s.propagate ? scale_inv : at_least(scale_inv, kSmallestFloat), 0};
}

template <class Word>
FP8SIM_HD Factor<Word> two_level_factor(Word amax, const ScaleConstants& s, const TensorFactor& tensor) {
    using Float = FloatOf<Word>;
    const bool is_engine = s.order == Order::kTwoLevelTransformerEngine;
    const bool is_torchao = s.order == Order::kTwoLevelTorchao;
    Float block;
    if (is_engine) block = at_most(as_float(amax) * tensor.multiplier, kLargestFloat);
    else block = as_float(amax) / s.max / tensor.scale_inv;
    if (is_torchao) block = at_least(block, s.store_smallest_normal);

    const Word bits = magnitude_bits<Word>(block);
    const Word code = encode<Rounding::kTiesToEven, Reach::kBeyond, Word>(bits, s.store, Word{}, 32);
    const Float stored = as_float(decode<Span::kAny, Word>(code, s.store));
    if (is_torchao) return {code, magnitude_bits<Word>(1.0f / tensor.scale_inv / stored)};
    const Float combined = stored * tensor.scale_inv;
    if (is_engine) return {code, magnitude_bits<Word>(at_most(1.0f / combined, kLargestFloat))};
    const Word divisor = magnitude_bits<Word>(combined);  // x / infinity is a zero of the sign of x
    return {code, divisor == 0 ? broadcast<Word>(LayoutOf<Word>::kInfinity) : divisor};
}

// The factor of a block whose amax, without sign and with one NaN, has these bits. `tensor` is read in two levels.
template <class Word>
FP8SIM_HD Factor<Word> factor_of(Word amax, const ScaleConstants& s, const TensorFactor& tensor) {
    if (is_mx(s.rule)) return mx_factor(amax, s);
    return has_two_levels(s.order) ? two_level_factor(amax, s, tensor) : one_level_factor(amax, s);
}

}  // namespace fp8sim
