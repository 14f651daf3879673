#include "cpu/mma_loops.hpp"

namespace fp8sim {

FastLoops fast_loops_avx2(bool is_short, bool is_binary16) {
    return is_short ? loops_for<Products::kShort, 1>(is_binary16) : loops_for<Products::kLong, 1>(is_binary16);
}

}  // namespace fp8sim
