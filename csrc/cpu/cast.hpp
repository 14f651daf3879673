// A conversion of whole arrays: on the chosen instruction set, on several threads, in the default environment.
#pragma once

#include "cpu/cast_job.hpp"

namespace fp8sim {

// Those of the instruction set in use.
CastLoops current_loops();

void run(const CastJob& job);
void run(const LevelsJob& job);

// target[i] = the random integer of element i.
void draw(uint32_t* target, int64_t size, const RandomBits& random);

}  // namespace fp8sim
