// Matrix products by truncating adders, a vector of columns at a time; included once for each instruction set.
//
// A step takes two passes over its products. The first finds the largest exponent: that of a product is the sum of its
// factors'. The second shifts each product's magnitude to it, which cuts what lies below, and adds with sign. Where the
// adder keeps 13 fraction bits, products have 15 and 16-bit lanes do; else they have 27 and take 32-bit lanes.
//
// What the vectors do not cover goes to the interpreter, element by element: infinities among the operands, and sums
// that are subnormal in binary32 or do not fit 32 bits.
#pragma once

#include "cpu/mma_fast.hpp"
#include "cpu/mma_pack.hpp"
#include "cpu/mma_vectors.hpp"

namespace fp8sim {
namespace {

constexpr int kRows = 4;               // of a tile: they share the loads of b
constexpr int kChunkPairs = 8;         // 16 terms of 27 bits and a sign fit 32 bits
constexpr int kExponentBias = 127;
constexpr int32_t kInfinityBits = 0x7F800000;
constexpr int32_t kNanBits = 0x7FFFFFFF;

// What steps read of the adder.
struct Rule {
    int32_t fraction_bits;
    int32_t zero_exponent;
    int32_t least_exponent;  // of the accumulator's format
    int32_t dropped_mask;    // bits of a binary32 result that are not kept
    bool to_binary16;
};

FP8SIM_HD Rule rule_of(const MmaModel& m) {
    const bool is_binary16 = m.accumulator.mantissa_bits == 10;
    const int32_t dropped = is_binary16 ? 0 : (1 << (23 - m.kept_bits)) - 1;
    return {m.fraction_bits, m.zero_exponent, 1 - m.accumulator.bias, dropped, is_binary16};
}

struct Accumulator {
    Vec magnitude;  // 24 bits
    Vec exponent;   // as the adder sees it
    Vec shift;      // that moves the magnitude to its place, but for the largest exponent
    Mask negative;
    Mask special;
};

// binary32 bits as a term. A subnormal number, which has no hidden bit, has the exponent of the smallest normal one.
FP8SIM_HD Accumulator accumulator_of(Vec bits, const Rule& rule) {
    const Vec magnitude_bits = both(bits, all(0x7FFFFFFF)), field = right<23>(magnitude_bits);
    const Mask no_hidden_bit = equal(field, all(0));
    const Vec fraction = both(bits, all(0x007FFFFF));
    const Vec significand = choose(no_hidden_bit, fraction, either(fraction, all(0x00800000)));
    const Vec stored = sub(larger_of(field, all(1)), all(kExponentBias));
    const Vec exponent = larger_of(stored, all(rule.least_exponent));
    const Mask zero = equal(magnitude_bits, all(0));
    return {significand, choose(zero, all(rule.zero_exponent), exponent), stored, negative(bits),
            above(field, all(254))};
}

FP8SIM_HD Vec aligned(const Accumulator& c, Vec largest, const Rule& rule) {
    const int32_t more = rule.fraction_bits - 23;
    const Vec shift = sub(largest, c.shift);
    const Vec cut = more >= 0 ? shift_by(left_by(c.magnitude, more), shift)
                              : shift_by(c.magnitude, add(shift, all(-more)));
    return minus_where(c.negative, cut);
}

// The bits above the 24 leading ones of a magnitude become one sticky bit, so that one more rounding is harmless.
FP8SIM_HD Vec with_sticky_bit(Vec magnitude) {
    Vec beyond = right<24>(magnitude);
    beyond = either(beyond, right<1>(beyond));
    beyond = either(beyond, right<2>(beyond));
    beyond = either(beyond, right<4>(beyond));
    const Mask none_lost = equal(both(magnitude, beyond), all(0));
    return either(without(magnitude, beyond), clear_where(none_lost, add(beyond, all(1))));
}

struct Result {
    Vec bits;
    Mask valid;
};

// sum * 2^(largest - fraction_bits), where that is not subnormal in binary32; infinity from 2^128 on.
FP8SIM_HD Result finish(Vec sum, Vec largest, const Rule& rule) {
    const Vec size = magnitude(sum);
    const Vec number = to_float(rule.to_binary16 ? with_sticky_bit(size) : size);
    const Vec power = sub(largest, all(rule.fraction_bits));
    const Vec field = add(right<23>(number), power);
    const Mask zero = equal(sum, all(0));
    Vec bits = without(add(number, left<23>(power)), all(rule.dropped_mask));
    bits = choose(above(field, all(254)), all(kInfinityBits), bits);
    if (rule.to_binary16) bits = through_binary16(bits);
    const Mask vanished = any_of(zero, equal(bits, all(0)));
    bits = either(bits, without(sum, all(kNanBits)));
    return {clear_where(vanished, bits), any_of(above(field, all(0)), zero)};
}

// ---------------------------------------------------------------------------------------------------------------------
// The two passes

// Where the operands of a step are.
struct StepRows {
    const int16_t* a[kRows];  // the exponents' plane
    int64_t plane;            // from one plane of a to the next
};

FP8SIM_HD Vec pair_at(const int16_t* from) {
    int32_t pair;
    memcpy(&pair, from, sizeof(pair));
    return all(pair);
}

template <int panels>
struct Tile {
    Vec lane[kRows][panels];
};

constexpr int kVectorWords = kWidth * kLanePair;
constexpr int kPairWords = kPlanes * kVectorWords;

// The largest exponent of each element's products.
template <int panels>
FP8SIM_HD void largest_exponents(const StepRows& rows, const int16_t* const (&b)[panels], int pairs,
                                 Tile<panels>& largest) {
    for (auto& row : largest.lane) {
        for (Vec& lane : row) lane = all16(2 * kNoExponent16);
    }
    for (int pair = 0; pair < pairs; ++pair) {
        Vec right_exponent[panels];
        for (int p = 0; p < panels; ++p) right_exponent[p] = load(b[p] + pair * kPairWords);
        for (int r = 0; r < kRows; ++r) {
            const Vec left_exponent = pair_at(rows.a[r] + pair * kLanePair);
            for (int p = 0; p < panels; ++p) {
                largest.lane[r][p] = max16(largest.lane[r][p], add16(left_exponent, right_exponent[p]));
            }
        }
    }
    for (auto& row : largest.lane) {
        for (Vec& lane : row) lane = larger_of(right_signed<16>(lane), right_signed<16>(left<16>(lane)));
    }
}

// An exponent in both halves of its lane.
FP8SIM_HD Vec in_both_halves(Vec exponent) { return either(left<16>(exponent), both(exponent, all(0xFFFF))); }

// sum += products of at most 15 bits, shifted from exponent `base` on.
template <bool has_dot, int panels>
FP8SIM_HD void add_short(const StepRows& rows, const int16_t* const (&b)[panels], int pairs, const Tile<panels>& base,
                         Tile<panels>& sum) {
    for (int pair = 0; pair < pairs; ++pair) {
        Vec exponent[panels], size[panels], sign[panels];
        for (int p = 0; p < panels; ++p) {
            exponent[p] = load(b[p] + pair * kPairWords);
            size[p] = load(b[p] + pair * kPairWords + kVectorWords);
            sign[p] = load(b[p] + pair * kPairWords + 2 * kVectorWords);
        }
        for (int r = 0; r < kRows; ++r) {
            const int16_t* a = rows.a[r] + pair * kLanePair;
            const Vec left_exponent = pair_at(a), left_size = pair_at(a + rows.plane);
            const Vec left_sign = pair_at(a + 2 * rows.plane);
            for (int p = 0; p < panels; ++p) {
                const Vec shift = sub16(sub16(base.lane[r][p], left_exponent), exponent[p]);
                const Vec term = shift16(mul16(left_size, size[p]), shift);
                sum.lane[r][p] = add_dot<has_dot>(sum.lane[r][p], term, differ(sign[p], left_sign));
            }
        }
    }
}

// The same for products of at most 27 bits, and at most kChunkPairs pairs.
FP8SIM_HD void add_long(const StepRows& rows, const int16_t* b, int first, int pairs, const Tile<1>& base,
                        SignedSum (&sum)[kRows]) {
    const Vec low_half = all(0xFFFF);
    for (int pair = first; pair < first + pairs; ++pair) {
        const Vec exponent = load(b + pair * kPairWords), size = load(b + pair * kPairWords + kVectorWords);
        const Vec sign = load(b + pair * kPairWords + 2 * kVectorWords);
        const Vec even = both(size, low_half), odd = without(size, low_half);
        for (int r = 0; r < kRows; ++r) {
            const int16_t* a = rows.a[r] + pair * kLanePair;
            const Vec left_size = pair_at(a + rows.plane);
            const Vec shift = sub16(sub16(base.lane[r][0], pair_at(a)), exponent);
            const Vec even_term = shift_by(multiply_pairs(left_size, even), both(shift, low_half));
            const Vec odd_term = shift_by(multiply_pairs(left_size, odd), right<16>(shift));
            add_terms(sum[r], even_term, odd_term, differ(sign, pair_at(a + 2 * rows.plane)));
        }
    }
}

// Where x + y does not fit 32 bits.
FP8SIM_HD Mask overflows(Vec x, Vec y, Vec sum) { return negative(both(differ(x, sum), differ(y, sum))); }

// ---------------------------------------------------------------------------------------------------------------------
// Tiles

enum class Products { kShort, kShortWithDot, kLong };

// What a step makes of an accumulator: the vectors' result where it holds, else the rules for NaN and infinities, else
// the interpreter's.
FP8SIM_HD Vec settle(const FastJob& work, int64_t row, int64_t panel, int64_t step, Vec before, Mask c_special,
                     const Result& result) {
    const int64_t steps = work.steps;
    const StepFlags left_flags = work.a.flags[row * steps + step], right_flags = work.b.flags[panel * steps + step];
    const uint32_t special = left_flags.special | right_flags.special;
    const uint32_t lanes = (uint32_t{1} << kWidth) - 1;
    const uint32_t fine = bits_of(except(result.valid, c_special)) & ~special;
    if ((fine & lanes) == lanes) return result.bits;

    const Mask c_nan = all_of(c_special, above(both(before, all(kNanBits)), all(kInfinityBits)));
    const Mask nan = any_of(c_nan, mask_from(left_flags.nan | right_flags.nan));
    Vec bits = choose(c_special, before, result.bits);
    bits = choose(nan, all(kNanBits), bits);
    uint32_t left_over = lanes & ~fine & ~bits_of(nan) & ~(bits_of(c_special) & ~special);
    if (left_over == 0) return bits;
    alignas(64) uint32_t in[kWidth], out[kWidth];
    store(in, before);
    store(out, bits);
    for (; left_over != 0; left_over &= left_over - 1) {
        const int lane = __builtin_ctz(left_over);
        const int64_t column = panel * kWidth + lane;
        if (row < work.job.m && column < work.job.n) out[lane] = interpret_step(work, row, column, step, in[lane]);
    }
    return load_unaligned(out);
}

template <Products products, int panels>
FP8SIM_HD void run_step(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                        Tile<panels>& d) {
    StepRows rows;
    rows.plane = products_of(work);
    for (int r = 0; r < kRows; ++r) {
        rows.a[r] = work.a.planes + (row + r) * kPlanes * rows.plane + step * work.pairs * kLanePair;
    }
    const int16_t* b[panels];
    for (int p = 0; p < panels; ++p) {
        b[p] = work.b.planes + ((panel + p) * work.steps + step) * work.pairs * kPairWords;
    }
    Tile<panels> largest, base, sum, before = d;
    Mask special[kRows][panels], too_large[kRows];
    largest_exponents<panels>(rows, b, work.pairs, largest);
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            Vec scale = all(0);
            if (work.a.exponents != nullptr) {
                const int32_t* factors = work.b.exponents + ((panel + p) * work.steps + step) * kWidth;
                scale = add(all(work.a.exponents[(row + r) * work.steps + step]), load_unaligned(factors));
            }
            const Accumulator c = accumulator_of(d.lane[r][p], rule);
            const Vec most = larger_of(add(largest.lane[r][p], scale), c.exponent);
            largest.lane[r][p] = most;
            base.lane[r][p] = in_both_halves(sub(most, scale));
            sum.lane[r][p] = aligned(c, most, rule);
            special[r][p] = c.special;
        }
    }
    if constexpr (products == Products::kLong) {
        for (Mask& mask : too_large) mask = mask_from(0);
        for (int first = 0; first < work.pairs; first += kChunkPairs) {
            SignedSum part[kRows];
            for (SignedSum& terms : part) terms = no_terms();
            add_long(rows, b[0], first, smaller<int>(kChunkPairs, work.pairs - first), base, part);
            for (int r = 0; r < kRows; ++r) {
                const Vec x = sum.lane[r][0], y = value_of(part[r]);
                sum.lane[r][0] = add(x, y);
                too_large[r] = any_of(too_large[r], overflows(x, y, sum.lane[r][0]));
            }
        }
    } else {
        add_short<products == Products::kShortWithDot, panels>(rows, b, work.pairs, base, sum);
    }
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            Result result = finish(sum.lane[r][p], largest.lane[r][p], rule);
            if constexpr (products == Products::kLong) result.valid = except(result.valid, too_large[r]);
            d.lane[r][p] = settle(work, row + r, panel + p, step, before.lane[r][p], special[r][p], result);
        }
    }
}

// Moving d between memory and lanes; lanes beyond the last column are neither read nor written.
FP8SIM_HD Vec load_accumulators(const MmaJob& job, int64_t row, int64_t column, bool is_binary16) {
    if (job.c == nullptr || row >= job.m || column >= job.n) return all(0);
    const int64_t count = smaller<int64_t>(kWidth, job.n - column), bytes = is_binary16 ? 2 : 4;
    alignas(64) char buffer[4 * kWidth] = {};
    memcpy(buffer, static_cast<const char*>(job.c) + (row * job.n + column) * bytes, count * bytes);
    return is_binary16 ? load_binary16(reinterpret_cast<const uint16_t*>(buffer)) : load(buffer);
}

FP8SIM_HD void store_results(const MmaJob& job, int64_t row, int64_t column, bool is_binary16, Vec bits) {
    if (row >= job.m || column >= job.n) return;
    const int64_t count = smaller<int64_t>(kWidth, job.n - column), bytes = is_binary16 ? 2 : 4;
    alignas(64) char buffer[4 * kWidth];
    if (is_binary16) {
        const Mask nan = above(both(bits, all(kNanBits)), all(kInfinityBits));
        store_binary16(reinterpret_cast<uint16_t*>(buffer), bits);
        for (uint32_t left_over = bits_of(nan); left_over != 0; left_over &= left_over - 1) {
            reinterpret_cast<uint16_t*>(buffer)[__builtin_ctz(left_over)] = 0x7FFF;
        }
    } else {
        store(buffer, bits);
    }
    memcpy(static_cast<char*>(job.d) + (row * job.n + column) * bytes, buffer, count * bytes);
}

// d + t by an ordinary addition, to nearest even; never -0, because t is not.
FP8SIM_HD Vec add_nearest_lanes(Vec d, Vec t, const Rule& rule) {
    Vec sum = add_floats(d, t);
    if (rule.to_binary16) sum = through_binary16(sum);
    return choose(above(both(sum, all(kNanBits)), all(kInfinityBits)), all(kNanBits), sum);
}

template <Products products, int panels>
FP8SIM_HD void run_rows(const FastJob& work, const Rule& rule, int64_t row, int64_t panel) {
    Tile<panels> d;
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            d.lane[r][p] = load_accumulators(work.job, row + r, (panel + p) * kWidth, rule.to_binary16);
        }
    }
    for (int64_t step = 0; step < work.steps; step += work.per_instruction) {
        Tile<panels> state = d;
        if (work.emulated) {
            for (auto& lanes : state.lane) {
                for (Vec& lane : lanes) lane = all(0);
            }
        }
        for (int32_t i = 0; i < work.per_instruction; ++i) {
            run_step<products, panels>(work, rule, row, panel, step + i, state);
        }
        if (work.emulated) {
            for (int r = 0; r < kRows; ++r) {
                for (int p = 0; p < panels; ++p) {
                    state.lane[r][p] = add_nearest_lanes(d.lane[r][p], state.lane[r][p], rule);
                }
            }
        }
        d = state;
    }
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            store_results(work.job, row + r, (panel + p) * kWidth, rule.to_binary16, d.lane[r][p]);
        }
    }
}

template <Products products, int panels>
void run_tile(const FastJob& work, int64_t tile, int64_t begin, int64_t end) {
    const Rule rule = rule_of(work.step);
    for (int64_t row = begin; row < end; row += kRows) run_rows<products, panels>(work, rule, row, tile * panels);
}

}  // namespace
}  // namespace fp8sim
