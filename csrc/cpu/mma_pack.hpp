// Operands decoded for the vectorised loops; included once for each instruction set.
#pragma once

#include "core/rounding.hpp"
#include "cpu/mma_fast.hpp"
#include "cpu/mma_vectors.hpp"

namespace fp8sim {
namespace {

constexpr int kLanePair = 2;

// What a number is besides finite: bits of the same names' flags.
enum : uint8_t { kInfinite = 1, kNotANumber = 2 };

// Codes as magnitudes and signs: what decoding a run of them needs to know.
struct RunDecoder {
    int32_t dropped_bits;
    int32_t mantissa_bits;
    int32_t magnitude_bits;
    int32_t bias;
    int32_t first_special;  // magnitude code of infinity, else of the first NaN
    int32_t infinity;       // magnitude code, or -1
    int32_t special_zero;   // whether -0 is NaN
    int32_t shift;
    int16_t sign[2];
};

inline RunDecoder decoder_of(const MmaFormat& f, int32_t shift, int16_t positive, int16_t negative) {
    const int32_t magnitude_bits = f.exponent_bits + f.mantissa_bits;
    const int32_t codes = 1 << magnitude_bits;
    const bool ieee = f.nan == static_cast<int32_t>(NanCodes::kIeee);
    const int32_t infinity = codes - (1 << f.mantissa_bits);
    const bool all_ones = f.nan == static_cast<int32_t>(NanCodes::kAllOnes);
    return {f.dropped_bits, f.mantissa_bits, magnitude_bits, f.bias, ieee ? infinity : codes - all_ones,
            ieee ? infinity : -1, f.nan == static_cast<int32_t>(NanCodes::kNegativeZero), shift,
            {positive, negative}};
}

struct Run {
    int16_t* exponents;
    int16_t* magnitudes;
    int16_t* signs;
    uint8_t* kinds;
};

// Decodes `count` codes; whether any is infinite or NaN. Without branches, on copies that no store can change: so that
// it becomes vector code.
template <class Code>
bool decode_run(const Code* __restrict codes, int64_t count, const RunDecoder decoder, const Run& to) {
    int16_t* __restrict exponents = to.exponents;
    int16_t* __restrict magnitudes = to.magnitudes;
    int16_t* __restrict signs = to.signs;
    uint8_t* __restrict kinds = to.kinds;
    const RunDecoder d = decoder;
    const int32_t magnitude_mask = (1 << d.magnitude_bits) - 1, fraction_mask = (1 << d.mantissa_bits) - 1;
    const int32_t positive = d.sign[0], change = d.sign[1] - d.sign[0];
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t code = static_cast<int32_t>(static_cast<uint32_t>(codes[i]) >> d.dropped_bits);
        const int32_t magnitude = code & magnitude_mask;
        const int32_t is_negative = (code >> d.magnitude_bits) & 1;
        const int32_t field = magnitude >> d.mantissa_bits;
        const int32_t subnormal = field == 0, zero = magnitude == 0;
        const int32_t special = (magnitude >= d.first_special) | (zero & is_negative & d.special_zero);
        const int32_t infinite = magnitude == d.infinity;
        const int32_t kind = special * (infinite * kInfinite + (1 - infinite) * kNotANumber);
        const int32_t some = (1 - special) & (1 - zero);
        const int32_t significand = (magnitude & fraction_mask) | ((1 - subnormal) << d.mantissa_bits);
        const int32_t exponent = field + subnormal - d.bias;
        exponents[i] = static_cast<int16_t>(some * exponent + (1 - some) * kNoExponent16);
        magnitudes[i] = static_cast<int16_t>((some * significand) << d.shift);
        signs[i] = static_cast<int16_t>(positive + is_negative * change);
        kinds[i] = static_cast<uint8_t>(kind);
        found |= kind;
    }
    return found != 0;
}

constexpr int64_t kRunPairs = 16;       // that one buffer of a panel holds
constexpr int64_t kRunProducts = 1024;  // that one buffer of a row holds

// Every instruction set has steps of an even number of products.
inline int64_t products_of(const FastJob& work) { return work.steps * work.pairs * kLanePair; }

// Products [first, first + count) of a row, pairs `stride` apart, into a buffer of zeros.
template <class Code>
void gather(const FastJob& work, const Code* row, int64_t first, int64_t count, Code* to, int64_t stride) {
    const int64_t k = work.job.k;
    if (!work.emulated) {
        const int64_t there = smaller<int64_t>(count, larger<int64_t>(k - first, 0)), whole = there & ~int64_t{1};
        for (int64_t i = 0; i < whole; i += kLanePair) {
            memcpy(to + i / kLanePair * stride, row + first + i, kLanePair * sizeof(Code));
        }
        if (there > whole) to[whole / kLanePair * stride] = row[first + whole];
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t from = k_of(work, first + i);
        if (from < k) to[i / kLanePair * stride + i % kLanePair] = row[from];
    }
}

inline void set_flags(StepFlags& flags, uint8_t kind, uint16_t columns) {
    flags.special |= kind != 0 ? columns : 0;
    flags.nan |= kind & kNotANumber ? columns : 0;
}

inline Number scale_number(const MmaJob& job, const uint8_t* scales, int64_t row, int64_t step, int32_t terms) {
    const int64_t block = job.model.scale_block, blocks = (job.k + block - 1) / block;
    return decode_operand(scales[row * blocks + smaller<int64_t>(step * terms / block, blocks - 1)], job.model.scale);
}

// One buffer of a row: products [first, first + count).
template <class Code>
void pack_products(const FastJob& work, int64_t row, int64_t first, int64_t count, const RunDecoder& decoder) {
    const MmaJob& job = work.job;
    Code codes[kRunProducts] = {};
    uint8_t kinds[kRunProducts];
    if (row < job.m) gather(work, static_cast<const Code*>(job.a) + row * job.k, first, count, codes, kLanePair);
    const int64_t all = products_of(work);
    int16_t* planes = work.a.planes + row * kPlanes * all + first;
    if (!decode_run(codes, count, decoder, {planes, planes + all, planes + 2 * all, kinds})) return;
    for (int64_t i = 0; i < count; ++i) {
        set_flags(work.a.flags[row * work.steps + (first + i) / (work.pairs * kLanePair)], kinds[i], 0xFFFF);
    }
}

inline void pack_row_scales(const FastJob& work, int64_t row) {
    for (int64_t step = 0; step < work.steps; ++step) {
        const Number scale = scale_number(work.job, work.job.a_scales, row, step, work.step.terms);
        work.a.exponents[row * work.steps + step] = scale.exponent;
        if (scale.kind == Kind::kNan) set_flags(work.a.flags[row * work.steps + step], kNotANumber, 0xFFFF);
    }
}

template <class Code>
void pack_rows_of(const FastJob& work, int64_t begin, int64_t end) {
    const RunDecoder decoder = decoder_of(work.job.model.a, work.shift[0], 0, -2);
    const int64_t all = products_of(work);
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t first = 0; first < all; first += kRunProducts) {
            pack_products<Code>(work, row, first, smaller<int64_t>(kRunProducts, all - first), decoder);
        }
        if (work.job.a_scales != nullptr && row < work.job.m) pack_row_scales(work, row);
    }
}

// One buffer of a panel: pairs [first, first + pairs), every column.
template <class Code>
void pack_pairs(const FastJob& work, int64_t panel, int64_t first, int64_t pairs, const RunDecoder& decoder) {
    constexpr int64_t kStride = kWidth * kLanePair;
    const MmaJob& job = work.job;
    Code codes[kRunPairs * kStride] = {};
    int16_t decoded[kPlanes][kRunPairs * kStride];
    uint8_t kinds[kRunPairs * kStride];
    const int64_t columns = smaller<int64_t>(kWidth, job.n - panel * kWidth);
    for (int64_t lane = 0; lane < columns; ++lane) {
        const Code* row = static_cast<const Code*>(job.b) + (panel * kWidth + lane) * job.k;
        gather(work, row, first * kLanePair, pairs * kLanePair, codes + lane * kLanePair, kStride);
    }
    const bool special = decode_run(codes, pairs * kStride, decoder, {decoded[0], decoded[1], decoded[2], kinds});
    int16_t* planes = work.b.planes + (panel * work.steps * work.pairs + first) * kPlanes * kStride;
    for (int64_t pair = 0; pair < pairs; ++pair) {
        for (int plane = 0; plane < kPlanes; ++plane) {
            memcpy(planes + (pair * kPlanes + plane) * kStride, decoded[plane] + pair * kStride,
                        kStride * sizeof(int16_t));
        }
    }
    if (!special) return;
    for (int64_t i = 0; i < pairs * kStride; ++i) {
        const int64_t step = (first + i / kStride) / work.pairs, lane = i % kStride / kLanePair;
        set_flags(work.b.flags[panel * work.steps + step], kinds[i], static_cast<uint16_t>(1 << lane));
    }
}

inline void pack_panel_scales(const FastJob& work, int64_t panel) {
    const MmaJob& job = work.job;
    for (int64_t lane = 0; lane < smaller<int64_t>(kWidth, job.n - panel * kWidth); ++lane) {
        for (int64_t step = 0; step < work.steps; ++step) {
            const Number scale = scale_number(job, job.b_scales, panel * kWidth + lane, step, work.step.terms);
            work.b.exponents[(panel * work.steps + step) * kWidth + lane] = scale.exponent;
            StepFlags& flags = work.b.flags[panel * work.steps + step];
            if (scale.kind == Kind::kNan) set_flags(flags, kNotANumber, static_cast<uint16_t>(1 << lane));
        }
    }
}

template <class Code>
void pack_panels_of(const FastJob& work, int64_t begin, int64_t end) {
    const RunDecoder decoder = decoder_of(work.job.model.b, work.shift[1], 1, -1);
    const int64_t pairs = work.steps * work.pairs;
    for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t first = 0; first < pairs; first += kRunPairs) {
            pack_pairs<Code>(work, panel, first, smaller<int64_t>(kRunPairs, pairs - first), decoder);
        }
        if (work.job.b_scales != nullptr) pack_panel_scales(work, panel);
    }
}

inline void pack_rows(const FastJob& work, int64_t begin, int64_t end) {
    switch (work.job.operand_bytes[0]) {
        case 1: return pack_rows_of<uint8_t>(work, begin, end);
        case 2: return pack_rows_of<uint16_t>(work, begin, end);
        default: return pack_rows_of<uint32_t>(work, begin, end);
    }
}

inline void pack_panels(const FastJob& work, int64_t begin, int64_t end) {
    switch (work.job.operand_bytes[1]) {
        case 1: return pack_panels_of<uint8_t>(work, begin, end);
        case 2: return pack_panels_of<uint16_t>(work, begin, end);
        default: return pack_panels_of<uint32_t>(work, begin, end);
    }
}

}  // namespace
}  // namespace fp8sim
