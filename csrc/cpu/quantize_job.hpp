// What the bindings hand to the loops that quantize with scale factors.
#pragma once

#include <cstdint>

#include "core/random.hpp"
#include "core/scale.hpp"

namespace fp8sim {

// A tensor [outer, rows, columns] in blocks of block_rows x block_columns; the last ones of an axis hold what remains.
struct Blocks {
    int64_t outer, rows, columns, block_rows, block_columns;
};

FP8SIM_HD int64_t elements_in(const Blocks& b) { return b.outer * b.rows * b.columns; }
FP8SIM_HD int64_t blocks_down(const Blocks& b) { return (b.rows + b.block_rows - 1) / b.block_rows; }
FP8SIM_HD int64_t blocks_across(const Blocks& b) { return (b.columns + b.block_columns - 1) / b.block_columns; }
FP8SIM_HD int64_t blocks_in(const Blocks& b) { return b.outer * blocks_down(b) * blocks_across(b); }

// Work is shared out in units of whole blocks: `across` of a row of blocks.
struct Units {
    int64_t per_row, across;  // units in a row of blocks, blocks in a unit
};

constexpr int kUnitElements = 4096;  // 16 KiB of source stay in the first cache level

FP8SIM_HD Units units_of(const Blocks& b) {
    const int64_t wanted = kUnitElements / (b.block_rows * b.block_columns);
    const int64_t across = wanted < 1 ? 1 : (wanted > blocks_across(b) ? blocks_across(b) : wanted);
    return {(blocks_across(b) + across - 1) / across, across};
}

// Which parts of the work a pass over the units does.
enum class Pass {
    kAll,      // amax, factor, codes
    kAmax,     // amax alone, into `largest`
    kFactors,  // the rest, from `largest`
    kCodes,    // codes alone, with `factor` for all blocks
};

struct QuantizeJob {
    const uint32_t* source;  // float32
    void* codes;             // code_bytes each
    int code_bytes;
    Blocks blocks;
    ScaleConstants scale;
    void* stored;  // of each block: bytes, or float32 in one level of AMAX
    uint32_t* largest;
    TensorFactor tensor;
    uint32_t factor;
    Conversion conversion;
    RandomBits random;
    const float* cuts;  // of a codebook, in place of the conversion
    int cut_count;      // 0: no codebook
};

}  // namespace fp8sim
