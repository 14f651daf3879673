// Quantizing of whole tensors: on the chosen instruction set, on several threads, in the default environment.
#pragma once

#include "cpu/quantize_job.hpp"

namespace fp8sim {

// Codes and factors; `job.largest` is not read. Returns the factor of the whole tensor in a two-level order.
float quantize(QuantizeJob job);

// largest[k] = the bits of amax of block k.
void find_amax(const uint32_t* source, const Blocks& blocks, uint32_t* largest);

// stored[k], applied[k] of blocks of which `largest` has the amax; returns what `quantize` does.
float find_factors(const ScaleConstants& scale, const uint32_t* largest, int64_t count, uint32_t* stored,
                   uint32_t* applied);

}  // namespace fp8sim
