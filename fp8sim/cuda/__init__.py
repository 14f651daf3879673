"""The CUDA C++ kernels of `fp8sim._cuda` on torch tensors: checks, memory and the current stream around them."""
