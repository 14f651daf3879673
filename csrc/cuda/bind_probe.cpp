// fp8sim._cuda.probe: a checked launch of one tensor-core instruction.
#include "cuda/bind_probe.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "cuda/bind_device.hpp"
#include "cuda/probe.hpp"

namespace py = pybind11;

namespace fp8sim {
namespace {

constexpr const char* kVariants[] = {"shared", "registers", "negated"};

int find_instruction(const std::string& name) {
    const ProbeInstruction* table = probe_instructions();
    for (int i = 0; table[i].name != nullptr; ++i) {
        if (name == table[i].name) return i;
    }
    refuse("instruction='" + name + "': probe_instructions() lists those that there are");
}

ProbeVariant find_variant(const std::string& name, const ProbeInstruction& instruction) {
    std::string known;
    const int count = instruction.has_variants ? 3 : 1;
    for (int i = 0; i < count; ++i) {
        if (name == kVariants[i]) return static_cast<ProbeVariant>(i);
        known += (i == 0 ? "" : ", ") + std::string(kVariants[i]);
    }
    refuse("variant='" + name + "': " + instruction.name + " has " + known);
}

void check_words(const std::string& argument, uintptr_t address, int64_t bytes) {
    constexpr uintptr_t kAlignment = 8;
    if (address == 0) refuse(argument + " is a null pointer: pass the address of device memory");
    if (address % kAlignment != 0) refuse(argument + "=" + std::to_string(address) + " is not a multiple of 8");
    if (static_cast<uint64_t>(bytes) > UINTPTR_MAX - address) refuse(argument + " reaches beyond the address space");
}

// The device has the instruction; machine code for any other one stops there.
void check_capability(const ProbeInstruction& instruction) {
    int capability = 0;
    check(device_capability(&capability));
    const bool has = instruction.on_later_devices ? capability >= instruction.least_capability
                                                  : capability == instruction.least_capability;
    if (has) return;
    const int needed = instruction.least_capability;
    refuse(std::string(instruction.name) + " needs compute capability " + std::to_string(needed / 10) + "." +
           std::to_string(needed % 10) + (instruction.on_later_devices ? " or later" : "") + ", and this device has " +
           std::to_string(capability / 10) + "." + std::to_string(capability % 10));
}

struct Region {
    const char* argument;
    uintptr_t address;
    int64_t bytes;
};

void check_regions(const std::vector<Region>& inputs, const Region& d) {
    for (const Region& region : inputs) {
        check_words(region.argument, region.address, region.bytes);
        const bool in_place = std::strcmp(region.argument, "c") == 0 && region.address == d.address;
        const bool disjoint =
            region.address + region.bytes <= d.address || d.address + d.bytes <= region.address;
        if (!in_place && !disjoint) refuse("d overlaps " + std::string(region.argument) + ": pass memory of its own");
    }
}

void probe(const std::string& name, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, int64_t cases, int steps,
           const std::string& variant, uintptr_t cuda_stream) {
    constexpr int64_t kMostCases = int64_t{1} << 31;
    const int index = find_instruction(name);
    const ProbeInstruction& instruction = probe_instructions()[index];
    const ProbeVariant chosen = find_variant(variant, instruction);
    if (cases < 0 || cases > kMostCases) refuse("cases=" + std::to_string(cases) + ": expected 0 to 2^31");
    if (steps < 1 || steps > kMostProbeSteps) {
        refuse("steps=" + std::to_string(steps) + ": expected 1 to " + std::to_string(kMostProbeSteps));
    }
    if (cases == 0) return;
    if (c == 0 && !instruction.may_ignore_c) refuse("c is a null pointer: only wgmma can do without");
    const int64_t row = int64_t{steps} * instruction.k * instruction.operand_bytes;
    const int64_t bytes = cases * instruction.m * instruction.n * instruction.accumulator_bytes;
    const Region result = {"d", d, bytes};
    std::vector<Region> inputs = {{"a", a, cases * instruction.m * row}, {"b", b, cases * instruction.n * row}};
    if (c != 0) inputs.push_back({"c", c, bytes});
    check_words(result.argument, result.address, result.bytes);
    check_regions(inputs, result);
    inputs.push_back(result);
    for (const Region& region : inputs) check_device(region.argument, region.address);
    check_capability(instruction);
    const ProbeJob job = {index,
                          chosen,
                          reinterpret_cast<const void*>(a),
                          reinterpret_cast<const void*>(b),
                          reinterpret_cast<const void*>(c),
                          reinterpret_cast<void*>(d),
                          cases,
                          steps};
    const py::gil_scoped_release unlocked;
    check(launch_probe(job, cuda_stream));
}

py::list instructions() {
    py::list found;
    for (const ProbeInstruction* row = probe_instructions(); row->name != nullptr; ++row) {
        found.append(py::make_tuple(row->name, row->kernel, row->m, row->n, row->k, row->least_capability,
                                    row->on_later_devices, row->has_variants));
    }
    return found;
}

}  // namespace

void bind_probe(py::module_& module) {
    const auto variant = py::arg("variant") = "shared";
    module.def("probe", &probe, py::arg("instruction"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("d"),
               py::arg("cases"), py::arg("steps") = 1, variant, py::arg("cuda_stream") = 0);
    module.def("probe_instructions", &instructions);
}

}  // namespace fp8sim
