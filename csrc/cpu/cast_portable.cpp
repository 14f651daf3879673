#include "cpu/cast_job.hpp"
#include "cpu/cast_loops.hpp"

namespace fp8sim {

void cast_loops_portable(const CastJob& job, int64_t begin, int64_t end) { run_cast(job, begin, end); }

}  // namespace fp8sim
