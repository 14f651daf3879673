#include "cpu/mma_loops.hpp"

namespace fp8sim {

FastLoops fast_loops_avx512(bool is_short) {
    if (!is_short) return {kWidth, kWidth, pack_rows, pack_panels, run_tile<Products::kLong, 1>};
    const bool has_dot = __builtin_cpu_supports("avx512vnni");
    const auto run = has_dot ? run_tile<Products::kShortWithDot, 2> : run_tile<Products::kShort, 2>;
    return {kWidth, 2 * kWidth, pack_rows, pack_panels, run};
}

}  // namespace fp8sim
