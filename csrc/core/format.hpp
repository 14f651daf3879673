// A format and a policy as integers: all that a conversion loop reads.
//
// `fp8sim.rounding.resolve` makes them; its NamedTuple `Conversion` documents every field. Fields and their order are
// the same here, so a tuple of integers fills the struct.
#pragma once

#include <cstdint>

// Functions in csrc/core run on host and device. `static` keeps every copy inside its translation unit: code compiled
// for AVX-512 must never be merged with the portable code of the same name.
#if defined(__CUDACC__)
#define FP8SIM_HD static __host__ __device__ __forceinline__
#else
#define FP8SIM_HD static inline __attribute__((always_inline))
#endif

namespace fp8sim {

constexpr uint32_t kNoCode = 0xFFFFFFFFu;

struct Conversion {
    int32_t mantissa_bits;
    int32_t emin;
    uint32_t offset;
    uint32_t max_code;
    uint32_t inf_code;
    uint32_t nan_from;
    uint32_t sign_bit;
    uint32_t negative_zero;
    uint32_t rounding;
    uint32_t zero_positive;
    uint32_t zero_negative;
    uint32_t overflow_positive;
    uint32_t overflow_negative;
    uint32_t infinity_positive;
    uint32_t infinity_negative;
    uint32_t nan_positive;
    uint32_t nan_negative;
    uint32_t below;
    uint32_t twos_complement;
};

constexpr int kConversionFields = sizeof(Conversion) / sizeof(uint32_t);
static_assert(kConversionFields == 19, "as many fields as fp8sim.rounding.Conversion");

// Numbers are those of `fp8sim.rounding.Rounding`, which defines the modes.
enum class Rounding : uint32_t {
    kTiesToEven = 0,
    kTiesToAway = 1,
    kTiesToZero = 2,
    kTowardZero = 3,
    kTowardPositive = 4,
    kTowardNegative = 5,
    kToOdd = 6,
    kStochastic = 7,
    kStochasticA = 8,
    kStochasticB = 9,
    kStochasticEqual = 10,
};

// APPLY(mode) for every mode, to go from a mode known at run time to a template argument.
#define FP8SIM_EACH_ROUNDING(APPLY)                                                                       \
    APPLY(Rounding::kTiesToEven) APPLY(Rounding::kTiesToAway) APPLY(Rounding::kTiesToZero)                \
    APPLY(Rounding::kTowardZero) APPLY(Rounding::kTowardPositive) APPLY(Rounding::kTowardNegative)        \
    APPLY(Rounding::kToOdd) APPLY(Rounding::kStochastic) APPLY(Rounding::kStochasticA)                    \
    APPLY(Rounding::kStochasticB) APPLY(Rounding::kStochasticEqual)

FP8SIM_HD constexpr bool is_stochastic(Rounding mode) { return mode >= Rounding::kStochastic; }

}  // namespace fp8sim
