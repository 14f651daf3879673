#include "cpu/quantize_loops.hpp"

namespace fp8sim {

CastLoops cast_loops_avx512() { return {run_cast, run_levels, run_quantize, make_factors, draw}; }

}  // namespace fp8sim
