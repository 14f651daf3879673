// One element of a tensor: from the type it is stored in, through the arithmetic, to the type it is stored as.
//
// binary16 and bfloat16 are widened to binary32, which is exact, and are themselves targets of `encode` on the way
// back: a value that they lack is rounded to nearest, ties to even, and overflows to infinity (IEEE 754-2019, 5.4.2).
#pragma once

#include <cstdint>

#include "core/random.hpp"
#include "core/rounding.hpp"

namespace fp8sim {

struct Float16 {
    using Storage = uint16_t;
    using Bits = uint32_t;
    static constexpr bool kIsCode = false;
};

struct Bfloat16 {
    using Storage = uint16_t;
    using Bits = uint32_t;
    static constexpr bool kIsCode = false;
};

struct Float32 {
    using Storage = uint32_t;
    using Bits = uint32_t;
    static constexpr bool kIsCode = false;
};

struct Float64 {
    using Storage = uint64_t;
    using Bits = uint64_t;
    static constexpr bool kIsCode = false;
};

template <class Unsigned>
struct Codes {
    using Storage = Unsigned;
    static constexpr bool kIsCode = true;
};

// Functions, not constants: device code cannot bind a reference to a namespace's constant.
FP8SIM_HD constexpr Conversion to_float16() {
    return {10,     -14,    0, 0x7BFF, 0x7C00, 0x7C01, 0x8000, 1,      0,
            0,      0x8000, 0x7C00, 0xFC00, 0x7C00, 0xFC00, 0x7E00, 0xFE00, 0, 0};
}

FP8SIM_HD constexpr Conversion to_bfloat16() {
    return {7,      -126,   0, 0x7F7F, 0x7F80, 0x7F81, 0x8000, 1,      0,
            0,      0x8000, 0x7F80, 0xFF80, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0, 0};
}

FP8SIM_HD uint32_t widen(Float16, uint16_t x) { return decode<uint32_t>(x, to_float16()); }
FP8SIM_HD uint32_t widen(Bfloat16, uint16_t x) { return static_cast<uint32_t>(x) << 16; }
FP8SIM_HD uint32_t widen(Float32, uint32_t x) { return x; }
FP8SIM_HD uint64_t widen(Float64, uint64_t x) { return x; }

FP8SIM_HD uint16_t narrow(Float16, uint32_t bits) {
    return static_cast<uint16_t>(encode<Rounding::kTiesToEven, Reach::kWithin, uint32_t>(bits, to_float16(), 0, 32));
}
FP8SIM_HD uint16_t narrow(Bfloat16, uint32_t bits) {
    return static_cast<uint16_t>(encode<Rounding::kTiesToEven, Reach::kAligned, uint32_t>(bits, to_bfloat16(), 0, 32));
}
FP8SIM_HD uint32_t narrow(Float32, uint32_t bits) { return bits; }
FP8SIM_HD uint64_t narrow(Float64, uint64_t bits) { return bits; }

// Which of a conversion's modes a loop is compiled for.
enum class Mode {
    kUsual,  // ties to even into a format whose smallest normal is above the source's (`is_usual`)
    kAny,    // the mode that the conversion names, into any format
};

template <class Bits>
FP8SIM_HD bool is_usual(const Conversion& c) {
    return static_cast<Rounding>(c.rounding) == Rounding::kTiesToEven && reach_of<Bits>(c) == Reach::kWithin;
}

// `Reach::kBeyond` is right for every format and only costs more, so that this is one case for each mode.
template <class Bits>
FP8SIM_HD Bits encode_any(Bits x, const Conversion& c, const RandomBits& bits, uint64_t element) {
    const Rounding rounding = static_cast<Rounding>(c.rounding);
    uint32_t random = 0;
    if (is_stochastic(rounding)) {
        random = random_integer(random_word(bits.seed, bits.stream, element + bits.offset), bits.count);
    }
    switch (rounding) {
#define FP8SIM_CASE(mode) \
    case mode: return encode<mode, Reach::kBeyond, Bits>(x, c, random, bits.count);
        FP8SIM_EACH_ROUNDING(FP8SIM_CASE)
#undef FP8SIM_CASE
    }
    return 0;
}

// Float to the same float is a cast, float to codes an encode, codes to float a decode.
template <class From, class To, Mode mode>
FP8SIM_HD typename To::Storage convert(
    typename From::Storage x, const Conversion& c, const RandomBits& bits, uint64_t element) {
    if constexpr (From::kIsCode) {
        return narrow(To{}, decode<typename To::Bits>(x, c));
    } else {
        using Bits = typename From::Bits;
        Bits code;
        if constexpr (mode == Mode::kUsual) {
            code = encode<Rounding::kTiesToEven, Reach::kWithin, Bits>(widen(From{}, x), c, 0, 32);
        } else {
            code = encode_any(widen(From{}, x), c, bits, element);
        }
        if constexpr (To::kIsCode) return static_cast<typename To::Storage>(code);
        else return narrow(To{}, decode<Bits>(code, c));
    }
}

}  // namespace fp8sim
