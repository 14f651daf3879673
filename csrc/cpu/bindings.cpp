// fp8sim._core: the module; each part binds its own functions.
#include <pybind11/pybind11.h>

#include "cpu/bind.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "Vectorised, threaded loops over the arithmetic of fp8sim; _core.pyi documents them.";
    fp8sim::bind_cast(module);
    fp8sim::bind_threads(module);
}
