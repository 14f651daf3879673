// Codes of a codebook: how many thresholds lie below x. As many comparisons as thresholds, without a branch.
#pragma once

#include <cstdint>

#include "cpu/cast_stages.hpp"

namespace fp8sim {
namespace {

// NaN is not at most any threshold, so that it gets the last code.
template <class Element, class Float = typename WordTypes<Element>::Float>
FP8SIM_LOOP levels_loop(const Element* x, uint8_t* codes, int64_t count, const Float* cuts, int cut_count) {
    map_lanes<Element>(x, codes, count, [=](Lanes<Element> lanes, int64_t) FP8SIM_INLINE {
        using Floats = typename WordTypes<Lanes<Element>>::Float;
        const Floats numbers = bit_cast<Floats>(lanes);
        const Lanes<Element> one = broadcast<Lanes<Element>>(1);
        Lanes<Element> code = {};
        for (int k = 0; k < cut_count; ++k) code += where(!(numbers <= Floats{} + cuts[k]), one);
        return code;
    });
}

inline void encode_levels_block(
    const uint32_t* x, uint8_t* codes, int64_t count, const void* cuts, int cut_count) {
    levels_loop(x, codes, count, static_cast<const float*>(cuts), cut_count);
}

inline void encode_levels_block(
    const uint64_t* x, uint8_t* codes, int64_t count, const void* cuts, int cut_count) {
    levels_loop(x, codes, count, static_cast<const double*>(cuts), cut_count);
}

}  // namespace
}  // namespace fp8sim
