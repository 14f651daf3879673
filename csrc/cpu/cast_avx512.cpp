#include "cpu/cast_loops.hpp"

namespace fp8sim {

CastLoops cast_loops_avx512() { return {run_cast, run_levels, draw}; }

}  // namespace fp8sim
