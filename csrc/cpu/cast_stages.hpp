// The loops of a conversion over a run of elements, and the choice among them.
//
// Loops take their constants by value: a local copy whose address is never taken stays in registers, while a store to
// the result could alias anything reached by a pointer.
#pragma once

#include <cstdint>

#include "cpu/cast_adder.hpp"
#include "cpu/cast_finish.hpp"
#include "cpu/cast_table.hpp"
#include "cpu/lanes.hpp"

#define FP8SIM_LOOP __attribute__((noinline)) void

namespace fp8sim {
namespace {

// Plan: what is known of a conversion before the loops start

// How a fast loop rounds.
enum class Way {
    kAdder,    // by the floating-point adder
    kAligned,  // in integers, without shifts that depend on the element (`Reach::kAligned`)
    kGeneral,  // not by a fast loop: in integers, `encode` of the core, then `decode` for a cast
};

// From binary32 (uint32_t) or binary64 (uint64_t).
template <class Element>
struct Plan {
    Conversion conversion;
    Way way;
    Rounding mode;
    int random_bits;
    Adder<Element> adder;
    Ends<Element> codes;
    Ends<Element> numbers;
    Finish code_finish;
    Finish number_finish;
    int sign_shift;  // from the source's sign bit down to the code's
};

template <class Element>
Ends<Element> ends_as_numbers(const Conversion& c) {
    const auto number = [&c](uint32_t code) { return decode<Element>(code, c); };
    const Ends<uint32_t> codes = ends_of<uint32_t>(c);
    Ends<Element> ends = {};
    ends.largest = number(codes.largest);
    ends.sign = c.sign_bit ? Layout<Element>::kSignMask : 0;
    ends.below = number(codes.below);
    for (int negative = 0; negative < 2; ++negative) {
        ends.zero[negative] = number(codes.zero[negative]);
        ends.overflow[negative] = number(codes.overflow[negative]);
        ends.infinity[negative] = number(codes.infinity[negative]);
        ends.nan[negative] = number(codes.nan[negative]);
    }
    return ends;
}

// Modes for which there are loops of a way.
template <class Element>
constexpr bool has_loops(Way way, Rounding mode) {
    if (sizeof(Element) == 8) return way == Way::kAdder && mode == Rounding::kTiesToEven;
    return way == Way::kAligned || (way == Way::kAdder && mode <= Rounding::kStochastic);
}

template <class Element>
Way way_of(const Conversion& c, Rounding mode, int random_bits) {
    const bool is_aligned = span_of<Element>(c) == Span::kAligned && c.offset == 0;
    if (is_aligned && has_loops<Element>(Way::kAligned, mode)) return Way::kAligned;
    const bool adds = adder_fits<Element>(c) && (!is_stochastic(mode) || adder_fits_stochastic(c, random_bits));
    return adds && has_loops<Element>(Way::kAdder, mode) ? Way::kAdder : Way::kGeneral;
}

template <class Element>
Plan<Element> plan_of(const Conversion& c, int random_bits) {
    Plan<Element> plan = {};
    plan.conversion = c;
    plan.mode = static_cast<Rounding>(c.rounding);
    plan.way = way_of<Element>(c, plan.mode, random_bits);
    plan.random_bits = random_bits;
    plan.adder = adder_of<Element>(c);
    plan.codes = ends_of<Element>(c);
    plan.numbers = ends_as_numbers<Element>(c);
    plan.code_finish = finish_of(plan.codes);
    plan.number_finish = finish_of(plan.numbers);
    plan.sign_shift = 8 * sizeof(Element) - 1;
    for (uint32_t bit = c.sign_bit; bit > 1; bit /= 2) --plan.sign_shift;
    return plan;
}

// Loops

// The number that x becomes, or its code; `with_sign` as for `finish_fast`.
template <Way way, Rounding mode, Finish kind, bool to_codes, bool with_sign = true, class Word, class Element>
FP8SIM_HD Word convert_fast(Word x, Word random, const Plan<Element>& plan) {
    using L = Layout<Element>;
    const Word all = x & ~L::kSignMask;
    const auto negative = x != all;
    const Word magnitude = is_saturating(kind) ? smaller<Word>(all, broadcast<Word>(plan.numbers.largest)) : all;
    Word y;
    if constexpr (way == Way::kAdder) {
        y = round_by_adder<mode, to_codes, is_saturating(kind)>(magnitude, negative, random, plan.adder);
    } else {
        const Conversion& c = plan.conversion;
        y = round_magnitude<mode, Reach::kAligned>(magnitude, negative, c, random, plan.random_bits);
        if constexpr (!to_codes) y = y << (L::kFractionBits - c.mantissa_bits);
    }
    if constexpr (to_codes) return finish_fast<kind, with_sign>(y, x, plan.codes, plan.sign_shift);
    return finish_fast<kind, true>(y, x, plan.numbers, 0);
}

template <Rounding mode, class Element>
FP8SIM_HD Lanes<Element> random_lanes(const uint32_t* random, int64_t i) {
    if constexpr (is_stochastic(mode)) return load<Element>(random + i);
    return Lanes<Element>{};
}

// Codes that saturate, NaN with the sign of x, for as many as fill registers of bytes; their number.
template <Way way, Rounding mode, class Element>
FP8SIM_HD int64_t encode_signed_bytes(const Element* x, uint8_t* codes, int64_t count, const Plan<Element>& plan) {
    using Word = Lanes<Element>;
    if constexpr (kHasAdderTable && way == Way::kAdder && mode == Rounding::kTiesToEven) {
        if (table_has_all(plan.adder)) {
            const auto table = adder_table_of(plan.adder);
            return map_to_signed_bytes(x, codes, count, plan.sign_shift, [=](Word lanes) FP8SIM_INLINE {
                const Word code = code_by_table(lanes, plan.numbers.largest, plan.adder, table);
                const auto number = bit_cast<typename WordTypes<Word>::Float>(lanes);
                return number == number ? code : broadcast<Word>(plan.codes.nan[0]);
            });
        }
    }
    return map_to_signed_bytes(x, codes, count, plan.sign_shift, [=](Word lanes) FP8SIM_INLINE {
        return convert_fast<way, mode, Finish::kSaturate, true, false>(lanes, Word{}, plan);
    });
}

template <Way way, Rounding mode, Finish kind, bool to_codes, class Element, class To>
FP8SIM_LOOP fast_loop(const Element* x, const uint32_t* random, To* to, int64_t count, Plan<Element> plan) {
    if constexpr (kHasSignedBytes && kind == Finish::kSaturate && sizeof(Element) == 4 && sizeof(To) == 1) {
        const int64_t done = encode_signed_bytes<way, mode>(x, to, count, plan);
        x += done, to += done, count -= done;
    }
    map_lanes<Element>(x, to, count, [=](Lanes<Element> lanes, int64_t i) FP8SIM_INLINE {
        return convert_fast<way, mode, kind, to_codes>(lanes, random_lanes<mode, Element>(random, i), plan);
    });
}

template <Rounding mode, Reach reach, class Element>
FP8SIM_LOOP encode_loop(
    const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, Conversion c, int random_bits) {
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

template <class Code>
FP8SIM_LOOP narrow_codes(const uint32_t* from, Code* to, int64_t count) {
    map_lanes<uint32_t>(from, to, count, [](Lanes<uint32_t> codes, int64_t) FP8SIM_INLINE { return codes; });
}

// Stages: the loop for one plan

template <Way way, Rounding mode, bool to_codes, class Element, class To>
void run_fast(const Element* x, const uint32_t* random, To* to, int64_t count, const Plan<Element>& plan) {
    const Finish kind = to_codes ? plan.code_finish : plan.number_finish;
#define FP8SIM_TRY(wanted)                                                                             \
    if constexpr (has_finish(mode, wanted)) {                                                          \
        if (kind == wanted) return fast_loop<way, mode, wanted, to_codes>(x, random, to, count, plan); \
    }
    FP8SIM_TRY(Finish::kSaturate)
    FP8SIM_TRY(Finish::kSaturateUnsignedNan)
    FP8SIM_TRY(Finish::kSaturateUnsignedZero)
    FP8SIM_TRY(Finish::kOverflow)
#undef FP8SIM_TRY
    fast_loop<way, mode, Finish::kAny, to_codes>(x, random, to, count, plan);
}

// Whether there is a fast loop for the plan, which then has done it all.
template <Rounding mode, bool to_codes, class Element, class To>
bool try_fast(const Element* x, const uint32_t* random, To* to, int64_t count, const Plan<Element>& plan) {
    if constexpr (has_loops<Element>(Way::kAdder, mode)) {
        if (plan.way == Way::kAdder) return run_fast<Way::kAdder, mode, to_codes>(x, random, to, count, plan), true;
    }
    if constexpr (has_loops<Element>(Way::kAligned, mode)) {
        if (plan.way == Way::kAligned) return run_fast<Way::kAligned, mode, to_codes>(x, random, to, count, plan), true;
    }
    return false;
}

template <Rounding mode, class Element>
void encode_in_mode(
    const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, const Plan<Element>& plan) {
    if (try_fast<mode, true>(x, random, codes, count, plan)) return;
    const Conversion& c = plan.conversion;
    if (reach_of<Element>(c) == Reach::kWithin) {
        return encode_loop<mode, Reach::kWithin>(x, random, codes, count, c, plan.random_bits);
    }
    encode_loop<mode, Reach::kBeyond>(x, random, codes, count, c, plan.random_bits);
}

template <class Element>
void encode_stage(const Element* x, const uint32_t* random, uint32_t* codes, int64_t count, const Plan<Element>& plan) {
    switch (plan.mode) {
#define FP8SIM_CASE(mode) \
    case mode: return encode_in_mode<mode>(x, random, codes, count, plan);
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
}

// From numbers to numbers, where the plan has a fast way.
template <class Element>
bool try_cast_stage(
    const Element* x, const uint32_t* random, Element* numbers, int64_t count, const Plan<Element>& plan) {
    switch (plan.mode) {
#define FP8SIM_CASE(mode) \
    case mode: return try_fast<mode, false>(x, random, numbers, count, plan);
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
    return false;
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
