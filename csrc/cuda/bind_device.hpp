// What every checked launch needs: errors of the CUDA runtime as exceptions, and memory on the current device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/bind_arguments.hpp"
#include "cuda/status.hpp"

namespace fp8sim {

inline void check(const CudaStatus& status) {
    if (status.code == 0) return;
    constexpr int kInsufficientDriver = 35, kNoDeviceFound = 100;
    const bool absent = status.code == kInsufficientDriver || status.code == kNoDeviceFound;
    const std::string kind = absent ? "no CUDA device: " : "CUDA error: ";
    const std::string remedy = absent ? "; fp8sim.use_backend(\"simulate\") needs no GPU" : "";
    throw std::runtime_error(kind + status.text + " (" + status.name + ", code " + std::to_string(status.code) + ")" +
                             remedy);
}

inline void check_device(const std::string& argument, uintptr_t address) {
    int current = 0, device = 0;
    check(current_device(&current));
    check(device_of(reinterpret_cast<const void*>(address), &device));
    const std::string number = std::to_string(device);
    if (device == kNoDevice) refuse(argument + " is not memory of a CUDA device: move the array to one");
    if (device != current) {
        refuse(argument + " is on CUDA device " + number + ", and the current one is " + std::to_string(current) +
               ": call under torch.cuda.device(" + number + ")");
    }
}

}  // namespace fp8sim
