// NVIDIA's own emulation of its conversion instructions, on the host: reads patterns from stdin, writes codes to stdout.
//
//   nvidia_header fp32_to_fp8e4nv < uint32 patterns > uint8 codes
//   nvidia_header fp8e4nv_to_fp32 < uint8 codes > uint32 patterns
//
// Needs only the headers of the CUDA toolkit: g++ -O2 -I <toolkit>/include nvidia_header.cpp
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits only");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

float as_float(uint32_t bits) { return same_bits<float>(bits); }

template <__nv_fp8_interpretation_t kind, __nv_saturation_t saturation = __NV_SATFINITE>
uint8_t fp32_to_fp8(uint32_t bits) {
    return __nv_cvt_float_to_fp8(as_float(bits), saturation, kind);
}

template <__nv_fp6_interpretation_t kind, cudaRoundMode mode>
uint8_t fp32_to_fp6(uint32_t bits) {
    return __nv_cvt_float_to_fp6(as_float(bits), kind, mode);
}

template <cudaRoundMode mode>
uint8_t fp32_to_fp4(uint32_t bits) {
    return __nv_cvt_float_to_fp4(as_float(bits), __NV_E2M1, mode);
}

template <__nv_saturation_t saturation, cudaRoundMode mode>
uint8_t fp32_to_e8m0(uint32_t bits) {
    return __nv_cvt_float_to_e8m0(as_float(bits), saturation, mode);
}

double as_double(uint64_t bits) { return same_bits<double>(bits); }

template <__nv_fp8_interpretation_t kind, __nv_saturation_t saturation = __NV_SATFINITE>
uint8_t fp64_to_fp8(uint64_t bits) {
    return __nv_cvt_double_to_fp8(as_double(bits), saturation, kind);
}

template <__nv_fp6_interpretation_t kind, cudaRoundMode mode>
uint8_t fp64_to_fp6(uint64_t bits) {
    return __nv_cvt_double_to_fp6(as_double(bits), kind, mode);
}

template <cudaRoundMode mode>
uint8_t fp64_to_fp4(uint64_t bits) {
    return __nv_cvt_double_to_fp4(as_double(bits), __NV_E2M1, mode);
}

template <__nv_saturation_t saturation, cudaRoundMode mode>
uint8_t fp64_to_e8m0(uint64_t bits) {
    return __nv_cvt_double_to_e8m0(as_double(bits), saturation, mode);
}

template <__nv_fp8_interpretation_t kind>
uint8_t fp16_to_fp8(uint16_t bits) {
    return __nv_cvt_halfraw_to_fp8(same_bits<__half_raw>(bits), __NV_SATFINITE, kind);
}

template <__nv_fp8_interpretation_t kind>
uint8_t bf16_to_fp8(uint16_t bits) {
    return __nv_cvt_bfloat16raw_to_fp8(same_bits<__nv_bfloat16_raw>(bits), __NV_SATFINITE, kind);
}

template <__nv_fp8_interpretation_t kind>
uint32_t fp8_to_fp32(uint8_t code) {
    return same_bits<uint32_t>(__half2float(__half(__nv_cvt_fp8_to_halfraw(code, kind))));
}

uint16_t fp32_to_bf16(uint32_t bits) { return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(as_float(bits))).x; }
uint16_t fp32_to_fp16(uint32_t bits) { return static_cast<__half_raw>(__float2half_rn(as_float(bits))).x; }

template <__half (*convert)(float)>
uint16_t fp32_to_fp16_by(uint32_t bits) {
    return static_cast<__half_raw>(convert(as_float(bits))).x;
}

template <__nv_bfloat16 (*convert)(float)>
uint16_t fp32_to_bf16_by(uint32_t bits) {
    return static_cast<__nv_bfloat16_raw>(convert(as_float(bits))).x;
}

uint32_t fp16_to_fp32(uint16_t bits) { return same_bits<uint32_t>(__half2float(__half(same_bits<__half_raw>(bits)))); }

uint32_t bf16_to_fp32(uint16_t bits) {
    return same_bits<uint32_t>(__bfloat162float(__nv_bfloat16(same_bits<__nv_bfloat16_raw>(bits))));
}

template <class In, class Out, Out (*convert)(In)>
void stream() {
    std::vector<In> in(1 << 16);
    std::vector<Out> out(in.size());
    while (size_t count = std::fread(in.data(), sizeof(In), in.size(), stdin)) {
        for (size_t i = 0; i < count; ++i) out[i] = convert(in[i]);
        std::fwrite(out.data(), sizeof(Out), count, stdout);
    }
}

const std::map<std::string, void (*)()> kConversions = {
    {"fp32_to_fp8e4nv", stream<uint32_t, uint8_t, fp32_to_fp8<__NV_E4M3>>},
    {"fp32_to_fp8e5", stream<uint32_t, uint8_t, fp32_to_fp8<__NV_E5M2>>},
    {"fp32_to_fp8e4nv_nosat", stream<uint32_t, uint8_t, fp32_to_fp8<__NV_E4M3, __NV_NOSAT>>},
    {"fp32_to_fp8e5_nosat", stream<uint32_t, uint8_t, fp32_to_fp8<__NV_E5M2, __NV_NOSAT>>},
    {"fp32_to_e2m3_rn", stream<uint32_t, uint8_t, fp32_to_fp6<__NV_E2M3, cudaRoundNearest>>},
    {"fp32_to_e2m3_rz", stream<uint32_t, uint8_t, fp32_to_fp6<__NV_E2M3, cudaRoundZero>>},
    {"fp32_to_e3m2_rn", stream<uint32_t, uint8_t, fp32_to_fp6<__NV_E3M2, cudaRoundNearest>>},
    {"fp32_to_e3m2_rz", stream<uint32_t, uint8_t, fp32_to_fp6<__NV_E3M2, cudaRoundZero>>},
    {"fp32_to_e2m1_rn", stream<uint32_t, uint8_t, fp32_to_fp4<cudaRoundNearest>>},
    {"fp32_to_e2m1_rz", stream<uint32_t, uint8_t, fp32_to_fp4<cudaRoundZero>>},
    {"fp32_to_e8m0_rz", stream<uint32_t, uint8_t, fp32_to_e8m0<__NV_SATFINITE, cudaRoundZero>>},
    {"fp32_to_e8m0_rz_nosat", stream<uint32_t, uint8_t, fp32_to_e8m0<__NV_NOSAT, cudaRoundZero>>},
    {"fp32_to_e8m0_rp", stream<uint32_t, uint8_t, fp32_to_e8m0<__NV_SATFINITE, cudaRoundPosInf>>},
    {"fp32_to_e8m0_rp_nosat", stream<uint32_t, uint8_t, fp32_to_e8m0<__NV_NOSAT, cudaRoundPosInf>>},
    {"fp64_to_fp8e4nv", stream<uint64_t, uint8_t, fp64_to_fp8<__NV_E4M3>>},
    {"fp64_to_fp8e5", stream<uint64_t, uint8_t, fp64_to_fp8<__NV_E5M2>>},
    {"fp64_to_fp8e4nv_nosat", stream<uint64_t, uint8_t, fp64_to_fp8<__NV_E4M3, __NV_NOSAT>>},
    {"fp64_to_fp8e5_nosat", stream<uint64_t, uint8_t, fp64_to_fp8<__NV_E5M2, __NV_NOSAT>>},
    {"fp64_to_e2m3_rn", stream<uint64_t, uint8_t, fp64_to_fp6<__NV_E2M3, cudaRoundNearest>>},
    {"fp64_to_e2m3_rz", stream<uint64_t, uint8_t, fp64_to_fp6<__NV_E2M3, cudaRoundZero>>},
    {"fp64_to_e3m2_rn", stream<uint64_t, uint8_t, fp64_to_fp6<__NV_E3M2, cudaRoundNearest>>},
    {"fp64_to_e3m2_rz", stream<uint64_t, uint8_t, fp64_to_fp6<__NV_E3M2, cudaRoundZero>>},
    {"fp64_to_e2m1_rn", stream<uint64_t, uint8_t, fp64_to_fp4<cudaRoundNearest>>},
    {"fp64_to_e2m1_rz", stream<uint64_t, uint8_t, fp64_to_fp4<cudaRoundZero>>},
    {"fp64_to_e8m0_rz", stream<uint64_t, uint8_t, fp64_to_e8m0<__NV_SATFINITE, cudaRoundZero>>},
    {"fp64_to_e8m0_rz_nosat", stream<uint64_t, uint8_t, fp64_to_e8m0<__NV_NOSAT, cudaRoundZero>>},
    {"fp64_to_e8m0_rp", stream<uint64_t, uint8_t, fp64_to_e8m0<__NV_SATFINITE, cudaRoundPosInf>>},
    {"fp64_to_e8m0_rp_nosat", stream<uint64_t, uint8_t, fp64_to_e8m0<__NV_NOSAT, cudaRoundPosInf>>},
    {"fp16_to_fp8e4nv", stream<uint16_t, uint8_t, fp16_to_fp8<__NV_E4M3>>},
    {"fp16_to_fp8e5", stream<uint16_t, uint8_t, fp16_to_fp8<__NV_E5M2>>},
    {"bf16_to_fp8e4nv", stream<uint16_t, uint8_t, bf16_to_fp8<__NV_E4M3>>},
    {"bf16_to_fp8e5", stream<uint16_t, uint8_t, bf16_to_fp8<__NV_E5M2>>},
    {"fp8e4nv_to_fp32", stream<uint8_t, uint32_t, fp8_to_fp32<__NV_E4M3>>},
    {"fp8e5_to_fp32", stream<uint8_t, uint32_t, fp8_to_fp32<__NV_E5M2>>},
    {"fp32_to_bf16", stream<uint32_t, uint16_t, fp32_to_bf16>},
    {"bf16_to_fp32", stream<uint16_t, uint32_t, bf16_to_fp32>},
    {"fp32_to_fp16", stream<uint32_t, uint16_t, fp32_to_fp16>},
    {"fp32_to_bf16_rz", stream<uint32_t, uint16_t, fp32_to_bf16_by<__float2bfloat16_rz>>},
    {"fp32_to_bf16_rm", stream<uint32_t, uint16_t, fp32_to_bf16_by<__float2bfloat16_rd>>},
    {"fp32_to_bf16_rp", stream<uint32_t, uint16_t, fp32_to_bf16_by<__float2bfloat16_ru>>},
    {"fp32_to_fp16_rz", stream<uint32_t, uint16_t, fp32_to_fp16_by<__float2half_rz>>},
    {"fp32_to_fp16_rm", stream<uint32_t, uint16_t, fp32_to_fp16_by<__float2half_rd>>},
    {"fp32_to_fp16_rp", stream<uint32_t, uint16_t, fp32_to_fp16_by<__float2half_ru>>},
    {"fp16_to_fp32", stream<uint16_t, uint32_t, fp16_to_fp32>},
};

int main(int argc, char** argv) {
    const auto found = kConversions.find(argc == 2 ? argv[1] : "");
    if (found == kConversions.end()) return std::fprintf(stderr, "usage: nvidia_header CONVERSION\n"), 2;
    found->second();
}
