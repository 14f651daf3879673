// Which instruction set the loops are compiled for: the best that this processor has, or FP8SIM_ISA's choice.
#pragma once

#include <string>
#include <vector>

namespace fp8sim {

enum class Isa { kPortable, kAvx2, kAvx512 };

const char* name_of(Isa isa);

// Those that this build contains and this processor runs, slowest first.
std::vector<Isa> available_isas();

// The one in use. Reads FP8SIM_ISA on the first call; throws std::invalid_argument if that names none of the available.
Isa current_isa();

// Throws std::invalid_argument if `name` is not available.
void set_isa(const std::string& name);

}  // namespace fp8sim
