// The scalar interpreter over rows of a matrix product.
#pragma once

#include "cpu/mma.hpp"

namespace fp8sim {

// Rows [begin, end) of d.
void run_portable(const MmaJob& job, int64_t begin, int64_t end);

}  // namespace fp8sim
