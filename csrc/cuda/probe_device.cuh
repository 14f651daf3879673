// What the kernels of probe_mma.cuh and probe_wgmma.cuh share.
#pragma once

namespace fp8sim {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 128;

// In the machine code of devices that lack an instruction: the bindings do not launch it there.
[[maybe_unused]] __device__ void refuse_on_this_device() { __trap(); }

}  // namespace
}  // namespace fp8sim
