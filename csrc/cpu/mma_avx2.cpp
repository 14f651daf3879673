#include "cpu/mma_loops.hpp"

namespace fp8sim {

FastLoops fast_loops_avx2(bool is_short) {
    const auto run = is_short ? run_tile<Products::kShort, 1> : run_tile<Products::kLong, 1>;
    return {kWidth, kWidth, pack_rows, pack_panels, run};
}

}  // namespace fp8sim
