// The loops of a conversion, over a run of elements, and the choice among them.
//
// Loops take their constants by value: a local copy whose address is never taken stays in registers, while a store to
// the result could alias anything reached by a pointer.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "cpu/cast_adder.hpp"
#include "cpu/lanes.hpp"

#define FP8SIM_LOOP __attribute__((noinline)) void

namespace fp8sim {
namespace {

// Everything that the loops of one conversion need, from one of binary32 (uint32_t) or binary64 (uint64_t).
template <class Element>
struct Plan {
    Conversion conversion;
    AdderPlan<Element> adder;
    Finish code_finish;
    Finish number_finish;
    Rounding mode;
    int random_bits;
    bool uses_adder;
};

template <class Element>
Ends<Element> ends_as_numbers(const Conversion& c) {
    const auto number = [&c](uint32_t code) { return decode<Element>(code, c); };
    const Ends<uint32_t> codes = ends_of<uint32_t>(c);
    Ends<Element> ends = {number(codes.largest), c.sign_bit ? Layout<Element>::kSignMask : 0, number(codes.below), {}, {}, {}, {}};
    for (int negative = 0; negative < 2; ++negative) {
        ends.zero[negative] = number(codes.zero[negative]);
        ends.overflow[negative] = number(codes.overflow[negative]);
        ends.infinity[negative] = number(codes.infinity[negative]);
        ends.nan[negative] = number(codes.nan[negative]);
    }
    return ends;
}

template <class Element>
bool use_adder(const Conversion& c, Rounding mode, int random_bits) {
    if (!adder_fits<Element>(c)) return false;
    if constexpr (sizeof(Element) == 8) return mode == Rounding::kTiesToEven;
    return !is_stochastic(mode) || (mode == Rounding::kStochastic && adder_fits_stochastic(c, random_bits));
}

template <class Element>
Plan<Element> plan_of(const Conversion& c, int random_bits) {
    const Rounding mode = static_cast<Rounding>(c.rounding);
    int sign_shift = 8 * sizeof(Element) - 1;
    for (uint32_t bit = c.sign_bit; bit > 1; bit /= 2) --sign_shift;
    const AdderPlan<Element> adder = {adder_of<Element>(c), ends_of<Element>(c), ends_as_numbers<Element>(c), sign_shift};
    return {c, adder, finish_of(adder.codes), finish_of(adder.numbers), mode, random_bits, use_adder<Element>(c, mode, random_bits)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Loops

template <Rounding mode, class Element>
FP8SIM_HD Lanes<Element> random_lanes(const uint32_t* random, int64_t i) {
    if constexpr (is_stochastic(mode)) return load<Element>(random + i);
    return Lanes<Element>{};
}

template <Rounding mode, Finish finish, bool to_codes, class Element, class To>
FP8SIM_LOOP adder_loop(const Element* x, const uint32_t* random, To* to, int64_t count, AdderPlan<Element> plan) {
    map_lanes<Element>(x, to, count, [=](Lanes<Element> lanes, int64_t i) FP8SIM_INLINE {
        return convert_by_adder<mode, finish, to_codes>(lanes, random_lanes<mode, Element>(random, i), plan);
    });
}

template <Rounding mode, Reach reach, class Element>
FP8SIM_LOOP encode_loop(const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, Conversion c, int random_bits) {
    map_lanes<Element>(x, codes, count, [=](Lanes<Element> lanes, int64_t i) FP8SIM_INLINE {
        return encode<mode, reach>(lanes, c, random_lanes<mode, Element>(random, i), random_bits);
    });
}

template <Span span, class Element, class Code>
FP8SIM_LOOP decode_loop(const Code* codes, Element* numbers, int64_t count, Conversion c) {
    map_lanes<Element>(codes, numbers, count, [=](Lanes<Element> lanes, int64_t) FP8SIM_INLINE {
        return decode<span>(lanes, c);
    });
}

template <class From, class To>
FP8SIM_LOOP narrow_loop(const From* from, To* to, int64_t count) {
    map_lanes<From>(from, to, count, [](Lanes<From> lanes, int64_t) FP8SIM_INLINE { return lanes; });
}

// ---------------------------------------------------------------------------------------------------------------------
// Stages: the loop for one conversion

template <Rounding mode, bool to_codes, class Element, class To>
void run_adder(Finish finish, const Element* x, const uint32_t* random, To* to, int64_t count, const AdderPlan<Element>& plan) {
    switch (finish) {
        case Finish::kSaturate: return adder_loop<mode, Finish::kSaturate, to_codes>(x, random, to, count, plan);
        case Finish::kSaturateUnsignedNan:
            return adder_loop<mode, Finish::kSaturateUnsignedNan, to_codes>(x, random, to, count, plan);
        case Finish::kAny: return adder_loop<mode, Finish::kAny, to_codes>(x, random, to, count, plan);
    }
}

// Modes in which `use_adder` may find that the adder serves.
template <class Element>
constexpr bool may_use_adder(Rounding mode) {
    if (sizeof(Element) == 8) return mode == Rounding::kTiesToEven;
    return mode <= Rounding::kStochastic;
}

template <Rounding mode, class Element>
void run_integer(const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, const Plan<Element>& plan) {
    const Conversion& c = plan.conversion;
    if constexpr (sizeof(Element) == 4) {
        if (reach_of<Element>(c) == Reach::kAligned) {
            return encode_loop<mode, Reach::kAligned>(x, random, codes, count, c, plan.random_bits);
        }
    }
    if (reach_of<Element>(c) == Reach::kWithin) {
        return encode_loop<mode, Reach::kWithin>(x, random, codes, count, c, plan.random_bits);
    }
    encode_loop<mode, Reach::kBeyond>(x, random, codes, count, c, plan.random_bits);
}

template <class Element>
void encode_stage(const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, const Plan<Element>& plan) {
    switch (plan.mode) {
#define FP8SIM_CASE(mode)                                                                                          \
    case mode:                                                                                                     \
        if constexpr (may_use_adder<Element>(mode)) {                                                              \
            if (plan.uses_adder) return run_adder<mode, true>(plan.code_finish, x, random, codes, count, plan.adder); \
        }                                                                                                          \
        return run_integer<mode>(x, random, codes, count, plan);
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
}

// From numbers to numbers, where the adder serves.
template <class Element>
void adder_cast_stage(const Element* x, const uint32_t* random, Element* numbers, int64_t count, const Plan<Element>& plan) {
    switch (plan.mode) {
#define FP8SIM_CASE(mode)                                                                                          \
    case mode:                                                                                                     \
        if constexpr (may_use_adder<Element>(mode)) {                                                              \
            return run_adder<mode, false>(plan.number_finish, x, random, numbers, count, plan.adder);              \
        }                                                                                                          \
        return;
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
}

template <class Element, class Code>
void decode_stage(const Code* codes, Element* numbers, int64_t count, const Conversion& c) {
    switch (span_of<Element>(c)) {
        case Span::kAligned: return decode_loop<Span::kAligned>(codes, numbers, count, c);
        case Span::kNormal: return decode_loop<Span::kNormal>(codes, numbers, count, c);
        case Span::kAny: return decode_loop<Span::kAny>(codes, numbers, count, c);
    }
}

}  // namespace
}  // namespace fp8sim
