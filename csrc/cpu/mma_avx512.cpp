#include "cpu/mma_loops.hpp"

namespace fp8sim {

FastLoops fast_loops_avx512(bool is_short, bool is_binary16) {
    if (!is_short) return loops_for<Products::kLong, 1>(is_binary16);
    if (!__builtin_cpu_supports("avx512vnni")) return loops_for<Products::kShort, 2>(is_binary16);
    return loops_for<Products::kShortWithDot, 2>(is_binary16);
}

}  // namespace fp8sim
