#include "cpu/quantize.hpp"

#include <algorithm>
#include <vector>

#include "cpu/cast.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/parallel.hpp"

namespace fp8sim {
namespace {

constexpr int64_t kGrain = int64_t{1} << 15;

// Threads count elements, not units.
void for_units(const QuantizeJob& job, Pass pass) {
    const CastLoops loops = current_loops();
    const Units units = units_of(job.blocks);
    const int64_t count = job.blocks.outer * blocks_down(job.blocks) * units.per_row;
    const int64_t elements = std::max<int64_t>(1, elements_in(job.blocks) / count);
    const int64_t grain = std::max<int64_t>(1, kGrain / elements);
    parallel_for(count * elements, grain * elements, [&](int64_t begin, int64_t end) {
        const ScopedFloatEnvironment environment;
        loops.quantize(job, pass, begin / elements, end / elements);
    });
}

// The same elements as one row, in blocks of their own: for what does not depend on the blocks.
Blocks as_row(const Blocks& blocks) { return {1, 1, elements_in(blocks), 1, kUnitElements}; }

// One row where no block ends within a row.
Blocks joined(const Blocks& blocks) {
    if (blocks.block_rows != 1 || blocks.columns % blocks.block_columns != 0) return blocks;
    return {1, 1, elements_in(blocks), 1, blocks.block_columns};
}

uint32_t largest_of(const std::vector<uint32_t>& largest) { return *std::max_element(largest.begin(), largest.end()); }

// One factor for all elements: amax of as many parts as there are units, the factor, the codes.
void quantize_as_one(QuantizeJob job) {
    job.blocks = as_row(job.blocks);
    std::vector<uint32_t> largest(blocks_in(job.blocks));
    job.largest = largest.data();
    for_units(job, Pass::kAmax);
    const uint32_t whole = largest_of(largest);
    uint32_t stored = 0;
    find_factors(job.scale, &whole, 1, &stored, &job.factor);
    if (is_mx(job.scale.rule)) *static_cast<uint8_t*>(job.stored) = static_cast<uint8_t>(stored);
    else *static_cast<uint32_t*>(job.stored) = stored;
    for_units(job, Pass::kCodes);
}

}  // namespace

float quantize(QuantizeJob job) {
    if (!has_two_levels(job.scale.order)) {
        if (blocks_in(job.blocks) == 1) return quantize_as_one(job), 1;
        job.blocks = joined(job.blocks);
        return for_units(job, Pass::kAll), 1;
    }
    job.blocks = joined(job.blocks);
    std::vector<uint32_t> largest(blocks_in(job.blocks));
    job.largest = largest.data();
    for_units(job, Pass::kAmax);
    const ScopedFloatEnvironment environment;
    job.tensor = tensor_factor(largest_of(largest), job.scale);
    for_units(job, Pass::kFactors);
    return job.tensor.scale_inv;
}

void find_amax(const uint32_t* source, const Blocks& blocks, uint32_t* largest) {
    QuantizeJob job = {};
    job.source = source;
    job.code_bytes = 1;
    job.blocks = blocks_in(blocks) == 1 ? as_row(blocks) : joined(blocks);
    std::vector<uint32_t> parts(blocks_in(job.blocks));
    job.largest = blocks_in(blocks) == 1 ? parts.data() : largest;
    for_units(job, Pass::kAmax);
    if (blocks_in(blocks) == 1) *largest = largest_of(parts);
}

float find_factors(const ScaleConstants& scale, const uint32_t* largest, int64_t count, uint32_t* stored,
                   uint32_t* applied) {
    const ScopedFloatEnvironment environment;
    TensorFactor tensor = {1, 0};
    if (has_two_levels(scale.order)) {
        uint32_t whole = 0;
        for (int64_t k = 0; k < count; ++k) whole = std::max(whole, largest[k]);
        tensor = tensor_factor(whole, scale);
    }
    current_loops().make_factors(largest, stored, applied, count, scale, tensor);
    return tensor.scale_inv;
}

}  // namespace fp8sim
