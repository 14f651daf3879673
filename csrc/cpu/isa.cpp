#include "cpu/isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fp8sim {
namespace {

#if defined(FP8SIM_HAVE_AVX2) || defined(FP8SIM_HAVE_AVX512)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
}
#endif

Isa parse(const std::string& name, const std::string& argument) {
    std::string names;
    for (Isa isa : available_isas()) {
        if (name == name_of(isa)) return isa;
        names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
    }
    throw std::invalid_argument(argument + "='" + name + "': this build on this processor has " + names);
}

constexpr int kUnknown = -1;
std::atomic<int> chosen{kUnknown};

}  // namespace

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::kPortable: return "portable";
        case Isa::kAvx2: return "avx2";
        case Isa::kAvx512: return "avx512";
    }
    return "";
}

std::vector<Isa> available_isas() {
    std::vector<Isa> found = {Isa::kPortable};
#if defined(FP8SIM_HAVE_AVX2)
    if (has_avx2()) found.push_back(Isa::kAvx2);
#endif
#if defined(FP8SIM_HAVE_AVX512)
    if (has_avx512()) found.push_back(Isa::kAvx512);
#endif
    return found;
}

Isa current_isa() {
    int isa = chosen.load();
    if (isa != kUnknown) return static_cast<Isa>(isa);
    const char* wanted = std::getenv("FP8SIM_ISA");
    isa = static_cast<int>(wanted && *wanted ? parse(wanted, "FP8SIM_ISA") : available_isas().back());
    chosen.store(isa);
    return static_cast<Isa>(isa);
}

void set_isa(const std::string& name) { chosen.store(static_cast<int>(parse(name, "isa"))); }

}  // namespace fp8sim
