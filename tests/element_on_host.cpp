// The CUDA cast's dispatch and element arithmetic, compiled for the host: what test_cuda.py compares with fp8sim._core.
#include "cuda/dispatch.hpp"

using namespace fp8sim;

namespace {

struct Loop {
    template <class From, class To, Mode mode>
    int operator()(From, To, Constant<mode>, const CastJob& job) const {
        const auto* source = static_cast<const typename From::Storage*>(job.source);
        auto* target = static_cast<typename To::Storage*>(job.target);
        const RandomBits bits = {job.seed, job.stream, job.offset, job.random_bits};
        for (int64_t i = 0; i < job.size; ++i) target[i] = convert<From, To, mode>(source[i], job.conversion, bits, i);
        return 0;
    }
};

}  // namespace

extern "C" void convert_on_host(const CastJob* job) { dispatch(*job, Loop{}); }
