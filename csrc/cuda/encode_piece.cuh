// What a thread of encode_scaled.cuh does with a few neighbouring elements: load, multiply, encode, store, keep the amax.
#pragma once

#include "core/element.hpp"
#include "core/quick.hpp"
#include "cuda/encode_scaled.hpp"
#include "cuda/intrinsics.cuh"
#include "cuda/quick_bits.cuh"

namespace fp8sim {

// One element.

constexpr uint32_t kMagnitude = 0x7FFFFFFF, kInfinite = 0x7F800000, kQuietNan = 0x7FC00000;

FP8SIM_HD bool is_nan(uint32_t pattern) { return (pattern & kMagnitude) > kInfinite; }

template <class From>
FP8SIM_HD uint32_t float32_pattern(From type, typename From::Storage x) {
    return widen(type, x);
}

FP8SIM_HD uint32_t float32_pattern(Float64, uint64_t x) {
    const uint32_t sign = static_cast<uint32_t>(x >> 32) & ~kMagnitude;
    const uint32_t nearest = bit_cast<uint32_t>(static_cast<float>(bit_cast<double>(x)));
    return is_nan(nearest) ? kQuietNan | sign : nearest;
}

// The product, rounded to float32. A NaN stays itself; one that the factor makes of a number is positive.
FP8SIM_HD uint32_t rounded_product(uint32_t x, float factor) {
    const uint32_t product = bit_cast<uint32_t>(bit_cast<float>(x) * factor);
    if (is_nan(x)) return x;
    return is_nan(product) ? kQuietNan : product;
}

// The exact product, in binary64; NaN likewise.
FP8SIM_HD uint64_t exact_product(uint32_t x, float factor) {
    using L = Layout<uint64_t>;
    const uint64_t sign = is_nan(x) ? uint64_t{x & ~kMagnitude} << 32 : 0;
    const uint64_t product = bit_cast<uint64_t>(double{bit_cast<float>(x)} * double{factor});
    return (product & ~L::kSignMask) > L::kInfinity ? L::kQuietNan | sign : product;
}

template <Mode mode, class Bits>
FP8SIM_HD uint32_t code_of(Bits number, const Conversion& c, const RandomBits& bits, uint64_t element) {
    if constexpr (mode == Mode::kUsual) {
        return static_cast<uint32_t>(encode<Rounding::kTiesToEven, Reach::kWithin, Bits>(number, c, 0, 32));
    } else {
        return static_cast<uint32_t>(encode_any(number, c, bits, element));
    }
}

// The number that is encoded, in 32 or 64 bits; float32 numbers are binary64 numbers, too.
FP8SIM_HD uint32_t number_in(uint32_t, uint32_t pattern) { return pattern; }
FP8SIM_HD uint64_t number_in(uint64_t, uint32_t pattern) { return exact_product(pattern, 1.0f); }

// `largest` is raised to the element's magnitude. In the usual mode no product is fused.
template <class From, Mode mode>
FP8SIM_HD uint32_t scaled_code(typename From::Storage x, Meets meets, float factor, const Conversion& c,
                               const RandomBits& bits, uint64_t element, uint32_t& largest) {
    using Bits = typename From::Bits;
    const uint32_t pattern = float32_pattern(From{}, x);
    largest = larger(largest, pattern & kMagnitude);
    if (mode == Mode::kAny && meets == Meets::kFused) {
        return code_of<Mode::kAny>(exact_product(pattern, factor), c, bits, element);
    }
    const bool alone = meets == Meets::kNothing;
    const Bits number = alone ? widen(From{}, x) : number_in(Bits{}, rounded_product(pattern, factor));
    return code_of<mode>(number, c, bits, element);
}

// Pieces of a row: what one thread loads at a time.

template <class T, int count>
struct alignas(count * sizeof(T)) Piece {
    T element[count];
};

constexpr int kLoad = 16;

template <class From, Mode mode>
constexpr int kPiece = mode == Mode::kUsual ? kLoad / static_cast<int>(sizeof(typename From::Storage)) : 1;

// `count` elements from x on, in one load if `whole`.
template <class T, int piece>
FP8SIM_DEVICE Piece<T, piece> load_piece(const T* x, int64_t count, bool whole) {
    if (whole) return *reinterpret_cast<const Piece<T, piece>*>(x);
    Piece<T, piece> loaded = {};
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        if (i < count) loaded.element[i] = x[i];
    }
    return loaded;
}

FP8SIM_DEVICE void store_code(void* codes, Dtype dtype, int64_t index, uint32_t code) {
    if (dtype == Dtype::kCodes8) static_cast<uint8_t*>(codes)[index] = static_cast<uint8_t>(code);
    else if (dtype == Dtype::kCodes16) static_cast<uint16_t*>(codes)[index] = static_cast<uint16_t>(code);
    else static_cast<uint32_t*>(codes)[index] = code;
}

// 8-bit codes at once if `whole`; a single code, of any size, by itself.
template <int piece>
FP8SIM_DEVICE void store_codes(void* codes, Dtype dtype, int64_t index, const uint32_t (&code)[piece], int64_t count,
                               bool whole) {
    if constexpr (piece > 1) {
        if (whole) {
            Piece<uint8_t, piece> bytes;
#pragma unroll
            for (int i = 0; i < piece; ++i) bytes.element[i] = static_cast<uint8_t>(code[i]);
            *reinterpret_cast<Piece<uint8_t, piece>*>(static_cast<uint8_t*>(codes) + index) = bytes;
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        if (i < count) store_code(codes, dtype, index + i, code[i]);
    }
}

FP8SIM_DEVICE float factor_of(const KnownFactor& factor) { return factor.address ? *factor.address : factor.value; }

// All NaN are one.
FP8SIM_DEVICE void keep_amax(uint32_t* amax, uint32_t largest) {
    if (amax == nullptr) return;
    largest = warp_max(largest);
    if (thread_index() % 32 == 0) atomic_max(amax, is_nan(largest) ? kQuietNan : largest);
}

// How a kernel's elements become codes: quickly, or as the mode says.
struct Encoding {
    QuickRounding quick;
    float factor;
    float quick_factor;  // 1 where elements meet nothing: the product is the element
};

FP8SIM_DEVICE Encoding encoding_of(const EncodeScaledJob& job, const QuickRounding& quick) {
    const float factor = factor_of(job.factor);
    return {quick, factor, job.factor.meets == Meets::kNothing ? 1.0f : factor};
}

// Codes of the first `count` elements of a piece, elements `index` and on of the tensor; 0 beyond.
template <class From, Mode mode, int piece>
FP8SIM_DEVICE void encode_piece(const EncodeScaledJob& job, const Encoding& encoding,
                                const Piece<typename From::Storage, piece>& in, int64_t index, int64_t count,
                                uint32_t (&code)[piece], uint32_t& largest) {
    if constexpr (mode == Mode::kUsual) {
        uint32_t product[piece];
        bool all = true;
#pragma unroll
        for (int i = 0; i < piece; ++i) {
            const uint32_t pattern = quick_bits(From{}, in.element[i]);
            largest = larger(largest, pattern & kMagnitude);
            product[i] = bit_cast<uint32_t>(bit_cast<float>(pattern) * encoding.quick_factor);
            all = all && takes_quick_way(product[i], encoding.quick);
        }
        if (all) {
#pragma unroll
            for (int i = 0; i < piece; ++i) code[i] = quick_encode(product[i], encoding.quick);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        code[i] = i < count ? scaled_code<From, mode>(in.element[i], job.factor.meets, encoding.factor, job.conversion,
                                                      job.bits, index + i, largest)
                            : 0;
    }
}

}  // namespace fp8sim
