// From a job, which is known at run time, to the loop compiled for its types and mode.
#pragma once

#include "core/element.hpp"
#include "cpu/cast_job.hpp"

namespace fp8sim {

// `run` is called as run(From{}, To{}, Constant<mode>{}, job).
template <Mode mode>
struct Constant {
    static constexpr Mode kValue = mode;
};

template <class Float, class To, class Run>
auto dispatch_mode(const CastJob& job, const Run& run) {
    if (is_usual<typename Float::Bits>(job.conversion)) return run(Float{}, To{}, Constant<Mode::kUsual>{}, job);
    return run(Float{}, To{}, Constant<Mode::kAny>{}, job);
}

template <class Float, class Run>
auto dispatch_from_float(const CastJob& job, const Run& run) {
    switch (job.target_dtype) {
        case Dtype::kCodes8: return dispatch_mode<Float, Codes<uint8_t>>(job, run);
        case Dtype::kCodes16: return dispatch_mode<Float, Codes<uint16_t>>(job, run);
        case Dtype::kCodes32: return dispatch_mode<Float, Codes<uint32_t>>(job, run);
        default: return dispatch_mode<Float, Float>(job, run);
    }
}

template <class Code, class Run>
auto dispatch_from_codes(const CastJob& job, const Run& run) {
    constexpr Constant<Mode::kUsual> mode{};
    switch (job.target_dtype) {
        case Dtype::kFloat16: return run(Code{}, Float16{}, mode, job);
        case Dtype::kBfloat16: return run(Code{}, Bfloat16{}, mode, job);
        case Dtype::kFloat32: return run(Code{}, Float32{}, mode, job);
        default: return run(Code{}, Float64{}, mode, job);
    }
}

template <class Run>
auto dispatch(const CastJob& job, const Run& run) {
    switch (job.source_dtype) {
        case Dtype::kFloat16: return dispatch_from_float<Float16>(job, run);
        case Dtype::kBfloat16: return dispatch_from_float<Bfloat16>(job, run);
        case Dtype::kFloat32: return dispatch_from_float<Float32>(job, run);
        case Dtype::kFloat64: return dispatch_from_float<Float64>(job, run);
        case Dtype::kCodes8: return dispatch_from_codes<Codes<uint8_t>>(job, run);
        case Dtype::kCodes16: return dispatch_from_codes<Codes<uint16_t>>(job, run);
        default: return dispatch_from_codes<Codes<uint32_t>>(job, run);
    }
}

}  // namespace fp8sim
