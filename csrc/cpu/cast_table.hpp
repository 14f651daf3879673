// Ties to even by the adder, with its constants from a table: AVX-512 looks sixteen up in one instruction, for which
// `round_by_adder` takes three. Its bits are the same.
#pragma once

#include <cstdint>

#include "cpu/cast_adder.hpp"

namespace fp8sim {
namespace {

#if defined(__AVX512DQ__)
constexpr bool kHasAdderTable = true;

// C + K of 32 binades, by the low five bits of the exponent field.
struct AdderTable {
    Lanes<uint32_t> first, second;
};

FP8SIM_HD AdderTable adder_table_of(const Adder<uint32_t>& adder) {
    using L = Layout<uint32_t>;
    const uint32_t lowest = adder.lowest >> L::kFractionBits;
    Lanes<uint32_t> number = {};
    for (int lane = 0; lane < kLanes<uint32_t>; ++lane) number[lane] = lane;
    const auto constants = [&](Lanes<uint32_t> low_bits) FP8SIM_INLINE {
        return counted_constant((((low_bits - lowest) & 31) + lowest) << L::kFractionBits, adder);
    };
    return {constants(number), constants(number + kLanes<uint32_t>)};
}

FP8SIM_HD bool table_has_all(const Adder<uint32_t>& adder) {
    return (adder.highest - adder.lowest) >> Layout<uint32_t>::kFractionBits <= 32;
}

// The code of |x|, saturated; any bits for NaN.
FP8SIM_HD Lanes<uint32_t> code_by_table(
    Lanes<uint32_t> x, uint32_t largest, const Adder<uint32_t>& adder, const AdderTable& table) {
    using Word = Lanes<uint32_t>;
    using Float = Lanes<float>;
    using L = Layout<uint32_t>;
    constexpr int kSmallerMagnitude = 2 | 2 << 2;  // of the two, and without its sign
    const __m512 clamped =
        _mm512_range_ps(bit_cast<__m512>(x), bit_cast<__m512>(broadcast<Word>(largest)), kSmallerMagnitude);
    const Word field = larger<Word>(bit_cast<Word>(clamped), broadcast<Word>(adder.lowest)) >> L::kFractionBits;
    const __m512i constant = _mm512_permutex2var_epi32(
        bit_cast<__m512i>(table.first), bit_cast<__m512i>(field), bit_cast<__m512i>(table.second));
    return bit_cast<Word>(bit_cast<Float>(clamped) + bit_cast<Float>(constant)) & L::kFractionMask;
}
#else
constexpr bool kHasAdderTable = false;
#endif

}  // namespace
}  // namespace fp8sim
