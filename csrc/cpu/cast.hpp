// A conversion of whole arrays: on the chosen instruction set, on several threads, in the default environment.
#pragma once

#include "cpu/cast_job.hpp"

namespace fp8sim {

void run(const CastJob& job);

}  // namespace fp8sim
