// Bindings of csrc/cuda/probe.cu.
#pragma once

#include <pybind11/pybind11.h>

namespace fp8sim {

void bind_probe(pybind11::module_& module);

}  // namespace fp8sim
