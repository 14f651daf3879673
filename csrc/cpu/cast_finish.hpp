// From a rounded magnitude to the result: saturation, infinities, NaN, sign. `finish` of the core covers every policy;
// the usual ones take a third of its instructions.
#pragma once

#include <cstdint>

#include "cpu/lanes.hpp"

namespace fp8sim {
namespace {

enum class Finish {
    kSaturate,              // what exceeds the largest number becomes it; NaN has the sign of x
    kSaturateUnsignedNan,   // as before, but both NaN give the same
    kSaturateUnsignedZero,  // as before, and zero has no sign
    kOverflow,              // what exceeds the largest number becomes infinity or NaN; all have the sign of x
    kAny,
};

// The kinds that need no comparison with the largest number: x is clamped to it beforehand, since it rounds to itself
// in every mode.
constexpr bool is_saturating(Finish finish) { return finish <= Finish::kSaturateUnsignedZero; }

template <class Element>
FP8SIM_HD bool has_sign_of_x(const Element (&ends)[2], Element sign) {
    return ends[1] == (ends[0] | sign);
}

template <class Element>
FP8SIM_HD Finish finish_of(const Ends<Element>& e) {
    const bool symmetric = e.sign != 0 && has_sign_of_x(e.overflow, e.sign) && e.infinity[0] == e.overflow[0] &&
                           e.infinity[1] == e.overflow[1] && e.zero[0] == 0;
    const bool signed_zero = has_sign_of_x(e.zero, e.sign), signed_nan = has_sign_of_x(e.nan, e.sign);
    if (!symmetric || e.negate != 0) return Finish::kAny;
    if (e.overflow[0] != e.largest) return signed_zero && signed_nan ? Finish::kOverflow : Finish::kAny;
    if (signed_zero && signed_nan) return Finish::kSaturate;
    if (e.nan[0] != e.nan[1]) return Finish::kAny;
    return signed_zero ? Finish::kSaturateUnsignedNan : Finish::kSaturateUnsignedZero;
}

// Whether loops of a mode are compiled for a kind: all for ties to even, those of most formats for stochastic rounding.
constexpr bool has_finish(Rounding mode, Finish kind) {
    if (mode == Rounding::kTiesToEven || kind == Finish::kSaturate) return true;
    return mode == Rounding::kStochastic && kind == Finish::kSaturateUnsignedNan;
}

// `y` is a code, or the bits of a number; the sign bit of codes is `sign_shift` places below that of x.
// Without `with_sign`, which needs kSaturate, the sign is left to the caller.
template <Finish kind, bool with_sign, class Word, class Element>
FP8SIM_HD Word finish_fast(Word y, Word x, const Ends<Element>& ends, int sign_shift) {
    using L = LayoutOf<Word>;
    static_assert(with_sign || kind == Finish::kSaturate, "the other kinds depend on the sign");
    if constexpr (kind == Finish::kAny) return finish<Word>(y, y == 0, x, ends);
    const Word sign = (x & L::kSignMask) >> sign_shift;
    const auto is_nan = (x & ~L::kSignMask) > L::kInfinity;
    const Word nan = broadcast<Word>(ends.nan[0]);
    if constexpr (!with_sign) return is_nan ? nan : y;
    if constexpr (kind == Finish::kSaturate) return (is_nan ? nan : y) | sign;
    if constexpr (kind == Finish::kSaturateUnsignedNan) return is_nan ? nan : y | sign;
    if constexpr (kind == Finish::kSaturateUnsignedZero) return is_nan ? nan : y | where(y != 0, sign);
    const Word limited = y > ends.largest ? broadcast<Word>(ends.overflow[0]) : y;
    return (is_nan ? nan : limited) | sign;
}

}  // namespace
}  // namespace fp8sim
