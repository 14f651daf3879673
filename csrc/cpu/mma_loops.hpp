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

// What a tile's loops know when they are compiled.
template <Products products_, int panels_, bool is_binary16_>
struct Shape {
    static constexpr bool is_long = products_ == Products::kLong;
    static constexpr bool has_dot = products_ == Products::kShortWithDot;
    static constexpr int panels = panels_;
    static constexpr bool is_binary16 = is_binary16_;
};

// The accumulators of a tile between steps.
template <int panels>
struct State {
    Tile<panels> d;
    bool has_odd;  // whether any of them is odd
};

template <int panels>
FP8SIM_HD bool has_odd_lane(const Tile<panels>& d) {
    Mask odd = mask_from(0);
    for (const auto& lanes : d.lane) {
        for (const Vec lane : lanes) odd = any_of(odd, odd_of(lane));
    }
    return bits_of(odd) != 0;
}

// A step's sums, when its results are due.
template <int panels>
struct Sums {
    Tile<panels> sum;
    Tile<panels> most;       // the largest exponent, in both halves
    Mask too_large[kRows];  // the sum does not fit 32 bits
};

// What is known of an element's step when its result is due.
struct Outcome {
    Vec before;
    Vec sum;
    Vec largest;
    Mask too_large;
};

// The lanes that the vectors' result does not hold for: NaN and infinities by their rules, others by the interpreter.
FP8SIM_HD Vec settle_lanes(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                           const Outcome& outcome, const Result& result) {
    const StepFlags left_flags = work.a.flags[row * work.steps + step];
    const StepFlags right_flags = work.b.flags[panel * work.steps + step];
    const uint32_t special = left_flags.special | right_flags.special;
    const Vec magnitude_bits = both(outcome.before, all(kNanBits));
    const Mask c_special = above(magnitude_bits, all(kInfinityBits - 1));
    const Mask c_nan = above(magnitude_bits, all(kInfinityBits));
    const Mask nan = any_of(c_nan, mask_from(left_flags.nan | right_flags.nan));
    const Mask unknown = any_of(outcome.too_large, odd_of(outcome.before));
    const Mask beyond = except(beyond_binary32(outcome.sum, outcome.largest, rule), unknown);
    Vec bits = choose(beyond, either(without(outcome.sum, all(kNanBits)), all(kInfinityBits)), result.bits);
    bits = choose(c_special, outcome.before, bits);
    bits = choose(nan, all(kNanBits), bits);
    const uint32_t fine = bits_of(except(result.valid, unknown)) & ~special;
    const uint32_t by_rule = bits_of(nan) | (bits_of(any_of(c_special, beyond)) & ~special);
    uint32_t left_over = ~(fine | by_rule) & kAllLanes;
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

template <class Shape>
__attribute__((noinline)) void settle(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                                      const Sums<Shape::panels>& sums, State<Shape::panels>& state) {
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < Shape::panels; ++p) {
            const Vec sum = sums.sum.lane[r][p], largest = right_signed<16>(sums.most.lane[r][p]);
            const Outcome outcome = {state.d.lane[r][p], sum, largest, sums.too_large[r]};
            const Result result = finish<Shape::is_binary16>(sum, largest, rule);
            state.d.lane[r][p] = settle_lanes(work, rule, row + r, panel + p, step, outcome, result);
        }
    }
    state.has_odd = has_odd_lane(state.d);
}

template <int panels>
FP8SIM_HD bool has_special(const FastJob& work, int64_t row, int64_t panel, int64_t step) {
    uint32_t special = 0;
    for (int r = 0; r < kRows; ++r) special |= work.a.flags[(row + r) * work.steps + step].special;
    for (int p = 0; p < panels; ++p) special |= work.b.flags[(panel + p) * work.steps + step].special;
    return special != 0;
}

// The accumulators join: the largest exponents, also less those of scale factors, and the sums' first term.
template <class Shape>
FP8SIM_HD void start(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                     const Tile<Shape::panels>& d, Sums<Shape::panels>& sums, Tile<Shape::panels>& base) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < Shape::panels; ++p) {
            const Accumulator c = accumulator_of<Shape::is_binary16>(d.lane[r][p], rule);
            Vec most = sums.most.lane[r][p], scale = all(0);
            const bool has_scales = Shape::is_long && work.a.exponents != nullptr;
            if (has_scales) {
                const int32_t* factors = work.b.exponents + ((panel + p) * work.steps + step) * kWidth;
                scale = add(all(work.a.exponents[(row + r) * work.steps + step]), load_unaligned(factors));
                scale = in_both_halves(scale);
                most = add16(most, scale);
            }
            most = max16(most, in_both_halves(c.exponent));
            sums.most.lane[r][p] = most;
            base.lane[r][p] = has_scales ? sub16(most, scale) : most;
            sums.sum.lane[r][p] = aligned<Shape::is_long>(c, right_signed<16>(most), rule);
        }
        sums.too_large[r] = mask_from(0);
    }
}

template <class Shape>
FP8SIM_HD void run_step(const FastJob& work, const Rule& rule, int64_t row, int64_t panel, int64_t step,
                        State<Shape::panels>& state) {
    constexpr int panels = Shape::panels;
    StepRows rows;
    rows.plane = products_of(work);
    for (int r = 0; r < kRows; ++r) {
        rows.a[r] = work.a.planes + (row + r) * kPlanes * rows.plane + step * work.pairs * kLanePair;
    }
    const int16_t* b[panels];
    for (int p = 0; p < panels; ++p) {
        b[p] = work.b.planes + ((panel + p) * work.steps + step) * work.pairs * kPairWords;
    }
    Sums<panels> sums;
    Tile<panels> base, next;
    largest_exponents<panels>(rows, b, work.pairs, sums.most);
    start<Shape>(work, rule, row, panel, step, state.d, sums, base);
    if constexpr (Shape::is_long) {
        for (int first = 0; first < work.pairs; first += kChunkPairs) {
            SignedSum part[kRows];
            for (SignedSum& terms : part) terms = no_terms();
            add_long(rows, b[0], first, smaller<int>(kChunkPairs, work.pairs - first), base, part);
            for (int r = 0; r < kRows; ++r) {
                const Vec x = sums.sum.lane[r][0], y = value_of(part[r]);
                sums.sum.lane[r][0] = add(x, y);
                sums.too_large[r] = any_of(sums.too_large[r], overflows(x, y, sums.sum.lane[r][0]));
            }
        }
    } else {
        add_short<Shape::has_dot, panels>(rows, b, work.pairs, base, sums.sum);
    }
    Mask fine = mask_from(kAllLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p) {
            const Vec largest = right_signed<16>(sums.most.lane[r][p]);
            const Result result = finish<Shape::is_binary16>(sums.sum.lane[r][p], largest, rule);
            next.lane[r][p] = result.bits;
            fine = all_of(fine, result.valid);
        }
        if (Shape::is_long) fine = except(fine, sums.too_large[r]);
    }
    const bool all_fine = bits_of(fine) == kAllLanes && !state.has_odd && !has_special<panels>(work, row, panel, step);
    if (__builtin_expect(all_fine, 1)) {
        state.d = next;
    } else {
        const Sums<panels> kept = sums;  // a copy, so that the sums themselves need no memory
        settle<Shape>(work, rule, row, panel, step, kept, state);
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
template <bool is_binary16>
FP8SIM_HD Vec add_nearest_lanes(Vec d, Vec t) {
    Vec sum = add_floats(d, t);
    if (is_binary16) sum = through_binary16(sum);
    return choose(above(both(sum, all(kNanBits)), all(kInfinityBits)), all(kNanBits), sum);
}

template <class Shape>
FP8SIM_HD void run_rows(const FastJob& work, const Rule& rule, int64_t row, int64_t panel) {
    constexpr int panels = Shape::panels;
    State<panels> state;
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            state.d.lane[r][p] = load_accumulators(work.job, row + r, (panel + p) * kWidth, Shape::is_binary16);
        }
    }
    state.has_odd = has_odd_lane(state.d);
    for (int64_t step = 0; step < work.steps; step += work.per_instruction) {
        const Tile<panels> d = state.d;
        if (work.emulated) {
            for (auto& lanes : state.d.lane) {
                for (Vec& lane : lanes) lane = all(0);
            }
            state.has_odd = false;
        }
        for (int32_t i = 0; i < work.per_instruction; ++i) run_step<Shape>(work, rule, row, panel, step + i, state);
        if (!work.emulated) continue;
        for (int r = 0; r < kRows; ++r) {
            for (int p = 0; p < panels; ++p) {
                state.d.lane[r][p] = add_nearest_lanes<Shape::is_binary16>(d.lane[r][p], state.d.lane[r][p]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < panels; ++p) {
            store_results(work.job, row + r, (panel + p) * kWidth, Shape::is_binary16, state.d.lane[r][p]);
        }
    }
}

template <class Shape>
void run_tile(const FastJob& work, int64_t tile, int64_t begin, int64_t end) {
    const Rule rule = rule_of(work.step);
    const int64_t panel = tile * Shape::panels;
    for (int64_t row = begin; row < end; row += kRows) run_rows<Shape>(work, rule, row, panel);
}

// The loops for a kind of products and for either accumulator.
template <Products products, int panels>
FastLoops loops_for(bool is_binary16) {
    const auto run = is_binary16 ? run_tile<Shape<products, panels, true>> : run_tile<Shape<products, panels, false>>;
    return {kWidth, panels * kWidth, pack_rows, pack_panels, run};
}

}  // namespace
}  // namespace fp8sim
