// Ties to even into most formats by one addition of binary32, for numbers that round to a finite one.
//
// A sum with a power of two is rounded where the sum's last bit is. The power is chosen for each binade so that this is
// the format's last bit there, and in the format's subnormals, whose spacing is that of the smallest normal binade:
//
//     base    = 2^(exponent of x), at least the smallest normal number
//     sum     = |x| + base * 2^(23 - mantissa_bits), rounded
//     fraction of the sum = |x| in units of the spacing, 0 to 2^(mantissa_bits + 1)
//
// GPUs add with rounding to nearest, ties to even, whatever else runs there; a CPU has to be in that mode.
#pragma once

#include <cmath>

#include "core/rounding.hpp"

namespace fp8sim {

struct QuickRounding {
    float beyond;  // the smallest magnitude that may not come; 0 where the conversion has no quick way
    uint32_t smallest_normal;
    float to_power;  // 2^(23 - mantissa_bits)
    uint32_t lower;  // from the sum's bits less those of `base` to a code, binades of `base` being added by themselves
    uint32_t spare_bits;
    uint32_t sign_bit;  // of codes
    uint32_t sign_shift;
};

// The quick way of a conversion: a format with subnormals, a sign and a negative zero, in which ties are even as in
// binary32, and whose powers are numbers of binary32.
FP8SIM_HD QuickRounding quick_rounding_of(const Conversion& c) {
    using L = Layout<uint32_t>;
    const int spare = L::kFractionBits - c.mantissa_bits, emin_field = c.emin + L::kBias;
    const bool ordinary = static_cast<Rounding>(c.rounding) == Rounding::kTiesToEven && c.offset == 0 &&
                          c.twos_complement == 0 && c.sign_bit != 0 && c.zero_positive == 0 &&
                          c.zero_negative == c.sign_bit && c.negative_zero != 0;
    const bool bits_fit = c.mantissa_bits >= 1 && spare >= 1 && emin_field > 1 && c.max_code >> c.mantissa_bits >= 1;
    const int64_t field = int64_t{c.max_code >> c.mantissa_bits} - 1 + emin_field;  // of the largest number
    if (!ordinary || !bits_fit || field + spare >= L::kLargestField) return {};
    const uint32_t fraction = c.max_code & ((1u << c.mantissa_bits) - 1);
    const uint32_t number = static_cast<uint32_t>(field) << L::kFractionBits | fraction << spare;
    const uint32_t half_further = number + (1u << (spare - 1)), to_even = c.max_code & 1;
    const uint32_t smallest_normal = static_cast<uint32_t>(emin_field) << L::kFractionBits;
    const uint32_t raise = static_cast<uint32_t>(spare) << L::kFractionBits;
    uint32_t sign_shift = 31;
    while (c.sign_bit >> (31 - sign_shift) > 1) --sign_shift;
    return {bit_cast<float>(half_further - to_even + 1),
            smallest_normal,
            bit_cast<float>(L::kOne + raise),
            raise + (smallest_normal >> spare),
            static_cast<uint32_t>(spare),
            c.sign_bit,
            sign_shift};
}

// Not where x is NaN.
FP8SIM_HD bool takes_quick_way(uint32_t x, const QuickRounding& q) { return fabsf(bit_cast<float>(x)) < q.beyond; }

FP8SIM_HD uint32_t quick_base(uint32_t x, const QuickRounding& q) {
    return larger(x & Layout<uint32_t>::kInfinity, q.smallest_normal);
}

// The product is exact: fmaf saves an instruction, and changes nothing.
FP8SIM_HD float quick_sum(uint32_t x, uint32_t base, const QuickRounding& q) {
    return fmaf(bit_cast<float>(base), q.to_power, fabsf(bit_cast<float>(x)));
}

// The code of the number whose bits are x.
FP8SIM_HD uint32_t quick_encode(uint32_t x, const QuickRounding& q) {
    const uint32_t base = quick_base(x, q), sum = bit_cast<uint32_t>(quick_sum(x, base, q));
    const uint32_t code = sum + ((base >> q.spare_bits) - base - q.lower);
    return code | (x >> q.sign_shift & q.sign_bit);
}

// The number that it becomes, as bits.
FP8SIM_HD uint32_t quick_cast(uint32_t x, const QuickRounding& q) {
    const uint32_t base = quick_base(x, q);
    const float rounded = fmaf(bit_cast<float>(base), -q.to_power, quick_sum(x, base, q));
    return bit_cast<uint32_t>(rounded) | (x & Layout<uint32_t>::kSignMask);
}

}  // namespace fp8sim
