// Casts, encodes and decodes of a run of elements; included once for each instruction set.
//
// Everything has internal linkage, so code for one instruction set stays in its file. Where the source is binary32 or
// binary64 and one loop does all, it runs from source to target. Otherwise work goes in blocks that stay in the first
// cache level: widen to binary32, draw random integers, encode, decode for a cast, narrow.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "cpu/cast_job.hpp"
#include "cpu/cast_stages.hpp"
#include "cpu/decode_table.hpp"
#include "cpu/halves.hpp"
#include "cpu/levels_loop.hpp"
#include "cpu/philox_block.hpp"

namespace fp8sim {
namespace {

constexpr int kBlock = 1024;
constexpr int kRandomBuffer = kBlock + 2 * kPhiloxGroup;

// The words that conversions start from

inline const uint32_t* widen_block(Float32, const uint32_t* source, int, uint32_t*) { return source; }
inline const uint64_t* widen_block(Float64, const uint64_t* source, int, uint64_t*) { return source; }

template <class Half>
const uint32_t* widen_block(Half half, const uint16_t* source, int count, uint32_t* buffer) {
    widen_loop(half, source, buffer, count);
    return buffer;
}

constexpr Conversion conversion_to(Float16) { return to_float16(); }
constexpr Conversion conversion_to(Bfloat16) { return to_bfloat16(); }

// Decode

template <class Code>
void decode_block(Float32, const Code* codes, uint32_t* target, int count, const Conversion& c) {
    decode_stage(codes, target, count, c);
}

template <class Code>
void decode_block(Float64, const Code* codes, uint64_t* target, int count, const Conversion& c) {
    decode_stage(codes, target, count, c);
}

// To binary16 and bfloat16 through binary32 if that has the format's numbers, else through binary64, so that only the
// last step rounds.
template <class Half, class Code>
void decode_block(Half half, const Code* codes, uint16_t* target, int count, const Conversion& c) {
    if (span_of<uint32_t>(c) != Span::kAny) {
        uint32_t numbers[kBlock];
        decode_stage(codes, numbers, count, c);
        return narrow_loop(half, numbers, target, count);
    }
    uint64_t numbers[kBlock];
    uint32_t half_codes[kBlock];
    decode_stage(codes, numbers, count, c);
    encode_loop<Rounding::kTiesToEven, Reach::kWithin>(numbers, nullptr, half_codes, count, conversion_to(half), 32);
    narrow_codes(half_codes, target, count);
}

template <class To, class Code>
void decode_elements(To to, const Code* codes, typename To::Storage* target, int64_t count, const Conversion& c) {
    for (int64_t i = 0; i < count; i += kBlock) {
        decode_block(to, codes + i, target + i, static_cast<int>(smaller<int64_t>(count - i, kBlock)), c);
    }
}

// The table costs as much as decoding some hundred codes.
constexpr int64_t kWorthATable = 4096;

inline void decode_elements(Float32, const uint8_t* codes, uint32_t* target, int64_t count, const Conversion& c) {
    if (count >= kWorthATable) {
        const DecodeTable table = decode_table_of(c);
        if (table.pays) return decode_by_table(codes, target, count, table);
    }
    decode_stage(codes, target, count, c);
}

// Encode and cast

template <class Element, class Apply>
void for_each_block(const CastJob& job, int64_t begin, int64_t end, Apply apply) {
    const RandomBits random = {job.seed, job.stream, job.offset, job.random_bits};
    const bool draws = is_stochastic(static_cast<Rounding>(job.conversion.rounding));
    uint32_t buffer[kRandomBuffer];
    for (int64_t i = begin; i < end; i += kBlock) {
        const int count = static_cast<int>(smaller<int64_t>(end - i, kBlock));
        apply(i, count, draws ? random_integers(i, count, random, buffer) : nullptr);
    }
}

template <class Element, class Code>
void encode_block(const Element* x, const uint32_t* random, Code* codes, int count, const Plan<Element>& plan) {
    constexpr Rounding kUsual = Rounding::kTiesToEven;
    if (plan.mode == kUsual && try_fast<kUsual, true>(x, random, codes, count, plan)) return;
    uint32_t wide_codes[kBlock];
    encode_stage(x, random, wide_codes, count, plan);
    narrow_codes(wide_codes, codes, count);
}

template <class From, class Code>
void encode_elements(From from, const CastJob& job, Code* codes, int64_t begin, int64_t end) {
    using Element = typename From::Bits;
    const auto* source = static_cast<const typename From::Storage*>(job.source);
    const Plan<Element> plan = plan_of<Element>(job.conversion, job.random_bits);
    if constexpr (sizeof(typename From::Storage) == sizeof(Element)) {
        constexpr Rounding kUsual = Rounding::kTiesToEven;
        const bool usual = plan.mode == kUsual;
        if (usual && try_fast<kUsual, true>(source + begin, nullptr, codes + begin, end - begin, plan)) return;
    }
    for_each_block<Element>(job, begin, end, [&](int64_t i, int count, const uint32_t* random) {
        Element widened[kBlock];
        encode_block(widen_block(from, source + i, count, widened), random, codes + i, count, plan);
    });
}

template <class From>
void cast_elements(From from, const CastJob& job, int64_t begin, int64_t end) {
    using Element = typename From::Bits;
    using Storage = typename From::Storage;
    constexpr bool kIsHalf = sizeof(Storage) == 2;
    const auto* source = static_cast<const Storage*>(job.source);
    auto* target = static_cast<Storage*>(job.target);
    const Plan<Element> plan = plan_of<Element>(job.conversion, job.random_bits);
    if constexpr (!kIsHalf) {
        const bool draws = is_stochastic(plan.mode);
        if (!draws && try_cast_stage(source + begin, nullptr, target + begin, end - begin, plan)) return;
    }
    for_each_block<Element>(job, begin, end, [&](int64_t i, int count, const uint32_t* random) {
        Element widened[kBlock];
        const Element* x = widen_block(from, source + i, count, widened);
        Element* numbers = widened;
        if constexpr (!kIsHalf) numbers = target + i;
        if (try_cast_stage(x, random, numbers, count, plan)) {
            if constexpr (kIsHalf) narrow_loop(from, numbers, target + i, count);
            return;
        }
        uint32_t codes[kBlock];
        encode_stage(x, random, codes, count, plan);
        decode_block(from, codes, target + i, count, plan.conversion);
    });
}

inline void draw(uint32_t* target, RandomBits random, int64_t begin, int64_t end) {
    uint32_t buffer[kRandomBuffer];
    for (int64_t i = begin; i < end; i += kBlock) {
        const int count = static_cast<int>(smaller<int64_t>(end - i, kBlock));
        memcpy(target + i, random_integers(i, count, random, buffer), count * sizeof(uint32_t));
    }
}

template <class From>
void encode_levels(From from, const LevelsJob& job, int64_t begin, int64_t end) {
    const auto* source = static_cast<const typename From::Storage*>(job.source);
    for (int64_t i = begin; i < end; i += kBlock) {
        const int count = static_cast<int>(smaller<int64_t>(end - i, kBlock));
        typename From::Bits widened[kBlock];
        encode_levels_block(
            widen_block(from, source + i, count, widened), job.codes + i, count, job.cuts, job.cut_count);
    }
}

// Dispatch on dtypes

template <class From>
void run_from(From from, const CastJob& job, int64_t begin, int64_t end) {
    switch (job.target_dtype) {
        case Dtype::kCodes8: return encode_elements(from, job, static_cast<uint8_t*>(job.target), begin, end);
        case Dtype::kCodes16: return encode_elements(from, job, static_cast<uint16_t*>(job.target), begin, end);
        case Dtype::kCodes32: return encode_elements(from, job, static_cast<uint32_t*>(job.target), begin, end);
        default: return cast_elements(from, job, begin, end);
    }
}

template <class Code>
void decode_from(const Code* codes, const CastJob& job, int64_t begin, int64_t end) {
    const auto decode_to = [&](auto to) {
        auto* target = static_cast<typename decltype(to)::Storage*>(job.target);
        decode_elements(to, codes + begin, target + begin, end - begin, job.conversion);
    };
    switch (job.target_dtype) {
        case Dtype::kFloat16: return decode_to(Float16{});
        case Dtype::kBfloat16: return decode_to(Bfloat16{});
        case Dtype::kFloat64: return decode_to(Float64{});
        default: return decode_to(Float32{});
    }
}

inline void run_levels(const LevelsJob& job, int64_t begin, int64_t end) {
    switch (job.source_dtype) {
        case Dtype::kFloat16: return encode_levels(Float16{}, job, begin, end);
        case Dtype::kBfloat16: return encode_levels(Bfloat16{}, job, begin, end);
        case Dtype::kFloat64: return encode_levels(Float64{}, job, begin, end);
        default: return encode_levels(Float32{}, job, begin, end);
    }
}

inline void run_cast(const CastJob& job, int64_t begin, int64_t end) {
    switch (job.source_dtype) {
        case Dtype::kFloat16: return run_from(Float16{}, job, begin, end);
        case Dtype::kBfloat16: return run_from(Bfloat16{}, job, begin, end);
        case Dtype::kFloat32: return run_from(Float32{}, job, begin, end);
        case Dtype::kFloat64: return run_from(Float64{}, job, begin, end);
        case Dtype::kCodes8: return decode_from(static_cast<const uint8_t*>(job.source), job, begin, end);
        case Dtype::kCodes16: return decode_from(static_cast<const uint16_t*>(job.source), job, begin, end);
        case Dtype::kCodes32: return decode_from(static_cast<const uint32_t*>(job.source), job, begin, end);
    }
}

}  // namespace
}  // namespace fp8sim
