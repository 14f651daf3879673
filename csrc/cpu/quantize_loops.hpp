// Quantizing with scale factors, unit by unit: amax of the blocks, their factors, elements times their factors, codes;
// included once for each instruction set, beside the casts, whose loops make the codes.
#pragma once

#include <cstdint>

#include "cpu/cast_loops.hpp"
#include "cpu/quantize_job.hpp"

namespace fp8sim {
namespace {

using FloatLanes = typename WordTypes<Lanes<uint32_t>>::Float;

// amax

FP8SIM_HD Lanes<uint32_t> magnitudes(const uint32_t* x) { return load<uint32_t>(x) & ~Layout<uint32_t>::kSignMask; }

FP8SIM_HD Lanes<uint32_t> one_nan(Lanes<uint32_t> largest) {
    using L = Layout<uint32_t>;
    return largest > L::kInfinity ? broadcast<Lanes<uint32_t>>(L::kQuietNan) : largest;
}

// Lane k of the result is the largest lane of vector k. A step takes pairs of vectors to one with half as many lanes of
// each: the larger ones of neighbours.
FP8SIM_HD Lanes<uint32_t> largest_lanes(Lanes<uint32_t> (&vectors)[kLanes<uint32_t>]) {
    Lanes<uint32_t> even = {};
    for (int lane = 0; lane < kLanes<uint32_t>; ++lane) even[lane] = 2 * lane;
    for (int count = kLanes<uint32_t>; count > 1; count /= 2) {
        for (int k = 0; k < count / 2; ++k) {
            const Lanes<uint32_t> a = vectors[2 * k], b = vectors[2 * k + 1];
            vectors[k] = larger<Lanes<uint32_t>>(__builtin_shuffle(a, b, even), __builtin_shuffle(a, b, even + 1));
        }
    }
    return vectors[0];
}

// As many blocks of whole vectors in one row as a vector has lanes.
template <int steps>
FP8SIM_HD Lanes<uint32_t> largest_of_blocks(const uint32_t* x, int64_t block) {
    constexpr int kStep = kLanes<uint32_t>;
    Lanes<uint32_t> vectors[kStep];
#pragma GCC unroll 16
    for (int k = 0; k < kStep; ++k, x += block) {
        vectors[k] = magnitudes(x);
        if constexpr (steps > 0) {
            for (int step = 1; step < steps; ++step) {
                vectors[k] = larger<Lanes<uint32_t>>(vectors[k], magnitudes(x + step * kStep));
            }
        } else {
            for (int64_t i = kStep; i < block; i += kStep) {
                vectors[k] = larger<Lanes<uint32_t>>(vectors[k], magnitudes(x + i));
            }
        }
    }
    return one_nan(largest_lanes(vectors));
}

// largest[k] of the blocks of one row that `largest_of_blocks` can take together; how many those are.
template <int steps>
__attribute__((noinline)) int64_t find_largest_together(
    const uint32_t* x, int64_t count, int64_t block, uint32_t* largest) {
    constexpr int kStep = kLanes<uint32_t>;
    int64_t k = 0;
    for (; k + kStep <= count; k += kStep) store<uint32_t>(largest + k, largest_of_blocks<steps>(x + k * block, block));
    return k;
}

// The largest magnitude's bits of `count` numbers: patterns without sign go up with the numbers, NaN last.
FP8SIM_HD uint32_t largest_magnitude(const uint32_t* x, int64_t count) {
    constexpr int kStep = kLanes<uint32_t>;
    Lanes<uint32_t> lanes = {};
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) lanes = larger<Lanes<uint32_t>>(lanes, magnitudes(x + i));
    uint32_t largest = 0;
    if (i > 0) {
        for (int lane = 0; lane < kStep; ++lane) largest = larger<uint32_t>(largest, lanes[lane]);
    }
    for (; i < count; ++i) largest = larger<uint32_t>(largest, x[i] & ~Layout<uint32_t>::kSignMask);
    return largest;
}

// largest[k] = amax of block k of a run of `width` columns.
__attribute__((noinline)) void find_largest(
    const uint32_t* x, int64_t rows, int64_t stride, int64_t width, int64_t block, uint32_t* largest) {
    using L = Layout<uint32_t>;
    constexpr int kStep = kLanes<uint32_t>;
    const int64_t count = (width + block - 1) / block;
    int64_t k = 0;
    if (rows == 1 && block % kStep == 0) {
        if (block == kStep) k = find_largest_together<1>(x, width / block, block, largest);
        else if (block == 2 * kStep) k = find_largest_together<2>(x, width / block, block, largest);
        else k = find_largest_together<0>(x, width / block, block, largest);
    }
    for (; k < count; ++k) {
        const int64_t columns = smaller<int64_t>(block, width - k * block);
        uint32_t found = 0;
        for (int64_t row = 0; row < rows; ++row) {
            found = larger<uint32_t>(found, largest_magnitude(x + row * stride + k * block, columns));
        }
        largest[k] = found > L::kInfinity ? L::kQuietNan : found;
    }
}

// Factors

// stored[k], applied[k] from largest[k].
__attribute__((noinline)) void make_factors(const uint32_t* largest, uint32_t* stored, uint32_t* applied, int64_t count,
                                            ScaleConstants s, TensorFactor tensor) {
    constexpr int kStep = kLanes<uint32_t>;
    int64_t k = 0;
    const auto make = [=](const uint32_t* amax, uint32_t* stored, uint32_t* applied) FP8SIM_INLINE {
        const Factor<Lanes<uint32_t>> factor = factor_of(load<uint32_t>(amax), s, tensor);
        store<uint32_t>(stored, factor.stored);
        store<uint32_t>(applied, factor.applied);
    };
    for (; k + kStep <= count; k += kStep) make(largest + k, stored + k, applied + k);
    if (k == count) return;
    uint32_t rest[3][kStep] = {};
    memcpy(rest[0], largest + k, (count - k) * sizeof(uint32_t));
    make(rest[0], rest[1], rest[2]);
    memcpy(stored + k, rest[1], (count - k) * sizeof(uint32_t));
    memcpy(applied + k, rest[2], (count - k) * sizeof(uint32_t));
}

// Codes

// x times or over its factor, rounded to float32. NaN of x keeps its sign, NaN made of a number is positive.
template <bool divide>
FP8SIM_HD Lanes<uint32_t> meet_factor(Lanes<uint32_t> x, FloatLanes factor) {
    using Word = Lanes<uint32_t>;
    using L = Layout<uint32_t>;
    const FloatLanes number = bit_cast<FloatLanes>(x);
    const Word y = bit_cast<Word>(divide ? number / factor : number * factor);
    const Word made = (x & ~L::kSignMask) > L::kInfinity ? x : broadcast<Word>(L::kQuietNan);
    return (y & ~L::kSignMask) > L::kInfinity ? made : y;
}

template <bool divide>
FP8SIM_HD void scale_run(const uint32_t* x, uint32_t* y, int64_t count, uint32_t factor) {
    using L = Layout<uint32_t>;
    const FloatLanes lanes = bit_cast<FloatLanes>(broadcast<Lanes<uint32_t>>(factor));
    if (factor > 0 && factor < L::kInfinity) {  // makes no NaN, and NaN of x passes the processor with its sign
        return map_lanes<uint32_t>(x, y, count, [=](Lanes<uint32_t> number, int64_t) FP8SIM_INLINE {
            const FloatLanes float_number = bit_cast<FloatLanes>(number);
            return bit_cast<Lanes<uint32_t>>(divide ? float_number / lanes : float_number * lanes);
        });
    }
    map_lanes<uint32_t>(
        x, y, count, [=](Lanes<uint32_t> number, int64_t) FP8SIM_INLINE { return meet_factor<divide>(number, lanes); });
}

// y = `count` elements from column `first` on of a run of blocks with these factors.
template <bool divide>
__attribute__((noinline)) void scale_blocks(
    const uint32_t* x, uint32_t* y, int64_t first, int count, const uint32_t* factors, int64_t block) {
    for (int64_t done = 0, k = first / block; done < count; ++k) {
        const int64_t some = smaller<int64_t>(count - done, (k + 1) * block - (first + done));
        scale_run<divide>(x + done, y + done, some, factors[k]);
        done += some;
    }
}

template <class Code>
void codes_of_run(const QuantizeJob& job, const Plan<uint32_t>& plan, const uint32_t* numbers, int64_t element,
                  int count, Code* codes) {
    if (job.cut_count > 0) {
        if constexpr (sizeof(Code) == 1) encode_levels_block(numbers, codes, count, job.cuts, job.cut_count);
        return;
    }
    uint32_t buffer[kRandomBuffer];
    const uint32_t* random = is_stochastic(plan.mode) ? random_integers(element, count, job.random, buffer) : nullptr;
    encode_block(numbers, random, codes, count, plan);
}

// Codes of one row of a run of blocks; `element` is the row-major index of its first.
template <class Code>
void encode_row(const QuantizeJob& job, const Plan<uint32_t>& plan, int64_t element, int64_t width,
                const uint32_t* factors, int64_t block) {
    Code* codes = static_cast<Code*>(job.codes) + element;
    for (int64_t column = 0; column < width; column += kBlock) {
        const int count = static_cast<int>(smaller<int64_t>(width - column, kBlock));
        uint32_t scaled[kBlock];
        const uint32_t* x = job.source + element + column;
        if (divides(job.scale)) scale_blocks<true>(x, scaled, column, count, factors, block);
        else scale_blocks<false>(x, scaled, column, count, factors, block);
        codes_of_run(job, plan, scaled, element + column, count, codes + column);
    }
}

// Units

inline void store_factors(const QuantizeJob& job, const uint32_t* stored, int64_t first, int64_t count) {
    if (is_mx(job.scale.rule) || has_two_levels(job.scale.order)) {
        return narrow_codes(stored, static_cast<uint8_t*>(job.stored) + first, count);
    }
    memcpy(static_cast<uint32_t*>(job.stored) + first, stored, count * sizeof(uint32_t));
}

// Blocks [first, first + count) of row `row` of blocks, counted over all of `outer`.
template <class Code>
void run_unit(
    const QuantizeJob& job, const Plan<uint32_t>& plan, Pass pass, int64_t row, int64_t first, int64_t count) {
    const Blocks& b = job.blocks;
    const int64_t top = row / blocks_down(b) * b.rows + row % blocks_down(b) * b.block_rows;
    const int64_t rows = smaller<int64_t>(b.block_rows, (row / blocks_down(b) + 1) * b.rows - top);
    const int64_t left = first * b.block_columns, width = smaller<int64_t>(count * b.block_columns, b.columns - left);
    const int64_t element = top * b.columns + left, number = row * blocks_across(b) + first;

    uint32_t largest[kUnitElements], stored[kUnitElements], applied[kUnitElements];
    if (pass == Pass::kAll) find_largest(job.source + element, rows, b.columns, width, b.block_columns, largest);
    if (pass == Pass::kAmax) {
        return find_largest(job.source + element, rows, b.columns, width, b.block_columns, job.largest + number);
    }
    if (pass == Pass::kCodes) {
        for (int64_t k = 0; k < count; ++k) applied[k] = job.factor;
    } else {
        const uint32_t* amax = pass == Pass::kAll ? largest : job.largest + number;
        make_factors(amax, stored, applied, count, job.scale, job.tensor);
        store_factors(job, stored, number, count);
    }
    for (int64_t r = 0; r < rows; ++r) {
        encode_row<Code>(job, plan, element + r * b.columns, width, applied, b.block_columns);
    }
}

template <class Code>
void run_units(const QuantizeJob& job, Pass pass, int64_t begin, int64_t end) {
    const Plan<uint32_t> plan = plan_of<uint32_t>(job.conversion, job.random.count);
    const Units units = units_of(job.blocks);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % units.per_row * units.across;
        const int64_t count = smaller<int64_t>(units.across, blocks_across(job.blocks) - first);
        run_unit<Code>(job, plan, pass, unit / units.per_row, first, count);
    }
}

inline void run_quantize(const QuantizeJob& job, Pass pass, int64_t begin, int64_t end) {
    switch (job.code_bytes) {
        case 1: return run_units<uint8_t>(job, pass, begin, end);
        case 2: return run_units<uint16_t>(job, pass, begin, end);
        default: return run_units<uint32_t>(job, pass, begin, end);
    }
}

}  // namespace
}  // namespace fp8sim
