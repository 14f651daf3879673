// fp8sim._core: threads and instruction sets.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/bind.hpp"
#include "cpu/isa.hpp"
#include "cpu/parallel.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

constexpr int kMostThreads = 1024;

void set_threads(int count) {
    if (count < 1 || count > kMostThreads) {
        const std::string most = std::to_string(kMostThreads);
        throw py::value_error("count=" + std::to_string(count) + ": expected 1 to " + most + " threads");
    }
    set_num_threads(count);
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(name_of(isa));
    return names;
}

}  // namespace

void bind_threads(py::module_& module) {
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_threads, py::arg("count"));
    module.def("isa", [] { return name_of(current_isa()); });
    module.def("isas", &isa_names);
    module.def("set_isa", &set_isa, py::arg("isa"));
}

}  // namespace fp8sim
