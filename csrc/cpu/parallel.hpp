// Threads: a pool that waits for loops over ranges of elements.
#pragma once

#include <cstdint>
#include <functional>

namespace fp8sim {

// As many threads as loops use, the calling one included. By default the processors that this process may run on.
int num_threads();
void set_num_threads(int count);

// Calls body(begin, end) for ranges that cover [0, size), each `grain` elements long but for the last; returns when all
// are done. Small sizes run on the calling thread alone, as does a call from within a body or while the pool is busy.
// `body` must not throw.
void parallel_for(int64_t size, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace fp8sim
