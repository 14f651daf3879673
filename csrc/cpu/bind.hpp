// The parts of fp8sim._core.
#pragma once

#include <pybind11/pybind11.h>

namespace fp8sim {

void bind_cast(pybind11::module_& module);
void bind_threads(pybind11::module_& module);

}  // namespace fp8sim
