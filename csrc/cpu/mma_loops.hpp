// Matrix products by truncating adders, tile by tile; included once for each instruction set.
//
// What the vectors do not cover goes to the interpreter, element by element: infinities among the operands, and sums
// that are subnormal in binary32 or do not fit 32 bits.
#pragma once

#include "cpu/mma_pack.hpp"
#include "cpu/mma_passes.hpp"

namespace fp8sim {
namespace {

enum class Products { kShort, kShortWithDot, kLong };

// What is known of an element's step when its result is due.
struct Outcome {
    Vec before;
    Vec sum;
    Vec largest;
    Mask too_large;  // the sum does not fit 32 bits
    Mask odd;        // the accumulator
};

// The lanes that the vectors' result does not hold for: NaN and infinities by their rules, others by the interpreter.
FP8SIM_HD_CALL Vec settle_lanes(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                                const Outcome& outcome, Vec bits, uint32_t left_over) {
    const StepFlags left_flags = work.a.flags[row * work.steps + step];
    const StepFlags right_flags = work.b.flags[panel * work.steps + step];
    const uint32_t special = left_flags.special | right_flags.special;
    const Vec magnitude_bits = both(outcome.before, all(kNanBits));
    const Mask c_special = above(magnitude_bits, all(kInfinityBits - 1));
    const Mask c_nan = above(magnitude_bits, all(kInfinityBits));
    const Mask nan = any_of(c_nan, mask_from(left_flags.nan | right_flags.nan));
    const Mask unknown = any_of(outcome.too_large, outcome.odd);
    const Mask beyond = except(beyond_binary32(outcome.sum, outcome.largest, rule), unknown);
    bits = choose(beyond, either(without(outcome.sum, all(kNanBits)), all(kInfinityBits)), bits);
    bits = choose(c_special, outcome.before, bits);
    bits = choose(nan, all(kNanBits), bits);
    left_over &= ~bits_of(nan) & ~(bits_of(any_of(c_special, beyond)) & ~special);
    if (left_over == 0) return bits;
    alignas(64) uint32_t in[kWidth], out[kWidth];
    store(in, outcome.before);
    store(out, bits);
    for (; left_over != 0; left_over &= left_over - 1) {
        const int lane = __builtin_ctz(left_over);
        const int64_t column = panel * kWidth + lane;
        if (row < work.job.m && column < work.job.n) out[lane] = interpret_step(work, row, column, step, in[lane]);
    }
    return load_unaligned(out);
}

FP8SIM_HD Vec settle(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                     const Outcome& outcome) {
    const Result result = finish(outcome.sum, outcome.largest, rule);
    const uint32_t special =
        work.a.flags[row * work.steps + step].special | work.b.flags[panel * work.steps + step].special;
    const uint32_t fine = bits_of(except(result.valid, any_of(outcome.odd, outcome.too_large))) & ~special;
    const uint32_t left_over = ~fine & ((uint32_t{1} << kWidth) - 1);
    if (__builtin_expect(left_over == 0, 1)) return result.bits;
    return settle_lanes(work, rule, row, panel, step, outcome, result.bits, left_over);
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
    Tile<panels> largest, base, sum;
    Mask odd[kRows][panels], too_large[kRows];
    largest_exponents<panels>(rows, b, work.pairs, base);
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            const Accumulator c = accumulator_of(d.lane[r][p], rule);
            Vec most = base.lane[r][p], scale = all(0);
            if (work.a.exponents != nullptr) {
                const int32_t* factors = work.b.exponents + ((panel + p) * work.steps + step) * kWidth;
                scale = add(all(work.a.exponents[(row + r) * work.steps + step]), load_unaligned(factors));
                scale = in_both_halves(scale);
                most = add16(most, scale);
            }
            most = max16(most, in_both_halves(c.exponent));
            base.lane[r][p] = sub16(most, scale);
            largest.lane[r][p] = right_signed<16>(most);
            sum.lane[r][p] = aligned(c, largest.lane[r][p], rule);
            odd[r][p] = c.odd;
        }
        too_large[r] = mask_from(0);
    }
    if constexpr (products == Products::kLong) {
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
            const Outcome outcome = {d.lane[r][p], sum.lane[r][p], largest.lane[r][p], too_large[r], odd[r][p]};
            d.lane[r][p] = settle(work, rule, row + r, panel + p, step, outcome);
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
