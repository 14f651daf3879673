#include "cpu/cast_loops.hpp"

namespace fp8sim {

CastLoops cast_loops_portable() { return {run_cast, draw}; }

}  // namespace fp8sim
