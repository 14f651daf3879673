// The floating-point environment that the loops need: round to nearest, keep subnormals, raise no traps.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fp8sim {

// Sets the default environment of this thread for as long as it lives, whatever the process chose
// (`torch.set_flush_denormal`, `fesetround`), and puts the process's choice back.
class ScopedFloatEnvironment {
public:
#if defined(__x86_64__)
    ScopedFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kAllExceptionsMasked); }
    ~ScopedFloatEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    ScopedFloatEnvironment() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~ScopedFloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
#error "ScopedFloatEnvironment: say how this processor's rounding mode and flushing of subnormals are set"
#endif
    ScopedFloatEnvironment(const ScopedFloatEnvironment&) = delete;
    ScopedFloatEnvironment& operator=(const ScopedFloatEnvironment&) = delete;

private:
#if defined(__x86_64__)
    static constexpr unsigned kAllExceptionsMasked = 0x1F80;
    unsigned saved_;
#else
    uint64_t saved_;
#endif
};

}  // namespace fp8sim
